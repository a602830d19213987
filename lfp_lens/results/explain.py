"""What `explain` gives: an explanation of each feature, whether it serves the task, and how well the explanation holds."""

import os
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results import feature_cards, label_tables
from lfp_lens.results.annotation import Questions, annotation_questions
from lfp_lens.results.explain_scores import Agreement, Bill, Scores
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.train_sae import SAESet
from lfp_lens.view import page, plots
from lfp_lens.view.feature_card import Shown

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KINDS = ("top", "quantile", "silent", "hard negative")
RELIABLE = 0.6
"""Cohen's kappa below which labels of relevance are not reliable."""


@record
class Example:
    """One window of up to 32 tokens of one text, and what a feature does there."""

    tokens: tuple[str, ...]
    """The tokens, as the tokenizer spells them."""
    activations: Float[np.ndarray, " tokens"]
    """The feature's activation at each token, divided by the feature's maximum over all texts."""
    ids: tuple[int, ...] = ()
    """Their ids."""
    kind: str = "top"
    """`top`, `quantile`, `silent` or `hard negative`."""
    marked: tuple[int, ...] = ()
    """Places that are marked, in fuzzing."""

    @property
    def text(self) -> str:
        """The characters of the window."""
        return "".join(self.tokens)

    @property
    def peak(self) -> int:
        """Place of the strongest token."""
        return int(np.argmax(self.activations))


@record
class Explanation:
    """What a labeller says about one feature."""

    description: str
    """What the feature responds to, in words."""
    is_relevant: bool
    """Whether the labeller finds it related to the task."""
    confidence: float
    """How sure the labeller is of that, from 0 to 1; NaN where it does not say."""
    pattern: str = ""
    """What a labeller that predicts by rule predicts by, as JSON; empty for others."""


