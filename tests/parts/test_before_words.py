"""What stands before words, and the direct path to them, against slow computations that do one word at a time."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.parts import word_passes
from lfp_lens.parts.activations import Encoded, batches, encode, tokens_of_span, unembed
from lfp_lens.parts.before_words import BeforeWords, Dictionary, DirectPath, VocabularySweep
from lfp_lens.parts.signals import Seen
from lfp_lens.parts.sites import all_sites, editing, final_norm, trunk, watching
from lfp_lens.parts.word_passes import read_words
from lfp_lens.parts.words import find_words
from tests.tiny import ARCHITECTURES, perturbed, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = [*tiny_texts(5), "a marvellous film, sadly unwatchable.", "we saw"]
SITES = ("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")
Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Identity:
    """A perfect dictionary."""

    def encode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts

    decode = encode


class Halved:
    """Keeps what is above a threshold, and half of it: what it says of a change is not the change of what it says."""

    def encode(self, acts: torch.Tensor) -> torch.Tensor:
        return torch.relu(acts - 0.1)

    def decode(self, features: torch.Tensor) -> torch.Tensor:
        return features / 2 + 3


def spans_of(texts: list[str]) -> list[list[tuple[int, int]]]:
    found: list[list[tuple[int, int]]] = [[] for _ in texts]
    for spot in find_words(texts):
        found[spot.text].append((spot.start, spot.end))
    return found


ENCODED, SPANS = encode(tiny_tokenizer(), TEXTS, max_tokens=64), spans_of(TEXTS)
FLAT = [(row, span) for row, some in enumerate(SPANS) for span in some]
EVERY = np.ones(len(FLAT), bool)


def read(base: Any, others: list[Any], *observers: Any) -> None:
    read_words(base, others, ENCODED, SPANS, {}, observers=observers)


def seen_alone(model: Any, text: Encoded, sites: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Activations `[S, D]` of one text without company or padding."""
    with torch.no_grad(), watching(model, sites) as found:
        trunk(model)(input_ids=torch.tensor([text.ids]), use_cache=False)
    return {site: acts[0] for site, acts in found.items()}


def slow_direct(base: Any, other: Any, text: Encoded, span: tuple[int, int], change: Change) -> float:
    """Gradient of log p of each token with respect to the last block's output, times the change of each site, by autograd."""
    last = all_sites(base, "hook_resid_post")[-1]
    before, after = seen_alone(base, text, (*SITES, last)), seen_alone(other, text, SITES)
    total = 0.0
    for token in tokens_of_span(text, span):
        resid = before[last][token - 1].clone().requires_grad_()
        logits = unembed(base, final_norm(base)(resid))
        torch.log_softmax(logits, -1)[text.ids[token]].backward()
        total += sum(float(resid.grad @ change(before[site][token - 1], after[site][token - 1])) for site in SITES)
    return total


def raw_change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after - before


# --- the direct path ---


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_direct_path_equals_its_definition_word_by_word(architecture: str) -> None:
    pair = tiny_pair(architecture)
    path = DirectPath(pair.base_hf, SITES, {}, (1,), EVERY)
    read(pair.base_hf, [pair.tuned_hf], path)
    wanted = [slow_direct(pair.base_hf, pair.tuned_hf, ENCODED[row], span, raw_change) for row, span in FLAT]
    assert any(len(tokens_of_span(ENCODED[row], span)) > 3 for row, span in FLAT), "words of several tokens are here"
    assert np.std(wanted) > 0.1
    # fp32 sums over sites, widths and up to ten tokens.
    np.testing.assert_allclose(path.values[1, "raw"], wanted, atol=2e-4)


def test_the_direct_path_knows_a_soft_cap_on_the_logits() -> None:
    pair = tiny_pair()
    base = copy.deepcopy(pair.base_hf)
    base.config.final_logit_softcapping = 1.0
    path = DirectPath(base, SITES, {}, (1,), EVERY)
    read(base, [pair.tuned_hf], path)
    wanted = [slow_direct(base, pair.tuned_hf, ENCODED[row], span, raw_change) for row, span in FLAT]
    np.testing.assert_allclose(path.values[1, "raw"], wanted, atol=2e-4)


