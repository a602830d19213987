"""The bench of the labellers on planted features, where every figure has a known answer."""

import pytest

from tests.benchmarks.explain_features import of_labeller, pass_cost
from tests.tiny import tiny_pair, tiny_texts, word_saes

WORDS = ("wonderful", "terrible", "table", "river")


@pytest.mark.parametrize("labeller", ["lexicon", "graph"])
def test_a_labeller_that_is_right_scores_high_and_its_shuffled_explanations_do_not(labeller: str) -> None:
    pair = tiny_pair()
    figures = of_labeller(pair, word_saes(pair, WORDS), tiny_texts(120), labeller, n_random=3)
    found = {figure.what: figure for figure in figures}
    assert found[f"{labeller}: detection, median"].value > 0.95
    shuffled = found[f"{labeller}: detection, mean with another feature's explanation"]
    assert shuffled.low < 0.5 < shuffled.high and shuffled.n == 4 and shuffled.aim == "interval holds 0.5"
    assert found[f"{labeller}: features per CPU-second, everything included"].value > 0
    assert (f"{labeller}: simulation, mean" in found) == (labeller == "graph")


def test_the_pass_is_timed_beside_reading_the_same_tokens() -> None:
    pair, texts = tiny_pair(), tiny_texts(20)
    cost = pass_cost(pair, word_saes(pair, WORDS), texts, repeats=1)
    assert cost.value > 0 and cost.n == sum(len(pair.tokenizer(text)["input_ids"]) for text in texts)
