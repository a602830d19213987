"""What `probe` gives on preference tasks: how well features tell the preferred pole, beside all that tells it without them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.results.contrast import MEMBERS
from lfp_lens.results.published import MODELS, TABLE_3
from lfp_lens.view import page, preference_plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

NAMES = {
    ("none", "length"): "length", ("none", "bag_of_words"): "word counts", ("base", "sae"): "the base model's features",
    ("base", "raw"): "the base model's activations", ("base", "random_sae"): "random features of the base model",
    ("base", "embedding"): "token embeddings", ("base", "log_probability"): "the base model's log-probability",
}  # fmt: skip
"""(side, input) -> what a verdict calls it; these are the readings that know nothing of the tuning."""


@record
class PreferenceCell:
    """One classifier: what it read, what it was to tell apart, and how it did on prompt groups it never saw."""

    side: str
    """`tuned`, `base`, `difference` (tuned minus base), `noise` (noise twin minus base) or `none` (no model at all)."""
    input: str
    """`sae` features, `raw` activations, `random_sae` features, `embedding`, `log_probability`, `implicit_reward`, `length`
    (words and characters) or `bag_of_words`."""
    target: str
    """`preference` (positive against negative member), `shuffled` (the same with poles swapped at random, item by item) or
    `original` (original against rewritten texts: the nuisance probe)."""
    accuracy: Estimate
    """Share told apart, averaged over prompt groups, which n counts (0.5 is chance)."""
    auc: Estimate
    """Area under the ROC curve of the held-out log-odds; its n counts texts, its interval resamples prompt groups."""
    gap: Estimate | None
    """Accuracy of the probe on tuned SAE features minus this one's, paired over prompt groups (for `shuffled`: its
    selectivity); None for `original`."""
    order: Estimate | None
    """Share of items whose positive member it scores above the negative one: what accuracy leaves of it where items differ
    from one another more than their members do. For `preference` only."""
    transfer: Estimate | None
    """Share of items whose original texts it orders as they were preferred, though fitted on rewrites only; else None."""


@record
class LearnedPreference:
    """How well features of the tuned model tell the positive from the negative member, against every cheap way to tell.

    A probe that tells the poles apart shows that they differ, not that feedback taught the difference, and not that the
    model uses it. So the headline is tuned minus base, and `verdict` names whatever does as well without the tuning.
    """

    task: str
    """The preference task."""
    rewriter: str
    """Who wrote all three members."""
    is_swapped: bool
    """True where the feedback preferred the toxic text, so that the poles are swapped."""
    sites: tuple[str, ...]
    """Sites whose SAEs passed their gates on both sides; the columns of every reading, in this order."""
    cells: tuple[PreferenceCell, ...]
    """Every classifier that was fitted, all on the same folds; `cell` finds one."""
    difference: Estimate
    """Accuracy on tuned minus accuracy on base SAE features, paired over prompt groups: the headline."""
    placed: dict[str, Estimate]
    """Member -> its mean predicted probability of being positive by the probe on tuned SAE features, held out; the neutral
    member and both original texts, which the probe was not fitted on, among them."""
    preferred: Estimate
    """Share of items whose positive member has the higher implicit reward per token. No label and no fit enters. Half is not
    chance: any change of a model prefers some words, so compare it with `preferred_noise`."""
    preferred_original: Estimate
    """The same for the original texts: chosen above rejected."""
    preferred_noise: Float[np.ndarray, " twins"]
    """`preferred` under each of several noise twins, the base plus random noise of the tuned change's per-tensor norms."""
    preferred_original_noise: Float[np.ndarray, " twins"]
    """`preferred_original` under the same."""
    probability: Float[np.ndarray, "items members"]
    """Held-out probability of being positive: positive, neutral, negative member."""
    implicit_reward: Float[np.ndarray, "items members"]
    """Mean over the continuation's tokens of log p_tuned - log p_base, in nats per token."""
    words: Int[np.ndarray, "items members"]
    """Length of each continuation in words."""
    components: Float[np.ndarray, "items members 2"]
    """The two first principal components of the probe's inputs (Figure 5); fitted on positive and negative members."""
    explained: Float[np.ndarray, " 2"]
    """Share of variance of each component."""
    weights: Float[np.ndarray, "folds features"]
    """Weight of each tuned SAE feature in each fold's probe: log-odds per standard deviation of the feature."""
    feature_site: Int[np.ndarray, " features"]
    """Index into `sites` of each feature."""
    feature_index: Int[np.ndarray, " features"]
    """Its index in that site's SAE."""
    source: Int[np.ndarray, " items"]
    """Row of the input that each item comes from."""
    group: tuple[str, ...]
    """Its prompt group: the unit of every split and interval."""
    dropped: dict[str, int]
    """Why items of the triples were left out -> how many."""
    cut: int
    """Texts that were longer than `max_tokens`, of which a part was read (a prompt's end, a continuation's beginning)."""
    folds: int
    """Folds of the cross-validation."""

    def __len__(self) -> int:
        return len(self.source)

    def cell(self, side: str, input: str, target: str = "preference") -> PreferenceCell:
        """Give one classifier. Raises `LensError` with what there is if it was not fitted."""
        have = {(one.side, one.input, one.target): one for one in self.cells}
        if (side, input, target) not in have:
            raise unknown("classifier", f"{side} {input} {target}", [" ".join(key) for key in have])
        return have[side, input, target]

    @property
    def accuracy(self) -> Estimate:
        """Accuracy of the probe on tuned SAE features."""
        return self.cell("tuned", "sae").accuracy

    @property
    def selectivity(self) -> Estimate:
        """Its accuracy minus that of the same probe fitted and scored on shuffled poles, paired over prompt groups."""
        gap = self.cell("tuned", "sae", "shuffled").gap
        assert gap is not None
        return gap

    @property
    def matched_by(self) -> tuple[str, ...]:
        """Name the readings without tuned activations that tell the poles as well as the tuned SAE features do.

        As well means: inside or above the interval of the tuned probe's accuracy, or not certainly below it when compared
        on the same prompt groups (that interval is empty where the probe makes no mistake).
        """
        return tuple(
            name
            for key, name in NAMES.items()
            for one in self.cells
            if (one.side, one.input) == key and one.target == "preference" and one.gap is not None
            and (one.accuracy.value >= self.accuracy.low or one.gap.low <= 0)
        )  # fmt: skip

    @property
    def is_found(self) -> bool:
        """True if the probe is certainly above chance and above shuffled poles."""
        return self.accuracy.low > 0.5 and self.selectivity.low > 0

    @property
    def is_style(self) -> bool:
        """True if something without tuned activations tells the poles as well."""
        return bool(self.matched_by)

    @property
    def verdict(self) -> str:
        """Say in a sentence what the numbers allow."""
        if not self.is_found:
            return (
                f"Nothing was found: accuracy {self.accuracy}; above shuffled poles by {self.selectivity}."
            )  # fmt: skip
        if self.is_style:
            return (
                f"What the probe reads is told as well by {_listed(self.matched_by)}: the task is style, no evidence of learned "
                "feedback."
            )
        return (
            f"Features of the tuned model tell the poles better than all that knows nothing of the tuning, by {self.difference} "
            "over the base model's. That the model uses them is not shown."
        )

    def top_features(self, k: int = 20) -> "pd.DataFrame":
        """List the k features with the largest weight, by size, with how far the folds agree on its sign.

        `sign_agreement` is the share of folds with the mean's sign. Folds share most of their rows, so 1 is no proof.
        Raises `LensError` for k below 1.
        """
        import pandas as pd

        if k < 1:
            raise LensError(f"k must be at least 1; {k} given.")
        mean = self.weights.mean(axis=0)
        order = np.argsort(-np.abs(mean), kind="stable")[:k]
        agreement = (np.sign(self.weights) == np.sign(mean)).mean(axis=0)
        return pd.DataFrame({
            "site": [self.sites[at] for at in self.feature_site[order]], "feature": self.feature_index[order],
            "weight": mean[order], "low": self.weights.min(axis=0)[order], "high": self.weights.max(axis=0)[order],
            "sign_agreement": agreement[order],
        })  # fmt: skip

    def table_3(self) -> "pd.DataFrame":
        """Set the paper's Table 3 beside ours: accuracy in percent, with what the paper did not measure.

        The published probe told one author's texts from another's at another length, rows of one item on both sides of the
        split, padding averaged in. Ours are rewrites by one hand at matched length, split by prompt.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = [
            {"task": task, "reading": "tuned SAE features, as published"} | numbers for task, numbers in TABLE_3.items()
        ]
        mine = {("tuned", "sae"): "tuned SAE features", **NAMES}
        for key, name in mine.items():
            for one in self.cells:
                if (one.side, one.input) == key and one.target == "preference":
                    found = one.accuracy
                    ours = {
                        "this run": 100 * found.value,
                        "low": 100 * found.low,
                        "high": 100 * found.high,
                        "n": found.n,
                    }
                    rows.append({"task": self.task, "reading": name} | ours)
        return pd.DataFrame(rows, columns=["task", "reading", *MODELS, "this run", "low", "high", "n"])

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per item: where each member fell, its implicit reward and its length."""
        import pandas as pd

        columns: dict[str, Any] = {"source": self.source, "group": self.group}
        for name in ("probability", "implicit_reward", "words"):
            columns |= {f"{name}_{member}": getattr(self, name)[:, at] for at, member in enumerate(MEMBERS)}
        return pd.DataFrame(columns)

    def grid_frame(self) -> "pd.DataFrame":
        """Give one row per classifier, controls included."""
        import pandas as pd

        nan = float("nan")
        rows = [
            {"side": one.side, "input": one.input, "target": one.target, "accuracy": one.accuracy.value,
             "low": one.accuracy.low, "high": one.accuracy.high, "n": one.accuracy.n, "auc": one.auc.value,
             "auc_low": one.auc.low, "auc_high": one.auc.high}
            | {f"{name}{end}": getattr(part, end[1:] or "value") if part else nan
               for name, part in (("gap", one.gap), ("order", one.order), ("transfer", one.transfer))
               for end in ("", "_low", "_high")}
            for one in self.cells
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def plot(self) -> "go.Figure":
        """Draw the accuracy of every classifier with its interval."""
        return preference_plots.accuracies(self.grid_frame())

    def plot_pca(self, by: str = "label") -> "go.Figure":
        """Draw the probe's inputs on their first two components (Figure 5), coloured by `label` or by `length` in words.

        If length follows the first component as well as the label does, what separates the members is length.
        Raises `LensError` for another `by`.
        """
        if by not in ("label", "length"):
            raise unknown("colour of the components", by, ("label", "length"))
        return preference_plots.components(self.components, self.explained, self.words, by)

    def _repr_html_(self) -> str:
        facts = {
            "verdict": self.verdict, "accuracy on tuned SAE features": str(self.accuracy),
            "tuned minus base": str(self.difference), "minus shuffled poles": str(self.selectivity),
            "neutral members fall at": str(self.placed["neutral"]),
            "positive member has the higher implicit reward": _beside(self.preferred, self.preferred_noise),
            "chosen original has the higher implicit reward": _beside(self.preferred_original, self.preferred_original_noise),
            "task, rewriter": f"{self.task}, {self.rewriter}{' (poles swapped)' if self.is_swapped else ''}",
            "items, prompt groups, folds": f"{len(self)}, {len(set(self.group))}, {self.folds}",
        }  # fmt: skip
        shown = self.grid_frame()[
            ["side", "input", "target", "accuracy", "low", "high", "auc", "gap", "order", "transfer"]
        ]
        return page.card("Learned preference", facts) + page.table(shown, "Every classifier, same folds")


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _beside(found: Estimate, noise: np.ndarray) -> str:
    return f"{found}; {len(noise)} noise twins {noise.min():.3f} to {noise.max():.3f}"
