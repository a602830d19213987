"""explain on a planted pair: each feature fires on one known word, so every label has a right answer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.core.store import Store
from lfp_lens.parts import harvest, sites
from lfp_lens.parts.activation_cache import ActivationCache, open_cache
from lfp_lens.parts.cache import cache as make_cache
from lfp_lens.parts.labellers import Evidence, Trial
from lfp_lens.parts.pair import Pair
from lfp_lens.results.attribute import Effects
from lfp_lens.results.explain import Example, Explanation, Labels
from lfp_lens.results.train_sae import SAESet, SAEWeights
from lfp_lens.stages.explain import explain
from tests.results import samples
from tests.tiny import tiny_pair, tiny_texts, word_saes

SITE = "blocks.0.hook_mlp_out"
PLANTED = ("wonderful", "terrible", "table", "river")
TEXTS = tiny_texts(120)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


@pytest.fixture(scope="module")
def saes(pair: Pair) -> SAESet:
    return word_saes(pair, PLANTED)


@pytest.fixture(scope="module")
def labels(pair: Pair, saes: SAESet) -> Labels:
    return explain(pair, saes, TEXTS, k=4)


class Row(NamedTuple):
    """What was said of a feature."""

    description: str
    is_relevant: bool
    detection: float
    shuffled: float
    n: int
    examples: tuple[Example, ...]


def effects_on(saes: SAESet, exact: list[float], **changes: Any) -> Effects:
    n, nothing = len(exact), np.full(len(exact), np.nan)
    given = {
        "saes": saes, "site": (SITE,) * n, "index": np.arange(n), "screen": nothing, "exact": np.array(exact),
        "exact_low": nothing, "exact_high": nothing, "rank_correlation": Estimate(0.9, 0.8, 1.0, n),
        "side": "tuned", "size": None,
    }  # fmt: skip
    return dataclasses.replace(samples.an_effects(), **(given | changes))


def altered(saes: SAESet, **changes: Any) -> SAESet:
    """Give the set with these fields changed in every record."""
    return dataclasses.replace(saes, saes=tuple(dataclasses.replace(sae, **changes) for sae in saes.saes))


def asked(labels: Labels) -> dict[int, Row]:
    """Give what was said and scored of each feature that fires."""
    detection = labels.score("detection")
    return {
        int(labels.index[row]): Row(
            labels.description[row], bool(labels.is_relevant[row]), float(detection.own[row]),
            float(detection.shuffled[row]), int(detection.n[row]), labels.examples[row],
        )
        for row, status in enumerate(labels.status) if status == "labelled"
    }  # fmt: skip


def planted(labels: Labels) -> bool:
    return {index: row.description for index, row in asked(labels).items()} == {
        index: f"fires on: {word}" for index, word in enumerate(PLANTED)
    }


def test_each_planted_feature_is_described_by_its_word(labels: Labels) -> None:
    assert planted(labels)


def test_the_features_of_rated_words_are_relevant_and_the_others_are_not(labels: Labels) -> None:
    assert [row.is_relevant for row in asked(labels).values()] == [True, True, False, False]
    assert labels.relevant.features == ((SITE, 0), (SITE, 1))


def test_a_right_description_detects_and_a_shuffled_one_does_not(labels: Labels) -> None:
    for row in asked(labels).values():
        assert row.n >= 8 and row.detection > 0.9 and row.shuffled < 0.75


def test_a_right_description_says_which_tokens_and_a_shuffled_one_does_not(labels: Labels) -> None:
    fuzzing = labels.score("fuzzing")
    rows = [row for row, status in enumerate(labels.status) if status == "labelled"]
    assert (fuzzing.n[rows] >= 8).all()
    assert (fuzzing.own[rows] == 1).all() and (fuzzing.shuffled[rows] < 0.75).all()


def test_a_feature_that_never_fires_is_listed_as_dead_and_not_asked_about(pair: Pair, saes: SAESet) -> None:
    """It matches best, so that it heads the list; the next one is taken in its place."""
    assert saes.match(saes.one(SITE)).ranked()[0] == 4
    recorder = Recorder()
    found = explain(pair, saes, TEXTS, k=4, labeller=recorder, n_random=0)
    assert found.index.tolist() == [4, 0, 1, 2, 3]
    assert found.status == ("dead", *["labelled"] * 4)
    assert recorder.asked == [f"{SITE} {index}" for index in range(4)]
    assert found.description[0] == "" and found.examples[0] == () and np.isnan(found.detection[0])
    assert not found.is_relevant[0]


def test_the_best_matched_features_come_first(pair: Pair) -> None:
    matched = word_saes(pair, PLANTED, cosines=(0.1, 0.9, 0.2, 0.8, 0.95))
    assert explain(pair, matched, TEXTS, k=2).index.tolist() == [4, 1, 3]


def test_every_feature_can_be_asked_for(pair: Pair, saes: SAESet) -> None:
    found = explain(pair, saes, TEXTS, select="all", k=1)
    assert found.index.tolist() == [0, 1, 2, 3, 4] and found.status[4] == "dead"


def test_the_strongest_confirmed_effects_can_be_asked_for(pair: Pair, saes: SAESet) -> None:
    effects = effects_on(saes, [0.1, np.nan, -0.5, 0.3, 9.0])
    found = explain(pair, saes, TEXTS, select="attribution", effects=effects, k=2)
    assert found.index.tolist() == [4, 2, 3] and found.status[0] == "dead"


def test_examples_are_different_windows_that_hold_the_strongest_token(labels: Labels) -> None:
    for index, row in asked(labels).items():
        firing = [one for one in row.examples if one.kind in ("top", "quantile")]
        assert len(firing) == len({one.text for one in row.examples}) - 5 == 10
        for one in firing:
            assert one.tokens[one.peak] == f" {PLANTED[index]}"
            assert len(one.tokens) == len(one.activations) == len(one.ids) <= 32
        assert all(one.activations.max() == 0 for one in row.examples if one.kind in ("silent", "hard negative"))


def test_texts_of_nothing_but_beginning_of_text_tokens_fire_nothing(pair: Pair, saes: SAESet) -> None:
    with pytest.raises(LensError, match="None of the chosen features"):
        explain(pair, saes, ["<|endoftext|>", "<|endoftext|>" * 2], k=4)


def test_the_order_of_the_texts_changes_nothing(pair: Pair, saes: SAESet, labels: Labels) -> None:
    assert_alike(explain(pair, saes, [*TEXTS[::-1], TEXTS[3]], k=4), labels)


def test_the_labeller_never_sees_a_text_it_is_scored_on(pair: Pair, saes: SAESet) -> None:
    judge = Recorder()
    explain(pair, saes, TEXTS, labeller=judge, k=4)
    assert judge.shown and judge.tested

    def texts_with(pieces: list[str]) -> set[str]:
        # A short window, such as the end of a text, may stand in several texts.
        return {text for text in TEXTS for piece in pieces if len(piece) > 25 and piece.strip() in text}

    assert texts_with(judge.shown).isdisjoint(texts_with(judge.tested))


class Recorder:
    """A labeller of one's own: it notes what it is given, and says that every feature fires everywhere."""

    name = "recorder"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.shown: list[str] = []
        self.tested: list[str] = []

    def explain(self, evidence: Sequence[Evidence], task: str) -> list[Explanation]:
        self.asked += [one.feature for one in evidence]
        self.shown += [example.text for one in evidence for example in one.examples + one.silent]
        return [Explanation("anything", False, 0.5)] * len(evidence)

    def detect(self, trials: Sequence[Trial]) -> list[list[bool]]:
        self.tested += [window.text for trial in trials for window in trial.windows]
        return [[True] * len(trial.windows) for trial in trials]

    def fuzz(self, trials: Sequence[Trial]) -> list[list[bool]]:
        return self.detect(trials)


