"""Checkpoints: a causal LM and its tokenizer from a hub name, a folder or memory, and what is refused.

Safetensors only, nothing half-filled, nothing quantised. An adapter is put on the base it names.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import Adapter, adapter_folder, first_line, is_adapter, read_adapter
from lfp_lens.parts.merging import merge
from lfp_lens.parts.sources import model_path
from lfp_lens.parts.speed import keep_freed_memory, quiet_transformers

TUNING_FILE = "lfp_tuning.json"
VOCABULARY_FILES = ("tokenizer.", "vocab", "spiece", "sentencepiece")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = ("score.", "classifier.", "v_head.", "value_head.", "reward_head.")
"""How the weights of a head that gives numbers, not tokens, begin."""
DEEPEST = 8
"""Longest chain of adapters upon adapters; a longer one goes in a circle."""


def load_causal_lm(source: Any, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """Load a causal LM from a hub name or folder (safetensors only), or check one that is in memory.

    An adapter's folder gives the base that it names with the adapter merged into it.
    """
    keep_freed_memory()
    return _causal_lm(source, device, dtype, 0)


def _causal_lm(source: Any, device: str, dtype: str, depth: int) -> Any:
    check_dtype(dtype)
    check_device(device)
    if not isinstance(source, (str, Path)):
        _check_in_memory(source)
        if device != "cpu" and source.device.type != torch.device(device).type:
            raise LensError(
                f"The model in memory is on {source.device}; device={device!r} given. Move it there, or leave device out."
            )
        return source.eval()
    from transformers import AutoConfig, AutoModelForCausalLM

    name = str(model_path(str(source)))
    folder = adapter_folder(name)
    if folder is not None:
        adapter = read_adapter(folder, name)
        if depth == DEEPEST:
            raise LensError(
                f"The adapter {name!r} stands on {DEEPEST} others or on itself: give the base's own weights."
            )
        base = _causal_lm(named_base(adapter), device, dtype, depth + 1)
        check_base(base, name, named_base(adapter), dtype)
        return merge(base, adapter).model
    config = read(AutoConfig, name, "model")
    _check_config(config, name, getattr(config, "architectures", None) or ())
    model = read_weights(AutoModelForCausalLM, name, config, dtype)
    return model.to(device).eval()


def read_weights(kind: Any, name: str, config: Any, dtype: str) -> Any:
    """Load weights that fill the model; raises `LensError` where a gap would be filled with random numbers."""
    options = {"config": config, "dtype": DTYPES[dtype], "use_safetensors": True, "output_loading_info": True}
    model, loaded = read(kind, name, "model", **options)
    missing, heads = sorted(loaded["missing_keys"]), [key for key in loaded["unexpected_keys"] if key.startswith(HEADS)]
    if missing:
        raise LensError(
            f"The model {name!r} cannot be loaded: its weights lack {len(missing)} tensors of a {type(model).__name__}, "
            f"first {missing[0]}. A gap would be filled with random numbers; give a complete checkpoint."
        )
    if heads and not type(model).__name__.endswith("ForSequenceClassification"):
        raise LensError(
            f"{name} holds {heads[0]}, the head of a reward model or value model; a causal LM is expected here. "
            "load_reward_model reads reward models."
        )
    return model


def load_tokenizer(source: Any) -> Any:
    """Load the tokenizer beside a checkpoint; a model in memory needs its tokenizer passed in.

    An adapter's folder without one gives the tokenizer of the base that it names.
    """
    if not isinstance(source, (str, Path)):
        raise LensError("A model in memory has no tokenizer beside it: pass `tokenizer=`.")
    from transformers import AutoTokenizer

    name, folder = str(model_path(str(source))), None
    for _ in range(DEEPEST):
        folder = None if has_tokenizer(name) else adapter_folder(name)
        if folder is None:
            break
        name = named_base(read_adapter(folder, name))
    if not has_tokenizer(name):
        # Transformers would make up a tokenizer without words from the architecture's name.
        raise LensError(f"The tokenizer of {str(source)!r} cannot be loaded: the folder has no tokenizer.json.")
    tokenizer = read(AutoTokenizer, name, "tokenizer")
    check_fast(tokenizer, str(source))
    return tokenizer


def has_tokenizer(source: Any) -> bool:
    """Tell whether a tokenizer lies beside a checkpoint; of a hub name that is no adapter it is taken for granted."""
    if not isinstance(source, (str, Path)):
        return False
    folder = Path(model_path(str(source)))
    folder = folder if folder.is_dir() else adapter_folder(str(folder)) or folder
    return not folder.is_dir() or any(path.name.startswith(VOCABULARY_FILES) for path in folder.iterdir())


def named_base(adapter: Adapter) -> str:
    """Give the base that an adapter names. Raises `LensError` if it names none or one whose weights are codes."""
    if not adapter.base:
        raise LensError(
            f"The adapter {adapter.name!r} names no base model (it was trained on one in memory). Give both: "
            "load_pair(base, adapter), or load_reward_model(adapter, base=base)."
        )
    return str(model_path(adapter.base))


def check_base(base: Any, adapter: str, source: Any, dtype: str) -> None:
    """Raise `LensError` if the adapter's tuning record tells of another base than this one."""
    wanted = (tuning_record(adapter) or {}).get("base_fingerprint")
    if not wanted:
        return
    if isinstance(source, (str, Path)) and dtype != "float32":
        # The record was made in full precision, and rounding changes every byte.
        base = load_causal_lm(source)
    found = weights_fingerprint(base)
    if found != wanted:
        raise LensError(
            f"The adapter {adapter!r} was trained on a base with the fingerprint {wanted}; the base given has {found}. "
            "Put on other weights it would be another model: give the base it was trained on, in float32."
        )


