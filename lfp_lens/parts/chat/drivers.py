"""Sending: one question after the other, or many at once on an event loop of their own.

Both do the same for a question: ask the desk what to do, send, tell the desk what became of it, wait, and ask again.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lfp_lens.parts.chat.desk import Desk
from lfp_lens.parts.chat.server import Outcome, arrived, outcome_of
from lfp_lens.parts.chat.work import Answer, Full, Send, Work

PATIENCE_SECONDS, LOOK_AGAIN_SECONDS = 0.5, 0.02
"""How often a question that waits for room in the budget looks again: in a thread, which is woken, and on an event loop."""
WHOLE_REQUEST = 3
"""A request may take so many times the time that a server may be silent."""

Connect = Callable[[bool], Any]
"""Whether the client is to be asynchronous -> the client."""


class Unaffordable(Exception):
    """The budget has no room and nothing in flight can make any."""

    def __init__(self, full: Full) -> None:
        self.full = full


def answer_one(desk: Desk, work: Work, client: Callable[[], Any]) -> Any:
    """Bring one question to its end. May be called from several threads."""
    while True:
        time.sleep(max(0.0, desk.not_before - time.monotonic()))
        step = desk.next(work, client)
        if isinstance(step, Answer):
            return step.reply
        if isinstance(step, Full):
            with desk.changed:
                if not desk.in_flight:
                    raise Unaffordable(step)
                desk.changed.wait(PATIENCE_SECONDS)
            continue
        time.sleep(desk.end(work, step, _send(desk, client, step)))


def in_turn(desk: Desk, works: Sequence[Work], connect: Connect) -> Iterator[Any]:
    """Answer questions one after the other."""
    made: list[Any] = []

    def client() -> Any:
        if not made:
            made.append(connect(False))
        return made[0]

    try:
        for at, work in enumerate(works):
            try:
                yield answer_one(desk, work, client)
            except Unaffordable as error:
                raise desk.no_room(error.full, at, len(works)) from None
    finally:
        for one in made:
            one.close()


def at_once(desk: Desk, works: Sequence[Work], connect: Connect, concurrency: int) -> Iterator[Any]:
    """Answer questions many at once, and give the replies in order.

    After an error no new request is sent; those in flight are waited for, so that what is paid is kept.
    """
    ready: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    crew = _Crew(desk, works, connect, concurrency, ready)
    thread = threading.Thread(target=crew.run, name="lfp-lens chat", daemon=True)
    thread.start()
    came: dict[int, Any] = {}
    try:
        for at in range(len(works)):
            while at not in came:
                index, reply = ready.get()
                if index < 0:
                    raise reply
                came[index] = reply
            yield came.pop(at)
    finally:
        crew.stop()
        thread.join()


class _Crew:
    """Workers on one event loop, each with one question at a time."""

    def __init__(self, desk: Desk, works: Sequence[Work], connect: Connect, concurrency: int, ready: Any) -> None:
        self.desk, self.works, self.connect, self.concurrency, self.ready = desk, works, connect, concurrency, ready
        self.waiting = iter(range(len(works)))
        self.n_answered = 0
        self.error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all: asyncio.Task[None] | None = None
        self._is_stopped = threading.Event()

    def run(self) -> None:
        """Work until nothing is left; the last thing in `ready` is an error (-1, error) if there was one."""
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self.error = self.error or error
        if isinstance(self.error, Unaffordable):
            self.error = self.desk.no_room(self.error.full, self.n_answered, len(self.works))
        if self.error is not None:
            self.ready.put((-1, self.error))

    def stop(self) -> None:
        """Give up what is in flight; does nothing once all is done."""
        self._is_stopped.set()
        if self._loop is not None and self._all is not None and not self._all.done():
            try:
                self._loop.call_soon_threadsafe(self._all.cancel)
            except RuntimeError:
                # The loop closed in the meantime.
                return

    async def _run(self) -> None:
        self._loop, self._all = asyncio.get_running_loop(), asyncio.current_task()
        if self._is_stopped.is_set():
            return
        self._client: Any = None
        self._failed = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(self.works))):
                    group.create_task(self._worker())
        finally:
            if self._client is not None:
                await self._client.close()

    async def _worker(self) -> None:
        for at in self.waiting:
            if self.error is not None:
                return
            try:
                reply = await self._answer(self.works[at])
            except Exception as error:
                # The others finish what they have in flight, so no error leaves a worker.
                self.error = self.error or error
                self._failed.set()
                return
            if self.error is None:
                self.n_answered += 1
                self.ready.put((at, reply))

    async def _answer(self, work: Work) -> Any:
        while self.error is None:
            await self._pause(self.desk.not_before - time.monotonic())
            if self.error is not None:
                break
            step = self.desk.next(work, self._connected)
            if isinstance(step, Answer):
                return step.reply
            if isinstance(step, Full):
                if not self.desk.in_flight:
                    raise Unaffordable(step)
                await self._pause(LOOK_AGAIN_SECONDS)
                continue
            await self._pause(self.desk.end(work, step, await self._send(step)))
        return None

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until a worker met an error."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._failed.wait()

    async def _send(self, step: Send) -> Outcome:
        most = WHOLE_REQUEST * self.desk.spending.timeout_seconds
        with self.desk.in_flight_until_cancelled():
            try:
                async with asyncio.timeout(most):
                    raw = await self._connected().chat.completions.with_raw_response.create(**step.body)
                return arrived(raw.text)
            except Exception as error:
                return outcome_of(error, self.desk.name)

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self.connect(True)
        return self._client


def _send(desk: Desk, client: Callable[[], Any], step: Send) -> Outcome:
    with desk.in_flight_until_cancelled():
        try:
            return arrived(client().chat.completions.with_raw_response.create(**step.body).text)
        except Exception as error:
            return outcome_of(error, desk.name)
