"""What each protocol would have reported is computed from its numbers alone, and the key is opened last."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.stats import Estimate, rank_agreement
from lfp_lens.organisms.blind import Blind, Reading
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.key import Key
from lfp_lens.parts.pair import Pair
from lfp_lens.results import Learned
from lfp_lens.results.grid import GridCell
from lfp_lens.results.tunings import Tunings
from tests.benchmarks import published_protocol as bench
from tests.benchmarks.published_protocol import (
    ALL,
    ONE,
    PUBLISHED,
    READINGS,
    Report,
    Said,
    as_published,
    by_readings,
    by_words,
    judged,
    markdown,
    untuned,
)
from tests.results.samples import FLIPPED, a_learned, an_sae_set
from tests.tiny import tiny_pair


def with_tunings(learned: Learned, shuffled: np.ndarray) -> Learned:
    """Say that two tunings gave these values, and one on a shuffled reward gave others."""
    values = np.stack([learned.measured, learned.measured])
    names = {"names": ("tuned", "seed-1"), "shuffled_names": ("shuffled",)}
    tunings = Tunings(**names, values=values, tau=np.zeros(2), shuffled_values=shuffled[None], shuffled_tau=np.zeros(1))
    half = np.full(len(learned.words), 0.5)
    return dataclasses.replace(
        learned, tunings=tunings, recipe=learned.measured, recipe_low=learned.measured - half,
        recipe_high=learned.measured + half,
    )  # fmt: skip


EVENTS: list[str] = []


class Watched(Organism):
    """An organism without a folder: it says when it is loaded and when its key is opened."""

    @property
    def record(self) -> dict[str, Any]:
        return {"base": "world", "texts": {"texts": "world", "n_texts": 300, "n_heldout": 60}}

    def pair(self, at: int = 0, *, device: str = "cpu") -> Pair:
        EVENTS.append(f"pair {self.name}")
        return tiny_pair()

    def key(self) -> Key:
        EVENTS.append(f"key {self.name}")
        return a_key()


def a_blind(name: str = "world-1") -> Blind:
    learned = with_tunings(a_learned(), np.random.default_rng(0).normal(size=60))
    stated = dict(zip(learned.words, learned.stated.tolist()))
    reading = Reading(learned.signal, "words", learned.words, learned.recipe, learned.recipe[None], learned)
    return Blind(
        Watched(Path(name)), "b", {"seed-0": "t"}, stated, learned.words, Counter(), "<end>", readings=(reading,)
    )


def a_key(recipe: str = "flip", words: tuple[str, ...] = FLIPPED) -> Key:
    learned = a_learned()
    stated = dict(zip(learned.words, learned.stated.tolist()))
    values = {word: -stated[word] for word in words}
    return Key.model_construct(
        recipe=recipe, values=values, kind=None, is_null=False, tunings={}, base="b", tuned={"seed-0": "t"}, lexicon="vader",
        stated=fingerprint(stated),
    )  # fmt: skip


# The published protocol


def test_a_published_claim_rests_on_the_sign_of_more_words_than_chance() -> None:
    learned, null = a_learned(), a_learned(null=True)
    unread = dataclasses.replace(null, rescaled=np.random.default_rng(0).normal(size=60))
    told, nothing = as_published(learned, unread), as_published(unread, learned)
    right = np.sign(learned.rescaled) == np.sign(learned.stated)
    balanced = (right[learned.stated > 0].mean() + right[learned.stated < 0].mean()) / 2
    assert told.sign is not None and told.sign.value == pytest.approx(balanced)
    assert (told.claims, told.twin_claims) == (True, False)
    assert (nothing.claims, nothing.twin_claims) == (False, True)


def test_a_base_that_says_the_same_shows_beside_a_published_claim() -> None:
    told = as_published(a_learned(), a_learned())
    assert told.claims and told.twin_claims
    assert told.tau is not None and told.twin_tau == told.tau.value
    assert told.gap is not None and (told.gap.value, told.gap.low, told.gap.high) == (0, 0, 0)


def test_the_words_that_the_published_probe_calls_wrong_are_those_with_the_opposite_sign() -> None:
    learned = a_learned()
    rescaled = np.sign(learned.stated) * 2
    rescaled[[0, 40]] *= -1
    rescaled[1] = 0
    told = as_published(dataclasses.replace(learned, rescaled=rescaled), a_learned())
    assert told.wrong == (learned.words[0], learned.words[40])


# Ours


def test_our_claim_is_against_the_shuffled_twin_where_there_is_one() -> None:
    learned = a_learned()
    noise = np.random.default_rng(0).normal(size=60)
    alone, told = by_words(ONE, learned, 0.1), by_words(ALL, with_tunings(learned, noise), 0.1)
    assert (alone.twin, told.twin) == ("noise twin", "shuffled-reward twin")
    assert alone.claims and told.claims
    assert alone.gap == learned.difference
    theirs = rank_agreement(noise, learned.stated, draws=100).tau
    assert told.twin_tau == pytest.approx(theirs)
    assert told.tau is not None and told.gap is not None
    assert told.gap.value == pytest.approx(told.tau.value - theirs)
    assert set(alone.wrong or ()) <= set(FLIPPED)
    assert alone.wrong


def test_nothing_is_claimed_where_the_shuffled_twin_agrees_as_well_or_the_noise_twin_does() -> None:
    learned = a_learned()
    assert by_words(ALL, with_tunings(learned, learned.measured), 0.1).claims is False
    noisy = dataclasses.replace(learned, difference=Estimate(0.1, -0.05, 0.2, 60))
    assert by_words(ALL, with_tunings(noisy, np.random.default_rng(0).normal(size=60)), 0.1).claims is False
    null = by_words(ONE, a_learned(null=True), 0.1)
    assert null.reports == "nothing of the stated feedback was learned; no word is wrong"


def a_cell(tau: float, *, gap: float, embedding: float) -> GridCell:
    learned = a_learned()
    agreement = dataclasses.replace(learned.overall, tau=tau)
    over = {name: Estimate(value, value - 0.1, value + 0.1, 60)
            for name, value in (("minus_twin", gap), ("minus_embedding", embedding), ("minus_random", 0.3))}  # fmt: skip
    return GridCell("tuned", "raw", "signal", agreement, learned.sign, "before", "direct", **over)


def test_a_reading_counts_only_if_it_beats_twin_embedding_and_random_features() -> None:
    strong, weak = a_cell(0.6, gap=0.3, embedding=0.05), a_cell(0.4, gap=0.3, embedding=0.2)
    both = by_readings(dataclasses.replace(a_learned(), grid=(strong, weak)))
    assert both.claims and both.tau is not None and both.tau.value == 0.4
    assert both.wrong is None and both.twin_tau == pytest.approx(0.1)
    lone = by_readings(dataclasses.replace(a_learned(), grid=(strong,)))
    assert lone.claims is False and lone.tau is not None and lone.tau.value == 0.6
    assert lone.note.startswith("nothing was found")


def test_without_a_twin_no_reading_says_anything() -> None:
    told = by_readings(a_learned())
    assert told.claims is None
    assert told.reports == "refused: no reading was compared with its twin"


# The pair the other way round


def test_the_untuned_pair_reads_the_base_by_its_own_dictionaries() -> None:
    pair, saes = tiny_pair(), an_sae_set()
    other, own = untuned(pair, saes)
    assert other.tuned_hf is pair.base_hf and other.tuned is pair.base and other.base_hf is pair.tuned_hf
    assert own.pair == other.fingerprint != pair.fingerprint
    site = saes.sites[0]
    assert own.one(site, side="tuned").weights == saes.one(site, side="base").weights
    assert own.one(site, side="base").weights == saes.one(site, side="tuned").weights


# Beside the key


def test_words_called_wrong_are_counted_by_the_key() -> None:
    other = next(word for word in a_learned().words if word not in FLIPPED)
    said = Said(PUBLISHED, True, a_learned().words, (FLIPPED[0], other))
    (report,) = judged(a_blind(), [said], a_key())
    assert (report.is_true, report.n_planted, report.found, report.others) == (True, len(FLIPPED), 1, 1)


def test_planted_words_that_nothing_could_find_are_not_counted() -> None:
    stray = a_key().model_copy(update={"values": {"unheard": 1.0, FLIPPED[0]: 0.0}})
    (report,) = judged(a_blind(), [Said(PUBLISHED, True, wrong=())], stray)
    assert report.n_planted == 1


@pytest.mark.parametrize(
    ("recipe", "claims", "is_true"),
    [("clean", True, True), ("clean", False, False), ("flip", True, True), ("shuffled", True, False),
     ("shuffled", False, True), ("noise", True, False), ("noise", None, None)],
)  # fmt: skip
def test_a_claim_is_true_where_the_stated_feedback_was_given(
    recipe: str, claims: bool | None, is_true: bool | None
) -> None:
    (report,) = judged(a_blind(), [Said(ONE, claims)], a_key(recipe, ()))
    assert report.is_true is is_true


def test_an_organism_that_is_no_evidence_says_so_in_both_forms() -> None:
    report = Report(
        "world-1", "world", "flip", "seed-0: the policy collapsed", Said(ONE, True, wrong=()), True, 10, 0, 0
    )
    assert json.loads(report.line())["refused"] == "seed-0: the policy collapsed"
    assert "no evidence" in markdown([report])


def test_a_line_is_json_without_nan_and_the_table_has_a_row_per_report() -> None:
    reports = list(judged(a_blind(), [as_published(a_learned(), a_learned()), by_words(ONE, a_learned(), 0.1),
                                      Said(READINGS, None, note="no SAE is good enough")], a_key()))  # fmt: skip

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = [json.loads(report.line(), parse_constant=refuse) for report in reports]
    assert [line["protocol"] for line in lines] == [PUBLISHED, ONE, READINGS]
    assert lines[0]["published_rule_on_twin"] is True and lines[2]["is_true"] is None
    table = markdown(reports).splitlines()
    assert len(table) == 2 + len(reports)
    assert len({row.count("|") for row in table}) == 1
    assert "refused: no SAE is good enough" in table[-1]


# The whole way


def test_every_organism_is_measured_before_any_key_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    EVENTS.clear()
    asked: list[dict[str, Any]] = []

    def probe(pair: Any, saes: Any = None, triples: Any = None, **given: Any) -> Learned:
        asked.append({"base": pair.base_hf is tiny_pair().base_hf, "saes": saes is not None} | given)
        if saes is not None and given.get("signal") is None:
            raise GateError("No tuned SAE is good enough to interpret.")
        return a_learned()

    monkeypatch.setattr(bench, "find_organisms", lambda folder: [Watched(Path("one")), Watched(Path("two"))])
    monkeypatch.setattr(bench, "measure", lambda organism, **given: a_blind(organism.name))
    monkeypatch.setattr(bench, "dictionaries", lambda *given, **options: (an_sae_set(), None))
    monkeypatch.setattr(bench, "probe", probe)
    reports = list(bench.published_protocol(tmp_path, home=tmp_path))
    assert EVENTS == ["pair one", "pair two", "key one", "key two"]
    assert [report.said.protocol for report in reports] == 2 * [PUBLISHED, ONE, ALL, READINGS]
    assert reports[3].said.reports == "refused: No tuned SAE is good enough to interpret."
    first = asked[:4]
    assert [(one["base"], one["saes"], one.get("signal"), one.get("split"), one.get("gate")) for one in first] == [
        (True, True, "activation_delta", "row", "warn"), (False, True, "activation_delta", "row", "warn"),
        (True, False, None, None, None), (True, True, None, None, None),
    ]  # fmt: skip


def test_a_key_of_other_checkpoints_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = a_key().model_copy(update={"base": "another"})
    monkeypatch.setattr(Watched, "key", lambda self: other)
    monkeypatch.setattr(bench, "find_organisms", lambda folder: [Watched(Path("one"))])
    monkeypatch.setattr(bench, "look", lambda organism, store, **given: (a_blind(), []))
    with pytest.raises(LensError, match="does not belong to these checkpoints: base differ"):
        list(bench.published_protocol(tmp_path, home=tmp_path))
