"""The sparse TopK step is SAELens' TopK step: same loss, same features, same gradients, same training."""

import copy
from typing import Any

import pytest
import torch

from lfp_lens.parts.saes import quiet_sae_lens

lens = quiet_sae_lens()

from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.saes.sae import TrainStepInput  # noqa: E402

from lfp_lens.parts.sparse_topk import SparseTopKTrainingSAE, _by_feature  # noqa: E402

WIDTH, FEATURES, K, BATCH = 12, 40, 5, 64


def both(**settings: Any) -> tuple[Any, Any]:
    """Give our SAE and SAELens' with the same weights, none of a special form."""
    config = lens.TopKTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES, k=K, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours, theirs = SparseTopKTrainingSAE(copy.deepcopy(config)), lens.TopKTrainingSAE(config)
        with torch.no_grad():
            for weight in ours.parameters():
                weight += 0.2 * torch.randn(weight.shape)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def data(n: int = BATCH, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def step(sae: Any, dead: torch.Tensor | None = None) -> Any:
    given = TrainStepInput(
        sae_in=data(), coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
    )
    out = sae.training_forward_pass(given)
    sae.zero_grad()
    out.loss.backward()
    return out


DEAD = {
    "none": [],
    "one": [3],
    "some": [0, 7, 8, 39],
    "more than half the width": list(range(10)),
    "all": list(range(FEATURES)),
}


@pytest.mark.parametrize("dead", list(DEAD))
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_one_step_has_the_loss_the_features_and_the_gradients_of_saelens(
    dead: str, rescaled: bool, centred: bool
) -> None:
    ours, theirs = both(rescale_acts_by_decoder_norm=rescaled, apply_b_dec_to_input=centred)
    mask = torch.zeros(FEATURES, dtype=torch.bool)
    mask[DEAD[dead]] = True
    one, other = step(ours, mask), step(theirs, mask)
    assert one.losses.keys() == other.losses.keys()
    assert float(one.losses["auxiliary_reconstruction_loss"].detach()) > 0 or dead == "none"
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-6, atol=0)
    for name in ("feature_acts", "hidden_pre", "sae_out"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)
    for (name, weight), wanted in zip(ours.named_parameters(), theirs.parameters()):
        assert weight.grad is not None and wanted.grad is not None and float(wanted.grad.norm()) > 1e-3, name
        assert float((weight.grad - wanted.grad).norm() / wanted.grad.norm()) < 1e-5, name


def test_twenty_steps_of_training_end_at_the_weights_of_saelens() -> None:
    trained, revived = both(), 0.0
    for sae in trained:
        config = SAETrainerConfig(
            total_training_samples=20 * BATCH, train_batch_size_samples=BATCH, lr=1e-2, lr_end=1e-3, device="cpu",
            dead_feature_window=5, feature_sampling_window=50, n_batches_for_norm_estimate=1,
        )  # fmt: skip
        trainer = lens.SAETrainer(cfg=config, sae=sae, data_provider=iter(()))
        with torch.random.fork_rng():
            for at in range(20):
                revived += float(trainer.step(data(seed=at)).losses["auxiliary_reconstruction_loss"].detach())
                trainer.n_training_steps += 1
    assert revived > 0, "dead features were revived on the way"
    ours, theirs = trained
    for weight, wanted in zip(ours.parameters(), theirs.parameters()):
        assert float(((weight - wanted).norm() / wanted.norm()).detach()) < 1e-3


def test_a_feature_that_no_token_chose_has_no_gradient() -> None:
    ours, _ = both()
    with torch.no_grad():
        ours.b_enc[4] = -1e3
    step(ours)
    assert ours.W_dec.grad is not None and not ours.W_dec.grad[4].any() and not ours.W_enc.grad[:, 4].any()
    assert ours.b_enc.grad[4] == 0 and ours.b_enc.grad.any()


def test_a_chosen_feature_below_zero_has_no_gradient() -> None:
    ours, theirs = both()
    for sae in (ours, theirs):
        with torch.no_grad():
            sae.b_enc.fill_(-2.0)
        out = step(sae)
    assert int((out.feature_acts > 0).sum(-1).min()) < K, "some of the k chosen are below zero"
    torch.testing.assert_close(ours.W_enc.grad, theirs.W_enc.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.b_enc.grad, theirs.b_enc.grad, rtol=1e-5, atol=1e-6)


def test_pairs_are_sorted_by_feature() -> None:
    tokens, order, starts = _by_feature(torch.tensor([[2, 0], [2, 4], [0, 4]]), 6)
    assert tokens.tolist() == [0, 2, 0, 1, 1, 2]  # Feature 0: tokens 0 and 2; 2: 0 and 1; 4: 1 and 2.
    assert order.tolist() == [1, 4, 0, 2, 3, 5]
    assert starts.tolist() == [0, 2, 2, 4, 4, 6]


def test_a_hooked_sae_and_half_precision_take_the_dense_way() -> None:
    ours, theirs = both()
    for sae in (ours, theirs):
        sae.add_hook("hook_sae_acts_post", lambda acts, hook: acts * 0.5)
    torch.testing.assert_close(step(ours).sae_out, step(theirs).sae_out)
    for sae in (ours, theirs):
        sae.reset_hooks()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(step(ours).sae_out.float(), step(theirs).sae_out.float(), rtol=0.05, atol=0.05)
