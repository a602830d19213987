"""Several tunings by one recipe: what repeats is certain, what one noisy tuning misses is found, copies are refused."""

import copy
import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import discoveries
from lfp_lens.parts.checkpoints import TUNING_FILE
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.replicates import check_same_tuning, open_replicates
from lfp_lens.results import Learned
from lfp_lens.stages.probe import probe
from lfp_lens.stages.probe.measure import Measured
from lfp_lens.stages.probe.values import over_tunings, signal_values
from tests.stages.test_probe import FLIPPED, LEXICON, WORDS, base_model, planted, texts, tokenizer
from tests.tiny import tiny_model

SPREAD = 0.4
"""By how much two tunings differ on any word, in nats."""


def tuning(seed: int, lexicon: dict[str, float]) -> Pair:
    """Every rated word moves by 2.2 of its own spreads, in the direction of its value; each seed adds its own noise."""
    draw = np.random.default_rng([7, seed])
    effect = {word: 2.2 * SPREAD * np.sign(value) for word, value in lexicon.items()}
    return planted({word: effect.get(word, 0.0) + float(draw.normal(0, SPREAD)) for word in WORDS})


@cache
def given(seed: int) -> Pair:
    return tuning(seed, {word: -value if word in FLIPPED else value for word, value in LEXICON.items()})


@cache
def unrelated(seed: int) -> Pair:
    """Tuned by the same recipe on the lexicon with its values dealt anew."""
    values = np.random.default_rng(seed).permutation(list(LEXICON.values()))
    return tuning(100 + seed, dict(zip(LEXICON, values.tolist())))


def measured(pair: Pair, **options: Any) -> Learned:
    return probe(pair, texts=texts(), lexicon=LEXICON, **options)


@pytest.fixture(scope="module")
def one() -> Learned:
    return measured(given(0))


@pytest.fixture(scope="module")
def three() -> Learned:
    return measured(
        given(0), replicates=[given(1), given(2).tuned_hf], shuffled=[unrelated(1), unrelated(2), unrelated(3)]
    )


# --- what several tunings say ---


def test_one_checkpoint_says_nothing_about_the_recipe(one: Learned) -> None:
    assert one.tunings is None
    assert one.between_tunings == "unknown: one checkpoint"
    assert np.isnan([one.recipe, one.recipe_low, one.recipe_high]).all()
    assert np.array_equal(one.z, one.measured)
    assert "unknown: one checkpoint" in one._repr_html_()


def test_the_recipes_value_is_the_mean_over_tunings_each_centred_by_its_own_neutral_words(
    one: Learned, three: Learned
) -> None:
    assert three.tunings is not None
    assert three.words == one.words
    np.testing.assert_allclose(three.measured, one.measured, atol=1e-6)
    np.testing.assert_allclose(three.tunings.values[0], one.measured, atol=1e-6)
    np.testing.assert_allclose(three.recipe, three.tunings.values.mean(0))
    np.testing.assert_allclose(three.tunings.values[1], measured(given(1)).measured, atol=1e-6)
    taus = [stats.kendalltau(row, three.stated).statistic for row in three.tunings.values]
    np.testing.assert_allclose(three.tunings.tau, taus)
    assert three.tunings.tau[0] == pytest.approx(three.overall.tau)


def test_the_interval_over_tunings_holds_what_the_recipe_teaches(three: Learned) -> None:
    """The truth is the pair without noise, in the unit of the noisy ones."""
    effect = np.sign(three.stated) * 2.2 * np.where(np.isin(three.words, FLIPPED), -1, 1)
    held = (three.recipe_low <= effect) & (effect <= three.recipe_high)
    # 60 intervals of 95 %: fewer than 51 once in 5,000 times. A single tuning's contexts are far too narrow for it.
    assert held.mean() > 0.85
    over_contexts = (three.measured_low <= effect) & (effect <= three.measured_high)
    assert over_contexts.mean() < 0.75


