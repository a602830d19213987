"""What several tunings say that one cannot: how far values repeat, and what the same recipe gives for another reward."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import stats

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate

if TYPE_CHECKING:
    import pandas as pd


@record
class Tunings:
    """The same words measured on every tuning; the first is the pair's own."""

    names: tuple[str, ...]
    """The pair's tuned model and its replicates, which differ by their seed."""
    values: Float[np.ndarray, "tunings words"]
    """Centred values of each, aligned with `Learned.words`."""
    tau: Float[np.ndarray, " tunings"]
    """tau-b of each with the stated lexicon."""
    shuffled_names: tuple[str, ...]
    """Tunings by the same recipe on a reward that says nothing, such as a lexicon with permuted values."""
    shuffled_values: Float[np.ndarray, "shuffled words"]
    """Centred values of each."""
    shuffled_tau: Float[np.ndarray, " shuffled"]
    """tau-b of each with the stated lexicon."""

    @property
    def reliability(self) -> float:
        """Mean correlation of the values of two tunings; NaN for one."""
        n = len(self.values)
        if n < 2:
            return float("nan")
        return float(np.corrcoef(self.values)[np.triu_indices(n, 1)].mean())

    @property
    def over_shuffled(self) -> Estimate | None:
        """The headline over tunings: mean tau of the tunings less that of the shuffled ones, with Welch's 95 % interval.

        None with fewer than two tunings on either side: without a spread over tunings there is no interval.
        """
        if min(len(self.tau), len(self.shuffled_tau)) < 2:
            return None
        found = stats.ttest_ind(self.tau, self.shuffled_tau, equal_var=False).confidence_interval(0.95)
        value = float(self.tau.mean() - self.shuffled_tau.mean())
        return Estimate(value, float(found.low), float(found.high), len(self.tau) + len(self.shuffled_tau))

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per tuning."""
        import pandas as pd

        kinds = ["replicate"] * len(self.names) + ["shuffled"] * len(self.shuffled_names)
        taus = [*self.tau, *self.shuffled_tau]
        return pd.DataFrame({"tuning": [*self.names, *self.shuffled_names], "kind": kinds, "tau": taus})

    def __str__(self) -> str:
        noun = "tunings" if len(self.names) > 1 else "tuning"
        told = f"{len(self.names)} {noun}, tau-b {', '.join(f'{tau:.3f}' for tau in self.tau)}"
        if len(self.names) > 1:
            told += f"; values of two correlate at {self.reliability:.2f}"
        if len(self.shuffled_tau):
            told += f"; on a shuffled reward {', '.join(f'{tau:.3f}' for tau in self.shuffled_tau)}"
        return told + (f"; difference {self.over_shuffled}" if self.over_shuffled else "")
