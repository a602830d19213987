"""From what a model predicts under an edit to what the edit did: changes per token, shares of the gain, their intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lfp_lens.core.stats import Estimate
from lfp_lens.parts.teacher_forced import Reading as Seen
from lfp_lens.results.ablate_readings import RESTORED, Reading

DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Scale:
    """What changes are measured against: the untouched models on the same texts, and what each text earned."""

    tokens: Float[np.ndarray, " texts"]
    """Tokens of each text."""
    predicted: Float[np.ndarray, " texts"]
    """Tokens of each text that log p is summed over: those of the completion."""
    rewards: Float[np.ndarray, " texts"]
    """Reward of each text."""
    tuned: Seen
    """What the tuned model predicts."""
    base: Seen | None
    """What the base predicts; None without one."""
    seed: int
    """Of every bootstrap."""

    def reading(self, what: str, mode: str, scale: float, n_features: int, seen: Seen, *, of: str = "tuned") -> Reading:
        """Give what an edit did, from what was seen under it; `of` is whose model was edited."""
        clean = self.tuned if of == "tuned" else self.base
        assert clean is not None
        shared = None
        if self.base is not None and (of == "tuned" or what == RESTORED):
            moved = seen.valence - clean.valence
            shared = share(moved if of == "base" else -moved, self.tuned.valence - self.base.valence, seed=self.seed)
        change = seen.log_p - clean.log_p
        return Reading(
            what=what, mode=mode, scale=scale, n_features=n_features,
            valence=per_token(seen.valence - clean.valence, self.tokens, seed=self.seed), share=shared,
            implicit_reward=per_token(change, self.predicted, seed=self.seed),
            implicit_slope=slope(change, self.rewards, seed=self.seed),
            kl=per_token(seen.kl, self.tokens, seed=self.seed),
            perplexity=float(np.exp(-seen.log_p.sum() / self.predicted.sum())),
        )  # fmt: skip


def per_token(sums: np.ndarray, tokens: np.ndarray, *, seed: int) -> Estimate:
    """Give a sum per token with its interval; texts are resampled."""
    counts = _counts(len(tokens), seed)
    low, high = np.quantile(counts @ sums / (counts @ tokens), (0.025, 0.975))
    return Estimate(float(sums.sum() / tokens.sum()), float(low), float(high), len(tokens))


def share(part: np.ndarray, whole: np.ndarray, *, seed: int) -> Estimate | None:
    """Give sum(part) / sum(whole), texts or prompts resampled; None where the whole is not above 0 for certain."""
    counts = _counts(len(part), seed)
    parts, wholes = counts @ part, counts @ whole
    if np.quantile(wholes, 0.025) <= 0:
        return None
    low, high = np.quantile(parts / wholes, (0.025, 0.975))
    return Estimate(float(part.sum() / whole.sum()), float(low), float(high), len(part))


def slope(values: np.ndarray, rewards: np.ndarray, *, seed: int) -> Estimate | None:
    """Give the least-squares slope of values on rewards, texts resampled; None where rewards hardly differ."""
    if len(rewards) < 8 or np.ptp(rewards) == 0:
        return None
    counts = np.concatenate([np.ones((1, len(rewards))), _counts(len(rewards), seed)])
    n = counts.sum(1)
    x, y = counts @ rewards / n, counts @ values / n
    spread = counts @ rewards**2 / n - x**2
    found = np.full(len(counts), np.nan)
    np.divide(counts @ (rewards * values) / n - x * y, spread, out=found, where=spread > 1e-12)
    low, high = np.nanquantile(found[1:], (0.025, 0.975))
    return Estimate(float(found[0]), float(low), float(high), len(rewards))


def _counts(n: int, seed: int) -> np.ndarray:
    """Give how often each text is drawn, `[draws, texts]`."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
