"""The activation measures and the KL: one pass of every model over the texts, sums per text, texts resampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.parts.activations import Batch, batches, encode, unembed
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import trunk, watching

CHUNK_VALUES = 2**23
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Sums:
    """What is summed over the tokens of each text, for one pair of models."""

    squared: Float[np.ndarray, "texts layers"]
    """Squared distance of the activations."""
    angle: Float[np.ndarray, "texts layers"]
    """1 - cosine of the activations."""


@dataclass(frozen=True, eq=False)
class Read:
    """All that one pass over the texts gives."""

    between: dict[tuple[int, int], Sums]
    """(model, model) -> sums; 0 is the base, 1 the tuned model, 2 and on its replicates."""
    size: Float[np.ndarray, "texts layers"]
    """Squared L2 norm of the base's activations."""
    kl: Float[np.ndarray, " texts"]
    """KL(tuned || base) of the next token, in nats."""
    tokens: Float[np.ndarray, " texts"]
    """Tokens of each text."""
    kl_by_position: Float[np.ndarray, " positions"]
    """The same KL summed by position."""
    tokens_by_position: Float[np.ndarray, " positions"]
    """Tokens at each position."""


def read_activations(pair: Pair, texts: Sequence[str], max_tokens: int, others: Sequence[Any] = ()) -> Read:
    """Run base, tuned and the other tunings once over the texts and compare every site, at real tokens only."""
    models = [pair.base_hf, pair.tuned_hf, *others]
    wanted = [(0, 1), *((side, at) for at in range(2, len(models)) for side in (0, 1))]
    encoded = encode(pair.tokenizer, texts, max_tokens=max_tokens)
    if not any(end > start for text in encoded for start, end in text.offsets):
        raise LensError(
            f"None of the {len(texts)} texts has a token left after tokenising: there is nothing to compare on."
        )
    n_texts, n_layers = len(texts), len(pair.sites)
    between = {key: Sums(np.zeros((n_texts, n_layers)), np.zeros((n_texts, n_layers))) for key in wanted}
    size = np.zeros((n_texts, n_layers))
    kl, tokens = np.zeros(n_texts), np.zeros(n_texts)
    kl_at, tokens_at = np.zeros(max_tokens), np.zeros(max_tokens)
    with torch.no_grad():
        for batch in tqdm(list(batches(encoded, device=pair.device)), desc="diverge"):
            runs = [_run(model, pair.sites, batch) for model in models]
            real_BS = batch.mask_BS.bool()
            for layer, site in enumerate(pair.sites):
                acts = [found[site].float() for found, _ in runs]
                size[batch.rows, layer] = _per_text(acts[0].square().sum(-1), real_BS)
                for (one, two), sums in between.items():
                    sums.squared[batch.rows, layer] = _per_text((acts[one] - acts[two]).square().sum(-1), real_BS)
                    sums.angle[batch.rows, layer] = _per_text(_angle(acts[one], acts[two]), real_BS)
            rows, places = (index.cpu().numpy() for index in real_BS.nonzero(as_tuple=True))
            found_N = _kl(pair, runs[0][1][real_BS], runs[1][1][real_BS])
            texts_N = np.array(batch.rows)[rows]
            np.add.at(kl, texts_N, found_N)
            np.add.at(tokens, texts_N, 1)
            np.add.at(kl_at, places, found_N)
            np.add.at(tokens_at, places, 1)
    return Read(between, size, kl, tokens, kl_at, tokens_at)


def activation_measures(read: Read, one: int, two: int) -> dict[str, Float[np.ndarray, " layers"]]:
    """Give both activation measures of two of the models, over all tokens."""
    return {name: values[0] for name, values in _resampled(read, one, two, np.ones((1, len(read.tokens)))).items()}


def activation_fields(read: Read, seed: int) -> dict[str, Any]:
    """Give the fields of the result that texts are needed for, with intervals over resampled texts."""
    counts = _draws(read, seed)
    fields: dict[str, Any] = activation_measures(read, 0, 1)
    for name, drawn in _resampled(read, 0, 1, counts).items():
        fields[f"{name}_low"], fields[f"{name}_high"] = np.quantile(drawn, (0.025, 0.975), axis=0)
    drawn_kl = (counts @ read.kl) / (counts @ read.tokens)
    low, high = np.quantile(drawn_kl, (0.025, 0.975))
    reached = read.tokens_by_position > 0
    n_tokens = int(read.tokens.sum())
    return fields | {
        "kl": Estimate(float(read.kl.sum() / n_tokens), float(low), float(high), int((read.tokens > 0).sum())),
        "kl_by_position": read.kl_by_position[reached] / read.tokens_by_position[reached],
        "tokens_by_position": read.tokens_by_position[reached].astype(int),
        "n_tokens": n_tokens,
    }


def _draws(read: Read, seed: int) -> Float[np.ndarray, "draws texts"]:
    """Say how often each text is in each resample; without two texts there is no interval (not a number)."""
    has_tokens = read.tokens > 0
    n = int(has_tokens.sum())
    if n < 2:
        return np.full((1, len(read.tokens)), np.nan)
    counts = np.zeros((DRAWS, len(read.tokens)))
    counts[:, has_tokens] = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return counts


def _resampled(read: Read, one: int, two: int, counts: Float[np.ndarray, "draws texts"]) -> dict[str, np.ndarray]:
    sums = read.between[one, two]
    return {
        "activation_relative": np.sqrt((counts @ sums.squared) / (counts @ read.size)),
        "activation_cosine_distance": (counts @ sums.angle) / (counts @ read.tokens)[:, None],
    }


def _per_text(values_BS: torch.Tensor, real_BS: torch.Tensor) -> np.ndarray:
    return values_BS.double().masked_fill(~real_BS, 0).sum(1).cpu().numpy()


def _angle(one_BSD: torch.Tensor, two_BSD: torch.Tensor) -> torch.Tensor:
    """Give 1 - cosine as half the squared distance of the unit vectors, which does not drown in the rounding of the 1."""
    return 0.5 * (normalize(one_BSD, dim=-1) - normalize(two_BSD, dim=-1)).square().sum(-1)


def _run(model: Any, sites: Sequence[str], batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    with watching(model, sites) as found:
        hidden = trunk(model)(input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False).last_hidden_state
    return found, hidden


def _kl(pair: Pair, base_ND: torch.Tensor, tuned_ND: torch.Tensor) -> np.ndarray:
    """Give KL(tuned || base) of the next token at each position, in nats."""
    step = max(16, CHUNK_VALUES // pair.tuned_hf.config.vocab_size)
    parts = []
    for start in range(0, len(base_ND), step):
        tuned_NV, base_NV = (
            torch.log_softmax(unembed(model, hidden[start : start + step]).float(), dim=-1)
            for model, hidden in ((pair.tuned_hf, tuned_ND), (pair.base_hf, base_ND))
        )
        parts.append((tuned_NV.exp() * (tuned_NV - base_NV)).sum(-1).cpu())
    return torch.cat(parts).double().numpy()