@record
class Labels:
    """Explanations are hypotheses: trust one only as far as its detection score beats the shuffled one."""

    saes: SAESet
    """The dictionaries the features belong to."""
    site: tuple[str, ...]
    """Site of each feature, of all that were chosen before any was labelled."""
    index: Int[np.ndarray, " features"]
    """Index of each feature."""
    status: tuple[str, ...]
    """`labelled`, `dead` (never fires on the shown texts: not asked about) or `unanswered` (no usable answer came)."""
    description: tuple[str, ...]
    """What the labeller says the feature responds to; empty where it said nothing."""
    is_relevant: Bool[np.ndarray, " features"]
    """Whether the labeller finds the feature related to the task; False where it said nothing."""
    confidence: Float[np.ndarray, " features"]
    """How sure it is of that, from 0 to 1; NaN where it did not say."""
    pattern: tuple[str, ...]
    """The rule of labellers that predict by one, as JSON."""
    scores: tuple[Scores, ...]
    """How well explanations hold on held-out windows: `detection`, `fuzzing`, `simulation`, as far as measured."""
    agreement: tuple[Agreement, ...]
    """Whether the same labeller on other windows, and a second judge, call the same features relevant."""
    examples: tuple[tuple[Example, ...], ...]
    """The windows the labeller saw, by feature: the firing ones, then the silent ones."""
    tokens: tuple[tuple[str, ...], ...]
    """The tokens each feature fires on most."""
    promotes: tuple[tuple[str, ...], ...]
    """The tokens each feature's decoder row makes likelier (logit lens)."""
    suppresses: tuple[tuple[str, ...], ...]
    """The tokens it makes less likely."""
    bill: Bill
    """What was asked and paid."""
    labeller: str
    """Who labelled: `lexicon`, `graph`, `openai:MODEL`, ..."""
    task: str
    """What relevance was judged against."""
    select: str
    """How the features were chosen: `mmcs`, `attribution` or `all`."""
    side: str
    """Whose dictionaries."""
    size: float | None
    """Which size; None is the smallest."""
    skipped: dict[str, str]
    """Site -> why its SAE was not good enough to interpret."""

    @property
    def relevant(self) -> FeatureSet:
        """The features labelled as related to the task: what `ablate` takes."""
        chosen = [(site, int(index)) for site, index, keep in zip(self.site, self.index, self.is_relevant) if keep]
        return FeatureSet(self.saes, tuple(chosen), self.side, self.size)

    @property
    def is_reliable(self) -> bool | None:
        """Whether every measured agreement has a kappa of 0.6 or more; None where none could be measured."""
        kappas = [one.kappa.value for one in self.agreement if np.isfinite(one.kappa.value)]
        return min(kappas) >= RELIABLE if kappas else None

    @property
    def detection(self) -> Float[np.ndarray, " features"]:
        """Balanced accuracy of each explanation at telling held-out windows; 0.5 is chance, NaN not scored."""
        return self.score("detection").own

    @property
    def detection_shuffled(self) -> Float[np.ndarray, " features"]:
        """The same when each feature is scored with another feature's explanation: the control."""
        return self.score("detection").shuffled

    @property
    def n_scored(self) -> Int[np.ndarray, " features"]:
        """Held-out windows behind each detection score."""
        return self.score("detection").n

    def score(self, kind: str) -> Scores:
        """Give the scores of one kind. Raises `LensError` for one that was not measured."""
        for one in self.scores:
            if one.kind == kind:
                return one
        raise LensError(
            f"{kind!r} was not measured; there is {', '.join(one.kind for one in self.scores) or 'nothing'}."
        )

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per feature; where agreement was measured, whether labels of relevance are reliable at all."""
        import pandas as pd

        names = ("site", "index", "status", "description", "is_relevant", "confidence")
        frame = pd.DataFrame({name: getattr(self, name) for name in names})
        if self.is_reliable is not None:
            frame["relevance"] = "reliable" if self.is_reliable else "unreliable"
        for one in self.scores:
            frame[one.kind], frame[f"{one.kind}_shuffled"] = one.own, one.shuffled
        if self.scores:
            frame["n_scored"] = self.scores[0].n
        return frame

    def table1(self, n: int = 10, *, seed: int = 0) -> "pd.DataFrame":
        """Give Table 1 of the paper for this run: n labelled features drawn at random, in layer order, with their scores.

        Args:
            n: how many; the paper prints a choice of its own.
            seed: of the draw.

        Raises:
            LensError: if there are fewer labelled features.
        """
        return label_tables.table1(self, n, seed)

    def table8(self) -> "pd.DataFrame":
        """Give Table 8 of the paper for this run: every chosen feature in layer order, dead and unanswered ones too."""
        return label_tables.table8(self)

    def counts(self, base: "Labels | None" = None) -> "pd.DataFrame":
        """Count relevant among labelled features by site, as appendix B does, with Wilson intervals, in percent.

        Features chosen by a ranking are no random sample of a dictionary: the interval is of the kind of features chosen.

        Args:
            base: labels of the base's dictionaries; adds their counts and the difference.

        Returns:
            One row per site, one over all sites, and the published counts with intervals computed from them.

        Raises:
            LensError: for labels that `minus` refuses.
        """
        return label_tables.counts(self, base)

    def minus(self, base: "Labels") -> Estimate:
        """Give the share of relevant features here minus that in other labels (the base's), with Newcombe's interval.

        Raises `LensError` unless the two differ in side only: one labeller, task and way to choose, two sides of one pair.
        """
        return label_tables.share_gap(self, base)

    def card(self, site: str, index: int) -> Shown:
        """Show one feature: description, scores and controls, top tokens, logit lens, histogram, windows.

        It needs no model. Raises `LensError` for a feature that was not chosen.
        """
        return feature_cards.card(self, site, index)

    def annotation_questions(
        self, folder: str | os.PathLike[str], *, n: int | None = 50, n_windows: int = 5, seed: int = 0
    ) -> Questions:
        """Write multiple-choice questions for people: which of four explanations fits the coloured windows, or none?

        The folder gets one HTML page that is answered offline, Label Studio's import file and config, and the answer
        key, which annotators must not see. The windows are those that the labeller saw.

        Args:
            folder: is made; files of the same names are replaced.
            n: questions at most, each of another feature, drawn at random; None asks about every labelled one.
            n_windows: coloured windows per question, from the strongest to the weakest that are kept.
            seed: of the draw of features, of the other explanations and of their order.

        Returns:
            The questions; `lfp_lens.agreement` takes them and the answers.

        Raises:
            LensError: if there are fewer than four different explanations, or `folder` is a file.

        >>> questions = labels.annotation_questions("check", n=20)  # doctest: +SKIP
        """
        return annotation_questions(self, folder, n=n, n_windows=n_windows, seed=seed)

    def plot(self) -> "go.Figure":
        """Draw detection scores, real and shuffled."""
        nothing = np.full(len(self.index), np.nan)
        found = next(((one.own, one.shuffled) for one in self.scores if one.kind == "detection"), (nothing, nothing))
        return plots.detection(*found)

    def _repr_html_(self) -> str:
        title = (
            f"{int(self.is_relevant.sum())} of {len(self.index)} features related to {self.task!r} by {self.labeller}"
            + (f": unreliable, kappa below {RELIABLE}" if self.is_reliable is False else "")
        )
        return page.table(self.to_frame(), title)
