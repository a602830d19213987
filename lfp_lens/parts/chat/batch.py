"""The Batch API: many questions in one file, answered within a day at half the price.

No question is paid twice: the file and every intent are on disk before anything is sent, a batch carries our name for it, and
its id is stored before the first poll. A kill between the two is mended by looking the name up among the server's batches.
"""

import json
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.desk import Answer, Desk, Full, Work
from lfp_lens.parts.chat.drivers import Connect
from lfp_lens.parts.chat.server import Arrived, Failed, Hopeless, Lost, Outcome, arrived, outcome_of, status_outcome

ENDPOINT, WINDOW, NAME = "/v1/chat/completions", "24h", "lfp_lens"
MOST_REQUESTS, MOST_BYTES = 50_000, 100 * 2**20
"""What one batch may hold; the vendor allows 50,000 requests and 200 MB."""
ROUNDS = 3
"""How often a question that failed in a batch is put into another one."""
TRIES = 12
LOOK_BACK_SECONDS = 86_400
"""How much older than our own record a batch may look, before the search for it ends."""


def in_batches(desk: Desk, works: Sequence[Work], connect: Connect) -> Iterator[Any]:
    """Answer questions in batches as large as the budget allows, and give the replies in order."""
    clerk = _Clerk(desk, connect)
    try:
        clerk.finish_earlier()
        rest = clerk.unanswered(works)
        while rest:
            name = clerk.prepare(rest, len(works))
            clerk.submit(name)
            clerk.collect(name, {work.key: work for work in rest})
            rest = clerk.unanswered(rest)
        for work in works:
            with desk.ledger.turn():
                answer = desk.answered(work)
            assert answer is not None, work.key
            yield answer.reply
    finally:
        clerk.close()


