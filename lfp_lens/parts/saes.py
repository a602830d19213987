"""SAE architectures by name, and the two ways between our records and SAELens' modules."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry
from lfp_lens.results.train_sae import SAERecord, SAEWeights

ARCHITECTURES: Registry[Callable[..., Any]] = Registry("SAE architecture")
"""Name -> function of (d_in, d_sae, l1, k, steps) giving a SAELens training SAE."""


def quiet_sae_lens() -> Any:
    """Import SAELens without its import-time warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


@ARCHITECTURES.add("standard")
def _standard(d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int) -> Any:
    lens = quiet_sae_lens()
    config = lens.StandardTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l1_coefficient=2.0 if l1 is None else l1, l1_warm_up_steps=steps // 10,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    return lens.StandardTrainingSAE(config)


def _default_k(d_in: int, d_sae: int) -> int:
    """Give an eighth of the width, the sparsity of the other architectures' defaults, as far as there are features."""
    return min(d_sae, max(1, d_in // 8))


@ARCHITECTURES.add("topk")
def _topk(d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int) -> Any:
    lens = quiet_sae_lens()
    config = lens.TopKTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, k=k or _default_k(d_in, d_sae), normalize_activations="expected_average_only_in"
    )
    return lens.TopKTrainingSAE(config)


@ARCHITECTURES.add("batchtopk")
def _batchtopk(d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int) -> Any:
    lens = quiet_sae_lens()
    config = lens.BatchTopKTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, k=k or _default_k(d_in, d_sae), normalize_activations="expected_average_only_in"
    )
    return lens.BatchTopKTrainingSAE(config)


@ARCHITECTURES.add("jumprelu")
def _jumprelu(d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int) -> Any:
    lens = quiet_sae_lens()
    config = lens.JumpReLUTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l0_warm_up_steps=steps // 10, normalize_activations="expected_average_only_in"
    )
    return lens.JumpReLUTrainingSAE(config)


@ARCHITECTURES.add("gated")
def _gated(d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int) -> Any:
    lens = quiet_sae_lens()
    config = lens.GatedTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l1_coefficient=2.0 if l1 is None else l1, l1_warm_up_steps=steps // 10,
        normalize_activations="expected_average_only_in",
    )  # fmt: skip
    return lens.GatedTrainingSAE(config)


@ARCHITECTURES.add("tied")
def _tied(d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int) -> Any:
    from lfp_lens.parts.tied_sae import TiedTrainingSAE, TiedTrainingSAEConfig

    return TiedTrainingSAE(TiedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=0.001 if l1 is None else l1))


def new_sae(
    architecture: str, *, d_in: int, size: float, l1: float | None, k: int | None, steps: int, seed: int
) -> Any:
    """Make an untrained SAELens training SAE; the same seed gives the same weights."""
    d_sae = round(d_in * size)
    if d_sae < 1:
        raise LensError(f"An SAE of size {size} on {d_in} dimensions has no features.")
    if k is not None and not 1 <= k <= d_sae:
        raise LensError(f"k={k} features cannot be active at once in an SAE of {d_sae}.")
    make = ARCHITECTURES[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(d_in, d_sae, l1, k, steps)


def export(sae: Any, *, site: str, model_name: str) -> SAEWeights:
    """Give a training SAE as the inference dictionary that SAELens itself would save."""
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    settings = sae.cfg.get_inference_sae_cfg_dict() | {"dtype": "float32", "device": "cpu"}
    settings["metadata"] |= {"hook_name": site, "model_name": model_name, "prepend_bos": True}
    return SAEWeights(settings, {name: tensor.float().cpu().contiguous().numpy() for name, tensor in state.items()})


def load_sae(record: SAERecord, *, device: torch.device | str = "cpu") -> Any:
    """Give a record's dictionary as a SAELens SAE in evaluation mode, ready to `encode` and `decode`."""
    return load_weights(record.weights, device=device)


def load_weights(weights: SAEWeights, *, device: torch.device | str = "cpu") -> Any:
    """Give stored weights as a SAELens SAE."""
    lens = quiet_sae_lens()
    with torch.random.fork_rng():  # it draws weights that are replaced at once
        sae = lens.SAE.from_dict(dict(weights.config, device=str(device)))
    state = {name: torch.from_numpy(tensor.copy()).to(device) for name, tensor in weights.tensors.items()}
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    for parameter in sae.parameters():
        parameter.requires_grad_(False)
    return sae.eval()


def random_twin(weights: SAEWeights, *, seed: int) -> SAEWeights:
    """Give a dictionary of random directions with the trained one's norms and biases: it learned nothing from data."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=weights.tensors["W_dec"].shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    tensors = dict(weights.tensors)
    tensors["W_dec"] = (directions * np.linalg.norm(tensors["W_dec"], axis=1)[:, None]).astype(np.float32)
    tensors["W_enc"] = (directions.T * np.linalg.norm(tensors["W_enc"], axis=0)).astype(np.float32)
    return SAEWeights(weights.config, tensors)
