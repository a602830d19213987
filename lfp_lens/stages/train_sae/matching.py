"""Which features of the small SAE the large one found again: Hungarian-matched cosines ("MMCS" in the paper)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from lfp_lens.results.train_sae import SAERecord


def match(records: Sequence[SAERecord], *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Match the two smallest SAEs of every side and site; give the cosine of each small feature, and a random control.

    The control is the mean of the same matched cosines between random dictionaries of the same two sizes. The paper
    matches encoder rows; with tied weights these are the decoder rows used here.
    """
    cosines, control = {}, {}
    for side, site in sorted({(record.side, record.site) for record in records}):
        found = sorted((r for r in records if (r.side, r.site) == (side, site)), key=lambda record: record.size)
        if len(found) < 2:
            continue
        small, large = (record.weights.tensors["W_dec"].astype(float) for record in found[:2])
        cosines[f"{side} {site}"] = matched_cosines(small, large)
        generator = np.random.default_rng(seed)
        random = [generator.normal(size=part.shape) for part in (small, large)]
        control[f"{side} {site}"] = float(matched_cosines(*random).mean())
    return cosines, control


def matched_cosines(
    small_FD: Float[np.ndarray, "small width"], large_FD: Float[np.ndarray, "large width"]
) -> Float[np.ndarray, " small"]:
    """Give, for each small row, its cosine with the large row that the best one-to-one assignment gives it.

    >>> matched_cosines(np.eye(2), np.array([[0.0, 2.0], [1.0, 0.0], [1.0, 1.0]])).tolist()
    [1.0, 1.0]
    """
    unit = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (small_FD, large_FD)]
    cosine = unit[0] @ unit[1].T
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    found = np.full(len(small_FD), np.nan)
    found[rows] = cosine[rows, columns]
    return found
