"""Completions are draws from the model itself: seeded, unpadded in effect, cut at their end."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.generation import (
    OPENINGS,
    Completions,
    end_ids,
    generate,
    left_pad,
    prompt_ids,
    prompt_texts,
    sample,
)
from lfp_lens.parts.interventions import feature_edit, intervening
from lfp_lens.parts.saes import export, load_sae, new_sae
from lfp_lens.parts.sites import all_sites, editing
from lfp_lens.results.train_sae import SAERecord
from tests.tiny import ARCHITECTURES, sae_record, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

PROMPTS = [[0, 260, 270], [0, 280], [0, 261, 262, 263, 264, 265], [0, 290, 291, 300]]


def done(ids: list[list[int]]) -> Completions:
    return Completions([""] * len(ids), [""] * len(ids), ids, [False] * len(ids), [""] * len(ids))


def drawn(model: Any = None, seed: int = 0, **options: Any) -> Completions:
    model = tiny_pair().tuned_hf if model is None else model
    return sample(model, tiny_tokenizer(), PROMPTS, **{"max_new_tokens": 10, "seed": seed} | options)


def step_by_step(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    under: Callable[[torch.Tensor], AbstractContextManager[Any]],
) -> list[list[int]]:
    """Sample as slowly as can be: no padding, no cache, every prefix anew at every step, inside `under(ids [1, S])`."""
    rows: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(max_new_tokens):
            last = []
            for prompt, ids in zip(prompts, rows):
                whole = torch.tensor([[*prompt, *ids]])
                with under(whole):
                    last.append(model(input_ids=whole, use_cache=False).logits[0, -1].float())
            drawn = torch.multinomial(torch.softmax(torch.stack(last), dim=-1), num_samples=1)[:, 0].tolist()
            for ids, token in zip(rows, drawn):
                ids.append(0 if 0 in ids else token)
            if all(0 in ids for ids in rows):
                break
    return [ids[: ids.index(0) + 1] if 0 in ids else ids for ids in rows]


def records(sites: Sequence[str], architecture: str) -> dict[str, SAERecord]:
    """Give an untrained SAE of 16 activations and 32 features at each site: biases not zero, directions of length 1."""
    made = {}
    for at, site in enumerate(sites):
        sae = new_sae(architecture, d_in=16, d_sae=32, l1=None, k=None, steps=10, seed=at)
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
            sae.b_enc += 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(at))
            sae.b_dec += 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(at + 100))
        made[site] = sae_record(export(sae, site=site, model_name="tiny"), "tuned", site, architecture=architecture)
    return made


@pytest.mark.parametrize("sae_architecture", ["standard", "topk"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_under_ablation_at_five_sites_gives_the_tokens_of_a_loop_without_cache(
    architecture: str, sae_architecture: str
) -> None:
    model, chosen = tiny_pair(architecture, layers=5).tuned_hf, list(range(0, 32, 2))
    saes = records(all_sites(model), sae_architecture)

    def ablating(ids_1S: torch.Tensor) -> AbstractContextManager[Any]:
        def ablate(sae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
            def by_the_formula(acts: torch.Tensor) -> torch.Tensor:
                kept = sae.encode(acts)
                kept[..., chosen] = 0
                new = sae.decode(kept) + (acts - sae.decode(sae.encode(acts)))
                return torch.where((ids_1S == 0)[..., None], acts, new)

            return by_the_formula

        return editing(model, {site: ablate(load_sae(record)) for site, record in saes.items()})

    options = {"max_new_tokens": 12, "seed": 4}
    edits = {site: feature_edit(as_dictionary(record), chosen) for site, record in saes.items()}
    with intervening(model, edits, begin=0):
        found = sample(model, tiny_tokenizer(), PROMPTS, **options)
    assert found.ids == step_by_step(model, PROMPTS, under=ablating, **options)
    assert found.ids != sample(model, tiny_tokenizer(), PROMPTS, **options).ids


def test_the_draws_of_later_prompts_do_not_shift_when_the_first_ones_end_early() -> None:
    model, options = tiny_pair().tuned_hf, {"seed": 2, "batch_size": 2}
    passes = []

    def ends_the_first_group(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        passes.append(len(logits))
        return logits + 1e4 * (torch.arange(logits.shape[-1]) == 0) if len(passes) == 1 else logits

    before = drawn(model, **options)
    handle = model.get_output_embeddings().register_forward_hook(ends_the_first_group)
    try:
        after = drawn(model, **options)
    finally:
        handle.remove()
    assert after.ids[:2] == [[0], [0]] and min(len(ids) for ids in before.ids[:2]) > 1
    assert after.ids[2:] == before.ids[2:]


def test_groups_of_prompts_draw_differently_and_the_first_as_it_does_alone() -> None:
    model, prompts = tiny_pair().tuned_hf, [PROMPTS[0]] * 6
    found = sample(model, tiny_tokenizer(), prompts, max_new_tokens=6, seed=0, batch_size=2).ids
    alone = sample(model, tiny_tokenizer(), prompts[:2], max_new_tokens=6, seed=0).ids
    assert found[:2] == alone
    assert len({tuple(map(tuple, found[at : at + 2])) for at in (0, 2, 4)}) == 3


def test_the_same_seed_gives_the_same_completions_and_another_seed_others() -> None:
    assert drawn().ids == drawn().ids != drawn(seed=1).ids
    assert drawn(tiny_pair().tuned).ids == drawn(tiny_pair().tuned).ids


def test_sampling_leaves_the_global_random_state_alone() -> None:
    for model in (tiny_pair().tuned_hf, tiny_pair().tuned):
        torch.manual_seed(5)
        np.random.seed(5)
        before, before_numpy = torch.get_rng_state(), np.random.get_state()[1]
        drawn(model)
        assert torch.equal(before, torch.get_rng_state())
        assert (before_numpy == np.random.get_state()[1]).all()


def test_completions_come_in_the_order_of_the_prompts() -> None:
    """A model that only ever repeats its last token tells which prompt a completion belongs to."""
    model = tiny_model()
    with torch.no_grad():
        for block in model.gpt_neox.layers:
            for weight in (block.mlp.dense_4h_to_h, block.attention.dense):
                weight.weight.zero_()
                weight.bias.zero_()
        table = model.get_input_embeddings().weight
        table.copy_(torch.nn.functional.normalize(torch.randn(table.shape), dim=-1))
        normed = torch.nn.functional.layer_norm(table, (16,))
        model.get_output_embeddings().weight.copy_(200 * torch.nn.functional.normalize(normed, dim=-1))
    for size in (128, 3, 1):
        found = sample(model, tiny_tokenizer(), PROMPTS, max_new_tokens=4, seed=0, batch_size=size)
        assert found.ids == [[prompt[-1]] * 4 for prompt in PROMPTS]
        assert found.prompts == tiny_tokenizer().batch_decode(PROMPTS, skip_special_tokens=True)
        assert found.ended == [False] * 4


def test_hooked_models_take_prompts_of_different_lengths_in_order() -> None:
    found = drawn(tiny_pair().tuned, max_new_tokens=3)
    assert len(found.ids) == 4 and found.prompts == tiny_tokenizer().batch_decode(PROMPTS, skip_special_tokens=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padding_changes_no_probability(architecture: str) -> None:
    """`generate` itself is asked: the scores of its first two steps against a forward pass without padding."""
    model = tiny_pair(architecture).tuned_hf
    ids_BS, mask_BS = left_pad(PROMPTS, "cpu")
    with torch.no_grad():
        out = model.generate(
            input_ids=ids_BS, attention_mask=mask_BS, max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        for row, prompt in enumerate(PROMPTS):
            grown = torch.tensor([[*prompt, int(out.sequences[row, ids_BS.shape[1]])]])
            wanted = torch.log_softmax(model(input_ids=grown).logits[0].double(), -1)
            for step in (0, 1):
                given = torch.log_softmax(out.logits[step][row].double(), -1)
                # fp32 logits of order 10.
                torch.testing.assert_close(given, wanted[len(prompt) - 1 + step], atol=2e-5, rtol=0)


def test_prompts_are_padded_on_the_left() -> None:
    ids_BS, mask_BS = left_pad([[5, 6, 7], [8]], "cpu")
    assert ids_BS.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask_BS.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_draws_follow_the_models_own_probabilities() -> None:
    """600 draws of one next token against its probability: none lies 5 standard errors off."""
    model, prompt = tiny_pair().tuned_hf, PROMPTS[0]
    found = sample(model, tiny_tokenizer(), [prompt] * 600, max_new_tokens=1, seed=0, batch_size=600)
    counts = np.bincount([ids[0] for ids in found.ids], minlength=model.config.vocab_size)
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), -1).numpy()
    errors = (counts - 600 * p) / np.sqrt(600 * p * (1 - p) + 1)
    assert np.abs(errors).max() < 5
    assert len(set(np.flatnonzero(counts).tolist())) > 50, "top-k would have kept at most 50"


def test_the_checkpoints_own_sampling_recipe_is_not_used() -> None:
    model = copy.deepcopy(tiny_pair().tuned_hf)
    plain = drawn(model).ids
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.min_new_tokens = 4
    assert drawn(model).ids == plain
    assert model.generation_config.repetition_penalty == 5.0, "and it is left as it was"


def test_ids_go_through_the_first_end_of_text() -> None:
    model = copy.deepcopy(tiny_pair().tuned_hf)
    end, ends = 300, {299, 300, *range(1, 20)}
    model.generation_config.eos_token_id = [299, end, *range(1, 20)]
    with torch.no_grad():
        model.get_output_embeddings().weight *= 0.3
    found = sample(model, tiny_tokenizer(), PROMPTS * 8, max_new_tokens=25, seed=0)
    assert 3 < sum(found.ended) < 32, "some end, some do not"
    for ids, ended in zip(found.ids, found.ended):
        assert (ids[-1] in ends) == ended
        assert not set(ids[:-1]) & ends
        assert ended or len(ids) == 25


def test_after_its_end_a_row_holds_the_first_end_id(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(tiny_pair().tuned_hf)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    ids_BS, mask_BS = left_pad([[5], [6]], "cpu")
    torch.manual_seed(0)
    every = list(range(1, model.config.vocab_size, 2))
    new = generate(model, ids_BS, mask_BS, max_new_tokens=12, ends=[1, *every])
    for row in new.tolist():
        first = next(at for at, token in enumerate(row) if token % 2)
        assert set(row[first + 1 :]) <= {1}


def test_special_tokens_are_left_out_of_the_text() -> None:
    found = drawn()
    assert all("<|endoftext|>" not in text for text in (*found.texts, *found.prompts))
    kept = [[token for token in ids if token != 0] for ids in found.ids]
    assert found.texts == tiny_tokenizer().batch_decode(kept)


def test_length_and_distinct_bigrams_by_hand() -> None:
    found = done([[1, 2, 1, 2], [1, 2], [3]])
    # Bigrams 12, 21, 12 and 12: four, two of them distinct; lengths 4, 2 and 1.
    assert found.distinct2 == 2 / 4
    assert found.mean_length == pytest.approx(7 / 3)
    assert done([[1, 2, 3]]).distinct2 == 1.0
    assert done([[1], []]).distinct2 == 0.0


def test_bigrams_do_not_cross_completions() -> None:
    assert done([[1, 2], [1, 2]]).distinct2 == 0.5
    assert done([[1, 2], [2, 1]]).distinct2 == 1.0


def test_prompts_are_the_beginnings_of_texts_in_the_given_lengths() -> None:
    texts = [*tiny_texts(200), "a"]
    tokenizer = tiny_tokenizer()
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = prompt_ids(tokenizer, texts, (2, 5), seed=0)
    assert len(found) == 200, "one token is no prompt of two"
    assert all(prompt[0] == 0 and prompt[1:] == ids[: len(prompt) - 1] for prompt, ids in zip(found, whole))
    lengths = [len(prompt) - 1 for prompt in found]
    assert set(lengths) == {2, 3, 4, 5}
    counts = np.bincount(lengths)[2:]
    # 200 uniform draws of 4: 50 each with standard deviation 6.1.
    assert counts.min() > 25 and counts.max() < 75


def test_prompts_depend_on_the_seed_alone() -> None:
    texts, tokenizer = tiny_texts(30), tiny_tokenizer()
    assert prompt_ids(tokenizer, texts, (2, 9), seed=0) == prompt_ids(tokenizer, texts, (2, 9), seed=0)
    assert prompt_ids(tokenizer, texts, (2, 9), seed=0) != prompt_ids(tokenizer, texts, (2, 9), seed=1)


def test_prompts_as_text_are_the_same_prompts() -> None:
    texts = tiny_texts(20)
    found = prompt_texts(tiny_tokenizer(), texts, (3, 6), seed=0)
    assert found == tiny_tokenizer().batch_decode(
        prompt_ids(tiny_tokenizer(), texts, (3, 6), seed=0), skip_special_tokens=True
    )
    assert all(text.startswith(prompt) for text, prompt in zip(texts, found))


@pytest.mark.parametrize("lengths", [(0, 3), (4, 3), (-1, -1)])
def test_impossible_prompt_lengths_are_refused(lengths: tuple[int, int]) -> None:
    with pytest.raises(LensError, match=r"1 <= low <= high; \(.*\) given"):
        prompt_ids(tiny_tokenizer(), ["the film"], lengths, seed=0)


def test_texts_too_short_for_a_prompt_are_refused() -> None:
    with pytest.raises(LensError, match="None of the 2 texts has 5 tokens to make a prompt of"):
        prompt_ids(tiny_tokenizer(), ["a", "b"], (5, 5), seed=0)


def test_sampling_without_prompts_is_refused() -> None:
    for model in (tiny_pair().tuned_hf, tiny_pair().tuned):
        with pytest.raises(LensError, match="at least one prompt"):
            sample(model, tiny_tokenizer(), [], max_new_tokens=3, seed=0)


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(LensError, match="prompt 1 has no tokens"):
        sample(tiny_pair().tuned_hf, tiny_tokenizer(), [[0], []], max_new_tokens=3, seed=0)


def test_every_id_that_ends_a_text_is_known() -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    model = lambda eos: SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))  # noqa: E731
    assert end_ids(model([3, 4]), tokenizer) == [3, 4]
    assert end_ids(model(3), tokenizer) == [3]
    assert end_ids(model(0), tokenizer) == [0]
    assert end_ids(model(None), tokenizer) == end_ids(object(), tokenizer) == [7]
    with pytest.raises(LensError, match="names an end-of-text token"):
        end_ids(model(None), SimpleNamespace(eos_token_id=None))


def test_the_openings_hold_no_feeling() -> None:
    from lfp_lens.parts.lexicons import load_lexicon

    lexicon = load_lexicon("vader")
    assert not {word for opening in OPENINGS for word in opening.lower().split() if word in lexicon}
    assert len(set(OPENINGS)) == len(OPENINGS)


def test_prompt_and_completion_are_decoded_together_too() -> None:
    found = drawn()
    wanted = [[*prompt, *ids] for prompt, ids in zip(PROMPTS, found.ids)]
    assert found.whole == tiny_tokenizer().batch_decode(wanted, skip_special_tokens=True)
