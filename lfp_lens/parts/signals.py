"""Signals: per-word numbers that stand for learned feedback, read directly from the models.

`implicit_reward` (ours): log p_tuned(word | context) - log p_base(word | context), in nats (beta = 1), summed over the
word's tokens. No label enters. What tuning promotes takes probability from everything else, so each value is centred by
its own context: the mean of the same difference over the whole vocabulary, weighted by the base model, is subtracted.
`activation_delta` (arXiv 2310.08164, section 3.3): the signed L2 distance, in concatenated feature space, between a word
and the neutral word of its triple. Its sign is the label's by construction.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.parts.activations import Encoded, batches, hidden_states, tokens_of_span, unembed

SIGNALS = ("implicit_reward", "activation_delta")
CHUNK_VALUES = 2**23
"""Logits held at once per model."""


def implicit_reward(
    base: Any, others: Sequence[Any], encoded: Sequence[Encoded], spans: Sequence[Sequence[tuple[int, int]]]
) -> tuple[Float[np.ndarray, "others words"], Float[np.ndarray, " words"]]:
    """Measure words in their contexts, one forward pass per model.

    Args:
        base: the base model (Hugging Face).
        others: models to compare with it, such as the tuned model and its noise twin.
        encoded: the texts.
        spans: for each text, the character spans of the words to measure; values come back in this order, flattened.

    Returns:
        The context-centred difference for each other model, and the base model's log p, both in nats and NaN where a
        word does not align with whole tokens.
    """
    starts = np.cumsum([0, *(len(row) for row in spans)])
    values = np.zeros((len(others), starts[-1]))
    base_log_p = np.zeros(starts[-1])
    seen = np.zeros(starts[-1], dtype=bool)
    with torch.no_grad():
        for batch in batches(encoded, device=base.device):
            at, row, word, is_first = [], [], [], []
            for line, text in enumerate(batch.rows):
                for offset, span in enumerate(spans[text]):
                    tokens = tokens_of_span(encoded[text], span)
                    if not tokens or tokens[0] == 0:
                        continue
                    at += tokens
                    row += [line] * len(tokens)
                    word += [starts[text] + offset] * len(tokens)
                    is_first += [True] + [False] * (len(tokens) - 1)
            if not at:
                continue
            seen[word] = True
            rows, places = torch.tensor(row), torch.tensor(at)
            targets = batch.ids_BS[rows, places]
            hidden = [hidden_states(model, batch)[rows, places - 1] for model in (base, *others)]
            log_p, centred = _compare(base, others, hidden, targets, torch.tensor(is_first))
            np.add.at(base_log_p, word, log_p)
            for which, part in enumerate(centred):
                np.add.at(values[which], word, part)
    values[:, ~seen] = np.nan
    base_log_p[~seen] = np.nan
    return values, base_log_p


def _compare(
    base: Any,
    others: Sequence[Any],
    hidden: list[torch.Tensor],
    targets: torch.Tensor,
    is_first: torch.Tensor,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Give the base log p of each target token, and each other model's difference, centred at first tokens."""
    step = max(16, CHUNK_VALUES // base.config.vocab_size)
    log_p: list[torch.Tensor] = []
    centred: list[list[torch.Tensor]] = [[] for _ in others]
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        wanted = targets[part, None]
        base_NV = torch.log_softmax(unembed(base, hidden[0][part]).float(), dim=-1)
        weights_NV = base_NV.exp()
        log_p.append(base_NV.gather(-1, wanted)[:, 0].cpu())
        for which, model in enumerate(others):
            change_NV = torch.log_softmax(unembed(model, hidden[which + 1][part]).float(), dim=-1) - base_NV
            context_N = (weights_NV * change_NV).sum(-1) * is_first[part].to(change_NV.device)
            centred[which].append((change_NV.gather(-1, wanted)[:, 0] - context_N).cpu())
    return torch.cat(log_p).double().numpy(), [torch.cat(parts).double().numpy() for parts in centred]


def activation_delta(
    positive_RF: Float[np.ndarray, "rows features"],
    neutral_RF: Float[np.ndarray, "rows features"],
    negative_RF: Float[np.ndarray, "rows features"],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Give the paper's targets of the positive and the negative members: +L2 and -L2 to the neutral member.

    >>> one = activation_delta(np.array([[3.0, 4.0]]), np.zeros((1, 2)), np.array([[0.0, 2.0]]))
    >>> [float(part[0]) for part in one]
    [5.0, -2.0]
    """
    return (
        np.linalg.norm(positive_RF - neutral_RF, axis=1),
        -np.linalg.norm(negative_RF - neutral_RF, axis=1),
    )
