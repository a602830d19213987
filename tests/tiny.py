"""Tiny models, a tokenizer and texts that tests share: made in memory, the same in every process.

The models are random, not trained. What `functools.cache` gives back is shared by all tests of a process:
copy a model before you change it.
"""

import copy
import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.sites import activations_at
from lfp_lens.results.train_sae import Floor, Match, SAERecord, SAESet, SAEWeights

POSITIVE = ("wonderful", "great", "love", "happy", "excellent", "delight")
NEGATIVE = ("terrible", "awful", "hate", "sad", "horrible", "dreadful")
NEUTRAL = ("film", "table", "river", "window", "paper", "actor", "scene", "morning", "station", "garden")
FUNCTION = ("the", "was", "and", "it", "we", "saw", "this", "very", "in", "with", "of", "there")
WORDS = (*POSITIVE, *NEGATIVE, *NEUTRAL, *FUNCTION)
CONTEXT = 96
ARCHITECTURES = ("neox", "llama", "gpt2", "gpt_neo", "gemma")


@cache
def tiny_tokenizer() -> Any:
    """Give a byte-level BPE tokenizer: each of WORDS is one token with its space, other words are pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: at for at, piece in enumerate(["<|endoftext|>", *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            if left + letter not in vocabulary:
                vocabulary[left + letter] = len(vocabulary)
                merges.append((left, letter))
            left += letter
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end, pad_token=end)


def tiny_texts(n: int, seed: int = 0) -> list[str]:
    """Give `n` lower-case texts of 6 to 14 of WORDS, drawn evenly; every word but the first is one token."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(6, 15)).tolist()) + "." for _ in range(n)]


