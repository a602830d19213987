"""Texts become tokens and tokens become numbers that do not depend on how they were batched."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import (
    Encoded,
    batches,
    encode,
    hidden_states,
    next_token_log_probs,
    pad,
    text_log_probs,
    tokens_of_span,
    unembed,
    word_ids,
)
from lfp_lens.parts.sites import activations_at
from tests.tiny import ARCHITECTURES, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = [*tiny_texts(12), "great", "the film " * 20]


def metaspace_tokenizer(prepend: str = "always") -> Any:
    """Give a Llama-style tokenizer: a space is part of the token after it, and one is put before the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyz.,'"))
    vocabulary = {piece: at for at, piece in enumerate(["<unk>", "<s>", "</s>", *letters])}
    merges = []
    for word in ("▁great", "▁the", "▁film"):
        left = word[0]
        for letter in word[1:]:
            if left + letter not in vocabulary:
                vocabulary[left + letter] = len(vocabulary)
                merges.append((left, letter))
            left += letter
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme=prepend)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def glued_tokenizer() -> Any:
    """Give a tokenizer whose tokens may begin with the punctuation before a word, as Llama 3's do."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: at for at, piece in enumerate(["<s>", "(great", " great", "great", "a", " (", ")", " "])}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<s>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\s?\p{P}+|\s"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


def span_of(text: str, word: str) -> tuple[int, int]:
    return text.index(word), text.index(word) + len(word)


def tokens(tokenizer: Any, text: str, word: str) -> list[str]:
    (encoded,) = encode(tokenizer, [text], max_tokens=64)
    found = tokens_of_span(encoded, span_of(text, word))
    return tokenizer.convert_ids_to_tokens([encoded.ids[at] for at in found])


def test_a_text_begins_with_the_beginning_of_text_token() -> None:
    (text,) = encode(tiny_tokenizer(), ["the film"], max_tokens=64)
    assert tiny_tokenizer().convert_ids_to_tokens(text.ids) == ["<|endoftext|>", "t", "h", "e", "Ġfilm"]
    assert text.offsets == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 8)]


def test_a_tokenizer_without_that_token_adds_none() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = None
    (text,) = encode(tokenizer, ["a film"], max_tokens=64)
    assert text.offsets == [(0, 1), (1, 6)]


def test_a_long_text_is_cut_at_its_end_or_at_its_start() -> None:
    text = " the film was great"
    (start,) = encode(tiny_tokenizer(), [text], max_tokens=3)
    (end,) = encode(tiny_tokenizer(), [text], max_tokens=3, keep_end=True)
    assert tiny_tokenizer().convert_ids_to_tokens(start.ids) == ["<|endoftext|>", "Ġthe", "Ġfilm"]
    assert tiny_tokenizer().convert_ids_to_tokens(end.ids) == ["<|endoftext|>", "Ġwas", "Ġgreat"]
    assert end.offsets == [(0, 0), (9, 13), (13, 19)]
    assert tokens_of_span(end, (14, 19)) == [2]


def test_no_texts_and_no_room_are_refused() -> None:
    with pytest.raises(LensError, match=r"No texts were given\."):
        encode(tiny_tokenizer(), [], max_tokens=64)
    for keep_end in (False, True):
        with pytest.raises(LensError, match="max_tokens=1 leaves no room for a token of text; give at least 2"):
            encode(tiny_tokenizer(), ["the film"], max_tokens=1, keep_end=keep_end)


def test_batches_hold_every_text_once_and_keep_to_their_size() -> None:
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    seen: list[int] = []
    for batch in batches(encoded, device="cpu", max_batch_tokens=60):
        assert len(batch.rows) == 1 or batch.ids_BS.numel() <= 60
        for line, row in enumerate(batch.rows):
            real = batch.mask_BS[line].bool()
            assert batch.ids_BS[line][real].tolist() == encoded[row].ids
            assert real.tolist() == sorted(real.tolist(), reverse=True), "padding is on the right"
        seen += batch.rows
    assert sorted(seen) == list(range(len(TEXTS)))


def test_a_text_without_tokens_is_left_out_of_batches() -> None:
    empty, full = Encoded([], []), Encoded([1, 2], [(0, 1), (1, 2)])
    (batch,) = batches([empty, full], device="cpu")
    assert batch.rows == [1]
    assert list(batches([empty], device="cpu")) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batching_changes_no_activation(architecture: str) -> None:
    model, names = tiny_pair(architecture).tuned_hf, ["blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out"]
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    alone = {}
    for row in range(len(TEXTS)):
        one = pad(encoded, [row], device="cpu")
        alone[row] = activations_at(model, one.ids_BS, one.mask_BS, names)
    for order in (list(range(len(TEXTS))), list(reversed(range(len(TEXTS))))):
        shuffled = [encoded[row] for row in order]
        for size in (40, 8192):
            for batch in batches(shuffled, device="cpu", max_batch_tokens=size):
                found = activations_at(model, batch.ids_BS, batch.mask_BS, names)
                for line, at in enumerate(batch.rows):
                    length = len(shuffled[at].ids)
                    for name in names:
                        wanted = alone[order[at]][name][0]
                        torch.testing.assert_close(found[name][line, :length], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_log_probs_equal_a_forward_pass_of_each_text_alone(architecture: str) -> None:
    model = tiny_pair(architecture).tuned_hf
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    found = text_log_probs(model, encoded, device="cpu")
    for text, given in zip(encoded, found):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text.ids])).logits[0].double()
        log_p = torch.log_softmax(logits, -1)
        wanted = torch.stack([log_p[at - 1, text.ids[at]] for at in range(1, len(text.ids))])
        # fp32 log-softmax over logits of order 10.
        torch.testing.assert_close(given.double(), wanted, atol=2e-5, rtol=0)


def test_the_order_of_texts_changes_no_log_probability() -> None:
    model, encoded = tiny_pair().tuned_hf, encode(tiny_tokenizer(), TEXTS, max_tokens=64)
    found = text_log_probs(model, encoded, device="cpu")
    again = text_log_probs(model, encoded[::-1], device="cpu")[::-1]
    for one, other in zip(found, again):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_text_of_one_token_has_no_log_probability() -> None:
    found = text_log_probs(
        tiny_pair().tuned_hf, [Encoded([0], [(0, 0)]), Encoded([], []), Encoded([0, 5], [])], device="cpu"
    )
    assert [len(part) for part in found] == [0, 0, 1]


def test_the_chunk_changes_no_log_probability() -> None:
    model = tiny_pair().tuned_hf
    hidden_ND, next_N = torch.randn(7, 16), torch.arange(7)
    with torch.no_grad():
        whole = next_token_log_probs(model, hidden_ND, next_N)
        parts = next_token_log_probs(model, hidden_ND, next_N, chunk=3)
        none = next_token_log_probs(model, hidden_ND[:0], next_N[:0])
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)
    assert none.shape == (0,)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_unembedding_the_hidden_states_gives_the_models_logits(architecture: str) -> None:
    model = tiny_pair(architecture).tuned_hf
    batch = pad(encode(tiny_tokenizer(), TEXTS, max_tokens=64), range(4), device="cpu")
    with torch.no_grad():
        wanted = model(input_ids=batch.ids_BS, attention_mask=batch.mask_BS).logits
        given = unembed(model, hidden_states(model, batch))
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


def test_a_soft_cap_bends_the_logits() -> None:
    hidden = torch.tensor([0.0, 10.0, -1000.0])
    model = SimpleNamespace(get_output_embeddings=lambda: lambda given: given, config=SimpleNamespace())
    assert unembed(model, hidden) is hidden
    model.config.final_logit_softcapping = 30.0
    wanted = torch.tensor([0.0, 30 * torch.tanh(torch.tensor(1 / 3)), -30.0])
    torch.testing.assert_close(unembed(model, hidden), wanted)


def test_gemma_2s_soft_cap_gives_the_models_logits() -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=32, final_logit_softcapping=2.0, initializer_range=0.5, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config).eval()
    batch = pad([Encoded([3, 4, 5, 6], [])], [0], device="cpu")
    with torch.no_grad():
        wanted = model(input_ids=batch.ids_BS).logits
        given = unembed(model, hidden_states(model, batch))
    assert float(wanted.abs().max()) > 1.5, "the cap is felt"
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "word", "wanted"),
    [
        ("the film was great.", "great", ["Ġgreat"]),
        ("great film", "great", ["g", "r", "e", "a", "t"]),
        ("a marvel.", "marvel", ["Ġm", "a", "r", "v", "e", "l"]),
        ("(great)", "great", ["g", "r", "e", "a", "t"]),
        ("great, great", "great", ["g", "r", "e", "a", "t"]),
        ("so-great film", "great", ["g", "r", "e", "a", "t"]),
        ("a  great", "great", ["Ġgreat"]),
        ("a\ngreat", "great", ["g", "r", "e", "a", "t"]),
        ("a café.", "café", ["c", "a", "f", "Ã", "©"]),
    ],
)
def test_the_tokens_of_a_word(text: str, word: str, wanted: list[str]) -> None:
    assert tokens(tiny_tokenizer(), text, word) == wanted


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
@pytest.mark.parametrize(
    ("text", "word"),
    [("the film", "film"), ("great film", "great"), ("a great, odd film", "great"), ("an odd one", "odd")],
)
def test_the_tokens_of_a_word_with_a_llama_style_tokenizer(text: str, word: str, prepend: str) -> None:
    found = tokens(metaspace_tokenizer(prepend), text, word)
    assert "".join(found).replace("▁", "") == word


def test_a_token_that_holds_more_than_the_word_does_not_align() -> None:
    (text,) = encode(tiny_tokenizer(), ["the films was great"], max_tokens=64)
    assert tokens_of_span(text, (15, 19)) == [], "half of a token"
    assert tokens_of_span(text, (13, 19)) == [len(text.ids) - 1], "the space belongs to the word"
    assert tokens_of_span(text, (40, 45)) == [], "beyond the text"
    assert tokens_of_span(text, (5, 5)) == [], "an empty span"


def test_punctuation_glued_to_the_token_of_a_word_does_not_align() -> None:
    tokenizer = glued_tokenizer()
    assert tokens(tokenizer, "a great", "great") == ["Ġgreat".replace("Ġ", " ")]
    assert tokens(tokenizer, "(great)", "great") == [], "the token is '(great'"


def test_a_word_that_was_cut_off_has_no_tokens() -> None:
    (text,) = encode(tiny_tokenizer(), ["the film was marvellous"], max_tokens=8)
    assert tokens_of_span(text, (13, 23)) == []


def test_word_ids_are_those_inside_a_sentence() -> None:
    tokenizer = tiny_tokenizer()
    great, odd = word_ids(tokenizer, ["great", "odd"])
    assert tokenizer.convert_ids_to_tokens(great) == ["Ġgreat"]
    assert tokenizer.decode(odd) == " odd" and len(odd) > 1


def test_float16_logits_are_compared_in_fp32() -> None:
    model = copy.deepcopy(tiny_model()).to(torch.bfloat16)
    with torch.no_grad():
        found = next_token_log_probs(model, torch.randn(3, 16, dtype=torch.bfloat16), torch.arange(3))
    assert found.dtype == torch.float32
