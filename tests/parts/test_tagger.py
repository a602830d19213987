"""The tagger: a stand-in for a spaCy pipeline, because none is among the requirements."""

import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import spacy
from spacy.language import Language

from lfp_lens.parts.slots import slot_at
from lfp_lens.parts.substitutes import Slot, learn_substitutes
from lfp_lens.parts.tagger import PIPELINES, TaggedClasses, Tagger, find_tagger
from lfp_lens.parts.words import tokenize

TAGS = {
    "ran": "VBD", "walked": "VBD", "cheated": "VBD", "runs": "VBZ", "a": "DT", "good": "JJ", "bad": "JJ", "big": "JJ",
    "dogs": "NNS", "dog": "NN", "Bad": "NNP", "loved": "VBN", "it": "PRP", ".": ".",
}  # fmt: skip
LEXICON = {"good": 2.0, "bad": -2.0, "loved": 3.0}


@Language.component("stand_in_tagger")
def _tag(doc: Any) -> Any:
    for token in doc:
        token.tag_ = TAGS.get(token.text, "XX")
    return doc


def pipeline(name: str = "tagger") -> Any:
    made = spacy.blank("en")
    made.add_pipe("stand_in_tagger", name=name)
    return made


def a_package(monkeypatch: pytest.MonkeyPatch, name: str, pipe: str = "tagger") -> dict[str, Any]:
    """Let a pipeline's package be importable; gives what it was loaded with."""
    package, loaded = ModuleType(name), {}

    def load(**named: Any) -> Any:
        loaded.update(named)
        return pipeline(pipe)

    monkeypatch.setattr(package, "load", load, raising=False)
    monkeypatch.setattr(package, "__version__", "9.9.9", raising=False)
    monkeypatch.setitem(sys.modules, name, package)
    return loaded


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PIPELINES:
        monkeypatch.setitem(sys.modules, name, None)


def test_the_best_installed_pipeline_is_taken_and_loads_only_what_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    best, *others = [a_package(monkeypatch, name) for name in PIPELINES]
    found = find_tagger()
    assert found is not None and found.name == f"{PIPELINES[0]} 9.9.9"
    assert "parser" in best["exclude"] and not any(others)


def test_a_pipeline_without_a_tagger_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    without_packages(monkeypatch)
    a_package(monkeypatch, "en_core_web_md", pipe="something")
    loaded = a_package(monkeypatch, "en_core_web_sm")
    found = find_tagger()
    assert found is not None and found.name == "en_core_web_sm 9.9.9"
    assert "parser" in loaded["exclude"]


def test_tags_become_parts_of_speech_and_inflections_of_our_own_tokens() -> None:
    texts = ["a  good dog ran.", "it loved Bad dogs."] * 4
    tokens = [tokenize(text) for text in texts]
    classes = Tagger("stand-in", pipeline()).classes(texts, tokens)
    assert [classes.kind_at(0, tokens[0], at) for at in range(5)] == [
        None, ("adjective", "base"), ("noun", "singular"), ("verb", "past"), None,
    ]  # fmt: skip
    assert classes.kind_at(1, tokens[1], 1) == ("verb", "participle")
    assert (classes.kind("good"), classes.kind("dogs")) == (("adjective", "base"), ("noun", "plural"))
    assert classes.kind("bad") is None, "a name here"


def test_a_word_of_several_kinds_or_seen_too_rarely_has_none() -> None:
    adjective, noun = ("adjective", "base"), ("noun", "singular")
    profiles = {
        "mostly": {adjective: 3, noun: 1},
        "either": {adjective: 3, noun: 3},
        "rare": {adjective: 2},
        "name": {noun: 3},
    }
    counts = {"mostly": 4, "either": 6, "rare": 2, "name": 5}
    classes = TaggedClasses({word: Counter(votes) for word, votes in profiles.items()}, counts, {})
    assert [classes.kind(word) for word in (*profiles, "unseen")] == [adjective, None, None, None, None]


def test_substitutes_and_slots_go_by_the_tags() -> None:
    texts = ["a good dog ran.", "a bad dog ran.", "a big dog ran."] * 4
    tokens = [tokenize(text) for text in texts]
    substitutes = learn_substitutes(texts, tokens, LEXICON, 1.0, Tagger("stand-in", pipeline()))
    assert substitutes.pools["adjective", "base", "negative"] == ["bad"]
    slot = slot_at(0, texts[0], tokens[0], 1, substitutes)
    assert isinstance(slot, Slot) and (slot.part, slot.inflection) == ("adjective", "base")
    assert substitutes.choose(slot, "neutral", {}, None) == "big"
