"""diverge: a known change is found where it was made and as large as it was, and nothing where there is none."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import activations
from lfp_lens.parts.adapters import attach, make_lora
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.stages.diverge import activations as module
from lfp_lens.stages.diverge import diverge
from tests.tiny import ARCHITECTURES, perturbed, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(12)


def changed(change: Callable[[Any], None], architecture: str = "neox") -> Pair:
    """A pair whose tuned side is the base with this change."""
    base = tiny_model(architecture)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        change(tuned)
    return load_pair(base, tuned, tokenizer=tiny_tokenizer())


@cache
def one_moved() -> Pair:
    """Layer 1's first MLP matrix moved by 3 in one element and 4 in another: a distance of 5."""

    def change(model: Any) -> None:
        weight = model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight
        weight[0, 0] += 3
        weight[2, 5] -= 4

    return changed(change)


def test_a_change_of_known_size_is_measured_where_it_was_made() -> None:
    pair = one_moved()
    found = diverge(pair, TEXTS)
    block = dict(pair.base_hf.gpt_neox.layers[1].named_parameters())
    norm = lambda names: float(torch.sqrt(sum(block[name].detach().square().sum() for name in names)))  # noqa: E731
    assert found.sites == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3))
    assert found.parameter_sum == pytest.approx([0, 5, 0], abs=1e-5)
    assert found.parameter_l2 == pytest.approx([0, 5, 0], abs=1e-5)
    assert found.parameter_relative == pytest.approx([0, 5 / norm(block), 0], rel=1e-5)
    assert found.mlp_relative == pytest.approx([0, 5 / norm([name for name in block if "mlp." in name]), 0], rel=1e-5)
    assert found.attention_relative.tolist() == [0, 0, 0]


def test_what_lies_before_the_change_does_not_move_and_what_lies_after_does() -> None:
    found = diverge(one_moved(), TEXTS)
    assert found.activation_relative[0] == 0
    assert (found.activation_relative[1:] > 0.01).all()
    assert found.activation_cosine_distance[0] == 0
    assert (found.kl_by_position > 0).all()


def test_two_changes_in_one_block_add_up_as_the_published_measure_does_and_as_a_norm_does() -> None:
    def change(model: Any) -> None:
        layer = model.gpt_neox.layers[2]
        layer.mlp.dense_4h_to_h.bias[0] += 6
        layer.attention.dense.bias[3] += 8

    found = diverge(changed(change), TEXTS[:2])
    assert found.parameter_sum == pytest.approx([0, 0, 14], abs=1e-4)
    assert found.parameter_l2 == pytest.approx([0, 0, 10], abs=1e-4)
    assert found.attention_relative[2] > 0 < found.mlp_relative[2]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mlp_and_attention_are_told_apart_in_every_architecture(architecture: str) -> None:
    def move(part: str) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            for name, weight in model.named_parameters():
                if part in name and ("layers.1." in name or "h.1." in name):
                    weight.add_(0.1)

        return change

    mlp = diverge(changed(move(".mlp."), architecture), TEXTS[:2])
    attention = diverge(changed(move("att"), architecture), TEXTS[:2])
    assert mlp.mlp_relative[1] > 0
    assert mlp.attention_relative[1] == 0
    assert attention.attention_relative[1] > 0
    assert attention.mlp_relative[1] == 0
    assert mlp.mlp_relative[0] == attention.attention_relative[2] == 0


def test_identical_models_do_not_diverge() -> None:
    found = diverge(changed(lambda model: None), TEXTS)
    for name in ("parameter_sum", "parameter_l2", "parameter_relative", "mlp_relative", "attention_relative"):
        assert getattr(found, name).tolist() == [0, 0, 0]
    assert found.activation_relative.tolist() == [0, 0, 0]
    assert found.activation_cosine_distance.tolist() == [0, 0, 0]
    assert found.kl_by_position.tolist() == [0] * len(found.kl_by_position)


def test_a_change_outside_the_blocks_is_no_layers_change_but_is_seen_in_the_predictions() -> None:
    def change(model: Any) -> None:
        weight = model.get_output_embeddings().weight
        weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    found = diverge(changed(change), TEXTS)
    assert found.parameter_sum.tolist() == found.activation_relative.tolist() == [0, 0, 0]
    assert (found.kl_by_position > 0.01).all()


def test_tensors_are_matched_by_name_and_not_by_order() -> None:
    """The same weights, registered in the opposite order, are no change."""
    pair = changed(lambda model: None)
    for block in pair.tuned_hf.gpt_neox.layers:
        for part in (block, block.mlp, block.attention):
            part._modules = dict(reversed(part._modules.items()))
    names = [
        [name for name, _ in model.gpt_neox.layers[0].named_parameters()] for model in (pair.base_hf, pair.tuned_hf)
    ]
    assert names[0] != names[1]
    assert diverge(pair).parameter_sum.tolist() == [0, 0, 0]


