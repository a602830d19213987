"""Dictionaries from files: SAELens' folders of every kind, the paper's two layouts, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sae_files import check_owner, read_sae
from lfp_lens.parts.saes import ARCHITECTURES, export, load_weights, new_sae, quiet_sae_lens
from lfp_lens.results.train_sae import SAEWeights

WIDTH, FEATURES, SITE = 12, 24, "blocks.1.hook_mlp_out"
FOLDED = ["standard", "tied", "untied", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"]


def data() -> torch.Tensor:
    return torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))


def an_sae(architecture: str) -> Any:
    """Give an SAE with weights and biases of no special form, ready to be saved."""
    sae = new_sae(architecture, d_in=WIDTH, d_sae=FEATURES, l1=None, k=None, steps=20, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in sae.parameters():
            weight += 0.2 * torch.rand(weight.shape, generator=generator)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold += 0.3
    if sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(0.7)
    return sae


def assert_same(ours: SAEWeights, sae: Any) -> None:
    """Compare features and reconstructions of the dictionary with a SAELens module's."""
    read = load_weights(ours)
    with torch.no_grad():
        features = read.encode(data())
        assert (features > 0).any() and (features == 0).any()
        torch.testing.assert_close(features, sae.encode(data()), atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(read.decode(features), sae(data()), atol=5e-6, rtol=5e-6)


# SAELens' folders.


def test_every_architecture_is_covered() -> None:
    assert set(FOLDED) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", FOLDED)
def test_what_we_write_both_read_alike(architecture: str, tmp_path: Path) -> None:
    weights = export(an_sae(architecture), site=SITE, model_name="tiny", fingerprint="abc", side="tuned")
    folder = tmp_path / weights.write_files(tmp_path)["folder"]
    theirs = quiet_sae_lens().SAE.load_from_disk(folder)
    assert_same(weights, theirs)
    again = read_sae(folder)
    assert_same(again, theirs)
    if architecture not in ("topk",):  # Its decoder's norms are folded once more, which rounds.
        assert again == weights
    assert theirs.cfg.metadata.lfp_model == "abc" and theirs.cfg.metadata.lfp_side == "tuned"
    assert again.config["metadata"]["lfp_model"] == "abc" and again.config["metadata"]["hook_name"] == SITE


@pytest.mark.parametrize("architecture", FOLDED)
def test_what_saelens_saves_for_inference_we_read(architecture: str, tmp_path: Path) -> None:
    an_sae(architecture).save_inference_model(tmp_path)
    theirs = quiet_sae_lens().SAE.load_from_disk(tmp_path)
    assert_same(read_sae(tmp_path), theirs)
    assert_same(read_sae(str(tmp_path / "cfg.json")), theirs)


@pytest.mark.parametrize("architecture", FOLDED)
def test_what_saelens_saves_while_training_we_read_as_the_finished_dictionary(
    architecture: str, tmp_path: Path
) -> None:
    sae = an_sae(architecture)
    sae.save_model(tmp_path)
    finished = export(sae, site=SITE, model_name="tiny")
    ours = read_sae(tmp_path)
    assert ours.config["architecture"] == finished.config["architecture"]
    assert_same(ours, load_weights(finished))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_a_read_dictionary_has_decoder_rows_that_a_feature_adds_to_the_site(architecture: str, tmp_path: Path) -> None:
    """A top-k SAE's features are counted in units of its rows, so attribution needs rows of length 1."""
    an_sae(architecture).save_model(tmp_path)
    ours = read_sae(tmp_path)
    np.testing.assert_allclose(np.linalg.norm(ours.tensors["W_dec"], axis=1), 1, atol=1e-6)
    read = load_weights(ours)
    with torch.no_grad():
        features = read.encode(data())
        torch.testing.assert_close(read.decode(features), features @ read.W_dec + read.b_dec, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_a_training_checkpoint_is_read_with_the_scale_beside_it(architecture: str, tmp_path: Path) -> None:
    from sae_lens.config import SAETrainerConfig

    sae = new_sae(architecture, d_in=WIDTH, d_sae=FEATURES, l1=None, k=None, steps=20, seed=0)
    config = SAETrainerConfig(
        total_training_samples=512, train_batch_size_samples=64, lr=1e-3, lr_end=1e-3, device="cpu",
        dead_feature_window=50, feature_sampling_window=100, n_batches_for_norm_estimate=1,
        checkpoint_path=str(tmp_path),
    )  # fmt: skip
    trainer = quiet_sae_lens().SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = 2.5
    with torch.random.fork_rng():
        trainer.step(data())
    trainer.save_checkpoint("half_way")
    ours = read_sae(tmp_path / "half_way")
    sae.fold_activation_norm_scaling_factor(2.5)
    assert_same(ours, load_weights(export(sae, site=SITE, model_name="tiny")))
    (tmp_path / "half_way" / "activation_scaler.json").unlink()
    with pytest.raises(LensError, match=r"takes scaled inputs .* the scale is not in its folder"):
        read_sae(tmp_path / "half_way")


def old_folder(folder: Path, **config: Any) -> Any:
    """Write a folder as SAELens before version 6 did, and give the same SAE made by hand."""
    sae = an_sae("standard")
    save_file(
        {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, folder / "sae_weights.safetensors"
    )
    old = {"d_in": WIDTH, "d_sae": FEATURES, "dtype": "torch.float32", "device": "cpu", "model_name": "pythia-70m-deduped",
           "hook_point": SITE, "hook_point_layer": 1, "activation_fn_str": "relu", "normalize_activations": False,
           "prepend_bos": True, "context_size": 128, "apply_b_dec_to_input": True}  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old | config))
    return sae


def test_a_folder_of_saelens_before_version_6_is_read(tmp_path: Path) -> None:
    sae = old_folder(tmp_path)
    ours = read_sae(tmp_path)
    assert_same(ours, sae)
    assert ours.config["architecture"] == "standard"
    check_owner(ours, SITE, WIDTH)


def test_an_old_top_k_folder_is_read_as_top_k(tmp_path: Path) -> None:
    old_folder(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": 3})
    ours = read_sae(tmp_path)
    with torch.no_grad():
        assert ours.config["k"] == 3 and int((load_weights(ours).encode(data()) > 0).sum(-1).max()) == 3


def test_a_folder_in_half_precision_is_read_in_full(tmp_path: Path) -> None:
    sae = an_sae("standard").to(torch.bfloat16)
    sae.save_inference_model(tmp_path)
    ours = read_sae(tmp_path)
    assert all(tensor.dtype == np.float32 for tensor in ours.tensors.values()) and ours.config["dtype"] == "float32"
    np.testing.assert_array_equal(ours.tensors["W_dec"], sae.W_dec.detach().float().numpy())


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("transcoder", "reads one site and writes another"),
        ("jumprelu_skip_transcoder", "reads one site and writes another"),
        ("abstopk", "features below zero"),
        ("temporal", "depend on other tokens"),
        ("matching_pursuit", "one after another"),
        ("unheard_of", "no known SAE. Known: standard, gated, topk, jumprelu"),
    ],
)
def test_what_is_no_dictionary_of_a_site_is_refused_with_its_reason(
    architecture: str, reason: str, tmp_path: Path
) -> None:
    old_folder(tmp_path, architecture=architecture)
    with pytest.raises(LensError, match=reason):
        read_sae(tmp_path)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_a_dictionary_that_normalises_each_token_is_refused(kind: str, tmp_path: Path) -> None:
    old_folder(tmp_path, normalize_activations=kind)
    with pytest.raises(LensError, match=rf"normalises each token by itself \({kind}\)"):
        read_sae(tmp_path)


