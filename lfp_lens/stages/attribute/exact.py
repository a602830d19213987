"""Exact effects, many features at once: rows of one batch are (feature, text), each with its feature zeroed, error kept.

What a feature cannot change is not computed: the blocks before its site, texts in which it does not fire, positions before its
first firing (their keys and values come from the clean run).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lfp_lens.parts.activations import Batch
from lfp_lens.parts.restart import CleanRun, clean_run, restarted
from lfp_lens.parts.sites import activations_at
from lfp_lens.stages.attribute.subject import Places, Subject

VALUES_AT_ONCE = 2**19
"""Tokens times width of one restart on a CPU: more does not fit its caches."""


@dataclass(frozen=True, eq=False)
class Exact:
    """Features of one site on one batch, in the order in which they were asked for."""

    features_MBS: torch.Tensor
    """Activations; 0 where no feature is read."""
    effects_MBS: torch.Tensor
    """scalar(original) - scalar(feature zeroed) at each place."""


@torch.no_grad()
def exact_effects(
    subject: Subject, batch: Batch, wanted: Mapping[str, Sequence[int]]
) -> tuple[torch.Tensor, dict[str, Exact]]:
    """Give the scalar at every place of a batch `[B, S]` (0 at padding), and what zeroing each feature takes from it.

    Args:
        subject: the model.
        batch: right-padded texts.
        wanted: site -> indices of features.
    """
    sites = [site for site, indices in wanted.items() if len(indices)]
    run, places = clean_run(subject.model, batch, sites, keep_past=bool(sites)), subject.places(batch)
    real_BS = batch.mask_BS.bool()
    before_BS = torch.zeros(real_BS.shape, device=real_BS.device)
    before_BS[real_BS] = places.measured(run.hidden_BSD[real_BS])
    reads_base = [site for site in sites if subject.dictionaries[site].needs_base]
    base_acts = activations_at(subject.base, batch.ids_BS, batch.mask_BS, reads_base) if reads_base else {}
    found = {}
    for site in sites:
        some, content_BS = subject.dictionaries[site].some(wanted[site]), batch.content(subject.begin)
        base_BSD = base_acts.get(site)
        read_NM = some.read(run.acts[site][content_BS], None if base_BSD is None else base_BSD[content_BS])
        features_BSM = read_NM.new_zeros(*content_BS.shape, read_NM.shape[1])
        features_BSM[content_BS] = read_NM
        features_MBS = features_BSM.permute(2, 0, 1).contiguous()
        effects_MBS = _removed(subject, run, places, before_BS, site, features_MBS, some.W_dec)
        found[site] = Exact(features_MBS, effects_MBS)
    return before_BS, found


def _removed(
    subject: Subject, run: CleanRun, places: Places, before_BS: torch.Tensor, site: str, features_MBS: torch.Tensor,
    W_dec: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    effects_MBS = torch.zeros_like(features_MBS)
    real_BS, acts_BSD = run.batch.mask_BS.bool(), run.acts[site]
    number_BS = (torch.cumsum(real_BS.flatten(), 0) - 1).view(real_BS.shape)
    fires_MBS, length = features_MBS != 0, real_BS.shape[1]
    feature_J, row_J = fires_MBS.any(-1).nonzero(as_tuple=True)
    first_J = fires_MBS[feature_J, row_J].int().argmax(-1)
    order = torch.argsort(first_J, stable=True)
    feature_J, row_J, first_J = feature_J[order], row_J[order], first_J[order]
    limit = 8192 if acts_BSD.device.type != "cpu" else max(256, VALUES_AT_ONCE // acts_BSD.shape[2])
    at = 0
    while at < len(first_J):
        start = int(first_J[at])
        some = slice(at, at + max(1, limit // (length - start)))
        feature_R, row_R, first_R = feature_J[some], row_J[some], first_J[some]
        taken_RS1 = features_MBS[feature_R, row_R, start:, None]
        changed_RSD = acts_BSD[row_R, start:] - (taken_RS1 * W_dec[feature_R, None]).to(acts_BSD.dtype)
        hidden_RSD = restarted(subject.model, run, site, changed_RSD, rows=row_R, start=start)
        is_late_RS = torch.arange(start, length, device=first_R.device) >= first_R[:, None]
        asked_RS = real_BS[row_R, start:] & is_late_RS
        lost_RS = torch.zeros(asked_RS.shape, device=asked_RS.device)
        after_N = places.measured(hidden_RSD[asked_RS], number_BS[row_R, start:][asked_RS])
        lost_RS[asked_RS] = before_BS[row_R, start:][asked_RS] - after_N
        effects_MBS[feature_R, row_R, start:] = lost_RS
        at += len(first_R)
    return effects_MBS
