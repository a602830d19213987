"""Does labelling over HTTP lose nothing and pay nothing twice? 2,000 labels from a server of this machine that misbehaves.

Storms of 429, 500s, dropped and cut connections, truncated JSON, wrong schemas, and stalls of 30 s for a client that waits
10 s. Then the same in a process that is killed (SIGKILL) at 20 random points and started again, and with a budget that ends
halfway. The server's own log is held against the ledger. One JSON line per figure.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lfp_lens.parts.chat import BudgetSpent
from tests.benchmarks.measure import Figure
from tests.chat_jobs import CONCURRENCY, Audit, Mischief, ask, audit, kill_and_resume, label_of
from tests.chat_server import ChatServer

STALL_SECONDS, TIMEOUT_SECONDS = 30.0, 10.0
RESERVED = 0.0035
"""USD that one request may cost at most, about."""
KEY = "OPENAI_API_KEY"


def labelling(n: int = 2000, kills: int = 20) -> Iterator[Figure]:
    """Label in one go, with kills, and with a budget that ends; one line per figure."""
    before = os.environ.get(KEY)
    os.environ[KEY] = "sk-stub"
    try:
        for part in (_in_one_go, _killed, _halfway):
            with tempfile.TemporaryDirectory() as folder:
                yield from part(Path(folder), n, kills)
    finally:
        if before is None:
            del os.environ[KEY]
        else:
            os.environ[KEY] = before


def _in_one_go(folder: Path, n: int, kills: int) -> Iterator[Figure]:
    budget = _enough(n)
    mischief = Mischief(STALL_SECONDS)
    wall, cpu = time.perf_counter(), time.process_time()
    with ChatServer(mischief).running() as server:
        came = ask(server.url, folder, n, budget, TIMEOUT_SECONDS)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = audit(folder, server)
    yield _figure("labels that are right", sum(label == label_of(at) for at, label in enumerate(came)), n, f"{n}")
    yield _figure("labels a second of wall time", n / wall, n)
    yield _figure("CPU seconds, the server's included", cpu, n)
    for kind, count in sorted(mischief.counts.items()):
        yield _figure(f"answers of the server: {kind}", count, len(server.requests))
    yield from _audited(found, budget, len(server.requests))
    told = sum(mischief.counts[kind] for kind in ("drop", "cut", "stall"))
    yield _figure(
        "stalls, drops and cuts that the ledger does not count as repeated", max(0, told - found.repeated), told, "0"
    )


def _killed(folder: Path, n: int, kills: int) -> Iterator[Figure]:
    budget = _enough(n) + kills * CONCURRENCY * RESERVED
    with ChatServer(Mischief(STALL_SECONDS, seed=1, latency_seconds=0.02)).running() as server:
        came = kill_and_resume(server, folder, n, budget, TIMEOUT_SECONDS, kills, seed=0)
    found = audit(folder, server)
    open_after = np.array([*found.open_by_run.values(), *[0] * (kills - len(found.open_by_run))])
    yield _figure("killed: labels that came", came, n, f"{n}")
    yield _figure("killed: kills", kills, n)
    yield _figure(
        "killed: most requests possibly paid twice by one kill", open_after.max(), kills, f"at most {CONCURRENCY}"
    )
    yield _figure("killed: mean of them", open_after.mean(), kills)
    yield from _audited(found, budget, len(server.requests), "killed: ")


def _halfway(folder: Path, n: int, kills: int) -> Iterator[Figure]:
    budget = 0.0004 * n
    with ChatServer(Mischief(STALL_SECONDS, seed=2)).running() as server:
        try:
            ask(server.url, folder, n, budget, TIMEOUT_SECONDS)
            raise AssertionError("the budget was to end")
        except BudgetSpent:
            found = audit(folder, server)
            yield _figure("budget ends: replies kept by then", found.replies, n)
            yield from _audited(found, budget, len(server.requests), "budget ends: ")
        came = ask(server.url, folder, n, _enough(n), TIMEOUT_SECONDS)
    yield _figure("budget raised: labels that came", sum(label is not None for label in came), n, f"{n}")
    yield from _audited(audit(folder, server), _enough(n), len(server.requests), "budget raised: ")


def _enough(n: int) -> float:
    """Give a budget in USD that just suffices: what the server charges, its stalls and drops, and what is in flight."""
    return 0.00092 * n + CONCURRENCY * RESERVED + 0.01


def _audited(found: Audit, budget: float, n: int, of: str = "") -> Iterator[Figure]:
    yield _figure(f"{of}requests after their usable reply was in the ledger", found.again_after_reply, n, "0")
    yield _figure(f"{of}full answers of the server that the ledger does not tell of", found.more_than_told, n, "0")
    yield _figure(f"{of}most USD paid and reserved", found.most_held_usd, n, f"at most {budget:g}")
    yield _figure(f"{of}USD charged by the server", found.charged_usd, n, f"at most {budget:g}")


def _figure(what: str, value: float, n: int, aim: str = "") -> Figure:
    return Figure("labelling", what, float(value), float("nan"), float("nan"), n, aim)
