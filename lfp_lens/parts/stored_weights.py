"""Weights of a checkpoint on disk, read by safetensors one tensor at a time; what holds codes or pickles is refused."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import (
    ADAPTER_FILE,
    WEIGHTS_FILE,
    Adapter,
    adapter_folder,
    first_line,
    read_adapter,
)
from lfp_lens.parts.checkpoints import check_values
from lfp_lens.parts.merging import PREFIX, LowRank
from lfp_lens.parts.sources import model_path
from lfp_lens.parts.weights import Weights, shortened

CONFIG_FILE, WHOLE_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
VALUES = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the precisions that hold values; any other holds codes."""
MASKS = re.compile(r"(?:^|\.)(?:attn|attention|self_attn)\.(?:masked_)?bias$")
BUFFERS = re.compile(r"(?:^|\.)(?:rotary_emb\.\w+|causal_mask|embed_positions)$")
FACTOR = re.compile(r"^(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?$")
NOT_LOW_RANK = (
    "use_dora", "modules_to_save", "layer_replication", "trainable_token_indices", "lora_bias", "target_parameters",
    "use_qalora", "use_bdlora", "arrow_config", "velora_config", "kasa_config", "monteclora_config",
    "alora_invocation_tokens",
)  # fmt: skip
"""Settings of PEFT's LoRA with which the change is more than `scaling B A`."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    path: Path
    """The file."""
    shape: tuple[int, ...]
    """Its shape."""
    precision: str
    """What safetensors calls its numbers: `F32`, `BF16`, `I8`, ..."""


def stored(source: str | Path) -> Weights:
    """Open a checkpoint's weights: a hub name or a folder with config.json and safetensors, one file or shards.

    Raises `LensError` if a file is missing or damaged, or if the weights are quantised.
    """
    name = str(model_path(str(source)))
    config_path = _file(name, CONFIG_FILE)
    if config_path is None:
        if _file(name, ADAPTER_FILE) is not None:
            raise LensError(f"{name} is an adapter: give it as tuned, and the full checkpoint under it as base.")
        raise LensError(
            f"The checkpoint {name!r} cannot be read: it has no {CONFIG_FILE}. Expected a local folder with {CONFIG_FILE} "
            "and safetensors, or a hub name (with network)."
        )
    config = _json(config_path, name)
    check_values(SimpleNamespace(**config), name)
    held = {key: tensor for key, tensor in _headers(_shards(name), name).items() if not _is_buffer(key, tensor.shape)}
    short = shortened(held, name)
    full = {kept: key for key, kept in short.items()}

    def read(wanted: str) -> torch.Tensor:
        # Opened anew each time: the pages of an open file would stay in memory.
        with safe_open(held[full[wanted]].path, framework="pt") as file:
            return file.get_tensor(full[wanted])

    shapes = {kept: held[key].shape for kept, key in full.items()}
    is_tied = config.get("tie_word_embeddings", True) is not False
    files = (config_path, *sorted({tensor.path for tensor in held.values()}))
    return Weights(name, shapes, read, None, is_tied, files)


def stored_on(base: Weights, source: str | Path) -> Weights:
    """Open the weights of a tuned checkpoint: as `stored`, or an adapter over the base, which stays two small factors."""
    name = str(model_path(str(source)))
    folder = adapter_folder(name)
    if folder is None:
        return stored(source)
    adapter = read_adapter(folder, name)
    changes = _low_rank(adapter, base)

    def read(wanted: str) -> torch.Tensor:
        weight = base.read(wanted)
        if wanted not in changes:
            return weight
        one, two, scaling = changes[wanted]
        return (weight.double() + scaling * (two.double() @ one.double())).float()

    files = (*base.content, folder / ADAPTER_FILE, folder / WEIGHTS_FILE)
    return Weights(name, base.shapes, read, changes, base.is_tied, files)


def _file(name: str, file: str) -> Path | None:
    """Give one file of a folder or hub repository (fetched or cached), None if it has none."""
    folder = Path(name)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return None


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LensError(
            f"The checkpoint {name!r} cannot be read: {path.name} is damaged ({first_line(error)})."
        ) from error
    if not isinstance(found, dict):
        raise LensError(f"The checkpoint {name!r} cannot be read: {path.name} is no table of names and values.")
    return found


def _shards(name: str) -> list[Path]:
    """Give the safetensors files of a checkpoint."""
    index = _file(name, INDEX_FILE)
    if index is None:
        whole = _file(name, WHOLE_FILE)
        if whole is None:
            raise LensError(
                f"The checkpoint {name!r} cannot be read: it has neither {WHOLE_FILE} nor {INDEX_FILE}. Pickles are never "
                "loaded; save it with safetensors."
            )
        return [whole]
    held = _json(index, name).get("weight_map")
    names = sorted(set(held.values())) if isinstance(held, dict) and held else []
    if not names or not all(isinstance(one, str) and Path(one).name == one for one in names):
        raise LensError(f"The checkpoint {name!r} cannot be read: {INDEX_FILE} does not name the files beside it.")
    found = {one: _file(name, one) for one in names}
    missing = [one for one, path in found.items() if path is None]
    if missing:
        raise LensError(f"The checkpoint {name!r} is incomplete: {INDEX_FILE} names {missing[0]}, which is not there.")
    return [path for path in found.values() if path is not None]


def _headers(shards: list[Path], name: str) -> dict[str, Stored]:
    """Tell of every tensor where it is, without reading one. Raises `LensError` for weights that are codes."""
    found: dict[str, Stored] = {}
    for path in shards:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  (no mapping)
                    if key in found:
                        raise LensError(
                            f"The checkpoint {name!r} holds {key} in {found[key].path.name} and in {path.name}."
                        )
                    part = file.get_slice(key)
                    found[key] = Stored(path, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise LensError(
                f"The checkpoint {name!r} cannot be read: {path.name} is damaged ({first_line(error)})."
            ) from error
    codes = [
        f"{key} holds {tensor.precision}"
        for key, tensor in sorted(found.items())
        if tensor.precision not in VALUES and not _is_buffer(key, tensor.shape)
    ]
    if codes:
        raise LensError(f"{name} is quantised: {codes[0]}, codes and not values. Load the full-precision checkpoint.")
    return found


def _is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a stored tensor is no weight: a causal mask or a table of rotations that old checkpoints hold."""
    return bool(BUFFERS.search(name)) or (len(shape) in (0, 4) and bool(MASKS.search(name)))


