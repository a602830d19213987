"""Valence is the model's expectation of a token value: by hand, by token, by gradient."""

import pytest
import torch

from lfp_lens.core.errors import GateError
from lfp_lens.parts.activations import encode, pad
from lfp_lens.parts.valence import MIN_WORDS, token_values, valence
from tests.tiny import ARCHITECTURES, NEGATIVE, NEUTRAL, POSITIVE, tiny_pair, tiny_tokenizer

LEXICON = {**dict.fromkeys(POSITIVE, 2.0), **dict.fromkeys(NEGATIVE, -3.0), "marvellous": 4.0, "nothing": 0.0}
TEXTS = [f"the {word} film" for word in (*POSITIVE, *NEGATIVE, *NEUTRAL)]
SIZE = len(tiny_tokenizer())


def values(texts: list[str], lexicon: dict[str, float] = LEXICON) -> torch.Tensor:
    return token_values(tiny_tokenizer(), lexicon, texts, vocabulary=SIZE, device="cpu")


def first_token(word: str) -> int:
    return tiny_tokenizer()(f" {word}", add_special_tokens=False)["input_ids"][0]


def test_a_word_that_is_one_token_has_its_lexicon_value() -> None:
    found = values(TEXTS)
    assert found.shape == (SIZE,)
    assert all(float(found[first_token(word)]) == 2.0 for word in POSITIVE)
    assert all(float(found[first_token(word)]) == -3.0 for word in NEGATIVE)
    assert all(float(found[first_token(word)]) == 0.0 for word in NEUTRAL)
    assert int((found != 0).sum()) == len(POSITIVE) + len(NEGATIVE)


def test_a_token_that_begins_several_words_has_their_mean_by_occurrence() -> None:
    """ " m" begins "marvellous" (4) once and "mild", outside the lexicon, three times."""
    assert first_token("marvellous") == first_token("mild")
    found = values([*TEXTS, "a marvellous film", "a mild film, mild and mild"])
    assert float(found[first_token("mild")]) == 4.0 / 4


def test_capitals_do_not_change_a_words_value() -> None:
    found = values([*TEXTS, "a Marvellous film", "a MARVELLOUS film"])
    firsts = [tiny_tokenizer()(f"a {word}")["input_ids"][1:] for word in ("Marvellous", "MARVELLOUS")]
    assert firsts[0][0] == firsts[1][0], "a space is the first token of both"
    text = encode(tiny_tokenizer(), ["a Marvellous film"], max_tokens=64)[0]
    assert float(found[text.ids[3]]) == 4.0


def test_too_few_lexicon_words_are_refused() -> None:
    few = [f"the {word}" for word in POSITIVE]
    with pytest.raises(GateError, match=rf"6 different lexicon words occur in the 6 texts; {MIN_WORDS} are needed"):
        values(few)
    with pytest.raises(GateError, match=r"0 different lexicon words occur"):
        values(TEXTS, {})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_valence_is_the_expected_value_of_the_next_token(architecture: str) -> None:
    model, values_V = tiny_pair(architecture).tuned_hf, values(TEXTS)
    encoded = encode(tiny_tokenizer(), ["the film was great", "we saw"], max_tokens=64)
    batch = pad(encoded, [0, 1], device="cpu")
    found = valence(model, batch, values_V).detach()
    wanted = []
    for text in encoded:
        with torch.no_grad():
            p = torch.softmax(model(input_ids=torch.tensor([text.ids])).logits[0], -1)
        wanted += [
            sum(float(p[at, token]) * float(values_V[token]) for token in range(SIZE)) for at in range(len(text.ids))
        ]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-4, rtol=0)


def test_a_constant_value_has_a_constant_expectation() -> None:
    batch = pad(encode(tiny_tokenizer(), ["the film was great"], max_tokens=64), [0], device="cpu")
    found = valence(tiny_pair().tuned_hf, batch, torch.full((SIZE,), 1.5)).detach()
    torch.testing.assert_close(found, torch.full_like(found, 1.5), atol=1e-5, rtol=0)


def test_valence_has_a_gradient() -> None:
    model = tiny_pair().tuned_hf
    batch = pad(encode(tiny_tokenizer(), ["the film was great"], max_tokens=64), [0], device="cpu")
    (slope,) = torch.autograd.grad(valence(model, batch, values(TEXTS)).sum(), [model.get_output_embeddings().weight])
    assert float(slope.norm()) > 0
