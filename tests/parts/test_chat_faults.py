"""A server that is busy, breaks off, answers nonsense or refuses: what is asked again, what is given up, what is told."""

from pathlib import Path
from typing import Any

import pytest

from lfp_lens.core.errors import LensError
from tests.chat_jobs import Mischief, audit, label_of
from tests.chat_jobs import ask as ask_labels
from tests.chat_server import ChatServer, Fault, Said, data_of
from tests.parts.test_chat import SENDS, asked, chat, labels, lines, named


@pytest.mark.parametrize("send", ["async", "sync"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_failing_server_is_asked_again_and_costs_nothing(
    serve: Any, tmp_path: Path, status: int, send: str
) -> None:
    server = serve(lambda number, body: status if number < 3 else named(number, body))
    one = chat(tmp_path, send=send, concurrency=1, prices=(1.0, 1.0))
    assert labels(one.ask_all(asked(1))) == ["0"]
    assert (len(server.requests), one.bill.requests, one.bill.repeated) == (4, 4, 0)
    assert one.ledger.held.usd == pytest.approx(105 / 1e6)


def test_the_time_that_a_server_asks_for_is_waited(serve: Any, tmp_path: Path) -> None:
    slow = Fault("status", status=429, headers={"retry-after": "0.4"})
    server = serve(lambda number, body: slow if number == 0 else named(number, body))
    list(chat(tmp_path).ask_all(asked(1)))
    assert server.seen[1].at - server.seen[0].at >= 0.4


def test_a_server_that_keeps_failing_stops_the_work_with_what_to_do(serve: Any, tmp_path: Path) -> None:
    serve(lambda number, body: 500 if data_of(body)["n"] == 2 else named(number, body))
    with pytest.raises(LensError, match=r"failed 12 times on number 2: InternalServerError \(HTTP 500\).*kept"):
        list(chat(tmp_path, backoff_seconds=0.001).ask_all(asked(3)))
    assert sum(line["kind"] == "reply" for line in lines(tmp_path)) == 2


@pytest.mark.parametrize("send", ["async", "sync"])
@pytest.mark.parametrize(
    "fault", [Fault("drop"), Fault("cut"), Fault("drop", seconds=0.8), Fault("status", status=504)], ids=str
)
def test_what_breaks_off_is_asked_again_and_counted_as_possibly_paid(
    serve: Any, tmp_path: Path, fault: Fault, send: str
) -> None:
    serve(lambda number, body: fault if number == 0 else named(number, body))
    one = chat(tmp_path, send=send, timeout_seconds=0.3, prices=(1.0, 1.0))
    assert labels(one.ask_all(asked(1))) == ["0"]
    first, lost, second, _ = lines(tmp_path)
    assert (one.bill.repeated, lost["kind"], second["repeats"]) == (1, "lost", first["id"])
    assert one.ledger.held.usd == pytest.approx(first["usd"] + 105 / 1e6)


def test_a_question_that_always_breaks_off_is_unanswered_and_the_others_are_not(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: Fault("drop") if data_of(body)["n"] == 1 else named(number, body))
    assert labels(chat(tmp_path).ask_all(asked(3))) == ["0", None, "2"]
    assert len(server.requests) == 2 + 5


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize(
    ("unusable", "verdict"),
    [
        (Said("no JSON at all"), "malformed"),
        (Said('{"other": 1}'), "malformed"),
        (Said('{"label": "\\ud83d"}'), "malformed"),
        (Said('{"label": "la', finish="length"), "cut off"),
        (Said("", refusal="I cannot help with that."), "refused"),
        (Said("", finish="content_filter"), "refused"),
    ],
)
def test_an_unusable_reply_is_recorded_as_such_and_asked_for_once_more(
    serve: Any, tmp_path: Path, unusable: Said, verdict: str, send: str
) -> None:
    server = serve(lambda number, body: unusable if number == 0 else named(number, body))
    one = chat(tmp_path, send=send)
    assert labels(one.ask_all(asked(1))) == ["0"]
    assert (len(server.requests), one.bill.unusable, one.bill.repeated) == (2, 1, 0)
    assert [line["why"] for line in lines(tmp_path) if line["kind"] == "verdict"] == [verdict]


def test_a_body_that_is_no_json_is_kept_and_charged_with_what_was_reserved(serve: Any, tmp_path: Path) -> None:
    serve(lambda number, body: Fault("garbled") if number == 0 else named(number, body))
    one = chat(tmp_path, prices=(1.0, 1.0))
    assert labels(one.ask_all(asked(1))) == ["0"]
    intent, reply, verdict, *_ = lines(tmp_path)
    assert (verdict["why"], reply["counted_by"], reply["usd"]) == ("unreadable", "reservation", intent["usd"])
    assert reply["text"].startswith('{"id": "chat-1"')


def test_two_unusable_replies_leave_a_question_unanswered_for_good(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: "no" if data_of(body)["n"] == 1 else named(number, body))
    assert labels(chat(tmp_path).ask_all(asked(3))) == ["0", None, "2"]
    assert labels(chat(tmp_path).ask_all(asked(3))) == ["0", None, "2"]
    assert len(server.requests) == 4


def test_an_answer_that_was_cut_off_may_be_longer_the_second_time(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: Said("{", finish="length") if number == 0 else named(number, body))
    one = chat(tmp_path, prices=(0.0, 1.0))
    assert labels(one.ask_all(asked(1))) == ["0"]
    assert [body["max_completion_tokens"] for body in server.requests] == [40, 160]
    assert [line["reserved"][1] for line in lines(tmp_path) if line["kind"] == "intent"] == [40, 160]


def test_a_reply_in_a_code_fence_is_read(serve: Any, tmp_path: Path) -> None:
    serve(lambda number, body: '```json\n{"label": "fenced"}\n```')
    assert labels(chat(tmp_path).ask_all(asked(1))) == ["fenced"]


def test_a_model_that_takes_no_temperature_is_asked_without(serve: Any, tmp_path: Path) -> None:
    refusal = Fault("status", status=400, error={"message": "Unsupported value", "param": "temperature"})
    server = serve(lambda number, body: refusal if "temperature" in body else named(number, body))
    assert labels(chat(tmp_path, concurrency=1).ask_all(asked(3))) == ["0", "1", "2"]
    assert ["temperature" in body for body in server.requests] == [True, False, False, False]


def test_a_model_that_thinks_is_asked_to_think_little_and_has_no_temperature() -> None:
    (question,) = asked(1)
    for model in ("gpt-5", "gpt-5-mini", "gpt-5-nano-2025-08-07"):
        body = question.body(model)
        assert body["reasoning_effort"] == "minimal" and "temperature" not in body
    # Later ones refuse `minimal`; those for chats do not think.
    for model in ("gpt-5.1", "gpt-5.1-2025-11-13", "gpt-5-chat-latest", "gpt-4o", "my-gpt-5"):
        body = question.body(model)
        assert "reasoning_effort" not in body and body["temperature"] == 0


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize(("model", "part"), [("gpt-5-mini", "reasoning_effort"), ("m", "temperature")])
def test_a_part_that_a_server_refuses_is_left_out(serve: Any, tmp_path: Path, send: str, model: str, part: str) -> None:
    refusal = Fault("status", status=400, error={"message": "Unsupported value", "param": part})
    server = serve(lambda number, body: refusal if part in body else named(number, body))
    one = chat(tmp_path, send=send, concurrency=1)
    one.desk.model = model
    assert labels(one.ask_all(asked(2))) == ["0", "1"]
    assert part in server.requests[0] and part not in server.requests[-1]


def test_one_question_that_is_too_long_for_the_model_leaves_the_others(serve: Any, tmp_path: Path) -> None:
    long = Fault("status", status=400, error={"message": "context length exceeded", "param": "messages"})
    serve(lambda number, body: long if data_of(body)["n"] == 2 else named(number, body))
    assert labels(chat(tmp_path, concurrency=1).ask_all(asked(4))) == ["0", "1", None, "3"]


def test_a_server_that_takes_no_such_request_says_why(serve: Any, tmp_path: Path) -> None:
    serve(lambda number, body: Fault("status", error={"message": "response_format is not known, sk-secret"}))
    with pytest.raises(LensError, match=r"failed on number 0: BadRequestError \(HTTP 400\): response_format") as caught:
        list(chat(tmp_path, concurrency=1).ask_all(asked(2)))
    assert "sk-secret" not in str(caught.value)


def test_a_missing_key_is_named_and_nothing_stands_in_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for send in SENDS:
        with pytest.raises(LensError, match=r"set the environment variable OPENAI_API_KEY.*labeller='lexicon'"):
            list(chat(tmp_path, send=send).ask_all(asked(2)))
    assert lines(tmp_path) == []


def test_a_server_of_ones_own_needs_no_key(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(named)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert labels(chat(tmp_path, base_url=server.url).ask_all(asked(1))) == ["0"]
    assert server.authorization == ["Bearer no-key"]


@pytest.mark.parametrize("send", ["async", "sync"])
def test_a_refused_key_stops_the_work_at_once_without_showing_it(serve: Any, tmp_path: Path, send: str) -> None:
    server = serve(lambda number, body: 401)
    one = chat(tmp_path, send=send, concurrency=1, prices=(1.0, 1.0))
    with pytest.raises(
        LensError, match=r"AuthenticationError \(HTTP 401\)\. Nothing was spent.*OPENAI_API_KEY"
    ) as caught:
        list(one.ask_all(asked(5)))
    assert "sk-secret" not in str(caught.value) + (tmp_path / "ledger.jsonl").read_text()
    assert (len(server.requests), one.ledger.held.usd) == (1, 0.0)


def test_an_unknown_model_and_an_empty_account_stop_the_work_at_once(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: 404)
    with pytest.raises(LensError, match=r"openai:m is not known to the server.*Check the model's name"):
        list(chat(tmp_path, concurrency=1).ask_all(asked(5)))
    server.answer = lambda number, body: Fault("status", status=429, error={"code": "insufficient_quota"})
    with pytest.raises(LensError, match="no money left"):
        list(chat(tmp_path, concurrency=1).ask_all(asked(5)))
    assert len(server.requests) == 2


@pytest.mark.parametrize("send", SENDS)
def test_a_server_that_is_not_there_is_told_at_once(
    serve: Any, tmp_path: Path, send: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ChatServer(named).running() as gone:
        url = gone.url
    one = chat(tmp_path, base_url=url, send=send, concurrency=1, prices=(1.0, 1.0), backoff_seconds=0.001)
    with pytest.raises(LensError, match=r"no server answered|There is no server for openai:m"):
        list(one.ask_all(asked(2)))
    if send != "batch":
        assert one.ledger.held.usd == 0.0


def test_hundreds_of_labels_survive_a_server_that_misbehaves(serve: Any, tmp_path: Path) -> None:
    server = serve(mischief := Mischief(stall_seconds=2.0, storm_every=150))
    came = ask_labels(server.url, tmp_path, 200, 0.3, timeout_seconds=1.0)
    found = audit(tmp_path, server)
    assert came == [label_of(at) for at in range(200)]
    assert {"429", "500", "drop", "cut"} < set(mischief.counts)
    assert (found.again_after_reply, found.more_than_told, found.open_by_run) == (0, 0, {})
    lost = sum(line["kind"] == "lost" for line in lines(tmp_path))
    assert found.repeated == lost >= sum(mischief.counts[kind] for kind in ("drop", "cut", "stall")) > 5
    assert found.charged_usd <= found.most_held_usd <= 0.3


def test_an_error_that_is_not_the_clients_keeps_its_cause() -> None:
    import openai

    from lfp_lens.parts.chat.server import Hopeless, outcome_of

    ours, theirs = (
        outcome_of(TypeError("a mistake"), "openai:m"),
        outcome_of(openai.OpenAIError("sk-secret"), "openai:m"),
    )
    assert isinstance(ours, Hopeless) and isinstance(theirs, Hopeless)
    assert isinstance(ours.error.__cause__, TypeError)
    assert theirs.error.__cause__ is None and "sk-secret" not in str(theirs.error)
