"""A site names one activation; reading gives what a full forward pass computes, editing changes it, hooks never stay."""

import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sites import (
    activations_at,
    all_sites,
    blocks,
    down_projection,
    editing,
    layer_of,
    module_at,
    trunk,
    watching,
)
from tests.tiny import ARCHITECTURES, tiny_model, tiny_pair

EVERY = [f"blocks.{layer}.{hook}" for layer in range(3) for hook in ("hook_mlp_out", "hook_resid_post")]


def tokens(model) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[no-untyped-def]
    ids_BS = torch.randint(model.config.vocab_size, (3, 9), generator=torch.Generator().manual_seed(3))
    return ids_BS, torch.ones_like(ids_BS)


def hooks_on(model) -> int:  # type: ignore[no-untyped-def]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_equal_those_of_a_full_forward_pass(architecture: str) -> None:
    pair = tiny_pair(architecture)
    ids_BS, mask_BS = tokens(pair.tuned_hf)
    with torch.no_grad():
        _, cache = pair.tuned.run_with_cache(ids_BS)
    found = activations_at(pair.tuned_hf, ids_BS, mask_BS, EVERY)
    assert list(found) == EVERY
    for name in EVERY:
        torch.testing.assert_close(found[name], cache[name], atol=5e-5, rtol=1e-5)
    # One at a time: each stops the pass elsewhere.
    for name in EVERY:
        alone = activations_at(pair.tuned_hf, ids_BS, mask_BS, [name])
        torch.testing.assert_close(alone[name], found[name], atol=0, rtol=0)


def test_reading_computes_nothing_after_the_deepest_site() -> None:
    model, reached = tiny_model(), []
    model.gpt_neox.layers[2].register_forward_hook(lambda *given: reached.append(2))
    model.gpt_neox.layers[1].register_forward_hook(lambda *given: reached.append(1))
    activations_at(model, *tokens(model), ["blocks.1.hook_mlp_out", "blocks.0.hook_resid_post"])
    assert reached == []
    activations_at(model, *tokens(model), ["blocks.1.hook_resid_post"])
    assert 2 not in reached


def test_the_order_of_sites_is_kept() -> None:
    model = tiny_pair().base_hf
    assert list(activations_at(model, *tokens(model), EVERY[::-1])) == EVERY[::-1]


def test_reading_no_site_is_refused() -> None:
    model = tiny_pair().base_hf
    with pytest.raises(LensError, match="at least one site"):
        activations_at(model, *tokens(model), [])


@pytest.mark.parametrize("which", ["hf", "hooked"])
def test_an_edit_that_gives_back_its_argument_leaves_logits_bit_identical(which: str) -> None:
    pair = tiny_pair()
    model = pair.tuned_hf if which == "hf" else pair.tuned
    ids_BS, _ = tokens(pair.tuned_hf)
    logits = lambda: model(ids_BS).logits if which == "hf" else model(ids_BS)  # noqa: E731
    with torch.no_grad():
        before = logits()
        with editing(model, dict.fromkeys(EVERY, lambda acts: acts)):
            assert torch.equal(before, logits())


