"""Matching: a dictionary finds its own copy, random ones find what the null says, each side keeps its own indices."""

import dataclasses
import itertools

import numpy as np
import pytest

from lfp_lens.results.train_sae import SAERecord, SAEWeights
from lfp_lens.stages.train_sae import matching
from lfp_lens.stages.train_sae.matching import cosines, largest, match, null, stability
from tests.tiny import sae_record

SITE = "blocks.1.hook_mlp_out"
WIDTH = 24


def rows(n: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def record(decoder: np.ndarray, side: str = "tuned", **changes: object) -> SAERecord:
    config = {"architecture": "standard", "d_in": decoder.shape[1], "d_sae": len(decoder)}
    weights = SAEWeights(config, {"W_dec": decoder, "W_enc": np.ascontiguousarray(decoder.T)})
    return sae_record(weights, side, SITE, **changes)


def test_assigned_cosines_are_one_to_one_where_the_largest_are_not() -> None:
    """Both left rows are nearest to the first right row; one of them must take the second."""
    left, right = np.array([[1.0, 0.1], [1.0, 0.2]]), np.array([[2.0, 0.2], [0.0, 1.0], [-1.0, 0.0]])
    found = cosines(left, right)
    assert found.left_assigned == pytest.approx([1, 0.2 / np.hypot(1, 0.2)])
    assert (found.left_partner.tolist(), found.right_partner.tolist()) == ([0, 1], [0, 1, -1])
    assert np.isnan(found.right_assigned[2])
    both = (1 * 1 + 0.2 * 0.1) / np.hypot(1, 0.2) / np.hypot(1, 0.1)
    assert found.left_largest == pytest.approx([1, both])
    assert (found.left_nearest.tolist(), found.right_nearest.tolist()) == ([0, 0], [0, 1, 1])
    assert found.right_largest == pytest.approx([1, 0.2 / np.hypot(1, 0.2), -1 / np.hypot(1, 0.2)])


def test_a_permuted_and_rescaled_copy_is_found_again_feature_by_feature() -> None:
    order = np.random.default_rng(1).permutation(40)
    small = rows(40)
    found = cosines(small, 3 * small[order])
    for name in ("left_largest", "right_largest", "left_assigned", "right_assigned"):
        assert getattr(found, name) == pytest.approx(np.ones(40), abs=1e-6)
    assert (found.right_partner == order).all() and (found.left_partner[order] == np.arange(40)).all()
    assert (found.left_nearest == found.left_partner).all() and (found.right_nearest == found.right_partner).all()


def test_random_dictionaries_score_what_the_null_says() -> None:
    scores = [cosines(rows(100, seed), rows(200, seed + 500)) for seed in range(20)]
    found = null(100, 200, WIDTH, seed=7)
    for value, name in (
        ("left_null", "left_largest"),
        ("right_null", "right_largest"),
        ("null_assigned", "left_assigned"),
    ):
        means = np.array([getattr(score, name).mean() for score in scores])
        # The null is itself a mean of 20 draws, so the difference of the two has sqrt(2) standard errors; four of them.
        assert found[value] == pytest.approx(means.mean(), abs=4 * 2**0.5 * means.std() / 20**0.5), name
    above = np.mean([score.left_largest > found["left_null_99"] for score in scores])
    assert 0.002 < above < 0.03


def test_the_null_of_small_dictionaries_rests_on_many_rows() -> None:
    """Between one row and one row the largest cosine is the cosine: symmetric about 0, 99 % below 0.46 at width 24."""
    found = null(1, 1, WIDTH, seed=0)
    assert abs(found["left_null"]) < 4 * (1 / WIDTH) ** 0.5 / matching.NULL_ROWS**0.5
    assert found["left_null_99"] == pytest.approx(0.46, abs=0.06)


def test_rows_in_blocks_give_what_the_whole_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = rows(37), rows(50, seed=1)
    whole = largest(left, right)
    monkeypatch.setattr(matching, "BLOCK", 8)
    for one, other in zip(whole, largest(left, right)):
        assert one == pytest.approx(other, abs=1e-6)


def test_dictionaries_too_large_to_assign_keep_their_largest_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MAX_ASSIGNED", 100)
    (found,) = match([record(rows(20)), record(rows(40), size=2.0)], seed=0)
    assert np.isnan(found.mmcs_hungarian) and np.isnan(found.null_assigned)
    assert (found.left_partner == -1).all() and (found.left_largest > 0).all() and found.left_null > 0


def test_a_row_of_zeros_matches_nothing_and_breaks_nothing() -> None:
    assert cosines(np.zeros((1, WIDTH)), rows(5)).left_largest.tolist() == [0.0]


# --- which dictionaries are matched ---


def test_dictionaries_that_differ_in_one_thing_are_matched() -> None:
    records = [
        record(rows(n, seed=number), side, size=float(size), seed=seed)
        for number, (side, (size, n), seed) in enumerate(
            itertools.product(("base", "tuned"), ((1, 24), (2, 48), (4, 96)), (0, 1))
        )
    ]
    found = match(records, seed=0)
    names = {record.name: record for record in records}
    seen = set()
    for one in found:
        left, right = names[one.left], names[one.right]
        differing = {trait for trait in ("side", "size", "seed") if getattr(left, trait) != getattr(right, trait)}
        assert differing == {one.relation.rstrip("s")}
        assert len(one.left_largest) == left.n_features and len(one.right_largest) == right.n_features
        seen.add((one.relation, left.side, right.side, left.size, right.size, left.seed, right.seed))
    assert len(seen) == len(found) == 2 * 2 * 2 + 2 * 3 + 3 * 2
    assert ("sizes", "base", "base", 2.0, 4.0, 1, 1) in seen and ("sides", "base", "tuned", 1.0, 1.0, 0, 0) in seen
    assert ("seeds", "tuned", "tuned", 4.0, 4.0, 0, 1) in seen


@pytest.mark.parametrize(
    "changes", [{"architecture": "topk"}, {"l1": 9.0}, {"k": 3}, {"lr": 0.5}, {"site": "blocks.0.hook_mlp_out"}]
)
def test_dictionaries_that_differ_in_more_are_not_matched(changes: dict[str, object]) -> None:
    one = record(rows(24), seed=0)
    other = dataclasses.replace(record(rows(24, seed=1)), **({"seed": 1} | changes))
    assert match([one, other], seed=0) == ()
    assert len(match([one, dataclasses.replace(one, seed=1)], seed=0)) == 1


def test_the_same_seed_gives_the_same_null() -> None:
    records = [record(rows(24)), record(rows(48, seed=1), size=2.0)]
    (one,), (again,), (other,) = (match(records, seed=seed) for seed in (0, 0, 1))
    assert one.left_null == again.left_null != other.left_null
    assert (one.left_assigned == other.left_assigned).all()


# --- stability ---


def test_a_feature_that_every_seed_finds_is_stable_and_a_chance_one_is_not() -> None:
    """Two of 24 features are the same in all three seeds, at other places; the rest are random."""
    shared = np.random.default_rng(9).normal(size=(2, WIDTH)).astype(np.float32)
    records = []
    for seed in range(3):
        decoder = rows(24, seed=100 + seed)
        decoder[[seed, 10 + seed]] = shared
        records.append(record(decoder, seed=seed))
    found = stability(records)
    level = null(24, 24, WIDTH, seed=0)
    for seed, one in enumerate(records):
        values = found[one.name]
        assert values[[seed, 10 + seed]] == pytest.approx([1, 1], abs=1e-6)
        rest = np.delete(values, [seed, 10 + seed])
        # 22 rows, each the mean of two maxima whose spread is about 0.09: five standard errors, and a little for sharing.
        assert rest.mean() == pytest.approx(level["left_null"], abs=0.08) and rest.max() < 0.9


def test_one_seed_tells_no_stability() -> None:
    assert stability([record(rows(24)), record(rows(48), size=2.0)]) == {}