@pytest.mark.parametrize("architecture", ["neox", "llama", "gpt2"])
def test_an_adapters_change_in_closed_form_is_that_of_the_merged_model(architecture: str) -> None:
    """GPT-2 stores its matrices the other way round (Conv1D), which no norm may notice."""
    base = tiny_model(architecture)
    wrapped = adapted(base, targets=(".1.", "mlp"), scale=0.3)
    low_rank = load_pair(base, wrapped, tokenizer=tiny_tokenizer())
    merged = load_pair(base, low_rank.tuned_hf, tokenizer=tiny_tokenizer())
    assert low_rank.adapter is not None and merged.adapter is None
    closed, subtracted = (diverge(pair, TEXTS[:2]) for pair in (low_rank, merged))
    for name in ("parameter_sum", "parameter_l2", "parameter_relative", "mlp_relative", "attention_relative"):
        found = getattr(closed, name)
        # The change is as large as the weights, so the rounding of base + change stays below 1e-5 of it.
        assert found == pytest.approx(getattr(subtracted, name), rel=1e-5), name
        assert found[0] == found[2] == 0
    assert closed.parameter_sum[1] > closed.mlp_relative[1] > 0
    assert closed.attention_relative[1] == 0
    assert closed.kl_by_position.tolist() == subtracted.kl_by_position.tolist()


def test_a_small_adapters_change_is_not_lost_in_the_rounding_of_the_weights() -> None:
    """A change of 1e-7 beside weights of 1/4 is a few units in the last place of fp32; the closed form sees no weights."""
    base = tiny_model()
    wrapped = adapted(base, targets=(".1.", "mlp"), scale=1e-4)
    exact = adapted(copy.deepcopy(base).double(), targets=(".1.", "mlp"), scale=1e-4)
    deltas = [
        part.get_delta_weight("default").detach() for part in exact.modules() if hasattr(part, "get_delta_weight")
    ]
    wanted = float(torch.sqrt(sum(delta.square().sum() for delta in deltas)))
    pair = load_pair(base, wrapped, tokenizer=tiny_tokenizer())
    assert diverge(pair).parameter_l2[1] == pytest.approx(wanted, rel=1e-5)
    assert diverge(replace(pair, adapter=None)).parameter_l2[1] != pytest.approx(wanted, rel=1e-3)


