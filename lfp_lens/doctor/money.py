"""What a paid labeller will be asked, and what that costs at the prices that the user or the package's dated table names."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import Estimate, Prices, Spending, price_table

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig

PRICE_IN, PRICE_OUT = "LFP_LENS_PRICE_IN", "LFP_LENS_PRICE_OUT"
PAID = "openai:"
"""How the names of labellers begin that ask a chat model."""


@dataclass(frozen=True)
class Asked:
    """What one labeller is asked at most; what was answered once is kept on disk and never asked again."""

    labeller: str
    """Its name."""
    features: int
    """Features explained."""
    cost: Estimate
    """Questions, their tokens, and the money, about."""
    source: str
    """Where the prices are from."""


def prices(price_in: float | None = None, price_out: float | None = None) -> Prices | None:
    """Give the prices that were named, by argument or environment (LFP_LENS_PRICE_IN, LFP_LENS_PRICE_OUT).

    None if none was named: then the config's own count, or the package's dated table (`lfp_lens.parts.chat.price_table`).

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


def asked_of(config: "RunConfig", width: int, layers: int, at: Prices | None = None) -> list[Asked]:
    """Count what `explain` asks of each paid labeller of a config: the labeller itself, and the judge.

    Args:
        config: the run.
        width: of the model.
        layers: of the model.
        at: prices that were named; None for the config's, or the package's table.
    """
    from lfp_lens.parts.labellers.chat_cost import expected_cost, questions_of

    given = config.explain
    sites = min(config.sites, layers) if isinstance(config.sites, int) else len(config.sites)
    per_site = int(width * (given.size or min(config.train_sae.sizes)))
    features = {"mmcs": sites * min(given.k, per_site), "attribution": given.k, "all": sites * per_site}[given.select]
    wanted = {given.labeller: questions_of(features, given.scores, given.n_random, is_repeated=given.repeat)}
    if given.judge is not None and given.judge not in wanted:
        wanted[given.judge] = questions_of(features, ())
    found = []
    for name, numbers in wanted.items():
        if name.startswith(PAID):
            charged, source = _charged(config, name.removeprefix(PAID), at)
            cost = expected_cost(numbers, given.n_examples, given.task, charged)
            found.append(Asked(name, features, cost, source))
    return found


def _charged(config: "RunConfig", model: str, at: Prices | None) -> tuple[Prices | None, str]:
    """Give a model's prices and where they are from."""
    if at is not None:
        return at, "as you named them"
    given = config.explain
    known = Spending(prices=given.prices, send=given.send, base_url=given.base_url).prices_of(model)
    if given.prices is not None:
        return known, "as the config names them"
    table = price_table()
    return known, f"listed {table['date']}; check {table['check']} before you rely on them"
