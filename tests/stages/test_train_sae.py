"""train_sae: every SAE is there and repeats, and no padding or bos is ever seen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.activations import encode
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.saes import ARCHITECTURES, load_sae, quiet_sae_lens
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.train_sae import train_sae
from tests.tiny import perturbed, tiny_model, tiny_pair, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(80)
SITES = ("blocks.2.hook_mlp_out", "blocks.0.hook_mlp_out")
SHORT: dict[str, Any] = {"tokens": 512, "batch_tokens": 128, "heldout_tokens": 100, "architecture": "topk"}
QUALITY = ("explained_variance", "untrained_explained_variance", "l0", "dead_share", "mse", "n_heldout_tokens")


def trained(pair: Pair, sites: Any = SITES, texts: list[str] = TEXTS, **changes: Any) -> SAESet:
    return train_sae(pair, sites, texts, **(SHORT | changes))


@pytest.fixture(scope="module")
def saes() -> SAESet:
    return trained(tiny_pair())


def test_every_side_site_and_size_is_there(saes: SAESet) -> None:
    found = {(sae.side, sae.site, sae.size) for sae in saes.saes}
    assert found == {(side, site, size) for side in ("base", "tuned") for site in SITES for size in (1.0, 2.0)}
    assert len(saes.saes) == 8
    assert saes.sites == SITES[::-1]
    assert all(sae.n_features == 16 * sae.size for sae in saes.saes)
    assert all(sae.n_train_tokens == 512 for sae in saes.saes)
    assert saes.pair == tiny_pair().fingerprint
    matched = {(match.relation, match.left) for match in saes.matches}
    assert matched >= {("sizes", sae.name) for sae in saes.saes if sae.size == 1}
    assert matched >= {("sides", sae.name) for sae in saes.saes if sae.side == "base"}
    assert all(set(sae.floors) == {"untrained", "pca", "random_model"} for sae in saes.saes)
    assert len(saes.curve) == 8
    assert all(len(losses) == 4 and np.isfinite(losses).all() for losses in saes.curve.values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(saes: SAESet) -> None:
    torch.rand(7)  # what was drawn before must not matter
    again, other = trained(tiny_pair()), trained(tiny_pair(), seed=1)
    assert all(one.weights == two.weights for one, two in zip(saes.saes, again.saes))
    assert not any(one.weights == two.weights for one, two in zip(saes.saes, other.saes))
    assert [sae.explained_variance for sae in saes.saes] == [sae.explained_variance for sae in again.saes]


def test_the_callers_random_numbers_go_on_undisturbed() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    trained(tiny_pair(), SITES[:1], sizes=(1,), sides=("tuned",))
    assert torch.equal(torch.rand(3), wanted)


def test_the_order_of_the_sites_does_not_matter(saes: SAESet) -> None:
    other = trained(tiny_pair(), SITES[::-1])
    assert [sae.site for sae in other.saes] == [sae.site for sae in saes.saes]
    assert all(one.weights == two.weights for one, two in zip(saes.saes, other.saes))


def test_training_lowers_the_loss_and_explains_what_the_untrained_one_does_not() -> None:
    found = trained(tiny_pair(), SITES[1:], sizes=(2,), sides=("tuned",), tokens=40_000, k=6)
    (sae,) = found.saes
    assert sae.explained_variance > 0.8 > sae.untrained_explained_variance
    assert sae.kl_recovered > 0.8
    assert sae.l0 == pytest.approx(6, abs=0.5)
    (losses,) = found.curve.values()
    assert losses[-10:].mean() < losses[:10].mean() / 2


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_architecture_runs_and_its_stored_saes_open_in_saelens(architecture: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = trained(tiny_pair(), SITES[:1], sizes=(1,), sides=("tuned",), architecture=architecture, store=store)
    (record,) = found.saes
    assert record.architecture == architecture
    assert np.isfinite([getattr(record, name) for name in QUALITY]).all()
    (folder,) = tmp_path.glob(f"train_sae-*/saes/{record.weights.fingerprint}")
    opened = quiet_sae_lens().SAE.load_from_disk(folder)
    assert opened.cfg.metadata.hook_name == SITES[0]
    acts_ND = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
    ours = load_sae(record)
    assert torch.equal(opened.encode(acts_ND), ours.encode(acts_ND))
    assert torch.equal(opened(acts_ND), ours(acts_ND))


def test_the_tied_sae_ties_its_encoder_to_its_unit_norm_decoder() -> None:
    (record,) = trained(tiny_pair(), SITES[:1], sizes=(2,), sides=("tuned",), architecture="tied").saes
    tensors = record.weights.tensors
    assert np.array_equal(tensors["W_enc"], tensors["W_dec"].T)
    assert np.linalg.norm(tensors["W_dec"], axis=1) == pytest.approx(np.ones(32), rel=1e-5)


def test_a_stored_set_is_found_again_and_equals_the_one_in_memory(saes: SAESet, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = trained(tiny_pair(), store=store)
    folders = sorted(path.name for path in tmp_path.iterdir())
    again = trained(tiny_pair(), store=store)
    assert sorted(path.name for path in tmp_path.iterdir()) == folders
    for one, two, three in zip(saes.saes, first.saes, again.saes):
        assert one.weights == two.weights == three.weights
        assert one.explained_variance == two.explained_variance == three.explained_variance
        assert np.array_equal(one.firing_rate, three.firing_rate)


# --- what an SAE must never see ---


@contextmanager
def poisoned(model: Any) -> Iterator[None]:
    """Layer 0 gives a huge activation wherever the token is 0: at every padding and beginning-of-text."""
    seen: dict[str, torch.Tensor] = {}

    def remember(layer: Any, args: Any) -> None:
        seen["ids"] = args[0]

    def poison(layer: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return torch.where((seen["ids"] == 0)[..., None], torch.full_like(out, 1e6), out)

    handles = [
        model.get_input_embeddings().register_forward_pre_hook(remember),
        model.gpt_neox.layers[0].mlp.register_forward_hook(poison),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_padding_and_the_beginning_of_text_never_reach_an_sae() -> None:
    pair = load_pair(tiny_model(), perturbed(tiny_model()), tokenizer=tiny_tokenizer())
    clean = trained(pair, SITES[1:], sides=("tuned",))
    with poisoned(pair.tuned_hf):
        other = trained(pair, SITES[1:], sides=("tuned",))
    for one, two in zip(clean.saes, other.saes):
        assert one.weights == two.weights
        assert [getattr(one, name) for name in QUALITY] == [getattr(two, name) for name in QUALITY]


def test_a_beginning_of_text_token_written_into_a_text_reaches_none_either() -> None:
    """Texts are untrusted: one may hold the characters of a special token."""
    pair = load_pair(tiny_model(), perturbed(tiny_model()), tokenizer=tiny_tokenizer())
    texts = [f"{text[:20]}<|endoftext|>{text[20:]}" for text in TEXTS]
    assert encode(pair.tokenizer, texts[:1], max_tokens=64)[0].ids.count(0) == 2
    clean = trained(pair, SITES[1:], texts, sides=("tuned",))
    with poisoned(pair.tuned_hf):
        other = trained(pair, SITES[1:], texts, sides=("tuned",))
    for one, two in zip(clean.saes, other.saes):
        assert one.weights == two.weights
        assert [getattr(one, name) for name in QUALITY] == [getattr(two, name) for name in QUALITY]


def test_the_held_out_texts_are_never_trained_on() -> None:
    """The last tenth may be anything: the weights are the same."""
    other = [*TEXTS[:72], *tiny_texts(8, seed=9)]
    one, two = (
        trained(tiny_pair(), SITES[1:], texts, sizes=(1,), sides=("tuned",)).saes[0] for texts in (TEXTS, other)
    )
    assert one.weights == two.weights
    assert one.mse != two.mse


def test_few_texts_are_cycled_through() -> None:
    """Some 200 tokens of text feed 2,048 tokens of training."""
    (record,) = trained(tiny_pair(), SITES[:1], TEXTS[:20], sizes=(1,), sides=("tuned",), tokens=2048).saes
    assert record.n_train_tokens == 2048
    assert record.n_heldout_tokens < 50


def test_tokens_are_whole_batches() -> None:
    (record,) = trained(tiny_pair(), SITES[:1], sizes=(1,), sides=("tuned",), tokens=300).saes
    assert record.n_train_tokens == 256


@pytest.mark.parametrize(
    ("sites", "texts", "changes", "message"),
    [
        ((), TEXTS, {}, "sites must be a list of at least one site, each once; () given."),
        (SITES[0], TEXTS, {}, "sites must be a list of at least one site"),
        ((SITES[0], SITES[0]), TEXTS, {}, "each once"),
        (SITES, TEXTS, {"sides": ("tuned", "random")}, "Unknown side 'random'. Known: base, both, difference, tuned."),
        (SITES, TEXTS, {"sizes": ()}, "sizes must be a list of at least one size"),
        (("blocks.9.hook_mlp_out",), TEXTS, {}, "does not exist: the model has layers 0 to 2."),
        (("blocks.1.hook_mlp_ot",), TEXTS, {}, "Unknown hook 'hook_mlp_ot'. Did you mean 'hook_mlp_out'?"),
        (("layer 3",), TEXTS, {}, "'layer 3' is no site"),
        (SITES, TEXTS, {"architecture": "topp"}, "Unknown SAE architecture 'topp'. Did you mean 'topk'?"),
        (SITES, [], {}, "No texts were given."),
        (SITES, TEXTS[:1], {}, "The training texts hold 0 tokens; one batch needs batch_tokens=128"),
        (SITES, TEXTS[:9], {}, "tokens; one batch needs batch_tokens=128: give more texts."),
        (SITES, [*TEXTS[:18], "", ""], {}, "The 2 held-out texts, the last tenth, hold no tokens"),
        (SITES, TEXTS, {"tokens": 100}, "tokens=100 must hold at least one batch of batch_tokens=128"),
        (SITES, TEXTS, {"k": 17, "sizes": (1,)}, "k=17 features cannot be active at once in an SAE of 16."),
        (SITES, TEXTS, {"sizes": (0.01,)}, "An SAE of size 0.01 on 16 dimensions has no features."),
        (SITES, TEXTS, {"lr": float("inf")}, "lr must be a finite number above 0; inf given."),
        (SITES, TEXTS, {"max_tokens": 1}, "max_tokens must be at least 2; 1 given."),
    ],
)
def test_what_cannot_be_trained_is_refused(sites: Any, texts: list[str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError) as caught:
        trained(tiny_pair(), sites, texts, **changes)
    assert message in str(caught.value)


def test_activations_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    pair = load_pair(tiny_model(), perturbed(tiny_model()), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        pair.tuned_hf.gpt_neox.layers[0].mlp.dense_4h_to_h.bias[0] = float("nan")
    store = Store(tmp_path)
    with pytest.raises(LensError, match=r"Activations of the tuned model at blocks\.0\.hook_mlp_out are not finite"):
        trained(pair, SITES[1:], sides=("tuned",), architecture="standard", store=store)
    assert list(tmp_path.iterdir()) == []
