"""Do the statistics keep their promises? P-values, the wrong-sign test and 95 % intervals on data whose truth is known.

One JSON line per promise: what was found, what was promised, and whether it holds. Lines without a promise (`holds` is
null) say what to expect where none is made: fewer than 50 lemmas, skewed contexts.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
from scipy import stats

from lfp_lens.core.stats import (
    auc,
    balanced_sign_accuracy,
    discoveries,
    frequency_deciles,
    mean_estimate,
    mean_intervals,
    moderated_variances,
    polarity_null,
    rank_agreement,
    tau_difference,
)
from lfp_lens.core.stats.pairs import tau_statistic
from lfp_lens.core.stats.resampling import bca_interval
from lfp_lens.core.stats.wrong import p_of_wrong_sign
from lfp_lens.parts.lexicons import load_lexicon

COVERED = (93.5, 96.5)
"""Percent of 95 % intervals that must hold the truth."""
CLAIMED_FROM = {"tau, one word per lemma": 100, "AUC": 100, "mean of one value per lemma": 100}
"""Lemmas from which an interval's coverage is claimed, 50 where nothing is said; below, what is found is printed only. At 50
lemmas tau of single words covers 97 % (it is too wide), AUC near 0.95 covers 91 to 93 %."""
REAL_SHARES = (0.0, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975, 0.995, 0.999, 1.0)
REAL_CONTEXTS = (-4.5, -3.37, -2.75, -1.98, -1.25, -0.65, 0.02, 0.65, 1.21, 1.93, 2.8, 3.7, 4.8)
"""Quantiles of the implicit reward of single contexts, standardised within their word: 14,408 contexts of 150 words,
60 to 120 each, IMDB test, `imdb-neox-2m` tuned by the preset `imdb-2m-vader`. Skewness 0.0, excess kurtosis 0.6; the ends
are cut."""


@dataclass(frozen=True)
class Check:
    """One promise beside what was found."""

    what: str
    n: int
    """Lemmas, words or contexts: whatever `what` counts."""
    found: float
    promised: str
    holds: bool | None
    """None: nothing is promised here."""

    def line(self) -> str:
        """Give the JSON line."""
        return json.dumps({"bench": "calibration", **asdict(self), "found": round(self.found, 4)})


def calibration(
    *,
    nulls: int = 2000,
    runs: int = 200,
    simulations: int = 2000,
    lemmas: Sequence[int] = (20, 30, 50, 100, 300, 1000),
    seed: int = 0,
) -> Iterator[Check]:
    """Check p-values over `nulls`, the wrong-sign test over `runs`, intervals over `simulations` at each number of lemmas."""
    yield from p_values(nulls, seed)
    yield wrong_signs(runs, seed)
    yield from word_intervals(simulations, seed)
    for n in lemmas:
        yield from group_intervals(simulations, n, seed)


# P-values


def p_values(nulls: int, seed: int, words: int = 60) -> Iterator[Check]:
    """Compare the p-values of each kind of null with a uniform distribution (Kolmogorov and Smirnov)."""
    for what, one_p in NULLS.items():
        generator = np.random.default_rng([seed, 1])
        found = [one_p(generator, words, draw) for draw in range(nulls)]
        ks = float(stats.kstest(found, "uniform").pvalue)
        is_control = what.startswith("control")
        yield Check(
            f"p-values: {what}, KS p over {nulls} nulls", words, ks,
            "p < 0.001, for the check to mean anything" if is_control else "p > 0.001", ks < 1e-3 if is_control else ks > 1e-3,
        )  # fmt: skip


def _no_ties(generator: np.random.Generator, words: int, draw: int) -> float:
    return rank_agreement(generator.normal(size=words), generator.normal(size=words), draws=9).p_value


def _ties(generator: np.random.Generator, words: int, draw: int) -> float:
    return rank_agreement(generator.normal(size=words), _rated(generator.normal(size=words)), draws=9).p_value


def _permuted(generator: np.random.Generator, words: int, draw: int) -> float:
    learned, given = np.round(generator.normal(size=words)), _rated(generator.normal(size=words))
    return rank_agreement(learned, given, strata=np.zeros(words), draws=199, seed=draw).p_value


def _lemmas(generator: np.random.Generator, words: int, draw: int, *, are_given: bool = True) -> float:
    groups = _groups(generator, words)
    learned, given = _shared(generator, groups), _rated(_shared(generator, groups))
    return rank_agreement(learned, given, groups if are_given else None, draws=199, seed=draw).p_value


def _strata(generator: np.random.Generator, words: int, draw: int, *, are_given: bool = True) -> float:
    groups = _groups(generator, words)
    deciles = frequency_deciles(generator.normal(size=words))[groups]
    learned, given = (_shared(generator, groups) + 0.2 * deciles for _ in range(2))
    return rank_agreement(learned, given, groups, strata=deciles if are_given else None, draws=199, seed=draw).p_value


def _polarity(generator: np.random.Generator, words: int, draw: int) -> float:
    given = _rated(generator.normal(size=words))
    return polarity_null(np.sign(given) + generator.normal(size=words), given, draws=199, seed=draw).p_value


NULLS: dict[str, Callable[[np.random.Generator, int, int], float]] = {
    "no ties (SciPy's)": _no_ties,
    "VADER's ties (SciPy's)": _ties,
    "ties on both sides (permutation)": _permuted,
    "lemmas of 1 to 5 words (permutation)": _lemmas,
    "lemmas, both sides follow the frequency decile (permutation within deciles)": _strata,
    "polarity learned, strength not (within polarity)": _polarity,
    "control, lemmas not told": lambda *given: _lemmas(*given, are_given=False),
    "control, deciles not told": lambda *given: _strata(*given, are_given=False),
}


# The wrong-sign test


def wrong_signs(runs: int, seed: int, neutral: int = 300, rated: int = 500) -> Check:
    """Count runs with any discovery where lexicon words are as neutral as the words that define zero."""
    generator = np.random.default_rng([seed, 2])
    n_any = 0
    for _ in range(runs):
        # The fewer its contexts, the wider a word's value is spread.
        contexts = generator.integers(3, 9, size=neutral + rated)
        values = generator.standard_t(5, size=neutral + rated) + 2 * generator.normal(size=neutral + rated) / np.sqrt(
            contexts
        )
        given = _rated(generator.normal(size=rated))
        n_any += discoveries(p_of_wrong_sign(values[neutral:], given, values[:neutral]), 0.1).any()
    return Check(
        f"wrong-sign test: of {runs} null runs, those with any word at FDR 10 %", rated, int(n_any),
        "at most 15 % of runs", bool(n_any <= 0.15 * runs),
    )  # fmt: skip


# Intervals


def word_intervals(simulations: int, seed: int, words: int = 10) -> Iterator[Check]:
    """Check the interval of one word's value over its contexts, and over few tunings."""
    generator = np.random.default_rng([seed, 3])
    shapes: dict[str, tuple[Callable[[tuple[int, int]], np.ndarray], float]] = {
        "normal": (lambda size: generator.normal(size=size), 0.0),
        "as measured": (lambda size: np.interp(generator.random(size), REAL_SHARES, REAL_CONTEXTS), _real_mean()),
        "heavy-tailed (t, 4 df)": (lambda size: generator.standard_t(4, size=size), 0.0),
        "skewed (exponential)": (lambda size: generator.exponential(size=size), 1.0),
    }
    for what, (draw, truth) in shapes.items():
        for n in (3, 5, 8):
            values = draw((simulations * words, n))
            found = mean_intervals(values.ravel(), np.repeat(np.arange(len(values)), n))
            is_claimed = what in ("normal", "as measured")
            yield _covered(f"a word's value over {what} contexts", n, found.low, found.high, truth, is_claimed)
    for n in (2, 3, 5):
        means, margins = [], []
        for _ in range(simulations // 20):
            # Spread differs from word to word: inverse chi-squared with 6 degrees of freedom.
            spread = np.sqrt(6 / generator.chisquare(6, size=200))
            values = spread[:, None] * generator.normal(size=(200, n))
            variances, df = moderated_variances(values.var(axis=1, ddof=1), n - 1)
            means.append(values.mean(axis=1))
            margins.append(stats.t.ppf(0.975, df) * np.sqrt(variances / n))
        mean, margin = np.concatenate(means), np.concatenate(margins)
        yield _covered("a word's value over tunings, moderated variance", n, mean - margin, mean + margin, 0.0, True)


NAMES = (
    "tau, one word per lemma", "tau less a twin's", "sign accuracy", "AUC", "mean of one value per lemma",
    "tau", "tau within a polarity",
)  # fmt: skip


def group_intervals(simulations: int, lemmas: int, seed: int, draws: int = 1000) -> Iterator[Check]:
    """Check every interval that resamples lemmas: tau overall and within a polarity, its difference, signs, AUC, a mean."""
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    generator = np.random.default_rng([seed, 4, lemmas])
    for draw in range(simulations):
        options = {"draws": draws, "seed": draw}
        alone, one = _words(generator, lemmas, most=1), _words(generator, lemmas)
        side = _words(generator, lemmas, polarity=1)
        estimates = (
            rank_agreement(alone.learned, alone.given, **options),
            tau_difference(one.learned, one.twin, one.given, one.groups, **options),
            balanced_sign_accuracy(one.learned, one.given, one.groups, **options),
            auc(one.learned, one.given > 0, one.groups, **options),
            mean_estimate(alone.learned, **options),
        )
        found = [(estimate.low, estimate.high) for estimate in estimates] + [_tau(one, options), _tau(side, options)]
        for name, interval in zip(NAMES, found):
            ends[name].append(interval)
    truths = dict(zip(NAMES, _truths()))
    for name in NAMES:
        low, high = np.array(ends[name]).T
        yield _covered(name, lemmas, low, high, truths[name], lemmas >= CLAIMED_FROM.get(name, 50))


def _tau(words: "Words", options: dict[str, int]) -> tuple[float, float]:
    """Give the interval of `rank_agreement` without its permutations, which only cost time here."""
    statistic = tau_statistic(words.learned, words.given, words.groups)
    return bca_interval(statistic, int(words.groups.max()) + 1, **options)


def _covered(what: str, n: int, low: np.ndarray, high: np.ndarray, truth: float, is_claimed: bool) -> Check:
    percent = float(100 * np.mean((low <= truth) & (truth <= high)))
    holds = COVERED[0] <= percent <= COVERED[1] if is_claimed else None
    promised = f"{COVERED[0]} to {COVERED[1]}" if is_claimed else "nothing"
    return Check(f"95 % interval of {what}: percent of {np.size(low)} that hold the truth", n, percent, promised, holds)


# Words whose truth is known


@dataclass(frozen=True)
class Words:
    """Simulated words of some lemmas."""

    learned: np.ndarray
    twin: np.ndarray
    given: np.ndarray
    groups: np.ndarray


def _words(generator: np.random.Generator, lemmas: int, *, most: int = 5, polarity: int | None = None) -> Words:
    """Make words that learned their polarity and, in part, their strength; the words of a lemma resemble one another."""
    groups = _groups(generator, lemmas, most)
    sign = (
        np.where(generator.random(lemmas) < 0.45, 1, -1)[groups] if polarity is None else np.full(len(groups), polarity)
    )
    strength, noise, other = (_shared(generator, groups) for _ in range(3))
    given = _rated(strength * sign, sign)
    learned, twin = (1.2 * sign + 0.6 * strength * sign + 0.8 * noise, 0.4 * sign + 0.2 * strength * sign + other)
    return Words(learned, twin, given, groups)


def _groups(generator: np.random.Generator, lemmas: int, most: int = 5) -> np.ndarray:
    return np.repeat(np.arange(lemmas), generator.integers(1, most + 1, size=lemmas))


def _shared(generator: np.random.Generator, groups: np.ndarray, share: float = 0.7) -> np.ndarray:
    """Draw normal values of which `share` of the variance is common to the words of a group."""
    common = generator.normal(size=groups.max() + 1)[groups]
    return np.sqrt(share) * common + np.sqrt(1 - share) * generator.normal(size=len(groups))


def _rated(normal: np.ndarray, sign: np.ndarray | None = None) -> np.ndarray:
    """Give VADER's own values in the order of normal ones; with signs, strength alone follows their order."""
    values = _vader()
    if sign is None:
        return _quantile(values, normal)
    return np.where(sign > 0, _quantile(values[values > 0], normal), _quantile(values[values < 0], normal))


def _quantile(values: np.ndarray, normal: np.ndarray) -> np.ndarray:
    return values[(stats.norm.cdf(normal) * len(values)).astype(int).clip(max=len(values) - 1)]


@cache
def _vader() -> np.ndarray:
    values = np.sort(list(load_lexicon("vader").values()))
    return values[values != 0]


@cache
def _real_mean() -> float:
    """Give the mean of the interpolated quantiles: exact, as they are joined by straight lines."""
    return float(np.trapezoid(REAL_CONTEXTS, REAL_SHARES))


@cache
def _truths(samples: int = 60, lemmas: int = 3000) -> tuple[float, ...]:
    """Give the true values of `NAMES`: means over large samples, whose own error is below a tenth of an interval's width."""
    generator, found = np.random.default_rng(12), []
    for _ in range(samples):
        alone, one = _words(generator, lemmas, most=1), _words(generator, lemmas)
        side = _words(generator, lemmas, polarity=1)
        tau = lambda learned, words: stats.kendalltau(learned, words.given).statistic  # noqa: E731
        is_right = np.sign(one.learned) == np.sign(one.given)
        up, down = one.given > 0, one.given < 0
        area = stats.mannwhitneyu(one.learned[up], one.learned[down]).statistic / (up.sum() * down.sum())
        less_twin = tau(one.learned, one) - tau(one.twin, one)
        signs = (is_right[up].mean() + is_right[down].mean()) / 2
        whole, side_alone = tau(one.learned, one), tau(side.learned, side)
        found.append((tau(alone.learned, alone), less_twin, signs, area, alone.learned.mean(), whole, side_alone))
    return tuple(np.mean(found, axis=0).tolist())
