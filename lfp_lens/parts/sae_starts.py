"""Starting weights of a training SAE that is to begin as a finished dictionary: the way back from `parts.saes.export`."""

import math
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.results.train_sae import SAEWeights

UNSCALED = ("tied", "untied")
"""The paper's architectures, whose inputs come as they are."""
UNIT_LENGTH = 1e-3
"""How far a row may be from length 1 to count as of unit length: half precision keeps it within that."""
SAME_AS = 1e-5
"""Largest difference between matrices, or thresholds relative to their size, that count as one."""


def unfolded(made: Any, weights: SAEWeights, scale: float | None) -> dict[str, torch.Tensor]:
    """Give the state of the training SAE with the settings `made` that computes, on inputs times `scale`, what `weights` do.

    See `parts.saes.start_from`, which puts it there.
    """
    kind = made.architecture()
    assert scale is None or (kind not in UNSCALED and 0 < scale < math.inf), (kind, scale)
    _check(made, weights)
    tensors = {name: torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in weights.tensors.items()}
    _move_input_bias(tensors, weights.config.get("apply_b_dec_to_input", True), made.apply_b_dec_to_input)
    if kind in UNSCALED:
        _tie(tensors, kind)
    elif kind in ("topk", "batchtopk", "matryoshka_batchtopk"):
        _unfold_unit_rows(tensors, scale or 1.0, weights)
    else:
        _unfold(tensors, scale or 1.0)
    return tensors


def _check(made: Any, weights: SAEWeights) -> None:
    config = weights.config
    shape = (config["d_in"], config["d_sae"]) == (made.d_in, made.d_sae)
    exported_as = made.get_inference_config_class().architecture()
    if not shape or config["architecture"] != exported_as:
        raise LensError(
            f"A {made.architecture()} SAE of {made.d_sae} features on {made.d_in} dimensions cannot start from a "
            f"{config['architecture']} SAE of {config['d_sae']} features on {config['d_in']} dimensions: give one of "
            f"the same shape with architecture {exported_as}, or train another architecture or size."
        )
    scaled = config.get("normalize_activations", "none")
    if scaled != "none":
        raise LensError(f"An SAE whose inputs are normalised ({scaled}) cannot be a start: fold that into its weights.")
    if exported_as == "topk" and config["k"] != made.k:
        raise LensError(f"The SAE to start from has k={config['k']}; k={made.k} given. Give k={config['k']}.")


def _move_input_bias(tensors: dict[str, torch.Tensor], given: bool, wanted: bool) -> None:
    """Let the encoder's bias carry the decoder bias that is or is not subtracted from the input."""
    if given == wanted:
        return
    shift_F = (wanted - given) * (tensors["b_dec"] @ tensors["W_enc"])
    if "b_mag" in tensors:
        tensors["b_gate"] += shift_F
        tensors["b_mag"] += shift_F * tensors["r_mag"].exp()
    else:
        tensors["b_enc"] += shift_F


def _unfold(tensors: dict[str, torch.Tensor], scale: float) -> None:
    tensors["W_enc"] /= scale
    tensors["W_dec"] *= scale
    tensors["b_dec"] *= scale


def _tie(tensors: dict[str, torch.Tensor], kind: str) -> None:
    encoder, rows = tensors.pop("W_enc").T.contiguous(), tensors.pop("W_dec")
    apart, lengths = float((encoder - rows).abs().max()), encoder.norm(dim=-1)
    is_unit = float((lengths - 1).abs().max()) <= SAME_AS
    if kind == "tied" and not (is_unit and apart <= SAME_AS):
        raise LensError(
            f"A tied SAE can only start from one whose encoder is its decoder's transpose, with rows of length 1; they "
            f"differ by up to {apart:.2g} and lengths go from {lengths.min():.3g} to {lengths.max():.3g}. Use standard."
        )
    if not is_unit:
        raise LensError(
            f"An untied SAE can only start from one whose encoder has rows of length 1; theirs go from "
            f"{lengths.min():.3g} to {lengths.max():.3g}. Use standard."
        )
    tensors["W"] = encoder
    if kind == "untied":
        tensors["W_out"] = rows


def _unfold_unit_rows(tensors: dict[str, torch.Tensor], scale: float, weights: SAEWeights) -> None:
    """Unfold where a feature's value is counted in units of its decoder row, so that the rows' length is free: 1."""
    lengths_F = tensors["W_dec"].norm(dim=-1)
    counted = weights.config["architecture"] == "jumprelu" or weights.config.get("rescale_acts_by_decoder_norm")
    if not counted and float((lengths_F - 1).abs().max()) > UNIT_LENGTH:
        raise LensError(
            f"This topk SAE has decoder rows of lengths {lengths_F.min():.3g} to {lengths_F.max():.3g} and picks its "
            "largest features without them; ours picks with them. Start from one with rows of length 1."
        )
    tensors["W_enc"] *= lengths_F
    tensors["b_enc"] *= scale * lengths_F
    tensors["W_dec"] /= lengths_F[:, None]
    tensors["b_dec"] *= scale
    if "threshold" in tensors:
        threshold_F = tensors.pop("threshold").double() * lengths_F
        lowest, highest = float(threshold_F.min()), float(threshold_F.max())
        if highest - lowest > SAME_AS * max(abs(lowest), abs(highest)):
            raise LensError(
                f"An SAE with a threshold for each feature ({lowest:.3g} to {highest:.3g}, in units of decoder rows) "
                "cannot start a batch top-k SAE, which has one for all. Train jumprelu."
            )
        tensors["topk_threshold"] = threshold_F[0] * scale
