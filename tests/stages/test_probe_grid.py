"""The walls between training and test rows, and what a reading has to beat."""

from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.stages.probe.grid import Reading, Rows, cross_predict, parts_of, score_grid


def rows_of(lemma: list[str], source: list[int], target: np.ndarray | None = None) -> Rows:
    return Rows(lemma, lemma, np.array(source), np.arange(float(len(lemma))) if target is None else target)


def drawn(seed: int, n: int = 60, lemmas: int = 12, sources: int = 200) -> Rows:
    draw = np.random.default_rng(seed)
    return rows_of([f"l{at}" for at in draw.integers(lemmas, size=n)], draw.integers(sources, size=n).tolist())


# --- the walls ---


@pytest.mark.parametrize("seed", range(5))
def test_no_lemma_and_no_text_stands_on_both_sides(seed: int) -> None:
    rows = drawn(seed)
    tested: list[int] = []
    for train, test in parts_of(rows, split="lemma", folds=4, seed=seed):
        assert len(train) and not set(train) & set(test)
        for side in (np.array(rows.lemma), rows.source):
            assert not set(side[train].tolist()) & set(side[test].tolist())
        tested += test.tolist()
    assert sorted(tested) == list(range(60)), "every row is held out once"


def test_what_a_split_leaves_out_of_training_is_only_what_shares_a_text_with_the_held_out_rows() -> None:
    """Two words of one text fall on the two sides: the one that is not tested is not trained on either."""
    rows = rows_of(["a", "b", "c", "d"] * 3, [0, 0, *range(2, 12)])
    for train, test in parts_of(rows, split="lemma", folds=4, seed=0):
        lost = set(range(12)) - set(train) - set(test)
        shared = {0, 1} & set(test)
        assert lost == ({0, 1} - set(test) if shared else set())


def test_texts_that_hold_words_of_every_fold_leave_nothing_to_fit_on() -> None:
    with pytest.raises(LensError, match="Every text of the triples has words on both sides of a split by lemma"):
        list(parts_of(rows_of(["a", "b", "c"] * 4, [0, 0, 0, 1, 1, 1] * 2), split="lemma", folds=3, seed=0))


def test_a_row_split_leaks_both_and_holds_every_row_out_once() -> None:
    rows = rows_of(["a", "b"] * 20, [0, 1] * 20)
    found = list(parts_of(rows, split="row", folds=4, seed=0))
    assert sorted(row for _, test in found for row in test) == list(range(40))
    for train, test in found:
        assert len(train) + len(test) == 40
        assert {rows.lemma[row] for row in train} == {rows.lemma[row] for row in test} == {"a", "b"}


@pytest.mark.parametrize("split", ["lemma", "row"])
def test_folds_follow_the_seed(split: str) -> None:
    def folds(seed: int) -> list[list[int]]:
        return [test.tolist() for _, test in parts_of(drawn(0), split=split, folds=4, seed=seed)]

    assert folds(1) == folds(1) != folds(2)


def test_a_single_lemma_is_fewer_than_the_folds_and_an_unknown_split_is_refused() -> None:
    with pytest.raises(LensError, match="3 folds need as many lemmas; the triples have 1"):
        list(parts_of(rows_of(["a"] * 12, list(range(12))), split="lemma", folds=3, seed=0))
    for folds, split in ((1, "lemma"), (61, "row")):
        with pytest.raises(LensError, match=f"folds must be at least 2 and at most the 60 rows.*; {folds} given"):
            list(parts_of(drawn(0), split=split, folds=folds, seed=0))
    with pytest.raises(LensError, match="split must be 'lemma' or 'row'; 'text' given"):
        list(parts_of(drawn(0), split="text", folds=3, seed=0))


def test_what_a_text_tells_of_its_words_is_not_carried_over() -> None:
    """A value per text that both its words share: an input that names the text predicts nothing across the wall."""
    draw = np.random.default_rng(0)
    source = np.repeat(np.arange(300), 2)
    value, names = draw.normal(size=300), np.eye(300)[source]
    rows = rows_of([f"w{at % 40}" for at in range(600)], source.tolist(), value[source])
    r = {}
    for split in ("lemma", "row"):
        held = cross_predict(names, rows.target, rows, split=split, folds=5, seed=0, lexicon={"a": 3.0, "b": -3.0})
        r[split] = np.corrcoef(held.values, rows.target)[0, 1]
    assert r["row"] > 0.5
    # The correlation of 600 rows that have nothing to do with one another, in pairs, has a standard deviation of 0.06.
    assert r["lemma"] < 0.18