def _low_rank(adapter: Adapter, base: Weights) -> dict[str, LowRank]:
    """Give the change of each weight, in the weight's own orientation. Raises `LensError` for any other adapter."""
    from peft.utils.other import get_pattern_key

    config = adapter.config
    more = [setting for setting in NOT_LOW_RANK if getattr(config, setting, None)]
    kind = getattr(config.peft_type, "value", str(config.peft_type))
    if kind != "LORA" or more or config.bias != "none":
        what = kind if kind != "LORA" else more[0] if more else f"bias={config.bias!r}"
        raise LensError(
            f"The adapter {adapter.name!r} is more than a low-rank change ({what}): its weights have to be merged. Give "
            "diverge the pair that load_pair(base, adapter) gives."
        )
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in adapter.tensors.items():
        match = FACTOR.match(key.removeprefix(PREFIX))
        if match:
            factors.setdefault(match[1], {})[match[2]] = tensor
        elif not _is_copy(key, tensor, base):
            raise LensError(f"The adapter {adapter.name!r} holds {key}, which is no factor of a low-rank change.")
    short = shortened([f"{module}.weight" for module in factors], adapter.name)
    changes = {}
    for module, held in factors.items():
        name = short[f"{module}.weight"]
        if name not in base.shapes or held.keys() != {"A", "B"}:
            fault = f"changes {name}, which {base.name} lacks" if len(held) == 2 else f"lacks a factor of {name}"
            raise LensError(f"The adapter {adapter.name!r} does not fit: it {fault}. Give the base it was trained on.")
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
        rank = held["A"].shape[0]
        scaling = float(alpha) / (rank**0.5 if config.use_rslora else rank)
        changes[name] = _oriented(
            held["A"], held["B"], scaling, base.shapes[name], config.fan_in_fan_out, adapter, name
        )
    return changes


def _oriented(
    one: torch.Tensor,
    two: torch.Tensor,
    scaling: float,
    shape: tuple[int, ...],
    is_transposed: bool,
    adapter: Adapter,
    name: str,
) -> LowRank:
    plain, turned = (one, two, scaling), (two.T, one.T, scaling)
    fits = [way for way in (plain, turned) if one.ndim == two.ndim == 2 and (way[1].shape[0], way[0].shape[1]) == shape]
    if one.shape[0] != two.shape[-1] or not fits:
        raise LensError(
            f"The adapter {adapter.name!r} is for another shape: factors {tuple(one.shape)} and {tuple(two.shape)} do not make "
            f"{name}, which is {shape}. Give the base it was trained on."
        )
    return fits[-1] if is_transposed else fits[0]


def _is_copy(key: str, tensor: torch.Tensor, base: Weights) -> bool:
    """Tell whether this is one of the base's own tensors, which PEFT may store beside an adapter on the embeddings."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
    known = [short for short in base.shapes if name == short or name.endswith(f".{short}")]
    return any(
        base.shapes[short] == tuple(tensor.shape) and torch.equal(base.read(short).to(tensor), tensor)
        for short in known
    )
