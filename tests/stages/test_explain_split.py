"""Which texts are shown and which are held out: nothing that is held out was shown, whatever order texts come in."""

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.pair import Pair
from lfp_lens.stages.explain.windows import by_content, halves
from tests.tiny import WORDS, tiny_pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


def long_texts(n: int) -> list[str]:
    generator = np.random.default_rng(5)
    return [" ".join(generator.choice(WORDS, generator.integers(3, 70)).tolist()) + "." for _ in range(n)]


def both_parts(pair: Pair, texts: list[str], max_tokens: int, seed: int = 0) -> tuple[list[str], list[str]]:
    shown, held = halves(pair, by_content(texts, seed), max_tokens=max_tokens, width=16, seed=seed)
    return [text.text for text in shown.encoded], [text.text for text in held.encoded]


def dialogues(n_prompts: int, n_answers: int, words: int) -> list[str]:
    """Texts of which `n_answers` share each prompt of so many words."""
    generator = np.random.default_rng(11)
    prompts = [" ".join(generator.choice(WORDS, words)) for _ in range(n_prompts)]
    return [f"{prompt} {' '.join(generator.choice(WORDS, 10))}." for prompt in prompts for _ in range(n_answers)]


def test_texts_that_begin_alike_fall_into_the_same_half(pair: Pair) -> None:
    texts = dialogues(12, 3, 60)
    prompt_of = {text: text[:200] for text in texts}
    for seed in range(3):
        shown, held = both_parts(pair, texts, 80, seed)
        assert {prompt_of[text] for text in shown}.isdisjoint(prompt_of[text] for text in held)
        assert sorted(shown + held) == sorted(texts) and len(shown) == len(held) == 18


def test_texts_that_are_equal_where_they_are_cut_count_once(pair: Pair) -> None:
    texts = dialogues(12, 3, 60)
    shown, held = both_parts(pair, texts, 40)
    assert len({text[:200] for text in shown + held}) == len(shown + held) == 12
    assert len(shown) == len(held) == 6


def test_the_order_of_texts_that_share_a_prompt_changes_nothing(pair: Pair) -> None:
    texts = dialogues(7, 2, 60) + long_texts(9)
    for max_tokens in (40, 80):
        wanted = both_parts(pair, texts, max_tokens)
        for at in range(3):
            mixed = np.random.default_rng(at).permutation(texts).tolist()
            assert both_parts(pair, mixed, max_tokens) == wanted


def test_a_prompt_of_most_texts_leaves_a_half_for_the_others(pair: Pair) -> None:
    shared, others = dialogues(1, 20, 60), long_texts(5)
    for seed in range(6):
        shown, held = both_parts(pair, shared + others, 80, seed)
        assert shown and held and any(set(shared) <= set(part) for part in (shown, held))


@pytest.mark.parametrize(("max_tokens", "message"), [(80, "begin with the same 32 tokens"), (40, "1 different text")])
def test_texts_that_all_begin_alike_cannot_be_split(pair: Pair, max_tokens: int, message: str) -> None:
    with pytest.raises(LensError, match=message):
        both_parts(pair, dialogues(1, 4, 60), max_tokens)
