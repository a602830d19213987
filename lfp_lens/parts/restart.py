"""Restart: run a model again from a site on, with all that came before taken from a clean run.

The blocks before the site and the site's own module give what is known without running. Texts can be picked, repeated and
begun at a later position, whose attention reads the clean keys and values of the positions before it: so hundreds of changes
of one site share one clean run, each paying for what it can alter and no more.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Batch
from lfp_lens.parts.sites import blocks, layer_of, module_at, trunk


@dataclass(frozen=True, eq=False)
class CleanRun:
    """What the untouched model computed on a batch."""

    batch: Batch
    """The texts."""
    hidden_BSD: torch.Tensor
    """Final hidden states."""
    acts: dict[str, torch.Tensor]
    """Site -> activation [B, S, D]."""
    outputs: dict[nn.Module, Any]
    """Output, as it was given, of the last block before each site and of each site's module."""
    past: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """Keys and values [B, heads, S, head width] of every layer; empty where they were not kept."""


def clean_run(model: Any, batch: Batch, sites: Sequence[str], *, keep_past: bool = False) -> CleanRun:
    """Run the model once and keep what `restarted` needs for these sites.

    Args:
        model: a Hugging Face causal LM (or the shell of a reward model).
        batch: right-padded texts.
        sites: where it may be changed later.
        keep_past: keep keys and values too, so that a restart may begin at a later position.

    Raises `LensError` for a site the model does not have, and for a model without keys and values where they are asked for.
    """
    wanted = [module_at(model, site) for site in sites]
    wanted += [blocks(model)[layer_of(site) - 1] for site in sites if layer_of(site)]
    outputs: dict[nn.Module, Any] = {}
    handles = [
        module.register_forward_hook(lambda module, args, out: outputs.__setitem__(module, out))
        for module in dict.fromkeys(wanted)
    ]
    try:
        cache = _new_cache() if keep_past else None
        hidden_BSD = trunk(model)(
            input_ids=batch.ids_BS, attention_mask=batch.mask_BS, past_key_values=cache, use_cache=keep_past
        ).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    acts = {site: _first(outputs[module_at(model, site)]) for site in sites}
    return CleanRun(batch, hidden_BSD, acts, outputs, _past(model, cache) if keep_past else ())


def restarted(
    model: Any,
    run: CleanRun,
    site: str,
    changed_RSD: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    start: int = 0,
) -> torch.Tensor:
    """Give the final hidden states `[R, S - start, D]` when these activations stand at the site; what precedes it is not run.

    Args:
        model: the one that `run` is of.
        run: from `clean_run`, with this site; for `start` above 0 with `keep_past`.
        site: where the activations stand.
        changed_RSD: the site's activations from position `start` on.
        rows: the text `[R]` of the batch that each row is; a text may come many times. None is every text once.
        start: the first position that is computed. The positions before it are read as the clean run left them, so they must
            not have been changed.

    Hooks on the modules that are not run still fire. Nothing is left on the model on any exit.
    """
    assert not start or run.past, "a restart at a later position needs clean_run(..., keep_past=True)"
    layer, stack, batch = layer_of(site), blocks(model), run.batch
    picked = slice(None) if rows is None else rows
    known: dict[nn.Module, Any] = {}
    if layer:
        before = run.outputs[stack[layer - 1]]
        known = dict.fromkeys(stack[:layer], _like(before, _first(before)[picked, start:]))
    module = module_at(model, site)
    known[module] = _like(run.outputs[module], changed_RSD)
    options: dict[str, Any] = {"use_cache": False}
    if start:
        places = torch.arange(start, batch.ids_BS.shape[1], device=batch.ids_BS.device)[None]
        options = {"use_cache": True, "past_key_values": _prefix(run, picked, start, layer), "position_ids": places}
    with _giving(known):
        return trunk(model)(
            input_ids=batch.ids_BS[picked, start:], attention_mask=batch.mask_BS[picked], **options
        ).last_hidden_state


@contextmanager
def _giving(known: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Let these modules give these outputs without running, while inside."""
    before = {module: module.__dict__.get("forward") for module in known}
    try:
        for module, output in known.items():
            module.forward = lambda *args, output=output, **named: output
        yield
    finally:
        for module, forward in before.items():
            if forward is not None:
                module.forward = forward
            else:
                module.__dict__.pop("forward", None)


def _new_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _past(model: Any, cache: Any) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    layers = getattr(cache, "layers", ())
    if len(layers) != len(blocks(model)) or any(layer.get_seq_length() == 0 for layer in layers):
        raise LensError(f"{type(model).__name__} keeps no keys and values for every layer: it cannot be restarted.")
    return tuple((layer.keys, layer.values) for layer in layers)


def _prefix(run: CleanRun, picked: Any, start: int, layer: int) -> Any:
    """Give a cache that holds the clean positions before `start`; layers that do not run hold their length only."""
    cache = _new_cache()
    for at, (keys, values) in enumerate(run.past):
        if at >= layer:
            cache.update(keys[picked, :, :start], values[picked, :, :start], at)
        else:
            empty = keys.new_zeros(1, 1, start, 1)
            cache.update(empty, empty, at)
    return cache


def _like(given: Any, changed: torch.Tensor) -> Any:
    """Put a tensor in the place of a module's output, in the form that the module gives it."""
    first = _first(given)
    changed = changed.to(first.dtype)
    return (changed, *given[1:]) if isinstance(given, tuple) else changed


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
