"""Takes batches through their steps: prepared, creating, created, done.

The file and every intent are on disk before anything is sent, a batch carries our name for it, and its id is stored before the
first poll. Whatever is killed or lost between its creation and the note of its id, it is looked up by its name before it is
made again, and taken back only where the server surely did not make it.
"""

import json
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.batch_file import BatchFile
from lfp_lens.parts.chat.batch_server import ENDPOINT, BatchServer, Forgotten, Refused
from lfp_lens.parts.chat.desk import Desk
from lfp_lens.parts.chat.drivers import Connect
from lfp_lens.parts.chat.server import Arrived, Failed, Lost, Outcome, arrived, status_outcome
from lfp_lens.parts.chat.spending import server_of
from lfp_lens.parts.chat.work import Answer, Full, Work

MOST_REQUESTS, MOST_BYTES = 50_000, 100 * 2**20
"""What one batch may hold; the vendor allows 50,000 requests and 200 MB."""
ROUNDS = 3
"""How often a question that failed in a batch is put into another one."""
REFUSED = Failed("the batch was refused")
ENDED = ("completed", "expired", "cancelled", "failed")


class Clerk:
    """Knows the batches of one model at one server."""

    def __init__(self, desk: Desk, connect: Connect) -> None:
        self.desk, self.ledger = desk, desk.ledger
        self._server = BatchServer(desk.name, desk.spending, connect)
        self._files: dict[str, BatchFile] = {}

    def close(self) -> None:
        """Close the client, and give every lock back."""
        for file in self._files.values():
            file.release()
        self._server.close()

    def unanswered(self, works: Sequence[Work]) -> list[Work]:
        """Give the questions without an end."""
        with self.ledger.turn():
            return self.asked_again(works)

    def asked_again(self, works: Sequence[Work]) -> list[Work]:
        """As `unanswered`, inside a turn."""
        return [work for work in works if not isinstance(self.desk.answered(work), Answer)]

    def open_batches(self) -> list[str]:
        """Give the batches that are not done; intents of a batch that was never prepared are taken back."""
        with self.ledger.turn():
            for attempt in self.ledger.unprepared():
                self.desk.record(attempt.id, Failed("its batch was never prepared"))
            mine = (self.desk.model, self.desk.server)
            return [name for name, batch in self.ledger.batches.items()
                    if batch["stage"] != "done" and (batch["model"], server_of(batch["url"])) == mine]  # fmt: skip

    def prepare(self, works: Sequence[Work], n_asked: int) -> str | None:
        """Write the file and the intents of as many questions as the budget has room for, and give the batch's name.

        None if all of them are in other batches.
        """
        self.desk.check_bound()
        name = uuid.uuid4().hex
        self._server.connect()
        with self.ledger.turn():
            free = [work for work in works if self.desk.batch_of(work) is None]
            if not free:
                return None
            lines: list[dict[str, Any]] = []
            requests: list[str] = []
            full: Full | None = None
            tokens, usd, size = 0, 0.0, 0
            for work in free[:MOST_REQUESTS]:
                own, price = self.desk.reservation(work)
                full = self.desk.room_for((tokens + own[0], own[1]), usd + price if price is not None else None)
                if full is not None or size > MOST_BYTES:
                    break
                body = self.desk.body(work)
                line, is_again = self.desk.intent(work, own, price, batch=name)
                further = {} if is_again else {"about": work.question.about, "body": body}
                lines.append({"kind": "intent"} | line | further)
                requests.append(json.dumps({"custom_id": line["id"], "method": "POST", "url": ENDPOINT, "body": body}))
                tokens, usd, size = tokens + sum(own), usd + (price or 0.0), size + len(requests[-1])
            if requests:
                taken = self._file(name).take()
                assert taken, name
                self._file(name).write(requests)
                step = {"stage": "prepared", "model": self.desk.model, "url": self.desk.server, "n": len(lines)}
                self.ledger.write_all(*lines, {"kind": "batch", "name": name} | step)
                return name
        assert full is not None
        own, price = self.desk.reservation(free[0])
        needed = price if full.unit == "USD" and price is not None else sum(own)
        raise self.desk.no_room(Full(needed, full.unit), n_asked - len(works), n_asked)

    def submit(self, name: str) -> bool:
        """Upload and create a batch unless that was done, and store its id; False if another process is at it."""
        stage = self._stage_held(name)
        if stage in ("created", "done"):
            return stage == "created"
        if stage is None:
            return False
        id = self._server.find(name, self.ledger.batches[name]["since"]) if stage == "creating" else None
        if stage == "prepared":
            content = self._file(name).read()
            if content.count(b"\n") != self.ledger.batches[name]["n"]:
                self._close(name, Failed("the file of the batch is gone"), "refused")
                return False
            try:
                uploaded = self._server.upload(name, content)
            except Refused:
                self._close(name, REFUSED, "refused")
                raise
            self._step(name, stage="creating", file=uploaded, since=time.time())
        batch = self.ledger.batches[name]
        try:
            id = id or self._server.create(name, batch["file"], batch["since"])
        except Refused as refusal:
            is_unclear = refusal.perhaps_made or stage == "creating"
            self._close(name, Lost("its batch was perhaps made") if is_unclear else REFUSED, "refused")
            raise
        self._is_created(name, id)
        return True

    def take_back(self, name: str) -> bool:
        """Give up a batch that was not submitted, and store the id of one that was; True if nothing is to be collected."""
        stage = self._stage_held(name)
        if stage == "creating":
            id = self._server.find(name, self.ledger.batches[name]["since"])
            if id is not None:
                self._is_created(name, id)
                return False
            self._close(name, Lost("its batch was perhaps made, and not found"), "not found")
        elif stage == "prepared":
            self._close(name, Failed("the batch was not submitted"), "taken back")
        return stage != "created"

    def collect(self, name: str, works: dict[str, Work], *, is_patient: bool = True) -> None:
        """Write the replies of a batch down once it has ended; `is_patient` waits for that."""
        id = self.ledger.batches[name]["batch_id"]
        while True:
            try:
                batch = self._server.batch(id)
            except Forgotten:
                self._close(name, Lost("the server forgot the batch"), "forgotten")
                return
            if batch.status in ENDED:
                break
            if not is_patient:
                return
            time.sleep(self.desk.spending.poll_seconds)
        results: dict[str, Outcome] = {}
        rest: Outcome = Failed(f"not answered: the batch is {batch.status}")
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            try:
                raw = self._server.content(file)
            except Forgotten:
                rest = Lost("the server keeps the replies of the batch no longer")
                continue
            # A reply may hold other line ends than this one, such as U+2028.
            results.update(self._read(line) for line in raw.split(b"\n") if line.strip())
        n_replies = self._close(name, rest, str(batch.status), results, works)
        self.desk.check_bound()
        is_told = isinstance(rest, Lost) or any(
            isinstance(one, Failed) and one.refused_part for one in results.values()
        )
        if works and not (n_replies or is_told) and (batch.status == "failed" or not self.desk.has_answered):
            reasons = [str(error.message) for error in (batch.errors.data or [])] if batch.errors else []
            reasons += [outcome.why for outcome in results.values() if isinstance(outcome, (Failed, Lost))]
            raise LensError(
                f"The batch {batch.id} of {self.desk.name} is {batch.status} and holds no reply: "
                f"{' '.join((reasons or ['no reason given'])[0].split())[:300]}. Nothing was spent on it."
            )

    def _stage_held(self, name: str) -> str | None:
        """Take the lock on a batch whose id is not stored, and give its stage; None if another process has the lock."""
        with self.ledger.turn():
            stage = str(self.ledger.batches[name]["stage"])
            if stage in ("created", "done"):
                return stage
            return stage if self._file(name).take() else None

    def _is_created(self, name: str, id: str) -> None:
        self._step(name, stage="created", batch_id=id)
        self._file(name).release()
        n = self.ledger.batches[name]["n"]
        told = f"Batch {id}: {n:,} questions are with the server. This may be stopped and rerun at any time."
        tqdm.write(told, file=sys.stderr)

    def _close(
        self, name: str, rest: Outcome, status: str, results: dict[str, Outcome] | None = None,
        works: dict[str, Work] | None = None,
    ) -> int:  # fmt: skip
        """Write down what became of every request of a batch (`rest` where nothing is told), and count the replies."""
        n_replies = 0
        with self.ledger.turn():
            for attempt in self.ledger.in_batch(name):
                outcome = (results or {}).get(attempt.id, rest)
                n_replies += isinstance(outcome, Arrived)
                if attempt.state != "open":
                    continue
                self.desk.record(attempt.id, outcome)
                if works and attempt.key in works:
                    _count(works[attempt.key], outcome)
            self.ledger.write("batch", {"name": name, "stage": "done", "status": status})
        self._file(name).remove()
        return n_replies

    def _read(self, line: bytes) -> tuple[str, Outcome]:
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
        with self.ledger.turn():
            self.ledger.write("batch", {"name": name} | step)

    def _file(self, name: str) -> BatchFile:
        return self._files.setdefault(name, BatchFile(self.ledger.path.parent, name))


def _count(work: Work, outcome: Outcome) -> None:
    work.is_new = False
    if isinstance(outcome, Arrived):
        return
    work.failed += 1
    work.is_final = work.failed >= ROUNDS or (isinstance(outcome, Failed) and outcome.is_final)
