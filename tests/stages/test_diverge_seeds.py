"""The null of the ranking: what two seeds share is found, what they do not share is called noise, a copy is no null."""

import copy
import json
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.core.store import Store
from lfp_lens.parts.adapters import attach, make_lora
from lfp_lens.parts.checkpoints import TUNING_FILE
from lfp_lens.parts.pair import load_pair
from lfp_lens.results.seeds import SeedNull, rank_test
from lfp_lens.stages.diverge import diverge
from tests.tiny import perturbed, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(12)
MEASURES = (
    "parameter_sum", "parameter_l2", "parameter_relative", "mlp_relative", "attention_relative", "activation_relative",
    "activation_cosine_distance",
)  # fmt: skip


def tuned(shared: float, own: float, seed: int, layers: int = 3) -> Any:
    """The tiny base moved in each layer by a change all seeds share, growing with depth, and by one of its own."""
    model = copy.deepcopy(tiny_model(layers=layers))
    common, alone = torch.Generator().manual_seed(100), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for depth, block in enumerate(model.gpt_neox.layers, start=1):
            for weight in block.parameters():
                weight += shared * depth * torch.randn(weight.shape, generator=common)
                weight += own * torch.randn(weight.shape, generator=alone)
    return model.eval()


def null_of(shared: float, own: float, layers: int = 3, texts: Any = None) -> SeedNull:
    pair = load_pair(tiny_model(layers=layers), tuned(shared, own, 1, layers), tokenizer=tiny_tokenizer())
    [null] = diverge(pair, texts, replicates=[tuned(shared, own, 2, layers)]).seed_nulls
    return null


@cache
def planted() -> SeedNull:
    return null_of(0.02, 0.002, layers=6, texts=TEXTS)


def test_a_movement_that_both_seeds_share_is_no_noise_and_ranks_alike() -> None:
    null = planted()
    for by in ("parameter_sum", "parameter_l2"):
        found = null.agreement(by)
        assert found.tau == pytest.approx(1)
        assert found.p_value == pytest.approx(2 / 720)
        assert (found.k, found.shared, found.chance) == (3, 3, 1.5)
        assert found.p_shared == pytest.approx(1 / 20)
    # Own variance over all variance: 0.002^2 / (0.002^2 + (0.02 depth)^2).
    wanted = [0.002**2 / (0.002**2 + (0.02 * depth) ** 2) for depth in range(1, 7)]
    assert null.noise_share("parameter_l2") == pytest.approx(wanted, rel=0.1)


def test_movements_of_two_seeds_that_share_nothing_are_all_noise() -> None:
    null = null_of(0.0, 0.02, layers=6, texts=TEXTS)
    for by in ("parameter_sum", "parameter_l2", "parameter_relative"):
        assert null.noise_share(by) == pytest.approx([1] * 6, rel=0.1)
        assert null.between[by] == pytest.approx(np.sqrt(2) * null.tuned[by], rel=0.1)


def test_noise_whose_size_depends_on_the_layer_ranks_alike_and_is_noise_all_the_same() -> None:
    """The trap of a ranking: two seeds agree on every place, and no movement is shared."""
    base = tiny_model(layers=6)
    one, two = copy.deepcopy(base), copy.deepcopy(base)
    for seed, model in enumerate((one, two)):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for depth, block in enumerate(model.gpt_neox.layers, start=1):
                for weight in block.parameters():
                    weight += 0.01 * depth * torch.randn(weight.shape, generator=generator)
    [null] = diverge(load_pair(base, one, tokenizer=tiny_tokenizer()), replicates=two).seed_nulls
    assert null.agreement("parameter_sum").tau == pytest.approx(1)
    assert null.noise_share("parameter_l2") == pytest.approx([1] * 6, rel=0.1)


def test_opposed_movements_are_more_than_noise_and_none_at_all_is_not_a_number() -> None:
    base, change = tiny_model(), copy.deepcopy(tiny_model())
    opposed = copy.deepcopy(base)
    with torch.no_grad():
        for model, sign in ((change, 1), (opposed, -1)):
            model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight += sign * 0.1
    pair = load_pair(base, change, tokenizer=tiny_tokenizer())
    [null] = diverge(pair, replicates=opposed).seed_nulls
    assert null.noise_share("parameter_l2") == pytest.approx([np.nan, 2, np.nan], nan_ok=True, rel=1e-4)
    assert null.agreement("parameter_l2").noise_share == pytest.approx(2, rel=1e-4)


def test_a_cosine_distance_is_a_square_already() -> None:
    """By hand: norms 3 and 4 with 5 between them share nothing, and so do angles of 0.1 and 0.2 with 0.3 between them."""
    null = SeedNull("b", ("a",), *({"norm": np.array([norm]), "cosine_distance": np.array([angle])} for norm, angle in (
        (3.0, 0.1), (4.0, 0.2), (5.0, 0.3)
    )))  # fmt: skip
    assert null.noise_share("norm") == pytest.approx([1])
    assert null.noise_share("cosine_distance") == pytest.approx([1])


