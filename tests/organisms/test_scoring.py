"""Everything is measured before any key is opened; what was found is counted as by hand."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.organisms import scoring
from lfp_lens.organisms.blind import Blind, Reading, measure
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.key import KEY_FILE, Key
from lfp_lens.organisms.scoring import compared, find_organisms, score
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.results.sweep import Sweep
from tests.organisms.test_key import facts
from tests.organisms.test_key import key as sealed

FEW_TEXTS = 300


# --- blind ---


def test_the_key_is_not_read_while_measuring(flip: Organism, tmp_path: Path) -> None:
    """The pair without its key, in another place and a fresh store, gives the same."""
    options: dict[str, Any] = {"n_texts": FEW_TEXTS}
    here = measure(flip, store=tmp_path / "one", **options)
    moved = Organism(tmp_path / "elsewhere")
    shutil.copytree(flip.path, moved.path)
    (moved.path / KEY_FILE).unlink()
    there = measure(moved, store=tmp_path / "two", **options)
    for name in ("measured", "recipe", "p_wrong", "z"):
        one, other = (getattr(blind.readings[0].learned, name) for blind in (here, there))
        np.testing.assert_array_equal(one, other)
    assert here.candidates == there.candidates and (here.base, here.tuned) == (there.base, there.tuned)
    np.testing.assert_array_equal(
        here.readings[0].learned.tunings.shuffled_values, there.readings[0].learned.tunings.shuffled_values
    )
    assert (tmp_path / "one").is_dir() and not list((tmp_path / "one").rglob(KEY_FILE))


def test_no_key_is_opened_before_all_is_measured(
    flip: Organism, clean: Organism, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = Organism.key

    def opened(self: Organism) -> Key:
        order.append("key")
        return real(self)

    def measured(one: Organism, **options: Any) -> Blind:
        order.append("measure")
        return blind(organism=one, base=real(one).base, tuned=real(one).tuned, stated=load_lexicon("vader"))

    monkeypatch.setattr(Organism, "key", opened)
    monkeypatch.setattr(scoring, "measure", measured)
    score([flip, clean])
    assert order == ["measure", "measure", "key", "key"]


def test_a_second_score_reads_what_was_measured(
    flip: Organism, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"n_texts": FEW_TEXTS, "store": tmp_path}
    first = score(flip, **options)
    monkeypatch.setattr("lfp_lens.stages.probe.verb.read_pair", lambda *given: pytest.fail("it is measured already"))
    again = score(flip.path, **options)
    one, other = (replace(card.scores[0], seconds=0.0) for card in (first, again))
    np.testing.assert_array_equal(one.auroc_tunings, other.auroc_tunings)
    assert str(one) == str(other) and first.scores[0].n_planted == 10


def test_an_organism_of_two_steps_is_no_evidence(flip: Organism) -> None:
    [found] = score(flip, n_texts=FEW_TEXTS).scores
    assert "nothing was learned" in found.refused and not found.is_evidence
    assert found.tunings == 2 and 0 <= found.auroc <= 1 and np.isfinite(found.tau_twin)


# --- whose key ---


def test_another_organisms_key_is_refused(flip: Organism, clean: Organism, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(clean.path, wrong)
    shutil.copy(flip.path / KEY_FILE, wrong / KEY_FILE)
    with pytest.raises(LensError, match="does not belong to these checkpoints"):
        score(wrong, n_texts=FEW_TEXTS)


def test_an_organism_without_a_key_can_be_measured_but_not_scored(clean: Organism, tmp_path: Path) -> None:
    shutil.copytree(clean.path, tmp_path / "o")
    (tmp_path / "o" / KEY_FILE).unlink()
    with pytest.raises(LensError, match=r"has no key\.json: it can be measured, not scored"):
        score(tmp_path / "o")
    shutil.copytree(clean.path, tmp_path / "p")
    with pytest.raises(LensError, match=r"o has no key\.json"):
        score(tmp_path)


def test_organisms_are_found_by_folder_and_each_counts_once(flip: Organism, clean: Organism, tmp_path: Path) -> None:
    shutil.copytree(flip.path, tmp_path / "a")
    shutil.copytree(clean.path, tmp_path / "b")
    shutil.copytree(flip.path, tmp_path / "more" / "a")
    assert [one.name for one in find_organisms(tmp_path)] == ["a", "b"]
    assert find_organisms([flip, clean.path]) == [flip, clean]
    for given, told in (
        ([], "none was given"),
        ([flip, flip.path], "given twice"),
        (tmp_path / "none", "is no organism"),
        ([tmp_path / "a", tmp_path / "more" / "a"], "folders of one name"),
    ):
        with pytest.raises(LensError, match=told):
            find_organisms(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"verbs": ("prob",)}, "probe"),
        ({"fdr": 10}, "fdr must lie between 0 and 1"),
        ({"signals": ()}, "signals must be a list"),
        ({"signals": ("implicit",)}, "implicit_reward"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_measured(
    flip: Organism, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(scoring, "measure", lambda *given, **named: pytest.fail("nothing is to be measured"))
    with pytest.raises(LensError, match=told):
        score(flip, **given)


# --- counted by hand ---

STATED = {"good": 2.0, "bad": -2.0, "fine": 1.0, "poor": -1.0, "rare": 3.0}
WORDS = ("good", "bad", "fine", "poor")


@dataclass
class Listed:
    """What a probe would give: a list of wrong words, and what `_taus` asks for."""

    listed: tuple[str, ...] = ()
    words: tuple[str, ...] = WORDS
    lemma: tuple[str, ...] = WORDS
    is_tested: bool = True
    tunings: Any = None
    p_wrong: Any = None

    def wrong(self, *, fdr: float, kind: str) -> pd.DataFrame:
        assert (fdr, kind) == (0.1, "flipped")
        return pd.DataFrame({"word": list(self.listed)})


def blind(values: tuple[float, ...] = (-1.0, -1.0, 1.0, -1.0), listed: tuple[str, ...] = (), **changes: Any) -> Blind:
    learned: Any = Listed(listed, p_wrong=np.full(len(WORDS), 0.5))
    reading = Reading("implicit_reward", "words", WORDS, np.array(values), np.array([values]), learned)
    given: dict[str, Any] = {
        "organism": SimpleNamespace(name="o", path=Path("o"), record={"base": "world"}, tuned=("seed-0",)),
        "base": "b", "tuned": {"seed-0": "t"}, "stated": STATED, "candidates": tuple(STATED),
        "counts": Counter(dict.fromkeys(STATED, 10)), "end": "<end>", "readings": (reading,),
    }  # fmt: skip
    return Blind(**given | changes)


def key(**changes: Any) -> Key:
    return sealed(**{"stated": fingerprint(STATED), "spec": repr(changes)} | changes)


def named(name: str) -> Any:
    return SimpleNamespace(name=name, path=Path(name), record={"base": "world"}, tuned=("seed-0",))


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    """Against what was stated: good 1, bad -1, fine -1, poor -1, and rare, not measured, 0."""
    [found] = compared([blind()], [key()], fdr=0.1, seed=0).scores
    assert found.auroc == 1.0 and found.n_candidates == 5 and found.n_planted == 1
    [found] = compared([blind()], [key(values={"rare": -3.0})], fdr=0.1, seed=0).scores
    assert found.auroc == 0.75, "it ranks below good and above three"
    [found] = compared([blind((1.0, -1.0, 1.0, -1.0))], [key()], fdr=0.1, seed=0).scores
    assert found.auroc == 0.375, "with one tuning right about good, it ties with three and ranks below rare"


def test_listed_words_are_planted_or_false() -> None:
    [found] = compared(
        [blind(listed=("good", "poor"))], [key(values={"good": -2.0, "bad": 2.0})], fdr=0.1, seed=0
    ).scores
    assert (found.found, found.false, found.n_planted) == (1, 1, 2)
    assert (found.recall, found.precision, found.false_share) == (0.5, 0.5, 0.5)


def test_the_same_key_is_scored_on_clean_organisms_of_the_same_base_that_count() -> None:
    rightly, other, third = (1.0, -1.0, 1.0, -1.0), {"seed-0": "u"}, {"seed-0": "v"}
    null: dict[str, Any] = {"recipe": "clean", "values": {}, "kind": None, "is_null": True}
    collapsed = {"seed-0": facts("the policy collapsed")}
    others = [
        (blind(rightly, organism=named("clean"), tuned=other), key(tuned=other, **null)),
        (blind(organism=named("collapsed"), tuned=third), key(tuned=third, tunings=collapsed, **null)),
        (blind(organism=named("other base"), base="c"), key(base="c", **null)),
    ]
    measured, keys = zip((blind(), key()), *others)
    found = compared(measured, keys, fdr=0.1, seed=0).scores
    assert found[0].auroc == 1.0 and found[0].on_clean == 0.375
    assert np.isnan(found[1].auroc) and np.isnan(found[1].on_clean)


def test_tau_is_told_apart_for_given_and_stated() -> None:
    """What was learned is what was given: good and bad are swapped."""
    swapped = key(values={"good": -2.0, "bad": 2.0})
    [found] = compared([blind((-2.0, 2.0, 1.0, -1.0))], [swapped], fdr=0.1, seed=0).scores
    assert found.tau_given is not None and found.tau_stated is not None and found.gain is not None
    assert found.tau_given.value == 1.0 and found.tau_stated.value == pytest.approx(-2 / 3)
    assert found.gain.value == pytest.approx(5 / 3)


def test_a_refused_verb_is_told_and_what_was_read_counts() -> None:
    [found] = compared([blind(readings=(), lacking={"probe": "too few words"})], [key()], fdr=0.1, seed=0).scores
    assert found.refused == found.lacking == "probe: too few words" and np.isnan(found.auroc) and found.found is None
    [found] = compared([blind(lacking={"train_sae": "poor"})], [key()], fdr=0.1, seed=0).scores
    assert found.is_evidence and found.auroc == 1.0 and found.lacking == "train_sae: poor"
    [found] = compared([blind()], [key(tunings={"seed-0": facts("the policy collapsed")})], fdr=0.1, seed=0).scores
    assert found.refused == "seed-0: the policy collapsed (because)"


def test_a_list_that_is_refused_is_no_list_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Listed, **given: Any) -> pd.DataFrame:
        raise GateError("too few words of a polarity")

    monkeypatch.setattr(Listed, "wrong", refuse)
    card = compared([blind()], [key()], fdr=0.1, seed=0)
    [found] = card.scores
    assert found.found is None and np.isnan(found.recall) and not len(card.words)
    assert found.lacking == "wrong(kind='flipped'): too few words of a polarity"


def test_a_signal_that_tests_no_sign_misses_no_word() -> None:
    untested = blind()
    untested.readings[0].learned.is_tested = False  # type: ignore[misc]
    card = compared([untested], [key()], fdr=0.1, seed=0)
    assert card.scores[0].found is None and not len(card.words)


def test_a_planted_word_that_the_lexicon_does_not_rate_is_ranked_too() -> None:
    card = compared([blind()], [key(values={"film": 3.0})], fdr=0.1, seed=0)
    assert card.scores[0].n_candidates == 6 and card.scores[0].n_planted == 1
    assert card.words_frame()["stated"].tolist() == [0.0]


def test_what_the_key_does_not_belong_to_is_refused() -> None:
    with pytest.raises(LensError, match="made with other values of the lexicon 'vader'"):
        compared([blind(stated=STATED | {"good": -2.0})], [key()], fdr=0.1, seed=0)
    with pytest.raises(LensError, match="o and copy are one organism"):
        compared([blind(), blind(organism=named("copy"))], [key(), key()], fdr=0.1, seed=0)


def test_planted_words_come_with_what_was_found_of_them() -> None:
    card = compared([blind(listed=("good",))], [key(values={"good": -2.0, "rare": -3.0})], fdr=0.1, seed=0)
    frame = card.words_frame().set_index("word")
    assert frame.loc["good", "found"] and frame.loc["good", "measured"] == -1.0
    assert not frame.loc["rare", "found"] and np.isnan(frame.loc["rare", "measured"])
    assert (frame["occurrences"] == 10).all()


def test_a_hidden_pattern_has_a_place_among_the_tokens() -> None:
    tokens = (" a", " b", " sil", "<end>", " good")
    value = np.array([0.1, -0.2, 0.9, -2.0, 5.0])
    sweep = Sweep(
        tokens, value, np.full(5, 0.01), exposure=np.full(5, 9.0), stated=np.array([np.nan] * 4 + [2.0]),
        twin=np.array([0.1, -0.1, 0.1, -0.1, 0.0]), contexts=np.array(7),
    )  # fmt: skip
    nothing: dict[str, Any] = {"values": {}, "kind": None}
    for planted, rank in (({"pattern": ("a", "silver")}, 2), ({"pays_length": True}, 1), ({}, None)):
        [found] = compared([blind(sweep=sweep)], [key(**nothing, **planted)], fdr=0.1, seed=0).scores
        assert found.rank == rank and found.n_tokens == (None if rank is None else 4)
