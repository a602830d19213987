"""One chat model behind an OpenAI-compatible server: who asks it, and what that costs."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.batch import collect_earlier, in_batches
from lfp_lens.parts.chat.bounds import BudgetSpent
from lfp_lens.parts.chat.desk import Desk
from lfp_lens.parts.chat.drivers import Unaffordable, answer_one, at_once, in_turn
from lfp_lens.parts.chat.ledger import FILE, Ledger
from lfp_lens.parts.chat.question import ANSWER_TOKENS, Question, Reply
from lfp_lens.parts.chat.server import connect
from lfp_lens.parts.chat.spending import Prices, Spending
from lfp_lens.parts.chat.work import Work
from lfp_lens.results.explain_scores import Bill

WORKERS = 8
"""Threads that a caller of `ask` may use."""


class UnusableReply(LensError):
    """The model answered, but never with what was asked for."""


@dataclass(frozen=True)
class Estimate:
    """What some questions will cost, before they are asked."""

    requests: int
    """Questions that are not answered yet."""
    tokens_in: int
    """Their tokens, about."""
    tokens_out: int
    """Tokens of the answers, about."""
    prices: Prices | None
    """What the model charges, None where that is not known."""

    @property
    def usd(self) -> float | None:
        """What they cost, about; None where no price is known."""
        return self.prices.usd(self.tokens_in, self.tokens_out) if self.prices else None

    def __str__(self) -> str:
        money = "at an unknown price" if self.usd is None else f"about {self.usd:.4f} USD"
        return f"{self.requests:,} questions, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, {money}"


class Chat:
    """Asks one model through the `openai` client (`OPENAI_API_KEY`, `OPENAI_BASE_URL`). Every reply is kept in a ledger.

    >>> chat = Chat("gpt-4o-mini", folder, role="labeller", offline="lexicon")  # doctest: +SKIP
    >>> replies = list(chat.ask_all(questions))  # doctest: +SKIP
    >>> chat.bill.usd  # doctest: +SKIP
    """

    def __init__(self, model: str, folder: Path, *, role: str, offline: str, spending: Spending | None = None) -> None:
        """Say who asks. Nothing is sent, and no key is needed, before a question that was never answered.

        Args:
            model: its name at the server.
            folder: where the ledger is kept.
            role: what the model is asked as, for messages: "labeller", "rewriter".
            offline: the name of the one of this role that needs no key.
            spending: budgets, prices, server, and how requests are sent; None for no bound.

        Raises:
            LensError: for a budget in USD and a model without a known price.
        """
        self.name = f"openai:{model}"
        self.spending = spending or Spending()
        self.ledger = Ledger(folder)
        self.desk = Desk(model, self.name, self.ledger, self.spending)
        self._role, self._offline = role, offline
        self._guard = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._client: Any = None
        self._estimated: float | None = 0.0
        self._is_foretold = False

    @property
    def fingerprint(self) -> str:
        """What its replies depend on: the model, and the server where it is not the vendor's own."""
        return f"{self.name} at {self.desk.server}" if self.desk.server else self.name

    @property
    def calls(self) -> int:
        """Requests sent by this object."""
        return self.desk.tally.requests

    @property
    def cached_calls(self) -> int:
        """Questions answered from the ledger without a request."""
        return self.desk.tally.cached

    @property
    def bill(self) -> Bill:
        """What this object asked and paid since it was made; `bill_since` gives one call's part."""
        tally = self.desk.tally
        return Bill(
            requests=tally.requests, cached=tally.cached, repeated=tally.repeated, unusable=tally.unusable,
            tokens_in=tally.tokens_in, tokens_out=tally.tokens_out, usd=tally.usd if self.desk.prices else None,
            estimate_usd=self._estimated, ledger=f"{self.ledger.path.parent.name}/{FILE}",
        )  # fmt: skip

    def bill_since(self, earlier: Bill) -> Bill:
        """Give what was asked and paid since an earlier bill of this object: every number of a bill only grows."""
        now = self.bill
        return replace(
            now, requests=now.requests - earlier.requests, cached=now.cached - earlier.cached,
            repeated=now.repeated - earlier.repeated, unusable=now.unusable - earlier.unusable,
            tokens_in=now.tokens_in - earlier.tokens_in, tokens_out=now.tokens_out - earlier.tokens_out,
            usd=_less(now.usd, earlier.usd), estimate_usd=_less(now.estimate_usd, earlier.estimate_usd),
        )  # fmt: skip

    def ask_all(self, questions: Iterable[Question[Any]]) -> Iterator[Any]:
        """Give the reply to every question in order, None where no usable one ever came.

        What they will cost is told first. Questions of the same content are asked once.

        Raises:
            BudgetSpent: (a `LensError`) if the budget cannot hold the next request; what was answered is kept.
            LensError: without a key, for an unknown model, a server that is not there or keeps failing, or a ledger that cannot
                be read or written.
        """
        asked = list(questions)
        works = {work.key: work for work in map(self.desk.work, asked)}
        self._tell(list(works.values()))
        distinct = self._sent(list(works.values()))
        replies: dict[str, Any] = {}
        keys = iter(works)
        try:
            for question in asked:
                key = self.desk.key(question)
                while key not in replies:
                    replies[next(keys)] = next(distinct)
                yield replies[key]
        finally:
            distinct.close()

    def ask(
        self,
        about: str,
        system: str,
        data: dict[str, Any],
        schema: type[Reply],
        is_usable: Callable[[Reply], bool] = lambda reply: True,
        *,
        max_tokens: int | None = None,
    ) -> Reply:
        """Give the reply to one question, from the ledger if it was ever answered. May be called from several threads.

        Args:
            about: what the question is about, for messages: "feature blocks.1.hook_mlp_out 7".
            system: the instructions; they end with `DATA`.
            data: what travels as JSON in the user turn.
            schema: what the reply must be.
            is_usable: whether a reply that follows the schema answers the question.
            max_tokens: longest reply; None for 1,000 tokens.

        Raises:
            UnusableReply: after two replies that answer nothing.
            BudgetSpent, LensError: as `ask_all`.
        """
        work = self.desk.work(Question(about, system, data, schema, is_usable, max_tokens or ANSWER_TOKENS))
        # The same question may be asked twice at once: the second waits for the first one's reply.
        with self._guard:
            busy = self._busy.setdefault(work.key, threading.Lock())
        with busy:
            try:
                reply: Reply | None = answer_one(self.desk, work, self._connected)
            except Unaffordable as error:
                raise self.desk.no_room(error.full, 0, 1) from None
        if reply is None:
            raise UnusableReply(
                f"{self.name} gave no usable answer about {about}: a JSON object with {', '.join(schema.model_fields)} was asked "
                "for. Use a model that supports JSON schemas; what was answered so far is kept."
            )
        return reply

    def estimate(self, questions: Iterable[Question[Any]]) -> Estimate:
        """Estimate what those of the questions will cost that are not in the ledger yet. Nothing is sent."""
        new = [work.question for work in self._new(list(map(self.desk.work, questions)))]
        tokens_in, tokens_out = sum(one.likely_tokens_in for one in new), sum(one.typical_tokens for one in new)
        return Estimate(len(new), tokens_in, tokens_out, self.desk.prices)

    def foretell(self, estimate: Estimate) -> None:
        """Say what all that follows will cost at most, before the first question; the bill adds up these estimates alone."""
        self._estimate(estimate)
        self._is_foretold = True
        tqdm.write(f"{self.name}: at most {estimate}; what was answered before costs nothing.", file=sys.stderr)

    def _tell(self, works: list[Work]) -> None:
        """Say what the questions will cost, and refuse those that the whole budget could not hold."""
        new = self._new(works)
        if not new:
            return
        estimate = self.estimate(work.question for work in new)
        if not self._is_foretold:
            self._estimate(estimate)
        tqdm.write(f"{self.name}: {estimate}.", file=sys.stderr)
        tokens, usd = max((self.desk.reservation(work) for work in new), key=lambda reserved: sum(reserved[0]))
        budget_usd, budget_tokens = self.spending.budget_usd, self.spending.budget_tokens
        for budget, needed, unit in ((budget_usd, usd, "USD"), (budget_tokens, sum(tokens), "tokens")):
            if budget is not None and needed is not None and needed > budget:
                raise BudgetSpent(
                    f"The budget of {budget:g} {unit} is too small for one request of {self.name}, which can cost up to "
                    f"{needed:.6g} {unit}. Nothing was sent. All of them are {estimate}. Raise budget_{unit.lower()}."
                )

    def _estimate(self, estimate: Estimate) -> None:
        known = estimate.usd is not None and self._estimated is not None
        self._estimated = (self._estimated or 0.0) + (estimate.usd or 0.0) if known else None

    def _new(self, works: list[Work]) -> list[Work]:
        """Give the questions that the ledger has no end of, each once."""
        with self.ledger.turn():
            return [work for work in {work.key: work for work in works}.values() if not self._is_kept(work)]

    def _sent(self, works: list[Work]) -> Any:
        make: Any = lambda is_async: connect(self.spending, self._asker, self._offline, is_async=is_async)  # noqa: E731
        if self.spending.send == "batch":
            return in_batches(self.desk, works, make)
        collect_earlier(self.desk, works, make)
        if self.spending.send == "sync":
            return in_turn(self.desk, works, make)
        return at_once(self.desk, works, make, self.spending.concurrency)

    def _is_kept(self, work: Work) -> bool:
        replies = [attempt for attempt in self.ledger.attempts(work.key) if attempt.state == "replied"]
        return len(replies) > 1 or any(work.question.read(attempt.text) is not None for attempt in replies)

    def _connected(self) -> Any:
        with self._guard:
            if self._client is None:
                self._client = connect(self.spending, self._asker, self._offline, is_async=False)
            return self._client

    @property
    def _asker(self) -> str:
        return f"{self._role} {self.name!r}"


def _less(now: float | None, earlier: float | None) -> float | None:
    return None if now is None or earlier is None else now - earlier