def shape_differences(one: Any, other: Any) -> list[str]:
    """Name the tensors that two models do not have in the same shape, each with both shapes."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in (one, other)]
    names = sorted(shapes[0].keys() | shapes[1].keys())
    both = {name: (shapes[0].get(name), shapes[1].get(name)) for name in names}
    return [f"{name}: {this} against {that}" for name, (this, that) in both.items() if this != that]


def tuning_record(tuned: Any) -> dict[str, Any] | None:
    """Give what a checkpoint's folder says about its tuning; None for a model in memory or a folder that says nothing."""
    if not isinstance(tuned, (str, Path)):
        return None
    name = str(model_path(str(tuned)))
    folder = Path(name) if Path(name).is_dir() else adapter_folder(name)
    if folder is None or not (folder / TUNING_FILE).is_file():
        return None
    path = folder / TUNING_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LensError(f"The tuning record {path} is not valid JSON ({error}); remove or repair it.") from error
    if not isinstance(found, dict):
        raise LensError(f"The tuning record {path} is not a table of names and values; remove or repair it.")
    return found


def weights_fingerprint(model: Any) -> str:
    """Hash every tensor of a model: name, dtype, shape and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        # Bytes by view: NumPy knows no bfloat16; flattened, because a scalar cannot be viewed.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read(kind: Any, name: str, what: str, **options: Any) -> Any:
    """Call `from_pretrained`, and say in one line what stops it."""
    quiet_transformers()
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LensError(
            f"The {what} {name!r} cannot be loaded: {first_line(error)} Expected a local folder with config.json, "
            "safetensors and tokenizer, or a hub name (with network)."
        ) from error


def check_dtype(dtype: str) -> None:
    """Raise `LensError` unless this is a precision that models are loaded in."""
    if dtype not in DTYPES:
        raise LensError(f"dtype must be one of {', '.join(DTYPES)}; {dtype!r} given.")


def check_device(device: str) -> None:
    """Raise `LensError` unless tensors can be made on this device."""
    try:
        torch.empty(0, device=device)
    # A PyTorch built without CUDA says so by an assertion.
    except (RuntimeError, AssertionError) as error:
        raise LensError(
            f"device={device!r} cannot be used on this machine: {first_line(error)} The device 'cpu' always can."
        ) from error


def check_fast(tokenizer: Any, name: str) -> None:
    """Raise `LensError` unless the tokenizer tells which characters a token covers."""
    if not tokenizer.is_fast:
        raise LensError(f"{name} has no fast tokenizer: words cannot be aligned to tokens by character offsets.")


def check_values(config: Any, name: str) -> None:
    """Raise `LensError` if a model's weights are quantised."""
    if getattr(config, "quantization_config", None):
        raise LensError(f"{name} is quantised: its weights are codes, not values. Load the full-precision checkpoint.")


def _check_in_memory(model: Any) -> None:
    from transformers import PreTrainedModel

    kind = type(model).__name__
    if is_adapter(model):
        raise LensError(
            f"The {kind} carries an adapter in its modules, so it is no plain model: merge it (PEFT's "
            "`merge_and_unload`), or give load_pair the base without it (a name, a folder, or a copy made before "
            "`get_peft_model`) and the PEFT model as tuned."
        )
    if not isinstance(model, PreTrainedModel):
        raise _no_causal_lm(kind)
    _check_config(model.config, f"The {kind}", [kind])
    if model.get_output_embeddings() is None:
        raise _no_causal_lm(kind)


def _no_causal_lm(kind: str) -> LensError:
    return LensError(f"A {kind} is no causal LM: expected a hub name, a local folder, or a Hugging Face causal LM.")


def _check_config(config: Any, name: str, kinds: Sequence[str]) -> None:
    check_values(config, name)
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        reader = (
            "load_reward_model reads it" if config.num_labels == 1 else "the reward 'classifier:MODEL@LABEL' reads it"
        )
        raise LensError(
            f"{name} is a sequence classifier ({', '.join(kinds)}); a causal LM is expected here. As a reward, {reader}."
        )
