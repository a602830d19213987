"""Logistic probes on folds of prompt groups: held-out log-odds, and what they are worth group by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from lfp_lens.core.errors import LensError

CS = tuple(10.0**power for power in range(-4, 2))
"""Inverse strengths of the L2 penalty to choose from, on inputs of unit variance."""
INNER_FOLDS = 3
SPARSE_BELOW = 0.2
"""Inputs with a smaller share of values other than 0 are fitted as a sparse matrix."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What the probes say about rows whose prompt group they did not see."""

    score: Float[np.ndarray, " rows"]
    """Log-odds of the label, one per row of the input, those the probes were not to be fitted on among them."""
    weights: Float[np.ndarray, "folds features"]
    """Each fold's weights, per standard deviation of the feature (per count for a bag of words)."""


def folds_of(groups: Sequence[str], folds: int, *, seed: int) -> Int[np.ndarray, " rows"]:
    """Give each row's fold; rows of one group share it. Raises `LensError` for fewer groups than folds, or than 2 folds."""
    from sklearn.model_selection import GroupKFold

    n_groups = len(set(groups))
    if folds < 2:
        raise LensError(f"folds must be at least 2; {folds} given.")
    if n_groups < folds:
        raise LensError(f"{folds} folds need as many prompt groups; the triples have {n_groups}. Give more triples.")
    found = np.zeros(len(groups), dtype=np.int64)
    for fold, (_, test) in enumerate(
        GroupKFold(folds, shuffle=True, random_state=seed).split(found[:, None], found, groups)
    ):
        found[test] = fold
    return found


def cross_fit(
    inputs: Float[np.ndarray, "rows features"] | Sequence[str],
    label: Bool[np.ndarray, " fitted"],
    fitted: Int[np.ndarray, " fitted"],
    groups: Shaped[np.ndarray, " rows"],
    fold: Int[np.ndarray, " rows"],
) -> HeldOut:
    """Fit a logistic regression per fold on other folds' rows, and score every row of the fold.

    Args:
        inputs: one row of features per text, or the texts themselves for a bag of words, whose vocabulary is that of the
            training rows.
        label: of the rows to fit on.
        fitted: which rows those are; the others are scored only.
        groups: of every row; the penalty is chosen within the training rows, by folds of groups.
        fold: of every row.

    Raises:
        LensError: for inputs that are not finite, labels of one class, or too few groups to choose the penalty.
    """
    if isinstance(inputs, np.ndarray) and not np.isfinite(inputs).all():
        bad = int((~np.isfinite(inputs)).any(axis=1).sum())
        raise LensError(f"A probe's inputs must be finite numbers; {bad} of {len(inputs)} rows are not.")
    score, weights = np.zeros(len(fold)), []
    for one in range(int(fold.max()) + 1):
        train = fold[fitted] != one
        if len(set(label[train])) < 2:
            raise LensError(f"All {int(train.sum())} training rows have one label: there is nothing to tell apart.")
        test = np.flatnonzero(fold == one)
        train_inputs, test_inputs = _matrices(inputs, fitted[train], test)
        model = _fit(train_inputs, label[train], groups[fitted[train]])
        score[test] = model.decision_function(test_inputs)
        weights.append(model[-1].coef_[0])
    # Each fold of a bag of words has a vocabulary of its own.
    as_one = isinstance(inputs, np.ndarray)
    return HeldOut(score, np.array(weights) if as_one else np.zeros((len(weights), 0)))


def _matrices(inputs: Any, train: np.ndarray, test: np.ndarray) -> tuple[Any, Any]:
    from scipy.sparse import csr_matrix

    if isinstance(inputs, np.ndarray):
        parts = inputs[train].astype(float), inputs[test].astype(float)
        is_sparse = (inputs != 0).mean() < SPARSE_BELOW
        return (csr_matrix(parts[0]), csr_matrix(parts[1])) if is_sparse else parts
    from sklearn.feature_extraction.text import CountVectorizer

    # Every text has a word, but one-letter words count too: a continuation may be "I".
    counter = CountVectorizer(token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    return counter.fit_transform([inputs[row] for row in train]), counter.transform([inputs[row] for row in test])


def _fit(inputs: Any, label: np.ndarray, groups: np.ndarray) -> Any:
    """Choose the penalty by held-out log loss over groups of the training rows, and fit it on all of them."""
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if len(set(groups)) < INNER_FOLDS:
        raise LensError(
            f"Choosing the penalty needs {INNER_FOLDS} prompt groups to train on; there are {len(set(groups))}."
        )
    is_count = issparse(inputs) and inputs.dtype.kind == "i"
    # The intercept is not penalised, so centring changes nothing; a sparse matrix would lose its zeros.
    scale = "passthrough" if is_count else StandardScaler(with_mean=not issparse(inputs))
    parts = list(GroupKFold(INNER_FOLDS).split(inputs, label, groups))
    model = LogisticRegressionCV(
        Cs=CS, l1_ratios=(0.0,), cv=parts, scoring=_log_likelihood, max_iter=2000, use_legacy_attributes=False
    )
    # These problems are small: on a busy machine a second BLAS thread makes them ten times slower.
    with threadpool_limits(1):
        return make_pipeline(scale, model).fit(inputs, label)


def _log_likelihood(model: Any, inputs: Any, label: np.ndarray) -> float:
    """Give the mean log-likelihood; scikit-learn's own score checks its arguments for longer than the fit takes."""
    return -float(np.logaddexp(0, np.where(label, -1, 1) * model.decision_function(inputs)).mean())


def by_group(values: Float[np.ndarray, " rows"], groups: Shaped[np.ndarray, " rows"]) -> Float[np.ndarray, " groups"]:
    """Give the mean of each group's rows, groups in sorted order: the independent values behind every interval.

    >>> by_group(np.array([1.0, 0.0, 1.0]), np.array(["a", "b", "a"])).tolist()
    [1.0, 0.0]
    """
    _, codes = np.unique(groups, return_inverse=True)
    return np.bincount(codes, values) / np.bincount(codes)


def is_right(score: Float[np.ndarray, " rows"], label: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Give 1 where the log-odds have the label's sign, 0 where they have the other one, a half where they are 0."""
    return np.where(score == 0, 0.5, (score > 0) == label)


def is_above(first: Float[np.ndarray, " items"], second: Float[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """Give 1 where the first value is the higher one, 0 where it is the lower one, a half for a tie."""
    return 0.5 + 0.5 * np.sign(first - second)
