"""The base model runs beside the tuned one: the same tokens, its cache in step, nothing left behind."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from lfp_lens.core.errors import LensError
from lfp_lens.parts.companion import companion
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary
from lfp_lens.parts.generation import left_pad, sample
from lfp_lens.parts.interventions import feature_edit, intervening
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import export, new_sae
from lfp_lens.parts.sites import activations_at, editing
from tests.parts.test_generation import PROMPTS, step_by_step
from tests.tiny import ARCHITECTURES, sae_record, tiny_model, tiny_pair, tiny_tokenizer

SITES = ("blocks.0.hook_mlp_out", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out")
OPTIONS = {"max_new_tokens": 10, "seed": 6}


def far_pair(architecture: str = "neox") -> Pair:
    """Give two models that are not near: what one reads is of no use for the other."""
    return tiny_pair(architecture, scale=0.2)


def hooks_on(*models: Any) -> int:
    modules = [module for model in models for module in model.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def a_dictionary(site: str, side: str, architecture: str = "standard") -> Dictionary:
    sae = new_sae(architecture, d_in=32 if side == "both" else 16, d_sae=32, l1=None, k=None, steps=10, seed=3)
    with torch.no_grad():
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return as_dictionary(sae_record(export(sae, site=site, model_name="tiny"), side, site, architecture=architecture))


@contextmanager
def every_step(pair: Pair, sites: Sequence[str]) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Collect the companion's activations of every forward pass of the tuned model."""
    steps: list[dict[str, torch.Tensor]] = []
    with companion(pair.tuned_hf, base=pair.base_hf, sites=sites) as base_acts:
        handle = pair.tuned_hf.get_output_embeddings().register_forward_hook(
            lambda *given: steps.append(dict(base_acts))
        )
        yield steps
        handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_base_models_activations_are_those_of_a_pass_of_its_own(architecture: str) -> None:
    pair = far_pair(architecture)
    ids_BS = torch.randint(1, pair.base_hf.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(1))
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[0, 6:] = 0
    with torch.no_grad(), every_step(pair, SITES) as steps:
        pair.tuned_hf(input_ids=ids_BS, attention_mask=mask_BS)
        pair.tuned_hf(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False)
    wanted = activations_at(pair.base_hf, ids_BS, mask_BS, SITES)
    assert len(steps) == 2
    for found in steps:
        for site in SITES:
            torch.testing.assert_close(found[site], wanted[site])


