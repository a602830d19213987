"""Readings are means over a word's own tokens, whatever else is in the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import readings
from lfp_lens.parts.activations import Encoded, encode, tokens_of_span
from lfp_lens.parts.cache import cache
from lfp_lens.parts.readings import RANDOM_WIDTH, AtWords, aligned, embeddings, random_vectors, word_tokens
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.signals import SIGNALS
from lfp_lens.parts.sites import activations_at
from lfp_lens.parts.word_passes import read_words
from tests.tiny import tiny_pair, tiny_texts, tiny_tokenizer, word_saes

SITES = ("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")
TEXTS = ["the film was marvellous", "a great river", *(text + " so odd" for text in tiny_texts(5))]
WORDS = ["marvellous", "great", *["odd"] * 5]
SPANS = [(text.rindex(word), text.rindex(word) + len(word)) for text, word in zip(TEXTS, WORDS)]


def encoded() -> list[Encoded]:
    return encode(tiny_tokenizer(), TEXTS, max_tokens=64)


def by_hand(row: int, site: str) -> torch.Tensor:
    """The mean over the word's tokens of the MLP's output, of this text alone."""
    pair, text = tiny_pair(), encoded()[row]
    with torch.no_grad():
        cache = pair.tuned.run_with_cache(torch.tensor([text.ids]))[1]
    return cache[site][0, tokens_of_span(text, SPANS[row])]


def test_a_reading_is_the_mean_over_the_words_tokens_at_every_site() -> None:
    found = word_tokens(tiny_pair().tuned_hf, encoded(), SPANS, SITES).raw()
    assert found.shape == (len(TEXTS), 32)
    assert len(by_hand(0, SITES[0])) > 3, "a word of several tokens"
    for row in range(len(TEXTS)):
        wanted = torch.cat([by_hand(row, site).mean(0) for site in SITES])
        np.testing.assert_allclose(found[row], wanted.numpy(), atol=2e-5)


def test_features_are_encoded_by_token_and_then_averaged() -> None:
    saes = word_saes(tiny_pair(), ("wonderful", "terrible", "table", "river"))
    sae = load_sae(saes.one(SITES[0], side="tuned"))
    with torch.no_grad():
        sae.b_enc[:4] = 0.1  # so that features fire on pieces of words as well
    found = word_tokens(tiny_pair().tuned_hf, encoded(), SPANS, SITES[:1]).features({SITES[0]: sae})
    with torch.no_grad():
        wanted = torch.stack([sae.encode(by_hand(row, SITES[0])).mean(0) for row in range(len(TEXTS))])
        mean_first = torch.stack([sae.encode(by_hand(row, SITES[0]).mean(0)) for row in range(len(TEXTS))])
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
    assert not np.allclose(found, mean_first.numpy(), atol=1e-3)


def test_batching_and_order_change_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    from lfp_lens.parts import activations

    model, texts = tiny_pair().tuned_hf, encoded()
    together = word_tokens(model, texts, SPANS, SITES).raw()
    backwards = word_tokens(model, texts[::-1], SPANS[::-1], SITES).raw()[::-1]
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    small = lambda given, *, device: activations.batches(given, device=device, max_batch_tokens=1)  # noqa: E731
    monkeypatch.setattr(readings, "batches", small)
    np.testing.assert_allclose(word_tokens(model, texts, SPANS, SITES).raw(), together, atol=1e-5)


def test_what_follows_a_word_changes_no_reading() -> None:
    model = tiny_pair().tuned_hf
    longer = encode(tiny_tokenizer(), [text + " and the wonderful window" for text in TEXTS], max_tokens=64)
    one, other = (word_tokens(model, texts, SPANS, SITES).raw() for texts in (encoded(), longer))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_a_cache_holds_is_read_from_it_and_the_rest_from_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, texts = tiny_pair(), encoded()
    stored = cache(pair, SITES, TEXTS[:4], tmp_path / "cache", max_tokens=64)
    asked: list[int] = []

    def counting(model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor, sites: Any) -> Any:
        asked.append(len(ids_BS))
        return activations_at(model, ids_BS, mask_BS, sites)

    plain = {side: word_tokens(pair.hf(side), texts, SPANS, SITES).raw() for side in ("base", "tuned")}
    monkeypatch.setattr(readings, "activations_at", counting)
    for side, wanted in plain.items():
        found = word_tokens(pair.hf(side), texts, SPANS, SITES, cache=stored, side=side).raw()
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert asked == [3, 3], "texts 4 to 6, once for each model"
    whole = cache(pair, SITES, TEXTS, tmp_path / "whole", max_tokens=64)
    found = word_tokens(pair.base_hf, texts, SPANS, SITES, cache=whole, side="base").raw()
    np.testing.assert_allclose(found, plain["base"], atol=1e-5)
    assert asked == [3, 3], "no model runs where everything is held"


def test_a_site_that_a_cache_lacks_is_read_from_the_model(tmp_path: Path) -> None:
    pair, texts = tiny_pair(), encoded()
    stored = cache(pair, SITES[:1], TEXTS, tmp_path / "cache", max_tokens=64)
    found = word_tokens(pair.tuned_hf, texts, SPANS, SITES, cache=stored).raw()
    np.testing.assert_array_equal(found, word_tokens(pair.tuned_hf, texts, SPANS, SITES).raw())


def test_a_word_after_a_beginning_of_text_token_inside_the_text_is_found_in_a_cache(tmp_path: Path) -> None:
    """The cache leaves that token out, so rows and positions differ by more than the first token."""
    pair = tiny_pair()
    given = [f"we saw<|endoftext|> the {text}" for text in TEXTS]
    spans = [(start + len(text) - len(short), end + len(text) - len(short))
             for (start, end), text, short in zip(SPANS, given, TEXTS)]  # fmt: skip
    texts = encode(tiny_tokenizer(), given, max_tokens=64)
    stored = cache(pair, SITES, given, tmp_path / "cache", max_tokens=64)
    assert all(stored.word(text, tokens_of_span(text, span)) for text, span in zip(texts, spans))
    found = word_tokens(pair.tuned_hf, texts, spans, SITES, cache=stored).raw()
    np.testing.assert_allclose(found, word_tokens(pair.tuned_hf, texts, spans, SITES).raw(), atol=1e-5)


def test_sites_are_concatenated_in_the_order_given() -> None:
    model, texts = tiny_pair().tuned_hf, encoded()
    both = word_tokens(model, texts, SPANS, SITES).raw()
    first, second = (word_tokens(model, texts, SPANS, (site,)).raw() for site in SITES)
    np.testing.assert_allclose(both, np.hstack([first, second]), atol=1e-6)


def test_words_that_do_not_align_are_refused_with_their_number() -> None:
    spans = [(0, 2), *SPANS[1:-1], (1, 1)]
    texts = encode(tiny_tokenizer(), ["film"] + TEXTS[1:], max_tokens=64)
    texts[0] = Encoded([0, 5], [(0, 0), (0, 4)])
    with pytest.raises(LensError, match="2 words do not align with whole tokens"):
        word_tokens(tiny_pair().tuned_hf, texts, spans, SITES)


def test_aligned_rows_have_whole_tokens_and_a_left_context() -> None:
    texts = [
        Encoded([0, 5, 6], [(0, 0), (0, 3), (3, 8)]), Encoded([0, 5], [(0, 0), (0, 4)]), Encoded([5, 6], [(0, 3), (3, 8)]),
        Encoded([0], [(0, 0)]),
    ]  # fmt: skip
    assert aligned(texts, [(4, 8), (1, 3), (0, 3), (4, 8)]) == [0]
    assert aligned(texts[:1], [(0, 3)]) == [0], "the beginning-of-text token is context enough"


def test_an_embedding_is_the_mean_of_the_words_rows_inside_a_sentence() -> None:
    pair, tokenizer = tiny_pair(), tiny_tokenizer()
    table = pair.tuned_hf.get_input_embeddings().weight.detach()
    found = embeddings(pair.tuned_hf, tokenizer, ["great", "odd", "great"])
    np.testing.assert_allclose(found[0], table[tokenizer(" great")["input_ids"][0]].numpy(), atol=1e-7)
    np.testing.assert_array_equal(found[0], found[2])
    pieces = [tokenizer.convert_tokens_to_ids(piece) for piece in ("o", "d", "d")]
    text = encode(tokenizer, ["a odd"], max_tokens=64)[0]
    ids = [text.ids[at] for at in tokens_of_span(text, (2, 5))]
    assert ids[-2:] == pieces[1:]
    np.testing.assert_allclose(found[1], table[ids].mean(0).numpy(), atol=1e-7)


def test_a_word_without_tokens_has_no_embedding() -> None:
    with pytest.raises(LensError, match=r"1 of 2 words .*''.* no tokens of their own"):
        embeddings(tiny_pair().tuned_hf, tiny_tokenizer(), ["great", ""])


def test_the_dead_salmon_knows_the_word_and_the_seed_and_nothing_else() -> None:
    words = ["great", "odd", "great", "film"] * 50
    found = random_vectors(words, seed=0)
    assert found.shape == (200, RANDOM_WIDTH)
    np.testing.assert_array_equal(found, random_vectors(words, seed=0))
    great, odd = found[0::4].mean(0), found[1::4].mean(0)
    # Noise of 0.3 averaged over 50 rows has standard deviation 0.04; a word's own vector has 1.
    np.testing.assert_allclose(great, found[2::4].mean(0), atol=0.3)
    alone = random_vectors(["great"] * 50, seed=0).mean(0)
    np.testing.assert_allclose(great, alone, atol=0.3)
    assert abs(np.corrcoef(great, odd)[0, 1]) < 0.3
    assert abs(np.corrcoef(great, random_vectors(["great"] * 50, seed=1).mean(0))[0, 1]) < 0.3


def test_the_rows_of_one_word_differ_by_their_noise() -> None:
    found = random_vectors(["great"] * 400, seed=0)
    assert float((found - found.mean(0)).std()) == pytest.approx(0.3, rel=0.05)


def test_the_pass_that_reads_a_signal_shows_the_same_activations() -> None:
    pair, texts = tiny_pair(), encoded()
    kept = AtWords(SITES, (0, 1))
    spans = [[span] for span in SPANS]
    read_words(pair.base_hf, [pair.tuned_hf], texts, spans, {"reward": SIGNALS["implicit_reward"]}, observers=[kept])
    for side, model in (("base", 0), ("tuned", 1)):
        found = kept.tokens(model, len(texts), "cpu").raw()
        np.testing.assert_allclose(found, word_tokens(pair.hf(side), texts, SPANS, SITES).raw(), atol=1e-5)
