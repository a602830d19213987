"""What is refused before any training: settings, tokenizers and references that the method cannot run with."""

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import ADAPTER_FILE, WHOLE_MODELS, attach, check_config
from lfp_lens.parts.checkpoints import check_fast, load_causal_lm, shape_differences
from lfp_lens.parts.generation import end_ids
from lfp_lens.parts.preferences import Preferences
from lfp_lens.parts.sources import model_path
from lfp_lens.stages.finetune.job import Score, Settings
from lfp_lens.stages.finetune.methods import METHODS, Method

LARGEST_SEED = 2**32 - 1
TRIED = 80
"""Letters of a text that a reward is tried on."""


def check_prompts(prompts: Sequence[str], heldout: int) -> None:
    """Refuse what is no list of texts, and fewer texts than are held out."""
    if isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        given = "one text" if isinstance(prompts, str) else type(prompts).__name__
        raise LensError(f"prompts is a list of texts; {given} given.")
    wrong = next((text for text in prompts if not isinstance(text, str)), "")
    if not isinstance(wrong, str):
        raise LensError(f"prompts holds {type(wrong).__name__} where a text is expected: {str(wrong)[:TRIED]}.")
    if len(prompts) < heldout + 2:
        raise LensError(f"{heldout} held-out prompts and some to train on are needed; {len(prompts)} texts given.")


def check_pairs(given: Preferences) -> None:
    """Refuse pairs that prefer nothing."""
    if given.train and all(pair.chosen.strip() == pair.rejected.strip() for pair in given.train):
        raise LensError(
            f"Chosen is equal to rejected in all {len(given.train)} training pairs of {given.name}: nothing is preferred, so "
            "nothing can be learned."
        )


def check_reward(score: Score, prompts: Sequence[str]) -> None:
    """Score two completions, one of them empty as a policy may well write it: a reward that cannot is found before hours."""
    start = prompts[0][:TRIED]
    score([start, f"{start} {start}"], ["", f" {start}"])


def check_place(output: str | Path, base: Any, is_adapter: bool) -> None:
    """Refuse a folder for the checkpoint that cannot be written, is the base's own, or holds a model of the other kind."""
    place = Path(output).absolute()
    if isinstance(base, (str, Path)) and Path(model_path(str(base))).resolve() == place.resolve():
        raise LensError(f"output={str(output)!r} is the base's own folder, which would be overwritten. Choose another.")
    there = next(path for path in (place, *place.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise LensError(
            f"output={str(output)!r} cannot be made: {there} is no folder that can be written ({error.strerror})."
        ) from error
    kind, files = ("a whole model", WHOLE_MODELS) if is_adapter else ("an adapter", (ADAPTER_FILE,))
    held = [file for file in files if (place / file).exists()]
    if held:
        raise LensError(
            f"output={str(output)!r} holds {kind} ({held[0]}); beside it the new checkpoint could not be told apart. Choose "
            "another folder, or empty it."
        )


def fill_settings(inputs: Mapping[str, Any], way: Method, start: Any) -> Settings:
    """Fill what was left to the method, and cut `max_tokens` to the model's context."""
    import torch

    found = {field.name: inputs[field.name] for field in dataclasses.fields(Settings)}
    if start.dtype.itemsize < 4:
        raise LensError(
            f"The model in memory is in {str(start.dtype).removeprefix('torch.')}; weights are tuned in float32. Give "
            "`model.float()`; bf16=True computes in bf16."
        )
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


def check_settings(
    settings: Settings, way: Method, heldout: int, prompt_tokens: tuple[int, int], *, is_sampled: bool
) -> None:
    """Refuse settings that cannot be run; `is_sampled` says that there are prompts, not preferences."""
    counts = dataclasses.asdict(settings) | {"heldout": heldout}
    for name, least in (("steps", 1), ("batch_size", 2), ("minibatches", 1), ("epochs", 1), ("max_new_tokens", 1),
                        ("gradient_accumulation", 1), ("save_steps", 0), ("heldout", 2), ("kl_coefficient", 0),
                        ("group_size", 1), ("max_tokens", 1), ("seed", 0)):  # fmt: skip
        if name != "kl_coefficient" and not hasattr(counts[name], "__index__"):
            raise LensError(f"{name} must be a whole number; {counts[name]} given.")
        if not counts[name] >= least:
            raise LensError(f"{name} must be at least {least}; {counts[name]} given.")
    if not 0 < settings.lr < float("inf"):
        raise LensError(f"lr must be a finite number above 0; {settings.lr} given.")
    if settings.kl_target is not None and not (settings.kl_target > 0 and way is METHODS["ppo"]):
        raise LensError(f"kl_target is a number of nats above 0, for ppo alone; {settings.kl_target} given.")
    if settings.kl_target is not None and settings.kl_coefficient == 0:
        raise LensError("kl_target adapts the KL coefficient by a factor, and 0 stays 0: give kl_coefficient above 0.")
    if settings.seed > LARGEST_SEED:
        raise LensError(f"seed must be at most {LARGEST_SEED}; {settings.seed} given.")
    # Each side of a pair keeps a token beside the marks of beginning and end.
    if way.learns_from != "rewards" and settings.max_tokens < max(settings.max_new_tokens + 3, 5):
        raise LensError(
            f"max_tokens={settings.max_tokens} leaves no room for a prompt before {settings.max_new_tokens} new tokens."
        )
    longest = 1 + prompt_tokens[1] + settings.max_new_tokens
    if is_sampled and way.learns_from == "pairs" and settings.max_tokens < longest:
        raise LensError(
            f"Pairs of {prompt_tokens[1]} prompt tokens and {settings.max_new_tokens} new ones need max_tokens={longest} with "
            f"the beginning of text, or their ends would be cut; {settings.max_tokens} given."
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
    check_fast(tokenizer, "The tokenizer given")
    end_ids(model, tokenizer)
    largest, n_rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().weight.shape[0]
    if largest >= n_rows:
        raise LensError(
            f"The tokenizer has ids up to {largest}, the model has embeddings for {n_rows} (ids from 0): give the model's own "
            "tokenizer, without added tokens."
        )
    if method != "ppo" and tokenizer.eos_token is None:
        raise LensError(
            f"The tokenizer has no end-of-text token, which {method} needs to end and pad texts. Set tokenizer.eos_token."
        )


def check_adapter(adapter: Any, model: Any) -> None:
    """Refuse an adapter that does not fit the model, or that is for another task than writing."""
    import torch

    task = getattr(adapter.task_type, "value", adapter.task_type)
    if task not in (None, "CAUSAL_LM"):
        raise LensError(
            f"The LoraConfig is for the task {task}; CAUSAL_LM (or none) is expected, for a reward model too."
        )
    check_config(adapter, "lora")
    with torch.device("meta"):
        shell = type(model)(copy.deepcopy(model.config))
    attach(shell, copy.deepcopy(adapter))


def load_reference(reference: Any, start: Any, lora: Any, method: str, device: str) -> Any:
    """Load what KL is measured to; raises `LensError` unless it has the base's shape."""
    if method in ("sft", "reward_model"):
        raise LensError(f"{method} has no KL penalty, so it has no use for a reference: leave it out.")
    if lora is not None:
        raise LensError("With lora, KL is measured to the base without the adapter: leave reference out.")
    found = load_causal_lm(reference, device=device)
    odd = shape_differences(found, start)
    if odd:
        raise LensError(
            f"The reference has another shape than the base: they differ in {len(odd)} tensors, first {odd[0]}."
        )
    return found
