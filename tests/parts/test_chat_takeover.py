"""Batches of earlier and other processes: collected, taken over or taken back, and never submitted or paid twice."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import clerk as batches
from tests.chat_server import Said, data_of
from tests.parts.test_chat import SENDS, asked, chat, labels, named
from tests.parts.test_chat_batch import Killed, kill, steps

OTHERS = ("async", "sync")


def left(folder: Path, monkeypatch: pytest.MonkeyPatch, stage: str, n: int = 3) -> None:
    """Ask n questions in a batch, and be killed when it has come so far."""
    step = {"prepared": "upload", "creating": "create"}.get(stage)
    with monkeypatch.context() as patch:
        if step is None:
            patch.setattr(batches.time, "sleep", kill)
        else:
            patch.setattr(batches.BatchServer, step, kill)
        with pytest.raises(Killed):
            list(chat(folder, send="batch").ask_all(asked(n)))
    assert steps(folder)[-1] == stage


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\u000b", "\u001c"])
def test_replies_may_hold_any_line_end(serve: Any, tmp_path: Path, end: str) -> None:
    server = serve(lambda number, body: Said(json.dumps({"label": f"a{end}b"}, ensure_ascii=False), (100, 5)))
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == [f"a{end}b"] * 3
    assert len(server.batches.created) == 1


@pytest.mark.parametrize("mishap", [401, 404, "cut", 500])
def test_a_look_up_that_fails_takes_no_batch_back(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mishap: int | str
) -> None:
    server = serve(named)
    server.batches.lose_next_create = True
    server.batches.mishaps = [("list", mishap)]
    try:
        came = labels(chat(tmp_path, send="batch", prices=(1.0, 1.0)).ask_all(asked(3)))
    except LensError:
        assert steps(tmp_path)[-1] == "creating"
        came = labels(chat(tmp_path, send="batch", prices=(1.0, 1.0)).ask_all(asked(3)))
    assert came == ["0", "1", "2"]
    assert (len(server.batches.created), len(server.requests)) == (1, 3)


@pytest.mark.parametrize("mishap", ["cut", 500, 503, 408, 409, 504])
def test_a_batch_that_was_made_although_its_creation_failed_is_not_made_again(
    serve: Any, tmp_path: Path, mishap: int | str
) -> None:
    server = serve(named)
    server.batches.mishaps = [("create", mishap)]
    one = chat(tmp_path, send="batch")
    assert labels(one.ask_all(asked(3))) == ["0", "1", "2"]
    assert (len(server.batches.created), len(server.requests), one.bill.repeated) == (1, 3, 0)


@pytest.mark.parametrize("mishap", [500, 503, 429])
def test_a_batch_that_a_failing_server_did_not_make_is_made(serve: Any, tmp_path: Path, mishap: int) -> None:
    server = serve(named)
    server.batches.mishaps = [("refuse", mishap)] * 2
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]
    assert len(server.batches.created) == 1


@pytest.mark.parametrize("where", ["upload", "refuse"])
@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_batch_that_the_server_refuses_costs_nothing_and_does_not_stand_in_the_way(
    serve: Any, tmp_path: Path, where: str, status: int
) -> None:
    server = serve(named)
    server.batches.mishaps = [(where, status)]
    one = chat(tmp_path, send="batch", prices=(1.0, 1.0))
    with pytest.raises(LensError, match=rf"HTTP {status}"):
        list(one.ask_all(asked(3)))
    assert (steps(tmp_path)[-1], one.ledger.held.usd) == ("done", pytest.approx(0.0, abs=1e-15))
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]


@pytest.mark.parametrize("stage", ["prepared", "creating"])
def test_two_that_take_over_at_once_submit_once(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    server = serve(named)
    left(tmp_path, monkeypatch, stage)
    server.batches.before_create = lambda: time.sleep(0.5)
    came: list[Any] = []
    pair = [
        threading.Thread(target=lambda: came.append(labels(chat(tmp_path, send="batch").ask_all(asked(3)))))
        for _ in range(2)
    ]
    for one in pair:
        one.start()
    for one in pair:
        one.join()
    assert came == [["0", "1", "2"]] * 2
    assert (len(server.batches.created), len(server.requests)) == (1, 3)


def test_a_process_leaves_a_batch_alone_that_another_is_submitting(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    made, go = threading.Event(), threading.Event()

    def before() -> None:
        made.set()
        go.wait(20)

    server.batches.before_create = before
    script = (
        "import sys; from pathlib import Path; from tests.parts.test_chat import asked, chat, labels\n"
        "print(labels(chat(Path(sys.argv[1]), send='batch', timeout_seconds=30.0).ask_all(asked(3))))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as other:
        assert made.wait(20)
        with pytest.raises(LensError, match=r"3 of the questions.*being submitted by another process \(3\)"):
            list(chat(tmp_path, send="async").ask_all(asked(4)))
        threading.Timer(0.3, go.set).start()
        assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]
        told, _ = other.communicate(timeout=20)
    assert told.strip() == "['0', '1', '2']"
    assert (len(server.batches.created), len(server.requests)) == (1, 3)


@pytest.mark.parametrize("send", SENDS)
def test_a_batch_that_is_ready_is_collected_whatever_the_way_to_send(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: str
) -> None:
    server = serve(named)
    left(tmp_path, monkeypatch, "created")
    again = chat(tmp_path, send=send)
    assert labels(again.ask_all(asked(4))) == ["0", "1", "2", "3"]
    assert (len(server.requests), again.bill.requests, again.bill.repeated) == (4, 1, 0)
    assert steps(tmp_path)[3] == "done"


@pytest.mark.parametrize("send", OTHERS)
def test_a_batch_that_is_not_ready_is_named_and_its_questions_are_not_sent_again(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: str
) -> None:
    server = serve(named)
    server.batches.polls = 3
    left(tmp_path, monkeypatch, "created")
    with pytest.raises(LensError, match=r'3 of the questions to openai:m.*batch-0 \(3\).*send="batch".*cancel'):
        list(chat(tmp_path, send=send).ask_all(asked(4)))
    (one,) = asked(1)
    with pytest.raises(LensError, match="batch-0"):
        chat(tmp_path).ask(one.about, one.system, one.data, one.schema, max_tokens=40)
    assert server.requests == []
    # It does not stand in the way of other questions, and is collected when it is ready.
    assert labels(chat(tmp_path, send=send).ask_all(asked(6)[4:])) == ["4", "5"]
    assert labels(chat(tmp_path, send="batch").ask_all(asked(6))) == [str(at) for at in range(6)]
    assert len(server.requests) == 6


@pytest.mark.parametrize("send", OTHERS)
@pytest.mark.parametrize("stage", ["prepared", "creating"])
def test_a_batch_that_was_not_submitted_is_taken_back_and_sent_in_another_way(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: str, stage: str
) -> None:
    server = serve(named)
    left(tmp_path, monkeypatch, stage)
    again = chat(tmp_path, send=send)
    assert labels(again.ask_all(asked(3))) == ["0", "1", "2"]
    # What was perhaps made and is not found keeps its reservation.
    assert again.bill.repeated == (3 if stage == "creating" else 0)
    assert (server.batches.created, len(server.requests)) == ([], 3)
    assert list((tmp_path / "batches").iterdir()) == []


@pytest.mark.parametrize("send", SENDS)
def test_a_servers_name_is_one_however_it_is_written(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: str
) -> None:
    server = serve(named)
    left(tmp_path, monkeypatch, "created")
    assert labels(chat(tmp_path, send=send, base_url=server.url + "/").ask_all(asked(3))) == ["0", "1", "2"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_kill_in_the_middle_of_the_intents_holds_no_reservation(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    serve(named)
    left(tmp_path, monkeypatch, "prepared")
    ledger = tmp_path / "ledger.jsonl"
    written = ledger.read_text().splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in written] == ["intent"] * 3 + ["batch"]
    ledger.write_text("".join(written[:kept]) + written[kept][:-20])
    again = chat(tmp_path, send="batch", prices=(1.0, 1.0))
    assert labels(again.ask_all(asked(3))) == ["0", "1", "2"]
    assert (again.ledger.held.usd, again.bill.repeated) == (pytest.approx(3 * 105 / 1e6), 0)


def test_the_intents_and_their_batch_are_written_at_once(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(named)
    one = chat(tmp_path, send="batch")
    appended: list[bytes] = []
    append = one.ledger._append

    def noted(raw: bytes) -> None:
        appended.append(raw)
        append(raw)

    monkeypatch.setattr(one.ledger, "_append", noted)
    list(one.ask_all(asked(3)))
    assert [json.loads(line)["kind"] for line in appended[0].splitlines()] == ["intent"] * 3 + ["batch"]


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_batch_whose_file_is_damaged_is_prepared_anew(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    server = serve(named)
    left(tmp_path, monkeypatch, "prepared")
    (file,) = (tmp_path / "batches").iterdir()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes().split(b"\n")[0])
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]
    assert (len(server.batches.created), len(server.requests)) == (1, 3)


def test_replies_that_the_server_keeps_no_longer_count_as_possibly_paid(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(named)
    left(tmp_path, monkeypatch, "created")
    with monkeypatch.context() as patch:
        patch.setattr(batches.BatchServer, "content", kill)
        with pytest.raises(Killed):
            list(chat(tmp_path, send="batch").ask_all(asked(3)))
    server.batches.forget()
    again = chat(tmp_path, send="batch")
    assert labels(again.ask_all(asked(3))) == ["0", "1", "2"]
    assert (again.bill.repeated, len(server.batches.created)) == (3, 2)
    assert sorted(data_of(body)["n"] for body in server.requests) == [0, 0, 1, 1, 2, 2]


def test_a_refusal_after_an_unclear_answer_keeps_the_reservation(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    server.batches.mishaps = [("refuse", 500), ("refuse", 401)]
    one = chat(tmp_path, send="batch", prices=(1.0, 1.0))
    with pytest.raises(LensError, match="HTTP 401"):
        list(one.ask_all(asked(3)))
    assert steps(tmp_path)[-1] == "done" and one.ledger.held.usd > 0
    again = chat(tmp_path, send="batch")
    assert labels(again.ask_all(asked(3))) == ["0", "1", "2"]
    assert again.bill.repeated == 3
