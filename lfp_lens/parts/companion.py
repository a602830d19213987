"""Companion: the base model's activations at the same tokens, while the tuned model runs.

A dictionary of the difference of two models, or a crosscoder, reads both models at a site. While inside `companion`, every
forward pass of the tuned model first runs the base model on the same tokens, up to the deepest site that is wanted and
without logits. In generation with a KV cache the base model keeps a cache of its own, in step with the tuned model's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sites import editing, is_inner, layer_of, trunk

HANDED_ON = ("attention_mask", "position_ids", "token_type_ids")
"""What the base model is given as the tuned model is, beside the tokens."""


class _Reached(Exception):
    """The deepest wanted site was reached; nothing after it is needed."""


@contextmanager
def companion(model: Any, *, base: Any, sites: Sequence[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Run the base model beside the tuned one while inside; yields `site -> [B, S, D]` of the pass that is under way.

    The activations have the positions of the tuned model's pass: the whole prompt at first, then one token a step. They
    carry no gradient. Sampling and greedy decoding keep both caches in step; beam search, which reorders them, does not.
    What runs only some blocks of the tuned model does not call the base model. Every hook is gone on any exit.

    Args:
        model: the tuned Hugging Face model.
        base: the base Hugging Face model, another object of the same vocabulary.
        sites: the sites to read, at least one.

    Raises `LensError` for a TransformerLens model, for the same model twice, without sites, for a site that does not
    exist, and where the tuned model goes on from a cache that the companion did not see from its beginning.

    Example:
        >>> with companion(pair.tuned_hf, base=pair.base_hf, sites=[site]) as base_acts:  # doctest: +SKIP
        ...     pair.tuned_hf(input_ids=ids_BS)
        ...     base_acts[site].shape
    """
    _check(model, base, sites)
    deepest = max(sites, key=lambda site: (layer_of(site), not is_inner(site), site.endswith("resid_post")))
    found: dict[str, torch.Tensor] = {}
    caches: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def keep(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(acts: torch.Tensor) -> torch.Tensor:
            found[site] = acts
            if site == deepest:
                raise _Reached
            return acts

        return edit

    def run(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids_BS = args[0] if args else named.get("input_ids")
        if ids_BS is None:
            raise LensError("The companion reads the same tokens as the model: give the model input_ids.")
        cache = _in_step(caches, named.get("past_key_values"), base.config)
        same = {name: named[name] for name in HANDED_ON if named.get(name) is not None}
        with torch.no_grad(), editing(base, {site: keep(site) for site in sites}), suppress(_Reached):
            trunk(base)(input_ids=ids_BS, past_key_values=cache, use_cache=cache is not None, **same)

    handle = trunk(model).register_forward_pre_hook(run, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def _check(model: Any, base: Any, sites: Sequence[str]) -> None:
    if hasattr(model, "hook_dict") or hasattr(base, "hook_dict"):
        raise LensError(
            "A base model runs beside a Hugging Face model only, and this is a TransformerLens one: give the pair's "
            "Hugging Face models (`pair.tuned_hf` and `pair.base_hf`)."
        )
    if trunk(model) is trunk(base):
        raise LensError("The base model that runs beside the model is the same model: give the other one of the pair.")
    if not sites:
        raise LensError("The companion reads the base model at at least one site; none given.")
    with editing(base, {site: lambda acts: acts for site in sites}):
        pass  # It knows which sites exist.


def _in_step(caches: WeakKeyDictionary[Any, Any], theirs: Any, config: Any) -> Any:
    """Give the base model's cache that goes with the tuned model's: a new one where a prompt begins, None without cache."""
    from transformers import DynamicCache

    if theirs is None:
        return None
    length = theirs.get_seq_length()
    if length == 0:
        caches[theirs] = DynamicCache(config=config)
    seen = caches[theirs].get_seq_length() if theirs in caches else 0
    if seen != length:
        raise LensError(
            f"The model goes on from a cache of {length} tokens and its companion saw {seen} of them: begin the prompt "
            "inside the companion, with an empty cache (`transformers.DynamicCache()`)."
        )
    return caches[theirs]