def test_a_description_that_fits_everything_scores_at_chance(pair: Pair, saes: SAESet) -> None:
    found = explain(pair, saes, TEXTS, labeller=Recorder(), k=4, select="all")
    for kind in ("detection", "fuzzing"):
        score = found.score(kind)
        assert score.own[:4].tolist() == [0.5] * 4 == score.shuffled[:4].tolist()
        assert set(score.random[np.isfinite(score.random)]) <= {0.5}
    assert found.labeller == "recorder" and len(found.relevant) == 0


def test_a_feature_that_is_always_active_is_scored_where_it_is_strong(pair: Pair, saes: SAESet) -> None:
    dense = tuple(dataclasses.replace(sae, weights=raised(sae.weights)) for sae in saes.saes)
    found = explain(pair, dataclasses.replace(saes, saes=dense), TEXTS, k=4)
    row = found.index.tolist().index(1)
    assert found.description[row] == "fires on: terrible" and found.detection[row] > 0.9


def raised(weights: SAEWeights) -> SAEWeights:
    """Give the dictionary with a bias at which every feature is active on nearly every token."""
    return SAEWeights(weights.config, weights.tensors | {"b_enc": weights.tensors["b_enc"] + np.float32(2)})


def test_too_few_held_out_windows_give_no_score(pair: Pair, saes: SAESet) -> None:
    found = explain(pair, saes, TEXTS[:12], select="all")
    assert (found.n_scored == 0).any()
    np.testing.assert_array_equal(np.isnan(found.detection), found.n_scored == 0)


