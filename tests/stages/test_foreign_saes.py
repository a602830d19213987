"""load_saes: dictionaries trained elsewhere are judged as our own are, checked against the pair, and later verbs take them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.activations import encode
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import ARCHITECTURES, export, new_sae, quiet_sae_lens
from lfp_lens.parts.sites import activations_at
from lfp_lens.results.train_sae import SAERecord, SAESet, SAEWeights
from lfp_lens.stages.attribute import attribute
from lfp_lens.stages.explain import explain
from lfp_lens.stages.train_sae import load_saes, train_sae
from tests.tiny import tiny_pair, tiny_texts, word_saes

SITE, OTHER = "blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out"
TEXTS = tiny_texts(400)
SHORT: dict[str, Any] = {"heldout_tokens": 300, "spliced_tokens": 200}
JUDGED = ("explained_variance", "explained_variance_low", "kl_recovered", "kl_recovered_high", "ce_recovered", "l0",
          "dead_share", "shrinkage", "mse", "n_heldout_tokens", "n_spliced_tokens")  # fmt: skip


def written(weights: SAEWeights, folder: Path) -> Path:
    return folder / weights.write_files(folder)["folder"]


def figures(sae: Any, names: tuple[str, ...] = JUDGED) -> list[float]:
    return [getattr(sae, name) for name in names]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_stored_sae_is_judged_as_it_was_where_it_was_trained(architecture: str, tmp_path: Path) -> None:
    pair = tiny_pair()
    trained = train_sae(
        pair, [SITE, OTHER], TEXTS, sizes=(1,), sides=("tuned",), architecture=architecture, tokens=8192,
        batch_tokens=512, random_twin=False, **SHORT,
    )  # fmt: skip
    folders = {sae.site: written(sae.weights, tmp_path) for sae in trained.saes}
    loaded = load_saes(pair, folders, TEXTS, **SHORT)
    for ours, theirs in zip(trained.saes, loaded.saes, strict=True):
        assert (theirs.side, theirs.site, theirs.size) == (ours.side, ours.site, ours.size)
        # A top-k dictionary is brought to rows of length 1 when it is read, which rounds.
        np.testing.assert_allclose(figures(theirs), figures(ours), atol=1e-6)
        assert theirs.floors["pca"].explained_variance == ours.floors["pca"].explained_variance
        assert "untrained" in theirs.floors
        assert (theirs.n_train_tokens, theirs.lr, theirs.l1) == (0, 0, None)
    assert (loaded.pair, loaded.sites) == (pair.fingerprint, (SITE, OTHER))
    kept = load_saes(pair, {sae.site: sae for sae in trained.saes}, TEXTS, **SHORT)
    for ours, again in zip(trained.saes, kept.saes, strict=True):
        assert again.name == ours.name, "a record keeps what it knows of its training"
        np.testing.assert_array_equal(figures(again), figures(ours))
        assert figures(again.floors["untrained"], ("explained_variance", "l0")) == figures(
            ours.floors["untrained"], ("explained_variance", "l0")
        )


def test_an_sae_that_saelens_runner_trained_is_opened_judged_and_used(tmp_path: Path) -> None:
    """Trained by SAELens' own runner on the hooked model, saved by it, and never seen by our trainer."""
    pair = tiny_pair()
    _train_with_saelens(pair, tmp_path)
    (folder,) = {path.parent for path in tmp_path.rglob("sae_weights.safetensors")}
    (sae,) = load_saes(pair, {SITE: folder}, TEXTS, **SHORT).saes
    assert (sae.architecture, sae.n_features, sae.size) == ("standard", 32, 2.0)
    # By hand, with SAELens' own reader, on all content tokens of the held-out texts.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says how to load a model from the hub.
        theirs = quiet_sae_lens().SAE.load_from_disk(folder)
    whole = load_saes(pair, {SITE: folder}, TEXTS, heldout_tokens=10**6, spliced_tokens=200).saes[0]
    acts_ND = torch.cat([
        activations_at(pair.tuned_hf, torch.tensor([text.ids]), torch.ones(1, len(text.ids)), [SITE])[SITE][0, 1:]
        for text in encode(pair.tokenizer, TEXTS[360:], max_tokens=96)
    ])  # fmt: skip
    with torch.no_grad():
        error = (theirs(acts_ND) - acts_ND).square().sum()
        active = (theirs.encode(acts_ND) > 0).float().sum(1).mean()
    variance = (acts_ND - acts_ND.mean(0)).square().sum()
    assert whole.n_heldout_tokens == len(acts_ND)
    assert whole.explained_variance == pytest.approx(float(1 - error / variance), abs=1e-5)
    assert whole.l0 == pytest.approx(float(active), abs=1e-4)
    assert whole.explained_variance > 0.5 > whole.floors["untrained"].explained_variance