def test_at_the_last_layer_it_is_the_slope_of_log_p_along_the_change() -> None:
    """Nothing comes after the last MLP: moving its output a little toward the other model's moves log p by the direct path."""
    pair, row, span = tiny_pair(), *FLAT[4]
    text, site, step = ENCODED[row], SITES[1], 1e-3
    path = DirectPath(pair.base_hf, (site,), {}, (1,), EVERY)
    read(pair.base_hf, [pair.tuned_hf], path)
    (token,) = tokens_of_span(text, span)
    change = seen_alone(pair.tuned_hf, text, (site,))[site] - seen_alone(pair.base_hf, text, (site,))[site]
    found = []
    for sign in (1, -1):
        with torch.no_grad(), editing(pair.base_hf, {site: lambda acts, sign=sign: acts + sign * step * change}):
            logits = pair.base_hf(input_ids=torch.tensor([text.ids])).logits[0, token - 1].double()
        found.append(float(torch.log_softmax(logits, -1)[text.ids[token]]))
    # A central difference of fp32 logits of order 1 over 2e-3.
    assert path.values[1, "raw"][4] == pytest.approx((found[0] - found[1]) / (2 * step), abs=2e-3)


def test_a_perfect_dictionary_gives_the_change_itself_and_a_bias_cancels() -> None:
    pair = tiny_pair()
    perfect = Dictionary({site: Identity() for site in SITES})
    on_change = Dictionary({site: Identity() for site in SITES}, reads_change=True)
    path = DirectPath(pair.base_hf, SITES, {"sae": perfect, "difference_sae": on_change}, (1,), EVERY)
    read(pair.base_hf, [pair.tuned_hf], path)
    for name in ("sae", "difference_sae"):
        np.testing.assert_allclose(path.values[1, name], path.values[1, "raw"], atol=1e-5)


@pytest.mark.parametrize("reads_change", [False, True])
def test_a_dictionary_reads_both_sides_or_the_change_itself(reads_change: bool) -> None:
    pair, halved = tiny_pair(), {site: Halved() for site in SITES}

    def change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        if reads_change:
            return torch.relu(after - before - 0.1) / 2
        return (torch.relu(after - 0.1) - torch.relu(before - 0.1)) / 2

    path = DirectPath(pair.base_hf, SITES, {"own": Dictionary(halved, reads_change=reads_change)}, (1,), EVERY)
    read(pair.base_hf, [pair.tuned_hf], path)
    wanted = [slow_direct(pair.base_hf, pair.tuned_hf, ENCODED[row], span, change) for row, span in FLAT[:12]]
    np.testing.assert_allclose(path.values[1, "own"][:12], wanted, atol=2e-4)


def test_identical_models_have_no_direct_path_and_each_other_model_has_its_own() -> None:
    pair = tiny_pair()
    path = DirectPath(pair.base_hf, SITES, {"own": Dictionary({site: Halved() for site in SITES})}, (1, 3), EVERY)
    read(pair.base_hf, [pair.base_hf, perturbed(pair.base_hf, 0.1), pair.tuned_hf], path)
    alone = DirectPath(pair.base_hf, SITES, {}, (1,), EVERY)
    read(pair.base_hf, [pair.tuned_hf], alone)
    assert not path.values[1, "raw"].any() and not path.values[1, "own"].any()
    np.testing.assert_allclose(path.values[3, "raw"], alone.values[1, "raw"], atol=1e-5)


def test_words_that_are_not_wanted_stay_zero() -> None:
    pair, wanted = tiny_pair(), np.arange(len(FLAT)) % 3 == 0
    some, every = (DirectPath(pair.base_hf, SITES, {}, (1,), which) for which in (wanted, EVERY))
    read(pair.base_hf, [pair.tuned_hf], some, every)
    assert not some.values[1, "raw"][~wanted].any()
    np.testing.assert_allclose(some.values[1, "raw"][wanted], every.values[1, "raw"][wanted], atol=1e-6)


# --- the place before ---


