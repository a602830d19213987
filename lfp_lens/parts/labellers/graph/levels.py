"""What a feature does on a corpus, and the levels from which a prediction counts as firing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lfp_lens.parts.labellers.graph.corpus import Corpus

N_HARD = 5
"""A silent window that holds one of so many of the strongest tokens is a hard negative."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a feature does on a corpus."""

    corpus: Corpus
    """The windows."""
    acts_N: Float[np.ndarray, " tokens"]
    """Its activation at every token, as a share of its maximum."""
    is_text_W: Bool[np.ndarray, " windows"]
    """The windows that are text as it stands, not perturbed: levels are set on them."""
    level: float
    """The activation from which it fires strongly."""


def fires_level(
    seen: Seen, strength_N: Float[np.ndarray, " tokens"], predicted_N: Float[np.ndarray, " tokens"]
) -> float:
    """Give the level of `strong` that tells best which windows fire, silent ones that hold strong tokens counting for half."""
    window_N, n = seen.corpus.window_N, seen.corpus.n_windows
    peak_W, score_W, hard_W = np.zeros(n), np.zeros(n), np.zeros(n, bool)
    np.maximum.at(peak_W, window_N, seen.acts_N)
    np.maximum.at(score_W, window_N, predicted_N)
    ids_N = seen.corpus.before_ND[:, 0]
    sums = np.bincount(ids_N, weights=strength_N * seen.acts_N)
    hard_W[window_N[np.isin(ids_N, np.argsort(-sums, kind="stable")[:N_HARD])]] = True
    fires_W = peak_W >= seen.level
    kinds = [kind & seen.is_text_W for kind in (fires_W, ~fires_W & hard_W, ~fires_W & ~hard_W)]
    return _best_level(score_W, kinds[0], [kind for kind in kinds[1:] if kind.any()])


def holds_level(seen: Seen, predicted_N: Float[np.ndarray, " tokens"]) -> float:
    """Give the level of `mean`, averaged over marks, that tells the strong tokens of firing windows from as many others."""
    window_N, n = seen.corpus.window_N, seen.corpus.n_windows
    peak_W = np.zeros(n)
    np.maximum.at(peak_W, window_N, seen.acts_N)
    fires_N = ((peak_W >= seen.level) & seen.is_text_W)[window_N]
    marked = np.flatnonzero(fires_N & (seen.acts_N >= peak_W[window_N] / 2))
    others = np.flatnonzero(fires_N & (seen.acts_N < peak_W[window_N] / 2))
    counts_W = np.bincount(window_N[marked], minlength=n)
    drawn = others[np.lexsort((np.random.default_rng(0).random(len(others)), window_N[others]))]
    first = np.searchsorted(window_N[drawn], window_N[drawn])
    drawn = drawn[np.arange(len(drawn)) - first < counts_W[window_N[drawn]]]
    scores, is_true = [], []
    for rows, kind in ((marked, True), (drawn, False)):
        held = np.bincount(window_N[rows], minlength=n)
        sums = np.bincount(window_N[rows], weights=predicted_N[rows], minlength=n)
        scores.append(sums[held > 0] / held[held > 0])
        is_true.append(np.full(len(scores[-1]), kind))
    is_marked = np.concatenate(is_true)
    return _best_level(np.concatenate(scores), is_marked, [~is_marked] if len(drawn) else [])


def _best_level(scores: np.ndarray, is_true: np.ndarray, false: Sequence[np.ndarray]) -> float:
    """Give the level with the highest balanced accuracy, halfway between two scores; the kinds of false ones count alike."""
    if not is_true.any():
        return 1.0
    if not false:
        return float(scores[is_true].min()) / 2
    weights = is_true / is_true.sum() - sum(kind / kind.sum() / len(false) for kind in false)
    steps, at = np.unique(-scores, return_inverse=True)
    won = np.cumsum(np.bincount(at, weights=weights))
    best = int(np.argmax(won))
    return float(-(steps[best] + (steps[best + 1] if best + 1 < len(steps) else 0.0)) / 2)
