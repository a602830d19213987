"""Signals, against slow computations that do one word at a time."""

import copy

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import word_passes
from lfp_lens.parts.activations import Encoded, encode, tokens_of_span
from lfp_lens.parts.signals import SIGNALS, Seen, Signal, activation_delta, make_signal
from lfp_lens.parts.word_passes import read_words
from lfp_lens.parts.words import find_words
from tests.tiny import ARCHITECTURES, perturbed, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = [*tiny_texts(6), "a marvellous film, sadly unwatchable.", "great", "we saw"]


def implicit_reward(base, others, encoded, spans):  # type: ignore[no-untyped-def]
    found = read_words(base, others, encoded, spans, {"reward": SIGNALS["implicit_reward"]})
    return found.values["reward"], found.base_log_p


def spans_of(texts: list[str]) -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = [[] for _ in texts]
    for spot in find_words(texts):
        found[spot.text].append((spot.start, spot.end))
    return found


def slow(base, other, text: Encoded, span: tuple[int, int]) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """One forward pass per model and word in double precision; the definition, term by term."""
    at = tokens_of_span(text, span)
    with torch.no_grad():
        ids = torch.tensor([text.ids])
        log_base, log_other = (
            torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in (base, other)
        )
    value = sum(float(log_other[token - 1, text.ids[token]] - log_base[token - 1, text.ids[token]]) for token in at)
    first = at[0] - 1
    mean_change = float((log_base[first].exp() * (log_other[first] - log_base[first])).sum())
    return value - mean_change, sum(float(log_base[token - 1, text.ids[token]]) for token in at)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_implicit_reward_equals_its_definition_word_by_word(architecture: str) -> None:
    pair = tiny_pair(architecture)
    encoded, spans = encode(tiny_tokenizer(), TEXTS, max_tokens=64), spans_of(TEXTS)
    twin = perturbed(pair.base_hf, 0.05, seed=9)
    values, log_p = implicit_reward(pair.base_hf, [pair.tuned_hf, twin], encoded, spans)
    flat = [(row, span) for row, some in enumerate(spans) for span in some]
    assert values.shape == (2, len(flat)) and log_p.shape == (len(flat),)
    assert any(len(tokens_of_span(encoded[row], span)) > 3 for row, span in flat), "words of several tokens are here"
    for column, (row, span) in enumerate(flat):
        for line, model in enumerate((pair.tuned_hf, twin)):
            value, base = slow(pair.base_hf, model, encoded[row], span)
            # fp32 sums over the vocabulary and up to ten tokens.
            assert values[line, column] == pytest.approx(value, abs=1e-4)
            assert log_p[column] == pytest.approx(base, abs=1e-4)


def test_identical_models_have_no_implicit_reward() -> None:
    base = tiny_pair().base_hf
    values, _ = implicit_reward(
        base, [base, copy.deepcopy(base)], encode(tiny_tokenizer(), TEXTS, max_tokens=64), spans_of(TEXTS)
    )
    np.testing.assert_allclose(values, 0, atol=1e-6)


def test_raising_one_words_logit_by_a_constant_is_read_off_by_hand() -> None:
    """Adding c to a logit everywhere gives the word c (1 - p) and every other word -c p, whatever the context."""
    base = tiny_pair().base_hf
    tuned = copy.deepcopy(base)
    tokenizer = tiny_tokenizer()
    great = tokenizer(" great")["input_ids"][0]
    head = torch.nn.Linear(16, base.config.vocab_size, bias=True)
    with torch.no_grad():
        head.weight.copy_(base.get_output_embeddings().weight)
        head.bias.zero_()
        head.bias[great] = 0.7
    tuned.set_output_embeddings(head)
    text = "we great film"
    encoded = encode(tokenizer, [text], max_tokens=64)
    values, log_p = implicit_reward(base, [tuned], encoded, [[(3, 8), (9, 13)]])
    with torch.no_grad():
        logits = base(input_ids=torch.tensor([encoded[0].ids])).logits[0].double()
    at = tokens_of_span(encoded[0], (3, 8))[0]
    p_great = torch.softmax(logits, -1)[[at - 1, at], great].numpy()
    # change(w) = c [w is great] - log Z and its base-weighted mean is c p - log Z.
    assert values[0] == pytest.approx([0.7 * (1 - p_great[0]), -0.7 * p_great[1]], abs=1e-5)
    assert np.exp(log_p[0]) == pytest.approx(p_great[0], rel=1e-4)


def test_a_word_that_does_not_align_has_no_value_and_disturbs_no_other() -> None:
    pair, encoded = tiny_pair(), encode(tiny_tokenizer(), ["the film was great"], max_tokens=64)
    values, log_p = implicit_reward(pair.base_hf, [pair.tuned_hf], encoded, [[(4, 8), (5, 7), (13, 18), (50, 55)]])
    assert np.isnan(values[0]).tolist() == np.isnan(log_p).tolist() == [False, True, False, True]
    alone, _ = implicit_reward(pair.base_hf, [pair.tuned_hf], encoded, [[(4, 8), (13, 18)]])
    np.testing.assert_allclose(values[0][[0, 2]], alone[0], atol=1e-6)