class _Clerk:
    """Takes batches through their steps: prepared, creating, created, done."""

    def __init__(self, desk: Desk, connect: Connect) -> None:
        self.desk, self.ledger, self._connect = desk, desk.ledger, connect
        self._client: Any = None
        self._url = desk.spending.url or ""

    @property
    def client(self) -> Any:
        """The client, made when it is first needed."""
        if self._client is None:
            self._client = self._connect(False)
        return self._client

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()

    def unanswered(self, works: Sequence[Work]) -> list[Work]:
        """Give the questions without an end."""
        with self.ledger.turn():
            return [work for work in works if not isinstance(self.desk.answered(work), Answer)]

    def finish_earlier(self) -> None:
        """Collect what earlier runs submitted and did not live to see."""
        with self.ledger.turn():
            mine = (self.desk.model, self._url)
            open_ones = [name for name, batch in self.ledger.batches.items()
                         if batch["stage"] != "done" and (batch["model"], batch["url"]) == mine]  # fmt: skip
        for name in open_ones:
            self.submit(name)
            self.collect(name, {})

    def prepare(self, works: Sequence[Work], n_asked: int) -> str:
        """Write the file and the intents of as many questions as the budget has room for, and give the batch's name."""
        name = uuid.uuid4().hex
        assert self.client is not None
        with self.ledger.turn():
            lines: list[dict[str, Any]] = []
            requests: list[str] = []
            full: Full | None = None
            tokens, usd, size = 0, 0.0, 0
            for work in works[:MOST_REQUESTS]:
                own, price = self.desk.reservation(work)
                full = self.desk.room_for((tokens + own[0], own[1]), usd + price if price is not None else None)
                if full is not None or size > MOST_BYTES:
                    break
                body = self.desk.body(work)
                line, is_again = self.desk.intent(work, own, price, batch=name)
                lines.append(line if is_again else line | {"about": work.question.about, "body": body})
                requests.append(json.dumps({"custom_id": line["id"], "method": "POST", "url": ENDPOINT, "body": body}))
                tokens, usd, size = tokens + sum(own), usd + (price or 0.0), size + len(requests[-1])
            if requests:
                self._write_file(name, requests)
                self.ledger.write("intent", *lines)
                self._step(name, stage="prepared", model=self.desk.model, url=self._url, n=len(lines))
        if not requests:
            assert full is not None
            own, price = self.desk.reservation(works[0])
            needed = price if full.unit == "USD" and price is not None else sum(own)
            raise self.desk.no_room(Full(needed, full.unit), n_asked - len(works), n_asked)
        return name

    def submit(self, name: str) -> None:
        """Upload and create a batch unless that was done, and store its id."""
        batch = self.ledger.batches[name]
        if batch["stage"] == "prepared":
            content = self._path(name).read_bytes()
            uploaded = self._patiently(
                name, lambda: self.client.files.create(file=(f"{name}.jsonl", content), purpose="batch")
            )
            with self.ledger.turn():
                self._step(name, stage="creating", file=uploaded.id, since=time.time())
            id = None
        elif batch["stage"] == "creating":
            id = self._look_up(name)
        else:
            return
        while id is None:
            id = self._create(name) or self._look_up(name)
        with self.ledger.turn():
            self._step(name, stage="created", batch_id=id)
        told = f"Batch {id}: {batch['n']:,} questions are with the server. This may be stopped and rerun at any time."
        tqdm.write(told, file=sys.stderr)

    def collect(self, name: str, works: dict[str, Work]) -> None:
        """Wait for a batch and write its replies down."""
        import openai

        id = self.ledger.batches[name]["batch_id"]
        while True:
            try:
                batch = self._patiently(name, lambda: self.client.batches.retrieve(id), also=openai.NotFoundError)
            except openai.NotFoundError:
                self._forget(name)
                return
            if batch.status in ("completed", "expired", "cancelled", "failed"):
                break
            time.sleep(self.desk.spending.poll_seconds)
        results: dict[str, Outcome] = {}
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                text = self._patiently(name, lambda file=file: self.client.files.content(file)).text
                results.update(self._read(line) for line in text.splitlines() if line.strip())
        with self.ledger.turn():
            n_replies = 0
            for attempt in self.ledger.in_batch(name):
                outcome = results.get(attempt.id, Failed(f"not answered: the batch is {batch.status}"))
                n_replies += isinstance(outcome, Arrived)
                if attempt.state != "open":
                    continue
                self.desk.record(attempt.id, outcome)
                if attempt.key in works:
                    _count(works[attempt.key], outcome)
            self._step(name, stage="done", status=batch.status)
        self._path(name).unlink(missing_ok=True)
        if works and not n_replies and (batch.status == "failed" or not self.desk.has_answered):
            reasons = [str(error.message) for error in (batch.errors.data or [])] if batch.errors else []
            reasons += [outcome.why for outcome in results.values() if isinstance(outcome, (Failed, Lost))]
            raise LensError(
                f"The batch {batch.id} of {self.desk.name} is {batch.status} and holds no reply: "
                f"{' '.join((reasons or ['no reason given'])[0].split())[:300]}. Nothing was spent on it."
            )

    def _create(self, name: str) -> str | None:
        """Create the batch; None if the server may or may not have done it."""
        for tried in range(TRIES):
            try:
                return str(self.client.batches.create(
                    input_file_id=self.ledger.batches[name]["file"], endpoint=ENDPOINT, completion_window=WINDOW,
                    metadata={NAME: name},
                ).id)  # fmt: skip
            except Exception as error:
                outcome = outcome_of(error, self.desk.name)
            if isinstance(outcome, Lost):
                return None
            self._raise_or_wait(name, outcome, tried)
        raise AssertionError("the last try raises")

    def _look_up(self, name: str) -> str | None:
        """Find our name among the server's batches: twice, since a new one may not be listed at once."""
        since = self.ledger.batches[name]["since"] - LOOK_BACK_SECONDS
        for is_last in (False, True):
            for batch in self._patiently(name, lambda: self.client.batches.list(limit=100)):
                if (batch.metadata or {}).get(NAME) == name:
                    return str(batch.id)
                if batch.created_at < since:
                    break
            if not is_last:
                time.sleep(self.desk.spending.poll_seconds)
        return None

    def _patiently(self, name: str, ask: Any, *, also: Any = ()) -> Any:
        """Do what costs nothing, again if it fails; errors of the kind `also` are the caller's."""
        for tried in range(TRIES):
            try:
                return ask()
            except also:
                raise
            except Exception as error:
                outcome = outcome_of(error, self.desk.name)
            self._raise_or_wait(name, outcome, tried)
        raise AssertionError("the last try raises")

    def _raise_or_wait(self, name: str, outcome: Outcome, tried: int) -> None:
        if isinstance(outcome, Hopeless):
            if self.ledger.batches[name]["stage"] in ("prepared", "creating"):
                self._give_up(name)
            raise outcome.error
        assert isinstance(outcome, (Failed, Lost))
        is_final = isinstance(outcome, Failed) and outcome.is_final
        if is_final or tried == TRIES - 1:
            raise LensError(
                f"{self.desk.name} failed on a batch: {outcome.why}. Rerun later: what was submitted is kept."
            )
        time.sleep(min(60.0, self.desk.spending.backoff_seconds * 2**tried))

    def _forget(self, name: str) -> None:
        """Close a batch that the server keeps no longer: its questions may have been paid."""
        with self.ledger.turn():
            for attempt in self.ledger.in_batch(name):
                if attempt.state == "open":
                    self.desk.record(attempt.id, Lost("the server forgot the batch"))
            self._step(name, stage="done", status="forgotten")
        self._path(name).unlink(missing_ok=True)

    def _give_up(self, name: str) -> None:
        """Take back what was never submitted."""
        with self.ledger.turn():
            for attempt in self.ledger.in_batch(name):
                self.desk.record(attempt.id, Failed("the batch was refused"))
            self._step(name, stage="done", status="refused")
        self._path(name).unlink(missing_ok=True)

    def _read(self, line: str) -> tuple[str, Outcome]:
        try:
            found = json.loads(line)
            response = found["response"]
            status, body = int(response["status_code"]), response["body"]
            id = str(found["custom_id"])
        except (ValueError, KeyError, TypeError):
            return "", Failed("a line of the results cannot be read")
        if status == 200:
            return id, arrived(json.dumps(body))
        return id, status_outcome(status, body, {}, self.desk.name, "error")

    def _step(self, name: str, **step: Any) -> None:
        self.ledger.write("batch", {"name": name} | step)

    def _path(self, name: str) -> Any:
        return self.ledger.path.parent / "batches" / f"{name}.jsonl"

    def _write_file(self, name: str, requests: Sequence[str]) -> None:
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(requests) + "\n", encoding="utf-8")
        except OSError as error:
            raise LensError(
                f"The batch could not be written to {path.parent}: {error}. Make that folder writable."
            ) from error


def _count(work: Work, outcome: Outcome) -> None:
    work.is_new = False
    if isinstance(outcome, Arrived):
        return
    work.failed += 1
    work.is_final = work.failed >= ROUNDS or (isinstance(outcome, Failed) and outcome.is_final)
