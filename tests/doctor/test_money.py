"""What a paid labeller is asked, and what that costs: counted by hand, and in a real tokenizer."""

import json
from pathlib import Path

import pytest

from lfp_lens.config import load_config, with_values
from lfp_lens.core.errors import LensError
from lfp_lens.doctor.money import PRICE_IN, PRICE_OUT, Calls, Prices, calls, prices


@pytest.fixture(autouse=True)
def no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PRICE_IN, PRICE_OUT):
        monkeypatch.delenv(name, raising=False)


def test_no_price_is_made_up() -> None:
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


def test_money_is_tokens_times_price() -> None:
    assert Calls(1, 4, 2_000_000, 500_000).usd(Prices(2.5, 10)) == 10.0


@pytest.mark.parametrize(
    ("select", "features"),
    [("mmcs", 5 * 10), ("attribution", 10), ("all", 5 * 64)],
)
def test_every_feature_is_described_judged_and_tested_twice(select: str, features: int) -> None:
    config = with_values(load_config("tiny"), {"explain.select": select, "explain.k": 10, "sites": 5})
    asked = calls(config, width=64, layers=6)
    assert (asked.features, asked.requests) == (features, 4 * features)


def test_there_are_no_more_sites_than_layers() -> None:
    config = with_values(load_config("tiny"), {"explain.k": 10, "sites": 50})
    assert calls(config, width=64, layers=6).features == 60


def test_the_tokens_of_a_question_are_about_those_that_are_sent(real_data: Path) -> None:
    from transformers import AutoTokenizer

    from lfp_lens.parts.labellers import chat
    from lfp_lens.parts.texts import load_texts

    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "gpt-neox-20b")
    windows = [tokenizer.tokenize(text)[:16] for text in load_texts("imdb", split="test", n=40)]
    windows = [[piece.replace("Ġ", " ") for piece in window] for window in windows]
    shown = [{"tokens": window, "activations": [0] * 11 + [10, 5, 3, 0, 0]} for window in windows[:5]]
    numbered = [{"number": number, "text": "".join(window)} for number, window in enumerate(windows, start=1)]
    described = [chat.DESCRIBE, {"texts": shown}, chat.Description]
    judged = [chat.JUDGE, {"description": "words of praise for a film", "task": "positive sentiment"}, chat.Judgement]
    detected = [chat.DETECT, {"description": "words of praise for a film", "texts": numbered}, chat.Detection]
    sent = 0
    for (system, data, schema), times in ((described, 1), (judged, 1), (detected, 2)):
        question = system + json.dumps(data) + json.dumps(schema.model_json_schema())
        sent += times * len(tokenizer.encode(question))
    config = with_values(load_config("tiny"), {"explain.select": "attribution", "explain.k": 100})
    # Servers count a schema and the turns in ways of their own: a fifth is what such an estimate can promise.
    assert calls(config, width=64, layers=6).tokens_in / 100 == pytest.approx(sent, rel=0.2)
