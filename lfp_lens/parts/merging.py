"""An adapter put on a copy of its base and merged, proved to compute what base and adapter compute together.

LoRA: Hu et al. 2021, arXiv 2106.09685. A merged adapter is an ordinary model, so everything that works on a tuned
checkpoint works on a tuned adapter; what is kept beside it is the closed form of the change, `scaling * B A`.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import Adapter, attach, check_config, check_finite, quiet_peft

PREFIX = "base_model.model."
ROUNDING = 4
"""A merged weight may miss base + change by this many units in the last place of the tensor's largest value."""
SAME_OUTPUTS = 1e-4
"""Largest difference between merged and unmerged in fp32, relative to the largest output (at least 1): summing in another
order gave up to 5e-6 here, a wrong merge gives percents."""

LowRank = tuple[torch.Tensor, torch.Tensor, float]
"""(A [rank, in], B [out, rank], scaling): the change is `scaling * B A`, transposed where a weight is stored [in, out]."""


@dataclass(frozen=True, eq=False)
class Merged:
    """A base with an adapter in it."""

    model: Any
    """An ordinary Hugging Face model: a copy of the base, changed."""
    change: dict[str, LowRank] | None
    """Parameter name -> its change, where the whole change is low-rank (plain LoRA); None for any other adapter."""


def merge(base: Any, adapter: Adapter, task: str = "CAUSAL_LM") -> Merged:
    """Put an adapter on a copy of its base and merge it; base and adapter stay as they are.

    Raises `LensError` if the adapter is for another task, architecture or shape, lacks weights or has some too many, or
    if the merged model does not compute what base and adapter compute together.
    """
    _check_task(adapter, task)
    if adapter.live is not None:
        _check_same_base(adapter, base)
    config = copy.deepcopy(adapter.config)
    config.inference_mode = True
    # Half precision rounds so much that a wrong merge could not be told from a right one.
    half = base.dtype in (torch.bfloat16, torch.float16)
    wrapped = _put_on(copy.deepcopy(base).float() if half else copy.deepcopy(base), config, adapter)
    wanted = _outputs(wrapped if half or adapter.live is None else adapter.live)
    factors = _factors(wrapped)
    with quiet_peft():
        model = wrapped.merge_and_unload(safe_merge=True).eval()
    gap = float((_outputs(model) - wanted.to(model.device)).abs().max())
    allowed = SAME_OUTPUTS * max(1.0, float(wanted.abs().max()))
    if not gap <= allowed:
        raise LensError(
            f"The adapter {adapter.name!r} merged into its base gives other outputs than beside it, by {gap:.2g} "
            f"({allowed:.2g} allowed): it changes a weight that the model uses twice (tied embeddings), or is no change of "
            "weights. Train it without that module, or merge it where it was trained."
        )
    was = dict(base.named_parameters())
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(was[name].dtype)
        weight.requires_grad_(was[name].requires_grad)
    # The merged model is no longer what its base's name says; an adapter trained on it records this name.
    model.name_or_path = model.config._name_or_path = adapter.name if adapter.live is None else ""
    return Merged(model, factors if _is_whole_change(base, model, factors) else None)


def change_norm(factors: LowRank) -> float:
    """Give the Frobenius norm of `scaling B A` without forming it: scaling sqrt(trace((B^T B)(A A^T))), in fp64.

    >>> change_norm((torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]), 2.0))
    10.0
    """
    one, two, scaling = factors[0].double(), factors[1].double(), factors[2]
    return abs(scaling) * float(((two.T @ two) * (one @ one.T)).sum().clamp(min=0).sqrt())


def _put_on(model: Any, config: Any, adapter: Adapter) -> Any:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    # New adapters start at random values; what the caller draws next must not depend on that.
    with torch.random.fork_rng(devices=[]):
        wrapped = attach(model, config)
    with quiet_peft():
        expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    given = _without_copies(adapter.tensors, model, expected)
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or extra:
        lacks = f"lacks {len(missing)} tensors, first {missing[0]}" if missing else ""
        surplus = f"has {len(extra)} that fit nothing, first {extra[0]}" if extra else ""
        raise LensError(
            f"The adapter {adapter.name!r} does not fit this {_kind(wrapped)}: it {' and '.join(filter(None, (lacks, surplus)))}."
            " Give the base it was trained on and a complete adapter."
        )
    odd = [name for name in sorted(given) if given[name].shape != expected[name].shape]
    if odd:
        raise LensError(
            f"The adapter {adapter.name!r} is for another shape: {odd[0]} is {tuple(given[odd[0]].shape)}, this "
            f"{_kind(wrapped)} needs {tuple(expected[odd[0]].shape)}. Give the base it was trained on."
        )
    with quiet_peft():
        set_peft_model_state_dict(wrapped, given)
    return wrapped.to(model.device).eval()


def _without_copies(
    tensors: Mapping[str, torch.Tensor], wrapped: Any, expected: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Leave out the base's own embeddings, which PEFT stores beside an adapter on them."""
    own = _plain_names(wrapped.state_dict())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in expected or not _same(own.get(name.removeprefix(PREFIX).replace(".base_layer.", ".")), tensor)
    }


