"""What may be spent and how requests are sent: budgets, prices, how many at once, which server."""

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from lfp_lens.core.errors import LensError, unknown

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
SENDS = ("async", "sync", "batch")
VENDOR_HOST = "api.openai.com"
"""The only server that the table of prices speaks of."""
DEFAULT_PORTS = {"http": 80, "https": 443}
DATE_SUFFIX = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")


@dataclass(frozen=True)
class Prices:
    """What a model charges.

    >>> Prices(2.5, 10).usd(2_000_000, 500_000)
    10.0
    """

    tokens_in: float
    """USD per million tokens of questions."""
    tokens_out: float
    """USD per million tokens of answers."""

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """Give what so many tokens cost, in USD."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclass(frozen=True)
class Spending:
    """What one caller of a chat model may spend, and how it sends.

    A budget is the budget of the folder of its ledger: what earlier runs spent there counts, whoever asked.

    >>> Spending(budget_usd=5.0, prices=(2.5, 10.0), concurrency=8).send
    'async'
    """

    budget_usd: float | None = None
    """Most USD that may ever stand in the ledger, reservations included; None for no bound."""
    budget_tokens: int | None = None
    """Most tokens, of questions and answers together, likewise."""
    prices: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None
    """USD per million tokens of questions and of answers, of every model or by name (`{"gpt-4o": (2.5, 10.0)}`), which must
    then name every model that is asked; None for the table of the package."""
    concurrency: int = 16
    """Requests that run at once with `async`; no more than so many are repeated after a kill."""
    send: str = "async"
    """`async`: many at once; `sync`: one after the other; `batch`: the Batch API, at half the price within 24 hours."""
    base_url: str | None = None
    """The server; None for the environment's OPENAI_BASE_URL, or OpenAI's own."""
    timeout_seconds: float = 120.0
    """A request that is silent for so long is given up, and asked again."""
    poll_seconds: float = 30.0
    """How often the Batch API is asked whether it is ready."""
    backoff_seconds: float = 0.5
    """The first wait after a server that is busy or failing; it doubles up to a minute."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Spending":
        """Make it from arguments of a verb; None stands for the default. Raises `LensError` for what cannot be meant."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("spending option", name, known)
        made = cls(**{name: value for name, value in given.items() if value is not None})
        for name in ("budget_usd", "budget_tokens"):
            _check(name, getattr(made, name), "above 0", lambda value: value > 0)
        for name in ("timeout_seconds", "poll_seconds", "backoff_seconds"):
            _check(name, getattr(made, name), "above 0 and finite", lambda value: 0 < value < float("inf"))
        _check("concurrency", made.concurrency, "1 to 1000", lambda value: 1 <= value <= 1000 and value == int(value))
        if made.send not in SENDS:
            raise unknown("way to send", str(made.send), SENDS)
        return made

    @property
    def url(self) -> str | None:
        """The server that was named, by argument or environment; None for OpenAI's own."""
        return self.base_url or os.environ.get(URL_VARIABLE) or None

    @property
    def server(self) -> str:
        """The server as it stands in keys and ledgers: see `server_of`."""
        return server_of(self.url)

    @property
    def is_vendor(self) -> bool:
        """Whether requests go to OpenAI itself."""
        return not self.server

    def prices_of(self, model: str) -> Prices | None:
        """Give what a model charges here, None where that is not known.

        Raises:
            LensError: for `prices` that are none or leave out this model, or where `budget_usd` is set and no price is known.
        """
        if isinstance(self.prices, Mapping) and model not in self.prices:
            raise LensError(
                f"prices names {', '.join(map(repr, self.prices)) or 'no model'}, not {model!r}. Name what it charges, too, "
                "or leave prices out for the package's table."
            )
        named = self.prices.get(model) if isinstance(self.prices, Mapping) else self.prices
        if named is not None:
            if not _are_prices(named):
                raise LensError(
                    f"prices must be two numbers of at least 0, USD per million tokens of questions and of answers, or such two "
                    f"by the name of a model; {self.prices!r} given."
                )
            return Prices(*map(float, named))
        listed = listed_prices(model) if self.is_vendor else None
        if listed is None and self.budget_usd is not None:
            where = "" if self.is_vendor else f" at {self.url}"
            raise LensError(
                f"No price is known for {model!r}{where}, so budget_usd cannot be kept. "
                f"Give prices=(in, out) in USD per million tokens, or bound the tokens with budget_tokens=. "
                f"Models with a known price: {', '.join(price_table()['families'])}."
            )
        if listed is None or self.send != "batch":
            return listed
        share = price_table()["batch_share"]
        return Prices(listed.tokens_in * share, listed.tokens_out * share)


def server_of(url: str | None) -> str:
    """Give the name of a server: empty for OpenAI's own, else its URL without a key, a query and a slash at its end.

    >>> server_of("HTTP://user:key@LocalHost:8000/v1/"), server_of("https://api.openai.com/v1"), server_of(None)
    ('http://localhost:8000/v1', '', '')
    """
    if not url or not url.strip():
        return ""
    bare = url.strip()
    try:
        parts = urlsplit(bare)
        host, port = parts.hostname, parts.port
    except ValueError:
        return bare.rstrip("/")
    if not host:
        return bare.rstrip("/")
    if host == VENDOR_HOST:
        return ""
    host = f"[{host}]" if ":" in host else host
    shown = "" if port is None or port == DEFAULT_PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{host}{shown}{parts.path.rstrip('/')}"


def listed_prices(model: str) -> Prices | None:
    """Give a model's prices in the package's dated table; None for one that is not in it.

    >>> listed_prices("gpt-4o-mini-2024-07-18") == listed_prices("gpt-4o-mini")
    True
    """
    families = price_table()["families"]
    row = families.get(model) or families.get(DATE_SUFFIX.sub("", model))
    return row and Prices(float(row["in"]), float(row["out"]))


@functools.cache
def price_table() -> dict[str, Any]:
    """Give the whole table with its date; check it before you rely on it."""
    text = resources.files("lfp_lens.parts").joinpath("data/prices.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _are_prices(given: Any) -> bool:
    return (
        isinstance(given, (tuple, list))
        and len(given) == 2
        and all(isinstance(price, (int, float)) and 0 <= price < float("inf") for price in given)
    )


def _check(name: str, value: Any, asked: str, is_good: Any) -> None:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and is_good(value)):
        return
    raise LensError(f"{name} must be {asked}; {value!r} given.")
