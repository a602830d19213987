"""What a paid labeller is asked, and what that costs: counted by hand, and in a real tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.config import load_config, with_values
from lfp_lens.core.errors import LensError
from lfp_lens.doctor.estimates import _asked
from lfp_lens.doctor.money import PRICE_IN, PRICE_OUT, asked_of, prices
from lfp_lens.parts.chat import Prices, price_table
from lfp_lens.parts.labellers.chat_cost import TRIAL_WINDOWS, expected_cost, questions_of, typical_questions
from lfp_lens.stages.explain.trials import MAX_WINDOWS

PAID = {"explain.labeller": "openai:gpt-4o"}


@pytest.fixture(autouse=True)
def no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PRICE_IN, PRICE_OUT, "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def asked(values: dict[str, Any], at: Prices | None = None, width: int = 64) -> list[Any]:
    return asked_of(with_values(load_config("tiny"), PAID | values), width, 6, at)


def test_no_price_is_named_unless_somebody_does() -> None:
    assert prices() is None


def test_prices_come_from_arguments_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prices(2.5, 10) == Prices(2.5, 10)
    assert prices(0, 0) == Prices(0, 0)
    monkeypatch.setenv(PRICE_IN, "1.5")
    monkeypatch.setenv(PRICE_OUT, "6")
    assert prices() == Prices(1.5, 6)
    assert prices(3) == Prices(3, 6)


@pytest.mark.parametrize("given", [(2.5, None), (None, 2.5), (-1, 2), (float("nan"), 1), (1, float("inf"))])
def test_half_a_price_or_none_that_is_one_is_refused(given: tuple[float | None, float | None]) -> None:
    with pytest.raises(LensError, match=r"A price has two parts.*Give --price-in and --price-out"):
        prices(*given)


def test_a_price_in_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRICE_IN, "cheap")
    with pytest.raises(LensError, match=r"LFP_LENS_PRICE_IN is 'cheap'"):
        prices(price_out=1)


def test_named_prices_go_before_the_configs_and_those_before_the_table() -> None:
    (listed,) = asked({})
    assert listed.cost.prices == Prices(2.5, 10.0)
    assert price_table()["date"] in listed.source and "check" in listed.source
    (own,) = asked({"explain.prices": [1.0, 2.0]})
    assert (own.cost.prices, own.source) == (Prices(1.0, 2.0), "as the config names them")
    (own,) = asked({"explain.prices": {"gpt-4o": [1.0, 2.0]}})
    assert (own.cost.prices, own.source) == (Prices(1.0, 2.0), "as the config names them")
    with pytest.raises(LensError, match="prices names 'another', not 'gpt-4o'"):
        asked({"explain.prices": {"another": [1.0, 2.0]}})
    (named,) = asked({"explain.prices": [1.0, 2.0]}, Prices(7.0, 8.0))
    assert (named.cost.prices, named.source) == (Prices(7.0, 8.0), "as you named them")
    (unknown,) = asked({"explain.labeller": "openai:somebodys"})
    assert unknown.cost.usd is None
    assert asked({"explain.send": "batch"})[0].cost.usd == pytest.approx(listed.cost.usd / 2)


def test_money_is_tokens_times_price() -> None:
    cost = expected_cost({"explain": 3, "detect": 2}, 10, "sentiment", Prices(2.0, 8.0))
    typical = typical_questions(10, "sentiment")
    tokens_in = 3 * typical["explain"].likely_tokens_in + 2 * typical["detect"].likely_tokens_in
    assert (cost.requests, cost.tokens_in) == (5, tokens_in)
    assert cost.usd == pytest.approx((2 * tokens_in + 8 * cost.tokens_out) / 1e6)


@pytest.mark.parametrize(
    ("select", "features"),
    [("mmcs", 5 * 10), ("attribution", 10), ("all", 5 * 64)],
)
def test_every_feature_is_explained_and_tried_twice_for_each_score(select: str, features: int) -> None:
    values = {"explain.select": select, "explain.k": 10, "sites": 5, "explain.n_random": 20}
    (one,) = asked(values | {"explain.scores": ["detection", "fuzzing", "simulation"]})
    # Chat models do not simulate; the random features are explained and tried once.
    assert (one.features, one.cost.requests) == (features, (features + 20) + 2 * (2 * features + 20))
    (fewer,) = asked(values | {"explain.scores": ["detection"], "explain.n_random": 0})
    assert fewer.cost.requests == 3 * features


def test_asking_again_and_a_judge_are_counted() -> None:
    assert questions_of(10, ("detection",), is_repeated=True) == {"explain": 20, "detect": 20, "fuzz": 0}
    values = {"explain.select": "attribution", "explain.k": 10, "explain.judge": "openai:gpt-4o-mini"}
    judge = asked(values)[1]
    assert (judge.labeller, judge.cost.requests, judge.cost.prices) == ("openai:gpt-4o-mini", 10, Prices(0.15, 0.6))
    assert [one.labeller for one in asked(values | {"explain.labeller": "lexicon"})] == ["openai:gpt-4o-mini"]
    assert asked({"explain.labeller": "lexicon"}) == []


def test_there_are_no_more_sites_than_layers() -> None:
    assert asked({"explain.k": 10, "sites": 50})[0].features == 60


def test_a_budget_below_the_cost_is_told() -> None:
    config = with_values(load_config("tiny"), PAID | {"explain.budget_usd": 0.01})
    (one,) = asked_of(config, 64, 6)
    finding = _asked(one, config)
    assert finding.status == "warn" and "explain.budget_usd of 0.01 will stop it before" in finding.text


def test_a_trial_is_reckoned_with_as_many_windows_as_it_may_have() -> None:
    assert TRIAL_WINDOWS == 2 * MAX_WINDOWS


def test_the_tokens_of_a_question_are_about_those_that_are_sent(real_data: Path) -> None:
    from transformers import AutoTokenizer

    from lfp_lens.parts.labellers.base import Evidence, Trial
    from lfp_lens.parts.labellers.chat_questions import detect_questions, explain_questions, fuzz_questions
    from lfp_lens.parts.texts import load_texts
    from lfp_lens.results.explain import Example, Explanation

    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "gpt-neox-20b")
    generator = np.random.default_rng(0)
    shown = []
    for text in load_texts("imdb", split="test", n=40):
        pieces = [piece.replace("Ġ", " ") for piece in tokenizer.tokenize(text)[:32]]
        acts = np.where(generator.random(len(pieces)) < 0.12, generator.random(len(pieces)), 0.0)
        shown.append(Example(tuple(pieces), acts, marked=(3, 9)))
    listed = tuple(piece for window in shown for piece in window.tokens[:2])[:12]
    evidence = Evidence("", tuple(shown[:10]), tuple(shown[10:15]), ("",), np.ones(1), np.ones(1, int),
                        tokens=listed, promotes=listed, suppresses=listed)  # fmt: skip
    trial = Trial("", Explanation("words of praise for a film", True, 0.9), tuple(shown))
    task = "positive or negative sentiment"
    real = {
        "explain": explain_questions([evidence], task),
        "detect": detect_questions([trial]),
        "fuzz": fuzz_questions([trial]),
    }
    for kind, (question,) in real.items():
        schema = json.dumps(question.body("m")["response_format"])
        sent = sum(len(tokenizer.encode(part)) for part in (*(turn["content"] for turn in question.messages), schema))
        # Servers count a schema and the turns in ways of their own: a fifth is what such an estimate can promise.
        assert typical_questions(10, task)[kind].likely_tokens_in == pytest.approx(sent, rel=0.2)
        assert question.likely_tokens_in == pytest.approx(sent, rel=0.2)
