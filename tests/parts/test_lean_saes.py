"""Lean SAEs: SAELens' own losses and gradients to rounding, from fewer products."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lfp_lens.parts.lean_saes import (
    LeanBatchTopKTrainingSAE,
    LeanJumpReLUTrainingSAE,
    LeanMatryoshkaTrainingSAE,
    LeanStandardTrainingSAE,
    LeanTopKTrainingSAE,
    forget_buffers,
)
from lfp_lens.parts.saes import quiet_sae_lens

WIDTH, FEATURES, TOKENS = 24, 48, 256
lens = quiet_sae_lens()
from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.saes.matryoshka_batchtopk_sae import (  # noqa: E402
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)

SHAPE = {"d_in": WIDTH, "d_sae": FEATURES, "normalize_activations": "expected_average_only_in"}
TOPK = {**SHAPE, "k": 6}
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "standard": (LeanStandardTrainingSAE, lens.StandardTrainingSAE,
                 lens.StandardTrainingSAEConfig(**SHAPE, l1_coefficient=2.0, l1_warm_up_steps=3)),
    "standard, input not centred": (LeanStandardTrainingSAE, lens.StandardTrainingSAE,
                                    lens.StandardTrainingSAEConfig(**SHAPE, l1_coefficient=2.0, apply_b_dec_to_input=False)),
    "topk": (LeanTopKTrainingSAE, lens.TopKTrainingSAE, lens.TopKTrainingSAEConfig(**TOPK)),
    "batchtopk": (LeanBatchTopKTrainingSAE, lens.BatchTopKTrainingSAE, lens.BatchTopKTrainingSAEConfig(**TOPK)),
    "matryoshka": (LeanMatryoshkaTrainingSAE, MatryoshkaBatchTopKTrainingSAE,
                   MatryoshkaBatchTopKTrainingSAEConfig(**TOPK, matryoshka_widths=[12, FEATURES])),
    "jumprelu": (LeanJumpReLUTrainingSAE, lens.JumpReLUTrainingSAE, lens.JumpReLUTrainingSAEConfig(**SHAPE)),
}  # fmt: skip


def data(seed: int) -> torch.Tensor:
    """Sparse sums of planted directions, not centred, so that the decoder bias has something to learn."""
    directions = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    active = (torch.rand(TOKENS, 60, generator=generator) < 0.1) * torch.rand(TOKENS, 60, generator=generator)
    return active @ directions + 0.5


def twins(kind: str) -> list[Any]:
    """The same start twice: ours and SAELens' own, in SAELens' trainer."""
    found = []
    for made in KINDS[kind][:2]:
        torch.manual_seed(3)
        config = SAETrainerConfig(
            total_training_samples=20 * TOKENS, train_batch_size_samples=TOKENS, lr=1e-3, lr_end=1e-4, device="cpu",
            dead_feature_window=5, feature_sampling_window=100, n_batches_for_norm_estimate=1,
        )  # fmt: skip
        sae = made(copy.deepcopy(KINDS[kind][2]))
        with torch.no_grad():
            sae.b_dec.copy_(data(0).mean(0))
        found.append(lens.SAETrainer(cfg=config, sae=sae, data_provider=iter(())))
    return found


def gradients(trainer: Any) -> dict[str, torch.Tensor]:
    from sae_lens.saes.sae import TrainStepInput

    given = TrainStepInput(data(1), {name: one.value or 0.7 for name, one in trainer.coefficient_schedulers.items()},
                           torch.arange(FEATURES) < 8, 1, False)  # fmt: skip
    output = trainer.sae.training_forward_pass(given)
    output.loss.backward()
    found = {name: weight.grad.clone() for name, weight in trainer.sae.named_parameters()}
    return (
        found | {name: part.detach().clone() for name, part in output.losses.items()} | {"loss": output.loss.detach()}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_of_one_step_are_saelens_own_to_1e_5(kind: str) -> None:
    ours, theirs = (gradients(trainer) for trainer in twins(kind))
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert float((ours[name] - wanted).norm()) <= 1e-5 * float(wanted.norm()), name
    assert float(theirs["b_dec"].norm()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_weights_after_20_steps_are_saelens_own_to_1e_3(kind: str) -> None:
    pair = twins(kind)
    for step in range(20):
        for trainer in pair:
            trainer.step(data(step))
            trainer.n_training_steps += 1
    ours, theirs = (trainer.sae.state_dict() for trainer in pair)
    for name, wanted in theirs.items():
        assert float((ours[name] - wanted).norm()) <= 1e-3 * float(wanted.norm()), name
    assert torch.equal(pair[0].n_forward_passes_since_fired, pair[1].n_forward_passes_since_fired)


@pytest.mark.parametrize("kind", ["standard", "topk", "batchtopk", "jumprelu"])
def test_a_step_takes_five_products_where_saelens_takes_six(kind: str) -> None:
    one = 2 * TOKENS * WIDTH * FEATURES
    counts, batch = [], data(0)
    for trainer in twins(kind):
        with FlopCounterMode(display=False) as counter:
            trainer.step(batch)
        counts.append(counter.get_total_flops() / one)
    assert counts == pytest.approx([5, 6], abs=0.01)


def test_in_bfloat16_the_gradients_are_those_of_fp32_to_its_precision() -> None:
    exact, _ = twins("standard")
    rough, _ = twins("standard")
    wanted = gradients(exact)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(rough)
    for name in ("W_enc", "W_dec", "b_enc"):
        assert 1e-5 < float((found[name] - wanted[name]).norm() / wanted[name].norm()) < 0.03, name
        assert found[name].dtype == torch.float32


def test_a_hooked_sae_takes_saelens_own_way() -> None:
    trainer, _ = twins("standard")
    seen: list[tuple[int, ...]] = []
    trainer.sae.hook_sae_acts_post.add_hook(lambda acts, hook: seen.append(tuple(acts.shape)))
    trainer.step(data(0))
    assert seen == [(TOKENS, FEATURES)]


def test_buffers_can_be_given_back() -> None:
    from lfp_lens.parts import lean_saes

    trainer, _ = twins("standard")
    trainer.step(data(0))
    assert lean_saes._buffers
    forget_buffers()
    assert not lean_saes._buffers
