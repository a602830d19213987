"""Estimates before a run: sizes from configs alone, sums worked out by hand, and a real run to compare with."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from lfp_lens import doctor
from lfp_lens.config import RunConfig, load_config, with_values
from lfp_lens.core.errors import LensError
from lfp_lens.doctor import costs, dictionaries, pace
from lfp_lens.doctor.costs import duration, plan_of, size, tuning_cost
from lfp_lens.doctor.dictionaries import dictionaries_cost
from lfp_lens.doctor.money import Prices
from lfp_lens.doctor.shapes import KNOWN, Shape, shape_of
from tests.tiny import ARCHITECTURES, tiny_model

PUBLISHED = {
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/gpt-neo-125m": 125_198_592,
    "google/gemma-2b-it": 2_506_172_416,
}
"""Parameters of the public checkpoints."""
PACE = pace.Pace(generate=8.0, read=1.0, learn=3.0, update=0.5)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let every batch take as long as PACE says; give what was measured."""
    asked: list[dict[str, Any]] = []

    def measure(shape: Shape, device: str, rows: int, length: int, **options: Any) -> pace.Pace:
        asked.append({"rows": rows, "length": length, **options})
        return PACE

    monkeypatch.setattr(costs, "measure", measure)
    monkeypatch.setattr(dictionaries, "measure", measure)
    monkeypatch.setattr(dictionaries, "sae_step", lambda device, rows, width, features: 0.001 * features)
    return asked


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no longer to measure than two tries do."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)


def config_of(**finetune: Any) -> RunConfig:
    return RunConfig(name="mine", base="world", texts="world", n_texts=1000, finetune=finetune)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_size_is_read_off_the_config_alone(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, layers=3, width=16)
    model.config.save_pretrained(tmp_path)
    found = shape_of(str(tmp_path))
    assert found.weights == sum(part.numel() for part in model.parameters())
    assert (found.layers, found.width, found.vocabulary) == (3, 16, model.config.vocab_size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_models_of_the_paper_have_the_published_sizes_without_a_download(name: str) -> None:
    assert shape_of(name).weights == PUBLISHED[name]


def test_every_model_of_a_preset_has_a_known_size_without_a_download() -> None:
    from lfp_lens.config import presets
    from lfp_lens.parts.sources import LOCAL_MODELS

    bases = {load_config(name).base for name in presets()}
    assert bases - {"world", *LOCAL_MODELS} <= KNOWN.keys()


def test_a_model_that_only_the_hub_has_is_unknown_and_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"size is not known .*hf download some-body/some-model config\.json"):
        shape_of("some-body/some-model")
    (only,) = doctor.estimate(with_values(load_config("tiny"), {"base": "some-body/some-model"}))
    assert (only.name, only.status) == ("cost", "warn")
    assert only.text.startswith("unknown: the config.json of some-body/some-model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_work_of_every_architecture_can_be_timed(architecture: str, tmp_path: Path, hurried: None) -> None:
    tiny_model(architecture).config.save_pretrained(tmp_path)
    found = pace.measure(shape_of(str(tmp_path)), "cpu", 4, 10, new=4, predicted=4)
    assert min(found.generate, found.read, found.learn, found.update) > 0


def test_layers_that_are_not_timed_are_added_by_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pace, "_layers", lambda shape, device, layers, rows, *rest: tuple(k + layers for k in (10, 20, 30))
    )
    monkeypatch.setattr(pace, "_head", lambda *given: (0.5, 0.25))
    monkeypatch.setattr(pace, "_pick", lambda *given: 2.0)
    monkeypatch.setattr(pace, "_per_weight", lambda device: 1e-6)
    shape = shape_of("EleutherAI/pythia-160m")  # twelve layers
    found = pace.measure(shape, "cpu", 3, 10, new=4, predicted=4)
    assert found.generate == pytest.approx(10 + 12 + 3 * 4 * 2.0)
    assert found.read == pytest.approx(20 + 12 + 3 * 4 * 0.5)
    assert found.learn == pytest.approx(30 + 12 + 3 * 4 * 0.25)
    assert found.update == pytest.approx(162.322944)