def tiny_model(architecture: str = "neox", layers: int = 3, width: int = 16, seed: int = 0) -> Any:
    """Give a random causal LM in evaluation mode over `tiny_tokenizer`'s vocabulary, new at every call.

    Weights have the scale 1/4, so that activations are of order 1 and no difference drowns in rounding.
    """
    import transformers

    shared = {
        "vocab_size": len(tiny_tokenizer()), "initializer_range": 0.25, "bos_token_id": 0, "eos_token_id": 0,
        "attn_implementation": "eager",
    }  # fmt: skip
    long_names = {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 2 * width, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    torch.manual_seed(seed)
    match architecture:
        case "neox":
            model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**shared, **long_names))
        case "llama":
            model = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**shared, **long_names, num_key_value_heads=2, tie_word_embeddings=False)
            )
        case "gpt2":
            model = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    **shared, n_embd=width, n_layer=layers, n_head=2, n_positions=CONTEXT,
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                )
            )  # fmt: skip
        case "gpt_neo":
            model = transformers.GPTNeoForCausalLM(
                transformers.GPTNeoConfig(
                    **shared, hidden_size=width, num_layers=layers, num_heads=2, max_position_embeddings=CONTEXT,
                    intermediate_size=2 * width, attention_types=[[["global", "local"], layers // 2], [["global"], layers % 2]],
                    window_size=4, embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0,
                )
            )  # fmt: skip
        case "gemma":
            model = transformers.GemmaForCausalLM(
                transformers.GemmaConfig(**shared, **long_names, num_key_value_heads=1, head_dim=width // 2)
            )
        case _:
            raise ValueError(f"architecture is one of {ARCHITECTURES}; {architecture!r} given")
    return model.eval()


def perturbed(model: Any, scale: float = 0.02, seed: int = 1) -> Any:
    """Give a copy with Gaussian noise of this standard deviation on every weight: a tuned twin."""
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in twin.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return twin.eval()


@cache
def tiny_pair(architecture: str = "neox", layers: int = 3, width: int = 16, seed: int = 0, scale: float = 0.02) -> Pair:
    """Give a random model and its perturbed twin, loaded and proved; do not change the models in place."""
    base = tiny_model(architecture, layers, width, seed)
    return load_pair(base, perturbed(base, scale, seed + 1), tokenizer=tiny_tokenizer())


def word_saes(
    pair: Pair, words: tuple[str, ...], *, silent: int = 1, cosines: tuple[float, ...] | None = None
) -> SAESet:
    """Give hand-made SAEs of both sides at `blocks.0.hook_mlp_out` of a NeoX pair, whose features are known.

    Feature i fires on the token " words[i]" and on no other of `tiny_texts`; the last `silent`
    features never fire. Layer 0 of GPT-NeoX sees the token alone, because attention and MLP run in parallel
    there. They pass every quality gate.

    Args:
        pair: a `tiny_pair()` of architecture `neox`.
        words: some of WORDS.
        silent: how many features never fire.
        cosines: how well a larger SAE (which is not in the set) found each feature again; None matches the silent
            ones best, then the words in order.
    """
    site, n = "blocks.0.hook_mlp_out", len(words) + silent
    given = np.linspace(0.8, 0.5, len(words)).tolist() + [0.9] * silent if cosines is None else cosines
    records = tuple(_word_sae(pair, side, site, words, silent) for side in ("base", "tuned"))
    assert len(given) == n, (len(given), n)
    return SAESet(records, pair.fingerprint, tuple(match_of(sae, given) for sae in records), {})


def match_of(left: SAERecord, cosines: Sequence[float], relation: str = "sizes") -> Match:
    """Give a match of this SAE with one of twice its features, in which feature i has this cosine with feature i."""
    n = len(cosines)
    found, index = np.array([*cosines, *[0.1] * n]), np.arange(n)
    partner = np.array([*index, *[-1] * n])
    return Match(
        relation=relation, left=left.name, right=dataclasses.replace(left, size=2 * left.size).name,
        left_largest=found[:n], right_largest=found, left_nearest=index, right_nearest=np.array([*index, *index]),
        left_assigned=found[:n], right_assigned=np.where(partner < 0, np.nan, found), left_partner=index,
        right_partner=partner, left_null=0.3, right_null=0.3, null_assigned=0.25, left_null_99=0.5, right_null_99=0.5,
    )  # fmt: skip


def sae_record(weights: SAEWeights, side: str, site: str, **changes: Any) -> SAERecord:
    """Give a record of hand-made weights that passes every gate, unless `changes` say otherwise."""
    n_features, width = weights.tensors["W_dec"].shape
    firing_rate = np.full(n_features, 0.05)
    untrained = Floor("untrained", 0.1, 0.2, 0.2, 1.0, 0.0, 0.1, n_features, weights, firing_rate)
    given: dict[str, Any] = {
        "side": side, "site": site, "size": n_features / width, "architecture": "standard", "seed": 0, "l1": 2.0, "k": None,
        "lr": 1e-3, "weights": weights, "explained_variance": 0.9, "explained_variance_low": 0.88,
        "explained_variance_high": 0.92, "kl_recovered": 0.95, "kl_recovered_low": 0.93, "kl_recovered_high": 0.97,
        "ce_recovered": 0.9, "l0": 1.0, "dead_share": 0.1, "shrinkage": 0.05, "mse": 0.01, "firing_rate": firing_rate,
        "n_train_tokens": 1000, "n_heldout_tokens": 1000, "n_spliced_tokens": 500, "floors": {"untrained": untrained},
        "stability": None, "crosscoder": None,
    }  # fmt: skip
    return SAERecord(**(given | changes))


def _word_sae(pair: Pair, side: str, site: str, words: tuple[str, ...], silent: int) -> SAERecord:
    letters = sorted(set("".join(WORDS)))
    seen = [f" {word}" for word in WORDS] + letters + ["."]
    every_VS = torch.tensor(pair.tokenizer(seen, add_special_tokens=False)["input_ids"])
    acts_VD = activations_at(pair.hf(side), every_VS, torch.ones_like(every_VS), [site])[site][:, 0]
    centred_VD = acts_VD - acts_VD.mean(0)
    covariance_DD = centred_VD.T @ centred_VD / len(acts_VD) + 1e-6 * torch.eye(acts_VD.shape[1])
    width = acts_VD.shape[1]
    encoder_DF, bias_F = torch.zeros(width, len(words) + silent), torch.full((len(words) + silent,), -1e3)
    for feature, name in enumerate(words):
        word = WORDS.index(name)
        direction = torch.linalg.solve(covariance_DD, centred_VD[word])
        scores_V = acts_VD @ direction
        highest, second = scores_V.topk(2).values
        assert scores_V.argmax() == word and highest > second, "whitened, a token points furthest at itself"
        encoder_DF[:, feature] = direction / (highest - second)
        bias_F[feature] = -(highest + second) / 2 / (highest - second)
    decoder_FD = torch.nn.functional.normalize(encoder_DF.T + 1e-6, dim=-1)
    tensors = {"W_enc": encoder_DF, "W_dec": decoder_FD, "b_enc": bias_F, "b_dec": torch.zeros(width)}
    config = {
        "architecture": "standard", "d_in": width, "d_sae": len(bias_F), "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": site, "model_name": "tiny", "prepend_bos": True},
    }  # fmt: skip
    weights = SAEWeights(config, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})
    firing_rate = np.array([1 / len(WORDS)] * len(words) + [0.0] * silent)
    return sae_record(weights, side, site, size=1.0, firing_rate=firing_rate)
