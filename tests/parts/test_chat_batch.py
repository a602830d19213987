"""The Batch API: nothing is submitted twice, whatever is killed or lost in between, and nothing is lost."""

import time
from pathlib import Path
from typing import Any

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import clerk as batches
from tests.chat_server import Fault, data_of
from tests.parts.test_chat import asked, chat, labels, lines, named


class Killed(BaseException):
    """Stands in for a kill: nothing of ours catches it."""


def kill(*given: Any) -> None:
    raise Killed


def killed_while_waiting(folder: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask n questions and be killed at the first wait for the batch."""
    with monkeypatch.context() as patch:
        patch.setattr(batches.time, "sleep", kill)
        with pytest.raises(Killed):
            list(chat(folder, send="batch").ask_all(asked(n)))


def steps(folder: Path) -> list[str]:
    return [line["stage"] for line in lines(folder) if line["kind"] == "batch"]


def test_the_id_is_stored_before_the_first_look_and_every_intent_before_the_file(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    list(chat(tmp_path, send="batch").ask_all(asked(3)))
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds == ["intent"] * 3 + ["batch"] * 3 + ["reply"] * 3 + ["batch"]
    assert steps(tmp_path) == ["prepared", "creating", "created", "done"]
    assert len(server.batches.created) == 1
    assert list((tmp_path / "batches").iterdir()) == []


def test_a_batch_that_was_killed_while_waiting_is_collected_and_not_submitted_again(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(named)
    server.batches.polls = 3
    killed_while_waiting(tmp_path, 3, monkeypatch)
    assert steps(tmp_path)[-1] == "created"
    again = chat(tmp_path, send="batch")
    assert labels(again.ask_all(asked(4))) == ["0", "1", "2", "3"]
    # The second batch holds the fourth question alone.
    assert (len(server.batches.created), len(server.requests), again.bill.repeated) == (2, 4, 0)


@pytest.mark.parametrize("stage", ["prepared", "creating"])
def test_a_kill_before_the_id_was_stored_does_not_submit_twice(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    server = serve(named)
    with monkeypatch.context() as patch:
        # Killed before the upload, or after the server made the batch whose id we never saw.
        if stage == "prepared":
            patch.setattr(batches.BatchServer, "upload", kill)
        else:
            server.batches.lose_next_create = True
            patch.setattr(batches.BatchServer, "find", kill)
        with pytest.raises(Killed):
            list(chat(tmp_path, send="batch").ask_all(asked(3)))
    assert steps(tmp_path)[-1] == stage
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]
    assert (len(server.batches.created), len(server.requests)) == (1, 3)


def test_a_batch_whose_creation_was_not_answered_is_found_by_its_name(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    server.batches.lose_next_create = True
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]
    assert len(server.batches.created) == 1


def test_a_batch_that_the_server_never_made_is_made(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    server.batches.refuse_next_create = True
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", "1", "2"]
    assert len(server.batches.created) == 1


def test_questions_without_a_result_go_into_another_batch_and_are_given_up_in_the_end(
    serve: Any, tmp_path: Path
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Any:
        at = data_of(body)["n"]
        return Fault("drop") if at == 2 or (at == 1 and number < 4) else named(number, body)

    server = serve(answer)
    server.batches.status = "expired"
    one = chat(tmp_path, send="batch", prices=(1.0, 1.0))
    assert labels(one.ask_all(asked(4))) == ["0", "1", None, "3"]
    assert [len(batch["metadata"]) for batch in server.batches.created] == [1, 1, 1]
    assert one.ledger.held.usd == pytest.approx(3 * 105 / 1e6)


def test_a_question_that_the_server_refuses_is_unanswered(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: 400 if data_of(body)["n"] == 1 else named(number, body))
    assert labels(chat(tmp_path, send="batch").ask_all(asked(3))) == ["0", None, "2"]
    assert len(server.batches.created) == 1


def test_a_batch_that_fails_as_a_whole_says_why_and_costs_nothing(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: 400)
    server.batches.status = "failed"
    one = chat(tmp_path, send="batch", prices=(1.0, 1.0))
    with pytest.raises(LensError, match=r"batch-0 of openai:m is failed and holds no reply.*Nothing was spent"):
        list(one.ask_all(asked(3)))
    assert one.ledger.held.usd == pytest.approx(0.0, abs=1e-15)


def test_a_batch_that_the_server_forgot_counts_as_possibly_paid(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(named)
    killed_while_waiting(tmp_path, 2, monkeypatch)
    server.batches.created.clear()
    again = chat(tmp_path, send="batch")
    assert labels(again.ask_all(asked(2))) == ["0", "1"]
    assert again.bill.repeated == 2


def test_an_open_batch_of_another_model_is_left_alone(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(named)
    killed_while_waiting(tmp_path, 2, monkeypatch)
    other = chat(tmp_path, send="batch")
    other.desk.model = "other"
    assert labels(other.ask_all(asked(2))) == ["0", "1"]
    assert [line["stage"] for line in lines(tmp_path) if line.get("name") == lines(tmp_path)[2]["name"]][
        -1
    ] == "created"
    assert len(server.batches.created) == 2


def test_a_batch_holds_no_more_than_one_may(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 2)
    server = serve(named)
    assert labels(chat(tmp_path, send="batch").ask_all(asked(5))) == [str(at) for at in range(5)]
    assert len(server.batches.created) == 3


def test_how_often_the_server_is_asked_is_the_callers_choice(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    server.batches.polls = 2
    start = time.monotonic()
    list(chat(tmp_path, send="batch", poll_seconds=0.2).ask_all(asked(1)))
    assert time.monotonic() - start >= 0.4