@pytest.mark.parametrize("sites", [SITES, SITES[:1]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_step_of_generation_has_the_activations_of_the_prefix_without_cache(
    architecture: str, sites: Sequence[str]
) -> None:
    """Prompts of different lengths are padded on the left; the reference has neither padding nor cache."""
    pair = far_pair(architecture)
    ids_BS, mask_BS = left_pad(PROMPTS, "cpu")
    with torch.no_grad(), every_step(pair, sites) as steps:
        whole_BS = pair.tuned_hf.generate(
            input_ids=ids_BS, attention_mask=mask_BS, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    assert [step[sites[0]].shape[1] for step in steps] == [6, 1, 1, 1, 1]
    for row, prompt in enumerate(PROMPTS):
        ids_1S = whole_BS[row : row + 1, 6 - len(prompt) : -1]
        wanted = activations_at(pair.base_hf, ids_1S, torch.ones_like(ids_1S), sites)
        for site in sites:
            found = torch.cat([step[site][row] for step in steps])[6 - len(prompt) :]
            # fp32, activations of order 10.
            torch.testing.assert_close(found, wanted[site][0], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["difference", "both"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_beside_the_base_gives_the_tokens_of_a_loop_without_cache(architecture: str, side: str) -> None:
    pair, sites = far_pair(architecture), ("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")
    edits = {site: feature_edit(a_dictionary(site, side), range(32), mode="scale", scale=-3.0) for site in sites}

    def from_scratch(ids_1S: torch.Tensor) -> AbstractContextManager[Any]:
        base_acts = activations_at(pair.base_hf, ids_1S, torch.ones_like(ids_1S), sites)
        here = (ids_1S == 0)[..., None]
        return editing(
            pair.tuned_hf,
            {
                site: lambda acts, site=site: torch.where(here, acts, edits[site](acts, base_acts[site]))
                for site in sites
            },
        )

    with intervening(pair.tuned_hf, edits, begin=0, base=pair.base_hf):
        found = sample(pair.tuned_hf, tiny_tokenizer(), PROMPTS, **OPTIONS).ids
    assert found == step_by_step(pair.tuned_hf, PROMPTS, under=from_scratch, **OPTIONS)
    assert found != sample(pair.tuned_hf, tiny_tokenizer(), PROMPTS, **OPTIONS).ids


def test_each_group_of_prompts_begins_with_a_cache_of_its_own() -> None:
    """A copy of the base makes every difference zero at every step; a cache of the group before would not."""
    pair = far_pair()
    site, tuned = SITES[-1], pair.tuned_hf
    other = tiny_model()
    other.load_state_dict(tuned.state_dict())
    farthest = []

    def measure(acts: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        farthest.append(float((acts - base).abs().max()))
        return acts

    with intervening(tuned, {site: measure}, begin=0, base=other):
        sample(tuned, tiny_tokenizer(), PROMPTS, batch_size=1, **OPTIONS)
    assert len(farthest) > 20
    assert max(farthest) < 1e-4


def test_two_prompts_may_take_turns() -> None:
    pair, site = far_pair(), SITES[-1]
    rows, caches = (
        [torch.tensor([row]) for row in ([0, 260, 270, 280], [0, 300, 310, 320])],
        [DynamicCache(), DynamicCache()],
    )
    found: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad(), companion(pair.tuned_hf, base=pair.base_hf, sites=[site]) as base_acts:
        for at in range(4):
            for row in (0, 1):
                pair.tuned_hf(input_ids=rows[row][:, at : at + 1], past_key_values=caches[row])
                found[row].append(base_acts[site])
    for row in (0, 1):
        wanted = activations_at(pair.base_hf, rows[row], torch.ones_like(rows[row]), [site])[site]
        torch.testing.assert_close(torch.cat(found[row], dim=1), wanted, atol=5e-5, rtol=1e-4)


def test_a_prompt_begun_outside_is_refused() -> None:
    pair, ids_1S, cache = far_pair(), torch.tensor([[0, 260, 270]]), DynamicCache()
    with torch.no_grad():
        pair.tuned_hf(input_ids=ids_1S, past_key_values=cache)
        with (
            companion(pair.tuned_hf, base=pair.base_hf, sites=SITES),
            pytest.raises(LensError, match="goes on from a cache of 3 tokens and its companion saw 0 of them: begin"),
        ):
            pair.tuned_hf(input_ids=ids_1S[:, :1], past_key_values=cache)
    assert hooks_on(pair.tuned_hf, pair.base_hf) == 0


def test_nothing_after_the_deepest_site_is_run() -> None:
    pair, ids_1S, reached = far_pair(), torch.tensor([[0, 260, 270]]), []
    layers = pair.base_hf.gpt_neox.layers
    handles = [layers[at].mlp.register_forward_hook(lambda *given, at=at: reached.append(at)) for at in range(3)]
    handles.append(pair.base_hf.get_output_embeddings().register_forward_hook(lambda *given: reached.append("logits")))
    with torch.no_grad(), companion(pair.tuned_hf, base=pair.base_hf, sites=["blocks.1.hook_resid_post"]):
        pair.tuned_hf(input_ids=ids_1S)
    for handle in handles:
        handle.remove()
    assert reached == [0, 1]


def test_gradients_reach_the_tuned_model_and_not_the_base() -> None:
    pair = far_pair()
    ids_1S = torch.tensor([[0, 260, 270]])
    at = pair.tuned_hf.get_input_embeddings().weight.detach()[ids_1S].requires_grad_()
    handle = pair.tuned_hf.get_input_embeddings().register_forward_hook(lambda *given: at)
    try:
        with companion(pair.tuned_hf, base=pair.base_hf, sites=SITES) as base_acts:
            pair.tuned_hf(input_ids=ids_1S).logits.square().sum().backward()
            assert not any(acts.requires_grad for acts in base_acts.values())
    finally:
        handle.remove()
    assert at.grad is not None and float(at.grad.abs().max()) > 0


def test_hooks_are_gone_on_any_exit() -> None:
    pair, ids_1S = far_pair(), torch.tensor([[0, 260, 270]])

    def fails(acts: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="inside"),
        intervening(pair.tuned_hf, {SITES[0]: fails}, begin=0, base=pair.base_hf),
    ):
        pair.tuned_hf(input_ids=ids_1S)
    assert hooks_on(pair.tuned_hf, pair.base_hf) == 0
    with pytest.raises(LensError), companion(pair.tuned_hf, base=pair.base_hf, sites=["blocks.7.hook_mlp_out"]):
        pass
    assert hooks_on(pair.tuned_hf, pair.base_hf) == 0
    with companion(pair.tuned_hf, base=pair.base_hf, sites=SITES):
        assert hooks_on(pair.base_hf) == 0, "the base may be used for something else meanwhile"


def test_an_error_inside_the_base_is_not_hidden() -> None:
    pair, ids_1S = far_pair(), torch.tensor([[0, 260, 270]])

    def fails(module: Any, args: Any) -> None:
        raise RuntimeError("in the base")

    handle = pair.base_hf.gpt_neox.layers[0].register_forward_pre_hook(fails)
    try:
        with (
            pytest.raises(RuntimeError, match="in the base"),
            companion(pair.tuned_hf, base=pair.base_hf, sites=SITES),
        ):
            pair.tuned_hf(input_ids=ids_1S)
    finally:
        handle.remove()
    assert hooks_on(pair.tuned_hf, pair.base_hf) == 0


def test_what_cannot_run_beside_the_model_is_refused() -> None:
    pair = far_pair()
    for model, base in ((pair.tuned, pair.base_hf), (pair.tuned_hf, pair.base)):
        with (
            pytest.raises(LensError, match=r"TransformerLens one: give the pair's"),
            companion(model, base=base, sites=SITES),
        ):
            pass
        with (
            pytest.raises(LensError, match="TransformerLens one"),
            intervening(model, {SITES[0]: lambda acts, base: acts}, begin=0, base=base),
        ):
            pass
    with pytest.raises(LensError, match="is the same model"), companion(pair.tuned_hf, base=pair.tuned_hf, sites=SITES):
        pass
    with pytest.raises(LensError, match="at least one site"), companion(pair.tuned_hf, base=pair.base_hf, sites=[]):
        pass


def test_embeddings_in_the_place_of_tokens_are_refused() -> None:
    pair = far_pair()
    with (
        torch.no_grad(),
        companion(pair.tuned_hf, base=pair.base_hf, sites=SITES),
        pytest.raises(LensError, match="give the model input_ids"),
    ):
        pair.tuned_hf(inputs_embeds=torch.zeros(1, 2, 16))
