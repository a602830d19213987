"""What `finetune` gives: the tuned checkpoint, its learning curve, and the truth about the run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@record
class Behaviour:
    """How one model writes: completions sampled from the same held-out prompts with the same seed."""

    n: int
    """Completions."""
    reward: float | None
    """Their mean reward; None where the tuning had no reward."""
    entropy_nats: float
    """Entropy per token, in nats, estimated by -log p of the model's own samples."""
    length: float
    """Mean tokens per completion, up to and including EOS."""
    ended: float
    """Share of completions that the model ended itself, by EOS."""
    distinct1: float
    """Distinct tokens divided by tokens, over all completions."""
    distinct2: float
    """Distinct bigrams divided by bigrams."""


@record
class Tuning:
    """A tuned checkpoint and what the tuning did, measured on held-out prompts.

    It does not show what was learned: only that the reward (or the fit to the preferences) rose, by how much, and at what
    cost in KL. What the method has no use for is None.
    """

    path: Path
    """Folder of the tuned checkpoint (safetensors and tokenizer); of the adapter, if LoRA was used."""
    base: str
    """Name or path of the model the tuning started from."""
    method: str
    """`ppo`, `rloo`, `grpo`, `dpo`, `kto`, `sft` or `reward_model`."""
    reward: dict[str, Any]
    """The reward specification: its name and parameters; empty without one. Planted edits are not here but in `key`."""
    key: dict[str, float]
    """Word -> value of every lexicon entry that was planted against the stated lexicon; empty when nothing was."""
    parameters: dict[str, Any]
    """Every hyperparameter of the run as it was used, those of the method and the seed included."""
    data: dict[str, int]
    """What it was trained and measured on, and what was cut or dropped, each with its count."""
    gain: Estimate | None
    """Reward of the tuned model minus reward of the base on the same held-out prompts, paired; None without a reward."""
    accuracy: Estimate | None
    """Share of held-out pairs that the learned reward orders right: the implicit reward log p_tuned - log p_base of the
    completion, or the scalar head's."""
    accuracy_base: Estimate | None
    """Share that the base model's own log-likelihood orders right: what was there before."""
    accuracy_length: Estimate | None
    """Share in which the chosen text is the longer one (equal lengths count half): what length alone would get."""
    fit: Estimate | None
    """Log-likelihood of held-out texts under the tuned model minus the base, in nats per token, paired (sft)."""
    kl_nats: float | None
    """KL(tuned || base) per completion, in nats, on held-out prompts."""
    kl_per_token: float | None
    """The same per generated token."""
    behaviour_base: Behaviour | None
    """How the base writes."""
    behaviour_tuned: Behaviour | None
    """How the tuned model writes."""
    curve: dict[str, np.ndarray]
    """Learning curve, one value per step, of training data: `step`, and what the method knows of `loss` (ppo: `policy_loss`,
    `value_loss`), `reward`, `kl_nats` per completion, `entropy_nats` per token, `length`, `ended`, `distinct2`, `margin` and
    `accuracy` of pairs, `lr`, `kl_coefficient`."""
    samples: tuple[tuple[str, str, str], ...]
    """A few (prompt, base completion, tuned completion)."""
    verdict: str
    """`learned`, `nothing was learned` or `the policy collapsed` (docs/validity.md, "Did it learn?")."""
    reasons: tuple[str, ...]
    """Why the verdict is what it is, with the numbers."""

    @property
    def is_learned(self) -> bool:
        """True if what the method maximises rose for certain and the policy did not collapse."""
        return self.verdict == "learned"

    @property
    def headline(self) -> tuple[str, Estimate]:
        """Give what the verdict rests on, named: the fit (sft), else the reward gain, else the pair accuracy."""
        named = {
            "log-likelihood gain": self.fit,
            "reward gain": self.gain,
            "pair accuracy": self.accuracy,
        }
        found = next(((name, estimate) for name, estimate in named.items() if estimate is not None), None)
        if found is None:
            raise LensError("This tuning has neither a reward, nor pairs, nor texts to measure it by.")
        return found

    def to_frame(self) -> "pd.DataFrame":
        """Give the learning curve, one row per step."""
        import pandas as pd

        return pd.DataFrame(self.curve)

    def plot(self) -> "go.Figure":
        """Draw the reward (else the accuracy, else the loss) and the KL (else the margin or entropy) over the steps."""
        return plots.learning_curve(self.curve, self.behaviour_base.reward if self.behaviour_base else None)

    def facts(self) -> dict[str, str]:
        """Give what a reader asks first, named, as text; what the method does not have is left out."""
        base, tuned = self.behaviour_base, self.behaviour_tuned
        found = {"verdict": "; ".join((self.verdict, *self.reasons))}
        if self.gain is not None:
            found["reward gain (held-out prompts, paired)"] = str(self.gain)
        if self.accuracy is not None:
            found["held-out pairs ordered right"] = str(self.accuracy)
            found["by the base's likelihood / by length"] = f"{self.accuracy_base} / {self.accuracy_length}"
        if self.fit is not None:
            found["log-likelihood gain, nats per token"] = str(self.fit)
        if base is not None and tuned is not None:
            if base.reward is not None and tuned.reward is not None:
                found["mean reward, base / tuned"] = f"{base.reward:.3f} / {tuned.reward:.3f}"
            found["KL to the base"] = f"{self.kl_nats:.2f} nats per completion, {self.kl_per_token:.3f} per token"
            for name, label, digits in BEHAVIOUR_LABELS:
                found[f"{label}, base / tuned"] = (
                    f"{getattr(base, name):.{digits}f} / {getattr(tuned, name):.{digits}f}"
                )
        found["data"] = ", ".join(f"{name} {count}" for name, count in self.data.items())
        return found

    def _repr_html_(self) -> str:
        return page.card(f"Tuning by {self.method}", self.facts() | {"checkpoint": str(self.path)})


BEHAVIOUR_LABELS = (
    ("entropy_nats", "entropy per token (nats)", 2),
    ("length", "tokens per completion", 1),
    ("ended", "share ended by EOS", 2),
    ("distinct1", "distinct tokens", 2),
    ("distinct2", "distinct bigrams", 2),
)
