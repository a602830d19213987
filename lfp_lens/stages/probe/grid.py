"""The grid: what can be read of the models, on which side, against which control, on words that nothing was fitted to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import (
    Estimate,
    RankAgreement,
    balanced_sign_accuracy,
    mean_intervals,
    rank_agreement,
    tau_difference,
)
from lfp_lens.results.grid import GridCell

ALPHAS = tuple(10.0**power for power in range(-2, 7))
SPLITS = ("lemma", "row")
LOW, HIGH = 10, 90
"""Percentiles of the training rows' predictions that go to the lexicon's extremes (the public code's rescaling)."""
PROBE = ("tuned", "sae")
RANDOM = {"sae": "random_sae", "difference_sae": "difference_random_sae"}
"""Features -> the same of random directions."""
TWIN = {"ridge": "base", "direct": "noise"}
"""Path -> the side on which nothing was learned."""
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Rows:
    """One row per word occurrence."""

    words: Sequence[str]
    """The word of each row, lower-cased."""
    lemma: Sequence[str]
    """Its lemma: a split never parts one."""
    source: Int[np.ndarray, " rows"]
    """The text it stands in: a split never parts one either."""
    target: Float[np.ndarray, " rows"]
    """The signal at each row."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What one reading says of words that it was not fitted to."""

    side: str
    input: str
    target: str
    place: str
    path: str
    values: dict[str, float]
    """By word."""
    centre: float
    """Where its sign changes."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """The probe of the result: held-out predictions by word."""

    values: dict[str, tuple[float, float, float]]
    """Mean over rows, with its interval, in the signal's unit."""
    rescaled: dict[str, float]
    """On the lexicon's scale."""


def read_grid(
    rows: Rows,
    readings: Mapping[tuple[str, str], Float[np.ndarray, "rows width"]],
    lexicon: Mapping[str, float],
    *,
    split: str,
    folds: int,
    seed: int,
    place: str = "word",
) -> tuple[list[Reading], Predicted | None]:
    """Fit one ridge probe per (side, input), plus one on a control task where the probe itself is among them.

    The control task gives every word a random one of the words' own mean targets (Hewitt and Liang 2019): what a probe
    scores there it scores by memory. What is read at the word itself by `("tuned", "sae")` is the result's prediction.
    """
    jobs = [(key, "signal", rows.target) for key in readings]
    if PROBE in readings and place == "word":
        jobs.append((PROBE, "control_task", _control(rows, seed)))
    found, probe = [], None
    for (side, name), target_name, target in tqdm(jobs, desc=f"probe {place}"):
        held = cross_predict(readings[side, name], target, rows, split=split, folds=folds, seed=seed, lexicon=lexicon)
        by_word = per_word(held.values, rows.words)
        found.append(Reading(side, name, target_name, place, "ridge", by_word, float(np.mean(held.values))))
        if (side, name) == PROBE and target_name == "signal" and place == "word":
            names, codes = np.unique(np.array(rows.words), return_inverse=True)
            means = mean_intervals(held.values, codes)
            told = zip(means.value.tolist(), means.low.tolist(), means.high.tolist())
            probe = Predicted(dict(zip(names.tolist(), told)), per_word(held.rescaled, rows.words))
    return found, probe


def _control(rows: Rows, seed: int) -> np.ndarray:
    """Give every row a random word's mean target, the same for all rows of a word."""
    codes = np.unique(np.array(rows.words), return_inverse=True)[1]
    means = np.bincount(codes, rows.target) / np.bincount(codes)
    return np.random.default_rng(seed).permutation(means)[codes]


def score_grid(
    readings: Sequence[Reading], rows: Rows, lexicon: Mapping[str, float], lemma: Mapping[str, str], *, seed: int
) -> tuple[GridCell, ...]:
    """Compare every reading with the lexicon, with its twin, the static embedding and random features, on the same words.

    A reading that gives one value for all words has no order: its numbers are NaN.
    """
    names, codes = np.unique(np.array(rows.words), return_inverse=True)
    control = dict(zip(names.tolist(), _control(rows, seed)[np.unique(codes, return_index=True)[1]].tolist()))
    find = {(one.side, one.input, one.target, one.place, one.path): one for one in readings}
    cells = []
    for one in readings:
        is_control = one.target == "control_task"
        truth = control if is_control else lexicon
        words = [word for word in one.values if truth.get(word)]
        values, stated = np.array([one.values[word] for word in words]), np.array([truth[word] for word in words])
        groups = [lemma.get(word, word) for word in words]
        minus: dict[str, Estimate | None] = {}
        if len(set(groups)) < 3 or not np.ptp(values) or not np.ptp(stated):
            agreement, sign = _nothing(len(words), len(set(groups)))
        else:
            agreement = rank_agreement(values, stated, groups, draws=DRAWS, seed=seed)
            aims = stated - np.median(stated) if is_control else stated
            sign = balanced_sign_accuracy(values - one.centre, aims, groups, draws=DRAWS, seed=seed)
            if one.side == "tuned" and not is_control and one.input not in RANDOM.values():
                minus = {name: _gap(one, other, lexicon, lemma, seed) for name, other in _beside(one, find).items()}
        cells.append(GridCell(one.side, one.input, one.target, agreement, sign, one.place, one.path, **minus))
    return tuple(cells)


def _beside(one: Reading, find: Mapping[tuple[str, str, str, str, str], Reading]) -> dict[str, Reading | None]:
    """Give what a reading of the tuned model has to beat."""
    cheap = {name: find.get(("none", name, "signal", "word", "ridge")) for name in ("embedding", "random")}
    of = lambda side, name: find.get((side, name, one.target, one.place, one.path))  # noqa: E731
    random = of("tuned", RANDOM[one.input]) if one.input in RANDOM else cheap["random"]
    return {"minus_twin": of(TWIN[one.path], one.input), "minus_embedding": cheap["embedding"], "minus_random": random}


def _nothing(n: int, groups: int) -> tuple[RankAgreement, Estimate]:
    nan = float("nan")
    return RankAgreement(nan, nan, nan, nan, n, groups, "permutation"), Estimate(nan, nan, nan, n)


def _gap(
    one: Reading, other: Reading | None, lexicon: Mapping[str, float], lemma: Mapping[str, str], seed: int
) -> Estimate | None:
    """Give tau of one reading less tau of another, on the words that both read and the same resampled lemmas."""
    if other is None:
        return None
    words = [word for word in one.values if word in other.values and lexicon.get(word)]
    first, second = (np.array([reading.values[word] for word in words]) for reading in (one, other))
    stated = np.array([lexicon[word] for word in words])
    groups = [lemma.get(word, word) for word in words]
    if len(set(groups)) < 3 or not all(map(np.ptp, (first, second, stated))):
        return None
    return tau_difference(first, second, stated, groups, draws=DRAWS, seed=seed)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a probe says of rows it was not fitted to."""

    values: Float[np.ndarray, " rows"]
    """In the target's unit, against the training mean."""
    rescaled: Float[np.ndarray, " rows"]
    """On the lexicon's scale."""


def cross_predict(
    inputs: Float[np.ndarray, "rows width"],
    target: Float[np.ndarray, " rows"],
    rows: Rows,
    *,
    split: str,
    folds: int,
    seed: int,
    lexicon: Mapping[str, float],
) -> HeldOut:
    """Give each row's prediction by a ridge probe that saw neither its lemma nor its text; all choices are made inside the fold.

    Inputs and target are standardised, the regularisation is chosen and the rescaling is fitted on the training rows only.

    Raises:
        LensError: for inputs that are not finite, a constant target, an unknown split, fewer lemmas than folds, or a fold
            whose texts hold everything.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if not np.isfinite(inputs).all() or not np.isfinite(target).all():
        raise LensError("A probe's inputs and target must be finite numbers.")
    if np.ptp(target) == 0:
        raise LensError("The signal is constant over all triples: there is nothing to fit.")
    held, rescaled = np.zeros(len(target)), np.zeros(len(target))
    lowest, highest = min(lexicon.values()), max(lexicon.values())
    for train, test in parts_of(rows, split=split, folds=folds, seed=seed):
        # These problems are small: on a busy machine a second BLAS thread makes them ten times slower.
        with threadpool_limits(1):
            model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(inputs[train], target[train])
            seen, told = model.predict(inputs[train]), model.predict(inputs[test])
        # Against the training mean, so that fold means, which follow the held-out words, cannot rank folds.
        held[test] = told - target[train].mean()
        low, high = np.percentile(seen, (LOW, HIGH))
        share = (told - low) / (high - low) if high > low else np.full(len(told), 0.5)
        rescaled[test] = np.clip(lowest + share * (highest - lowest), lowest, highest)
    return HeldOut(held, rescaled)


def parts_of(
    rows: Rows, *, split: str, folds: int, seed: int
) -> Iterator[tuple[Shaped[np.ndarray, " train"], Shaped[np.ndarray, " test"]]]:
    """Give training and test rows of every fold: sharing no lemma and no text, or (`row`) drawn at random, which leaks both."""
    from sklearn.model_selection import GroupKFold, KFold

    n = len(rows.target)
    if not 2 <= folds <= n:
        raise LensError(f"folds must be at least 2 and at most the {n} rows of the triples; {folds} given.")
    if split == "row":
        yield from KFold(folds, shuffle=True, random_state=seed).split(np.zeros(n))
        return
    if split != "lemma":
        raise LensError(f"split must be 'lemma' or 'row'; {split!r} given.")
    n_groups = len(set(rows.lemma))
    if n_groups < folds:
        raise LensError(f"{folds} folds need as many lemmas; the triples have {n_groups}.")
    source = np.asarray(rows.source)
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(n), groups=rows.lemma):
        apart = train[~np.isin(source[train], source[test])]
        if len(apart) < 2:
            raise LensError(
                "Every text of the triples has words on both sides of a split by lemma: nothing is left to fit a probe on. "
                "Make triples of more texts."
            )
        yield apart, test


def per_word(values: Float[np.ndarray, " rows"], words: Sequence[str]) -> dict[str, float]:
    """Give the mean over each word's rows."""
    names, codes = np.unique(np.array(words), return_inverse=True)
    return dict(zip(names.tolist(), (np.bincount(codes, values) / np.bincount(codes)).tolist()))
