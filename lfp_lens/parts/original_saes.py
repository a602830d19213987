"""The paper's original checkpoints as SAELens dictionaries (arXiv 2310.08164; both versions of its public code).

Tied (the VADER results, and the later code's default): one encoder matrix W [F, D], an encoder bias [F], a decoder bias
[D]; the rows of W are brought to unit length in every forward, f = ReLU(W x + b_e), x' = W^T f + b_d. Untied: a second
matrix V [D, F] decodes, x' = V f + b_d, and is never brought to unit length. Tensors are told apart by shape; where F = D
leaves that open, by `enc` and `dec` in their names.
"""

from collections.abc import Mapping

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.saes import quiet_sae_lens
from lfp_lens.results.train_sae import SAEWeights

Named = dict[str, torch.Tensor]


def converted(tensors: Mapping[str, torch.Tensor], source: str) -> SAEWeights:
    """Give an original autoencoder's state as a SAELens `standard` dictionary; `source` names it in messages.

    Raises `LensError` if the shapes are of neither layout, or leave roles open that the names do not settle.
    """
    given = {name: tensor.detach().float() for name, tensor in tensors.items()}
    matrices = {name: tensor for name, tensor in given.items() if tensor.ndim == 2}
    biases = {name: tensor for name, tensor in given.items() if tensor.ndim == 1}
    if len(matrices) not in (1, 2) or len(biases) != 2 or len(given) != len(matrices) + 2:
        raise _neither(given, source)
    encoder, decoder = _matrices(matrices, given, source)
    n_features, width = encoder.shape
    if decoder is not None and decoder.shape != (width, n_features):
        raise _neither(given, source)
    b_enc, b_dec = _biases(biases, n_features, width, given, source)
    rows_FD = torch.nn.functional.normalize(encoder, dim=-1)
    lens = quiet_sae_lens()
    config = lens.StandardSAEConfig(d_in=width, d_sae=n_features, apply_b_dec_to_input=False).to_dict()
    config["metadata"] |= {"lfp_layout": "tied" if decoder is None else "untied"}
    state = {"W_enc": rows_FD.T, "W_dec": rows_FD if decoder is None else decoder.T, "b_enc": b_enc, "b_dec": b_dec}
    return SAEWeights(config, {name: tensor.contiguous().clone().numpy() for name, tensor in state.items()})


def _matrices(matrices: Named, given: Named, source: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    if len(matrices) == 1:
        return next(iter(matrices.values())), None
    named = _by_name(matrices)
    if named is not None:
        return named
    # A dictionary has no fewer features than dimensions, and the encoder has a row for each feature.
    tall = [tensor for tensor in matrices.values() if tensor.shape[0] > tensor.shape[1]]
    wide = [tensor for tensor in matrices.values() if tensor.shape[0] < tensor.shape[1]]
    if len(tall) != 1 or len(wide) != 1:
        raise _open(given, source)
    return tall[0], wide[0]


def _biases(biases: Named, n_features: int, width: int, given: Named, source: str) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = sorted(len(tensor) for tensor in biases.values())
    if lengths != sorted((n_features, width)):
        raise _neither(given, source)
    if n_features != width:
        one, other = biases.values()
        return (one, other) if len(one) == n_features else (other, one)
    named = _by_name(biases)
    if named is None:
        raise _open(given, source)
    return named


def _by_name(two: Named) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Give the encoder's and the decoder's, if one name says so and the other does not gainsay it."""
    plain = {name: name.lower().replace("autoencoder", "") for name in two}
    encoder = [name for name, text in plain.items() if "enc" in text and "dec" not in text]
    decoder = [name for name, text in plain.items() if "dec" in text and "enc" not in text]
    rest = [name for name in two if name not in encoder + decoder]
    if len(encoder) == 1 and len(decoder + rest) == 1:
        return two[encoder[0]], two[(decoder + rest)[0]]
    if len(decoder) == 1 and len(rest) == 1:
        return two[rest[0]], two[decoder[0]]
    return None


def _told(given: Named) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in given.items())


def _neither(given: Named, source: str) -> LensError:
    return LensError(
        f"{source} is no autoencoder of the original code: it holds {_told(given)}. Expected an encoder (F, D), a bias (F), a "
        "bias (D) and, where untied, a decoder (D, F)."
    )


def _open(given: Named, source: str) -> LensError:
    return LensError(
        f"In {source} shapes do not tell encoder and decoder apart, and neither do the names: {_told(given)}. Name the tensors "
        "encoder.weight, encoder.bias, decoder.weight (untied only) and decoder.bias."
    )