def test_a_single_feature_has_no_shuffled_score(pair: Pair, saes: SAESet) -> None:
    row = asked(explain(pair, saes, TEXTS, k=1))[0]
    assert row.detection > 0.9 and np.isnan(row.shuffled)


def test_the_base_side_is_read_when_asked_for(pair: Pair, saes: SAESet) -> None:
    found = explain(pair, saes, TEXTS, k=4, side="base")
    assert found.side == "base" and planted(found)


def test_saes_of_another_pair_are_refused(pair: Pair, saes: SAESet) -> None:
    with pytest.raises(LensError, match=r"trained on the pair abc, this pair is .*Run train_sae"):
        explain(pair, dataclasses.replace(saes, pair="abc"), TEXTS)


def test_a_pair_on_mps_is_refused_before_anything_is_read(
    pair: Pair, saes: SAESet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pair, "device", property(lambda self: torch.device("mps")))
    monkeypatch.setattr(Pair, "hf", lambda self, side: pytest.fail("the model was read"))
    with pytest.raises(LensError, match="64-bit numbers, which mps lacks: load the pair with device='cpu'"):
        explain(pair, saes, tiny_texts(20), labeller="lexicon")


def test_saes_that_fail_a_gate_are_refused_with_the_reason(pair: Pair, saes: SAESet) -> None:
    with pytest.raises(GateError, match=r"good enough to interpret.*explained variance 0\.20 < 0\.60"):
        explain(pair, altered(saes, explained_variance=0.2), TEXTS)


def test_a_warning_keeps_the_site_and_notes_the_reason(pair: Pair, saes: SAESet, labels: Labels) -> None:
    assert labels.skipped == {}
    warned = explain(pair, altered(saes, explained_variance=0.2), TEXTS, k=4, gate="warn")
    assert warned.skipped == {SITE: "explained variance 0.20 < 0.60"}
    assert warned.description == labels.description


