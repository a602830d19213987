"""The parts of `Labels` that are numbers: how well explanations hold, whether judges agree, what was paid."""

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate, mean_estimate


@record
class Scores:
    """Scores of one kind, each beside what an explanation of another feature and features that mean nothing would score."""

    kind: str
    """`detection` or `fuzzing` (balanced accuracy, 0.5 is chance) or `simulation` (Pearson correlation, 0 is chance)."""
    own: Float[np.ndarray, " features"]
    """Score of each feature's own explanation; NaN not scored."""
    shuffled: Float[np.ndarray, " features"]
    """Score of another feature's explanation on the same windows: the first control."""
    random: Float[np.ndarray, " random"]
    """Scores of random directions, each explained and scored as a feature is: the second control."""
    n: Int[np.ndarray, " features"]
    """Held-out windows behind each score."""

    @property
    def mean(self) -> Estimate:
        """Mean over the features that were scored, features resampled."""
        return _mean(self.own)

    @property
    def mean_shuffled(self) -> Estimate:
        """Mean with another feature's explanation."""
        return _mean(self.shuffled)

    @property
    def mean_random(self) -> Estimate:
        """Mean of the random directions."""
        return _mean(self.random)

    @property
    def lead(self) -> Estimate:
        """Mean of (own - shuffled), paired by feature: what an explanation says about its feature and no other."""
        return _mean(self.own - self.shuffled)

    def told(self) -> str:
        """Say the mean beside both controls in one line."""
        return f"{self.mean}; shuffled {self.mean_shuffled}; random {self.mean_random}" if self.mean.n else "not scored"


@record
class Agreement:
    """Whether another judgement calls the same features relevant."""

    kind: str
    """`repeat`: the same labeller, other windows; `judge`: another labeller, the same windows."""
    by: str
    """Who judged."""
    is_relevant: Bool[np.ndarray, " features"]
    """What it said of each listed feature; False where it said nothing, and for dead features."""
    is_judged: Bool[np.ndarray, " features"]
    """Where both said something; False for dead features, which nobody is asked about."""
    agreement: float
    """Share of features on which the two agree."""
    kappa: Estimate
    """Cohen's kappa, features resampled; NaN where both gave one class only."""

    def told(self) -> str:
        """Say agreement and kappa in one line."""
        return f"{self.kind} by {self.by}: {self.agreement:.0%} agree, kappa {self.kappa}"


@record
class Bill:
    """What a labeller was asked and paid; all 0 for one that asks nobody."""

    requests: int = 0
    """Requests sent."""
    cached: int = 0
    """Questions answered from replies that were kept."""
    repeated: int = 0
    """Requests sent again without a full reply having arrived (a kill, a stall, a drop): possibly paid twice."""
    unusable: int = 0
    """Replies that were malformed or refused."""
    tokens_in: int = 0
    """Tokens of questions, as the server counted them."""
    tokens_out: int = 0
    """Tokens of answers."""
    usd: float | None = 0.0
    """What the requests of this call cost; None where no price is known."""
    estimate_usd: float | None = 0.0
    """What was estimated before the first request."""
    ledger: str = ""
    """Where every prompt, reply, token count and cost stands, relative to the store or the user's cache folder."""

    def told(self) -> str:
        """Say in one line what was asked and paid."""
        if not self.requests and not self.cached:
            return "nothing: the labeller asks nobody"
        cost = "no price known" if self.usd is None else f"{self.usd:.2f} USD"
        return (
            f"{self.requests:,} requests ({self.cached:,} answers were kept, {self.repeated:,} requests possibly paid twice, "
            f"{self.unusable:,} unusable replies), {self.tokens_in:,} + {self.tokens_out:,} tokens, {cost}"
        )


def _mean(scores: Float[np.ndarray, " n"]) -> Estimate:
    scored = scores[np.isfinite(scores)]
    if len(scored) > 1:
        return mean_estimate(scored)
    return Estimate(float(scored[0]) if len(scored) else float("nan"), float("nan"), float("nan"), len(scored))
