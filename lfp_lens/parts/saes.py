"""SAE architectures by name, and the ways between our records and SAELens' modules.

Every training SAE is SAELens' class, or one of ours that takes the same step in fewer products (`parts.lean_saes`,
`parts.sparse_topk`).
"""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry
from lfp_lens.parts.sae_starts import unfolded
from lfp_lens.results.train_sae import SAERecord, SAEWeights

ARCHITECTURES: Registry[Callable[..., Any]] = Registry("SAE architecture")
"""Name -> function of (d_in, d_sae, steps), and of l1 or k where the architecture has one, giving a SAELens training SAE."""

SCALED = {"normalize_activations": "expected_average_only_in"}
"""Inputs come with norm sqrt(D) on average, as SAELens' runner gives them; the scale is folded into the weights later."""


def quiet_sae_lens() -> Any:
    """Import SAELens without its import-time warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens
    return sae_lens


@ARCHITECTURES.add("standard")
def _standard(d_in: int, d_sae: int, steps: int, l1: float | None = None) -> Any:
    lens = quiet_sae_lens()
    from lfp_lens.parts.lean_saes import LeanStandardTrainingSAE

    config = lens.StandardTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l1_coefficient=2.0 if l1 is None else l1, l1_warm_up_steps=steps // 10, **SCALED
    )
    return LeanStandardTrainingSAE(config)


@ARCHITECTURES.add("tied")
def _tied(d_in: int, d_sae: int, steps: int, l1: float | None = None) -> Any:
    from lfp_lens.parts.tied_sae import TiedTrainingSAE, TiedTrainingSAEConfig

    return TiedTrainingSAE(TiedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=0.001 if l1 is None else l1))


@ARCHITECTURES.add("untied")
def _untied(d_in: int, d_sae: int, steps: int, l1: float | None = None) -> Any:
    from lfp_lens.parts.tied_sae import UntiedTrainingSAE, UntiedTrainingSAEConfig

    return UntiedTrainingSAE(
        UntiedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=0.001 if l1 is None else l1)
    )


@ARCHITECTURES.add("topk")
def _topk(d_in: int, d_sae: int, steps: int, k: int | None = None) -> Any:
    lens = quiet_sae_lens()
    from lfp_lens.parts.sparse_topk import SparseTopKTrainingSAE

    config = lens.TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k or default_k(d_in, d_sae), **SCALED)
    return SparseTopKTrainingSAE(config)


@ARCHITECTURES.add("batchtopk")
def _batchtopk(d_in: int, d_sae: int, steps: int, k: int | None = None) -> Any:
    lens = quiet_sae_lens()
    from lfp_lens.parts.lean_saes import LeanBatchTopKTrainingSAE

    config = lens.BatchTopKTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, k=k or default_k(d_in, d_sae), topk_threshold_lr=_threshold_lr(steps), **SCALED
    )
    return LeanBatchTopKTrainingSAE(config)


@ARCHITECTURES.add("matryoshka")
def _matryoshka(d_in: int, d_sae: int, steps: int, k: int | None = None) -> Any:
    lens = quiet_sae_lens()
    from lfp_lens.parts.lean_saes import LeanMatryoshkaTrainingSAE

    widths = sorted({width for width in (d_sae // 8, d_sae // 4, d_sae // 2, d_sae) if width})
    config = lens.MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, k=k or default_k(d_in, d_sae), topk_threshold_lr=_threshold_lr(steps),
        matryoshka_widths=widths, **SCALED,
    )  # fmt: skip
    with warnings.catch_warnings():
        # A dictionary of one feature has one level only, which SAELens thinks a mistake.
        warnings.simplefilter("ignore")
        return LeanMatryoshkaTrainingSAE(config)


@ARCHITECTURES.add("jumprelu")
def _jumprelu(d_in: int, d_sae: int, steps: int) -> Any:
    lens = quiet_sae_lens()
    from lfp_lens.parts.lean_saes import LeanJumpReLUTrainingSAE

    # SAELens' defaults move thresholds by the few values within 0.05 of them, and not the encoder: at 200,000 tokens
    # two thirds of all features are still active. So wide, and with the encoder's gradient, a tenth to a fifth are.
    config = lens.JumpReLUTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l0_coefficient=0.6, l0_warm_up_steps=steps // 10, jumprelu_bandwidth=1.0,
        jumprelu_init_threshold=0.1, jumprelu_ste_to_input=True, **SCALED,
    )  # fmt: skip
    return LeanJumpReLUTrainingSAE(config)


@ARCHITECTURES.add("gated")
def _gated(d_in: int, d_sae: int, steps: int, l1: float | None = None) -> Any:
    lens = quiet_sae_lens()
    config = lens.GatedTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, l1_coefficient=2.0 if l1 is None else l1, l1_warm_up_steps=steps // 10, **SCALED
    )
    return lens.GatedTrainingSAE(config)


def default_k(width: int, d_sae: int) -> int:
    """Give an eighth of the width, the sparsity of the other architectures' defaults, as far as there are features."""
    return min(d_sae, max(1, width // 8))


def _threshold_lr(steps: int) -> float:
    """Give the rate of the running mean of thresholds, which begins at 0 and must have forgotten it by the last step."""
    return min(1.0, max(0.01, 10 / max(1, steps)))


def takes(architecture: str, setting: str) -> bool:
    """Tell whether an architecture has this setting, `l1` or `k`; raises `LensError` for an unknown architecture.

    >>> takes("topk", "k"), takes("topk", "l1"), takes("jumprelu", "k")
    (True, False, False)
    """
    return setting in inspect.signature(ARCHITECTURES[architecture]).parameters


def new_sae(architecture: str, *, d_in: int, d_sae: int, l1: float | None, k: int | None, steps: int, seed: int) -> Any:
    """Make an untrained SAELens training SAE; the same seed gives the same weights.

    Args:
        architecture: a name in `ARCHITECTURES`.
        d_in: width of the site.
        d_sae: features.
        l1: weight of the L1 norm, for the architectures that have one; None takes the architecture's own.
        k: features active per token, likewise; None takes `default_k`.
        steps: how long it will be trained: penalties warm up over a tenth of them.
        seed: of its weights.

    Raises:
        LensError: for an unknown architecture, no features, or a setting that cannot be or that the architecture lacks.
    """
    if d_sae < 1:
        raise LensError(
            f"An SAE needs at least one feature; {d_sae} given for {d_in} dimensions. Choose a larger size."
        )
    given = {name: value for name, value in (("l1", l1), ("k", k)) if value is not None}
    for name, value in given.items():
        if not takes(architecture, name):
            takers = ", ".join(other for other in ARCHITECTURES if takes(other, name))
            raise LensError(f"A {architecture} SAE has no {name}; {name}={value} given. Leave it out, or use {takers}.")
    if l1 is not None and not (math.isfinite(l1) and l1 >= 0):
        raise LensError(f"l1 must be a finite number, 0 or above; {l1} given.")
    if k is not None and not 1 <= k <= d_sae:
        raise LensError(f"k={k} features cannot be active at once in an SAE of {d_sae}.")
    make = ARCHITECTURES[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(d_in, d_sae, steps, **given)


def export(
    sae: Any, *, site: str, model_name: str, fingerprint: str | None = None, side: str | None = None
) -> SAEWeights:
    """Give a training SAE as the inference dictionary that SAELens itself would save.

    `fingerprint` (of the checkpoint or pair whose activations it was trained on) and `side` are written into the
    metadata as `lfp_model` and `lfp_side`, where `check_owner` finds them; SAELens keeps and ignores them.
    """
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    settings = sae.cfg.get_inference_sae_cfg_dict() | {"dtype": "float32", "device": "cpu"}
    owner = {"lfp_model": fingerprint, "lfp_side": side}
    settings["metadata"] |= {"hook_name": site, "model_name": model_name, "prepend_bos": True}
    settings["metadata"] |= {name: value for name, value in owner.items() if value is not None}
    return SAEWeights(settings, {name: tensor.float().cpu().contiguous().numpy() for name, tensor in state.items()})


def start_from(sae: Any, weights: SAEWeights, scale: float | None) -> None:
    """Put a finished dictionary into a fresh training SAE, so that training goes on from there.

    The inverse of `export` after SAELens' `fold_activation_norm_scaling_factor(scale)`: training inputs are
    activations times `scale`, while a finished dictionary takes activations as they come.

    Args:
        sae: from `new_sae`; changed in place. Its l1 or k and its schedules stay its own.
        weights: a dictionary of the same shape that this architecture would export: for `tied`, one whose encoder is
            its decoder's transpose with rows of unit length; for `batchtopk` and `matryoshka`, one with one threshold.
        scale: what the training inputs will be multiplied by; None for an architecture without scale, as `tied`.

    Raises:
        LensError: if the architecture cannot hold exactly this dictionary, or another width, number of features or k.
    """
    sae.load_state_dict(unfolded(sae.cfg, weights, scale))


def load_sae(record: SAERecord, *, device: torch.device | str = "cpu") -> Any:
    """Give a record's dictionary as a SAELens SAE in evaluation mode, ready to `encode` and `decode`."""
    return load_weights(record.weights, device=device)


def load_weights(weights: SAEWeights, *, device: torch.device | str = "cpu") -> Any:
    """Give stored weights as a SAELens SAE."""
    lens = quiet_sae_lens()
    with torch.random.fork_rng(), warnings.catch_warnings():  # it draws weights that are replaced at once
        # SAELens warns where an SAE says how its model was loaded; ours is as its checkpoint says.
        warnings.simplefilter("ignore")
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
