"""Every architecture trains in SAELens, comes back from our records and from SAELens' own files, and computes the same."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import home_of
from lfp_lens.core.store import Store
from lfp_lens.parts.saes import (
    ARCHITECTURES,
    default_k,
    export,
    load_sae,
    load_weights,
    new_sae,
    quiet_sae_lens,
    random_twin,
    start_from,
    takes,
)
from lfp_lens.results.train_sae import SAESet, SAEWeights
from tests.tiny import tiny_pair, word_saes

WIDTH, SITE = 12, "blocks.1.hook_mlp_out"
PLANTED = ("wonderful", "terrible", "table", "river")
NAMES = list(ARCHITECTURES)
# A batch top-k SAE keeps the k*N largest features of a whole batch while it trains; it is exported as a JumpReLU SAE
# with the mean threshold it met, because at inference a token's features may not depend on the other tokens.
BATCH_TOP_K = ["batchtopk", "matryoshka"]
SAME_WHEN_EXPORTED = [name for name in NAMES if name not in BATCH_TOP_K]


def data(n: int = 256, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(20, WIDTH, generator=generator)
    return (torch.rand(n, 20, generator=generator) * (torch.rand(n, 20, generator=generator) < 0.15)) @ directions


def an_sae(architecture: str, *, seed: int = 0, d_in: int = WIDTH, d_sae: int = 24, k: int | None = None) -> Any:
    return new_sae(architecture, d_in=d_in, d_sae=d_sae, l1=None, k=k, steps=20, seed=seed)


def trained(architecture: str, steps: int = 3, sae: Any = None) -> Any:
    """Train a few steps as the stage does: SAELens' trainer, inputs scaled, the scale folded in at the end."""
    lens = quiet_sae_lens()
    from sae_lens.config import SAETrainerConfig

    sae = an_sae(architecture) if sae is None else sae
    config = SAETrainerConfig(
        total_training_samples=256 * steps, train_batch_size_samples=256, lr=1e-2, lr_end=1e-3, device="cpu",
        dead_feature_window=50, feature_sampling_window=100, n_batches_for_norm_estimate=1,
    )  # fmt: skip
    trainer = lens.SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
    if sae.cfg.normalize_activations == "expected_average_only_in":
        trainer.activation_scaler.scaling_factor = float(WIDTH**0.5 / data().norm(dim=-1).mean())
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with torch.random.fork_rng():
        for step in range(steps):
            assert torch.isfinite(trainer.step(data(seed=step)).loss)
            trainer.n_training_steps += 1
    assert any(not torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
    if trainer.activation_scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    return sae


def exported(sae: Any) -> SAEWeights:
    return export(sae, site=SITE, model_name="tiny")


def test_the_paper_and_every_common_architecture_are_there() -> None:
    assert {"standard", "topk", "batchtopk", "jumprelu", "gated", "matryoshka", "tied"} <= set(NAMES)


@pytest.mark.parametrize("architecture", NAMES)
def test_a_trained_sae_reads_the_same_through_us_and_through_saelens(architecture: str, tmp_path: Path) -> None:
    weights = exported(trained(architecture))
    ours = load_weights(weights)
    written = weights.write_files(tmp_path)
    theirs = quiet_sae_lens().SAE.load_from_disk(tmp_path / written["folder"])
    with torch.no_grad():
        features = ours.encode(data())
        assert features.shape == (256, 24) and (features > 0).any()
        assert torch.equal(features, theirs.encode(data()))
        assert torch.equal(ours.decode(features), theirs.decode(features))
    assert theirs.cfg.metadata.hook_name == SITE


@pytest.mark.parametrize("architecture", SAME_WHEN_EXPORTED)
def test_the_export_computes_what_the_training_sae_computed(architecture: str) -> None:
    sae = trained(architecture)
    ours = load_weights(exported(sae))
    with torch.no_grad():
        # Folding decoder norms into a top-k encoder rescales fp32 weights; nothing else differs.
        torch.testing.assert_close(ours(data()), sae(data()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", BATCH_TOP_K)
def test_a_batch_top_k_sae_is_exported_with_a_threshold(architecture: str) -> None:
    sae = trained(architecture, steps=60)
    weights = exported(sae)
    assert weights.config["architecture"] == "jumprelu"
    ours, batch = load_weights(weights), data()
    with torch.no_grad():
        during, after = sae.encode(batch), ours.encode(batch)
        one_by_one = torch.cat([ours.encode(row) for row in batch.split(1)])
    torch.testing.assert_close(one_by_one, after, atol=1e-5, rtol=1e-5)
    both = (during > 0) & (after > 0)
    assert both.any(), "where both keep a feature, it has the same value"
    torch.testing.assert_close(after[both], during[both], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", NAMES)
def test_exporting_leaves_the_training_sae_as_it_was(architecture: str) -> None:
    sae = trained(architecture)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    first, second = exported(sae), exported(sae)
    assert first == second and first.fingerprint == second.fingerprint
    assert all(torch.equal(tensor, sae.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("architecture", NAMES)
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state(architecture: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other, third = an_sae(architecture), an_sae(architecture), an_sae(architecture, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert any(not torch.equal(tensor, third.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("architecture", [name for name in NAMES if name not in ("tied", "untied")])
def test_scaled_training_is_undone_in_the_weights(architecture: str) -> None:
    """The exported dictionary takes activations as they come: their scale is in its weights."""
    sae, batch = an_sae(architecture), data()
    assert sae.cfg.normalize_activations == "expected_average_only_in"
    with torch.no_grad():
        features, made = sae.encode(3 * batch), sae(3 * batch) / 3
        sae.fold_activation_norm_scaling_factor(3.0)
        assert torch.equal(sae.encode(batch) > 0, features > 0)
        torch.testing.assert_close(sae(batch), made, atol=1e-5, rtol=1e-5)
    assert exported(sae).config["normalize_activations"] == "none"


def test_the_tied_sae_has_unit_rows_and_its_transpose_as_encoder() -> None:
    for sae in (an_sae("tied"), trained("tied")):
        tensors = exported(sae).tensors
        np.testing.assert_allclose(np.linalg.norm(tensors["W_dec"], axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(tensors["W_enc"], tensors["W_dec"].T)
    assert exported(sae).config["architecture"] == "standard"
    assert exported(sae).config["apply_b_dec_to_input"] is False


def test_the_tied_sae_is_the_papers_equation() -> None:
    tensors, batch = exported(trained("tied")).tensors, data().numpy()
    features = np.maximum(batch @ tensors["W_dec"].T + tensors["b_enc"], 0)
    ours = load_weights(exported(trained("tied")))
    with torch.no_grad():
        np.testing.assert_allclose(ours.encode(data()).numpy(), features, atol=1e-5)
        wanted = features @ tensors["W_dec"] + tensors["b_dec"]
        np.testing.assert_allclose(ours(data()).numpy(), wanted, atol=1e-5)


def test_the_tied_loss_is_the_papers() -> None:
    """Paper: mean squared error over all elements + l1 * L1 norm of a token's features, averaged over tokens."""
    from sae_lens.saes.sae import TrainStepInput

    sae = new_sae("tied", d_in=WIDTH, d_sae=24, l1=0.01, k=None, steps=20, seed=0)
    batch = data()
    coefficients = {name: given.value for name, given in sae.get_coefficients().items()}
    step = TrainStepInput(sae_in=batch, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0,
                          is_logging_step=False)  # fmt: skip
    out = sae.training_forward_pass(step)
    with torch.no_grad():
        features = torch.relu(batch @ sae.W_dec.T + sae.b_enc)
        error = ((features @ sae.W_dec + sae.b_dec - batch) ** 2).mean()
        wanted = error + 0.01 * features.sum(-1).mean()
    assert float(out.loss.detach()) == pytest.approx(float(wanted), rel=1e-5)


def test_the_tied_gradient_keeps_rows_at_unit_length() -> None:
    """The norm is inside the graph, so a row's gradient is orthogonal to the row."""
    sae, batch = an_sae("tied"), data()
    sae(batch).square().sum().backward()
    along = (sae.W.grad * sae.W).sum(-1)
    assert float(sae.W.grad.norm()) > 0.1
    torch.testing.assert_close(along, torch.zeros(24), atol=1e-3 * float(sae.W.grad.norm()), rtol=0)


def test_a_tied_sae_refuses_a_scale_that_it_cannot_fold() -> None:
    from lfp_lens.parts.tied_sae import TiedTrainingSAEConfig

    with pytest.raises(LensError, match="A tied SAE cannot fold a scale into its weights"):
        TiedTrainingSAEConfig(d_in=4, d_sae=4, normalize_activations="expected_average_only_in")


@pytest.mark.parametrize("architecture", ["topk", *BATCH_TOP_K])
def test_k_is_the_number_of_active_features(architecture: str) -> None:
    sae = an_sae(architecture, k=3)
    with torch.no_grad():
        active = (sae.encode(data()) > 0).float().sum(-1)
    assert float(active.mean()) <= 3
    if architecture == "topk":
        assert int(active.max()) == 3


@pytest.mark.parametrize("architecture", NAMES)
def test_a_narrow_sae_can_be_made(architecture: str) -> None:
    for d_sae in (1, 3):
        sae = an_sae(architecture, d_in=32, d_sae=d_sae)
        with torch.no_grad():
            assert sae.encode(torch.randn(5, 32)).shape == (5, d_sae)


def test_a_random_twin_keeps_norms_and_biases_and_nothing_else() -> None:
    weights = exported(trained("standard"))
    twin = random_twin(weights, seed=0)
    assert twin.tensors.keys() == weights.tensors.keys()
    for name in ("b_enc", "b_dec"):
        np.testing.assert_array_equal(twin.tensors[name], weights.tensors[name])
    for name, axis in (("W_dec", 1), ("W_enc", 0)):
        given, made = weights.tensors[name], twin.tensors[name]
        np.testing.assert_allclose(np.linalg.norm(made, axis=axis), np.linalg.norm(given, axis=axis), rtol=1e-5)
        cosines = (given * made).sum(axis) / np.linalg.norm(made, axis=axis) / np.linalg.norm(given, axis=axis)
        # 24 random directions in 12 dimensions: the mean cosine has standard error 0.06.
        assert abs(cosines.mean()) < 0.25
    assert random_twin(weights, seed=0) == twin != random_twin(weights, seed=1)
    with torch.no_grad():
        assert load_weights(twin).encode(data()).shape == (256, 24)


def test_a_set_of_saes_comes_back_from_the_store(tmp_path: Path) -> None:
    pair = tiny_pair()
    saes = word_saes(pair, PLANTED)
    store = Store(tmp_path)
    read = store.get("train_sae", {}, lambda folder: saes)
    assert isinstance(read, SAESet) and home_of(read) is not None
    for one, other in zip(saes.saes, read.saes):
        assert one.weights == other.weights and one.weights.fingerprint == other.weights.fingerprint
        with torch.no_grad():
            batch = torch.randn(9, 16)
            assert torch.equal(load_sae(one).encode(batch), load_sae(other).encode(batch))


def test_a_damaged_sae_file_is_refused_with_its_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.get("train_sae", {}, lambda folder: word_saes(tiny_pair(), PLANTED))
    path = next((tmp_path / "train_sae").resolve().rglob("sae_weights.safetensors"))
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-100], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(LensError, match=r"train_sae-\w+ cannot be read.*Delete that folder and rerun"):
            store.read("train_sae")


def test_a_loaded_sae_does_not_train() -> None:
    sae = load_weights(exported(trained("standard")))
    assert not sae.training and not any(weight.requires_grad for weight in sae.parameters())


def test_loading_does_not_touch_the_record() -> None:
    weights = exported(trained("topk"))
    before = weights.fingerprint
    sae = load_weights(weights)
    with torch.no_grad():
        sae.W_dec += 1
    assert weights.fingerprint == before and "metadata" in weights.config
    load_weights(weights)


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(LensError, match=r"Unknown SAE architecture 'topp'\. Did you mean 'topk'\?"):
        an_sae("topp")


def test_an_sae_without_features_is_refused() -> None:
    with pytest.raises(LensError, match="at least one feature; 0 given for 12 dimensions"):
        an_sae("standard", d_sae=0)


@pytest.mark.parametrize("k", [0, -1, 25])
def test_a_k_that_cannot_be_is_refused(k: int) -> None:
    with pytest.raises(LensError, match=f"k={k} features cannot be active at once in an SAE of 24"):
        an_sae("topk", k=k)


@pytest.mark.parametrize("l1", [-0.1, float("inf"), float("nan")])
def test_an_l1_that_cannot_be_is_refused(l1: float) -> None:
    with pytest.raises(LensError, match="l1 must be a finite number, 0 or above"):
        new_sae("standard", d_in=WIDTH, d_sae=24, l1=l1, k=None, steps=20, seed=0)


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize("setting", ["l1", "k"])
def test_a_setting_that_an_architecture_lacks_is_refused_and_one_that_it_has_is_used(
    architecture: str, setting: str
) -> None:
    given = {"l1": None, "k": None} | {setting: 7}
    if takes(architecture, setting):
        config = new_sae(architecture, d_in=WIDTH, d_sae=24, steps=20, seed=0, **given).cfg
        assert getattr(config, {"l1": "l1_coefficient"}.get(setting, setting)) == 7
        assert new_sae(architecture, d_in=WIDTH, d_sae=24, steps=20, seed=0, l1=None, k=None).cfg != config
    else:
        with pytest.raises(LensError, match=f"A {architecture} SAE has no {setting}; {setting}=7 given. Leave it out"):
            new_sae(architecture, d_in=WIDTH, d_sae=24, steps=20, seed=0, **given)


def test_no_k_given_is_an_eighth_of_the_width_as_far_as_there_are_features() -> None:
    assert [default_k(512, 1024), default_k(512, 7), default_k(4, 8)] == [64, 7, 1]
    assert an_sae("topk", d_in=64, d_sae=128).cfg.k == 8


@pytest.mark.parametrize(("d_sae", "widths"), [(24, [3, 6, 12, 24]), (3, [1, 3]), (1, [1])])
def test_a_matryoshka_sae_nests_an_eighth_a_quarter_and_a_half(d_sae: int, widths: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert an_sae("matryoshka", d_sae=d_sae).cfg.matryoshka_widths == widths


@pytest.mark.parametrize("architecture", BATCH_TOP_K)
def test_a_short_training_exports_about_as_many_active_features_as_it_trained_with(architecture: str) -> None:
    """The threshold is a running mean from 0; a slow one would let through features that training never used."""
    sae = trained(architecture, steps=60, sae=an_sae(architecture, k=3))
    with torch.no_grad():
        active = (load_weights(exported(sae)).encode(data(seed=77)) > 0).float().sum(-1).mean()
    assert 2.5 < float(active) < 4


# Starting from a dictionary.


@pytest.mark.parametrize("architecture", NAMES)
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_training_started_from_a_dictionary_begins_as_that_dictionary(architecture: str, scale: float) -> None:
    weights = exported(trained(architecture, steps=20))
    sae = an_sae(architecture, seed=5)
    scaled = sae.cfg.normalize_activations == "expected_average_only_in"
    start_from(sae, weights, scale if scaled else None)
    if scaled:
        assert sae.cfg.normalize_activations == "expected_average_only_in"
        sae.fold_activation_norm_scaling_factor(scale)
    again = exported(sae)
    assert again.tensors.keys() == weights.tensors.keys()
    for name, tensor in weights.tensors.items():
        np.testing.assert_allclose(again.tensors[name], tensor, rtol=2e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("architecture", [name for name in NAMES if name not in ("tied", "untied")])
def test_a_start_computes_on_scaled_inputs_what_the_dictionary_computes(architecture: str) -> None:
    weights, scale = exported(trained(architecture, steps=20)), 2.5
    sae = an_sae(architecture, seed=5)
    start_from(sae, weights, scale)
    with torch.no_grad():
        wanted = load_weights(weights)(data())
        if architecture in BATCH_TOP_K:
            # While it trains it chooses by the batch; the dictionary goes by the threshold.
            sae.activation_fn = torch.nn.Threshold(float(sae.topk_threshold), 0.0)
        torch.testing.assert_close(sae(scale * data()) / scale, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", NAMES)
def test_a_start_trains_on_and_loses_less_than_a_fresh_one(architecture: str) -> None:
    def error(weights: SAEWeights) -> float:
        with torch.no_grad():
            return float((load_weights(weights)(data(seed=99)) - data(seed=99)).square().mean())

    first = exported(trained(architecture, steps=40))
    sae = an_sae(architecture, seed=5)
    start_from(
        sae, first, None if architecture in ("tied", "untied") else float(WIDTH**0.5 / data().norm(dim=-1).mean())
    )
    assert error(exported(trained(architecture, steps=3, sae=sae))) < 0.8 * error(exported(trained(architecture)))


@pytest.mark.parametrize("architecture", NAMES)
def test_a_start_of_another_architecture_or_shape_is_refused_with_both(architecture: str) -> None:
    other = "gated" if architecture != "gated" else "topk"
    with pytest.raises(LensError, match=rf"A {'matryoshka_batchtopk' if architecture == 'matryoshka' else architecture} "
                       rf"SAE of 24 features on 12 dimensions cannot start from a {other} SAE of 24"):  # fmt: skip
        start_from(an_sae(architecture), exported(an_sae(other)), None)
    with pytest.raises(LensError, match=r"cannot start from a .* SAE of 13 features on 12 dimensions"):
        start_from(an_sae(architecture), exported(an_sae(architecture, d_sae=13)), None)
    with pytest.raises(LensError, match=r"cannot start from a .* SAE of 24 features on 8 dimensions"):
        start_from(an_sae(architecture), exported(an_sae(architecture, d_in=8)), None)


def test_a_tied_sae_starts_from_a_standard_one_only_if_that_is_tied() -> None:
    tied = exported(trained("tied"))
    standard = an_sae("standard")
    start_from(standard, tied, 2.0)
    standard.fold_activation_norm_scaling_factor(2.0)
    back = an_sae("tied", seed=3)
    start_from(back, exported(standard), None)
    with torch.no_grad():
        torch.testing.assert_close(back(data()), load_weights(tied)(data()), atol=1e-5, rtol=1e-5)
    with pytest.raises(LensError, match=r"encoder is its decoder's transpose, with rows of length 1; .*Use standard"):
        start_from(back, exported(trained("standard")), None)
    longer = SAEWeights(tied.config, tied.tensors | {name: 2 * tied.tensors[name] for name in ("W_enc", "W_dec")})
    with pytest.raises(LensError, match="lengths go from 2 to 2"):
        start_from(back, longer, None)


def test_a_start_with_another_k_is_refused() -> None:
    with pytest.raises(LensError, match=r"The SAE to start from has k=3; k=1 given\. Give k=3\."):
        start_from(an_sae("topk"), exported(trained("topk", sae=an_sae("topk", k=3))), 1.0)


def test_a_batch_top_k_sae_starts_only_from_one_threshold() -> None:
    weights = exported(trained("jumprelu"))
    weights.tensors["threshold"][0] = 3.0
    with pytest.raises(LensError, match=r"a threshold for each feature .* Train jumprelu"):
        start_from(an_sae("batchtopk"), weights, 1.0)


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk"])
def test_a_start_that_does_not_subtract_the_decoder_bias_is_taken_over_exactly(architecture: str) -> None:
    centred = exported(trained(architecture, steps=20))
    weights = SAEWeights(centred.config | {"apply_b_dec_to_input": False}, centred.tensors)
    sae = an_sae(architecture, seed=5)
    start_from(sae, weights, 1.0)
    assert sae.cfg.apply_b_dec_to_input
    with torch.no_grad():
        wanted = load_weights(weights)(data())
        torch.testing.assert_close(sae(data()), wanted, atol=1e-5, rtol=1e-5)
        assert float((load_weights(centred)(data()) - wanted).abs().max()) > 1e-3


def test_a_start_whose_inputs_are_normalised_is_refused() -> None:
    weights = exported(trained("standard"))
    weights.config["normalize_activations"] = "layer_norm"
    with pytest.raises(LensError, match=r"inputs are normalised \(layer_norm\) cannot be a start"):
        start_from(an_sae("standard"), weights, 1.0)


def test_the_tied_step_in_closed_form_is_its_loss_and_its_gradient_by_autograd() -> None:
    from sae_lens.saes.sae import TrainingSAE, TrainStepInput

    gradients = []
    for step_of in (type(an_sae("tied")), TrainingSAE):
        sae = trained("tied")
        sae.zero_grad()
        step = TrainStepInput(sae_in=data(), coefficients={"l1": 0.05}, dead_neuron_mask=None, n_training_steps=0,
                              is_logging_step=False)  # fmt: skip
        out = step_of.training_forward_pass(sae, step)
        out.loss.backward()
        assert set(out.losses) == {"mse_loss", "l1_loss"}
        gradients.append((float(out.loss.detach()), {name: weight.grad for name, weight in sae.named_parameters()}))
    (loss, ours), (wanted, theirs) = gradients
    # SAELens sums the squared error over the width, the paper averages.
    assert loss == pytest.approx(wanted / WIDTH, rel=1e-6)
    for name, gradient in theirs.items():
        assert float((WIDTH * ours[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_a_config_knows_the_same_architectures_and_settings() -> None:
    """A config may import no PyTorch, so it names them itself."""
    from lfp_lens.config.sections import TAKES_K, TAKES_L1, TrainSAEConfig

    for setting, takers in (("l1", TAKES_L1), ("k", TAKES_K)):
        assert sorted(takers) == [name for name in NAMES if takes(name, setting)]
    for name in NAMES:
        assert TrainSAEConfig(architecture=name).architecture == name
    with pytest.raises(LensError, match="architecture"):
        TrainSAEConfig(architecture="topp")


def test_the_untied_sae_has_unit_encoder_rows_and_a_free_decoder() -> None:
    """The paper's other kind (Table 11): both begin alike, then only the encoder keeps its length."""
    begun, sae = an_sae("untied"), trained("untied", steps=40)
    assert torch.equal(begun.W_dec, begun.W)
    tensors = exported(sae).tensors
    assert np.linalg.norm(tensors["W_enc"], axis=0) == pytest.approx(np.ones(24), rel=1e-5)
    assert np.ptp(np.linalg.norm(tensors["W_dec"], axis=1)) > 0.01
    assert np.abs(tensors["W_enc"].T - tensors["W_dec"]).max() > 0.01
