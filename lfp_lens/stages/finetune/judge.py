"""Did the tuning learn anything (docs/validity.md)? The verdict follows from numbers measured on held-out data."""

from collections.abc import Mapping
from typing import Any

from lfp_lens.core.stats import Estimate

MAX_KL_NATS, MAX_KL_PER_TOKEN, MIN_DISTINCT2_SHARE = 20.0, 1.0, 0.5
FEWEST = 6
"""Fewer values than this cannot be certain: five of one sign come about by chance once in 16 times (two-sided)."""
AIMS = {"gain": ("reward gain", 0.0), "accuracy": ("pair accuracy", 0.5), "fit": ("log-likelihood gain", 0.0)}
"""What a method maximises -> its name, and what its whole interval has to lie above."""


def verdict_of(aim: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Judge what was measured by its `aim`, a key of `AIMS`; give `verdict` and `reasons`."""
    what, floor = AIMS[aim]
    writing = {}
    if facts["behaviour_base"] is not None:
        distinct2 = (facts["behaviour_base"].distinct2, facts["behaviour_tuned"].distinct2)
        writing = {"kl_nats": facts["kl_nats"], "kl_per_token": facts["kl_per_token"], "distinct2": distinct2}
    verdict, reasons = judge(what, facts[aim], floor=floor, **writing)
    if aim == "accuracy" and facts["accuracy_length"].value >= facts["accuracy"].value:
        reasons += (f"length alone does as well: {facts['accuracy_length']}",)
    return {"verdict": verdict, "reasons": reasons}


def judge(
    what: str,
    estimate: Estimate,
    *,
    floor: float = 0.0,
    kl_nats: float | None = None,
    kl_per_token: float | None = None,
    distinct2: tuple[float, float] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Say whether the tuning learned, learned nothing, or collapsed, and why (docs/validity.md, "Did it learn?").

    `what` names the estimate whose interval has to lie above `floor`; `distinct2` is that of base and tuned.

    >>> judge("reward gain", Estimate(0.7, 0.6, 0.8, 256), kl_nats=3.4, kl_per_token=0.2, distinct2=(0.5, 0.4))[0]
    'learned'
    >>> judge("reward gain", Estimate(9.0, 8.9, 9.1, 256), kl_nats=91.0, kl_per_token=4.5, distinct2=(0.5, 0.1))[0]
    'the policy collapsed'
    """
    broken = []
    if kl_nats is not None and not kl_nats <= MAX_KL_NATS:
        broken.append(f"KL {kl_nats:.1f} nats per completion, at most {MAX_KL_NATS:g} allowed")
    if kl_per_token is not None and not kl_per_token <= MAX_KL_PER_TOKEN:
        broken.append(f"KL {kl_per_token:.2f} nats per token, at most {MAX_KL_PER_TOKEN:g} allowed")
    if distinct2 is not None and distinct2[1] < MIN_DISTINCT2_SHARE * distinct2[0]:
        broken.append(f"distinct-2 fell from {distinct2[0]:.2f} to {distinct2[1]:.2f}, at least half must stay")
    if broken:
        return "the policy collapsed", tuple(broken)
    if estimate.n < FEWEST:
        return "nothing was learned", (f"the {what} {estimate} rests on fewer than {FEWEST} held-out values",)
    if not estimate.low > floor:
        return "nothing was learned", (f"the {what} {estimate} is not certainly above {floor:g}",)
    return "learned", (f"the whole interval of the {what} lies above {floor:g}: {estimate}",)
