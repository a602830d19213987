"""Many labels asked of a server that misbehaves, in a process that may be killed, and what its ledger shows afterwards.

`python -m tests.chat_jobs URL FOLDER N BUDGET SECONDS` asks for N labels and prints how many came.
"""

import collections
import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lfp_lens.parts.chat import DATA, Chat, Question, Spending
from tests.chat_server import Answer, ChatServer, Fault, Said, data_of, question_of

PRICES = (2.5, 10.0)
MOST_OUT = 60
CONCURRENCY = 16
STORM = 40
"""So many requests in a row are refused with 429."""


class Label(BaseModel):
    label: str


def questions(n: int) -> list[Question[Label]]:
    """Give n different questions of about 700 bytes."""
    return [
        Question(f"label {at}", "Say what is asked." + DATA, {"number": at, "text": f"{at} " * 40}, Label,
                 max_tokens=MOST_OUT, typical_tokens=20)
        for at in range(n)
    ]  # fmt: skip


def label_of(number: int) -> str:
    """Give the right label of a question."""
    return f"label of {number}"


@dataclass
class Mischief:
    """Answers rightly most of the time: storms of 429, 500s, drops, cuts, truncated JSON, wrong schemas and stalls between."""

    stall_seconds: float
    """How long a stall lasts; the client is to give up before."""
    seed: int = 0
    latency_seconds: float = 0.005
    storm_every: int = 300
    """Of so many requests, the last `STORM` are refused."""
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    """What was done how often."""
    spoiled: set[str] = field(default_factory=set)
    """Questions that had a full reply of no use; they get no second one."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._guard = threading.Lock()

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        with self._guard:
            kind = self._kind(number, question_of(body))
            self.counts[kind] += 1
        time.sleep(self.latency_seconds)
        if kind == "429":
            return Fault("status", status=429, error={"message": "slow down"}, headers={"retry-after-ms": "50"})
        if kind == "500":
            return 500
        if kind in ("drop", "cut", "garbled"):
            return Fault(kind, tokens=self._charge(body, 40))
        if kind == "stall":
            return Fault("drop", seconds=self.stall_seconds, tokens=self._charge(body, 40))
        wrong = {"truncated": '{"label": "lab', "schema": '{"other": 1}', "prose": "I cannot help with that."}
        text = wrong.get(kind) or json.dumps({"label": label_of(data_of(body)["number"])})
        return Said(text, self._charge(body, len(text) // 2))

    def _charge(self, body: dict[str, Any], tokens_out: int) -> tuple[int, int]:
        """Count tokens generously: one for every two bytes."""
        return len(json.dumps(body["messages"])) // 2, tokens_out

    def _kind(self, number: int, question: str) -> str:
        if number % self.storm_every >= self.storm_every - STORM:
            return "429"
        drawn = self._random.random()
        for kind, share in (("500", 0.05), ("drop", 0.03), ("cut", 0.02), ("stall", 0.005)):
            if drawn < share:
                return kind
            drawn -= share
        if drawn < 0.08 and question not in self.spoiled:
            self.spoiled.add(question)
            return self._random.choice(["garbled", "truncated", "schema", "prose"])
        return "right"


def spending(url: str, budget_usd: float | None, timeout_seconds: float, **further: Any) -> Spending:
    """Give how the labels are asked for."""
    return Spending(
        base_url=url, budget_usd=budget_usd, prices=PRICES, concurrency=CONCURRENCY, timeout_seconds=timeout_seconds,
        backoff_seconds=0.05, **further,
    )  # fmt: skip


def ask(url: str, folder: Path, n: int, budget_usd: float | None, timeout_seconds: float) -> list[str | None]:
    """Ask for n labels."""
    chat = Chat("m", folder, role="labeller", offline="lexicon", spending=spending(url, budget_usd, timeout_seconds))
    return [reply and reply.label for reply in chat.ask_all(questions(n))]


@dataclass(frozen=True)
class Audit:
    """What a ledger and the server's own log say together."""

    most_held_usd: float
    """The most that ever stood in the ledger: paid and reserved."""
    charged_usd: float
    """What the server charged, for replies that never arrived too."""
    again_after_reply: int
    """Requests that reached the server although a usable reply to their question was in the ledger."""
    more_than_told: int
    """Full answers of the server that the ledger explains neither by a reply nor by a request counted as uncertain."""
    open_by_run: dict[str, int]
    """Requests of each process of which nothing is known."""
    repeated: int
    """Requests told as sent again."""
    replies: int
    """Full replies in the ledger."""


def audit(folder: Path, server: ChatServer) -> Audit:
    """Replay a ledger, and hold it against what the server saw."""
    held = most = 0.0
    usd: dict[str, float] = {}
    key_of: dict[str, str] = {}
    question: dict[str, str] = {}
    run_of: dict[str, str] = {}
    ends: dict[str, str] = {}
    useless: set[str] = set()
    arrived: dict[str, float] = {}
    repeated = 0
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines() if line.endswith("}")]
    for line in lines:
        if line["kind"] == "intent":
            usd[line["id"]], key_of[line["id"]], run_of[line["id"]] = line["usd"], line["key"], line["run"]
            repeated += "repeats" in line
            if "body" in line:
                question[line["key"]] = question_of(line["body"])
            held += line["usd"]
        elif line["kind"] in ("reply", "failed", "lost"):
            ends[line["id"]] = line["kind"]
            if line["kind"] == "failed":
                held -= usd[line["id"]]
            if line["kind"] == "reply":
                held += line["usd"] - usd[line["id"]]
                arrived[line["id"]] = datetime.fromisoformat(line["time"]).timestamp()
        elif line["kind"] == "verdict":
            useless.add(line["id"])
        most = max(most, held)
    done = {question[key_of[id]]: at for id, at in arrived.items() if id not in useless}
    uncertain = collections.Counter(question[key] for id, key in key_of.items() if ends.get(id) in (None, "lost"))
    full = collections.Counter(question[key_of[id]] for id in arrived)
    answered = collections.Counter(one.question for one in server.seen if one.is_answered)
    open_by_run = collections.Counter(run_of[id] for id in key_of if id not in ends)
    return Audit(
        most_held_usd=most,
        charged_usd=sum(one.cost[0] * PRICES[0] + one.cost[1] * PRICES[1] for one in server.seen) / 1e6,
        # The ledger's times are rounded down to milliseconds, and the request that was answered itself came before.
        again_after_reply=sum(one.at > done.get(one.question, float("inf")) + 0.001 for one in server.seen),
        more_than_told=sum(max(0, n - full[one] - uncertain[one]) for one, n in answered.items()),
        open_by_run=dict(open_by_run), repeated=repeated, replies=len(arrived),
    )  # fmt: skip


def kill_and_resume(
    server: ChatServer, folder: Path, n: int, budget_usd: float, seconds: float, kills: int, seed: int
) -> int:
    """Ask for n labels in a process that is killed at random points and started again, and give how many came at last."""
    drawn = random.Random(seed)
    command = [sys.executable, "-m", "tests.chat_jobs", server.url, str(folder), str(n), str(budget_usd), str(seconds)]
    for _ in range(kills):
        before, more = len(server.requests), drawn.randint(1, max(2, 2 * n // (kills + 1)))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while len(server.requests) < before + more and process.poll() is None:
                time.sleep(0.005)
            time.sleep(drawn.uniform(0, 0.05))
            process.kill()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


if __name__ == "__main__":
    url, folder, n, budget, seconds = sys.argv[1:]
    print(sum(label is not None for label in ask(url, Path(folder), int(n), float(budget), float(seconds))))
