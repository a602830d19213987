"""Dictionaries from files: folders that SAELens wrote, and the paper's original checkpoints.

Nothing in a file is ever run: weights are safetensors, and a `.pt` is opened by PyTorch's reader of bare tensors, which
refuses every other pickled object. What cannot be a dictionary of one site is refused with its reason.
"""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import first_line
from lfp_lens.parts.original_saes import converted
from lfp_lens.parts.saes import quiet_sae_lens
from lfp_lens.results.train_sae import SAEWeights

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
READ = ("standard", "gated", "topk", "jumprelu")
"""Architectures whose features are numbers >= 0 that each add a multiple of one decoder row to the site."""
NOT_READ = {
    "transcoder": "reads one site and writes another; a dictionary of one site is needed",
    "abstopk": "has features below zero; ours are zero or above",
    "matching_pursuit": "finds features one after another, so that none has an encoder of its own",
    "temporal": "lets a token's features depend on other tokens",
}
BROKEN = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError)
"""What readers raise for files that are not what they expect."""
BY_TOKEN = ("layer_norm", "constant_norm_rescale")
"""Normalisations of each token by itself: a feature's effect on the site then depends on the token."""


def read_sae(path: str | Path) -> SAEWeights:
    """Read a dictionary from a SAELens folder or from one of the paper's original checkpoints.

    Args:
        path: a folder with `cfg.json` and `sae_weights.safetensors`, of any SAELens version, a finished dictionary or a
            training checkpoint; or a `.pt` file of bare tensors in either layout of the original code (see
            `parts.original_saes`).

    Returns:
        The dictionary in float32, taking activations as they come: scales of training inputs and decoder norms that
        stand apart are folded into its weights.

    Raises:
        LensError: if there is no such file, it cannot be read, or it is no dictionary of one site.
    """
    place = Path(path).expanduser()
    if place.name in (CONFIG, WEIGHTS):
        place = place.parent
    if place.is_dir():
        return _checked(_read_folder(place), place)
    if not place.is_file():
        raise LensError(f"There is no SAE at {place}: give a folder with {CONFIG} and {WEIGHTS}, or a .pt file.")
    return _checked(converted(_bare_tensors(place), str(place)), place)


def check_owner(weights: SAEWeights, site: str, width: int, fingerprint: str | None = None) -> None:
    """Raise `LensError` if a dictionary is known not to belong here; what its metadata leave out is not asked.

    Args:
        weights: from `read_sae`, a record, or `export`.
        site: where it shall read.
        width: the site's width; twice that for both models' activations side by side.
        fingerprint: of the checkpoint or pair, as given to `export`; None does not ask for it.
    """
    metadata, read = weights.config.get("metadata") or {}, int(weights.config["d_in"])
    if read != width:
        raise LensError(f"The SAE reads {read} dimensions; {site} has {width}. Give one that was trained there.")
    named = metadata.get("hook_name")
    if named not in (None, site):
        raise LensError(f"The SAE was trained at {named}; it cannot read {site}. Give one that was trained there.")
    owner = metadata.get("lfp_model")
    if None not in (owner, fingerprint) and owner != fingerprint:
        raise LensError(
            f"The SAE was trained on another checkpoint: its fingerprint is {owner}, this one's {fingerprint}. Train one "
            "here, or start from it with from_sae."
        )


def _read_folder(folder: Path) -> SAEWeights:
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise LensError(f"{folder} holds no SAE: it lacks {' and '.join(missing)}. Give a folder that SAELens wrote.")
    try:
        architecture = _architecture(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        _check_architecture(architecture, folder)
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            sae = _load(folder, architecture)
            _fold(sae, folder)
            return _as_weights(sae)
    except BROKEN as error:
        if isinstance(error, LensError):
            raise
        raise LensError(f"The SAE in {folder} cannot be read: {first_line(error)}") from error


def _architecture(config: Any) -> str:
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} is not a table of names and values.")
    return str(config.get("architecture", "standard"))


