"""What the stated lexicon does not mention: every token of the vocabulary, and every other word of the texts.

So nothing that the model learned to like or to avoid stays unseen.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.records import record

if TYPE_CHECKING:
    import pandas as pd

MIN_EXPOSURE = 1.0
"""A token that the base expects less than once in all contexts has no value worth sorting by."""


@record
class Sweep:
    """Every token of the vocabulary over contexts that all tokens share, each weighted by the base's probability of it there."""

    tokens: tuple[str, ...]
    """The token as text, its leading space kept."""
    value: Float[np.ndarray, " vocabulary"]
    """Mean context-centred change of log p from base to tuned where the base would say the token, in nats."""
    error: Float[np.ndarray, " vocabulary"]
    """Its standard error over contexts, in nats."""
    exposure: Float[np.ndarray, " vocabulary"]
    """Sum of the base's probabilities of the token over the contexts: how often it is expected to be said."""
    stated: Float[np.ndarray, " vocabulary"]
    """The lexicon's value of a token that is a whole word; NaN for all others."""
    twin: Float[np.ndarray, " vocabulary"]
    """The same value on the base moved by noise."""
    contexts: Int[np.ndarray, ""]
    """Contexts that all tokens share."""

    def to_frame(self, search: str = "", *, min_exposure: float = MIN_EXPOSURE) -> "pd.DataFrame":
        """Give one row per token that contains `search` (case does not count), the most promoted first."""
        import pandas as pd

        names = ("value", "error", "exposure", "stated", "twin")
        frame = pd.DataFrame({"token": self.tokens, **{name: getattr(self, name) for name in names}})
        kept = np.array([search.lower() in token.lower() for token in self.tokens], bool) & (
            self.exposure >= min_exposure
        )
        return frame[kept].sort_values("value", ascending=False, ignore_index=True)

    def surprising(self, k: int = 20, *, min_exposure: float = MIN_EXPOSURE) -> "pd.DataFrame":
        """Give the tokens that the stated lexicon says nothing about and whose value is largest, up or down.

        Largest beside its own error and beside the spread of the noise twin, so that a rare token has to move further.
        """
        frame = self.to_frame(min_exposure=min_exposure)
        frame = frame[frame["stated"].isna()].assign(
            z=lambda rows: rows["value"] / np.hypot(rows["error"], float(np.std(frame["twin"])) or 1.0)
        )
        return frame.reindex(frame["z"].abs().sort_values(ascending=False).index).head(k).reset_index(drop=True)


@record
class OutsideWords:
    """Words outside the stated lexicon, measured in their own contexts as the lexicon's are."""

    words: tuple[str, ...]
    """Words that occur often enough, lower-cased; function words are left out."""
    measured: Float[np.ndarray, " words"]
    """The signal, centred and scaled as `Learned.measured`."""
    low: Float[np.ndarray, " words"]
    """Lower end of the 95 % interval over contexts."""
    high: Float[np.ndarray, " words"]
    """Upper end of the 95 % interval over contexts."""
    contexts: Int[np.ndarray, " words"]
    """Contexts each word was measured in."""
    tokens: Int[np.ndarray, " words"]
    """Tokens the word is split into."""

    def to_frame(self, search: str = "") -> "pd.DataFrame":
        """Give one row per word that contains `search` (case does not count), the most promoted first."""
        import pandas as pd

        names = ("measured", "low", "high", "contexts", "tokens")
        frame = pd.DataFrame({"word": self.words, **{name: getattr(self, name) for name in names}})
        kept = [search.lower() in word for word in self.words]
        return frame[kept].sort_values("measured", ascending=False, ignore_index=True)

    def surprising(self, k: int = 20) -> "pd.DataFrame":
        """Give the words that moved furthest, up or down: no lexicon value, a large learned one."""
        frame = self.to_frame()
        order = frame["measured"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].head(k).reset_index(drop=True)
