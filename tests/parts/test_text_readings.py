"""Readings of a continuation: its own tokens and no others, however texts are batched, cut or cached."""

from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import activations, text_readings
from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.cache import cache as cache_of
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import activations_at
from lfp_lens.parts.text_readings import (
    Continuation,
    continuation_embeddings,
    continuation_log_p,
    continuation_means,
    encode_continuations,
)
from tests.tiny import ARCHITECTURES, NEUTRAL, tiny_pair, tiny_tokenizer, word_saes

SITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
PROMPTS = ["the film", "was the table in the garden"] * 4
TEXTS = [" " + " ".join(NEUTRAL[: n + 1]) for n in range(8)]


def encoded(max_tokens: int = 64) -> list[Continuation]:
    return encode_continuations(tiny_tokenizer(), PROMPTS, TEXTS, max_tokens=max_tokens)


def words_of(text: Continuation) -> list[str]:
    return tiny_tokenizer().convert_ids_to_tokens([text.encoded.ids[at] for at in text.tokens])


def test_a_mean_is_over_the_continuation_alone_though_the_model_reads_the_prompt() -> None:
    pair = tiny_pair()
    sae = load_sae(word_saes(pair, ("film", "table")).one(SITES[0]))
    read = continuation_means(pair.tuned_hf, encoded(), SITES[:1], {"sae": {SITES[0]: sae}})
    assert (read["sae"] > 0).any()
    for row, text in enumerate(encoded()):
        ids = torch.tensor([[0, *tiny_tokenizer()(PROMPTS[row] + TEXTS[row])["input_ids"]]])
        acts_ND = activations_at(pair.tuned_hf, ids, torch.ones_like(ids), SITES)[SITES[0]][0, -(row + 1) :]
        assert len(text.tokens) == row + 1
        np.testing.assert_allclose(read["raw"][row], acts_ND.mean(0).numpy(), atol=1e-5)
        np.testing.assert_allclose(read["sae"][row], sae.encode(acts_ND).mean(0).detach().numpy(), atol=1e-5)


def test_sites_stand_one_after_another() -> None:
    both = continuation_means(tiny_pair().base_hf, encoded(), SITES, {})["raw"]
    alone = [continuation_means(tiny_pair().base_hf, encoded(), [site], {})["raw"] for site in SITES]
    np.testing.assert_allclose(both, np.concatenate(alone, axis=1), atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_size_order_and_neighbours_change_no_reading(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = tiny_pair(architecture).tuned_hf, encoded()
    together = continuation_means(model, texts, SITES, {})["raw"], continuation_log_p(model, texts)

    def check(rows: list[int]) -> None:
        given = [texts[row] for row in rows]
        np.testing.assert_allclose(continuation_means(model, given, SITES, {})["raw"], together[0][rows], atol=1e-5)
        np.testing.assert_allclose(continuation_log_p(model, given), together[1][rows], atol=1e-5)

    check(list(range(8))[::-1])
    check([3])
    small = lambda encoded, *, device: activations.batches(encoded, device=device, max_batch_tokens=20)  # noqa: E731
    monkeypatch.setattr(text_readings, "batches", small)
    monkeypatch.setattr(text_readings, "CHUNK_VALUES", 40)
    check(list(range(8)))


def test_log_p_and_embedding_are_means_over_the_continuation() -> None:
    model, (text,) = (
        tiny_pair().base_hf,
        encode_continuations(tiny_tokenizer(), ["the film"], [" was great"], max_tokens=64),
    )
    with torch.no_grad():
        log_p_SV = model(torch.tensor([text.encoded.ids])).logits[0].log_softmax(-1)
    own = [text.encoded.ids[at] for at in text.tokens]
    wanted = np.mean([float(log_p_SV[at - 1, token]) for at, token in zip(text.tokens, own)])
    assert words_of(text) == ["Ġwas", "Ġgreat"]
    assert continuation_log_p(model, [text])[0] == pytest.approx(wanted, abs=1e-5)
    table_VD = model.get_input_embeddings().weight.detach()
    np.testing.assert_allclose(continuation_embeddings(model, [text])[0], table_VD[own].mean(0).numpy(), atol=1e-6)


def test_the_first_token_of_all_has_no_log_p() -> None:
    model, ids = tiny_pair().base_hf, tiny_tokenizer()(" film was", add_special_tokens=False)["input_ids"]
    alone, two = (Continuation(Encoded(part, [(0, 1)] * len(part)), range(len(part)), False) for part in (ids[:1], ids))
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0, 0].log_softmax(-1)[ids[1]]
    np.testing.assert_allclose(continuation_log_p(model, [alone, two]), [np.nan, float(wanted)], atol=1e-5)


def test_a_long_prompt_keeps_its_end_and_a_long_continuation_its_beginning() -> None:
    prompt = " ".join(["film"] * 5 + ["table"] * 5)
    texts = [" great", " great" * 6 + " awful" * 6]
    short, long = encode_continuations(tiny_tokenizer(), [prompt, prompt], texts, max_tokens=9)
    shown = tiny_tokenizer().convert_ids_to_tokens(long.encoded.ids)
    assert shown == ["<|endoftext|>", *["Ġtable"] * 4, *["Ġgreat"] * 4]
    assert words_of(long) == ["Ġgreat"] * 4
    assert short.encoded.ids[:5] == long.encoded.ids[:5], "how much of the prompt is read does not tell what follows"
    assert long.is_cut and short.is_cut
    assert not any(text.is_cut for text in encoded())


def test_a_token_with_letters_of_both_is_the_prompts_and_one_with_its_last_space_is_not() -> None:
    halved, spaced = encode_continuations(tiny_tokenizer(), ["it was gre", "it was "], ["at film", "great film"],
                                          max_tokens=64)  # fmt: skip
    assert (words_of(halved), words_of(spaced)) == (["Ġfilm"], ["Ġgreat", "Ġfilm"])


def test_a_continuation_without_a_token_of_its_own_is_refused() -> None:
    texts = encode_continuations(tiny_tokenizer(), ["it was gre", "it was"], ["at", " great"], max_tokens=64)
    assert [len(text.tokens) for text in texts] == [0, 1]
    with pytest.raises(LensError, match="1 of 2 continuations have no token of their own"):
        continuation_means(tiny_pair().base_hf, texts, SITES, {})


def test_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(LensError, match="max_tokens=2 leaves no room for a prompt and its continuation"):
        encoded(max_tokens=2)


def test_what_a_cache_holds_is_read_from_it_and_the_rest_from_the_model(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tiny_pair()
    plain = continuation_means(pair.tuned_hf, encoded(), SITES, {})["raw"]
    whole = [prompt + text for prompt, text in zip(PROMPTS, TEXTS)][2:]
    stored = cache_of(pair, SITES, whole, tmp_path / "acts", max_tokens=64)
    asked: list[int] = []
    read = text_readings.activations_at
    monkeypatch.setattr(
        text_readings, "activations_at", lambda model, ids, *given: asked.append(len(ids)) or read(model, ids, *given)
    )
    found = continuation_means(pair.tuned_hf, encoded(), SITES, {}, cache=stored, side="tuned")["raw"]
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert sum(asked) == 2