def test_what_one_noisy_tuning_misses_is_found_with_three(one: Learned, three: Learned) -> None:
    assert len(set(FLIPPED) - set(one.wrong(fdr=0.1)["word"])) >= 2
    assert set(FLIPPED) <= set(three.wrong(fdr=0.1)["word"])
    assert len(three.wrong(fdr=0.1)) <= len(FLIPPED) + 1


def test_the_headline_over_tunings_is_welchs(three: Learned) -> None:
    assert three.tunings is not None
    found = three.tunings.over_shuffled
    assert found is not None
    own, other = three.tunings.tau, three.tunings.shuffled_tau
    spread = np.array([own.var(ddof=1) / len(own), other.var(ddof=1) / len(other)])
    df = spread.sum() ** 2 / (spread**2 / 2).sum()
    margin = stats.t.ppf(0.975, df) * np.sqrt(spread.sum())
    assert found.value == pytest.approx(own.mean() - other.mean())
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin))
    assert found.low > 0 and found.n == 6


def test_tunings_tell_their_names_and_how_far_they_repeat(three: Learned) -> None:
    assert three.tunings is not None
    frame = three.tunings.to_frame()
    assert frame["tuning"].tolist() == [
        "tuned", "replicate 1", "replicate 2", "shuffled tuning 1", "shuffled tuning 2", "shuffled tuning 3"
    ]  # fmt: skip
    assert frame["kind"].tolist() == ["replicate"] * 3 + ["shuffled"] * 3
    r = np.corrcoef(three.tunings.values)
    assert three.tunings.reliability == pytest.approx((r[0, 1] + r[0, 2] + r[1, 2]) / 3)
    assert 0.6 < three.tunings.reliability < 0.99
    assert "3 tunings" in three.between_tunings and "on a shuffled reward" in three.between_tunings
    assert np.abs(three.tunings.shuffled_tau).max() < 0.35 < three.tunings.tau.min()


def test_a_shuffled_tuning_alone_gives_no_interval_and_no_recipe() -> None:
    found = measured(given(0), shuffled=unrelated(1))
    assert found.tunings is not None
    assert found.tunings.over_shuffled is None
    assert np.isnan(found.tunings.reliability)
    assert np.isnan(found.recipe).all()
    assert found.between_tunings.startswith("unknown: 1 tuning, tau-b")
    assert set(found.wrong(kind="muted")) - set(found.wrong()) == {"p_value"}, "of this checkpoint's values"
    assert found.plot_neutral().layout.xaxis.title.text == "learned value (neutral spreads)"


# --- refusals ---


def test_a_copy_is_no_further_tuning() -> None:
    for options in (
        {"replicates": [copy.deepcopy(given(0).tuned_hf)]},
        {"replicates": [given(1), given(1)]},
        {"replicates": [given(1)], "shuffled": [given(1)]},
    ):
        with pytest.raises(LensError, match="The same checkpoint is given twice"):
            measured(given(0), **options)


def test_a_pair_with_another_base_is_refused() -> None:
    base = base_model()
    with torch.no_grad():
        base.get_output_embeddings().weight[5, 3] += 1
    other = load_pair(base, copy.deepcopy(given(1).tuned_hf), tokenizer=tokenizer())
    with pytest.raises(LensError, match="The pair given as replicate 1 has another base"):
        measured(given(0), replicates=[other])


def test_a_replicate_that_was_tuned_otherwise_is_refused_and_a_shuffled_one_may_be(tmp_path: Any) -> None:
    def saved(name: str, at: int, **record: Any) -> str:
        folder = tmp_path / name
        given(at).tuned_hf.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        told = {"base_fingerprint": "b", "method": "ppo", "reward": "r", "scope": "all"} | record
        (folder / TUNING_FILE).write_text(json.dumps(told))
        return str(folder)

    pair = load_pair(base_model(), saved("tuned", 0), tokenizer=tokenizer())
    same, other = saved("same", 1, seed=3), saved("other", 2, reward="another")
    assert len(open_replicates(pair, [same])) == 1
    with pytest.raises(
        LensError, match=r"The replicate .*other was tuned otherwise: reward is 'another' there and 'r' here"
    ):
        open_replicates(pair, [same, other])
    assert len(open_replicates(pair, [other], kind="shuffled tuning")) == 1


