"""Quality by hand on hand-made SAEs: reconstruction, splices, floors and intervals, for every side."""

import itertools
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import encode
from lfp_lens.parts.harvest import combined
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.saes import load_weights
from lfp_lens.parts.sites import editing
from lfp_lens.results.train_sae import SAEWeights
from lfp_lens.stages.train_sae import quality, splicing
from lfp_lens.stages.train_sae.floors import components_sae
from lfp_lens.stages.train_sae.quality import Judged, measure_quality, up_to
from lfp_lens.stages.train_sae.reconstruction import Components
from tests.tiny import perturbed, sae_record, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(60)
SITE = "blocks.0.hook_mlp_out"
SIDES = ("base", "tuned", "difference", "both")
ALL = 10**6


def by_hand(encoder_DF: torch.Tensor, decoder_FD: torch.Tensor, b_dec: torch.Tensor | None = None) -> SAEWeights:
    width, n_features = encoder_DF.shape
    config = {
        "architecture": "standard", "d_in": width, "d_sae": n_features, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none", "metadata": {},
    }  # fmt: skip
    tensors = {
        "W_enc": encoder_DF, "W_dec": decoder_FD, "b_enc": torch.zeros(n_features),
        "b_dec": torch.zeros(width) if b_dec is None else b_dec,
    }  # fmt: skip
    return SAEWeights(config, {name: tensor.contiguous().float().numpy() for name, tensor in tensors.items()})


def mirror(width: int = 16, scale: float = 1.0) -> SAEWeights:
    """Features x+ and x- of every dimension: a perfect reconstruction (times `scale`), half of the features active."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return by_hand(both.T, scale * both)


def nothing(width: int = 16) -> SAEWeights:
    return by_hand(torch.zeros(width, 4), torch.zeros(4, width))


def direction(width: int = 16) -> SAEWeights:
    """One feature."""
    vector = torch.randn(width, 1, generator=torch.Generator().manual_seed(3))
    return by_hand(vector, vector.T / vector.square().sum())


def measured(
    weights: SAEWeights, side: str = "tuned", *, pair: Pair | None = None, site: str = SITE, texts: list[str] = TEXTS,
    tokens: int = ALL, spliced: int = ALL, seed: int = 0, fit: torch.Tensor | None = None, floors: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Quality of one dictionary; untrained, it gives nothing."""
    pair = pair or tiny_pair()
    judged = Judged(side, site, weights, nothing(weights.tensors["W_dec"].shape[1]) if floors else None)
    found = measure_quality(
        {"base": pair.base_hf, "tuned": pair.tuned_hf}, pair.tokenizer, {"it": judged},
        encode(pair.tokenizer, texts, max_tokens=64), tokens=tokens, spliced=spliced, seed=seed,
        fit=None if fit is None else {(side, site): fit},
    )  # fmt: skip
    return found["it"]


@cache
def seen_by_hand(side: str) -> torch.Tensor:
    """Activations `[N, D]` of a side at SITE, one text at a time, without the first token."""
    seen: dict[str, list[torch.Tensor]] = {"base": [], "tuned": []}
    pair = tiny_pair()
    for name, model in (("base", pair.base_hf), ("tuned", pair.tuned_hf)):
        handle = model.gpt_neox.layers[0].mlp.register_forward_hook(
            lambda layer, args, out, name=name: seen[name].append(out[0, 1:])
        )
        with torch.no_grad():
            for text in TEXTS:
                model(torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]]))
        handle.remove()
    return combined((side, SITE), {(name, SITE): torch.cat(parts) for name, parts in seen.items()})


