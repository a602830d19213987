"""The ledger: every request, reply, token and cost of a folder, in one file that only grows.

An intent is written and flushed to the disk before its request is sent, a reply before it is used. So after a kill nothing
that arrived is lost, and what may have been paid without arriving is known. Processes that share the file take turns (a file
lock where the system has one), and each reads what the others wrote before it decides anything.

One JSON object per line. `intent`: a request is about to be sent, with the most it can cost (`reserved`) and, the first time,
its body. `reply`: its full text arrived. `failed`: the server answered that it did nothing. `lost`: a stall or a drop; it may
have been paid. `verdict`: why a reply is of no use. `batch`: a step of a batch.
"""

import json
import os
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

from lfp_lens.core.errors import LensError

try:
    import fcntl
except ImportError:  # pragma: no cover
    # Windows has no such lock: there only threads of one process take turns.
    fcntl = None  # type: ignore[assignment]

FILE = "ledger.jsonl"
BINARY = getattr(os, "O_BINARY", 0)
TORN = b" #torn"
"""Closes a line that a kill tore off."""
ENDS = {"reply": "replied", "failed": "failed", "lost": "lost"}
"""Kind of line -> what it makes of its request."""


@dataclass
class Attempt:
    """One request, as the ledger tells it."""

    id: str
    key: str
    model: str
    run: str
    tokens: tuple[int, int]
    """Of question and answer: as the server counted them once the reply is there, reserved before."""
    usd: float | None
    """What they cost, None where no price was known."""
    state: str = "open"
    """`open`, `replied`, `failed` (not paid) or `lost` (possibly paid)."""
    text: str = ""
    finish: str = ""
    is_refused: bool = False
    verdict: str = ""
    batch: str = ""

    @property
    def is_uncertain(self) -> bool:
        """Whether it may have been paid although no reply arrived."""
        return self.state in ("open", "lost")


@dataclass
class Held:
    """What stands against a budget: what was paid, and what may have to be."""

    tokens: int = 0
    usd: float = 0.0
    unpriced: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    """Model -> tokens of questions and answers whose price was not known."""

    def add(self, attempt: Attempt, sign: int) -> None:
        """Count a request in (1) or out (-1)."""
        if attempt.state == "failed":
            return
        self.tokens += sign * sum(attempt.tokens)
        if attempt.usd is None:
            for side in (0, 1):
                self.unpriced[attempt.model][side] += sign * attempt.tokens[side]
        else:
            self.usd += sign * attempt.usd