def test_predictions_are_rescaled_by_the_training_rows_percentiles_and_clipped_to_the_lexicon() -> None:
    draw = np.random.default_rng(1)
    rows = rows_of([f"w{at}" for at in range(200)], list(range(200)), draw.normal(size=200))
    inputs = rows.target[:, None] + 0.01 * draw.normal(size=(200, 1))
    held = cross_predict(inputs, rows.target, rows, split="lemma", folds=4, seed=0, lexicon={"a": -3.9, "b": 3.4})
    assert (held.rescaled.min(), held.rescaled.max()) == (-3.9, 3.4)
    # A tenth of the rows lie beyond either percentile.
    assert np.mean(held.rescaled == -3.9) == pytest.approx(0.1, abs=0.04)
    assert np.mean(held.rescaled == 3.4) == pytest.approx(0.1, abs=0.04)
    order = np.argsort(rows.target)
    assert np.corrcoef(held.rescaled[order], np.arange(200))[0, 1] > 0.9


# --- what a reading has to beat ---

WORDS = [f"w{at}" for at in range(80)]
LEXICON = {word: float(value) for word, value in zip(WORDS, np.random.default_rng(5).normal(0, 2, 80))}
LEMMA = {word: word for word in WORDS}


def reading(side: str, name: str, noise: float, **changes: Any) -> Reading:
    """Values that follow the lexicon up to noise."""
    draw = np.random.default_rng([len(side), len(name), int(10 * noise)])
    values = {word: value + noise * float(draw.normal()) for word, value in LEXICON.items()}
    given = {"target": "signal", "place": "word", "path": "ridge", "values": values, "centre": 0.0} | changes
    return Reading(side, name, **given)


def scored(*readings: Reading) -> dict[tuple[str, str, str, str], Any]:
    rows = Rows(WORDS, WORDS, np.arange(80), np.array(list(LEXICON.values())))
    cells = score_grid(readings, rows, LEXICON, LEMMA, seed=0)
    return {(cell.side, cell.input, cell.place, cell.path): cell for cell in cells}


BAD = (reading("base", "sae", 30), reading("none", "embedding", 30), reading("none", "random", 40))


def test_a_reading_that_beats_its_twin_the_embedding_and_random_features_is_learned() -> None:
    found = scored(reading("tuned", "sae", 1), reading("tuned", "random_sae", 30), *BAD)
    assert found["tuned", "sae", "word", "ridge"].is_learned
    assert not any(cell.is_learned for cell in found.values() if (cell.side, cell.input) != ("tuned", "sae"))


@pytest.mark.parametrize("good", [("base", "sae"), ("none", "embedding"), ("tuned", "random_sae")])
def test_one_cheap_reading_that_is_as_good_takes_the_claim_away(good: tuple[str, str]) -> None:
    others = [one for one in (*BAD, reading("tuned", "random_sae", 30)) if (one.side, one.input) != good]
    assert not scored(reading("tuned", "sae", 1), reading(*good, 1), *others)[
        "tuned", "sae", "word", "ridge"
    ].is_learned


def test_a_control_that_was_not_read_is_unknown_and_nothing_is_claimed() -> None:
    cell = scored(reading("tuned", "sae", 1), reading("base", "sae", 30), BAD[1])["tuned", "sae", "word", "ridge"]
    assert cell.minus_twin.low > 0 and cell.minus_embedding.low > 0
    assert cell.minus_random is None and not cell.is_learned


def test_each_path_has_its_own_twin_and_random_features() -> None:
    """The direct path is compared with noise, raw activations with random vectors, change SAEs with random change SAEs."""
    direct: dict[str, Any] = {"place": "before", "path": "direct", "target": "nothing"}
    found = scored(
        reading("tuned", "raw", 1, **direct), reading("noise", "raw", 30, **direct),
        reading("tuned", "difference_sae", 1, **direct), reading("tuned", "difference_random_sae", 1, **direct),
        reading("noise", "difference_sae", 30, **direct), *BAD,
    )  # fmt: skip
    raw, difference = (found["tuned", name, "before", "direct"] for name in ("raw", "difference_sae"))
    assert raw.is_learned
    assert difference.minus_twin.low > 0
    assert difference.minus_random.low <= 0 and not difference.is_learned


def test_a_gap_is_measured_on_the_words_that_both_read() -> None:
    few = reading("none", "embedding", 30)
    few.values.clear()
    few.values.update(list(LEXICON.items())[:10])
    cell = scored(reading("tuned", "raw", 0.0), reading("base", "raw", 30), few, BAD[2])[
        "tuned", "raw", "word", "ridge"
    ]
    assert cell.agreement.n == 80 and cell.minus_embedding.n == 10
    assert cell.minus_embedding.value == pytest.approx(0), "both know those ten words"


def test_words_outside_the_lexicon_do_not_count_and_signs_change_at_the_centre() -> None:
    values = {word: value + 5 for word, value in LEXICON.items()} | {f"other{at}": -9.0 for at in range(30)}
    cell = scored(reading("tuned", "raw", 0, values=values, centre=5.0))["tuned", "raw", "word", "ridge"]
    assert cell.agreement.n == 80
    assert (cell.agreement.tau, cell.sign.value) == pytest.approx((1.0, 1.0))