def test_every_distance_is_that_of_the_two_models_measured_as_a_pair() -> None:
    """What lies between the tunings is what `diverge` gives of them as a pair, up to the norm of the base."""
    base, one, two = tiny_model(), tuned(0.02, 0.02, 1), tuned(0.02, 0.02, 2)
    tokenizer = tiny_tokenizer()
    found = diverge(load_pair(base, one, tokenizer=tokenizer), TEXTS, replicates=[two])
    [null] = found.seed_nulls
    alone, apart = (diverge(load_pair(left, two, tokenizer=tokenizer), TEXTS) for left in (base, one))
    assert tuple(null.tuned) == tuple(null.replicate) == tuple(null.between) == MEASURES
    for name in MEASURES:
        assert null.tuned[name] == pytest.approx(getattr(found, name))
        assert null.replicate[name] == pytest.approx(getattr(alone, name))
    for name in ("parameter_sum", "parameter_l2", "activation_cosine_distance"):
        assert null.between[name] == pytest.approx(getattr(apart, name), rel=1e-5)
    assert null.between["parameter_relative"] == pytest.approx(
        apart.parameter_l2 * found.parameter_relative / found.parameter_l2, rel=1e-6
    )


def test_replicates_change_no_number_of_the_pair_and_each_has_its_null() -> None:
    pair, others = tiny_pair(), [perturbed(tiny_model(), 0.02, seed) for seed in (7, 8)]
    alone, beside = diverge(pair, TEXTS), diverge(pair, TEXTS, replicates=others)
    for name in MEASURES:
        assert getattr(alone, name).tolist() == getattr(beside, name).tolist()
    assert [null.name for null in beside.seed_nulls] == ["replicate 1", "replicate 2"]
    swapped = diverge(pair, TEXTS, replicates=others[::-1])
    assert (
        swapped.seed_nulls[1].between["parameter_l2"].tolist() == beside.seed_nulls[0].between["parameter_l2"].tolist()
    )
    frame = beside.to_frame()
    wanted = np.mean([null.noise_share("activation_relative") for null in beside.seed_nulls], axis=0)
    assert frame["activation_noise_share"].tolist() == pytest.approx(wanted.tolist())
    assert len(beside.plot().data) == len(alone.plot().data) + 4
    assert beside._repr_html_().count("Agreement with the replicate") == 2


def test_each_model_is_run_once_over_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from lfp_lens.stages.diverge import activations

    ran: list[int] = []
    run = activations._run
    monkeypatch.setattr(activations, "_run", lambda model, *rest: (ran.append(id(model)), run(model, *rest))[1])
    diverge(tiny_pair(), TEXTS, replicates=[perturbed(tiny_model(), seed=7), perturbed(tiny_model(), seed=8)])
    assert len(ran) == len(set(ran)) == 4


def test_a_replicate_is_a_name_a_folder_a_model_or_a_pair(tmp_path: Path) -> None:
    base, two = tiny_model(), tuned(0.02, 0.02, 2)
    two.save_pretrained(tmp_path / "two")
    pair = load_pair(base, tuned(0.02, 0.02, 1), tokenizer=tiny_tokenizer())
    forms = (two, tmp_path / "two", str(tmp_path / "two"), load_pair(tiny_model(), two, tokenizer=tiny_tokenizer()))
    found = [diverge(pair, TEXTS, replicates=form).seed_nulls[0] for form in forms]
    for null in found[1:]:
        assert null.between["activation_relative"] == pytest.approx(found[0].between["activation_relative"])
    assert found[1].name == str(tmp_path / "two")


def test_replicates_of_stored_weights_give_the_numbers_of_the_loaded_ones(tmp_path: Path) -> None:
    for name, model in (("base", tiny_model()), ("one", tuned(0.02, 0.02, 1)), ("two", tuned(0.02, 0.02, 2))):
        model.save_pretrained(tmp_path / name)
    [streamed] = diverge((tmp_path / "base", tmp_path / "one"), replicates=[tmp_path / "two"]).seed_nulls
    pair = load_pair(tmp_path / "base", tmp_path / "one", tokenizer=tiny_tokenizer())
    [loaded] = diverge(pair, replicates=[tmp_path / "two"]).seed_nulls
    for name in MEASURES[:5]:
        assert streamed.between[name] == pytest.approx(loaded.between[name], rel=1e-12)


def test_a_replicate_that_is_a_lora_adapter_is_compared_in_closed_form() -> None:
    """Two adapters on one base: the distance of the low-rank changes is that of the merged weights."""
    base = tiny_model()
    made = []
    for seed in (1, 2):
        wrapped = attach(copy.deepcopy(base), make_lora(2, base))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (weight for weight in wrapped.parameters() if weight.requires_grad):
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        made.append(wrapped.eval())
    pair = load_pair(base, made[0], tokenizer=tiny_tokenizer())
    other = load_pair(base, made[1], tokenizer=tiny_tokenizer())
    [closed] = diverge(pair, replicates=other).seed_nulls
    [subtracted] = diverge(replace(pair, adapter=None), replicates=replace(other, adapter=None)).seed_nulls
    for name in MEASURES[:5]:
        assert closed.between[name] == pytest.approx(subtracted.between[name], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tuned(0.02, 0.02, 1),
            "replicate 1 has the weights of the first tuning: a copy says nothing of the seed",
        ),
        (tiny_model, "replicate 1 has the weights of the base"),
        (lambda: tiny_model(layers=4), "differ in .* tensors"),
        (lambda: load_pair(tiny_model(seed=5), tuned(0.1, 0.1, 2), tokenizer=tiny_tokenizer()), "has another base"),
    ],
)
def test_what_is_no_second_seed_is_refused(make: Any, message: str) -> None:
    pair = load_pair(tiny_model(), tuned(0.02, 0.02, 1), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match=message):
        diverge(pair, replicates=[make()])


