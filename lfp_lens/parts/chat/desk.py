"""The desk: decides for every question whether it is answered, whether it may be sent, and what an outcome means.

It does no sending. What it knows stands in the ledger, so it decides the same after a kill.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.bounds import SLACK, BudgetSpent, overrun
from lfp_lens.parts.chat.ledger import Attempt, Ledger
from lfp_lens.parts.chat.question import Question
from lfp_lens.parts.chat.server import Arrived, Failed, Hopeless, Lost, Outcome
from lfp_lens.parts.chat.spending import Spending
from lfp_lens.parts.chat.work import Answer, Full, Send, Tally, Work

USABLE_TRIES = 2
"""Full replies to one question before it counts as unanswered."""
LOST_TRIES, FAILED_TRIES, UNREACHABLE_TRIES = 5, 12, 5
"""Stalls and drops before a question counts as unanswered; failures, and missing servers, before the work stops."""
LONGER = 4
"""How many times more tokens an answer may have that was cut off by its bound."""
MOST_WAIT = 60.0


class Desk:
    """Keeps the books of one chat model."""

    def __init__(self, model: str, name: str, ledger: Ledger, spending: Spending) -> None:
        self.model, self.name, self.ledger, self.spending = model, name, ledger, spending
        self.server = spending.server
        self.prices = spending.prices_of(model)
        self.tally = Tally()
        self.in_flight = 0
        self.changed = threading.Condition()
        """Notified whenever a request ends."""
        self.not_before = 0.0
        """Until when (time.monotonic) a busy server asked all to wait."""
        self.has_answered = False
        """Whether the model ever answered this object: before, an error is more likely ours."""
        self._left_out: set[str] = set()
        self._overrun: BudgetSpent | None = None

    def key(self, question: Question[Any]) -> str:
        """Give the name under which the replies to a question are kept."""
        return question.key(self.model, self.server)

    def work(self, question: Question[Any]) -> Work:
        """Take a question in."""
        return Work(question, self.key(question))

    def next(self, work: Work, connect: Callable[[], Any]) -> Answer | Send | Full:
        """Decide what happens to a question: it is answered, or its intent is written, or there is no money for it.

        `connect` makes the client if there is none: without a key nothing is to stand in the ledger.
        """
        with self.ledger.turn():
            done = self.answered(work)
            if done is not None:
                return done
            self.check_bound()
            batch = self.batch_of(work)
            if batch is not None:
                raise self.in_batch([batch])
            tokens, usd = self.reservation(work)
            full = self.room_for(tokens, usd)
            if full is not None:
                return full
            connect()
            body = self.body(work)
            line, is_again = self.intent(work, tokens, usd)
            # Counted before others can see the reservation, so that none finds the budget full and nothing in flight.
            self._count_in_flight(1)
            with self.in_flight_until_cancelled():
                self.ledger.write("intent", line if is_again else line | {"about": work.question.about, "body": body})
        return Send(line["id"], body)

    @contextmanager
    def in_flight_until_cancelled(self) -> Iterator[None]:
        """Count a request out if the wait for its outcome is broken off; `end` counts out the others."""
        try:
            yield
        except BaseException:
            self._count_in_flight(-1)
            raise

    def end(self, work: Work, sent: Send, outcome: Outcome) -> float:
        """Write down what became of a request, and give the seconds to wait before the question is looked at again.

        Raises:
            LensError: where no further request can succeed.
        """
        try:
            with self.ledger.turn():
                self.record(sent.id, outcome)
        finally:
            self._count_in_flight(-1)
        work.is_new = False
        self.check_bound()
        if isinstance(outcome, Arrived):
            return 0.0
        if isinstance(outcome, Lost):
            work.lost += 1
            return self._backoff(work.lost)
        if isinstance(outcome, Hopeless):
            raise outcome.error
        return self._after_failure(work, sent, outcome)

    def answered(self, work: Work) -> Answer | None:
        """Give the end of a question that has one, from the ledger. Inside a turn."""
        replies = [attempt for attempt in self.ledger.attempts(work.key) if attempt.state == "replied"]
        for attempt in replies:
            reply = work.question.read(attempt.text) if not attempt.verdict else None
            if reply is not None:
                self._count_cached(work)
                return Answer(reply)
            if not attempt.verdict:
                self.ledger.write("verdict", {"id": attempt.id, "why": _verdict(attempt)})
                self.tally.unusable += 1
        if len(replies) >= USABLE_TRIES or work.lost >= LOST_TRIES or work.is_final:
            self._count_cached(work)
            return Answer(None)
        return None

    def reservation(self, work: Work) -> tuple[tuple[int, int], float | None]:
        """Give the most tokens of question and answer that the next request can cost, and their price."""
        tokens = (work.question.most_tokens_in, self._most_tokens_out(work))
        return tokens, self.prices.usd(*tokens) if self.prices else None

    def room_for(self, tokens: tuple[int, int], usd: float | None) -> Full | None:
        """Tell whether the budgets have no room for a request. Inside a turn."""
        most_usd, most_tokens = self.spending.budget_usd, self.spending.budget_tokens
        if most_usd is not None and usd is not None and self.held_usd + usd > most_usd + SLACK:
            return Full(usd, "USD")
        if most_tokens is not None and self.ledger.held.tokens + sum(tokens) > most_tokens:
            return Full(sum(tokens), "tokens")
        return None

    @property
    def held_usd(self) -> float:
        """What stands in the ledger against the budget; what this model cost at an unknown price counts at today's."""
        of_mine = self.ledger.held.unpriced[self.model]
        return self.ledger.held.usd + (self.prices.usd(*of_mine) if self.prices else 0.0)

    def body(self, work: Work) -> dict[str, Any]:
        """Give the request as this model takes it."""
        body = work.question.body(self.model, max_tokens=self._most_tokens_out(work))
        return {name: part for name, part in body.items() if name not in self._left_out}

    def intent(
        self, work: Work, tokens: tuple[int, int], usd: float | None, **further: Any
    ) -> tuple[dict[str, Any], bool]:
        """Give the line of an intent, and whether the question stands in the ledger already. Inside a turn."""
        earlier = self.ledger.attempts(work.key)
        uncertain = [attempt.id for attempt in earlier if attempt.is_uncertain]
        repeats = {"repeats": uncertain[-1]} if uncertain and earlier[-1].is_uncertain else {}
        self.tally.requests += 1
        self.tally.repeated += bool(repeats)
        return self.ledger.intend(work.key, self.model, tokens, usd, **repeats, **further), bool(earlier)

    def record(self, attempt: str, outcome: Outcome) -> None:
        """Write down what became of a request. Inside a turn."""
        if isinstance(outcome, Arrived):
            self.has_answered = True
            self._record_reply(attempt, outcome)
        elif isinstance(outcome, Lost):
            self.ledger.write("lost", {"id": attempt, "why": outcome.why})
        else:
            why = outcome.why if isinstance(outcome, Failed) else "refused by the server"
            self._left_out.update(filter(None, [outcome.refused_part] if isinstance(outcome, Failed) else []))
            self.ledger.write("failed", {"id": attempt, "why": why})

    def batch_of(self, work: Work) -> str | None:
        """Give the name of the open batch that holds a question. Inside a turn."""
        for attempt in self.ledger.attempts(work.key):
            if attempt.state == "open" and self.ledger.batches.get(attempt.batch, {}).get("stage", "done") != "done":
                return attempt.batch
        return None

    def in_batch(self, names: Sequence[str]) -> LensError:
        """Make the error for questions that batches hold, each named once for a question."""
        told = ", ".join(
            f"{self.ledger.batches[name].get('batch_id', 'being submitted by another process')} ({names.count(name):,})"
            for name in dict.fromkeys(names)
        )
        return LensError(
            f"{len(names):,} of the questions to {self.name} are in batches that are not ready: {told}. Asked again they would "
            'be paid twice. Rerun with send="batch", which waits for them, or cancel the batches at the server and rerun.'
        )

    def check_bound(self) -> None:
        """Raise `BudgetSpent` if a reply cost more than its request had reserved, so that no budget can be kept."""
        if self._overrun is not None:
            raise self._overrun

    def no_room(self, full: Full, answered: int, asked: int) -> BudgetSpent:
        """Make the error for a budget that does not suffice."""
        with self.ledger.turn():
            held = f"{self.held_usd:.4f} USD" if full.unit == "USD" else f"{self.ledger.held.tokens:,} tokens"
        budget = (
            f"{self.spending.budget_usd:g} USD" if full.unit == "USD" else f"{self.spending.budget_tokens:,} tokens"
        )
        needed = f"{full.needed:.4f} USD" if full.unit == "USD" else f"{full.needed:,} tokens"
        return BudgetSpent(
            f"The budget of {budget} has no room for the next request of {self.name}, which can cost up to {needed}: {held} "
            "are spent or reserved by requests whose reply never came, in this and earlier runs "
            f"({self.ledger.path}). {answered:,} of {asked:,} questions of this step are answered and kept. Raise "
            f"budget_{full.unit.lower()} and rerun: nothing that was answered is asked again."
        )

    def _count_cached(self, work: Work) -> None:
        self.tally.cached += work.is_new
        work.is_new = False

    def _record_reply(self, attempt: str, outcome: Arrived) -> None:
        tokens = outcome.tokens
        reserved = self.ledger.attempt(attempt)
        reserved_tokens, reserved_usd = reserved.tokens, reserved.usd
        counted = tokens or reserved_tokens
        usd = self.prices.usd(*counted) if self.prices else None
        self.ledger.write("reply", {
            "id": attempt, "key": reserved.key, "text": outcome.text, "finish": outcome.finish, "refused": outcome.is_refused,
            "tokens": list(counted), "counted_by": "server" if tokens else "reservation", "usd": usd,
        })  # fmt: skip
        self._overrun = self._overrun or overrun(self.name, self.spending, reserved_tokens, reserved_usd, counted, usd)
        self.tally.tokens_in += counted[0]
        self.tally.tokens_out += counted[1]
        self.tally.usd += usd or 0.0

    def _count_in_flight(self, more: int) -> None:
        with self.changed:
            self.in_flight += more
            self.changed.notify_all()

    def _most_tokens_out(self, work: Work) -> int:
        earlier = [attempt for attempt in self.ledger.attempts(work.key) if attempt.state == "replied"]
        was_cut = bool(earlier) and earlier[-1].finish == "length"
        return work.question.max_tokens * (LONGER if was_cut else 1)

    def _after_failure(self, work: Work, sent: Send, outcome: Failed) -> float:
        if outcome.refused_part in sent.body:
            return 0.0
        if outcome.is_final:
            if not self.has_answered:
                raise LensError(f"{self.name} failed on {work.question.about}: {outcome.why}. Nothing was spent on it.")
            work.is_final = True
            return 0.0
        if outcome.is_unreachable:
            work.unreachable += 1
            if not self.has_answered or work.unreachable >= UNREACHABLE_TRIES:
                raise LensError(
                    f"There is no server for {self.name}: {outcome.why} at {self.spending.url or 'api.openai.com'}. Start it, or "
                    "name another with OPENAI_BASE_URL, then rerun: what was answered so far is kept."
                )
            return self._backoff(work.unreachable)
        work.failed += 1
        if work.failed >= FAILED_TRIES:
            raise LensError(
                f"{self.name} failed {work.failed} times on {work.question.about}: {outcome.why}. Rerun later, or lower "
                "concurrency=: what was answered so far is kept."
            )
        wait = self._backoff(work.failed)
        if outcome.wait is not None:
            wait = outcome.wait + random.uniform(0, min(self.spending.backoff_seconds, wait))
            self.not_before = max(self.not_before, time.monotonic() + outcome.wait)
        return wait

    def _backoff(self, times: int) -> float:
        """Give a wait that doubles each time, drawn from its upper half so that many do not come back at once."""
        return min(MOST_WAIT, self.spending.backoff_seconds * 2 ** (times - 1)) * random.uniform(0.5, 1.0)


def _verdict(attempt: Attempt) -> str:
    if attempt.is_refused:
        return "refused"
    return {"length": "cut off", "unreadable": "unreadable"}.get(attempt.finish, "malformed")