def test_one_bad_site_is_skipped_and_the_others_are_explained(pair: Pair, saes: SAESet) -> None:
    other = "blocks.1.hook_mlp_out"
    bad = tuple(dataclasses.replace(sae, site=other, dead_share=0.9) for sae in saes.saes)
    both = dataclasses.replace(saes, saes=saes.saes + bad)
    found = explain(pair, both, TEXTS, k=4)
    assert set(found.site) == {SITE} and found.skipped == {other: "dead share 0.90 > 0.5"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": "attribution"}, r"pass effects=attribute\("),
        ({"select": "mcms"}, "Unknown way to select features 'mcms'. Did you mean 'mmcs'"),
        ({"gate": "warm"}, "Unknown gate 'warm'. Did you mean 'warn'"),
        ({"side": "tune"}, "Unknown side 'tune'. Did you mean 'tuned'"),
        ({"k": 0}, "k must be 1 or more; 0 given"),
        ({"n_examples": 0}, "n_examples must be 1 or more"),
        ({"n_random": -1}, "n_random must be 0 or more; -1 given"),
        ({"scores": "detection"}, "scores must be a list, such as"),
        ({"scores": ["detecting"]}, "Unknown score 'detecting'. Did you mean 'detection'"),
        ({"task": "  "}, "The task is empty: say in words"),
        ({"judge": "nobody"}, "Unknown labeller 'nobody'"),
        ({"size": 3.0}, "No SAE matches"),
        ({"task": "legal advice"}, "knows sentiment only"),
        ({"labeller": "nobody"}, "Unknown labeller 'nobody'"),
        ({"lexicon": "no-such-file.csv"}, "Unknown lexicon"),
    ],
)
def test_a_wrong_argument_is_named(pair: Pair, saes: SAESet, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        explain(pair, saes, TEXTS, **changes)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "texts must be a list"),
        (["one", "one", " "], "1 different texts were given"),
        (["we saw it", "it was there"], "None of the chosen features .* fires on the 1 shown texts"),
    ],
)
def test_texts_that_cannot_do_are_refused(pair: Pair, saes: SAESet, texts: Any, message: str) -> None:
    with pytest.raises(LensError, match=message):
        explain(pair, saes, texts)


def test_matching_needs_two_sizes_and_ranks_the_smallest(pair: Pair, saes: SAESet) -> None:
    with pytest.raises(LensError, match="needs tuned SAEs of two sizes"):
        explain(pair, dataclasses.replace(saes, matches=()), TEXTS)
    larger = tuple(dataclasses.replace(sae, size=2.0) for sae in saes.saes)
    with pytest.raises(LensError, match=r"has size 1 at blocks\.0\.hook_mlp_out; size=2 was asked for"):
        explain(pair, dataclasses.replace(saes, saes=saes.saes + larger), TEXTS, size=2.0)


def test_effects_of_other_dictionaries_are_refused(pair: Pair, saes: SAESet) -> None:
    with pytest.raises(LensError, match=r"measured on the base SAE.*Pass side='base'"):
        explain(pair, saes, TEXTS, select="attribution", effects=effects_on(saes, [1.0], side="base"))
    with pytest.raises(LensError, match="has a confirmed effect"):
        explain(pair, saes, TEXTS, select="attribution", effects=effects_on(saes, [np.nan]))


