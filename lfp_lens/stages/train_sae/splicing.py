"""What it costs a model's predictions when a reconstruction stands in a site's place: KL and loss, by text.

The clean model runs once per batch. Of a spliced run only what comes after the site is computed (`parts.restart`). Logits are
made at the chosen positions only, a chunk at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from lfp_lens.parts.activations import Batch, Encoded, batches, unembed
from lfp_lens.parts.harvest import combined, sides_of
from lfp_lens.parts.restart import clean_run, restarted
from lfp_lens.parts.sites import activations_at

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
        runs = {host: clean_run(models[host], batch, _sites(splices, host)) for host in hosts}
        for host, run in runs.items():
            seen |= {(host, site): acts_BSD[content_BS].float() for site, acts_BSD in run.acts.items()}
        for host, run in runs.items():
            model = models[host]
            hidden: dict[K, torch.Tensor] = {}
            for key, splice in splices.items():
                if splice.host == host:
                    changed_BSD = run.acts[splice.site].clone()
                    changed_BSD[content_BS] = splice.made(seen).to(changed_BSD.dtype)
                    hidden[key] = restarted(model, run, splice.site, changed_BSD)[:, :-1][asked_BS]
            _measure(model, batch, asked_BS, run.hidden_BSD[:, :-1][asked_BS], hidden, found, clean[host])
    return found, clean, count


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