def test_a_dictionary_of_attention_heads_is_refused(tmp_path: Path) -> None:
    old_folder(tmp_path, hook_point="blocks.1.attn.hook_z")
    with pytest.raises(LensError, match="reads attention heads apart"):
        read_sae(tmp_path)


def test_a_folder_without_an_sae_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"lacks cfg\.json and sae_weights\.safetensors"):
        read_sae(tmp_path)
    with pytest.raises(LensError, match="There is no SAE at"):
        read_sae(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["config", "shape", "missing", "empty", "infinite", "list"])
def test_a_damaged_folder_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    old_folder(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    match damage:
        case "config":
            (tmp_path / "cfg.json").write_text("{")
        case "list":
            (tmp_path / "cfg.json").write_text("[]")
        case "shape":
            old_folder(tmp_path, d_sae=FEATURES + 1)
        case "missing":
            save_file({"W_enc": torch.zeros(WIDTH, FEATURES)}, weights)
        case "empty":
            weights.write_bytes(b"")
        case "infinite":
            state = dict(an_sae("standard").state_dict())
            state["b_enc"] = state["b_enc"] * float("nan")
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    with pytest.raises(LensError, match=r"cannot be read|not finite") as caught:
        read_sae(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


# The paper's original checkpoints. The names are not known for sure, so several are tried.


def original(n_features: int, seed: int = 0, *, untied: bool = False) -> dict[str, torch.Tensor]:
    """Give encoder matrix, encoder bias, decoder bias and, where untied, decoder matrix, with rows of any length."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    state = {"encoder": draw(n_features, WIDTH), "b_enc": draw(n_features), "b_dec": draw(WIDTH)}
    return state | ({"decoder": draw(WIDTH, n_features)} if untied else {})


def original_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reimplement both original forwards from their description: encoder rows at unit length, an untied decoder as is."""
    rows = state["encoder"] / state["encoder"].norm(dim=1, keepdim=True)
    features = torch.relu(x @ rows.T + state["b_enc"])
    decoder = state["decoder"].T if "decoder" in state else rows
    return features, features @ decoder + state["b_dec"]


def assert_original(weights: SAEWeights, state: dict[str, torch.Tensor]) -> None:
    sae = load_weights(weights)
    with torch.no_grad():
        features, made = original_forward(state, data())
        torch.testing.assert_close(sae.encode(data()), features, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(sae(data()), made, atol=2e-6, rtol=1e-6)


OLD = ("encoder", "b_enc", "b_dec"), ("encoder_matrix", "encoder_bias", "decoder_bias")
NEW_TIED = ("encoder.weight", "encoder.bias", "decoder_bias"), ("enc.weight", "enc.bias", "bias")
UNTIED = ("encoder.weight", "encoder.bias", "decoder.bias", "decoder.weight"),  # fmt: skip


@pytest.mark.parametrize("names", [*OLD, *NEW_TIED])
@pytest.mark.parametrize("n_features", [WIDTH, 2 * WIDTH, 5])
@pytest.mark.parametrize("prefix", ["", "autoencoder."])
def test_a_tied_original_checkpoint_computes_what_it_computed(
    names: tuple[str, ...], n_features: int, prefix: str, tmp_path: Path
) -> None:
    state = original(n_features)
    torch.save({prefix + name: tensor for name, tensor in zip(names, state.values())}, tmp_path / "sae.pt")
    weights = read_sae(tmp_path / "sae.pt")
    assert weights.config["architecture"] == "standard" and weights.config["apply_b_dec_to_input"] is False
    assert_original(weights, state)


@pytest.mark.parametrize("names", UNTIED)
@pytest.mark.parametrize("n_features", [WIDTH, 2 * WIDTH, 5])
def test_an_untied_original_checkpoint_computes_what_it_computed(
    names: tuple[str, ...], n_features: int, tmp_path: Path
) -> None:
    state = original(n_features, untied=True)
    torch.save(dict(zip(names, state.values())), tmp_path / "sae.pt")
    assert_original(read_sae(tmp_path / "sae.pt"), state)


@pytest.mark.parametrize("untied", [False, True])
def test_names_that_say_nothing_are_settled_by_shape_where_shapes_differ(untied: bool, tmp_path: Path) -> None:
    state = original(2 * WIDTH, untied=untied)
    torch.save({f"p{at}": tensor for at, tensor in enumerate(state.values())}, tmp_path / "sae.pt")
    assert_original(read_sae(tmp_path / "sae.pt"), state)
    alike = original(WIDTH, untied=untied)
    torch.save({f"p{at}": tensor for at, tensor in enumerate(alike.values())}, tmp_path / "sae.pt")
    with pytest.raises(
        LensError, match=r"do not tell encoder and decoder apart.*p0 \(12, 12\).*Name the tensors encoder"
    ):
        read_sae(tmp_path / "sae.pt")


def test_an_original_checkpoint_is_opened_by_saelens_after_it_was_written(tmp_path: Path) -> None:
    state = original(2 * WIDTH)
    torch.save({"kwargs": {"hidden_size": 24}, "state_dict": state}, tmp_path / "sae.pt")
    folder = tmp_path / read_sae(tmp_path / "sae.pt").write_files(tmp_path)["folder"]
    theirs = quiet_sae_lens().SAE.load_from_disk(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(data()), original_forward(state, data())[1], atol=2e-6, rtol=1e-6)
    assert theirs.cfg.metadata.lfp_layout == "tied"


def test_an_original_checkpoint_in_safetensors_is_read_too(tmp_path: Path) -> None:
    state = original(2 * WIDTH)
    save_file(state, tmp_path / "sae.safetensors")
    assert_original(read_sae(tmp_path / "sae.safetensors"), state)


@pytest.mark.parametrize(
    "state",
    [
        {"encoder": torch.zeros(4, 3)},
        {"encoder": torch.ones(4, 3), "a": torch.zeros(4), "b": torch.zeros(5)},
        {"encoder": torch.ones(4, 3), "a": torch.zeros(4), "b": torch.zeros(3), "more": torch.zeros(3)},
        {"encoder": torch.ones(4, 3), "decoder": torch.ones(3, 5), "a": torch.zeros(4), "b": torch.zeros(3)},
        {"e": torch.ones(4, 3, 1), "a": torch.zeros(4), "b": torch.zeros(3)},
    ],
)
def test_other_tensors_are_no_original_checkpoint(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "sae.pt")
    with pytest.raises(LensError, match=r"no autoencoder of the original code: it holds e\w* \(4, 3"):
        read_sae(tmp_path / "sae.pt")


@pytest.mark.parametrize(
    ("content", "count"),
    [([1, 2], "no"), ({"a": 3}, "no"), ({}, "no"), ({"one": original(4), "two": original(4)}, "2")],
)
def test_a_file_without_one_state_is_refused(content: Any, count: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "sae.pt")
    with pytest.raises(LensError, match=f"holds {count} tables of tensors; one state_dict of one SAE"):
        read_sae(tmp_path / "sae.pt")


class Malicious:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(writer: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "sae.pt"
    content = original(4) | {"more": Malicious(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(LensError, match="other than tensors, which opening would run as code"):
        read_sae(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if writer != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the same file runs its code for a careless reader"


def test_no_part_of_a_file_passes_for_the_whole(tmp_path: Path) -> None:
    torch.save(original(4), tmp_path / "whole.pt")
    torch.save(original(4), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for whole in ("whole.pt", "legacy.pt"):
        content = (tmp_path / whole).read_bytes()
        for share in range(0, 10):
            (tmp_path / "part.pt").write_bytes(content[: len(content) * share // 10])
            with pytest.raises(LensError, match=r"is damaged|cannot be read"):
                read_sae(tmp_path / "part.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "sae.pt").write_bytes(content)
    with pytest.raises(LensError, match=r"is damaged|cannot be read") as caught:
        read_sae(tmp_path / "sae.pt")
    assert "\n" not in str(caught.value)


# Whose dictionary it is.


def test_a_dictionary_belongs_to_the_site_width_and_checkpoint_it_was_trained_on() -> None:
    weights = export(an_sae("standard"), site=SITE, model_name="tiny", fingerprint="abc")
    check_owner(weights, SITE, WIDTH, "abc")
    check_owner(weights, SITE, WIDTH)
    with pytest.raises(LensError, match=r"reads 12 dimensions; blocks\.1\.hook_mlp_out has 16"):
        check_owner(weights, SITE, 16, "abc")
    with pytest.raises(LensError, match=r"trained at blocks\.1\.hook_mlp_out; it cannot read blocks\.2\.hook_mlp_out"):
        check_owner(weights, "blocks.2.hook_mlp_out", WIDTH, "abc")
    with pytest.raises(LensError, match="another checkpoint: its fingerprint is abc, this one's xyz"):
        check_owner(weights, SITE, WIDTH, "xyz")


def test_a_dictionary_that_does_not_say_where_it_is_from_is_asked_for_its_width_alone(tmp_path: Path) -> None:
    torch.save(original(24), tmp_path / "sae.pt")
    weights = read_sae(tmp_path / "sae.pt")
    check_owner(weights, SITE, WIDTH, "xyz")
    with pytest.raises(LensError, match="reads 12 dimensions"):
        check_owner(weights, SITE, 13)
