"""What `finetune` gives: the tuned checkpoint, its learning curve, and the truth about the run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@record
class Tuning:
    """A tuned checkpoint and what the tuning did, measured on held-out prompts.

    It does not show what was learned: only that the reward rose, by how much, and at what cost in KL.
    """

    path: Path
    """Folder of the tuned checkpoint (safetensors and tokenizer)."""
    base: str
    """Name or path of the model the tuning started from."""
    method: str
    """`ppo` and, later, its siblings."""
    reward: dict[str, Any]
    """The reward specification: its name and parameters. Planted edits are not here but in `key`."""
    key: dict[str, float]
    """Word -> value of every lexicon entry that was planted against the stated lexicon; empty when nothing was."""
    parameters: dict[str, Any]
    """Every hyperparameter of the run, the seed included."""
    gain: Estimate
    """Reward of the tuned model minus reward of the base on the same held-out prompts, paired."""
    reward_base: float
    """Mean reward of the base model's completions of the held-out prompts."""
    reward_tuned: float
    """Mean reward of the tuned model's completions of the held-out prompts."""
    kl_nats: float
    """KL(tuned || base) per completion, in nats, on held-out prompts."""
    kl_per_token: float
    """The same per generated token."""
    distinct2_base: float
    """Share of bigrams that are distinct in the base model's completions."""
    distinct2_tuned: float
    """The same in the tuned model's completions."""
    length_base: float
    """Mean tokens per completion of the base model, up to and including EOS."""
    length_tuned: float
    """The same for the tuned model."""
    curve: dict[str, np.ndarray]
    """Learning curve, one value per step: `step`, `reward`, `kl_nats`, `entropy_nats`, `length`, `distinct2`, `policy_loss`,
    `value_loss`."""
    samples: tuple[tuple[str, str, str], ...]
    """A few (prompt, base completion, tuned completion)."""
    verdict: str
    """`learned`, `nothing was learned` or `the policy collapsed` (DESIGN.md section 6, rule 10)."""
    reasons: tuple[str, ...]
    """Why the verdict is what it is, with the numbers."""

    @property
    def is_learned(self) -> bool:
        """True if the reward rose for certain and the policy did not collapse."""
        return self.verdict == "learned"

    def to_frame(self) -> "pd.DataFrame":
        """Give the learning curve, one row per step."""
        import pandas as pd

        return pd.DataFrame(self.curve)

    def plot(self) -> "go.Figure":
        """Draw reward and KL over the steps."""
        return plots.learning_curve(self.curve, self.reward_base)

    def _repr_html_(self) -> str:
        facts = {
            "verdict": "; ".join((self.verdict, *self.reasons)),
            "reward gain (held-out prompts, paired)": str(self.gain),
            "reward base / tuned": f"{self.reward_base:.3f} / {self.reward_tuned:.3f}",
            "KL to base": f"{self.kl_nats:.2f} nats per completion, {self.kl_per_token:.3f} per token",
            "distinct-2 base / tuned": f"{self.distinct2_base:.2f} / {self.distinct2_tuned:.2f}",
            "length base / tuned": f"{self.length_base:.1f} / {self.length_tuned:.1f} tokens",
            "checkpoint": str(self.path),
        }
        return page.card(f"Tuning by {self.method}", facts)
