"""The shuffled-reward twin, moved along its own change until its KL is that of the tunings it is compared with."""

from typing import Any

import numpy as np

from lfp_lens.parts.generation import prompt_ids
from lfp_lens.parts.twins import moved
from lfp_lens.stages.finetune.measure import measure_writing

N_PROMPTS, TRIES, CLOSE = 256, 4, 0.05
FURTHEST = 3.0
"""How far the change may be drawn out: beyond, the twin is left there and its KL is reported as it is."""


def at_same_kl(
    base: Any, twin: Any, tokenizer: Any, texts: list[str], *, kl_nats: float, max_new_tokens: int,
    prompt_tokens: tuple[int, int], seed: int,
) -> tuple[Any, float, float]:  # fmt: skip
    """Scale the twin's change until KL(twin || base) per completion is `kl_nats`; give the model, the factor and its KL.

    A shuffled lexicon is harder to learn, so its tuning moves less at the same KL coefficient. Weights between base and tuned,
    and a little beyond, trade reward for KL as another coefficient would (Rame et al. 2024, arXiv 2406.16768, "linear
    interpolation towards initialization"). KL grows with the square of the change, which gives the next guess.
    """
    prompts = prompt_ids(tokenizer, texts[-2 * N_PROMPTS :], prompt_tokens, seed=seed)[-N_PROMPTS:]

    def kl_of(share: float) -> tuple[Any, float]:
        model = moved(base, twin, share)
        facts = measure_writing(base, model, tokenizer, prompts, None, max_new_tokens=max_new_tokens, seed=seed)
        return model, float(facts["kl_nats"])

    share = 1.0
    model, found = kl_of(share)
    for _ in range(TRIES):
        if abs(found - kl_nats) <= CLOSE * kl_nats:
            break
        wanted = float(np.clip(share * np.sqrt(kl_nats / max(found, 1e-6)), 0.0, FURTHEST))
        if wanted == share:
            break
        share = wanted
        model, found = kl_of(share)
    return model, share, found