def _factors(wrapped: Any) -> dict[str, LowRank]:
    """Give A, B and scaling of every weight that has a low-rank change, by the name it has without the adapter."""
    from peft.tuners.lora.layer import LoraLayer

    found: dict[str, LowRank] = {}
    (active,) = wrapped.active_adapters
    for name, module in wrapped.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if active in module.lora_A:
            pair = module.lora_A[active].weight, module.lora_B[active].weight
        elif active in module.lora_embedding_A:
            pair = module.lora_embedding_A[active], module.lora_embedding_B[active]
        else:
            continue
        one, two = (factor.detach().clone() for factor in pair)
        found[f"{name}.weight"] = (one, two, float(module.scaling[active]))
    return found


def _is_whole_change(base: Any, merged: Any, factors: Mapping[str, LowRank]) -> bool:
    """Tell whether base + scaling B A is the merged model, up to the rounding of its weights, and all else is the base's."""
    moved = dict(merged.named_parameters())
    for name, weight in base.named_parameters():
        old, new = weight.detach(), moved[name].detach()
        if name not in factors:
            if not torch.equal(old, new):
                return False
            continue
        one, two, scaling = factors[name]
        if two.ndim != 2 or one.ndim != 2:
            return False
        change = scaling * (two.double() @ one.double())
        allowed = (
            ROUNDING * torch.finfo(new.dtype).eps * float(max(new.abs().max(), old.abs().max(), change.abs().max()))
        )
        ways = [way for way in (change, change.T) if way.shape == old.shape]
        if not any(float((old.double() + way - new.double()).abs().max()) <= allowed for way in ways):
            return False
    return factors.keys() <= {name for name, _ in base.named_parameters()}


def _check_same_base(adapter: Adapter, base: Any) -> None:
    """Refuse a PEFT model in memory whose own base is not the base given."""
    own = _plain_names(adapter.live.get_base_model().state_dict())
    # Biases may be trained where they are; they are part of the adapter then.
    trained = {name.removeprefix(PREFIX).replace(".base_layer.", ".") for name in adapter.tensors}
    for name, tensor in base.state_dict().items():
        if name not in trained and not _same(own.get(name), tensor):
            raise LensError(
                f"The adapter {adapter.name} sits on another model than the base: {name} differs. Give the base that was "
                "wrapped, before the adapter was put on."
            )


def _plain_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a wrapped model's own tensors under the names they have without the adapter."""
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in state.items()
        if ".modules_to_save." not in name
    }


def _same(one: torch.Tensor | None, two: torch.Tensor) -> bool:
    return one is not None and one.shape == two.shape and torch.equal(one.detach().to(two), two.detach())


def _outputs(model: Any) -> torch.Tensor:
    """Give a model's outputs on a fixed batch, in evaluation mode; the mode it was in comes back."""
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(model.config.vocab_size, (2, 12), generator=generator).to(model.device)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            # Row by row: a classifier without a padding token takes no batch.
            rows = [model(input_ids=row[None], attention_mask=torch.ones_like(row[None])).logits for row in ids_BS]
        return torch.cat(rows)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _check_task(adapter: Adapter, task: str) -> None:
    given = getattr(adapter.config.task_type, "value", adapter.config.task_type)
    if given in (None, task):
        return
    if given == "SEQ_CLS":
        raise LensError(
            f"The adapter {adapter.name!r} is for a sequence classifier; a causal LM is expected here. load_reward_model "
            "reads adapters of reward models."
        )
    expected = "a causal LM" if task == "CAUSAL_LM" else "a reward model (SEQ_CLS)"
    raise LensError(f"The adapter {adapter.name!r} is for the task {given}; one for {expected} is expected here.")


def adapter_of(model: Any) -> Adapter:
    """Take the adapter out of a PEFT model in memory, which stays as it is."""
    from peft import PeftModel, get_peft_model_state_dict

    kind = type(model).__name__
    if not isinstance(model, PeftModel):
        raise LensError(f"The {kind} carries adapter layers but is no PEFT model: give what `get_peft_model` gave.")
    active = model.active_adapters
    if len(active) != 1 or any(getattr(module, "merged", False) is True for module in model.modules()):
        raise LensError(
            f"The {kind} has {len(active)} active adapters, or one that is merged already: exactly one, not merged, is "
            "expected (`set_adapter`, `unmerge_adapter`)."
        )
    config = copy.deepcopy(model.peft_config[active[0]])
    check_config(config, f"in the {kind}")
    with quiet_peft():
        tensors = get_peft_model_state_dict(model, adapter_name=active[0], save_embedding_layers=False)
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    check_finite(tensors, f"in the {kind}")
    return Adapter(f"in the {kind}", config, tensors, config.base_model_name_or_path or None, model)


def _kind(wrapped: Any) -> str:
    return type(wrapped.get_base_model()).__name__