def test_a_word_at_the_first_position_has_no_context_and_no_value() -> None:
    pair = tiny_pair()
    ids = tiny_tokenizer()(" great film")["input_ids"]
    values, _ = implicit_reward(pair.base_hf, [pair.tuned_hf], [Encoded(ids, [(0, 6), (6, 11)])], [[(1, 6), (7, 11)]])
    assert np.isnan(values[0]).tolist() == [True, False]


def test_texts_without_words_are_skipped() -> None:
    pair, encoded = tiny_pair(), encode(tiny_tokenizer(), ["the film", "we saw"], max_tokens=64)
    values, log_p = implicit_reward(pair.base_hf, [pair.tuned_hf], encoded, [[], []])
    assert values.shape == (1, 0) and log_p.shape == (0,)
    values, _ = implicit_reward(pair.base_hf, [pair.tuned_hf], encoded, [[], [(3, 6)]])
    assert np.isfinite(values).all() and values.shape == (1, 1)


def test_the_order_and_company_of_texts_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair()
    encoded, spans = encode(tiny_tokenizer(), TEXTS, max_tokens=64), spans_of(TEXTS)
    together, _ = implicit_reward(pair.base_hf, [pair.tuned_hf], encoded, spans)
    one_by_one = [
        implicit_reward(pair.base_hf, [pair.tuned_hf], [text], [some])[0] for text, some in zip(encoded, spans)
    ]
    np.testing.assert_allclose(together, np.concatenate(one_by_one, axis=1), atol=2e-5)
    monkeypatch.setattr(word_passes, "CHUNK_VALUES", 1)
    np.testing.assert_allclose(implicit_reward(pair.base_hf, [pair.tuned_hf], encoded, spans)[0], together, atol=1e-5)


def test_valence_shift_is_the_change_of_the_expected_value_after_the_word() -> None:
    pair = tiny_pair()
    encoded, spans = encode(tiny_tokenizer(), TEXTS, max_tokens=64), spans_of(TEXTS)
    worth_V = torch.randn(pair.base_hf.config.vocab_size, generator=torch.Generator().manual_seed(1))
    found = read_words(
        pair.base_hf, [pair.tuned_hf], encoded, spans, {"shift": SIGNALS["valence_shift"]}, worth_V=worth_V
    ).values["shift"][0]
    flat = [(row, span) for row, some in enumerate(spans) for span in some]
    assert len(found) == len(flat)
    for value, (row, span) in zip(found, flat):
        last = tokens_of_span(encoded[row], span)[-1]
        with torch.no_grad():
            ids = torch.tensor([encoded[row].ids])
            base, tuned = (
                torch.softmax(model(input_ids=ids).logits[0, last].double(), -1) @ worth_V.double()
                for model in (pair.base_hf, pair.tuned_hf)
            )
        assert value == pytest.approx(float(tuned - base), abs=1e-5)


def test_a_function_of_what_is_seen_is_a_signal_and_what_is_none_is_refused() -> None:
    def log_p_tuned(seen: Seen) -> torch.Tensor:
        return seen.other_NV.gather(-1, seen.ids_N[:, None])[:, 0]

    name, made = make_signal(log_p_tuned)
    assert (name, made.place) == ("log_p_tuned", "before")
    pair, encoded = tiny_pair(), encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    both = {"own": made, "reward": SIGNALS["implicit_reward"]}
    found = read_words(pair.base_hf, [pair.base_hf], encoded, spans_of(TEXTS), both)
    np.testing.assert_allclose(found.values["own"][0], found.base_log_p, atol=1e-5)
    assert made.fingerprint != Signal(log_p_tuned, place="after").fingerprint
    with pytest.raises(LensError, match="A signal is a name"):
        make_signal(3)
    with pytest.raises(LensError, match="Did you mean 'valence_shift'"):
        make_signal("valence_shft")


@pytest.mark.parametrize("given", [lambda seen: 1.0, lambda seen: seen.base_NV, lambda seen: seen.ids_N[:1].double()])
def test_a_signal_of_another_shape_is_refused(given) -> None:  # type: ignore[no-untyped-def]
    pair, encoded = tiny_pair(), encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    with pytest.raises(LensError, match="A signal gives one value per place"):
        read_words(pair.base_hf, [pair.tuned_hf], encoded, spans_of(TEXTS), {"own": Signal(given)})


def test_activation_delta_is_the_signed_distance_to_the_neutral_word() -> None:
    positive, neutral, negative = (
        np.array([[3.0, 4.0], [1, 1]]),
        np.array([[0.0, 0.0], [1, 1]]),
        np.array([[0.0, 2.0], [1, 0]]),
    )
    plus, minus = activation_delta(positive, neutral, negative)
    assert plus.tolist() == [5.0, 0.0]
    assert minus.tolist() == [-2.0, -1.0]


def test_activation_delta_of_sites_side_by_side_is_the_root_of_squares() -> None:
    generator = np.random.default_rng(0)
    parts = [generator.normal(size=(3, 7, 4)) for _ in range(2)]
    whole = np.concatenate(parts, axis=2)
    joined = activation_delta(*whole)
    each = [activation_delta(*part) for part in parts]
    for side, sign in ((0, 1), (1, -1)):
        wanted = sign * np.sqrt(sum(part[side] ** 2 for part in each))
        np.testing.assert_allclose(joined[side], wanted)
    swapped = activation_delta(*np.concatenate(parts[::-1], axis=2))
    np.testing.assert_allclose(joined, swapped)
