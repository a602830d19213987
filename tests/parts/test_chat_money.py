"""Budgets are never overrun, reservations included, and prices are known, named or refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import BudgetSpent, Chat, Prices, Spending, listed_prices, price_table
from tests.chat_jobs import Mischief, ask, audit
from tests.chat_server import Fault, Said
from tests.parts.test_chat import Label, asked, chat, labels, lines, named

MILLION = (1.0, 1.0)
"""USD per million tokens, so that a token costs a millionth."""
RESERVED = asked(1)[0].most_tokens_in + 40
"""Tokens that one question reserves."""


def dollars(tokens: float) -> float:
    return tokens / 1e6


@pytest.mark.parametrize("send", ["async", "sync", "batch"])
def test_a_budget_too_small_for_one_call_is_refused_before_any_call(serve: Any, tmp_path: Path, send: str) -> None:
    server = serve(named)
    for given in ({"budget_usd": dollars(RESERVED - 1), "prices": MILLION}, {"budget_tokens": RESERVED - 1}):
        with pytest.raises(BudgetSpent, match=r"too small for one request of openai:m.*Nothing was sent.*budget_"):
            list(chat(tmp_path, send=send, **given).ask_all(asked(3)))
    assert server.requests == [] and lines(tmp_path) == []


@pytest.mark.parametrize("send", ["async", "sync", "batch"])
@pytest.mark.parametrize("unit", ["usd", "tokens"])
def test_a_budget_that_ends_keeps_what_was_answered_and_goes_on_when_it_is_raised(
    serve: Any, tmp_path: Path, send: str, unit: str
) -> None:
    server = serve(named)
    # 105 tokens are charged for each reply: after four there is no room for a fifth reservation.
    tokens = 4 * 105 + RESERVED - 1
    budget = {"usd": {"budget_usd": dollars(tokens), "prices": MILLION}, "tokens": {"budget_tokens": tokens}}[unit]
    with pytest.raises(BudgetSpent, match=r"no room.*4 of 9 questions of this step are answered.*Raise budget_" + unit):
        list(chat(tmp_path, send=send, **budget).ask_all(asked(9)))
    assert len(server.requests) == 4
    raised = {name: value if name == "prices" else 10 * value for name, value in budget.items()}
    one = chat(tmp_path, send=send, **raised)
    assert labels(one.ask_all(asked(9))) == [str(at) for at in range(9)]
    assert (len(server.requests), one.bill.cached) == (9, 4)


def test_requests_wait_for_room_in_the_budget_while_others_are_in_flight(serve: Any, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Said:
        time.sleep(0.05)
        return named(number, body)

    serve(answer)
    # There is room for two reservations at once, and for all replies.
    budget = dollars(8 * 105 + 2 * RESERVED)
    one = chat(tmp_path, budget_usd=budget, prices=MILLION, concurrency=8)
    assert len(labels(one.ask_all(asked(8)))) == 8
    assert one.ledger.held.usd == pytest.approx(dollars(8 * 105))


def test_a_request_without_a_reply_keeps_its_reservation(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: Fault("drop") if number < 2 else named(number, body))
    budget = dollars(2 * RESERVED + RESERVED - 1)
    with pytest.raises(BudgetSpent, match="reserved by requests whose reply never came"):
        list(chat(tmp_path, budget_usd=budget, prices=MILLION, concurrency=1).ask_all(asked(1)))
    assert len(server.requests) == 2


def test_what_earlier_runs_spent_counts(serve: Any, tmp_path: Path) -> None:
    serve(named)
    list(chat(tmp_path, prices=MILLION).ask_all(asked(5)))
    with pytest.raises(BudgetSpent, match="in this and earlier runs"):
        list(chat(tmp_path, prices=MILLION, budget_usd=dollars(5 * 105 + RESERVED - 1)).ask_all(asked(6)))


def test_what_cost_an_unknown_price_counts_at_the_price_that_is_known_later(serve: Any, tmp_path: Path) -> None:
    serve(named)
    list(chat(tmp_path).ask_all(asked(5)))
    later = chat(tmp_path, prices=MILLION, budget_usd=dollars(5 * 105 + RESERVED - 1))
    with pytest.raises(BudgetSpent):
        list(later.ask_all(asked(6)))


def test_a_server_that_counts_no_tokens_is_charged_what_was_reserved(serve: Any, tmp_path: Path) -> None:
    serve(lambda number, body: Said(named(number, body).text, tokens=None))
    one = chat(tmp_path, prices=MILLION)
    list(one.ask_all(asked(2)))
    assert one.bill.usd == pytest.approx(dollars(2 * RESERVED))


@pytest.mark.parametrize("send", ["async", "sync", "batch"])
@pytest.mark.parametrize("unit", ["usd", "tokens"])
def test_a_server_that_does_not_keep_the_bound_on_answers_ends_the_work_under_a_budget(
    serve: Any, tmp_path: Path, send: str, unit: str
) -> None:
    server = serve(lambda number, body: Said(named(number, body).text, (100, 2 * RESERVED)))
    budget = {"usd": {"budget_usd": 1.0, "prices": MILLION}, "tokens": {"budget_tokens": 10**6}}[unit]
    one = chat(tmp_path, send=send, concurrency=2, **budget)
    with pytest.raises(
        BudgetSpent, match=rf"were reserved: the server does not keep max_completion_tokens.*budget_{unit}"
    ):
        list(one.ask_all(asked(9)))
    # One round: what was in flight, or in the batch.
    assert len(server.requests) <= (9 if send == "batch" else 2)
    assert sum(line["kind"] == "reply" for line in lines(tmp_path)) == len(server.requests)
    assert labels(chat(tmp_path, send=send).ask_all(asked(1))) == ["0"], "what was answered is kept"


def test_without_a_budget_a_long_answer_is_an_answer(serve: Any, tmp_path: Path) -> None:
    serve(lambda number, body: Said(named(number, body).text, (100, 2 * RESERVED)))
    assert labels(chat(tmp_path, prices=MILLION).ask_all(asked(3))) == ["0", "1", "2"]


def test_the_bill_of_a_call_is_what_was_paid_since(serve: Any, tmp_path: Path) -> None:
    serve(named)
    one = chat(tmp_path, prices=MILLION)
    list(one.ask_all(asked(3)))
    first = one.bill
    list(one.ask_all(asked(5)))
    since = one.bill_since(first)
    assert (since.requests, since.cached, since.tokens_in, since.tokens_out) == (2, 3, 200, 10)
    assert since.usd == pytest.approx(dollars(210)) and one.bill.usd == pytest.approx(dollars(525))
    assert since.estimate_usd == pytest.approx(one.bill.estimate_usd - first.estimate_usd)
    before = one.bill
    for n in (6, 9):
        foretold, told = one.estimate(asked(n)), one.bill
        one.foretell(foretold)
        list(one.ask_all(asked(n)))
        assert one.bill_since(told).estimate_usd == pytest.approx(foretold.usd)
    assert one.bill.estimate_usd > before.estimate_usd
    unpriced = chat(tmp_path / "unpriced")
    start = unpriced.bill
    list(unpriced.ask_all(asked(1)))
    assert (unpriced.bill_since(start).usd, unpriced.bill_since(start).estimate_usd) == (None, None)


def test_a_reservation_is_more_than_any_tokenizer_counts(real_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "gpt-neox-20b")
    for text in ("a plain sentence about films", "émöjí 🙂 漢字 ﷽ \u202e", "\\\"'{}[]\n\t" * 9, ""):
        (question,) = [type(one)(one.about, one.system, {"text": text}, Label) for one in asked(1)]
        body = json.dumps([question.messages, question.body("m")["response_format"]], ensure_ascii=False)
        assert len(tokenizer.encode(body)) < question.most_tokens_in


def test_the_budget_holds_at_every_moment_against_a_server_that_misbehaves(serve: Any, tmp_path: Path) -> None:
    server = serve(Mischief(stall_seconds=0.8, seed=3))
    budget = 0.06
    with pytest.raises(BudgetSpent):
        ask(server.url, tmp_path, 150, budget, timeout_seconds=0.3)
    found = audit(tmp_path, server)
    assert 0.9 * budget < found.most_held_usd <= budget
    assert found.charged_usd <= budget and found.replies > 20


def test_the_cost_is_told_before_the_first_call_and_stands_in_the_bill(
    serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def answer(number: int, body: dict[str, Any]) -> Said:
        told.append(capsys.readouterr().err)
        return named(number, body)

    serve(answer)
    one = chat(tmp_path, prices=(2.0, 4.0), concurrency=1)
    estimate = one.estimate(asked(10))
    assert (estimate.requests, estimate.tokens_out) == (10, 500)
    assert estimate.usd == pytest.approx((2.0 * estimate.tokens_in + 4.0 * 500) / 1e6)
    list(one.ask_all(asked(10)))
    assert "openai:m: 10 questions, about" in told[0] and f"{estimate.usd:.4f} USD" in told[0]
    assert one.bill.estimate_usd == estimate.usd
    list(one.ask_all(asked(10)))
    assert one.bill.estimate_usd == estimate.usd and capsys.readouterr().err == ""


def test_a_bill_names_its_ledger_and_no_price_that_is_not_known(serve: Any, tmp_path: Path) -> None:
    serve(named)
    one = chat(tmp_path / "replies")
    list(one.ask_all(asked(2)))
    assert (one.bill.usd, one.bill.estimate_usd, one.bill.ledger) == (None, None, "replies/ledger.jsonl")


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def test_the_table_of_prices_is_dated_and_says_that_it_must_be_checked() -> None:
    table = price_table()
    assert len(table["date"]) == 10 and "Check" in table["about"] and table["check"].startswith("https://")
    assert all(0 < row["in"] < row["out"] and row["source"] in table["sources"] for row in table["families"].values())


def test_a_dated_name_has_the_price_of_its_family_unless_it_has_its_own(vendor: None) -> None:
    assert listed_prices("gpt-4o-mini-2024-07-18") == listed_prices("gpt-4o-mini") == Prices(0.15, 0.6)
    assert listed_prices("gpt-4o-2024-05-13") == Prices(5.0, 15.0) != listed_prices("gpt-4o")
    assert listed_prices("gpt-4o-miniature") is None and listed_prices("my-gpt-4o") is None


def test_a_batch_is_reckoned_at_half_the_listed_price(vendor: None) -> None:
    assert Spending().prices_of("gpt-4o") == Prices(2.5, 10.0)
    assert Spending(send="batch").prices_of("gpt-4o") == Prices(1.25, 5.0)
    assert Spending(send="batch", prices=(1.0, 2.0)).prices_of("gpt-4o") == Prices(1.0, 2.0)


def test_an_unknown_model_needs_prices_or_a_budget_of_tokens(vendor: None, tmp_path: Path) -> None:
    def made(**given: Any) -> Chat:
        return Chat("mine", tmp_path, role="labeller", offline="lexicon", spending=Spending.of(given))

    with pytest.raises(LensError, match=r"No price is known for 'mine'.*prices=\(in, out\).*budget_tokens=.*gpt-4o"):
        made(budget_usd=1.0)
    assert made(budget_usd=1.0, prices=(0, 0)).desk.prices == Prices(0, 0)
    assert made(budget_tokens=1000).desk.prices is None


def test_the_table_does_not_speak_of_other_servers() -> None:
    assert Spending(base_url="http://localhost:8000/v1").prices_of("gpt-4o") is None
    assert Spending(base_url="https://api.openai.com/v1").prices_of("gpt-4o") == Prices(2.5, 10.0)
    with pytest.raises(LensError, match=r"No price is known for 'gpt-4o' at http://localhost:8000/v1"):
        Spending(base_url="http://localhost:8000/v1", budget_usd=1.0).prices_of("gpt-4o")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget_usd": 0}, "budget_usd must be above 0; 0 given"),
        ({"budget_usd": "5"}, "budget_usd must be above 0; '5' given"),
        ({"budget_tokens": -1}, "budget_tokens must be above 0"),
        ({"concurrency": 0}, "concurrency must be 1 to 1000"),
        ({"concurrency": 2.5}, "concurrency must be 1 to 1000"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be above 0 and finite"),
        ({"send": "asink"}, r"Unknown way to send 'asink'\. Did you mean 'async'\?"),
        ({"budget": 1}, r"Unknown spending option 'budget'\. Did you mean 'budget_usd'\?"),
    ],
)
def test_spending_that_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        Spending.of(given)


@pytest.mark.parametrize("prices", [(1.0,), (1.0, -2.0), (1.0, float("inf")), ("1", "2"), (1, 2, 3), 5])
def test_prices_that_are_none_are_refused(prices: Any) -> None:
    with pytest.raises(LensError, match=r"prices must be two numbers of at least 0"):
        Spending(prices=prices).prices_of("gpt-4o")


def test_prices_can_be_named_for_each_model(vendor: None) -> None:
    spending = Spending(prices={"mine": (1.0, 2.0), "gpt-4o": (3.0, 4.0)})
    assert spending.prices_of("mine") == Prices(1.0, 2.0) and spending.prices_of("gpt-4o") == Prices(3.0, 4.0)
    # A name that is misspelt, or of one dated version, must not be charged by the package's table unseen.
    for model in ("gpt-4o-mini", "gpt-4o-2024-08-06", "yours"):
        with pytest.raises(LensError, match=rf"prices names 'mine', 'gpt-4o', not '{model}'"):
            spending.prices_of(model)
    with pytest.raises(LensError, match=r"prices must be two numbers of at least 0"):
        Spending(prices={"mine": (1.0, -2.0)}).prices_of("mine")


def test_none_stands_for_the_default() -> None:
    assert Spending.of({"budget_usd": None, "send": None, "concurrency": 3}) == Spending(concurrency=3)
