"""Interventions: change SAE features inside a running model and leave everything else, the SAE's error included, as it was.

f = enc(x); e = x - dec(f); chosen features of f replaced; y = dec(f') + e. It is computed as y = x + dec(f') - dec(f), so
that an empty set changes no bit. The beginning-of-text token, on which SAEs are not trained, is never touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.parts.sites import editing

MODES = ("zero", "mean", "resample", "scale")
Edit = Callable[[torch.Tensor], torch.Tensor]


def feature_edit(
    sae: Any,
    indices: Sequence[int],
    *,
    mode: str = "zero",
    scale: float = 0.0,
    reference_MF: torch.Tensor | None = None,
    seed: int = 0,
) -> Edit:
    """Give the edit that replaces chosen features of one SAE.

    Args:
        sae: a SAELens SAE.
        indices: features to replace.
        mode: `zero`; `scale` times `scale`; `mean` of, or a random draw (`resample`) from, the reference activations.
        scale: the factor of mode `scale`.
        reference_MF: features `[tokens, F]` on reference text, for `mean` and `resample`.
        seed: of the draws.

    Raises `LensError` for an unknown mode, a feature that does not exist, or missing reference activations.
    """
    if mode not in MODES:
        raise unknown("ablation mode", mode, MODES)
    if mode in ("mean", "resample") and (reference_MF is None or not len(reference_MF)):
        raise LensError(f"Mode {mode!r} needs the features' activations on reference text.")
    drawn_from = torch.zeros(0) if reference_MF is None else reference_MF
    chosen = torch.tensor(sorted(set(indices)), dtype=torch.long)
    for index in chosen.tolist():
        if not 0 <= index < len(sae.W_dec):
            raise LensError(f"feature {index} does not exist: the SAE has features 0 to {len(sae.W_dec) - 1}.")
    generator = torch.Generator().manual_seed(seed)

    def edit(acts: torch.Tensor) -> torch.Tensor:
        if not len(chosen):
            return acts
        features = sae.encode(acts.float())
        changed = features.clone()
        if mode in ("zero", "scale"):
            changed[..., chosen] *= 0.0 if mode == "zero" else scale
        elif mode == "mean":
            changed[..., chosen] = drawn_from.mean(0)[chosen]
        else:
            rows = torch.randint(len(drawn_from), features.shape[:-1], generator=generator)
            changed[..., chosen] = drawn_from[rows][..., chosen]
        return acts + (sae.decode(changed) - sae.decode(features)).to(acts.dtype)

    return edit


def reconstruction_edit(sae: Any) -> Edit:
    """Give the edit that puts the SAE's reconstruction in the site's place: what the error term alone is worth."""
    return lambda acts: sae(acts.float()).to(acts.dtype)


@contextmanager
def intervening(model: Any, edits: Mapping[str, Edit], *, begin: int | None) -> Iterator[None]:
    """Apply the edits while inside, at every position but the beginning-of-text token, in generation too.

    `begin` is that token's id, None where the tokenizer has none. Every hook is gone on any exit.
    """
    current: dict[str, torch.Tensor] = {}

    def remember(module: Any, args: tuple[Any, ...]) -> None:
        current["ids"] = args[0]

    def outside_begin(edit: Edit) -> Edit:
        def kept(acts: torch.Tensor) -> torch.Tensor:
            new = edit(acts)
            if begin is None or new is acts:
                return new
            return torch.where((current["ids"] == begin)[..., None], acts, new)

        return kept

    # The embedding sees the ids in every forward pass; TransformerLens generates past its model's own hooks.
    embedding = model.embed if hasattr(model, "hook_dict") else model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(remember)
    try:
        with editing(model, {site: outside_begin(edit) for site, edit in edits.items()}):
            yield
    finally:
        handle.remove()