def test_what_is_kept_is_the_activation_before_the_first_token_of_each_wanted_word() -> None:
    pair, wanted = tiny_pair(), np.arange(len(FLAT)) % 2 == 1
    kept = BeforeWords(SITES, (0, 1), wanted)
    read(pair.base_hf, [pair.tuned_hf], kept)
    for model, hf in ((0, pair.base_hf), (1, pair.tuned_hf)):
        found, saes = kept.raw(model), kept.features(model, {site: Halved() for site in SITES})
        assert found.shape == (wanted.sum(), 2 * 16)
        for line, at in enumerate(np.flatnonzero(wanted)):
            row, span = FLAT[at]
            acts = seen_alone(hf, ENCODED[row], SITES)
            place = tokens_of_span(ENCODED[row], span)[0] - 1
            own = np.concatenate([acts[site][place].numpy() for site in SITES])
            np.testing.assert_allclose(found[line], own, atol=1e-5)
            np.testing.assert_allclose(saes[line], np.maximum(own - 0.1, 0), atol=1e-5)


def test_a_wanted_word_that_does_not_align_has_no_activation() -> None:
    pair, encoded = tiny_pair(), encode(tiny_tokenizer(), ["the film was great"], max_tokens=64)
    kept = BeforeWords(SITES, (0,), np.ones(3, bool))
    read_words(pair.base_hf, [pair.tuned_hf], encoded, [[(4, 8), (5, 7), (13, 18)]], {}, observers=[kept])
    assert np.isnan(kept.raw(0)).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("tokens", [1, 40])
def test_batches_and_chunks_of_any_size_change_nothing(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair()

    def seen() -> list[np.ndarray]:
        kept, path = BeforeWords(SITES, (1,), EVERY), DirectPath(pair.base_hf, SITES, {}, (1,), EVERY)
        sweep = VocabularySweep(1, pair.base_hf.config.vocab_size)
        read(pair.base_hf, [pair.tuned_hf], kept, path, sweep)
        return [kept.raw(1), path.values[1, "raw"], sweep.weight_V.numpy(), *sweep.result(0)]

    together = seen()
    monkeypatch.setattr(word_passes, "batches", partial(batches, max_batch_tokens=tokens))
    monkeypatch.setattr(word_passes, "CHUNK_VALUES", 1)
    for one, other in zip(seen(), together, strict=True):
        # fp32, added up in another order.
        np.testing.assert_allclose(one, other, atol=5e-5)


def test_the_order_of_texts_changes_no_word() -> None:
    pair, order = tiny_pair(), np.random.default_rng(0).permutation(len(TEXTS))
    counts = np.array([len(some) for some in SPANS])
    starts = np.cumsum([0, *counts])
    words = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in order])
    kept, path = BeforeWords(SITES, (1,), EVERY), DirectPath(pair.base_hf, SITES, {}, (1,), EVERY)
    read(pair.base_hf, [pair.tuned_hf], kept, path)
    other, turned = BeforeWords(SITES, (1,), EVERY), DirectPath(pair.base_hf, SITES, {}, (1,), EVERY)
    given = [ENCODED[row] for row in order], [SPANS[row] for row in order]
    read_words(pair.base_hf, [pair.tuned_hf], *given, {}, observers=[other, turned])
    np.testing.assert_allclose(other.raw(1), kept.raw(1)[words], atol=1e-5)
    np.testing.assert_allclose(turned.values[1, "raw"], path.values[1, "raw"][words], atol=5e-5)


# --- the whole vocabulary ---