class Ledger:
    """The ledger of one folder. Everything is done inside `with ledger.turn():`.

    >>> ledger = Ledger(folder)  # doctest: +SKIP
    >>> with ledger.turn():  # doctest: +SKIP
    ...     ledger.attempts(key)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.run = uuid.uuid4().hex[:12]
        self.held = Held()
        self.batches: dict[str, dict[str, Any]] = {}
        self._attempts: dict[str, Attempt] = {}
        self._by_key: dict[str, list[Attempt]] = defaultdict(list)
        self._guard = RLock()
        self._read_to = 0
        self._file: int | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the file alone while inside, having read what others wrote. Raises `LensError` if it cannot be opened or read."""
        with self._guard:
            assert self._file is None, "turns do not nest"
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                opened = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | BINARY, 0o600)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                if fcntl is not None:
                    fcntl.flock(opened, fcntl.LOCK_EX)
                self._file = opened
                self._catch_up()
                yield
            finally:
                self._file = None
                os.close(opened)

    def attempts(self, key: str) -> list[Attempt]:
        """Give every request of one question, the first first."""
        return self._by_key.get(key, [])

    def attempt(self, id: str) -> Attempt:
        """Give one request."""
        return self._attempts[id]

    def in_batch(self, name: str) -> list[Attempt]:
        """Give the requests of one batch."""
        return [attempt for attempt in self._attempts.values() if attempt.batch == name]

    def unprepared(self) -> list[Attempt]:
        """Give the open requests of batches that have no step: a kill tore their lines off, and they were never sent."""
        return [one for one in self._attempts.values()
                if one.state == "open" and one.batch and one.batch not in self.batches]  # fmt: skip

    def write(self, kind: str, *lines: dict[str, Any]) -> None:
        """Append lines of one kind and flush them to the disk."""
        self.write_all(*({"kind": kind} | line for line in lines))

    def write_all(self, *lines: dict[str, Any]) -> None:
        """Append lines, each with its kind, all at once, and flush them to the disk."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        full = [{"kind": line["kind"], "time": now} | line for line in lines]
        self._append("".join(json.dumps(line) + "\n" for line in full).encode())
        for line in full:
            self._take(line)

    def intend(
        self, key: str, model: str, reserved: tuple[int, int], usd: float | None, **further: Any
    ) -> dict[str, Any]:
        """Give the line of an intent, with a new id, to be written."""
        return {"id": uuid.uuid4().hex[:16], "key": key, "model": model, "run": self.run, "reserved": list(reserved),
                "usd": usd} | further  # fmt: skip

    def _append(self, raw: bytes) -> None:
        assert self._file is not None, "write inside `with ledger.turn()`"
        try:
            rest = raw
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            raise self._unwritable(error) from error
        self._read_to += len(raw)

    def _catch_up(self) -> None:
        """Read what was appended since; a line that a kill tore off is closed and passed over."""
        assert self._file is not None
        length = os.fstat(self._file).st_size
        if length == self._read_to:
            return
        if length < self._read_to:
            raise LensError(
                f"The ledger {self.path} became shorter while it was in use. Put it back, or rerun without it."
            )
        os.lseek(self._file, self._read_to, os.SEEK_SET)
        raw = b""
        while len(raw) < length - self._read_to:
            raw += os.read(self._file, length - self._read_to - len(raw))
        *whole, rest = raw.split(b"\n")
        for line in whole:
            self._read_line(line)
        self._read_to += len(raw)
        if rest:
            self._close(rest)

    def _read_line(self, raw: bytes) -> None:
        if not raw.strip() or raw.endswith(TORN):
            return
        try:
            self._take(json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LensError(
                f"A line of the ledger {self.path} cannot be read ({type(error).__name__}): {raw[:80]!r} ... Delete "
                "that line, or move the file away (what it answered would then be paid again)."
            ) from error

    def _close(self, rest: bytes) -> None:
        """End a last line that a kill left open, so that the next one stands alone."""
        try:
            line = json.loads(rest)
        except ValueError:
            self._append(TORN + b"\n")
            return
        self._append(b"\n")
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        """Bring the state up to one line."""
        kind = line["kind"]
        if kind == "batch":
            self.batches.setdefault(line["name"], {}).update(line)
            return
        if kind == "intent":
            tokens_in, tokens_out = (int(tokens) for tokens in line["reserved"])
            attempt = Attempt(line["id"], line["key"], line["model"], line["run"], (tokens_in, tokens_out), line["usd"],
                              batch=line.get("batch", ""))  # fmt: skip
            self._attempts[attempt.id] = attempt
            self._by_key[attempt.key].append(attempt)
            self.held.add(attempt, 1)
            return
        attempt = self._attempts[line["id"]]
        if kind == "verdict":
            attempt.verdict = line["why"]
            return
        self.held.add(attempt, -1)
        attempt.state = ENDS[kind]
        if kind == "reply":
            attempt.text, attempt.finish, attempt.is_refused = str(line["text"]), line["finish"], bool(line["refused"])
            attempt.tokens, attempt.usd = (int(line["tokens"][0]), int(line["tokens"][1])), line["usd"]
        self.held.add(attempt, 1)

    def _unwritable(self, error: OSError) -> LensError:
        return LensError(f"The reply could not be kept in {self.path.parent}: {error}. Make that folder writable.")