def _train_with_saelens(pair: Pair, folder: Path) -> None:
    from datasets import Dataset

    lens = quiet_sae_lens()
    ids = [token for text in encode(pair.tokenizer, TEXTS[:360], max_tokens=96) for token in text.ids[1:]]
    rows = np.array(ids[: len(ids) // 32 * 32]).reshape(-1, 32)
    sae = lens.StandardTrainingSAEConfig(d_in=16, d_sae=32, l1_coefficient=0.1, l1_warm_up_steps=10)
    config = lens.LanguageModelSAERunnerConfig(
        sae=sae, hook_name=SITE, verbose=False, model_name="tiny", dataset_path="local", streaming=False,
        context_size=32, training_tokens=40_000, store_batch_size_prompts=8, n_batches_in_buffer=16,
        train_batch_size_tokens=128, lr=3e-3, device="cpu", prepend_bos=False, n_checkpoints=0,
        checkpoint_path=None, output_path=str(folder / "out"), logger=lens.LoggingConfig(log_to_wandb=False), seed=0,
    )  # fmt: skip
    dataset = Dataset.from_dict({"input_ids": rows.tolist()})
    with warnings.catch_warnings():
        # So few texts are cycled through, which SAELens warns of.
        warnings.simplefilter("ignore")
        lens.LanguageModelSAETrainingRunner(config, override_model=pair.tuned, override_dataset=dataset).run()


# --- several at one site, and what later verbs do with them ---


def test_two_sizes_at_a_site_are_matched_and_explained_by_mmcs(tmp_path: Path) -> None:
    pair = tiny_pair()
    small = word_saes(pair, ("wonderful", "terrible", "table")).one(SITE).weights
    large = word_saes(pair, ("wonderful", "terrible", "table", "river"), silent=4).one(SITE).weights
    loaded = load_saes(pair, {SITE: [written(small, tmp_path), written(large, tmp_path)]}, TEXTS, **SHORT)
    assert [sae.size for sae in loaded.saes] == [4 / 16, 8 / 16]
    match = loaded.match(loaded.one(SITE), "sizes")
    np.testing.assert_allclose(match.left_largest[:3], 1, atol=1e-5)
    labels = explain(pair, loaded, TEXTS, k=3, gate="warn")
    assert set(labels.description) == {"fires on: wonderful", "fires on: terrible", "fires on: table"}


def test_attribute_and_the_floors_take_loaded_saes(tmp_path: Path) -> None:
    pair = tiny_pair()
    weights = word_saes(pair, ("wonderful", "terrible")).one(SITE).weights
    loaded = load_saes(pair, {SITE: written(weights, tmp_path)}, TEXTS, **SHORT)
    effects = attribute(pair, loaded, TEXTS[:64], confirm=2, gate="warn")
    assert {(site, index) for site, index in zip(effects.site, effects.index)} >= {(SITE, 0), (SITE, 1)}
    for kind in ("untrained", "pca"):
        assert len(attribute(pair, loaded.floor(kind), TEXTS[:64], confirm=2, gate="warn").index)


def test_dictionaries_alike_in_shape_are_told_apart_by_number() -> None:
    pair = tiny_pair()
    several = [fresh(seed) for seed in range(3)]
    loaded = load_saes(pair, {SITE: several}, TEXTS, **SHORT)
    assert [sae.seed for sae in loaded.saes] == [0, 1, 2]
    assert len({sae.name for sae in loaded.saes}) == 3
    assert all(sae.stability is not None for sae in loaded.saes)
    assert [sae.weights for sae in loaded.saes] == several


def test_dictionaries_of_the_base_and_of_the_difference_are_read_where_they_belong() -> None:
    pair = tiny_pair()
    for side in ("base", "difference"):
        (sae,) = load_saes(pair, {SITE: fresh(0)}, TEXTS, side=side, **SHORT).saes
        assert sae.side == side and np.isfinite(sae.explained_variance)


def test_a_stored_set_is_found_again_by_content(tmp_path: Path) -> None:
    pair, store = tiny_pair(), Store(tmp_path / "run")
    first = load_saes(pair, {SITE: written(fresh(0), tmp_path / "here")}, TEXTS, store=store, **SHORT)
    again = load_saes(pair, {SITE: written(fresh(0), tmp_path / "there")}, TEXTS, store=store, **SHORT)
    assert len(list(store.root.glob("train_sae-*"))) == 1
    np.testing.assert_array_equal(figures(first.saes[0]), figures(again.saes[0]))
    assert isinstance(store.read("train_sae"), SAESet)
    load_saes(pair, {SITE: fresh(1)}, TEXTS, store=store, **SHORT)
    assert len(list(store.root.glob("train_sae-*"))) == 2


# --- refusals ---


def fresh(seed: int, width: int = 16, *, site: str | None = None, owner: str | None = None) -> SAEWeights:
    """A dictionary as initialised, which says where it is from only if told."""
    sae = new_sae("standard", d_in=width, d_sae=24, l1=None, k=None, steps=1, seed=seed)
    sae.fold_activation_norm_scaling_factor(0.7)
    weights = export(sae, site=site or SITE, model_name="tiny", fingerprint=owner)
    if site is None:
        weights.config["metadata"] = {}
    return weights


def scaled() -> SAEWeights:
    """A dictionary whose scale of training inputs is not in its weights."""
    weights = fresh(0)
    return SAEWeights(weights.config | {"normalize_activations": "expected_average_only_in"}, weights.tensors)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({SITE: fresh(0, width=20)}, "The SAE reads 20 dimensions; blocks.0.hook_mlp_out has 16."),
        ({OTHER: fresh(0, site=SITE)}, "was trained at blocks.0.hook_mlp_out; it cannot read blocks.2.hook_mlp_out"),
        ({SITE: fresh(0, owner="abc", site=SITE)}, "trained on another checkpoint: its fingerprint is abc"),
        ({"blocks.9.hook_mlp_out": fresh(0)}, "does not exist: the model has layers 0 to 2."),
        ({"layer 3": fresh(0)}, "'layer 3' is no site"),
        ({SITE: "nowhere/at/all"}, "There is no SAE at nowhere/at/all"),
        ({SITE: scaled()}, "takes scaled inputs (expected_average_only_in)"),
        ({SITE: 3}, "an SAEWeights or an SAERecord; a int was given for blocks.0.hook_mlp_out"),
        ({SITE: []}, "saes holds no dictionary"),
        ({}, "saes maps each site to its dictionary"),
        ("folder", "saes maps each site to its dictionary"),
    ],
)  # fmt: skip
def test_what_does_not_belong_here_is_refused(given: Any, message: str) -> None:
    with pytest.raises(LensError) as caught:
        load_saes(tiny_pair(), given, TEXTS, **SHORT)
    assert message in str(caught.value)


