"""Low-rank and other adapters (PEFT): made, found, and read without pickle. `merging` puts them on their base."""

import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lfp_lens.core.errors import LensError

ADAPTER_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
WHOLE_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
HUB_FILES = (
    ADAPTER_FILE,
    WEIGHTS_FILE,
    "lfp_tuning.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)
QUANTISED = re.compile(r"(?i)(bnb|gptq|awq|hqq|fp8|int[48]|[48]-?bit)(?![a-z])")


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter as it is stored."""

    name: str
    """What messages call it."""
    config: Any
    """PEFT's configuration."""
    tensors: Mapping[str, torch.Tensor]
    """Its weights, under PEFT's names on disk."""
    base: str | None
    """The base that it names; None if it names none."""
    live: Any = None
    """The caller's PEFT model, for an adapter in memory."""


def make_lora(lora: Any, model: Any) -> Any:
    """Give a PEFT `LoraConfig` from a rank or from a `LoraConfig` (copied), for this model.

    A rank means: every linear map of the blocks, alpha twice the rank, no dropout. Raises `LensError` for anything else.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    if isinstance(lora, LoraConfig):
        return copy.deepcopy(lora)
    if isinstance(lora, bool) or not isinstance(lora, int) or lora < 1:
        raise LensError(f"lora is a rank (an integer above 0) or a PEFT LoraConfig; {lora!r} given.")
    is_transposed = any(isinstance(module, Conv1D) for module in model.modules())
    task = "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    return LoraConfig(
        r=lora, lora_alpha=2 * lora, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=is_transposed,
        task_type=task,
    )  # fmt: skip


def attach(model: Any, config: Any) -> Any:
    """Wrap a model into PEFT with a new adapter. PEFT puts the adapter's layers into this very model.

    Raises `LensError` if the configuration does not fit the model.
    """
    from peft import get_peft_model

    try:
        with quiet_peft():
            return get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, NotImplementedError) as error:
        raise LensError(
            f"The adapter does not fit a {type(model).__name__}: {first_line(error)} Name modules that it has."
        ) from error


def save_adapter(model: Any, folder: str | Path, base: str | None = None) -> None:
    """Write a PEFT model's adapter as a folder that `load_pair` reads; the base's weights are not written.

    `base` is the name or folder that the adapter names as its base; None takes what the model says of itself.
    """
    config = model.peft_config[model.active_adapters[0]]
    before = config.base_model_name_or_path
    try:
        config.base_model_name_or_path = base or before
        with quiet_peft():
            # Otherwise PEFT asks the hub for the base, to see whether its vocabulary grew; here it never does.
            model.save_pretrained(folder, save_embedding_layers=False)
    finally:
        config.base_model_name_or_path = before


def is_adapter(source: Any) -> bool:
    """Tell whether this is a folder or hub name of an adapter, or a model in memory with adapter layers in it."""
    if isinstance(source, (str, Path)):
        return adapter_folder(str(source)) is not None
    named = getattr(source, "modules", None)
    return callable(named) and any(type(module).__module__.startswith("peft.") for module in source.modules())


def adapter_folder(name: str) -> Path | None:
    """Give the folder that holds an adapter of this path or hub name (fetched or cached), None if it is no adapter."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / ADAPTER_FILE).is_file():
            return None
        both = [file for file in WHOLE_MODELS if (folder / file).is_file()]
        if both:
            raise LensError(
                f"{name} holds an adapter ({ADAPTER_FILE}) and a whole model ({both[0]}): which one is meant cannot be "
                "told. Put each into a folder of its own."
            )
        return folder
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, ADAPTER_FILE)
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        # Whatever the name is, it is no adapter within reach; loading it as a model says what is wrong with it.
        return None


def read_adapter(folder: Path, name: str) -> Adapter:
    """Read an adapter's configuration and weights (safetensors only)."""
    config = _read_config(folder / ADAPTER_FILE, name)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise LensError(
            f"The adapter {name!r} cannot be loaded: it has no {WEIGHTS_FILE}. Pickles are never loaded; save it with "
            "safetensors."
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise LensError(
            f"The adapter {name!r} cannot be loaded: {WEIGHTS_FILE} is damaged ({first_line(error)})."
        ) from error
    check_finite(tensors, name)
    return Adapter(name, config, tensors, config.base_model_name_or_path or None)


def _read_config(path: Path, name: str) -> Any:
    from peft import PeftConfig

    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(path.parent))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LensError(
            f"The adapter {name!r} cannot be loaded: {ADAPTER_FILE} is damaged ({first_line(error)})."
        ) from error
    if type(config) is PeftConfig:
        raise LensError(f"The adapter {name!r} cannot be loaded: {ADAPTER_FILE} is damaged (it names no peft_type).")
    # An older PEFT drops what it does not know; dropped settings would give another model.
    dropped = sorted(key for key, value in written.items() if value and not hasattr(config, key))
    if dropped:
        raise LensError(f"The adapter {name!r} needs a newer PEFT: this one does not know its setting {dropped[0]!r}.")
    check_config(config, name)
    return config


def check_config(config: Any, name: str) -> None:
    """Raise `LensError` for an adapter that is no change of full-precision weights."""
    if config.is_prompt_learning:
        raise LensError(
            f"The adapter {name!r} learns prompts ({config.peft_type.value}): it changes no weight to measure."
        )
    if getattr(config, "megatron_config", None):
        raise LensError(f"The adapter {name!r} is for Megatron layers; a Hugging Face model has none.")
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in ("gaussian", "eva", "orthogonal"):
        raise LensError(
            f"The adapter {name!r} was started with {init!r}, which changes the base's own weights: merge it where it was "
            "trained and give the whole model."
        )
    if config.base_model_name_or_path and _is_quantised(str(config.base_model_name_or_path)):
        raise LensError(
            f"The adapter {name!r} was trained on {config.base_model_name_or_path!r}, which is quantised: put on the full "
            "weights it is another model. Train it on the full-precision base."
        )


def _is_quantised(base: str) -> bool:
    """Tell whether the base that an adapter names holds codes: by its config where it is at hand, else by its name."""
    path = Path(base) / "config.json"
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("quantization_config"))
    except (OSError, ValueError, AttributeError):
        return bool(QUANTISED.search(base))


def check_finite(tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise `LensError` if an adapter has no weights or some that are not finite."""
    if not tensors:
        raise LensError(f"The adapter {name!r} holds no weights.")
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise LensError(f"The adapter {name!r} holds numbers that are not finite in {key}.")


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT while inside: it warns of its own calls into transformers and of what is checked here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    """Give what an exception says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
