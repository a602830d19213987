"""What `probe` gives: the learned value of every word, how it agrees with stated feedback, and every control."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import GateError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate, RankAgreement, balanced_sign_accuracy, discoveries, rank_agreement
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@record
class GridCell:
    """One probe: what it read, on which side, and how its held-out predictions agree with the stated values."""

    side: str
    """`tuned` or `base`."""
    input: str
    """`sae` features, `raw` activations, `random_sae` features, `random` vectors per word, or `embedding`."""
    target: str
    """What it was fitted to: the signal, or `control_task` (a random value per word, the same marginal)."""
    agreement: RankAgreement
    """tau-b of held-out predictions with the stated lexicon, over words."""
    sign: Estimate
    """Balanced sign accuracy of the same."""


@record
class Learned:
    """Learned feedback, word by word.

    `measured` is the signal read directly from the models; `predicted` is a probe's output on words it never saw.
    A value of one checkpoint says nothing about another tuning by the same recipe: that takes replicate seeds.
    """

    words: tuple[str, ...]
    """Words of the stated lexicon that occur often enough, lower-cased."""
    stated: Float[np.ndarray, " words"]
    """Their value in the stated lexicon (VADER: -4 to 4)."""
    lemma: tuple[str, ...]
    """Their Snowball stem: the group of every split and every interval."""
    measured: Float[np.ndarray, " words"]
    """The signal, centred and scaled by matched words outside the lexicon: 0 is neutral, 1 is one neutral spread."""
    measured_low: Float[np.ndarray, " words"]
    """Lower end of the 95 % interval over contexts (this checkpoint)."""
    measured_high: Float[np.ndarray, " words"]
    """Upper end of the 95 % interval over contexts (this checkpoint)."""
    raw: Float[np.ndarray, " words"]
    """The signal before centring, in its own unit (nats for `implicit_reward`)."""
    contexts: Int[np.ndarray, " words"]
    """Contexts each word was measured in."""
    tokens: Int[np.ndarray, " words"]
    """Tokens the word is split into."""
    log_frequency: Float[np.ndarray, " words"]
    """Natural log of the word's occurrences in the measured texts plus one."""
    predicted: Float[np.ndarray, " words"]
    """Held-out probe prediction on SAE features of the tuned model, in the signal's centred unit; NaN without a probe."""
    p_wrong: Float[np.ndarray, " words"]
    """One-sided p that the word was learned with the sign opposite to the stated one, against the matched neutral words."""
    neutral_words: tuple[str, ...]
    """The words outside the lexicon that define zero."""
    neutral: Float[np.ndarray, " neutrals"]
    """Their centred values: the empirical null."""
    signal: str
    """Which signal was measured."""
    overall: RankAgreement
    """Agreement of `measured` with `stated`."""
    positive: RankAgreement | None
    """The same within positive words; None where fewer than 3 differ."""
    negative: RankAgreement | None
    """The same within negative words."""
    sign: Estimate
    """Balanced sign accuracy of `measured`."""
    twin: RankAgreement
    """The null: the same signal on the base plus random noise of the tuned change's per-tensor norms; for
    `activation_delta`, which carries the stated sign by construction, the same distances on the base itself."""
    shuffled: Estimate
    """Mean and spread of tau-b with stated values permuted over words (within polarity: what polarity alone gives)."""
    difference: Estimate
    """tau(tuned) - tau(twin), bootstrapped over the same lemmas: the headline."""
    baselines: dict[str, RankAgreement]
    """Cheap readings of the same words: `frequency`, `base_log_probability`."""
    grid: tuple[GridCell, ...]
    """Every probe that was fitted."""
    between_tunings: str
    """The interval over tunings; `unknown` for a single checkpoint."""
    split: str
    """`lemma` or, on request only, `row`: a row split leaks words and is stamped."""
    n_triples: int
    """Triples the probes were fitted on."""

    @property
    def is_tested(self) -> bool:
        """True if the signal's sign can be tested; `activation_delta` carries the stated sign by construction."""
        return bool(np.isfinite(self.p_wrong).all())

    def wrong(self, *, fdr: float = 0.1) -> "pd.DataFrame":
        """List the words learned with the wrong sign, most certain first, false discovery rate controlled.

        Each word is tested one-sided against the matched neutral words; Benjamini-Hochberg runs over all words tested.
        An empty list means that none is certain, not that all are right. Raises `GateError` for a signal that carries the
        stated sign by construction.
        """
        self._require_test()
        found = self.to_frame()[discoveries(self.p_wrong, fdr)]
        return found.sort_values("p_wrong", ignore_index=True)

    def unlearned(self) -> "pd.DataFrame":
        """List the words whose value lies inside the central 80 % of neutral words: no sign of feedback."""
        self._require_test()
        low, high = np.quantile(self.neutral, (0.1, 0.9))
        return self.to_frame()[(self.measured > low) & (self.measured < high)].reset_index(drop=True)

    def agreement(self, lexicon: Mapping[str, float], *, seed: int = 0) -> RankAgreement:
        """Give tau-b of `measured` with any other lexicon, over the words it shares with this result."""
        rows = self._shared(lexicon)
        given = np.array([lexicon[self.words[row]] for row in rows])
        return rank_agreement(self.measured[rows], given, np.array(self.lemma)[rows], seed=seed)

    def sign_accuracy(self, lexicon: Mapping[str, float], *, seed: int = 0) -> Estimate:
        """Give the balanced sign accuracy against any other lexicon."""
        rows = self._shared(lexicon)
        given = np.array([lexicon[self.words[row]] for row in rows])
        return balanced_sign_accuracy(self.measured[rows], given, np.array(self.lemma)[rows], seed=seed)

    def _require_test(self) -> None:
        if not self.is_tested:
            raise GateError(
                f"{self.signal} takes its sign from the stated lexicon, so it cannot say which words were learned wrongly: "
                "probe with signal='implicit_reward'."
            )

    def _shared(self, lexicon: Mapping[str, float]) -> Int[np.ndarray, " rows"]:
        rows = np.array([row for row, word in enumerate(self.words) if word in lexicon], dtype=int)
        if len(rows) < 3:
            raise GateError(f"The lexicon shares {len(rows)} words with the {len(self.words)} measured; 3 are needed.")
        return rows

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per word."""
        import pandas as pd

        names = ("lemma", "stated", "measured", "measured_low", "measured_high", "raw", "predicted", "p_wrong",
                 "contexts", "tokens", "log_frequency")  # fmt: skip
        return pd.DataFrame({"word": self.words, **{name: getattr(self, name) for name in names}})

    def grid_frame(self) -> "pd.DataFrame":
        """Give one row per probe, controls included."""
        import pandas as pd

        rows = [
            {"side": cell.side, "input": cell.input, "target": cell.target, "tau": cell.agreement.tau,
             "low": cell.agreement.low, "high": cell.agreement.high, "p_value": cell.agreement.p_value,
             "sign_accuracy": cell.sign.value, "n": cell.agreement.n}
            for cell in self.grid
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def plot(self) -> "go.Figure":
        """Draw learned against stated value, wrongly learned words marked."""
        return plots.learned_words(
            self.to_frame(),
            discoveries(self.p_wrong, 0.1) if self.is_tested else np.zeros(len(self.words), bool),
            self.neutral,
        )

    def _repr_html_(self) -> str:
        facts = {
            "agreement with the stated lexicon": str(self.overall),
            "minus its twin": str(self.difference),
            "within positives / negatives": f"{self.positive or 'too few'} / {self.negative or 'too few'}",
            "balanced sign accuracy": str(self.sign),
            "interval over tunings": self.between_tunings,
            "split": self.split if self.split == "lemma" else f"{self.split} (leaks words: not evidence)",
        }
        card = page.card(f"Learned feedback by {self.signal}", facts)
        return card + (page.table(self.wrong(), "Learned with the wrong sign") if self.is_tested else "")