def test_an_sae_of_our_own_is_refused_by_another_pair_and_by_the_other_side(tmp_path: Path) -> None:
    pair = tiny_pair()
    (sae,) = train_sae(
        pair, [SITE], TEXTS, sizes=(1,), sides=("tuned",), tokens=512, batch_tokens=128, random_twin=False, **SHORT
    ).saes
    folder = written(sae.weights, tmp_path)
    with pytest.raises(LensError, match="trained on another checkpoint"):
        load_saes(tiny_pair(seed=4), {SITE: folder}, TEXTS, **SHORT)
    with pytest.raises(LensError, match="trained on another checkpoint"):
        load_saes(pair, {SITE: folder}, TEXTS, side="base", **SHORT)
    for place, side in ((OTHER, "tuned"), (SITE, "base")):
        with pytest.raises(LensError, match=f"it was given for {place} of {side}"):
            load_saes(pair, {place: sae}, TEXTS, side=side, **SHORT)
    with pytest.raises(LensError, match="Two SAEs of one name or one content"):
        load_saes(pair, {SITE: [sae, sae]}, TEXTS, **SHORT)
    with pytest.raises(LensError, match="or one content"):
        load_saes(pair, {SITE: [sae.weights, sae.weights]}, TEXTS, **SHORT)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (TEXTS, {"side": "both"}, "A crosscoder reads both models at once: train one with train_sae"),
        (TEXTS, {"side": "tune"}, "Unknown side 'tune'. Did you mean 'tuned'?"),
        ([], {}, "No texts were given."),
        (["one text"], {}, "The texts before the last tenth hold no tokens"),
        ([*TEXTS[:18], "", ""], {}, "The held-out texts hold no tokens"),
    ],
)
def test_texts_and_sides_that_cannot_do_are_refused(texts: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError) as caught:
        load_saes(tiny_pair(), {SITE: fresh(0)}, texts, **(SHORT | changes))
    assert message in str(caught.value)


def test_a_record_is_told_from_bare_weights(tmp_path: Path) -> None:
    sae = word_saes(tiny_pair(), ("wonderful", "terrible")).one(SITE)
    assert isinstance(sae, SAERecord)
    record, bare = (load_saes(tiny_pair(), {SITE: one}, TEXTS, **SHORT).saes[0] for one in (sae, sae.weights))
    assert (record.l1, record.lr, record.n_train_tokens) == (sae.l1, sae.lr, sae.n_train_tokens)
    assert (bare.l1, bare.lr, bare.n_train_tokens) == (None, 0, 0)
    np.testing.assert_array_equal(figures(record), figures(bare))
