"""Interventions: change SAE features inside a running model and leave everything else, the SAE's error included, as it was.

f = enc(x); e = x - dec(f); chosen features of f replaced; y = dec(f') + e. It is computed as y = x + dec(f') - dec(f), so
that an empty set changes no bit. The beginning-of-text token, on which SAEs are not trained, is never touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.parts.companion import companion
from lfp_lens.parts.dictionaries import Dictionary, joined
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import editing
from lfp_lens.results.train_sae import SAERecord

MODES = ("zero", "mean", "resample", "scale")
Edit = Callable[..., torch.Tensor]
"""`edit(acts, base_acts, place)`, activations `[B, S, D]` and the number of each token `[B, S]`; the last two may be None."""
PLACES = 2**16
"""After so many tokens the draws of resampling come again."""


def feature_edit(
    dictionary: Dictionary,
    indices: Sequence[int],
    *,
    mode: str = "zero",
    scale: float = 0.0,
    reference_MF: torch.Tensor | None = None,
    seed: int = 0,
) -> Edit:
    """Give the edit that replaces chosen features f of one dictionary by ref + scale (f - ref), the rest as it was.

    Args:
        dictionary: where and what.
        indices: features to replace.
        mode: what ref is: 0 (`zero`, and `scale`), the `mean` of the reference activations, or for every token a token of them
            drawn at random (`resample`): the same one whatever batch the token is in, where the edit is told its place.
        scale: 0 ablates; 1 changes nothing; 2 doubles what the features hold beyond ref; below 0 it turns them round.
        reference_MF: all features `[tokens, F]` on reference text, for `mean` and `resample`.
        seed: of the draws.

    Raises `LensError` for an unknown mode, a feature that does not exist, or missing reference activations.
    """
    if mode not in MODES:
        raise unknown("ablation mode", mode, MODES)
    if mode in ("mean", "resample") and (reference_MF is None or not len(reference_MF)):
        raise LensError(f"Mode {mode!r} needs the features' activations on reference text.")
    own = sorted(set(indices))
    some = dictionary.some(own)
    drawn_from = reference_MF[:, own].float() if reference_MF is not None and own else torch.zeros(1, len(own))
    drawn_from = drawn_from.to(some.W_dec.device)
    mean = drawn_from.mean(0)
    generator = torch.Generator().manual_seed(seed)
    row_of_place = _drawn_rows(len(drawn_from), seed) if mode == "resample" else torch.zeros(0)

    def edit(acts: torch.Tensor, base: torch.Tensor | None = None, place: torch.Tensor | None = None) -> torch.Tensor:
        if not own:
            return acts
        features = some.read(acts, base)
        if mode in ("zero", "scale"):
            away = features
        elif mode == "mean":
            away = features - mean
        else:
            if place is None:
                rows = torch.randint(len(drawn_from), features.shape[:-1], generator=generator)
            else:
                rows = row_of_place[place.cpu() % PLACES]
            away = features - drawn_from[rows.to(drawn_from.device)]
        return acts + ((scale - 1.0) * away @ some.W_dec).to(acts.dtype)

    return edit


def _drawn_rows(n: int, seed: int) -> torch.Tensor:
    return torch.randint(n, (PLACES,), generator=torch.Generator().manual_seed(seed))


def reconstruction_edit(record: SAERecord, *, device: torch.device | str = "cpu") -> Edit:
    """Give the edit that puts an SAE's reconstruction in its site's place: what the error term alone is worth.

    Of `difference` the base's activation and the reconstructed change; of a crosscoder the tuned half.
    """
    sae = load_sae(record, device=device)

    def edit(acts: torch.Tensor, base: torch.Tensor | None = None, place: torch.Tensor | None = None) -> torch.Tensor:
        made = sae(joined(record.side, acts, base).float())
        if record.side == "both":
            made = made[..., acts.shape[-1] :]
        elif record.side == "difference" and base is not None:
            made = base + made
        return made.to(acts.dtype)

    return edit


@contextmanager
def intervening(model: Any, edits: Mapping[str, Edit], *, begin: int | None, base: Any | None = None) -> Iterator[None]:
    """Apply the edits while inside, at every position but the beginning-of-text token, in generation too.

    Args:
        model: a Hugging Face model or a TransformerLens one.
        edits: site -> edit, called as `edit(acts, base_acts)` with activations `[B, S, D]` of the same tokens; one that
            returns its argument `acts` changes nothing. Tokens have no place here: resampling draws as the passes come.
        begin: the id of the beginning-of-text token, None where the tokenizer has none.
        base: the base model, where an edit reads it too (`Dictionary.needs_base`). It runs beside the model, unedited, at every
            step (see `companion`). None calls the edits with `base_acts=None`.

    Every hook is gone on any exit. Raises `LensError` for a site that does not exist, or where a base model cannot run beside
    this model.

    Example:
        >>> with intervening(pair.tuned_hf, {site: feature_edit(dictionary, [3, 17])}, begin=0):  # doctest: +SKIP
        ...     ablated = sample(pair.tuned_hf, tokenizer, prompts, max_new_tokens=20, seed=0)
    """
    at_begin: dict[str, torch.Tensor | None] = {"BS1": None}

    def find_begin(module: Any, args: tuple[Any, ...]) -> None:
        found_BS = args[0] == begin
        # Most steps of generation have none. Anywhere but on a CPU, asking would cost more than it saves.
        is_here = found_BS.device.type != "cpu" or bool(found_BS.any())
        at_begin["BS1"] = found_BS[..., None] if is_here else None

    def outside_begin(site: str, edit: Edit) -> Callable[[torch.Tensor], torch.Tensor]:
        def kept(acts: torch.Tensor) -> torch.Tensor:
            new, here_BS1 = edit(acts, base_acts.get(site)), at_begin["BS1"]
            return new if here_BS1 is None or new is acts else torch.where(here_BS1, acts, new)

        return kept

    with ExitStack() as stack:
        base_acts: Mapping[str, torch.Tensor] = {}
        if base is not None and edits:
            base_acts = stack.enter_context(companion(model, base=base, sites=list(edits)))
        if begin is not None:
            # The embedding sees the ids in every forward pass; TransformerLens generates past its model's own hooks.
            embedding = model.embed if hasattr(model, "hook_dict") else model.get_input_embeddings()
            stack.callback(embedding.register_forward_pre_hook(find_begin).remove)
        stack.enter_context(editing(model, {site: outside_begin(site, edit) for site, edit in edits.items()}))
        yield