def _check_architecture(architecture: str, folder: Path) -> None:
    reason = next((why for name, why in NOT_READ.items() if name in architecture), None)
    if reason:
        raise LensError(f"The {architecture} in {folder} cannot be used: it {reason}.")
    if architecture not in (*READ, *_training_kinds()):
        raise LensError(f"{folder} holds a {architecture!r}, which is no known SAE. Known: {', '.join(READ)}.")


def _training_kinds() -> tuple[str, ...]:
    """Name the architectures that SAELens knows while they train only, ours among them."""
    quiet_sae_lens()
    import lfp_lens.parts.tied_sae  # noqa: F401 (registers it)

    return ("tied", "untied", "batchtopk", "matryoshka_batchtopk")


def _load(folder: Path, architecture: str) -> Any:
    lens = quiet_sae_lens()
    return (lens.SAE if architecture in READ else lens.TrainingSAE).load_from_disk(
        folder, device="cpu", dtype="float32"
    )


def _fold(sae: Any, folder: Path) -> None:
    """Bring an SAE to where a feature adds its value times its decoder row to the site as it is."""
    normalised = sae.cfg.normalize_activations
    if normalised in BY_TOKEN:
        raise LensError(
            f"The SAE in {folder} normalises each token by itself ({normalised}), so its decoder rows are no directions "
            "of the site. Give one that was trained without."
        )
    if normalised != "none":
        _fold_scale(sae, folder, normalised)
    if sae.cfg.reshape_activations != "none":
        raise LensError(
            f"The SAE in {folder} reads attention heads apart ({sae.cfg.reshape_activations}); no site does."
        )
    if sae.cfg.architecture() == "topk" and sae.cfg.rescale_acts_by_decoder_norm:
        sae.fold_W_dec_norm()


def _fold_scale(sae: Any, folder: Path, normalised: str) -> None:
    from sae_lens.training.activation_scaler import ActivationScaler

    scaler = ActivationScaler()
    if (folder / SCALER).is_file():
        scaler.load(folder / SCALER)
    if scaler.whitening is not None:
        sae.fold_activation_whitening(scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix)
    elif scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    else:
        raise LensError(
            f"The SAE in {folder} takes scaled inputs ({normalised}), and the scale is not in its folder ({SCALER}). Give "
            "the finished dictionary, whose cfg.json says normalize_activations none."
        )


def _as_weights(sae: Any) -> SAEWeights:
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    if sae.cfg.architecture() in READ:
        sae.process_state_dict_for_saving(state)
        config = sae.cfg.to_dict()
    else:
        sae.process_state_dict_for_saving_inference(state)
        config = sae.cfg.get_inference_sae_cfg_dict()
    return SAEWeights(
        config | {"dtype": "float32", "device": "cpu"},
        {name: tensor.float().contiguous().numpy() for name, tensor in state.items()},
    )


def _bare_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """Open a file of tensors; anything else in it is refused unopened."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise LensError(
            f"{path} is refused: it is damaged, or holds objects other than tensors, which opening would run as code. Where "
            "you trust it, load it yourself and save its state_dict alone: torch.save(model.state_dict(), ...)."
        ) from error
    except (*BROKEN, EOFError, AssertionError, IndexError) as error:
        raise LensError(f"{path} cannot be read: {first_line(error)}") from error
    return _state(found, path)


def _state(found: Any, path: Path) -> Mapping[str, torch.Tensor]:
    """Give the one table of tensors in what was saved: itself, or the one that stands beside settings."""
    tables = [found, *found.values()] if isinstance(found, Mapping) else []
    states = [
        table for table in tables
        if isinstance(table, Mapping) and table and all(isinstance(value, torch.Tensor) for value in table.values())
    ]  # fmt: skip
    if len(states) != 1:
        raise LensError(
            f"{path} holds {len(states) or 'no'} tables of tensors; one state_dict of one SAE is expected. Save each alone."
        )
    return states[0]


def _checked(weights: SAEWeights, path: Path) -> SAEWeights:
    for name, tensor in weights.tensors.items():
        if not np.isfinite(tensor).all():
            raise LensError(f"The SAE in {path} has weights that are not finite ({name}).")
    return weights
