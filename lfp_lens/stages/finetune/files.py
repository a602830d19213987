"""Where a tuning's files lie: its place in the cache, the checkpoint, and what a tracker wrote."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import code_fingerprint
from lfp_lens.core.work import is_one_of_many
from lfp_lens.parts.adapters import save_adapter
from lfp_lens.parts.checkpoints import TUNING_FILE
from lfp_lens.parts.sources import cache_folder
from lfp_lens.parts.speed import quiet_transformers

TRACKER_FOLDERS = ("runs", "lfp_lens")
"""Where trackers that keep files keep them: TRL's trainers, and our own loop."""


def own_folder(inputs: Mapping[str, Any]) -> Path:
    """Give a place in the user's cache folder, the same for the same inputs and code.

    It is a new one where a reward has no stable content to tell.
    """
    given = {name: value for name, value in inputs.items() if name != "store"}
    try:
        return cache_folder() / f"finetune-{fingerprint({'code': code_fingerprint('finetune'), 'inputs': given})}"
    except LensError:
        if is_one_of_many():
            raise  # the processes could not agree on a folder
        return cache_folder() / f"finetune-{uuid.uuid4().hex[:16]}"


def save_checkpoint(model: Any, tokens: Any, place: Path, record: dict[str, Any], base: Any) -> None:
    """Write the tuned model or its adapter, the tokenizer and the tuning record."""
    quiet_transformers()
    if hasattr(model, "peft_config"):
        save_adapter(model, place, str(base) if isinstance(base, (str, Path)) else None)
    else:
        model.save_pretrained(place)
    tokens.save_pretrained(place)
    (place / TUNING_FILE).write_text(json.dumps(record), encoding="utf-8")


def keep_trackers(work: Path, place: Path) -> None:
    """Move what a tracker wrote to files beside the checkpoint: the work folder goes."""
    for name in TRACKER_FOLDERS:
        if (work / name).is_dir():
            shutil.move(work / name, place / "trackers" / name)
