"""Training SAEs: SAELens' own weights come out, a killed run goes on bit by bit, a cache changes nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.cache import cache
from lfp_lens.parts.harvest import Stream
from lfp_lens.parts.saes import ARCHITECTURES
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.train_sae import checkpoint, train_sae, training
from lfp_lens.stages.train_sae.learner import Learner, Schedule, Trained
from lfp_lens.stages.train_sae.plan import Spec, make_specs
from lfp_lens.stages.train_sae.training import train
from tests.tiny import tiny_pair, tiny_texts

WIDTH, SITE = 12, "blocks.0.hook_mlp_out"
STREAM: Stream = ("tuned", SITE)
SCHEDULE = Schedule(steps=8, batch_tokens=64)
TEXTS = tiny_texts(80)
SHORT: dict[str, Any] = {"tokens": 1024, "batch_tokens": 128, "heldout_tokens": 100, "spliced_tokens": 100,
                         "architecture": "topk", "random_twin": False}  # fmt: skip


class Planted:
    """Sparse sums of fixed directions, block after block; it can stop as if the power went."""

    block_tokens = 128

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at, self.given = fail_at, list[int]()

    def blocks(self, start: int, sizes: Sequence[int]) -> Iterator[Mapping[Stream, torch.Tensor]]:
        directions = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1))
        for number in range(start, len(sizes)):
            if number == self.fail_at:
                raise KeyboardInterrupt
            self.given.append(number)
            generator = torch.Generator().manual_seed(number)
            active = torch.rand(sizes[number], 20, generator=generator) * (
                torch.rand(sizes[number], 20, generator=generator) < 0.2
            )
            yield {STREAM: active @ directions + 0.1}


def specs(architecture: str, sizes: Sequence[float] = (1, 2)) -> list[Spec]:
    settings = {"architecture": architecture, "l1": None, "k": None, "lr": 1e-3}
    return make_specs([SITE], sizes, ["tuned"], settings, width=WIDTH, seeds=[0])


def weights(trained: Mapping[Spec, Trained]) -> list[torch.Tensor]:
    return [
        tensor for one in trained.values() for sae in (one.sae, one.untrained) for tensor in sae.state_dict().values()
    ]


def same(one: Mapping[Spec, Trained], two: Mapping[Spec, Trained]) -> bool:
    curves = all(np.array_equal(one[spec].curve, two[spec].curve) for spec in one)
    return curves and all(torch.equal(left, right) for left, right in zip(weights(one), weights(two)))


def test_where_the_operations_are_saelens_own_the_weights_are_its_trainers_bit_by_bit() -> None:
    """A gated SAE takes SAELens' own step: the same start and the same order of data through `SAETrainer.fit`."""
    (spec,) = specs("gated", (2,))
    ours = train([spec], Planted(), SCHEDULE)[spec]
    trainer = Learner(spec, SCHEDULE).trainer
    sizes = SCHEDULE.block_sizes(Planted.block_tokens)
    blocks = [block[STREAM].clone() for block in Planted().blocks(0, sizes)]
    batches = [batch for block in blocks for batch in block.split(SCHEDULE.batch_tokens)]
    trainer.data_provider = iter(batches)
    trainer.activation_scaler.scaling_factor = float(WIDTH**0.5 / blocks[0].norm(dim=-1).mean())
    theirs = trainer.fit()
    for name, wanted in theirs.state_dict().items():
        assert torch.equal(ours.sae.state_dict()[name], wanted), name


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("cut", [1, 3])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(
    architecture: str, cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    whole = train(specs(architecture), Planted(), SCHEDULE)
    with pytest.raises(KeyboardInterrupt):
        train(specs(architecture), Planted(fail_at=cut), SCHEDULE, work=tmp_path)
    rest = Planted()
    resumed = train(specs(architecture), rest, SCHEDULE, work=tmp_path)
    assert rest.given == list(range(cut, 4)), "blocks that were done are not done again"
    assert same(whole, resumed)


def test_a_checkpoint_that_is_damaged_or_another_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    with pytest.raises(KeyboardInterrupt):
        train(specs("topk"), Planted(fail_at=2), SCHEDULE, work=tmp_path)
    with pytest.raises(LensError, match=r"is another run's\. Delete .* to start again"):
        train(specs("topk"), Planted(), Schedule(steps=6, batch_tokens=64), work=tmp_path)
    (first, *_) = sorted(tmp_path.glob("sae-*.safetensors"))
    first.write_bytes(b"not tensors")
    with pytest.raises(LensError, match=r"cannot be read .* to start again"):
        train(specs("topk"), Planted(), SCHEDULE, work=tmp_path)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", -1)
    with pytest.raises(KeyboardInterrupt):
        train(specs("topk"), Planted(fail_at=3), SCHEDULE, work=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sae-0-3.safetensors",
        "sae-1-3.safetensors",
        checkpoint.INDEX,
    ]


def test_a_loss_that_is_not_finite_names_the_sae_and_the_step() -> None:
    (spec,) = make_specs([SITE], [1], ["tuned"], {"architecture": "standard", "l1": None, "k": None, "lr": 1e30},
                         width=WIDTH, seeds=[0])  # fmt: skip
    with pytest.raises(
        LensError, match=r"The SAE loss of tuned blocks\.0\.hook_mlp_out x1 standard seed 0 is not finite at step 1"
    ):
        train([spec], Planted(), SCHEDULE)


def test_saes_of_two_sizes_or_sides_do_not_begin_alike() -> None:
    """SAEs that shared rows at the start would match each other whatever they learned."""
    settings = {"architecture": "topk", "l1": None, "k": None, "lr": 1e-3}
    found = make_specs([SITE], [1, 2], ["base", "tuned"], settings, width=WIDTH, seeds=[0])
    rows = [Learner(spec, SCHEDULE).trainer.sae.W_dec[0].detach() for spec in found]
    assert len({tuple(row.tolist()) for row in rows}) == 4


# --- the verb ---


KILLED = """
import sys
from lfp_lens.core.store import Store
from lfp_lens.stages.train_sae import training
from tests.stages.test_sae_training import long_run
training.SECONDS_BETWEEN_CHECKPOINTS = -1
long_run(Store(sys.argv[1]))
"""


def long_run(store: Store) -> SAESet:
    options = SHORT | {"tokens": 40_960, "buffer_tokens": 1024, "sides": ("tuned",)}
    return train_sae(tiny_pair(), [SITE], TEXTS, **options, store=store)


def test_a_run_killed_by_the_system_gives_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    place = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(place)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ | {"TQDM_DISABLE": "1"})
    deadline = time.monotonic() + 120
    while not list(place.glob(f".train_sae-*.work/{checkpoint.INDEX}")):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(place.glob("train_sae-*")), "no result yet"
    resumed, whole = long_run(Store(place)), long_run(Store(tmp_path / "whole"))
    assert [one.weights for one in resumed.saes] == [one.weights for one in whole.saes]
    assert all(np.array_equal(resumed.curve[name], whole.curve[name]) for name in whole.curve)
    assert not list(place.glob(".train_sae-*")), "the checkpoints are gone"