@pytest.mark.parametrize("key", ["base_fingerprint", "method", "reward", "scope"])
def test_records_that_differ_in_any_of_their_facts_are_told_apart(key: str) -> None:
    tuned = {"base_fingerprint": "b", "method": "ppo", "reward": "r", "scope": "all", "seed": 0}
    check_same_tuning(tuned, tuned | {"seed": 1}, "a")
    check_same_tuning(tuned, None, "a")
    with pytest.raises(LensError, match=f"{key} is 'x' there"):
        check_same_tuning(tuned, tuned | {key: "x"}, "a")


def test_a_replicate_of_another_architecture_is_refused() -> None:
    with pytest.raises(LensError, match="one architecture"):
        measured(given(0), replicates=[tiny_model("llama")])


# --- the statistics alone ---


def simulated(seed: int, tunings: int, *, n: int = 300, rated: int = 100) -> tuple[Measured, np.ndarray, np.ndarray]:
    """Words without any feedback: what contexts add is shared by all tunings, what a tuning adds differs in size by word."""
    draw = np.random.default_rng([seed, tunings])
    shared = draw.standard_t(6, n) * 0.5
    spread = np.sqrt(6 / draw.chisquare(6, n))
    values = -0.4 + 0.1 * (shared + spread * draw.normal(size=(tunings, n)))
    zeros = np.zeros(n)
    made = Measured(
        tuple(map(str, range(n))), values[0], values[0], values[0], np.full(n, 5), np.ones(n, int), zeros, zeros,
        twin=draw.normal(size=n), exposure=zeros, replicates=tuple(values[1:]),
    )  # fmt: skip
    stated = np.where(np.arange(n) < rated, draw.choice([-2.0, 2.0], n), 0.0)
    return made, stated, np.arange(rated, n)


@pytest.mark.parametrize("tunings", [1, 3])
def test_no_word_is_called_wrong_where_none_was_taught(tunings: int) -> None:
    hits, p_values = 0, []
    for seed in range(40):
        made, stated, neutrals = simulated(seed, tunings)
        found = signal_values(made, stated, neutrals)
        p_values.append(found.p_wrong[stated != 0])
        hits += discoveries(p_values[-1], 0.1).any()
    # The promise is 15 % of null runs, and a false discovery rate of 10 % makes 4 of 40.
    assert hits <= 6
    assert stats.kstest(np.concatenate(p_values)[::20], "uniform").pvalue > 0.001


@pytest.mark.parametrize("tunings", [2, 3, 5])
def test_the_interval_over_tunings_covers_as_it_says(tunings: int) -> None:
    """40 recipes of 300 words, whose spread differs from word to word."""
    held = []
    for seed in range(40):
        draw = np.random.default_rng([seed, tunings])
        truth, spread = 3 * draw.normal(size=300), np.sqrt(6 / draw.chisquare(6, 300))
        recipe, _ = over_tunings(truth + spread * draw.normal(size=(tunings, 300)), np.arange(200))
        held.append((recipe[1] <= truth) & (truth <= recipe[2]))
    assert 0.935 <= np.mean(held) <= 0.965


def test_what_all_tunings_share_is_no_certainty() -> None:
    """Neutral words that differ by their contexts alike in every tuning are the null: z is no larger than one tuning's value."""
    draw = np.random.default_rng(0)
    shared = draw.normal(size=400)
    tunings = shared + 0.05 * draw.normal(size=(3, 400))
    _, z = over_tunings(tunings, np.arange(400))
    np.testing.assert_allclose(z, shared, atol=0.3)
    assert stats.median_abs_deviation(z, scale="normal") == pytest.approx(1, abs=0.1)