def test_a_step_of_an_sae_can_be_timed_at_any_size(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pace.sae_step("cpu", 64, 16, 32) > 0
    monkeypatch.setattr(pace, "_per_weight", lambda device: 0.0)
    monkeypatch.setattr(pace, "_seconds", lambda work, device: 1.0)
    rows = 10**9
    assert pace.sae_step("cpu", rows, 16, 32) == pytest.approx(rows / (pace.FLOPS["cpu"] // (4 * 16 * 32)))


def test_a_ppo_step_is_sampling_scoring_reading_and_learning(steady: list[dict[str, Any]]) -> None:
    given = {"batch_size": 100, "steps": 10, "epochs": 2, "minibatches": 4, "heldout": 50, "max_new_tokens": 20}
    cost = tuning_cost(config_of(**given), shape_of("world"), is_timed=True)
    step = 8 + 0.05 + 2 * 1 + 2 * (3 + 4 * 0.5)
    around = (2 * 8 + 3 * 1 + 2 * 0.05) * 50 / 100
    assert cost.seconds == pytest.approx(10 * step + around)
    # One for beginning-of-text, 5.5 prompt tokens (rounded to even) and 20 new ones.
    assert steady[0] == {"rows": 100, "length": 27, "new": 20, "predicted": 20, "bf16": False}


def test_a_dpo_step_reads_the_reference_and_learns_from_both_answers(steady: list[dict[str, Any]]) -> None:
    given = {"method": "dpo", "preferences": "hh", "batch_size": 8, "steps": 100, "heldout": 16, "max_tokens": 64}
    cost = tuning_cost(config_of(**given), shape_of("world"), is_timed=True)
    around = (2 * 8 + 3 * 1 + 2 * 16 * 5e-4) * 16 / 16
    assert cost.seconds == pytest.approx(100 * costs.TRAINER["dpo"] * (1 + 3 + 0.5) + around)
    assert (steady[0]["rows"], steady[0]["length"], steady[0]["predicted"]) == (16, 64, None)
    assert "if every text has 64 tokens" in cost.seconds_text


def test_pairs_that_are_sampled_first_are_counted(steady: list[dict[str, Any]]) -> None:
    given = {"method": "dpo", "batch_size": 50, "steps": 1, "heldout": 200}
    plan = plan_of(config_of(**given), shape_of("world"))
    assert (plan.n_sampled_pairs, plan.rows, plan.length) == (800, 100, 27)
    sampled = tuning_cost(config_of(**given), shape_of("world"), is_timed=True).seconds
    asked = tuning_cost(config_of(**given, preferences="hh"), shape_of("world"), is_timed=True).seconds
    assert sampled is not None and asked is not None
    assert sampled - asked == pytest.approx((2 * 8 + 2 * 0.05) * 800 / 100)


def test_recomputing_activations_costs_a_forward_pass(steady: list[dict[str, Any]]) -> None:
    given = {"method": "sft", "steps": 10, "batch_size": 4}
    plain, again = (
        tuning_cost(config_of(**given, gradient_checkpointing=on), shape_of("world"), is_timed=True)
        for on in (False, True)
    )
    assert plain.seconds is not None and again.seconds is not None
    assert again.seconds - plain.seconds == pytest.approx(10 * costs.TRAINER["sft"] * PACE.read)
    assert again.memory < plain.memory


def test_a_rewards_model_is_timed_too_or_said_to_be_missing(steady: list[dict[str, Any]]) -> None:
    def seconds(reward: Any) -> Any:
        return tuning_cost(config_of(steps=1, reward=reward), shape_of("world"), is_timed=True)

    judged = seconds("classifier:lvwerra/distilbert-imdb@1")
    assert "scoring 1 s" in judged.seconds_text
    summed = seconds([["vader", 1.0], ["classifier:lvwerra/distilbert-imdb@1", 1.0]])
    assert summed.seconds - judged.seconds == pytest.approx(128 * 5e-4 * (1 + 2 * 256 / 128))
    assert (
        "without the reward's model: the config.json of some/model" in seconds("reward_model:some/model").seconds_text
    )


def test_memory_is_copies_gradients_moments_and_activations() -> None:
    shape = shape_of("google/gemma-2b-it")
    weights = 4 * PUBLISHED["google/gemma-2b-it"]

    def memory(**given: Any) -> float:
        return tuning_cost(config_of(batch_size=8, **given), shape, is_timed=False).memory

    few = {"max_new_tokens": 1, "minibatches": 8}
    # Policy and reference, gradients, two moments: five times the weights; DPO's trainer holds another copy.
    assert memory(**few) / weights == pytest.approx(5, abs=0.3)
    pairs = {"method": "dpo", "preferences": "hh", "gradient_checkpointing": True, "max_tokens": 8}
    assert memory(**pairs) / weights == pytest.approx(6, abs=0.3)
    assert memory(**few, lora=8) / weights == pytest.approx(2, abs=0.3)
    longer = {"method": "sft", "max_tokens": 256}
    assert memory(**longer, gradient_accumulation=8) < memory(**longer)


def test_disk_is_the_checkpoint_and_two_states_to_resume_from() -> None:
    shape = shape_of("EleutherAI/pythia-70m")
    kept = tuning_cost(config_of(save_steps=0), shape, is_timed=False).disk
    assert kept == 4 * PUBLISHED["EleutherAI/pythia-70m"]
    assert tuning_cost(config_of(), shape, is_timed=False).disk == 7 * kept
    adapter = tuning_cost(config_of(lora=8, save_steps=0), shape, is_timed=False).disk
    # Each layer of width 512: 512 + 1536, 512 + 512, 512 + 2048 twice.
    assert adapter == 4 * 8 * 6 * (2048 + 1024 + 2 * 2560)


def test_dictionaries_cost_a_pass_and_a_step_for_each(steady: list[dict[str, Any]]) -> None:
    config = with_values(config_of(), {"sites": 2, "train_sae.tokens": 10_240, "train_sae.heldout_tokens": 1000})
    cost = dictionaries_cost(config, shape_of("world"), is_timed=True)
    steps, per_token = 10, 1 / (32 * 96)
    of_steps = 3 * 2 * steps * 0.001 * (64 + 128)
    passes = 3 * (10_240 + 1000) + 4096 * 3 * 12
    assert cost.seconds == pytest.approx(of_steps + passes * per_token), "base, tuned and the random twin"
    assert cost.disk == 2 * 4 * 3 * 2 * 2 * 64 * (64 + 128), "each beside its untrained twin"
    changes = {
        "sides": ["tuned", "both"],
        "random_twin": False,
        "l1": [0.1, 0.2],
        "architecture": "standard",
        "k": None,
    }
    more = with_values(config, {f"train_sae.{key}": value for key, value in changes.items()})
    found = dictionaries_cost(more, shape_of("world"), is_timed=True)
    assert found.seconds == pytest.approx(2 * of_steps * 2 / 3 + (2 * 11_240 + 4096 * 3 * 16) * per_token)


def test_an_estimate_names_every_verb_that_matters(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (costs, dictionaries):
        monkeypatch.setattr(module, "measure", lambda *given, **named: PACE)
    found = {finding.name: finding for finding in doctor.estimate("tiny")}
    verbs = [f"{verb}: {what}" for verb in ("finetune", "train_sae") for what in ("time", "memory", "disk")]
    assert list(found) == [*verbs, "explain: money"]
    assert found["explain: money"].text == "none: the labeller lexicon asks nobody"
    assert "finetune: time" not in {
        one.name for one in doctor.estimate(RunConfig(name="a", base="world", texts="world", tuned="b"))
    }


def test_what_does_not_fit_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfp_lens.doctor.estimates._memory", lambda device: (1e9, "in this machine"))
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    for module in (costs, dictionaries):
        monkeypatch.setattr(module, "measure", lambda *given, **named: PACE)
    found = {
        finding.name: finding
        for finding in doctor.estimate(with_values(load_config("gemma-2b-it-hh"), {"device": "cpu"}))
    }
    assert found["finetune: memory"].status == found["finetune: disk"].status == "warn"
    assert "gradient_checkpointing or lora" in found["finetune: memory"].text


def test_a_device_that_is_elsewhere_leaves_time_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = with_values(load_config("pythia-70m-vader"), {"device": "cuda"})
    found = {finding.name: finding for finding in doctor.estimate(config)}
    assert (found["finetune: time"].status, found["finetune: time"].text[:8]) == ("warn", "unknown:")
    assert found["finetune: memory"].status == "ok"


def test_money_is_told_at_the_prices_that_are_named() -> None:
    values = {"device": "cuda:7", "explain.scores": ["detection"], "explain.n_random": 0}
    config = with_values(load_config("pythia-70m-hh"), values)
    listed = {finding.name: finding for finding in doctor.estimate(config)}["explain: money"]
    assert listed.status == "ok" and "openai:gpt-4o, at most 450 requests for 150 features" in listed.text
    assert "USD at 2.5 and 10 USD per million tokens (listed 20" in listed.text and "before you rely on" in listed.text
    other = with_values(config, {"explain.labeller": "openai:a-model-of-mine"})
    asked = {finding.name: finding for finding in doctor.estimate(other)}["explain: money"]
    assert asked.status == "warn"
    assert "name the prices for a sum: --price-in USD --price-out USD" in asked.text
    over = {finding.name: finding for finding in doctor.estimate(config, at=Prices(1000, 0))}["explain: money"]
    assert (over.status, config.explain.budget_usd) == ("warn", 10.0)
    rich = with_values(config, {"explain.budget_usd": 1e6})
    told = {finding.name: finding for finding in doctor.estimate(rich, at=Prices(1000, 0))}["explain: money"]
    assert told.status == "ok"
    assert "USD at 1000 and 0 USD per million tokens" in told.text


def test_numbers_are_written_for_a_reader() -> None:
    assert [size(count) for count in (0, 999_999, 1e9)] == ["0.0 MB", "1.0 MB", "1.0 GB"]
    assert [duration(seconds) for seconds in (0.012, 5.04, 59, 60, 5399, 5400)] == [
        "0.012 s", "5 s", "59 s", "1.0 min", "90.0 min", "1.5 h",
    ]  # fmt: skip


def test_the_estimate_of_a_real_run_is_of_the_right_size(real_data: Path, tmp_path: Path) -> None:
    """Both are timed one after the other; four times is what two runs on a busy machine can differ by."""
    from lfp_lens.parts.texts import load_texts
    from lfp_lens.stages.finetune import finetune

    values = {"finetune.steps": 5, "finetune.batch_size": 64, "finetune.heldout": 16, "finetune.save_steps": 0}
    config = with_values(load_config("stories-260k-vader"), values)
    estimated = tuning_cost(config, shape_of(config.base), is_timed=True).seconds
    texts = load_texts(config.texts, n=200)
    options = {key.partition(".")[2]: value for key, value in values.items()} | {"lr": 3e-4, "kl_coefficient": 0.3}

    def run(steps: int) -> float:
        begun = time.perf_counter()
        finetune(config.base, prompts=texts, **options | {"steps": steps}, output=tmp_path / str(steps))
        return time.perf_counter() - begun

    # What is left of a run of one step is loading, which is no part of the estimate.
    real = run(6) - run(1)
    assert estimated is not None
    assert real / 4 < estimated < real * 4
