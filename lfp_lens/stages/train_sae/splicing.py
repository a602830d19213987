"""What it costs a model's predictions when a reconstruction stands in a site's place: KL and loss, by text.

The clean model runs once per batch. Of a spliced run only what comes after the site is computed: the blocks before it, and
the site's own module, give what is known already. Logits are made at the chosen positions only, a chunk at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from lfp_lens.parts.activations import Batch, Encoded, batches, hidden_states, unembed
from lfp_lens.parts.harvest import combined, sides_of
from lfp_lens.parts.sites import activations_at, blocks, layer_of, module_at

K = TypeVar("K")
HELD_VALUES = 2**26
"""Hidden values of all splices of one batch that are held at once (256 MB in fp32)."""
LOGITS_AT_ONCE = 2**23
"""Logits that are held at once (32 MB in fp32, a few times over)."""


@dataclass(frozen=True, eq=False)
class Splice:
    """A reconstruction to put in a site's place."""

    side: str
    """What the dictionary reads; of `difference` and `both` the tuned model is changed."""
    site: str
    """Where."""
    sae: Any | None
    """The dictionary; None puts zeros in place of what it reads: of a difference, that leaves the base's activation."""

    @property
    def host(self) -> str:
        """The model that is changed."""
        return sides_of(self.side)[-1]

    def made(self, seen: Mapping[tuple[str, str], torch.Tensor]) -> torch.Tensor:
        """Give the host's new activations [n, D] from the clean ones by (model, site)."""
        read_ND = combined((self.side, self.site), seen).float()
        made_ND = torch.zeros_like(read_ND) if self.sae is None else self.sae(read_ND)
        if self.side == "difference":
            return seen["base", self.site] + made_ND
        return made_ND[:, made_ND.shape[1] // 2 :] if self.side == "both" else made_ND


@dataclass(frozen=True, eq=False)
class Costs:
    """Sums over the predictions of each text, in nats."""

    kl_T: np.ndarray
    """KL(clean || spliced)."""
    loss_T: np.ndarray
    """-log p of the text's own next token."""


def splice_costs(
    models: Mapping[str, Any], begin: int | None, texts: Sequence[Encoded], splices: Mapping[K, Splice]
) -> tuple[dict[K, Costs], dict[str, np.ndarray], int]:
    """Give what every splice costs, each model's clean loss by text, and the number of predictions.

    A content token whose successor is known makes one prediction; beginning-of-text tokens and padding are not changed.
    """
    hosts = dict.fromkeys(splice.host for splice in splices.values())
    device, width = (models[next(iter(hosts))].device, models[next(iter(hosts))].config.hidden_size)
    found = {key: Costs(np.zeros(len(texts)), np.zeros(len(texts))) for key in splices}
    clean = {host: np.zeros(len(texts)) for host in hosts}
    room, count = min(2048, max(128, HELD_VALUES // (len(splices) * width))), 0
    for batch in batches(texts, device=device, max_batch_tokens=room):
        content_BS = batch.content(begin)
        asked_BS = content_BS[:, :-1] & batch.mask_BS[:, 1:].bool()
        count += int(asked_BS.sum())
        seen = _read(models, batch, content_BS, splices, [side for side in ("base",) if side not in hosts])
        runs = {host: _clean(models[host], batch, _sites(splices, host)) for host in hosts}
        for host, run in runs.items():
            seen |= {(host, site): acts_BSD[content_BS].float() for site, acts_BSD in run.acts.items()}
        for host, run in runs.items():
            model = models[host]
            hidden: dict[K, torch.Tensor] = {}
            for key, splice in splices.items():
                if splice.host == host:
                    with spliced(model, run, splice.site, splice.made(seen), content_BS):
                        hidden[key] = hidden_states(model, batch)[:, :-1][asked_BS]
            _measure(model, batch, asked_BS, run.hidden_BSD[:, :-1][asked_BS], hidden, found, clean[host])
    return found, clean, count


@dataclass(frozen=True, eq=False)
class CleanRun:
    """What the untouched model computed on a batch."""

    hidden_BSD: torch.Tensor
    """Final hidden states."""
    acts: dict[str, torch.Tensor]
    """Site -> activation [B, S, D]."""
    outputs: dict[nn.Module, Any]
    """Output, as it was given, of the last block before each site and of each site's module."""


def _read(
    models: Mapping[str, Any],
    batch: Batch,
    content_BS: torch.Tensor,
    splices: Mapping[Any, Splice],
    only: Sequence[str],
) -> dict[tuple[str, str], torch.Tensor]:
    """Give the activations of models that are read and not changed."""
    seen: dict[tuple[str, str], torch.Tensor] = {}
    for side in only:
        sites = list(dict.fromkeys(splice.site for splice in splices.values() if side in sides_of(splice.side)))
        if sites:
            acts = activations_at(models[side], batch.ids_BS, batch.mask_BS, sites)
            seen |= {(side, site): acts[site][content_BS].float() for site in sites}
    return seen


def _sites(splices: Mapping[Any, Splice], host: str) -> list[str]:
    """Name the sites at which this model is read or changed."""
    return list(dict.fromkeys(splice.site for splice in splices.values() if host in sides_of(splice.side)))


def _clean(model: Any, batch: Batch, sites: Sequence[str]) -> CleanRun:
    wanted = [module_at(model, site) for site in sites]
    wanted += [blocks(model)[layer_of(site) - 1] for site in sites if layer_of(site)]
    outputs: dict[nn.Module, Any] = {}
    handles = [
        module.register_forward_hook(lambda module, args, out: outputs.__setitem__(module, out))
        for module in dict.fromkeys(wanted)
    ]
    try:
        hidden_BSD = hidden_states(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    acts = {site: _first(outputs[module_at(model, site)]) for site in sites}
    return CleanRun(hidden_BSD, acts, outputs)


@contextmanager
def spliced(model: Any, run: CleanRun, site: str, made_ND: torch.Tensor, content_BS: torch.Tensor) -> Iterator[None]:
    """Make the model compute only what follows the site, from these activations at its content tokens, while inside.

    The site's module gives them without running; so do the blocks before it with their clean output. Hooks on those
    modules still fire.
    """
    layer, stack = layer_of(site), blocks(model)
    known = dict.fromkeys(stack[:layer], run.outputs[stack[layer - 1]]) if layer else {}
    given = run.outputs[module_at(model, site)]
    changed_BSD = _first(given).clone()
    changed_BSD[content_BS] = made_ND.to(changed_BSD.dtype)
    known[module_at(model, site)] = (changed_BSD, *given[1:]) if isinstance(given, tuple) else changed_BSD
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


def _measure(
    model: Any, batch: Batch, asked_BS: torch.Tensor, clean_ND: torch.Tensor, hidden: Mapping[K, torch.Tensor],
    found: Mapping[K, Costs], clean_T: np.ndarray,
) -> None:  # fmt: skip
    """Add KL and loss of every splice, and the clean loss, to the sums of the texts of this batch."""
    text_N = torch.tensor(batch.rows)[:, None].expand(asked_BS.shape)[asked_BS.cpu()].numpy()
    next_N = batch.ids_BS[:, 1:][asked_BS]
    chunk = max(16, LOGITS_AT_ONCE // model.config.vocab_size)
    for start in range(0, len(clean_ND), chunk):
        rows = slice(start, start + chunk)
        logits_NV = unembed(model, clean_ND[rows]).float()
        total_N = torch.logsumexp(logits_NV, dim=-1)
        probs_NV = (logits_NV - total_N[:, None]).exp_()
        wanted_N1 = next_N[rows, None]
        _add(clean_T, text_N[rows], total_N - logits_NV.gather(-1, wanted_N1)[:, 0])
        for key, hidden_ND in hidden.items():
            other_NV = unembed(model, hidden_ND[rows]).float()
            other_N = torch.logsumexp(other_NV, dim=-1)
            _add(found[key].loss_T, text_N[rows], other_N - other_NV.gather(-1, wanted_N1)[:, 0])
            # sum of p (log p - log q), in differences of logits so that nothing large cancels.
            moved_N = torch.linalg.vecdot(probs_NV, other_NV - logits_NV)
            _add(found[key].kl_T, text_N[rows], other_N - total_N - moved_N)


def _add(sums_T: np.ndarray, text_N: np.ndarray, values_N: torch.Tensor) -> None:
    np.add.at(sums_T, text_N, values_N.double().cpu().numpy())


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
