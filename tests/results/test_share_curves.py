"""Share curves: shares at equal KL, read on other texts than the set was chosen on, with honest intervals."""

from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.results.share_curves import ShareCurves

TEXTS = 60


def curves(slopes: dict[str, list[float]], *, noise: float = 0.0, floors: tuple[str, ...] = ("floor",)) -> ShareCurves:
    """Every name's share is slope * root of KL, one slope per seed, measured at doses 1 and 2 of 1, 2 and 4 features."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(20, 60, size=TEXTS).astype(float)
    base = generator.normal(0.1, 0.02, TEXTS) * tokens
    tuned = base + tokens * 0.5
    rows: list[tuple[Any, ...]] = []
    for name, by_seed in slopes.items():
        for seed, slope in enumerate(by_seed):
            for k in (1, 2, 4):
                for dose in (1.0, 2.0):
                    kl = (0.05 * k * dose) ** 2
                    wobble = generator.normal(0, noise, TEXTS)
                    removed = (slope * np.sqrt(kl) + wobble) * 0.5 * tokens
                    rows.append((name, "zero", seed, k, dose, tuned - removed, kl * tokens))
                    rows.append((name, "mean", seed, k, dose, tuned - removed / 2, kl * tokens))
    name, mode, seeds, k, dose, valence, kl = zip(*rows)
    return ShareCurves(name, mode, np.array(seeds), np.array(k), np.array(dose), np.array(valence), np.array(kl), tokens,
                       tuned, base, floors, 100)  # fmt: skip


def test_a_share_is_read_at_the_kl_asked_for() -> None:
    made = curves({"own": [2.0], "floor": [1.0]})
    assert made.gain == pytest.approx(0.5)
    for kl in (0.0025, 0.01, 0.02):
        assert made.share("own", kl=kl).value == pytest.approx(2 * np.sqrt(kl), rel=1e-6)
        assert made.share("own", kl=kl, mode="mean").value == pytest.approx(np.sqrt(kl), rel=1e-6)
    assert made.share("own", kl=0.01).n == TEXTS


def test_ablation_stops_where_everything_is_removed_and_steering_goes_on() -> None:
    made = curves({"own": [2.0], "floor": [1.0]})
    assert made.share("own", kl=1.0).value == pytest.approx(2 * 0.2), "four features once"
    assert made.share("own", kl=1.0, most_dose=2.0).value == pytest.approx(2 * 0.4)
    assert made.share("own", kl=1.0, most_dose=0.5).value != made.share("own", kl=1.0).value


def test_the_lead_is_paired_so_that_what_texts_share_cancels() -> None:
    made = curves({"own": [2.0], "floor": [1.0]}, noise=0.5)
    lead = made.lead("own", kl=0.01)["floor"]
    assert lead.value == pytest.approx(made.share("own", kl=0.01).value - made.share("floor", kl=0.01).value, abs=1e-9)
    assert lead.low < lead.value < lead.high


def test_the_best_set_spends_the_kl() -> None:
    made = curves({"own": [2.0], "floor": [1.0]})
    k, dose = made.best_set("own", kl=0.01, most_dose=2.0)
    assert 0.05 * k * dose == pytest.approx(0.1), "its KL is (0.05 k dose)^2"
    with pytest.raises(LensError, match="seed 7"):
        made.best_set("own", seed=7)


def test_a_gain_that_is_not_told_from_zero_has_no_shares() -> None:
    generator = np.random.default_rng(5)
    noise = generator.normal(0.002, 0.05, TEXTS)
    tokens = np.full(TEXTS, 20.0)
    rows = [(name, mode, took) for name, took in (("own", 0.010), ("floor", 0.005)) for mode in ("zero", "mean")]
    tuned = noise * tokens
    made = ShareCurves(
        tuple(row[0] for row in rows), tuple(row[1] for row in rows), np.zeros(4, int), np.ones(4, int), np.ones(4),
        np.array([tuned - took * tokens for _, _, took in rows]), np.full((4, TEXTS), 0.2), tokens, tuned,
        np.zeros(TEXTS), ("floor",), 10,
    )  # fmt: skip
    assert np.isnan(made.share("own").value)
    assert not made.carries("own")


def test_no_share_lies_below_that_of_removing_nothing() -> None:
    made = curves({"own": [-1.0], "floor": [-3.0]})
    assert made.share("own").value == made.share("floor").value == 0
    assert not made.carries("own")


def test_a_floor_without_features_that_lift_the_gain_removes_nothing() -> None:
    made = curves({"own": [2.0], "floor": [1.0]}, floors=("floor", "untrained"))
    assert made.lead("own", kl=0.01)["untrained"].value == pytest.approx(0.2)


def test_the_interval_over_three_seeds_holds_what_it_promises() -> None:
    """Three seeds, no true lead, seed noise only: the lower end lies above 0 in a fortieth of the cases."""
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(200):
        made = curves({"own": list(1 + generator.normal(0, 0.2, 3)), "floor": [1.0]})
        wrong += made.lead("own", kl=0.01)["floor"].low > 0
    assert wrong <= 12


def test_an_interval_covers_seeds_that_disagree() -> None:
    sure, torn = curves({"own": [2.0] * 3, "floor": [1.0]}), curves({"own": [1.0, 2.0, 3.0], "floor": [1.0]})
    widths = [one.share("own", kl=0.01).high - one.share("own", kl=0.01).low for one in (sure, torn)]
    assert widths[1] > widths[0] + 0.05
    assert sure.share("own", kl=0.01).value == pytest.approx(torn.share("own", kl=0.01).value)


def test_a_claim_needs_every_floor_and_both_readings() -> None:
    assert curves({"own": [2.0], "floor": [1.0]}).carries("own", kl=0.01)
    assert not curves({"own": [2.0], "floor": [1.0]}).carries("own", kl=0.01, margin=0.2)
    assert not curves({"own": [1.0], "floor": [1.0]}, noise=0.2).carries("own", kl=0.01)
    two = curves({"own": [2.0], "floor": [1.0], "better": [2.5]}, floors=("floor", "better"))
    assert not two.carries("own", kl=0.01)
    assert not curves({"own": [2.0]}, floors=()).carries("own"), "without a floor there is no claim"


def test_the_set_is_not_chosen_on_the_texts_it_is_read_on() -> None:
    """On noise alone the best of many sets would look good on its own texts; read on others it is worth nothing."""
    generator = np.random.default_rng(3)
    tokens, sets = np.ones(TEXTS), 200
    tuned, base = np.ones(TEXTS), np.zeros(TEXTS)
    valence = tuned - generator.normal(0, 1, (sets, TEXTS))
    ks = np.arange(1, sets + 1)
    made = ShareCurves(("own",) * sets, ("zero",) * sets, np.zeros(sets, int), ks, np.ones(sets), valence,
                       np.full((sets, TEXTS), 0.01), tokens, tuned, base, (), 10)  # fmt: skip
    naive = (1 - valence.mean(1)).max()
    assert naive > 0.3
    assert made.share("own", kl=0.01).value < 0.25


def test_without_a_gain_there_is_no_share() -> None:
    made = curves({"own": [2.0], "floor": [1.0]})
    none = ShareCurves(made.name, made.mode, made.seed, made.k, made.dose, made.valence, made.kl, made.tokens, made.base,
                       made.tuned, made.floors, 1)  # fmt: skip
    assert np.isnan(none.share("own").value)
    assert not none.carries("own")
    assert none.to_frame().empty and "share" in none.to_frame()


def test_what_was_not_measured_is_refused_by_name() -> None:
    made = curves({"own": [2.0], "floor": [1.0]})
    with pytest.raises(LensError, match=r"Did you mean.*floor"):
        made.share("flor")
    with pytest.raises(LensError, match="zero"):
        made.share("own", mode="zeros")
    with pytest.raises(LensError, match="above 0"):
        made.share("own", kl=0.0)


def test_the_frame_names_the_floor_that_comes_nearest() -> None:
    made = curves({"own": [2.0], "low": [0.5], "high": [1.5]}, floors=("low", "high"))
    frame = made.to_frame((0.01,))
    own = frame[(frame["features"] == "own") & (frame["mode"] == "zero")].iloc[0]
    assert own["best_floor"] == "high" and own["lead"] == pytest.approx(0.05, abs=1e-6)
    assert set(frame["mode"]) == {"zero", "mean"}
    assert len(made.points()) == len(made.name)
    assert made.points()["share"].iloc[0] == pytest.approx(2 * 0.05)


def test_it_is_drawn_and_comes_back_from_disk(tmp_path: Any) -> None:
    made = curves({"own": [2.0], "floor": [1.0]})
    names = [line.name for line in made.plot().data]
    assert names == ["own", "floor"]
    assert "Share of the gain" in made._repr_html_()
    write_record(made, tmp_path)
    again = read_record(tmp_path)
    assert again.share("own", kl=0.01).value == made.share("own", kl=0.01).value
