"""Asking a chat model: against a server on this machine that answers, refuses, breaks off and stalls."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import DATA, BudgetSpent, Chat, Question, Spending, drivers
from lfp_lens.parts.chat.spending import server_of
from tests.chat_jobs import questions
from tests.chat_server import ChatServer, Fault, Said, data_of

SENDS = ("async", "sync", "batch")


class Label(BaseModel):
    label: str


def asked(n: int, **further: Any) -> list[Question[Label]]:
    return [Question(f"number {at}", "Name it." + DATA, {"n": at}, Label, max_tokens=40, **further) for at in range(n)]


def chat(folder: Path, **spending: Any) -> Chat:
    quick = {"poll_seconds": 0.01, "backoff_seconds": 0.01, "timeout_seconds": 5.0}
    return Chat("m", folder, role="labeller", offline="lexicon", spending=Spending.of(quick | spending))


def named(number: int, body: dict[str, Any]) -> Said:
    return Said(json.dumps({"label": f"{data_of(body)['n']}"}), (100, 5))


def labels(replies: Iterator[Label | None]) -> list[str | None]:
    return [reply and reply.label for reply in replies]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("send", SENDS)
def test_replies_come_in_the_order_of_the_questions(serve: Any, tmp_path: Path, send: str) -> None:
    def answer(number: int, body: dict[str, Any]) -> Said:
        time.sleep(0.02 * (number % 3))
        return named(number, body)

    server = serve(answer)
    one = chat(tmp_path, send=send, concurrency=5)
    assert labels(one.ask_all(asked(12))) == [str(at) for at in range(12)]
    assert len(server.requests) == one.bill.requests == 12
    assert (one.bill.tokens_in, one.bill.tokens_out, one.bill.usd) == (1200, 60, None)


@pytest.mark.parametrize("send", SENDS)
def test_what_was_answered_needs_no_request_and_no_key(
    serve: Any, tmp_path: Path, send: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(named)
    list(chat(tmp_path, send="async").ask_all(asked(3)))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name)
    again = chat(tmp_path, send=send, base_url=server.url + "/")
    assert labels(again.ask_all(asked(3))) == ["0", "1", "2"]
    assert (again.bill.requests, again.bill.cached, len(server.requests)) == (0, 3, 3)


@pytest.mark.parametrize("send", SENDS)
def test_a_question_that_stands_twice_in_a_list_is_sent_once(serve: Any, tmp_path: Path, send: str) -> None:
    server = serve(named)
    three = asked(3)
    assert labels(chat(tmp_path, send=send).ask_all([*three, three[1], three[0]])) == ["0", "1", "2", "1", "0"]
    assert len(server.requests) == 3


def test_no_questions_are_no_requests(serve: Any, tmp_path: Path) -> None:
    serve(named)
    assert list(chat(tmp_path).ask_all([])) == []


def test_no_more_requests_run_at_once_than_were_allowed(serve: Any, tmp_path: Path) -> None:
    running, most, guard = 0, 0, threading.Lock()

    def answer(number: int, body: dict[str, Any]) -> Said:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.03)
        with guard:
            running -= 1
        return named(number, body)

    serve(answer)
    list(chat(tmp_path, concurrency=4).ask_all(asked(20)))
    assert 2 <= most <= 4


def test_an_intent_with_its_prompt_is_on_disk_before_the_request_and_the_reply_after(
    serve: Any, tmp_path: Path
) -> None:
    seen: list[list[dict[str, Any]]] = []

    def answer(number: int, body: dict[str, Any]) -> Said:
        seen.append(lines(tmp_path))
        return named(number, body)

    server = serve(answer)
    list(chat(tmp_path, prices=(1.0, 2.0)).ask_all(asked(1)))
    ((intent,),) = seen
    assert intent["kind"] == "intent" and intent["body"] == server.requests[0]
    assert intent["usd"] == pytest.approx((intent["reserved"][0] * 1 + 40 * 2) / 1e6)
    reply = lines(tmp_path)[1]
    assert (reply["kind"], reply["text"], reply["tokens"]) == ("reply", '{"label": "0"}', [100, 5])
    assert reply["usd"] == pytest.approx(110 / 1e6)


def test_after_an_error_what_is_in_flight_is_waited_for_and_kept(serve: Any, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Any:
        if data_of(body)["n"] == 0:
            return 404
        time.sleep(0.2)
        return named(number, body)

    serve(answer)
    with pytest.raises(LensError, match="not known to the server"):
        list(chat(tmp_path, concurrency=4).ask_all(asked(50)))
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds.count("intent") == kinds.count("reply") + 1 <= 5


def test_an_error_does_not_wait_for_those_that_a_busy_server_put_off(serve: Any, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Any:
        if data_of(body)["n"] == 0:
            time.sleep(0.2)
            return 404
        return Fault("status", status=429, headers={"retry-after": "60"})

    serve(answer)
    start = time.monotonic()
    with pytest.raises(LensError, match="not known to the server"):
        list(chat(tmp_path, concurrency=3).ask_all(asked(5)))
    assert time.monotonic() - start < 20


def test_a_caller_that_stops_reading_stops_the_requests(serve: Any, tmp_path: Path) -> None:
    server = serve(named)
    replies = chat(tmp_path, concurrency=2).ask_all(asked(500))
    assert next(replies).label == "0"
    replies.close()
    seen = len(server.requests)
    time.sleep(0.3)
    # Two were under way, and may reach the server after they were given up.
    assert seen <= len(server.requests) <= seen + 2 < 500


def test_the_same_question_asked_from_several_threads_is_sent_once(serve: Any, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Said:
        time.sleep(0.1)
        return named(number, body)

    server = serve(answer)
    one = chat(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: one.ask("it", "Name it." + DATA, {"n": 1}, Label).label, range(8)))
    assert (set(said), len(server.requests), one.cached_calls) == ({"1"}, 1, 7)


@pytest.mark.parametrize("send", ["async", "sync"])
def test_a_caller_that_stops_reading_leaves_nothing_in_flight_that_others_would_wait_for(
    serve: Any, tmp_path: Path, send: str
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Said:
        time.sleep(0.3 if data_of(body)["n"] else 0.0)
        return named(number, body)

    serve(answer)
    reserved = asked(1)[0].most_tokens_in + 40
    one = chat(tmp_path, send=send, concurrency=3, budget_tokens=105 + 3 * reserved)
    replies = one.ask_all(asked(50))
    assert next(replies).label == "0"
    time.sleep(0.1)
    replies.close()
    assert one.desk.in_flight == 0


@pytest.mark.parametrize("send", ["async", "sync"])
def test_an_interrupted_request_leaves_nothing_in_flight_and_a_full_budget_is_told_at_once(
    serve: Any, tmp_path: Path, send: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(lambda number, body: Fault("drop", seconds=1.0))
    one = chat(tmp_path, send=send, concurrency=1, budget_tokens=asked(1)[0].most_tokens_in + 40)
    with monkeypatch.context() as patch:
        # The main thread is interrupted: while it sends, or while it waits for those that do.
        patch.setattr(drivers, "outcome_of", interrupt)
        patch.setattr(drivers.queue, "SimpleQueue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(one.ask_all(asked(2)))
    assert one.desk.in_flight == 0
    start = time.monotonic()
    with pytest.raises(BudgetSpent, match="no room"):
        list(one.ask_all(asked(2)))
    assert time.monotonic() - start < 1


def test_another_server_is_asked_anew_and_the_vendors_own_name_is_one(tmp_path: Path) -> None:
    (question,) = asked(1)
    here = Spending(base_url="http://localhost:8000/v1")
    for same in ("http://localhost:8000/v1/", "HTTP://LOCALHOST:8000/v1", "http://user:secret@localhost:8000/v1?key=x"):
        assert Spending(base_url=same).server == here.server == "http://localhost:8000/v1"
    assert (
        Spending(base_url="https://api.openai.com/v1/").server
        == Spending(base_url="https://api.openai.com").server
        == ""
    )
    assert question.key("m") == question.key("m", "") != question.key("m", here.server)
    assert question.key("m", here.server) != question.key("m", "http://localhost:8001/v1")
    assert server_of("http://[::1]:80/v1/") == "http://[::1]/v1" and server_of("not a url/") == "not a url"


def test_the_reply_of_one_server_is_not_taken_for_anothers(serve: Any, tmp_path: Path) -> None:
    first = serve(named)
    assert labels(chat(tmp_path).ask_all(asked(1))) == ["0"]
    with ChatServer(lambda number, body: json.dumps({"label": "other"})).running() as other:
        assert labels(chat(tmp_path, base_url=other.url).ask_all(asked(1))) == ["other"]
    assert labels(chat(tmp_path, base_url=first.url + "/").ask_all(asked(1))) == ["0"]
    assert len(first.requests) == 1


class Interrupted:
    """Stands in for a queue: nothing comes for a while, then the user presses Ctrl-C."""

    def get(self) -> None:
        time.sleep(0.5)
        raise KeyboardInterrupt

    def put(self, item: Any) -> None:
        pass


def interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


def test_lone_surrogates_in_a_text_can_be_sent(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: '{"label": "x"}')
    question = Question("it", "Name it." + DATA, {"text": "a\ud83db\u2028"}, Label)
    assert labels(chat(tmp_path).ask_all([question])) == ["x"]
    assert data_of(server.requests[0]) == {"text": "a\ud83db\u2028"}


def test_questions_differ_by_what_they_ask_and_not_by_what_they_are_called() -> None:
    one, other = asked(2)
    assert one.key("m") != other.key("m") != other.key("n")
    assert one.key("m") == Question("renamed", one.system, one.data, Label, max_tokens=40).key("m")
    assert len({question.key("m") for question in questions(50)}) == 50
