"""What a paid labeller will be asked: requests, tokens, and money at the prices that the user names."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lfp_lens.core.errors import LensError

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig

PRICE_IN, PRICE_OUT = "LFP_LENS_PRICE_IN", "LFP_LENS_PRICE_OUT"
CHARACTERS_PER_TOKEN = 4.0
"""Of English prose in the tokenizers of today's chat models, about."""
SCHEMA_TOKENS, WINDOW_TOKENS, WINDOWS = 55, 16, 40
"""Of one answer's JSON schema; a window that is shown; windows in one detection question (20 and 20)."""
TOKENS_PER_SHOWN, TOKENS_PER_NUMBERED = 5.5, 10.0
"""A shown token in quotes with its activation; what a numbered text costs beside its tokens."""
ANSWERS = {"describe": 30, "judge": 12, "detect": 60}
"""Tokens of one answer, about."""


@dataclass(frozen=True)
class Prices:
    """What a labeller charges."""

    tokens_in: float
    """USD per million tokens of questions."""
    tokens_out: float
    """USD per million tokens of answers."""


@dataclass(frozen=True)
class Calls:
    """What `explain` asks at most; what was answered once is kept on disk and never asked again."""

    features: int
    """Features described."""
    requests: int
    """Questions sent."""
    tokens_in: int
    """Tokens of the questions, about."""
    tokens_out: int
    """Tokens of the answers, about."""

    def usd(self, at: Prices) -> float:
        """Give what they cost."""
        return (self.tokens_in * at.tokens_in + self.tokens_out * at.tokens_out) / 1e6


def prices(price_in: float | None = None, price_out: float | None = None) -> Prices | None:
    """Give the prices that were named, by argument or environment (LFP_LENS_PRICE_IN, LFP_LENS_PRICE_OUT).

    No price comes with the package: it would be wrong within months. None if none was named.

    Raises:
        LensError: if one of the two is missing or no number of at least 0.
    """
    named = {PRICE_IN: price_in, PRICE_OUT: price_out}
    found = {name: os.environ.get(name) if given is None else given for name, given in named.items()}
    if all(value in (None, "") for value in found.values()):
        return None
    given = {name: _price(value) for name, value in found.items()}
    for name, price in given.items():
        if price is None:
            raise LensError(
                f"A price has two parts, USD per million tokens of questions and of answers; {name} is {found[name]!r}. Give "
                f"--price-in and --price-out, or set {PRICE_IN} and {PRICE_OUT}."
            )
    return Prices(given[PRICE_IN] or 0.0, given[PRICE_OUT] or 0.0)


def _price(value: str | float | None) -> float | None:
    try:
        price = float("nan" if value in (None, "") else value or 0)
    except ValueError:
        return None
    return price if 0 <= price < float("inf") else None


def calls(config: "RunConfig", width: int, layers: int) -> Calls:
    """Count what `explain` asks: for every feature a description, a judgement, and two detections (one is the control)."""
    from lfp_lens.parts.labellers import chat

    given = config.explain
    sites = min(config.sites, layers) if isinstance(config.sites, int) else len(config.sites)
    per_site = int(width * (given.size or min(config.train_sae.sizes)))
    features = {"mmcs": sites * min(given.k, per_site), "attribution": given.k, "all": sites * per_site}[given.select]
    fixed = {name: len(text) / CHARACTERS_PER_TOKEN + SCHEMA_TOKENS for name, text in
             {"describe": chat.DESCRIBE, "judge": chat.JUDGE, "detect": chat.DETECT}.items()}  # fmt: skip
    asked = {
        "describe": fixed["describe"] + given.n_examples * WINDOW_TOKENS * TOKENS_PER_SHOWN,
        "judge": fixed["judge"] + len(given.task) / CHARACTERS_PER_TOKEN + ANSWERS["describe"],
        "detect": fixed["detect"] + ANSWERS["describe"] + WINDOWS * (WINDOW_TOKENS + TOKENS_PER_NUMBERED),
    }
    times = {"describe": 1, "judge": 1, "detect": 2 if features > 1 else 1}
    return Calls(
        features=features,
        requests=features * sum(times.values()),
        tokens_in=round(features * sum(times[name] * asked[name] for name in times)),
        tokens_out=features * sum(times[name] * ANSWERS[name] for name in times),
    )
