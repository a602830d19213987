"""The ledger outlives kills, torn lines and company; nothing that arrived is asked for again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lfp_lens.core.errors import LensError
from tests.chat_jobs import CONCURRENCY, Mischief, audit, kill_and_resume
from tests.parts.test_chat import asked, chat, labels, lines, named


def test_at_most_the_requests_in_flight_are_repeated_when_the_process_is_killed(serve: Any, tmp_path: Path) -> None:
    server = serve(Mischief(stall_seconds=1.0, seed=5, latency_seconds=0.02, storm_every=150))
    came = kill_and_resume(server, tmp_path, 120, 1.0, 0.5, kills=2, seed=1)
    found = audit(tmp_path, server)
    assert came == 120
    assert 0 < max(found.open_by_run.values()) <= CONCURRENCY and len(found.open_by_run) <= 2
    assert (found.again_after_reply, found.more_than_told) == (0, 0)
    assert found.charged_usd <= found.most_held_usd <= 1.0


def test_an_intent_without_a_reply_is_asked_again_and_told_as_repeated(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    list(chat(tmp_path, prices=(1.0, 1.0)).ask_all(asked(3)))
    written = (tmp_path / "ledger.jsonl").read_text().splitlines(keepends=True)
    of_second = {json.loads(line)["id"] for line in written if '"about": "number 1"' in line}
    kept = [
        line for line in written if not (json.loads(line)["kind"] == "reply" and json.loads(line)["id"] in of_second)
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(kept))
    one = chat(tmp_path, prices=(1.0, 1.0))
    assert labels(one.ask_all(asked(3))) == ["0", "1", "2"]
    assert (one.bill.requests, one.bill.repeated, one.bill.cached, len(server.requests)) == (1, 1, 2, 4)
    assert lines(tmp_path)[-2]["repeats"] in of_second


@pytest.mark.parametrize(
    "torn", ['{"kind": "reply", "id": "abc", "te', '{"kind"', "{", '{"kind": "intent", "body": {"a": "}']
)
def test_a_line_that_a_kill_tore_off_is_passed_over(serve: Any, tmp_path: Path, torn: str) -> None:
    server = serve(named)
    list(chat(tmp_path).ask_all(asked(2)))
    with open(tmp_path / "ledger.jsonl", "a") as file:
        file.write(torn)
    assert labels(chat(tmp_path).ask_all(asked(4))) == ["0", "1", "2", "3"]
    assert labels(chat(tmp_path).ask_all(asked(4))) == ["0", "1", "2", "3"]
    assert len(server.requests) == 4


@pytest.mark.parametrize("damage", ["not a ledger }", '{"kind": "reply"}', '{"kind": "reply", "id": "nobody"}', "[]}"])
def test_a_line_that_is_no_ledger_is_named(serve: Any, tmp_path: Path, damage: str) -> None:
    serve(named)
    list(chat(tmp_path).ask_all(asked(1)))
    with open(tmp_path / "ledger.jsonl", "a") as file:
        file.write(damage + "\n")
    with pytest.raises(LensError, match=r"A line of the ledger .*ledger\.jsonl cannot be read.*Delete that line"):
        list(chat(tmp_path).ask_all(asked(1)))


def test_a_folder_that_cannot_be_written_is_named(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match=r"could not be kept in .*file"):
        list(chat(tmp_path / "file").ask_all(asked(1)))
    assert server.requests == []


def test_two_processes_share_a_ledger_without_harm(serve: Any, tmp_path: Path) -> None:
    server = serve(Mischief(stall_seconds=1.0, seed=8))
    job = [sys.executable, "-m", "tests.chat_jobs", server.url, str(tmp_path), "60", "1.0", "0.5"]
    both = [subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["60", "60"]
    found = audit(tmp_path, server)
    assert found.more_than_told == 0 and found.most_held_usd <= 1.0
    assert len({line["run"] for line in lines(tmp_path) if line["kind"] == "intent"}) == 2


def test_a_reply_that_another_process_wrote_meanwhile_is_used(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    first, second = chat(tmp_path), chat(tmp_path)
    assert labels(first.ask_all(asked(2))) == ["0", "1"]
    assert labels(second.ask_all(asked(4))) == ["0", "1", "2", "3"]
    assert labels(first.ask_all(asked(4))) == ["0", "1", "2", "3"]
    assert len(server.requests) == 4


def test_the_ledger_is_for_its_owner_alone(serve: Any, tmp_path: Path) -> None:
    serve(named)
    list(chat(tmp_path).ask_all(asked(1)))
    assert os.stat(tmp_path / "ledger.jsonl").st_mode & 0o077 == 0


@pytest.mark.parametrize("signum", [signal.SIGINT])
def test_an_interrupt_ends_the_process_and_keeps_the_ledger(serve: Any, tmp_path: Path, signum: int) -> None:
    server = serve(Mischief(stall_seconds=1.0, seed=9, latency_seconds=0.05))
    job = [sys.executable, "-m", "tests.chat_jobs", server.url, str(tmp_path), "200", "1.0", "0.5"]
    with subprocess.Popen(job, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while len(server.requests) < 30 and process.poll() is None:
            pass
        process.send_signal(signum)
        _, told = process.communicate(timeout=20)
    assert process.returncode != 0 and "KeyboardInterrupt" in told
    seen = len(server.requests)
    assert sum(line["kind"] == "reply" for line in lines(tmp_path)) >= 10 and len(server.requests) == seen < 200