@pytest.mark.parametrize("hook", ["hook_mlp_out", "hook_resid_post"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_editing_gives_the_same_logits_in_both_implementations(architecture: str, hook: str) -> None:
    pair = tiny_pair(architecture)
    ids_BS, _ = tokens(pair.tuned_hf)
    edits = {f"blocks.0.{hook}": lambda acts: acts.flip(-1), f"blocks.2.{hook}": lambda acts: 0.5 * acts}
    with torch.no_grad():
        plain = pair.tuned_hf(ids_BS).logits
        with editing(pair.tuned_hf, edits):
            wanted = pair.tuned_hf(ids_BS).logits
        with editing(pair.tuned, edits):
            given = pair.tuned(ids_BS, return_type="logits")
    assert not torch.allclose(wanted, plain)
    # fp32 logits of order 10 agree to a relative 1e-5.
    torch.testing.assert_close(given, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=0)


@pytest.mark.parametrize("which", ["hf", "hooked"])
def test_hooks_are_gone_after_an_exception(which: str) -> None:
    pair = tiny_pair()
    model = pair.tuned_hf if which == "hf" else pair.tuned
    ids_BS, _ = tokens(pair.tuned_hf)
    before = hooks_on(model)

    def fails(acts: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), torch.no_grad(), editing(model, {EVERY[0]: fails}):
        model(ids_BS)
    with pytest.raises(KeyboardInterrupt), editing(model, {EVERY[0]: fails}):
        raise KeyboardInterrupt
    assert hooks_on(model) == before == 0


def test_hooks_are_gone_when_one_of_the_sites_does_not_exist() -> None:
    pair = tiny_pair()
    for model in (pair.tuned_hf, pair.tuned):
        with (
            pytest.raises(LensError, match=r"'blocks\.9\.hook_mlp_out' does not exist: the model has layers 0 to 2"),
            editing(model, dict.fromkeys([EVERY[0], "blocks.9.hook_mlp_out"], lambda acts: acts)),
        ):
            pass
        assert hooks_on(model) == 0


def test_hooks_of_others_stay() -> None:
    model = tiny_model()
    model.gpt_neox.layers[0].mlp.register_forward_hook(lambda *given: None)
    with editing(model, {EVERY[0]: lambda acts: acts}):
        assert hooks_on(model) == 2
    assert hooks_on(model) == 1


def test_sites_come_in_numeric_order() -> None:
    model = tiny_model(layers=11, width=4)
    names = all_sites(model)
    assert names[1] == "blocks.1.hook_mlp_out" and names[10] == "blocks.10.hook_mlp_out"
    assert [layer_of(name) for name in names] == list(range(11))


@pytest.mark.parametrize(
    "name", ["", "blocks.1", "blocks.x.hook_mlp_out", "layers.1.hook_mlp_out", "blocks.-1.hook_mlp_out"]
)
def test_a_name_that_is_no_site_is_refused(name: str) -> None:
    with pytest.raises(LensError, match=r"is no site: expected a name such as 'blocks\.3\.hook_mlp_out'"):
        layer_of(name)


def test_an_unknown_hook_is_refused_with_the_nearest() -> None:
    with pytest.raises(LensError, match=r"Unknown hook 'hook_mlp_in'\. Did you mean 'hook_mlp_out'\?"):
        layer_of("blocks.1.hook_mlp_in")


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LensError, match=r"'blocks\.3\.hook_mlp_out' does not exist: the model has layers 0 to 2"):
        module_at(tiny_pair().base_hf, "blocks.3.hook_mlp_out")


def test_a_model_without_blocks_is_refused() -> None:
    import transformers

    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    with pytest.raises(LensError, match="BertForMaskedLM has no list of blocks named `layers` or `h`"):
        blocks(transformers.BertForMaskedLM(transformers.BertConfig(**small)))
    with pytest.raises(LensError, match="Linear has no trunk below its unembedding"):
        trunk(torch.nn.Linear(2, 2))


def test_the_deepest_blocks_attention_is_skipped_only_where_its_mlp_does_not_read_it() -> None:
    """A GPT-NeoX adds attention and MLP side by side; without parallel residual the MLP reads the attention's output."""
    for is_parallel in (True, False):
        model = tiny_model()
        model.config.use_parallel_residual = is_parallel
        for block in model.gpt_neox.layers:
            block.use_parallel_residual = is_parallel
        ids_BS = torch.arange(1, 13).reshape(2, 6)
        read = model.gpt_neox.layers[1].attention.query_key_value
        calls = []
        kernel = read.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found = activations_at(model, ids_BS, torch.ones_like(ids_BS), ["blocks.1.hook_mlp_out"])
        assert bool(calls) is not is_parallel
        kernel.remove()
        with torch.no_grad(), watching(model, ["blocks.1.hook_mlp_out"]) as wanted:
            model(ids_BS)
        assert torch.equal(found["blocks.1.hook_mlp_out"], wanted["blocks.1.hook_mlp_out"])
        assert "forward" not in vars(model.gpt_neox.layers[1].attention), "the attention is as it was"


@pytest.mark.parametrize("architecture", ["neox", "gpt2", "llama"])
def test_neurons_are_read_beside_the_output_that_they_make(architecture: str) -> None:
    model = tiny_model(architecture)
    ids_BS = torch.arange(5, 11)[None]
    found = activations_at(model, ids_BS, torch.ones_like(ids_BS), ["blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"])
    made = down_projection(model, 1)(found["blocks.1.mlp.hook_post"])
    assert torch.allclose(made, found["blocks.1.hook_mlp_out"], atol=1e-5)