def test_the_same_saes_come_out_of_a_cache_and_of_the_models(tmp_path: Path) -> None:
    pair, sides = tiny_pair(), ("base", "tuned", "difference")
    stored = cache(pair, [SITE, "blocks.2.hook_mlp_out"], TEXTS, tmp_path / "cache")
    streamed = train_sae(pair, [SITE], TEXTS, **SHORT, sides=sides)
    read = train_sae(pair, [SITE], TEXTS, **SHORT, sides=sides, cache=stored)
    assert [sae.weights for sae in read.saes] == [sae.weights for sae in streamed.saes]
    assert [sae.explained_variance for sae in read.saes] == [sae.explained_variance for sae in streamed.saes]


def test_one_pass_feeds_every_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many sizes, architectures and seeds: the same number of forward passes of each model."""
    from lfp_lens.parts import harvest

    counts: list[int] = []

    def trained(**changes: Any) -> int:
        counts.append(0)
        read = harvest.activations_at

        def counting(*given: Any) -> Any:
            counts[-1] += 1
            return read(*given)

        with monkeypatch.context() as patch:
            patch.setattr(harvest, "activations_at", counting)
            train_sae(tiny_pair(), [SITE], TEXTS, **(SHORT | {"sides": ("tuned",), "sizes": (1,)} | changes))
        return counts[-1]

    one = trained()
    assert one > 0
    assert trained(sizes=(1, 2, 3), architecture=("topk", "standard", "gated"), replicates=2) == one


def test_a_start_from_the_bases_dictionary_needs_fewer_tokens() -> None:
    pair = tiny_pair()
    options = SHORT | {"sizes": (2,), "k": 6, "lr": 3e-3}
    base = train_sae(pair, [SITE], TEXTS, **(options | {"sides": ("base",), "tokens": 20_000}))
    fresh, started = (
        train_sae(pair, [SITE], TEXTS, **(options | {"sides": ("tuned",), "tokens": 512}), from_sae=start).saes[0]
        for start in (None, base)
    )
    assert started.explained_variance > fresh.explained_variance + 0.1
    assert started.explained_variance == pytest.approx(base.saes[0].explained_variance, abs=0.05)
    with pytest.raises(LensError, match=r"from_sae holds no SAE to start base blocks\.2"):
        train_sae(pair, ["blocks.2.hook_mlp_out"], TEXTS, **options, from_sae=base)
    with pytest.raises(
        LensError, match="from_sae is an SAESet, an SAERecord, a folder or an original checkpoint; a int given"
    ):
        train_sae(pair, [SITE], TEXTS, **options, from_sae=3)


def test_replicates_tell_how_stable_a_feature_is() -> None:
    found = train_sae(
        tiny_pair(), [SITE], TEXTS, **(SHORT | {"sizes": (1,), "sides": ("tuned",), "tokens": 8192}), replicates=2
    )
    assert [sae.seed for sae in found.saes] == [0, 1]
    one, two = (sae.stability for sae in found.saes)
    assert one is not None and two is not None and len(one) == 16
    assert 0.3 < one.mean() <= 1
    assert found.saes[0].weights != found.saes[1].weights


def test_a_list_of_settings_is_a_sweep_of_every_combination_an_architecture_has() -> None:
    options = SHORT | {
        "sizes": (1,),
        "sides": ("tuned",),
        "architecture": ("standard", "topk"),
        "l1": (0.5, 2.0),
        "k": (2, 4),
    }
    found = train_sae(tiny_pair(), [SITE], TEXTS, **options)
    assert [(sae.architecture, sae.l1, sae.k) for sae in found.saes] == [
        ("standard", 0.5, None), ("standard", 2.0, None), ("topk", None, 2), ("topk", None, 4),
    ]  # fmt: skip
    assert found.one(SITE) is found.saes[0], "later verbs read the first"
    assert set(found.by("l1", architecture="standard")["l1"]) == {0.5, 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "topk", "l1": 0.1},
            "l1=0.1 was given, but topk has no l1: leave it out, or use gated, standard, tied.",
        ),
        ({"architecture": ("topk", "topk")}, "architecture must be a value or a list of different values"),
        ({"replicates": 0}, "replicates must be a whole number of at least 1; 0 given."),
        ({"precision": "int8"}, "precision is 'fp32' or 'bf16'; 'int8' given."),
        ({"lr": (1e-3, 0.0)}, "lr must be a finite number above 0; 0.0 given."),
        ({"sides": ("tuned", "bose")}, "Unknown side 'bose'. Did you mean 'base'?"),
        ({"tokens": 100}, "tokens=100 must hold at least one batch of batch_tokens=128"),
        (
            {"batch_tokens": 4096, "tokens": 4096},
            r"The training texts hold \d+ tokens; one batch needs batch_tokens=4096: give more texts.",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        train_sae(tiny_pair(), [SITE], TEXTS, **(SHORT | changes))


def test_bfloat16_trains_to_nearly_the_same_quality() -> None:
    options = SHORT | {"sizes": (2,), "sides": ("tuned",), "architecture": "standard", "l1": 0.5, "tokens": 20_000}
    exact, rough = (
        train_sae(tiny_pair(), [SITE], TEXTS, **options, precision=precision).saes[0] for precision in ("fp32", "bf16")
    )
    assert exact.weights != rough.weights
    assert rough.explained_variance == pytest.approx(exact.explained_variance, abs=0.03)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_architecture_trains_on_both_models_at_once(architecture: str) -> None:
    options = SHORT | {"sides": ("both",), "sizes": (1,), "architecture": architecture}
    (sae,) = train_sae(tiny_pair(), [SITE], TEXTS, **options).saes
    assert sae.width == 32
    assert sae.crosscoder is not None and sae.crosscoder.n_features == 16
    assert sae.lr == 3e-3


# --- what a reviewer found ---


def test_a_stored_set_holds_the_very_floors_of_the_one_in_memory(tmp_path: Path) -> None:
    """Two untrained twins may differ in k alone: their weights are the same numbers."""
    options = SHORT | {"k": (2, 8), "sizes": (1,), "sides": ("tuned",)}
    memory, stored = (
        train_sae(tiny_pair(), [SITE], TEXTS, **options, store=store) for store in (None, Store(tmp_path))
    )
    for set_ in (memory, stored):
        assert [sae.floors["untrained"].weights.config["k"] for sae in set_.saes] == [2, 8]  # type: ignore[union-attr]
    one, two = (sae.floors["untrained"].weights for sae in memory.saes)
    assert one != two


def test_starts_take_the_dictionary_with_the_same_settings_and_never_make_copies() -> None:
    options = SHORT | {"sizes": (1,), "sides": ("tuned",)}
    given = train_sae(tiny_pair(), [SITE], TEXTS, **(options | {"k": (2, 8)}), replicates=2)
    again = train_sae(tiny_pair(), [SITE], TEXTS, **(options | {"k": (2, 8)}), replicates=2, from_sae=given)
    assert [sae.k for sae in again.saes] == [2, 2, 8, 8]
    assert len({sae.weights.fingerprint for sae in again.saes}) == 4
    one = train_sae(tiny_pair(), [SITE], TEXTS, **(options | {"k": 2}))
    with pytest.raises(LensError, match="Seeds 0 and 1 would both start from one dictionary"):
        train_sae(tiny_pair(), [SITE], TEXTS, **(options | {"k": 2}), replicates=2, from_sae=one)


def test_a_continued_training_has_no_random_floor_and_no_match_of_its_own_start() -> None:
    options = {name: value for name, value in SHORT.items() if name != "random_twin"} | {"sizes": (1,)}
    base = train_sae(tiny_pair(), [SITE], TEXTS, **options, sides=("base",))
    both = train_sae(tiny_pair(), [SITE], TEXTS, **options, from_sae=base)
    assert all(set(sae.floors) == {"untrained", "pca"} for sae in both.saes)
    assert not [match for match in both.matches if match.relation == "sides"]
    fresh = train_sae(tiny_pair(), [SITE], TEXTS, **options)
    assert [match for match in fresh.matches if match.relation == "sides"]


def test_a_start_of_another_checkpoint_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    options = SHORT | {"sizes": (1,), "sides": ("tuned",)}
    other = train_sae(tiny_pair(seed=5), [SITE], TEXTS, **options)
    wide = train_sae(tiny_pair(), [SITE], TEXTS, **(options | {"sizes": (2,)})).saes[0]
    monkeypatch.setattr("lfp_lens.parts.harvest.activations_at", None)
    with pytest.raises(LensError, match="was trained on another checkpoint: its fingerprint is"):
        train_sae(tiny_pair(), [SITE], TEXTS, **options, from_sae=other)
    with pytest.raises(LensError, match="of 16 features on 16 dimensions cannot start from a topk SAE of 32 features"):
        train_sae(tiny_pair(), [SITE], TEXTS, **options, from_sae=wide)


def test_the_tied_sae_takes_the_papers_step() -> None:
    """Its loss, averaged over all elements, in ten lines and without clipping: the same weights after 20 steps of Adam."""
    (spec,) = specs("tied", (2,))
    steps = Schedule(steps=20, batch_tokens=64)
    sae = Learner(spec, steps)._new()
    state = {name: tensor.clone().requires_grad_() for name, tensor in sae.state_dict().items()}
    optimiser = torch.optim.Adam(state.values(), lr=1e-3)
    losses = []
    for block in Planted().blocks(0, steps.block_sizes(128)):
        for x in block[STREAM].split(64):
            rows = torch.nn.functional.normalize(state["W"], dim=-1)
            f = torch.relu(x @ rows.T + state["b_enc"])
            loss = (f @ rows + state["b_dec"] - x).square().mean() + 0.001 * f.sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    ours = train([spec], Planted(), steps)[spec]
    assert ours.curve == pytest.approx(losses, rel=1e-5)
    for name, wanted in state.items():
        torch.testing.assert_close(ours.sae.state_dict()[name], wanted.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout_tokens": -1}, "heldout_tokens must be a whole number of at least 1; -1 given."),
        ({"spliced_tokens": 0}, "spliced_tokens must be a whole number of at least 1; 0 given."),
        ({"tokens": "1000"}, "tokens must be a whole number of at least 1; '1000' given."),
        ({"batch_tokens": 128.0}, "batch_tokens must be a whole number of at least 1; 128.0 given."),
        ({"buffer_tokens": 0}, "buffer_tokens must be a whole number of at least 1; 0 given."),
        ({"seed": -1}, "seed must be a whole number of at least 0; -1 given."),
        ({"k": 2.5}, "k must be a whole number of at least 1; 2.5 given."),
        ({"lr": "1e-3"}, "lr must be a finite number above 0; '1e-3' given."),
        ({"architecture": None}, "architecture is a name or a list of names; None given."),
        (
            {"sizes": (float("nan"),)},
            r"A size is a finite number above 0 \(features divided by the site's width\); nan given.",
        ),
        ({"sizes": 2}, "sizes must be a list of at least one size, each once; 2 given."),
        ({"sizes": (1, 1.01)}, "Sizes 1 and 1.01 are both 16 features on 16 dimensions. Give one."),
        ({"precision": "bf16", "cache": "somewhere"}, "A cache holds activations as fp32 computes them"),
        ({"sides": ("both",), "heldout_tokens": 2}, "A crosscoder is judged on at least 2 held-out texts, better 20"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        train_sae(tiny_pair(), [SITE], TEXTS, **(SHORT | changes))


@pytest.mark.parametrize("texts", ["one long string", [None, None], [b"bytes"]])
def test_texts_that_are_no_list_of_strings_are_refused(texts: Any) -> None:
    with pytest.raises(LensError, match="texts must be a list of strings"):
        train_sae(tiny_pair(), [SITE], texts, **SHORT)


@pytest.mark.parametrize("site", ["blocks.00.hook_mlp_out", "blocks.².hook_mlp_out", 1])
def test_a_site_has_one_spelling(site: Any) -> None:
    with pytest.raises(LensError, match="is no site: expected a name such as"):
        train_sae(tiny_pair(), [site], TEXTS, **SHORT)
