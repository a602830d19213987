"""Sampling for PPO: completions, with what the policy thought at every token as it drew it.

One pass with a KV cache gives the tokens, their log-probabilities, the entropy and the hidden states that the value head
reads, so nothing of the rollout is computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lfp_lens.parts.activations import next_token_log_probs, unembed
from lfp_lens.parts.generation import left_pad
from lfp_lens.parts.sites import trunk

CHUNK = 256
"""Positions whose logits are held at once where no gradient is kept: some MB, which stay in a CPU's cache."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One batch of sampled completions; P prompt columns (left-padded), T new tokens."""

    ids_BS: torch.Tensor
    """Prompt and completion, S = P + T."""
    mask_BS: torch.Tensor
    """1 at prompt tokens and at completion tokens through the first end-of-text."""
    real_BT: torch.Tensor
    """True at completion tokens through the first end-of-text."""
    ended_B: torch.Tensor
    """Whether each completion ended by itself."""
    log_probs_BT: torch.Tensor
    """Log p of each token when it was drawn, in nats."""
    entropy_BT: torch.Tensor
    """Entropy of the distribution it was drawn from, in nats."""
    hidden_BTD: torch.Tensor
    """The final hidden state that predicted it."""
    texts: list[str]
    """The completions, decoded."""
    whole: list[str]
    """Prompt and completion, decoded together."""


def roll_out(
    policy: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int, ends: Sequence[int]
) -> Rollout:
    """Sample one completion per prompt at temperature 1, and mark what counts."""
    ids_BP, mask_BP = left_pad(prompts, policy.device)
    with torch.no_grad():
        new_BT, log_probs_BT, entropy_BT, hidden_BTD = _sample(
            policy, ids_BP, mask_BP, max_new_tokens, torch.tensor(list(ends), device=policy.device)
        )
    real_BT, ended_B = through_end(new_BT, ends)
    kept = [ids[mask].tolist() for ids, mask in zip(new_BT, real_BT)]
    return Rollout(
        torch.cat([ids_BP, new_BT], dim=1),
        torch.cat([mask_BP, real_BT.long()], dim=1),
        real_BT,
        ended_B,
        log_probs_BT,
        entropy_BT,
        hidden_BTD,
        tokenizer.batch_decode(kept, skip_special_tokens=True),
        tokenizer.batch_decode([[*start, *ids] for start, ids in zip(prompts, kept)], skip_special_tokens=True),
    )


def through_end(new_BT: torch.Tensor, ends: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mark each row's tokens through its first end-of-text `[B, T]`, and the rows that have one `[B]`."""
    is_end_BT = torch.isin(new_BT, torch.tensor(list(ends), device=new_BT.device))
    return (is_end_BT.cumsum(1) - is_end_BT.long()) == 0, is_end_BT.any(1)


def _sample(
    policy: Any, ids_BP: torch.Tensor, mask_BP: torch.Tensor, max_new_tokens: int, ends: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Give new tokens, their log-probabilities, entropies `[B, T]` and hidden states `[B, T, D]`."""
    n_prompt = ids_BP.shape[1]
    mask_BS = torch.cat([mask_BP, mask_BP.new_ones(len(mask_BP), max_new_tokens)], dim=1)
    at_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    has_ended_B = torch.zeros(len(ids_BP), dtype=torch.bool, device=ids_BP.device)
    inputs, at_BX, cache = ids_BP, at_BS[:, :n_prompt], None
    drawn = []
    for column in range(n_prompt, n_prompt + max_new_tokens):
        out = trunk(policy)(
            input_ids=inputs,
            attention_mask=mask_BS[:, :column],
            position_ids=at_BX,
            past_key_values=cache,
            use_cache=True,
        )
        hidden_BD, cache = out.last_hidden_state[:, -1], out.past_key_values
        token_B, log_prob_B, entropy_B = _draw(unembed(policy, hidden_BD).float())
        # What follows an end is masked everywhere; a constant keeps it from depending on the draw.
        token_B = torch.where(has_ended_B, ends[0], token_B)
        drawn.append((token_B, log_prob_B, entropy_B, hidden_BD))
        has_ended_B |= torch.isin(token_B, ends)
        if has_ended_B.all():
            break
        inputs, at_BX = token_B[:, None], at_BS[:, column, None]
    return tuple(torch.stack(column, dim=1) for column in zip(*drawn))


def _draw(logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one token per row, and give its log p and the row's entropy, in nats.

    The token is where a uniform number falls on the cumulated distribution: one number per row, where
    `torch.multinomial` draws one per vocabulary entry.
    """
    log_probs_BV = logits_BV.log_softmax(-1)
    probs_BV = log_probs_BV.exp()
    # Summed in double precision, a rare token of a large vocabulary keeps its probability. Apple's GPUs have none.
    exact = torch.float32 if logits_BV.device.type == "mps" else torch.float64
    cumulated_BV = probs_BV.cumsum(-1, dtype=exact)
    point_B1 = torch.rand(len(logits_BV), 1, dtype=exact, device=logits_BV.device) * cumulated_BV[:, -1:]
    token_B1 = torch.searchsorted(cumulated_BV, point_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
    # 0 log 0 is 0.
    entropy_B = -(probs_BV * log_probs_BV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
    return token_B1[:, 0], log_probs_BV.gather(-1, token_B1)[:, 0], entropy_B


def read(policy: Any, rollout: Rollout, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give log p `[B, T]` and the hidden state `[B, T, D]` of each completion token of some rows, by one forward pass."""
    ids_BS, mask_BS, n_new = rollout.ids_BS[rows], rollout.mask_BS[rows], rollout.real_BT.shape[1]
    hidden_BTD = _hidden(policy, ids_BS, mask_BS, n_new)
    log_probs_BTV = unembed(policy, hidden_BTD).float().log_softmax(-1)
    return log_probs_BTV.gather(-1, ids_BS[:, -n_new:, None])[..., 0], hidden_BTD


def reference_log_probs(reference: Any, rollout: Rollout, parts: int) -> torch.Tensor:
    """Give the reference's log p of each completion token `[B, T]`, computed in so many parts; no gradient is kept."""
    n_new = rollout.real_BT.shape[1]
    parts = min(parts, len(rollout.ids_BS))
    found = []
    with torch.no_grad():
        for ids_BS, mask_BS in zip(rollout.ids_BS.tensor_split(parts), rollout.mask_BS.tensor_split(parts)):
            next_BT = ids_BS[:, -n_new:]
            hidden_ND = _hidden(reference, ids_BS, mask_BS, n_new).flatten(0, 1)
            log_probs_N = next_token_log_probs(reference, hidden_ND, next_BT.reshape(-1), chunk=CHUNK)
            found.append(log_probs_N.view(next_BT.shape))
    return torch.cat(found)


def _hidden(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, n_new: int) -> torch.Tensor:
    """Give the hidden states that predict the last `n_new` tokens; nothing is predicted from the last one."""
    hidden_BSD = trunk(model)(
        input_ids=ids_BS[:, :-1],
        attention_mask=mask_BS[:, :-1],
        position_ids=(mask_BS[:, :-1].cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    return hidden_BSD[:, -n_new:]
