"""Words measured on a reward model: how much each raises the reward of the text so far."""

import copy
from typing import Any

import numpy as np
import torch

from lfp_lens.core.stats import Means, mean_intervals
from lfp_lens.parts.activations import batches, tokens_of_span, word_ids
from lfp_lens.parts.reward_models import RewardModel
from lfp_lens.parts.sites import trunk
from lfp_lens.stages.probe.measure import Measured
from lfp_lens.stages.probe.words import Chosen


def measure_rewards(model: RewardModel, chosen: Chosen, *, min_contexts: int, seed: int) -> Measured:
    """Give the reward read at each word's last token less that read just before it, averaged over the word's contexts.

    A text is tokenised as the reward model reads it (`RewardModel.encode`), and not beyond its last word that is measured.
    The twin reads the same states with a head of the same norm drawn at random: what any direction of the trunk would say.
    """
    words = np.array([spot.word for spot in chosen.spots])
    heads = [model.hf.score, _random_head(model.hf.score, seed)]
    found = np.full((len(heads), len(words)), np.nan)
    starts = np.cumsum([0, *(len(row) for row in chosen.spans)])
    rows = [row for row, some in enumerate(chosen.spans) if some]
    encoded = model.encode([chosen.texts[row][: max(end for _, end in chosen.spans[row])] for row in rows])
    with torch.no_grad():
        for batch in batches(encoded, device=model.device):
            states_BSD = trunk(model.hf)(
                input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False
            ).last_hidden_state
            for line, row in enumerate(batch.rows):
                for offset, span in enumerate(chosen.spans[rows[row]]):
                    tokens = tokens_of_span(encoded[row], span)
                    if tokens and tokens[0] > 0:
                        both_2D = states_BSD[line, [tokens[-1], tokens[0] - 1]]
                        for which, head in enumerate(heads):
                            last, before = head(both_2D)[:, 0].double().tolist()
                            found[which, starts[rows[row]] + offset] = last - before
    fits = np.isfinite(found).all(0)
    names, codes = np.unique(words[fits], return_inverse=True)
    own, twin = (mean_intervals(row[fits], codes) for row in found)
    return _as_measured(model, chosen, names, own, twin, own.n >= min_contexts)


def _random_head(head: Any, seed: int) -> Any:
    """Give a head whose weights are a random direction of the same length."""
    twin = copy.deepcopy(head)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(head.weight.shape, generator=generator).to(head.weight)
    with torch.no_grad():
        twin.weight.copy_(drawn * head.weight.norm() / drawn.norm())
    return twin


def _as_measured(
    model: RewardModel, chosen: Chosen, names: np.ndarray, own: Means, twin: Means, enough: np.ndarray
) -> Measured:
    column = lambda part: np.asarray(part)[enough]  # noqa: E731
    unknown = np.full(int(enough.sum()), np.nan)
    return Measured(
        tuple(names[enough].tolist()), column(own.value), column(own.low), column(own.high), column(own.n),
        tokens=column([len(ids) for ids in word_ids(model.tokenizer, names.tolist())]),
        log_frequency=column(np.log1p([chosen.counts[str(name)] for name in names])), base_log_p=unknown,
        twin=column(twin.value), exposure=unknown,
    )  # fmt: skip
