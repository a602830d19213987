"""The Batch API: many questions in one file, answered within a day at half the price.

No question is paid twice: what an earlier run submitted is collected first, whatever way to send this run has (`Clerk`).
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from lfp_lens.parts.chat.clerk import Clerk
from lfp_lens.parts.chat.desk import Desk
from lfp_lens.parts.chat.drivers import Connect
from lfp_lens.parts.chat.work import Work


def in_batches(desk: Desk, works: Sequence[Work], connect: Connect) -> Iterator[Any]:
    """Answer questions in batches as large as the budget allows, and give the replies in order."""
    clerk = Clerk(desk, connect)
    try:
        rest = clerk.unanswered(works)
        while rest:
            for name in clerk.open_batches():
                if clerk.submit(name):
                    clerk.collect(name, {})
            rest = clerk.unanswered(rest)
            mine = clerk.prepare(rest, len(works)) if rest else None
            if mine is not None:
                clerk.submit(mine)
                clerk.collect(mine, {work.key: work for work in rest})
            elif rest:
                # Another process is about to submit them.
                time.sleep(desk.spending.poll_seconds)
            rest = clerk.unanswered(rest)
        for work in works:
            with desk.ledger.turn():
                answer = desk.answered(work)
            assert answer is not None, work.key
            yield answer.reply
    finally:
        clerk.close()


def collect_earlier(desk: Desk, works: Sequence[Work], connect: Connect) -> None:
    """Bring in what is ready of earlier runs' batches, before questions are sent in another way.

    A batch that was never submitted is taken back.

    Raises:
        LensError: if a batch that is not ready holds one of the questions: asked again, it would be paid twice.
    """
    clerk = Clerk(desk, connect)
    try:
        rest = clerk.unanswered(works)
        for name in clerk.open_batches() if rest else ():
            if not clerk.take_back(name):
                clerk.collect(name, {}, is_patient=False)
        with desk.ledger.turn():
            held = [name for name in map(desk.batch_of, clerk.asked_again(rest)) if name is not None]
            if held:
                raise desk.in_batch(held)
    finally:
        clerk.close()
