"""What `probe` gives: the learned value of every word, how it agrees with stated feedback, and every control."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import (
    Estimate,
    PolarityNull,
    RankAgreement,
    balanced_sign_accuracy,
    discoveries,
    rank_agreement,
)
from lfp_lens.core.stats.wrong import p_of_wrong_sign
from lfp_lens.core.store import Store
from lfp_lens.results import dashboard
from lfp_lens.results.grid import GridCell, grid_frame, verdict
from lfp_lens.results.paper_tables import paper_table
from lfp_lens.results.sweep import OutsideWords, Sweep
from lfp_lens.results.tunings import Tunings
from lfp_lens.results.word_errors import AgainstPermuted, error_frame, frequency_error, mean_error
from lfp_lens.results.word_questions import agreement_by, check_tested, shared_words, wrong_words
from lfp_lens.view import page, plots, word_plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


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
    recipe: Float[np.ndarray, " words"]
    """The mean of `measured` over tunings by the same recipe; NaN for a single checkpoint, which says nothing about it."""
    recipe_low: Float[np.ndarray, " words"]
    """Lower end of its 95 % interval over tunings (variances moderated over words)."""
    recipe_high: Float[np.ndarray, " words"]
    """Upper end of its 95 % interval over tunings."""
    raw: Float[np.ndarray, " words"]
    """The signal before centring, in its own unit (nats for `implicit_reward`)."""
    contexts: Int[np.ndarray, " words"]
    """Contexts each word was measured in."""
    tokens: Int[np.ndarray, " words"]
    """Tokens the word is split into."""
    log_frequency: Float[np.ndarray, " words"]
    """Natural log of the word's occurrences in the measured texts plus one."""
    exposure: Float[np.ndarray, " words"]
    """How often the base is expected to begin the word: its probabilities of the first token, summed over contexts."""
    predicted: Float[np.ndarray, " words"]
    """Held-out probe prediction on SAE features of the tuned model, in the signal's centred unit; NaN without a probe."""
    predicted_low: Float[np.ndarray, " words"]
    """Lower end of its 95 % interval over the word's rows."""
    predicted_high: Float[np.ndarray, " words"]
    """Upper end of its 95 % interval over the word's rows."""
    rescaled: Float[np.ndarray, " words"]
    """The prediction on the lexicon's scale: its 10th and 90th percentile in the training rows go to the lexicon's extremes."""
    p_wrong: Float[np.ndarray, " words"]
    """One-sided p that the word was learned with the sign opposite to the stated one, against the matched neutral words."""
    z: Float[np.ndarray, " words"]
    """What is tested: `measured`, or, with replicates, `recipe` over its standard error. NaN where no sign can be tested."""
    neutral_z: Float[np.ndarray, " neutrals"]
    """The same of the neutral words: the empirical null of every test."""
    neutral_words: tuple[str, ...]
    """The words outside the lexicon that define zero."""
    neutral: Float[np.ndarray, " neutrals"]
    """Their centred values: the empirical null."""
    outside: OutsideWords | None
    """Every other word of the texts; None for `activation_delta`, which only words of triples have."""
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
    """The null: the same signal on the base plus random noise of the tuned change's per-tensor norms; for `reward_head` a random
    head of the same norm; for `activation_delta`, which carries the stated sign by construction, the base's own distances."""
    by_polarity: PolarityNull
    """tau-b with stated values permuted within sign and frequency decile: what polarity alone is worth."""
    difference: Estimate
    """tau(tuned) - tau(twin), bootstrapped over the same lemmas: the headline."""
    baselines: dict[str, RankAgreement]
    """Cheap readings of the same words: `frequency`, `base_log_probability`."""
    grid: tuple[GridCell, ...]
    """Every reading of the models; empty without SAEs and triples."""
    sweep: Sweep | None
    """The implicit reward of the whole vocabulary; None for a reward model, which promotes no words."""
    tunings: Tunings | None
    """Replicates and tunings on a shuffled reward; None for a single checkpoint."""
    split: str
    """`lemma` or, on request only, `row`: a row split leaks words and is stamped."""
    n_triples: int
    """Triples the probes were fitted on; 0 without."""

    @property
    def is_tested(self) -> bool:
        """True if the signal's sign can be tested; `activation_delta` carries the stated sign by construction."""
        return bool(np.isfinite(self.p_wrong).all())

    @property
    def has_replicates(self) -> bool:
        """True if other seeds of the same tuning were measured too."""
        return bool(np.isfinite(self.recipe).all())

    @property
    def between_tunings(self) -> str:
        """What is known of other tunings by the same recipe; `unknown` for a single checkpoint."""
        if self.tunings is None:
            return "unknown: one checkpoint"
        return str(self.tunings) if len(self.tunings.names) > 1 else f"unknown: {self.tunings}"

    def wrong(
        self, *, fdr: float = 0.1, kind: str = "flipped", against: str | Mapping[str, float] = "stated"
    ) -> "pd.DataFrame":
        """List the words learned otherwise than stated, most certain first, false discovery rate controlled.

        Args:
            fdr: Benjamini-Hochberg, over all words tested.
            kind: `flipped`, learned with the opposite sign, tested against the matched neutral words; `muted` or `inflated`,
                more weakly or more strongly than words rated alike (`core.stats.wrong`), without those flipped.
            against: `stated`, or another lexicon (word -> value): its words that were measured are tested.

        An empty list means that none is certain, not that all are right.

        Raises:
            GateError: for a signal that carries the stated sign by construction, fewer than 3 words shared with a lexicon, or
                too few words of a polarity to say what strength is usual.
        """
        return wrong_words(self, fdr=fdr, kind=kind, against=against)

    def unlearned(self) -> "pd.DataFrame":
        """List the words whose value lies inside the central 80 % of neutral words: no sign of feedback."""
        check_tested(self)
        low, high = np.quantile(self.neutral_z, (0.1, 0.9))
        return self.to_frame()[(self.z > low) & (self.z < high)].reset_index(drop=True)

    def by(self, name: str, *, bins: int = 4, seed: int = 0) -> "pd.DataFrame":
        """Give tau-b apart for words of few and of many tokens, of low and of high exposure or frequency.

        Args:
            name: `tokens` (1, 2, 3 and more), `exposure` or `log_frequency` (each in `bins` parts of equal size).
            bins: how many parts.
            seed: of the intervals.

        Raises:
            LensError: for another name, or `exposure` of a reward model.
        """
        return agreement_by(self, name, bins=bins, seed=seed)

    def agreement(self, lexicon: Mapping[str, float], *, seed: int = 0) -> RankAgreement:
        """Give tau-b of `measured` with any other lexicon, over the words it shares with this result."""
        rows, given = shared_words(self, lexicon)
        return rank_agreement(self.measured[rows], given, np.array(self.lemma)[rows], seed=seed)

    def sign_accuracy(self, lexicon: Mapping[str, float], *, seed: int = 0) -> Estimate:
        """Give the balanced sign accuracy against any other lexicon."""
        rows, given = shared_words(self, lexicon)
        return balanced_sign_accuracy(self.measured[rows], given, np.array(self.lemma)[rows], seed=seed)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per word."""
        import pandas as pd

        names = ("lemma", "stated", "measured", "measured_low", "measured_high", "recipe", "recipe_low", "recipe_high", "raw",
                 "predicted", "predicted_low", "predicted_high", "rescaled", "p_wrong", "contexts", "tokens", "log_frequency",
                 "exposure")  # fmt: skip
        return pd.DataFrame({"word": self.words, **{name: getattr(self, name) for name in names}})

    @property
    def verdict(self) -> str:
        """Say which readings of the tuned model tell learned values of words that they were not fitted to, or that none does."""
        told = verdict(self.grid)
        return told if self.split == "lemma" else f"no evidence, the {self.split} split leaks words and texts; {told}"

    def grid_frame(self) -> "pd.DataFrame":
        """Give one row per reading of the models, controls included."""
        return grid_frame(self.grid)

    def plot(self) -> "go.Figure":
        """Draw learned against stated value, wrongly learned words marked."""
        return plots.learned_words(
            self.to_frame(),
            discoveries(self.p_wrong, 0.1) if self.is_tested else np.zeros(len(self.words), bool),
            self.neutral,
        )

    @property
    def twin_name(self) -> str:
        """Say what the null of this signal is."""
        return {"activation_delta": "base model", "reward_head": "random head"}.get(self.signal, "noise twin")

    def table(self, number: int, *, words: int | Sequence[str] | None = None, seed: int = 0) -> "pd.DataFrame":
        """Give Table 2, 4, 5, 9 or 10 of the paper beside ours, with our n, interval and control in the same row.

        Args:
            number: 2 and 9 are values of single words, 4 rank agreement, 5 sign accuracy, 10 agreement within a polarity.
            words: rows of Tables 2 and 9: None for the paper's own words, some words, or how many to draw from ours.
            seed: of that draw and of the intervals.

        Raises:
            LensError: for another table, or more words than were measured.
        """
        return paper_table(self, number, words=words, seed=seed)

    def frequency_error(self, counts: Mapping[str, int] | None = None, *, seed: int = 0) -> AgainstPermuted:
        """Correlate (Spearman) how often words occur with the error of their held-out prediction: Figure 4 as a number.

        `counts` are occurrences by lower-case word, such as in samples of the tuned model; None takes the measured texts.
        Raises `LensError` without ten predicted words, or where all occur equally often.
        """
        return frequency_error(error_frame(self, counts), seed=seed)

    def plot_frequency_error(self, counts: Mapping[str, int] | None = None, *, seed: int = 0) -> "go.Figure":
        """Draw Figure 4 of the paper: how far each word's prediction is from its stated value, by how often it occurs."""
        frame = error_frame(self, counts)
        told = _or_reason(lambda: f"Spearman {frequency_error(frame, seed=seed)}")
        where = "the measured texts" if counts is None else "the given counts"
        return word_plots.frequency_error(frame, f"Word frequency and error<br>{told}", where)

    def plot_values(self) -> "go.Figure":
        """Draw how stated values and held-out predictions are distributed (the histogram of the paper's repository)."""
        frame = error_frame(self)
        return word_plots.value_histogram(frame["stated"].to_numpy(), frame["rescaled"].to_numpy())

    def plot_errors(self, *, seed: int = 0) -> "go.Figure":
        """Draw predicted minus stated value of every word, with the mean absolute error and its control."""
        frame = error_frame(self)
        told = _or_reason(lambda: f"mean absolute error {mean_error(frame, seed=seed)}")
        errors = (frame["rescaled"] - frame["stated"]).to_numpy()
        return word_plots.error_histogram(errors, f"Error of the held-out prediction<br>{told}")

    def plot_neutral(self) -> "go.Figure":
        """Draw the words that define zero, the null that is fitted to them, and the lexicon's words beside them.

        What is drawn is what is tested: learned values, or, with replicate tunings, their mean over its standard error.
        """
        values, null = (self.z, self.neutral_z) if self.is_tested else (self.measured, self.neutral)
        curve, title = np.zeros((0, 2)), "Words that define zero"
        if len(null):
            points = np.linspace(null.min(), null.max(), 400)
            # For a word stated as positive the p of a wrong sign is the null's chance of a value at most as large.
            below = p_of_wrong_sign(points, np.ones(len(points)), null)
            curve = np.column_stack([points, np.gradient(below, points)])
            low, high = np.interp((0.025, 0.975), below, points)
            title += f"<br>null fitted to n={len(null):,} words: 95 % from {low:.2f} to {high:.2f}"
        unit = (
            "learned value (neutral spreads)" if not self.has_replicates else "mean over tunings / its standard error"
        )
        up, down = values[self.stated > 0], values[self.stated < 0]
        return word_plots.neutral_values(null, curve, title, unit, positive=up, negative=down)

    def dashboard(
        self, path: str | os.PathLike[str], texts: Sequence[str] = (), *, title: str = "Learned feedback"
    ) -> Path:
        """Write one HTML page for an auditor: scatter, searchable word table, wrong words on top, texts coloured by word.

        The page needs no network. It says what these numbers support and what they do not, and ends with a content hash of
        this result, so that a copy can be checked against it.

        Args:
            path: of the page; it is replaced whole.
            texts: shown with every word coloured by its held-out prediction and by its measured value.
            title: of the page.

        Returns:
            The page.

        Raises:
            LensError: if `path` is a folder.
        """
        target = Path(path).expanduser().absolute()
        if target.is_dir():
            raise LensError(
                f"path={str(path)!r} is a folder: name a file in it, such as {str(Path(path) / 'words.html')!r}."
            )
        return Store(target.parent).write_text(target.name, dashboard.render(self, texts, title))

    def _repr_html_(self) -> str:
        facts = {
            "agreement with the stated lexicon": str(self.overall),
            "minus its twin": str(self.difference),
            "within positives / negatives": f"{self.positive or 'too few'} / {self.negative or 'too few'}",
            "balanced sign accuracy": str(self.sign),
            "interval over tunings": self.between_tunings,
            "readings": self.verdict,
            "split": self.split if self.split == "lemma" else f"{self.split} (leaks words: not evidence)",
        }
        card = page.card(f"Learned feedback by {self.signal}", facts)
        return card + (page.table(self.wrong(), "Learned with the wrong sign") if self.is_tested else "")


def _or_reason(number: Callable[[], str]) -> str:
    """Give a number for the title of a figure, or, in its place, why there is none."""
    try:
        return number()
    except LensError as error:
        return str(error)