def adapted(base: Any, targets: tuple[str, str], scale: float) -> Any:
    """A PEFT model whose adapter changes the linear maps whose names hold both texts."""
    names = [name for name, inner in base.named_modules() if all(part in f"{name}." for part in targets)]
    leaves = [name for name in names if getattr(base.get_submodule(name), "weight", None) is not None]
    config = make_lora(2, base)
    config.target_modules = leaves
    wrapped = attach(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (weight for weight in wrapped.parameters() if weight.requires_grad):
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return wrapped.eval()


def test_kl_by_position_is_that_of_the_two_distributions() -> None:
    """The formula on full logits, in fp64, one text at a time."""
    pair = tiny_pair()
    found = diverge(pair, TEXTS)
    sums, counts = np.zeros(40), np.zeros(40, int)
    for text in TEXTS:
        ids = torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            base, tuned = (model(ids).logits[0].double().log_softmax(-1) for model in (pair.base_hf, pair.tuned_hf))
        sums[: ids.shape[1]] += (tuned.exp() * (tuned - base)).sum(-1).numpy()
        counts[: ids.shape[1]] += 1
    reached = counts > 0
    assert found.tokens_by_position.tolist() == counts[reached].tolist()
    assert found.kl_by_position == pytest.approx(sums[reached] / counts[reached], rel=1e-4)
    assert found.n_tokens == counts.sum()
    assert found.n_texts == 12


def test_activation_distance_is_that_of_all_real_tokens() -> None:
    pair = tiny_pair()
    found = diverge(pair, TEXTS)
    apart, size, cosines = 0.0, 0.0, []
    for text in TEXTS:
        ids = torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        base, tuned = _site(pair.base_hf, ids), _site(pair.tuned_hf, ids)
        apart += float((tuned - base).square().sum())
        size += float(base.square().sum())
        cosines += torch.cosine_similarity(base, tuned, dim=-1).tolist()
    assert found.activation_relative[1] == pytest.approx(np.sqrt(apart / size), rel=1e-4)
    assert found.activation_cosine_distance[1] == pytest.approx(1 - np.mean(cosines), rel=1e-2, abs=1e-6)


def _site(model: Any, ids: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.gpt_neox.layers[1].mlp.register_forward_hook(lambda layer, args, out: seen.append(out))
    with torch.no_grad():
        model(ids)
    handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("size", [20, 64])
def test_batch_size_padding_and_the_order_of_texts_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair()
    whole = diverge(pair, TEXTS)
    batches = activations.batches
    monkeypatch.setattr(
        module, "batches", lambda encoded, device: batches(encoded, device=device, max_batch_tokens=size)
    )
    monkeypatch.setattr(module, "CHUNK_VALUES", 1)
    parted = diverge(pair, TEXTS[::-1])
    for name in ("activation_relative", "activation_cosine_distance", "kl_by_position"):
        assert getattr(parted, name) == pytest.approx(getattr(whole, name), rel=1e-5, abs=1e-7)
    assert parted.kl.value == pytest.approx(whole.kl.value, rel=1e-5)
    assert parted.tokens_by_position.tolist() == whole.tokens_by_position.tolist()


def test_intervals_are_those_of_resampled_texts() -> None:
    """The same resampling by hand, text by text: a ratio of sums, not a mean of ratios."""
    pair = tiny_pair()
    found = diverge(pair, TEXTS, seed=5)
    rows = []
    for text in TEXTS:
        ids = torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        base, tuned = _site(pair.base_hf, ids), _site(pair.tuned_hf, ids)
        angle = (1 - torch.cosine_similarity(base.double(), tuned.double(), dim=-1)).sum()
        rows.append(
            [float(part) for part in ((tuned - base).square().sum(), base.square().sum(), angle)] + [ids.shape[1]]
        )
    draw = np.random.default_rng(9)
    drawn = np.array([np.array(rows)[draw.integers(12, size=12)].sum(0) for _ in range(4000)])
    by_hand = {
        "activation_relative": np.sqrt(drawn[:, 0] / drawn[:, 1]),
        "activation_cosine_distance": drawn[:, 2] / drawn[:, 3],
    }
    for name, values in by_hand.items():
        low, high = np.quantile(values, (0.025, 0.975))
        room = 0.06 * (high - low)
        assert getattr(found, f"{name}_low")[1] == pytest.approx(low, abs=room)
        assert getattr(found, f"{name}_high")[1] == pytest.approx(high, abs=room)
        assert getattr(found, f"{name}_low")[1] < getattr(found, name)[1] < getattr(found, f"{name}_high")[1]
    assert found.kl.n == 12
    assert found.kl.low < found.kl.value < found.kl.high
    assert found.kl.value == pytest.approx(np.average(found.kl_by_position, weights=found.tokens_by_position), rel=1e-6)


def test_texts_that_are_all_alike_have_no_width_and_one_text_has_no_interval() -> None:
    alike = diverge(tiny_pair(), [TEXTS[0]] * 5)
    assert alike.activation_relative_low == pytest.approx(alike.activation_relative_high, rel=1e-9)
    alone = diverge(tiny_pair(), TEXTS[:1])
    assert np.isfinite(alone.activation_relative).all()
    assert np.isnan(alone.activation_relative_low).all()
    assert np.isnan(alone.kl.high)


def test_a_text_without_tokens_is_no_text_of_the_interval() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = None
    pair = replace(tiny_pair(), tokenizer=tokenizer)
    with_empty, without = diverge(pair, [*TEXTS, ""]), diverge(pair, TEXTS)
    assert with_empty.kl.n == without.kl.n == 12
    assert with_empty.kl.value == pytest.approx(without.kl.value)


def test_top_lowest_and_random_choose_sites() -> None:
    def change(model: Any) -> None:
        for layer, distance in ((0, 2.0), (1, 7.0), (2, 4.0)):
            model.gpt_neox.layers[layer].mlp.dense_4h_to_h.bias[0] += distance

    found = diverge(changed(change), TEXTS[:2])
    site = "blocks.{}.hook_mlp_out".format
    assert found.top(2) == (site(1), site(2))
    assert found.lowest(2) == (site(0), site(2))
    assert found.top(1, by="attention_relative") == (site(0),), "ties keep layer order"
    drawn = {found.random(1, seed=seed) for seed in range(20)}
    assert drawn == {(site(0),), (site(1),), (site(2),)}
    assert found.random(2, seed=3) == found.random(2, seed=3)
    with pytest.raises(LensError, match="4 sites were asked for; the model has 3 layers"):
        found.top(4)
    with pytest.raises(LensError, match="Did you mean 'parameter_l2'"):
        found.top(1, by="parameter_l1")


def test_more_tokens_than_the_model_reads_are_cut_to_its_context() -> None:
    """GPT-2 has 96 learned positions: token 97 would be an index error."""
    pair = tiny_pair("gpt2")
    found = diverge(pair, [" ".join(TEXTS)], max_tokens=128)
    assert found.n_tokens == 96


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "No texts were given."),
        (["", ""], {}, "None of the 2 texts has a token left after tokenising"),
        (TEXTS, {"max_tokens": 1}, "max_tokens must be at least 2; 1 given."),
    ],
)
def test_nothing_to_measure_on_is_refused(texts: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(LensError, match=message):
        diverge(tiny_pair(), texts, **options)


def test_a_real_pair_moves_where_noise_was_put(real_data: Any) -> None:
    from lfp_lens.parts.checkpoints import load_causal_lm

    base = load_causal_lm("stories260K")
    found = diverge(load_pair("stories260K", perturbed(base, 0.01), tokenizer=_tokenizer("stories260K")), TEXTS)
    assert (found.parameter_relative > 0).all()
    assert (found.kl_by_position >= 0).all()
    assert len(found.sites) == base.config.num_hidden_layers


def _tokenizer(name: str) -> Any:
    from lfp_lens.parts.pair import load_tokenizer

    return load_tokenizer(name)