def test_every_tokens_value_is_its_weighted_mean_over_the_contexts_before_words() -> None:
    pair = tiny_pair()
    sweep = VocabularySweep(2, pair.base_hf.config.vocab_size)
    read(pair.base_hf, [pair.tuned_hf, pair.base_hf, perturbed(pair.base_hf)], sweep)
    first = second = torch.zeros(pair.base_hf.config.vocab_size, dtype=torch.float64)
    for row, span in FLAT:
        place = tokens_of_span(ENCODED[row], span)[0] - 1
        with torch.no_grad():
            ids = torch.tensor([ENCODED[row].ids])
            base, tuned = (
                torch.log_softmax(model(input_ids=ids).logits[0, place].double(), -1)
                for model in (pair.base_hf, pair.tuned_hf)
            )
        change = tuned - base
        change = change - (base.exp() * change).sum()
        first, second = first + base.exp() * change, second + base.exp()
    assert sweep.contexts == len(FLAT)
    assert float(sweep.weight_V.sum()) == pytest.approx(len(FLAT), rel=1e-5), "every context predicts one token"
    np.testing.assert_allclose(sweep.weight_V.numpy(), second.numpy(), atol=1e-5)
    np.testing.assert_allclose(sweep.result(0)[0], (first / second).numpy(), atol=1e-4)
    np.testing.assert_allclose(sweep.result(1)[0], 0, atol=1e-5)


def test_a_logit_that_is_raised_everywhere_is_read_off() -> None:
    """Raised by c, a token gains c (1 - p) in each context and every other one loses c p of it."""
    base, c = tiny_pair().base_hf, 0.7
    tuned, great = copy.deepcopy(base), tiny_tokenizer()(" great")["input_ids"][0]
    head = torch.nn.Linear(16, base.config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(base.get_output_embeddings().weight)
        head.bias.zero_()
        head.bias[great] = c
    tuned.set_output_embeddings(head)
    sweep = VocabularySweep(1, base.config.vocab_size)
    read(base, [tuned], sweep)
    value, error = sweep.result(0)
    places = [(row, tokens_of_span(ENCODED[row], span)[0] - 1) for row, span in FLAT]
    with torch.no_grad():
        p_NV = torch.stack(
            [torch.softmax(base(input_ids=torch.tensor([ENCODED[row].ids])).logits[0, at], -1) for row, at in places]
        ).double()
    p_N = p_NV[:, great]
    assert value[great] == pytest.approx(float((p_N * c * (1 - p_N)).sum() / p_N.sum()), abs=1e-4)
    others = -(p_NV * c * p_N[:, None]).sum(0) / p_NV.sum(0)
    np.testing.assert_allclose(np.delete(value, great), np.delete(others.numpy(), great), atol=1e-4)
    assert value.argmax() == great and value[great] > 10 * error[great]


def test_the_standard_error_of_a_token_is_that_of_fresh_contexts() -> None:
    """600 draws of 150 contexts: a token's value varies around its true one as its error says."""
    generator = torch.Generator().manual_seed(0)
    tokens, n = 4, 150

    def contexts(many: int) -> tuple[torch.Tensor, torch.Tensor]:
        base = torch.log_softmax(torch.randn(many, tokens, generator=generator), -1)
        change = torch.randn(many, tokens, generator=generator) + base  # what is likely is changed otherwise
        return base, torch.log_softmax(base + change, -1)

    def swept(base: torch.Tensor, other: torch.Tensor) -> VocabularySweep:
        found = VocabularySweep(1, tokens)
        every = torch.ones(len(base), dtype=torch.bool)
        found.see_predictions(0, Seen(base, other, every.long(), every, None), np.zeros(len(base), int))
        return found

    truth = swept(*contexts(400_000)).result(0)[0]
    values, errors = np.array([swept(*contexts(n)).result(0) for _ in range(600)]).transpose(1, 0, 2)
    z = (values - truth) / errors
    # A standard deviation of 600 draws has an error of 3 %; the delta method loses a little more.
    assert np.all((z.std(axis=0) > 0.9) & (z.std(axis=0) < 1.12))
    assert np.all(np.abs(z.mean(axis=0)) < 0.2)


def test_only_contexts_in_which_words_begin_are_counted() -> None:
    base = torch.log_softmax(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), -1)
    is_first = torch.tensor([True, False, True, False, False, True])
    sweep = VocabularySweep(1, 5)
    sweep.see_predictions(0, Seen(base, base, is_first.long(), is_first, None), np.zeros(6, int))
    assert sweep.contexts == 3
    np.testing.assert_allclose(sweep.weight_V.numpy(), base[is_first].exp().sum(0).numpy(), atol=1e-6)
