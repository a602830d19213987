"""A pair that writes whole words, and SAEs in which one feature is known to carry the reward."""

import copy
from functools import cache
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.results.train_sae import SAESet, SAEWeights
from tests.tiny import NEGATIVE, POSITIVE, WORDS, perturbed, sae_record, tiny_model, tiny_tokenizer

SITE, OTHER_SITE = "blocks.2.hook_mlp_out", "blocks.1.hook_mlp_out"
N_FEATURES = 24


def ids_of(words: tuple[str, ...]) -> list[int]:
    """Token of each word after a space."""
    return [ids[0] for ids in tiny_tokenizer()([f" {word}" for word in words], add_special_tokens=False)["input_ids"]]


def speaking(model: Any) -> Any:
    """Make a NeoX model write nothing but WORDS: coordinate 0 of the last hidden state is 1, its unembedding a bias."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight[0] = 0
        model.gpt_neox.final_layer_norm.bias[0] = 1
        bias_V = model.get_output_embeddings().weight[:, 0]
        bias_V.fill_(-30)
        bias_V[ids_of(WORDS)] = 0
    return model


@cache
def speaking_pair() -> Pair:
    base = speaking(tiny_model())
    return load_pair(base, speaking(perturbed(tiny_model())), tokenizer=tiny_tokenizer())


def reward_direction(pair: Pair) -> torch.Tensor:
    """Unit direction at the last layer's output that raises positive and lowers negative words."""
    unembedding_VD = pair.tuned_hf.get_output_embeddings().weight.detach().clone()
    unembedding_VD[:, 0] = 0
    direction = unembedding_VD[ids_of(POSITIVE)].mean(0) - unembedding_VD[ids_of(NEGATIVE)].mean(0)
    return direction / direction.norm()


def planted_saes(
    pair: Pair, *, strength: float = 3.0, sign: int = 1, sites: tuple[str, ...] = (SITE,), good: bool = True
) -> SAESet:
    """SAEs of both sides whose features are about 1 on every token; feature 0 writes the reward direction.

    The other features write random directions of the same norm, `strength`, without the reward direction.
    """
    reward = reward_direction(pair)
    draw = torch.Generator().manual_seed(0)
    random_FD = torch.randn(N_FEATURES, 16, generator=draw)
    random_FD -= (random_FD @ reward)[:, None] * reward
    decoder_FD = strength * torch.nn.functional.normalize(random_FD, dim=-1)
    decoder_FD[0] = sign * strength * reward
    tensors = {
        "W_enc": 0.1 * torch.randn(16, N_FEATURES, generator=draw), "W_dec": decoder_FD,
        "b_enc": torch.ones(N_FEATURES), "b_dec": torch.zeros(16),
    }  # fmt: skip
    config = {
        "architecture": "standard", "d_in": 16, "d_sae": N_FEATURES, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none", "metadata": {},
    }  # fmt: skip
    weights = SAEWeights(config, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    records = tuple(
        sae_record(
            weights, side, site, explained_variance=0.9 if good else 0.1, l0=float(N_FEATURES),
            firing_rate=np.full(N_FEATURES, 0.95),
        )
        for side in ("base", "tuned")
        for site in sites
    )  # fmt: skip
    return SAESet(records, pair.fingerprint, (), {})
