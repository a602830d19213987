"""What is refused before any training: settings, tokenizers and references that the method cannot run with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.checkpoints import load_causal_lm
from lfp_lens.parts.generation import end_ids
from lfp_lens.stages.finetune.job import Settings
from lfp_lens.stages.finetune.methods import METHODS, Method


def fill_settings(inputs: Mapping[str, Any], way: Method, start: Any) -> Settings:
    """Fill what was left to the method, and cut `max_tokens` to the model's context."""
    import torch

    found = {field.name: inputs[field.name] for field in dataclasses.fields(Settings)}
    found |= {name: value for name, value in way.defaults.items() if found[name] is None}
    if found["bf16"] is None:
        found["bf16"] = start.device.type == "cuda" and torch.cuda.is_bf16_supported()
    context = getattr(start.config, "max_position_embeddings", None)
    longest = 1 + inputs["prompt_tokens"][1] + found["max_new_tokens"]
    if context is not None and longest > context:
        raise LensError(
            f"A prompt of {inputs['prompt_tokens'][1]} tokens and {found['max_new_tokens']} new ones need {longest} with the "
            f"beginning of text; the model's context has {context}. Lower prompt_tokens or max_new_tokens."
        )
    return Settings(**found | {"max_tokens": min(found["max_tokens"], context or found["max_tokens"])})


def check_settings(settings: Settings, way: Method, heldout: int, prompt_tokens: tuple[int, int]) -> None:
    """Refuse settings that cannot be run."""
    counts = dataclasses.asdict(settings) | {"heldout": heldout}
    for name, least in (("steps", 1), ("batch_size", 2), ("minibatches", 1), ("epochs", 1), ("max_new_tokens", 1),
                        ("gradient_accumulation", 1), ("save_steps", 0), ("heldout", 2), ("kl_coefficient", 0)):  # fmt: skip
        if not counts[name] >= least:
            raise LensError(f"{name} must be at least {least}; {counts[name]} given.")
    if not 0 < settings.lr < float("inf"):
        raise LensError(f"lr must be a finite number above 0; {settings.lr} given.")
    if settings.kl_target is not None and not (settings.kl_target > 0 and way is METHODS["ppo"]):
        raise LensError(f"kl_target is a number of nats above 0, for ppo alone; {settings.kl_target} given.")
    if settings.max_tokens < settings.max_new_tokens + 3:
        raise LensError(
            f"max_tokens={settings.max_tokens} leaves no room for a prompt before {settings.max_new_tokens} new tokens."
        )
    if settings.minibatches > settings.batch_size:
        raise LensError(
            f"{settings.minibatches} minibatches cannot be made of {settings.batch_size} completions: lower minibatches."
        )
    if way in (METHODS["rloo"], METHODS["grpo"]):
        part = settings.batch_size // settings.minibatches
        if settings.group_size < 2 or settings.batch_size % settings.minibatches or part % settings.group_size:
            raise LensError(
                f"group_size={settings.group_size} must be at least 2 and divide the {part} completions of a minibatch "
                f"(batch_size={settings.batch_size}, minibatches={settings.minibatches})."
            )


def check_tokenizer(tokenizer: Any, model: Any, method: str) -> None:
    """Refuse a tokenizer that cannot end or pad a text; where it has no padding, end-of-text serves."""
    end_ids(model, tokenizer)
    if method != "ppo" and tokenizer.eos_token is None:
        raise LensError(
            f"The tokenizer has no end-of-text token, which {method} needs to end and pad texts. Set tokenizer.eos_token."
        )


def load_reference(reference: Any, start: Any, lora: Any, device: str) -> Any:
    """Load what KL is measured to; raises `LensError` unless it has the base's shape."""
    if lora is not None:
        raise LensError("With lora, KL is measured to the base without the adapter: leave reference out.")
    found = load_causal_lm(reference, device=device)
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in (found, start)]
    odd = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if odd:
        raise LensError(
            f"The reference has another shape than the base: {odd[0]} is {shapes[0].get(odd[0])} there, "
            f"{shapes[1].get(odd[0])} here ({len(odd)} tensors differ)."
        )
    return found
