"""Feature activations on reference text, for mean- and resample-ablation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lfp_lens.parts.activations import Encoded, batches
from lfp_lens.parts.sites import trunk, watching


def reference_features(
    model: Any, texts: Sequence[Encoded], saes: Mapping[str, Any], *, begin: int | None
) -> dict[str, torch.Tensor]:
    """Give, for each site, the features `[tokens, F]` of the untouched model at real tokens, beginning-of-text left out."""
    found: dict[str, list[torch.Tensor]] = {site: [] for site in saes}
    device = model.cfg.device if hasattr(model, "hook_dict") else model.device
    with torch.no_grad():
        for batch in batches(texts, device=device):
            with watching(model, list(saes)) as seen:
                if hasattr(model, "hook_dict"):
                    model(batch.ids_BS, attention_mask=batch.mask_BS, return_type=None)
                else:
                    trunk(model)(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False)
            kept = batch.content(begin)
            for site, sae in saes.items():
                found[site].append(sae.encode(seen[site][kept].float()))
    return {site: torch.cat(parts) for site, parts in found.items()}
