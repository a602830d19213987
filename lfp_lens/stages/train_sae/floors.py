"""Principal components as a dictionary that SAELens opens, so that `attribute` and `ablate` can use it as a floor."""

from typing import Any

import torch

from lfp_lens.results.train_sae import Floor, SAEWeights
from lfp_lens.stages.train_sae.reconstruction import Components

SHARED = ("explained_variance", "kl_recovered", "ce_recovered", "l0", "dead_share", "shrinkage")


def floor(kind: str, facts: dict[str, Any], weights: SAEWeights | None) -> Floor:
    """Make a floor from measured figures; without weights it is one of another model."""
    rate_F = facts["firing_rate"]
    shared = {name: facts[name] for name in SHARED}
    return Floor(
        kind, **shared, n_features=len(rate_F), weights=weights, firing_rate=None if weights is None else rate_F
    )


def components_sae(components: Components, n: int, site: str) -> SAEWeights:
    """Give the first `n` principal components as a `standard` SAE with 2n features: +v and -v of each.

    relu(v . (x - mean)) v + relu(-v . (x - mean)) (-v) = (v . (x - mean)) v, so the reconstruction is exactly that of
    PCA, and n features are active at every token.
    """
    both_DF = torch.cat([components.basis_DC[:, :n], -components.basis_DC[:, :n]], dim=1)
    tensors = {
        "W_enc": both_DF, "W_dec": both_DF.T, "b_enc": both_DF.new_zeros(2 * n), "b_dec": components.mean_D,
    }  # fmt: skip
    config = {
        "architecture": "standard", "d_in": len(both_DF), "d_sae": 2 * n, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": site, "model_name": f"{n} principal components", "prepend_bos": True},
    }  # fmt: skip
    return SAEWeights(config, {name: tensor.float().contiguous().numpy() for name, tensor in tensors.items()})