def test_a_stored_result_comes_back_the_same(pair: Pair, saes: SAESet, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    first = explain(pair, saes, TEXTS, k=4, store=store)
    again = explain(pair, saes, TEXTS, k=4, store=store)
    assert again.description == first.description and again.skipped == {}
    assert_alike(again, first)
    other = explain(pair, saes, TEXTS, k=4, lexicon={"table": 2.0}, store=store)
    assert other.relevant.features == ((SITE, 2),)


# --- from a cache ---


@pytest.fixture(scope="module")
def stored(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return make_cache(pair, [SITE], TEXTS, tmp_path_factory.mktemp("explain") / "cache", max_tokens=64)


def assert_alike(one: Labels, other: Labels) -> None:
    assert (one.site, one.index.tolist(), one.description) == (other.site, other.index.tolist(), other.description)
    np.testing.assert_array_equal(one.detection, other.detection)
    for left, right in zip(one.examples, other.examples, strict=True):
        assert [shown.tokens for shown in left] == [shown.tokens for shown in right]
        for shown, again in zip(left, right):
            np.testing.assert_allclose(shown.activations, again.activations, atol=1e-5)


def without_models(patch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("a model was run")

    for module in (harvest, sites):
        patch.setattr(module, "activations_at", refuse)


def test_from_a_cache_the_labels_are_the_same_and_no_model_runs(
    pair: Pair, saes: SAESet, labels: Labels, stored: ActivationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_models(monkeypatch)
    with pytest.raises(AssertionError, match="a model was run"):
        explain(pair, saes, TEXTS, k=4)
    assert_alike(explain(pair, saes, TEXTS, k=4, cache=stored), labels)


def test_a_cache_of_one_side_in_a_folder_is_made_once(
    pair: Pair, saes: SAESet, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_alike(explain(pair, saes, TEXTS, k=4, cache=tmp_path / "acts"), labels)
    assert open_cache(tmp_path / "acts").streams == (("tuned", SITE),)
    without_models(monkeypatch)
    assert_alike(explain(pair, saes, TEXTS, k=4, cache=str(tmp_path / "acts")), labels)
    assert planted(explain(pair, saes, TEXTS, seed=0, select="all", cache=str(tmp_path / "acts")))


def test_texts_that_hold_a_beginning_of_text_token_are_read_from_a_cache_too(
    pair: Pair, saes: SAESet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*(f"{text[:15]}<|endoftext|>{text[15:]}" for text in TEXTS[:60]), *TEXTS[60:], "<|endoftext|>"]
    plain = explain(pair, saes, texts, k=4)
    stored = make_cache(pair, [SITE], texts, tmp_path / "acts", max_tokens=64)
    without_models(monkeypatch)
    assert_alike(explain(pair, saes, texts, k=4, cache=stored), plain)


def test_a_cache_of_something_else_is_refused(pair: Pair, saes: SAESet, stored: ActivationCache) -> None:
    with pytest.raises(LensError, match=r"lacks 1 of 6[01] texts .*max_tokens=64\). Make it from the same texts"):
        explain(pair, saes, [*TEXTS, "we saw it in the garden"], k=4, cache=stored)
    with pytest.raises(LensError, match=r"lacks (\d+) of \1 texts"):
        explain(pair, saes, TEXTS, k=4, max_tokens=6, cache=stored)
    other = tiny_pair(seed=3)
    with pytest.raises(LensError, match="was made from the pair"):
        explain(other, word_saes(other, PLANTED), TEXTS, k=4, cache=stored)
    with pytest.raises(LensError, match=r"cache is an ActivationCache .* or a folder; a int given"):
        explain(pair, saes, TEXTS, k=4, cache=3)


def test_a_result_is_found_again_whether_it_came_from_a_cache_or_not(
    pair: Pair, saes: SAESet, stored: ActivationCache, tmp_path: Path
) -> None:
    store = Store(tmp_path / "run")
    explain(pair, saes, TEXTS, k=4, store=store)
    explain(pair, saes, TEXTS, k=4, cache=stored, store=store)
    explain(pair, saes, TEXTS, k=4, cache=str(tmp_path / "unused"), store=store)
    assert len(list(store.root.glob("explain-*"))) == 1
    assert not (tmp_path / "unused").exists(), "what is stored needs no activations"
    rounded = make_cache(pair, [SITE], TEXTS, tmp_path / "half", max_tokens=64, dtype="bfloat16")
    explain(pair, saes, TEXTS, k=4, cache=rounded, store=store)
    assert len(list(store.root.glob("explain-*"))) == 2, "rounded activations give a result of their own"


def test_hostile_text_is_carried_as_text(pair: Pair, saes: SAESet) -> None:
    hostile = [f'{text} <script>alert("x")</script> \u202e \U0001f600 \u00e9\u00e9 <|endoftext|>' for text in TEXTS]
    found = explain(pair, saes, hostile, k=4)
    for shown in found.examples:
        for example in shown:
            assert any(example.text in text for text in hostile)
    assert "<script>" not in found._repr_html_()