def test_stored_copies_other_shapes_and_other_tunings_are_refused(tmp_path: Path) -> None:
    models = {"base": tiny_model(), "one": tuned(0.1, 0.1, 1), "two": tuned(0.1, 0.1, 2), "deep": tiny_model(layers=4)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    pair = (tmp_path / "base", tmp_path / "one")
    for name, message in (
        ("one", "a copy says nothing"),
        ("base", "the weights of the base"),
        ("deep", "it alone has layers.3"),
    ):
        with pytest.raises(LensError, match=message):
            diverge(pair, replicates=[tmp_path / name])
    for name, reward in (("one", "vader"), ("two", "sentiment")):
        record = {"method": "ppo", "reward": reward, "base_fingerprint": "a"}
        (tmp_path / name / TUNING_FILE).write_text(json.dumps(record))
    message = "was tuned otherwise: reward is 'sentiment' there and 'vader' here"
    with pytest.raises(LensError, match=message):
        diverge(pair, replicates=[tmp_path / "two"])
    loaded = load_pair(*pair, tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match=message):
        diverge(loaded, replicates=[tmp_path / "two"])


def test_tunings_that_differ_outside_the_blocks_alone_are_no_copies() -> None:
    base, one = tiny_model(), tuned(0.02, 0.02, 1)
    two = copy.deepcopy(one)
    with torch.no_grad():
        two.get_output_embeddings().weight += 0.1
    [null] = diverge(load_pair(base, one, tokenizer=tiny_tokenizer()), replicates=[two]).seed_nulls
    assert null.between["parameter_sum"].tolist() == [0, 0, 0]
    assert null.noise_share().tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_the_rank_test_is_that_of_every_order_with_ties(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, two = draw.integers(0, 4, 5).astype(float), draw.integers(0, 6, 5).astype(float)
    tau, p_value = rank_test(one, two)
    whole = stats.kendalltau(one, two).statistic
    every = [stats.kendalltau(one, two[list(order)]).statistic for order in permutations(range(5))]
    assert tau == pytest.approx(whole)
    assert p_value == pytest.approx(np.mean(np.abs(every) >= abs(whole) - 1e-9))


@pytest.mark.parametrize("n", [4, 8, 12])
def test_without_ties_the_rank_test_is_scipys_exact_one(n: int) -> None:
    draw = np.random.default_rng(n)
    one, two = draw.normal(size=n), draw.normal(size=n)
    wanted = stats.kendalltau(one, two, method="exact")
    assert rank_test(one, two) == pytest.approx((wanted.statistic, wanted.pvalue))


def test_a_constant_ranking_has_no_agreement() -> None:
    assert np.isnan(rank_test(np.zeros(4), np.arange(4.0))).all()


def test_the_top_of_both_rankings_is_counted_beside_chance() -> None:
    """Six layers, the top two of each share one: chance gives 2 * 2 / 6, and at least one is shared with 1 - 6/15."""
    one, two = np.array([6.0, 5, 1, 2, 3, 4]), np.array([6.0, 1, 2, 5, 3, 4])
    null = SeedNull("b", tuple("abcdef"), {"m": one}, {"m": two}, {"m": one})
    found = null.agreement("m", k=2)
    assert (found.k, found.shared) == (2, 1)
    assert found.chance == pytest.approx(4 / 6)
    assert found.p_shared == pytest.approx(1 - 6 / 15)
    assert null.to_frame(k=6)["shared"].tolist() == [6]
    with pytest.raises(LensError, match="The top 7 layers were asked for; the model has 6"):
        null.agreement("m", k=7)
    with pytest.raises(LensError, match="Unknown divergence measure 'n'"):
        null.agreement("n")


def test_a_null_comes_back_from_disk_and_shows_every_layer(tmp_path: Path) -> None:
    found = diverge(tiny_pair(), TEXTS, replicates=[perturbed(tiny_model(), seed=7)])
    write_record(found, tmp_path)
    null = read_record(tmp_path).seed_nulls[0]
    assert null.layers("mlp_relative").equals(found.seed_nulls[0].layers("mlp_relative"))
    assert len(null.layers()) == 3
    assert list(null.to_frame()["measure"]) == list(MEASURES)


def test_another_replicate_is_another_stored_result(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in (7, 8, 7):
        diverge(tiny_pair(), TEXTS, replicates=[perturbed(tiny_model(), seed=seed)], store=store)
    assert len(list(tmp_path.glob("diverge-*"))) == 2
