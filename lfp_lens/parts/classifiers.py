"""Sequence classifiers with one logit, from a folder, the hub, memory or an adapter: what a reward model is made of."""

import copy
import warnings
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import Adapter, adapter_folder, is_adapter, read_adapter
from lfp_lens.parts.checkpoints import check_base, check_values, load_causal_lm, named_base, read, read_weights
from lfp_lens.parts.heads import with_head
from lfp_lens.parts.merging import adapter_of, merge
from lfp_lens.parts.sources import model_path
from lfp_lens.parts.speed import keep_freed_memory

CLASSIFIER = "ForSequenceClassification"


def load_scalar_classifier(source: Any, name: str, *, base: Any, device: str, dtype: str) -> Any:
    """Give a Hugging Face sequence classifier with one trained logit, an adapter merged into it.

    `name` is what messages call it; `base` is for an adapter in a folder, None for the one that it names.
    """
    keep_freed_memory()
    model = _from_disk(name, base, device, dtype) if isinstance(source, (str, Path)) else _in_memory(source, name)
    head = getattr(model, "score", None)
    if head is not None:
        _check_labels(head.out_features, name)
    return model


def _from_disk(name: str, base: Any, device: str, dtype: str) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = adapter_folder(name)
    if folder is not None:
        return _adapted(read_adapter(folder, name), base, device, dtype)
    if base is not None:
        raise LensError(f"base is for adapters; {name!r} is a whole model.")
    config = read(AutoConfig, name, "reward model")
    check_values(config, name)
    kinds = getattr(config, "architectures", None) or ()
    if not any(kind.endswith(CLASSIFIER) for kind in kinds):
        raise LensError(
            f"{name} is a {', '.join(kinds) or 'model of unnamed architecture'}, no reward model: it has no trained head "
            "with one logit. Give a ForSequenceClassification checkpoint (finetune's method 'reward_model' makes one); "
            "load_causal_lm and load_pair read language models."
        )
    _check_labels(config.num_labels, name)
    return read_weights(AutoModelForSequenceClassification, name, config, dtype).to(device).eval()


def _adapted(adapter: Adapter, base: Any, device: str, dtype: str) -> Any:
    """Put a reward model's adapter on its base: a causal LM's trunk with the head that was saved, or a reward model."""
    heads = [tensor for key, tensor in adapter.tensors.items() if key.endswith(".score.weight")]
    if not heads:
        raise LensError(
            f"The adapter {adapter.name!r} has no saved head (score.weight), so it is no reward model's or its head is lost; "
            "a random head would stand in its place. Train with modules_to_save=['score']."
        )
    _check_labels(len(heads[0]), adapter.name)
    source = named_base(adapter) if base is None else base
    if _is_classifier(source):
        start = _in_memory(source, adapter.name) if not isinstance(source, (str, Path)) else None
        start = start or _from_disk(str(model_path(str(source))), None, device, dtype)
        check_base(start, adapter.name, source, dtype)
    else:
        language = load_causal_lm(source, device=device, dtype=dtype)
        check_base(language, adapter.name, source, dtype)
        start = with_head(language)
    return merge(start, adapter, "SEQ_CLS").model


def _is_classifier(source: Any) -> bool:
    from transformers import AutoConfig

    if not isinstance(source, (str, Path)):
        return type(source).__name__.endswith(CLASSIFIER)
    if adapter_folder(str(model_path(str(source)))) is not None:
        return False
    config = read(AutoConfig, str(model_path(str(source))), "model")
    return any(kind.endswith(CLASSIFIER) for kind in getattr(config, "architectures", None) or ())


def _in_memory(model: Any, name: str) -> Any:
    from transformers import PreTrainedModel

    if is_adapter(model):
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not type(inner).__name__.endswith(CLASSIFIER):
            raise LensError(
                f"The {name} is an adapter on a {type(inner).__name__}, no reward model; load_pair reads it."
            )
        return merge(_bare(model), adapter_of(model), "SEQ_CLS").model
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not kind.endswith(CLASSIFIER):
        raise LensError(
            f"A {kind} is no reward model: expected a hub name, a local folder, or a Hugging Face ...{CLASSIFIER} with one "
            "logit. load_causal_lm and load_pair read language models."
        )
    check_values(model.config, f"The {kind}")
    return model.eval()


def _bare(model: Any) -> Any:
    """Give a copy of the model below a PEFT model, as it was before the adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).unload()


def _check_labels(n: int, name: str) -> None:
    if n != 1:
        raise LensError(
            f"{name} gives {n} logits per text; a reward model gives one. As a reward, 'classifier:MODEL@LABEL' reads the "
            "logit of one label."
        )