def logits(model: Any, ids: torch.Tensor, edit: Any) -> torch.Tensor:
    """Log-probabilities with the site edited everywhere but at the first token."""

    def hook(layer: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.cat([out[:, :1], edit(out[:, 1:])], dim=1)

    handle = model.gpt_neox.layers[0].mlp.register_forward_hook(hook)
    with torch.no_grad():
        found = model(ids).logits[0, :-1].log_softmax(-1)
    handle.remove()
    return found


# --- one dictionary ---


@pytest.mark.parametrize("side", SIDES)
def test_a_perfect_reconstruction_has_all_the_variance_and_all_the_predictions(side: str) -> None:
    width = 32 if side == "both" else 16
    facts = measured(mirror(width), side)
    assert facts["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert facts["kl_recovered"] == pytest.approx(1, abs=1e-4)
    assert facts["ce_recovered"] == pytest.approx(1, abs=1e-3) or np.isnan(facts["ce_recovered"])
    assert facts["mse"] < 1e-10
    assert facts["l0"] == pytest.approx(width, abs=0.01)
    assert facts["dead_share"] == 0
    assert facts["shrinkage"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_an_sae_that_gives_nothing_recovers_nothing(side: str) -> None:
    facts = measured(nothing(32 if side == "both" else 16), side)
    assert facts["kl_recovered"] == pytest.approx(0, abs=1e-6)
    assert facts["explained_variance"] == facts["floors"]["untrained"].explained_variance < 0
    assert (facts["l0"], facts["dead_share"], facts["shrinkage"]) == (0, 1, 1)


def test_an_sae_that_gives_the_mean_explains_no_variance() -> None:
    acts = seen_by_hand("tuned")
    facts = measured(by_hand(torch.zeros(16, 4), torch.zeros(4, 16), acts.mean(0)))
    assert facts["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert facts["mse"] == pytest.approx(float((acts - acts.mean(0)).square().mean()), rel=1e-4)


def test_an_sae_that_halves_everything_shrinks_by_half_and_leaves_a_quarter_of_the_squares() -> None:
    facts = measured(mirror(scale=0.5))
    acts = seen_by_hand("tuned")
    assert facts["shrinkage"] == pytest.approx(0.5, abs=1e-5)
    assert facts["mse"] == pytest.approx(float(acts.square().mean()) / 4, rel=1e-4)


@pytest.mark.parametrize("side", SIDES)
def test_the_numbers_are_those_of_the_formulas_on_every_content_token(side: str) -> None:
    """One feature, one text at a time, clean and spliced through the model's own logits."""
    pair, weights = tiny_pair(), direction(32 if side == "both" else 16)
    facts, sae = measured(weights, side), load_weights(weights)
    acts = seen_by_hand(side)
    features = torch.relu(acts @ torch.from_numpy(weights.tensors["W_enc"]))
    error = (features @ torch.from_numpy(weights.tensors["W_dec"]) - acts).square()
    # A difference of activations rounds at 1e-7 of the activations, which are larger.
    wanted = float(1 - error.sum() / (acts - acts.mean(0)).square().sum())
    assert facts["explained_variance"] == pytest.approx(wanted, abs=1e-5)
    assert facts["firing_rate"] == pytest.approx([float((features > 0).float().mean())])
    assert facts["n_heldout_tokens"] == len(acts)
    sums, losses, n = np.zeros(2), np.zeros(3), 0
    model = pair.base_hf if side == "base" else pair.tuned_hf
    for text in TEXTS:
        ids = torch.tensor([[0, *pair.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        base, clean = base_acts(pair, ids), logits(model, ids, lambda acts: acts)
        edits = {
            "base": (sae, torch.zeros_like), "tuned": (sae, torch.zeros_like),
            "difference": (lambda acts, base=base: base + sae(acts - base), lambda acts, base=base: base),
            "both": (lambda acts, base=base: sae(torch.cat([base, acts], -1))[..., 16:], torch.zeros_like),
        }[side]  # fmt: skip
        found = [clean, *(logits(model, ids, edit) for edit in edits)]
        # The prediction made at the first token, which no SAE sees, is left out of the loss; its KL is 0.
        losses += [-float(rows[1:].gather(-1, ids[0, 2:, None]).sum()) for rows in found]
        sums += [float((clean.exp() * (clean - rows)).sum()) for rows in found[1:]]
        n += len(ids[0]) - 2
    assert facts["n_spliced_tokens"] == n
    assert facts["kl_recovered"] == pytest.approx(1 - sums[0] / sums[1], abs=1e-4)
    if losses[2] > losses[0]:
        assert facts["ce_recovered"] == pytest.approx((losses[2] - losses[1]) / (losses[2] - losses[0]), abs=1e-3)


def base_acts(pair: Pair, ids: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with torch.no_grad(), editing(pair.base_hf, {SITE: lambda acts: seen.append(acts) or acts}):
        pair.base_hf(ids)
    return seen[0][:, 1:]


def test_dictionaries_measured_together_have_the_figures_they_have_alone() -> None:
    pair, other = tiny_pair(), "blocks.2.hook_mlp_out"
    asked = {
        (side, site, name): Judged(side, site, weights, nothing(weights.tensors["W_dec"].shape[1]))
        for side, site in itertools.product(SIDES, (SITE, other))
        for name, weights in (("one", direction(32 if side == "both" else 16)), ("all", mirror(32 if side == "both" else 16)))
    }  # fmt: skip
    models = {"base": pair.base_hf, "tuned": pair.tuned_hf}
    heldout = encode(pair.tokenizer, TEXTS, max_tokens=64)
    together = measure_quality(models, pair.tokenizer, asked, heldout, tokens=ALL, spliced=ALL, seed=0)
    for key, judged in asked.items():
        (alone,) = measure_quality(
            models, pair.tokenizer, {key: judged}, heldout, tokens=ALL, spliced=ALL, seed=0
        ).values()
        assert alone.keys() == together[key].keys()
        for name in alone.keys() - {"floors"}:
            assert alone[name] == pytest.approx(together[key][name], rel=1e-5, abs=1e-6, nan_ok=True), (key, name)


def test_a_dictionary_of_any_other_model_is_judged_in_that_model() -> None:
    pair = tiny_pair()
    heldout = encode(pair.tokenizer, TEXTS, max_tokens=64)
    asked = {name: Judged(name, SITE, direction(), None) for name in ("random", "base")}
    models = {"random": pair.tuned_hf, "base": pair.base_hf}
    found = measure_quality(models, pair.tokenizer, asked, heldout, tokens=ALL, spliced=ALL, seed=0)
    assert found["random"]["floors"] == {}
    assert found["random"]["kl_recovered"] == pytest.approx(measured(direction())["kl_recovered"], abs=1e-5)
    assert found["random"]["kl_recovered"] != found["base"]["kl_recovered"]


# --- which text ---


def test_quality_is_measured_on_no_more_tokens_than_asked() -> None:
    few = measured(mirror(), tokens=50, spliced=20)
    assert 20 < few["n_heldout_tokens"] <= 50
    assert 5 < few["n_spliced_tokens"] <= 20
    assert measured(mirror(), tokens=3, spliced=2)["n_heldout_tokens"] == 3
    assert measured(mirror(), tokens=3, spliced=2)["n_spliced_tokens"] == 2


def test_the_texts_are_a_seeded_choice() -> None:
    """Held-out texts may lie sorted: the first ones would be of one kind."""
    figures = [measured(direction(), tokens=60, spliced=30, seed=seed)["explained_variance"] for seed in (0, 0, 1)]
    assert figures[0] == figures[1] != figures[2]


def test_a_text_that_alone_holds_too_much_is_cut_and_one_that_holds_nothing_is_left_out() -> None:
    texts = encode(tiny_tokenizer(), ["", "the film was great.", "we saw it"], max_tokens=64)
    count = lambda ids: sum(token != 0 for token in ids)  # noqa: E731
    assert [text.ids for text in up_to(texts, 2, count)] == [texts[1].ids[:3]]
    assert up_to(texts, ALL, count) == texts[1:]
    assert up_to(texts, count(texts[1].ids) + 1, count) == [texts[1]]
    assert up_to(texts[:1], 5, count) == []


def test_padding_and_the_beginning_of_text_count_nowhere() -> None:
    """A model whose site is poisoned at every token 0 gives the same figures."""
    pair = load_pair(tiny_model(), perturbed(tiny_model()), tokenizer=tiny_tokenizer())
    texts = [*TEXTS, f"{TEXTS[0][:20]}<|endoftext|>{TEXTS[0][20:]}"]
    clean = measured(direction(), pair=pair, texts=texts, fit=seen_by_hand("tuned"))
    seen: dict[str, torch.Tensor] = {}
    pair.tuned_hf.get_input_embeddings().register_forward_pre_hook(lambda layer, args: seen.update(ids=args[0]))
    pair.tuned_hf.gpt_neox.layers[0].mlp.register_forward_hook(
        lambda layer, args, out: torch.where((seen["ids"] == 0)[..., None], torch.full_like(out, 1e6), out)
    )
    other = measured(direction(), pair=pair, texts=texts, fit=seen_by_hand("tuned"))
    for name in ("explained_variance", "l0", "mse", "shrinkage", "n_heldout_tokens", "explained_variance_low"):
        assert clean[name] == other[name]
    assert clean["floors"]["pca"].explained_variance == other["floors"]["pca"].explained_variance


# --- intervals ---


def test_the_interval_resamples_whole_texts() -> None:
    """A copy of every text adds no knowledge of one text, but halves the variance of the mean: width by sqrt(2)."""
    once, twice = measured(direction()), measured(direction(), texts=TEXTS * 2)
    for name in ("explained_variance", "kl_recovered"):
        assert once[name] == pytest.approx(twice[name], abs=1e-5)
        assert once[f"{name}_low"] < once[name] < once[f"{name}_high"]
        widths = [facts[f"{name}_high"] - facts[f"{name}_low"] for facts in (once, twice)]
        # 1000 draws know each quantile to some 4 % of the width.
        assert widths[0] / widths[1] == pytest.approx(2**0.5, rel=0.15)


def test_the_interval_is_that_of_a_bootstrap_by_hand() -> None:
    facts, acts, weights = measured(direction()), seen_by_hand("tuned"), direction()
    made = load_weights(weights)(acts)
    lengths = [len(text.ids) - 1 for text in encode(tiny_tokenizer(), TEXTS, max_tokens=64)]
    parts = list(zip(acts.double().split(lengths), made.double().split(lengths)))
    draw, found = np.random.default_rng(5), []
    for _ in range(1000):
        chosen = [parts[at] for at in draw.integers(len(parts), size=len(parts))]
        one, other = (torch.cat(list(held)) for held in zip(*chosen))
        found.append(float(1 - (one - other).square().sum() / (one - one.mean(0)).square().sum()))
    low, high = np.quantile(found, (0.025, 0.975))
    width = high - low
    # Two bootstraps of 1000 draws: some 6 % of the width apart at either end.
    assert facts["explained_variance_low"] == pytest.approx(low, abs=0.2 * width)
    assert facts["explained_variance_high"] == pytest.approx(high, abs=0.2 * width)


def test_one_text_has_no_interval() -> None:
    facts = measured(direction(), texts=TEXTS[:1])
    assert np.isnan(facts["explained_variance_low"]) and np.isnan(facts["kl_recovered_high"])


# --- floors ---


def components(n: int, fit: torch.Tensor) -> tuple[SAEWeights, Components]:
    found = Components(fit)
    return components_sae(found, n, SITE), found


def test_principal_components_as_an_sae_reconstruct_as_pca_does() -> None:
    from sklearn.decomposition import PCA

    fit, acts = seen_by_hand("base"), seen_by_hand("tuned")
    weights, _ = components(5, fit)
    sae, peer = load_weights(weights), PCA(5, svd_solver="full").fit(fit.double().numpy())
    wanted = peer.inverse_transform(peer.transform(acts.double().numpy()))
    np.testing.assert_allclose(sae(acts).numpy(), wanted, atol=2e-5)
    assert ((sae.encode(acts) > 0).sum(1) == 5).all(), "one sign of each component is active"


@pytest.mark.parametrize("n", [1, 5, 16])
def test_the_figures_of_components_are_those_of_their_sae_run_on_the_text(n: int) -> None:
    acts = seen_by_hand("tuned")
    weights, found = components(n, seen_by_hand("base"))
    found.add(acts[:100])
    found.add(acts[100:])
    variance = float((acts - acts.mean(0)).double().square().sum())
    figures, run = found.figures(n, variance), measured(weights)
    assert figures.keys() == {"explained_variance", "l0", "dead_share", "shrinkage", "firing_rate"}
    for name, value in figures.items():
        assert value == pytest.approx(run[name], abs=2e-5), name
    assert figures["l0"] == pytest.approx(n)


@pytest.mark.parametrize("side", SIDES)
def test_pca_has_as_many_components_as_the_sae_has_active_features(side: str) -> None:
    width = 32 if side == "both" else 16
    acts = seen_by_hand(side)
    facts = measured(direction(width), side, fit=acts)
    floor = facts["floors"]["pca"]
    assert (floor.kind, floor.n_features) == ("pca", 2), "half a feature is active: one component, the least there is"
    assert floor.l0 == pytest.approx(1)
    # Fitted and judged on the same activations, one component explains its share of the variance.
    values = torch.linalg.eigvalsh(torch.cov(acts.double().T))
    assert floor.explained_variance == pytest.approx(float(values[-1] / values.sum()), abs=1e-4)
    whole = measured(mirror(width), side, fit=acts)["floors"]["pca"]
    assert (whole.n_features, len(whole.firing_rate)) == (2 * width, 2 * width)
    assert whole.explained_variance == pytest.approx(1, abs=1e-5)
    assert whole.kl_recovered == pytest.approx(1, abs=1e-3)
    assert load_weights(whole.weights).cfg.metadata.hook_name == SITE


def test_components_are_not_fitted_on_what_they_are_judged_on() -> None:
    """Fitted on noise of another direction, they explain next to nothing here."""
    acts = seen_by_hand("tuned")
    values, vectors = torch.linalg.eigh(torch.cov(acts.double().T))
    least = (acts.double().mean(0) + torch.randn(500, 1) * vectors[:, 0]).float()
    floor = measured(direction(), fit=least)["floors"]["pca"]
    assert floor.explained_variance == pytest.approx(float(values[0] / values.sum()), abs=1e-3)


def test_the_untrained_twin_has_every_figure_and_without_training_text_pca_has_none() -> None:
    facts = measured(direction())
    assert list(facts["floors"]) == ["untrained"]
    twin, alone = facts["floors"]["untrained"], measured(nothing())
    for name in ("explained_variance", "kl_recovered", "ce_recovered", "l0", "dead_share", "shrinkage"):
        assert getattr(twin, name) == pytest.approx(alone[name], abs=1e-6, nan_ok=True), name
    assert twin.weights == nothing()
    assert measured(direction(), floors=False, fit=seen_by_hand("tuned"))["floors"] == {}


# --- splices ---


def test_small_chunks_of_logits_and_small_batches_change_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(direction())
    monkeypatch.setattr(splicing, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(splicing, "HELD_VALUES", 1)
    parts = measured(direction())
    for name in ("kl_recovered", "kl_recovered_low", "ce_recovered"):
        assert whole[name] == pytest.approx(parts[name], abs=1e-5, nan_ok=True)


def test_where_zeroing_costs_nothing_nothing_is_recovered() -> None:
    costs = splicing.Costs(np.zeros(3), np.ones(3))
    found: Mapping[str, float] = quality._recovered(costs, costs, np.ones(3), np.ones((5, 3)))
    assert all(np.isnan(value) for value in found.values()) and len(found) == 4


# --- what cannot be judged ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"The tuned activations at blocks\.0\.hook_mlp_out are not finite on the held-out text"),
        (1.0, r"The tuned activations at blocks\.0\.hook_mlp_out are the same at every held-out token"),
    ],
)
def test_activations_that_cannot_be_judged_are_refused_with_side_and_site(value: float, message: str) -> None:
    pair = load_pair(tiny_model(), perturbed(tiny_model()), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        pair.tuned_hf.gpt_neox.layers[0].mlp.dense_4h_to_h.weight.fill_(0)
        pair.tuned_hf.gpt_neox.layers[0].mlp.dense_4h_to_h.bias.fill_(value)
    with pytest.raises(LensError, match=message):
        measured(mirror(), pair=pair)


def test_the_difference_of_equal_models_is_refused_and_says_why() -> None:
    pair = load_pair(tiny_model(), tiny_model(), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match=r"The difference activations .* Base and tuned do not differ there"):
        measured(mirror(), "difference", pair=pair)


def test_held_out_texts_without_a_token_are_refused() -> None:
    with pytest.raises(LensError, match="The held-out texts hold no tokens"):
        measured(mirror(), texts=["", ""])


# --- floors in later verbs ---


def test_the_floors_answer_attribute_and_ablate_in_the_place_of_the_saes() -> None:
    from lfp_lens.results import FeatureSet, SAESet
    from lfp_lens.stages.ablate import ablate
    from lfp_lens.stages.attribute import attribute
    from tests.stages.planted import speaking_pair

    pair, fit = speaking_pair(), seen_by_hand("tuned")
    facts = measured(mirror(), pair=pair, fit=fit, texts=TEXTS[:20])
    weights = mirror()
    sae = sae_record(weights, "tuned", SITE, n_train_tokens=9, **facts)
    floor = SAESet((sae,), pair.fingerprint, (), {}).floor("pca")
    effects = attribute(pair, floor, TEXTS, confirm=4, gate="warn")
    assert len(effects.screen) == 32 and np.isfinite(effects.exact).sum() >= 4
    chosen = FeatureSet(floor, ((SITE, 0), (SITE, 17)))
    found = ablate(pair, chosen, prompts=TEXTS[:48], n=48, max_new_tokens=4, controls=3)
    assert found.random_differences.shape == (3,) and found.valence_difference.value != 0
