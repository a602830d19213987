"""Sites: TransformerLens hook names on one side, Hugging Face modules on the other.

Bulk work runs on the plain Hugging Face model with forward hooks (no logits, stops after the deepest site), because it is
the fastest path that gives the same activations; `load_pair` proves the equality at load.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from lfp_lens.core.errors import LensError, unknown

HOOKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hook_mlp_out": lambda block: block.mlp,
    "hook_resid_post": lambda block: block,
}
"""Hook name -> the module inside a block whose output it is."""
INNER_HOOK = "mlp.hook_post"
"""The MLP's neurons, as its down-projection reads them: the input of a module, not an output."""
DOWN_PROJECTIONS = ("dense_4h_to_h", "down_proj", "c_proj", "fc2")
"""What architectures call the module that reads an MLP's neurons."""


def trunk(model: Any) -> nn.Module:
    """Give the model without its unembedding."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        raise LensError(f"{type(model).__name__} has no trunk below its unembedding: it is not a supported causal LM.")
    return getattr(model, prefix)


def blocks(model: Any) -> nn.ModuleList:
    """Give the list of transformer blocks, whatever the architecture calls it."""
    inside = trunk(model)
    for name in ("layers", "h"):
        if hasattr(inside, name):
            return getattr(inside, name)
    raise LensError(
        f"{type(model).__name__} has no list of blocks named `layers` or `h`: it is not a supported causal LM."
    )


def final_norm(model: Any) -> nn.Module:
    """Give the norm between the last block and the unembedding, whatever the architecture calls it."""
    inside = trunk(model)
    for name in ("final_layer_norm", "norm", "ln_f"):
        if hasattr(inside, name):
            return getattr(inside, name)
    raise LensError(f"{type(model).__name__} has no final norm named `final_layer_norm`, `norm` or `ln_f`.")


def all_sites(model: Any, hook: str = "hook_mlp_out") -> tuple[str, ...]:
    """Name this hook of every layer, in layer order."""
    return tuple(f"blocks.{layer}.{hook}" for layer in range(len(blocks(model))))


def layer_of(site: str) -> int:
    """Give the layer of a site name. Raises `LensError` for a name that is no site."""
    parts = site.split(".", 2) if isinstance(site, str) else []
    # One spelling per site: int() also reads '01' and digits of other scripts.
    if len(parts) != 3 or parts[0] != "blocks" or not (parts[1].isdecimal() and parts[1] == str(int(parts[1]))):
        raise LensError(f"{site!r} is no site: expected a name such as 'blocks.3.hook_mlp_out'.")
    if parts[2] not in (*HOOKS, INNER_HOOK):
        raise unknown("hook", parts[2], (*HOOKS, INNER_HOOK))
    return int(parts[1])


def module_at(model: Any, site: str) -> nn.Module:
    """Give the module whose output is this site. Raises `LensError` for the inside of an MLP, which is an input."""
    stack = blocks(model)
    layer = _checked_layer(site, len(stack))
    if is_inner(site):
        raise LensError(f"{site!r} is the input of a module, not an output: name the MLP's output, 'hook_mlp_out'.")
    return HOOKS[site.split(".", 2)[2]](stack[layer])


def is_inner(site: str) -> bool:
    """Tell whether a site is the inside of an MLP."""
    return site.endswith(INNER_HOOK)


def down_projection(model: Any, layer: int) -> nn.Module:
    """Give the module of a layer that reads the MLP's neurons, whatever the architecture calls it."""
    mlp = blocks(model)[layer].mlp
    for name in DOWN_PROJECTIONS:
        if hasattr(mlp, name):
            return getattr(mlp, name)
    raise LensError(f"{type(mlp).__name__} has no down-projection named {', '.join(DOWN_PROJECTIONS)}.")


def _checked_layer(site: str, n_layers: int) -> int:
    layer = layer_of(site)
    if layer >= n_layers:
        raise LensError(f"{site!r} does not exist: the model has layers 0 to {n_layers - 1}.")
    return layer


@contextmanager
def editing(model: Any, edits: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Replace the activation at each site by `edit(activation)` while inside; every hook is gone on any exit.

    `model` is a Hugging Face model or a TransformerLens one. An edit that returns its argument changes nothing.
    """
    if hasattr(model, "hook_dict"):
        for site in edits:
            _checked_layer(site, model.cfg.n_layers)
        hooks = [(site, lambda acts, hook, edit=edit: edit(acts)) for site, edit in edits.items()]
        with model.hooks(fwd_hooks=hooks):
            yield
        return

    def hook(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
        return lambda module, args, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

    def before(edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
        return lambda module, args: (edit(args[0]), *args[1:])

    handles = []
    try:
        for site, edit in edits.items():
            if is_inner(site):
                layer = _checked_layer(site, len(blocks(model)))
                handles.append(down_projection(model, layer).register_forward_pre_hook(before(edit)))
            else:
                handles.append(module_at(model, site).register_forward_hook(hook(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching(model: Any, sites: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the activation at each site while inside, without changing anything; yields `site -> activation`."""
    found: dict[str, torch.Tensor] = {}

    def keep(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(acts: torch.Tensor) -> torch.Tensor:
            found[site] = acts
            return acts

        return edit

    with editing(model, {site: keep(site) for site in sites}):
        yield found


class _Stop(Exception):
    """The deepest wanted site was reached; nothing after it is needed."""


def activations_at(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, sites: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Run a Hugging Face model up to its deepest wanted site and give `site -> [B, S, D]`; no logits are computed."""
    if not sites:
        raise LensError("Activations are read at at least one site; none given.")
    found: dict[str, torch.Tensor] = {}
    deepest = max(sites, key=lambda site: (layer_of(site), not is_inner(site), site.endswith("resid_post")))

    def keep(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(acts_BSD: torch.Tensor) -> torch.Tensor:
            found[site] = acts_BSD.detach()
            if site == deepest:
                raise _Stop
            return acts_BSD

        return edit

    hooks = editing(model, {site: keep(site) for site in sites})
    with torch.no_grad(), hooks, _without_idle_attention(model, deepest), suppress(_Stop):
        trunk(model)(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False)
    return {site: found[site] for site in sites}


@contextmanager
def _without_idle_attention(model: Any, deepest: str) -> Iterator[None]:
    """Skip the attention of the deepest site's block while inside, where its MLP does not read it (parallel residual)."""
    is_parallel = model.config.model_type == "gpt_neox" and model.config.use_parallel_residual
    if not is_parallel or not deepest.endswith("hook_mlp_out"):
        yield
        return
    attention = blocks(model)[layer_of(deepest)].attention
    # What it gives is not read any more: the pass stops inside this block.
    attention.forward = lambda hidden_states, *args, **options: (hidden_states, None)
    try:
        yield
    finally:
        del attention.forward
