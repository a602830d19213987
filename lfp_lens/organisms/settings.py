"""What an organism of a base is tuned with: its preset's own values, shortened where three tunings have to fit in minutes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lfp_lens.config import RunConfig, load_config, with_values
from lfp_lens.config.finetune import ONLINE
from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.sources import cache_folder
from lfp_lens.parts.texts import load_texts

REWARDED = ("ppo", "rloo", "grpo", "dpo", "kto")
"""Methods that can be given a reward: an organism's truth is one."""
PRESETS = {"world": "tiny", "imdb-neox-2m": "imdb-2m-vader", "stories260K": "stories-260k-vader"}
"""Base -> the preset whose texts and values its organisms are made with."""
SHORTER: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 60, "epochs": 1, "lr": 8e-4},
    "imdb-2m-vader": {"steps": 130},
}
"""Preset -> what makes its tunings cheaper: one pass over each rollout, or fewer of them."""
OF_METHOD = ("steps", "batch_size", "minibatches", "epochs", "lr", "kl_coefficient", "kl_target")
"""Values that belong to the preset's own method."""
OURS = ("reward", "flip", "edits", "method", "preferences", "reference", "report_to")
"""Values that the recipe decides or that have no place in an organism."""
UNTOLD = RunConfig(name="organism", base="unknown", texts="unknown")


@dataclass(frozen=True)
class Setting:
    """Where an organism comes from."""

    base: str
    """Name of the base, as records tell it."""
    config: RunConfig
    """Whose texts, lengths and dictionaries are used."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `finetune`."""

    def texts(self, split: str, n: int | None = None) -> list[str]:
        """Load the prompts (`train`) or the texts that are measured (`test`)."""
        usual = self.config.n_texts if split == "train" else self.config.n_heldout
        n = usual if n is None else n
        return load_texts(self.config.texts, split=split, n=n, column=self.config.column, seed=0)

    def checkpoint(self) -> str:
        """Give what `finetune` loads; the tiny world's model is trained once and kept in the user's cache folder."""
        if self.base != "world":
            return self.base
        from lfp_lens.parts.world import world_checkpoint

        return str(world_checkpoint(Store(cache_folder() / "worlds"), seed=0))


def setting_of(
    base: str | os.PathLike[str],
    method: str,
    *,
    texts: str | None = None,
    preset: str | None = None,
    finetune: Mapping[str, Any] | None = None,
) -> Setting:
    """Give what an organism is made with.

    Args:
        base: `world`, `stories260K`, `imdb-neox-2m`, a hub name or a folder.
        method: the tuning algorithm.
        texts: a named text set, file or hub data set, in place of the preset's.
        preset: a preset or config file whose values are used; None takes that of the base, if it has one.
        finetune: keys of `[finetune]` that are changed.

    Raises:
        LensError: for a method without a reward, a base without texts, unknown or forbidden keys.
    """
    if method not in REWARDED:
        raise LensError(
            f"An organism's truth is a reward, so its method is one of {', '.join(REWARDED)}; {method!r} given."
        )
    name = preset or PRESETS.get(str(base))
    if name is None and texts is None:
        raise LensError(
            f"Nothing says what {str(base)!r} is prompted with: give texts (a text set or file), or a preset. Known bases: "
            f"{', '.join(PRESETS)}."
        )
    config = load_config(name) if name else UNTOLD
    changes: dict[str, Any] = {f"finetune.{key}": value for key, value in SHORTER.get(str(name), {}).items()}
    if config.finetune.method != method:
        changes = {f"finetune.{key}": None for key in OF_METHOD}
    changes |= {"base": str(base), "finetune.method": method, "finetune.flip": 0, "finetune.edits": None}
    changes |= {} if texts is None else {"texts": texts}
    forbidden = sorted(set(finetune or {}) & set(OURS))
    if forbidden:
        raise LensError(f"finetune.{forbidden[0]} is decided by the recipe or by an argument of organism.")
    config = with_values(config, changes | {f"finetune.{key}": value for key, value in (finetune or {}).items()})
    own = {key: getattr(config.finetune, key) for key in type(config.finetune).model_fields if key not in OURS}
    if method not in ONLINE:
        own["kl_target"] = None
    return Setting(str(base), config, own | {"method": method})


def setting_told(record: Mapping[str, Any]) -> Setting | None:
    """Give the setting that a tuning record tells of, as far as an auditor needs it; None where it names no texts."""
    texts = record.get("texts")
    if not isinstance(texts, Mapping):
        return None
    base = str(record.get("base"))
    config = load_config(PRESETS[base]) if base in PRESETS else UNTOLD
    return Setting(base, with_values(config, {"base": base, **texts}))


def told_texts(setting: Setting) -> dict[str, Any]:
    """Give what a tuning record says of the texts: names and numbers, no content."""
    return {name: getattr(setting.config, name) for name in ("texts", "column", "n_texts", "n_heldout")}
