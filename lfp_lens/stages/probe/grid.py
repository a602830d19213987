"""The probes: what can be read, on which side, against which control, split by lemma."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate, RankAgreement, balanced_sign_accuracy, rank_agreement
from lfp_lens.results.probe import GridCell

ALPHAS = tuple(10.0**power for power in range(-2, 7))


@dataclass(frozen=True, eq=False)
class Rows:
    """One row per word occurrence in a triple."""

    words: Sequence[str]
    """The word of each row, lower-cased."""
    lemma: Sequence[str]
    """Its stem: the group of the split."""
    target: Float[np.ndarray, " rows"]
    """The signal at each row."""


def fit_grid(
    rows: Rows,
    readings: Mapping[tuple[str, str], Float[np.ndarray, "rows width"]],
    lexicon: Mapping[str, float],
    *,
    split: str,
    folds: int,
    seed: int,
) -> tuple[tuple[GridCell, ...], dict[str, float]]:
    """Fit one ridge probe per (side, input), plus one on a control task, and give the cells and the held-out predictions.

    The control task gives every word a random one of the words' own mean targets (Hewitt and Liang 2019): what a probe
    scores there it scores by memory. Predictions are means per word over rows it was not fitted on; those of
    `("tuned", "sae")` come back by word. Features that never fire make one prediction for all words, which has no order:
    the numbers of that cell are NaN.
    """
    generator = np.random.default_rng(seed)
    names = sorted(set(rows.words))
    means = np.array([rows.target[[word == name for word in rows.words]].mean() for name in names])
    control = dict(zip(names, generator.permutation(means)))
    jobs = [(key, "signal", rows.target, lexicon) for key in readings]
    jobs.append((("tuned", "sae"), "control_task", np.array([control[word] for word in rows.words]), control))
    cells, predicted = [], {}
    for (side, name), target_name, target, truth in tqdm(jobs, desc="probe"):
        held_out = cross_predict(readings[side, name], target, rows, split=split, folds=folds, seed=seed)
        by_word = per_word(held_out, rows.words)
        scored = [word for word in by_word if word in truth and truth[word] != 0]
        lemma = dict(zip(rows.words, rows.lemma))
        values = np.array([by_word[word] for word in scored])
        stated = np.array([truth[word] for word in scored])
        groups = [lemma[word] for word in scored]
        centre = float(np.mean(held_out))
        sign_truth = stated - np.median(stated) if target_name == "control_task" else stated
        if np.ptp(values) == 0:
            nothing = np.nan, np.nan, np.nan, len(values)
            cells.append(
                GridCell(side, name, target_name, RankAgreement(np.nan, *nothing, len(set(groups))), Estimate(*nothing))
            )
        else:
            cells.append(
                GridCell(
                    side, name, target_name, rank_agreement(values, stated, groups, seed=seed, draws=500),
                    balanced_sign_accuracy(values - centre, sign_truth, groups, seed=seed, draws=500),
                )
            )  # fmt: skip
        if (side, name, target_name) == ("tuned", "sae", "signal"):
            predicted = by_word
    return tuple(cells), predicted


def cross_predict(
    inputs: Float[np.ndarray, "rows width"],
    target: Float[np.ndarray, " rows"],
    rows: Rows,
    *,
    split: str,
    folds: int,
    seed: int,
) -> Float[np.ndarray, " rows"]:
    """Give each row's prediction by a ridge probe that saw no row of its fold; regularisation is chosen inside the fold.

    Inputs and target are standardised on the training rows only.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if not np.isfinite(inputs).all() or not np.isfinite(target).all():
        raise LensError("A probe's inputs and target must be finite numbers.")
    if np.ptp(target) == 0:
        raise LensError("The signal is constant over all triples: there is nothing to fit.")
    if split == "lemma":
        n_groups = len(set(rows.lemma))
        if n_groups < folds:
            raise LensError(f"{folds} folds need as many lemmas; the triples have {n_groups}.")
        parts = GroupKFold(folds, shuffle=True, random_state=seed).split(inputs, target, rows.lemma)
    elif split == "row":
        parts = KFold(folds, shuffle=True, random_state=seed).split(inputs)
    else:
        raise LensError(f"split must be 'lemma' or 'row'; {split!r} given.")
    held_out = np.zeros(len(target))
    for train, test in parts:
        # These problems are small: on a busy machine a second BLAS thread makes them ten times slower.
        with threadpool_limits(1):
            model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(inputs[train], target[train])
        # Against the training mean, so that fold means, which follow the held-out words, cannot rank folds.
        held_out[test] = model.predict(inputs[test]) - target[train].mean()
    return held_out


def per_word(values: Float[np.ndarray, " rows"], words: Sequence[str]) -> dict[str, float]:
    """Give the mean over each word's rows."""
    sums: dict[str, list[float]] = {}
    for value, word in zip(values, words):
        sums.setdefault(word, []).append(float(value))
    return {word: float(np.mean(parts)) for word, parts in sums.items()}
