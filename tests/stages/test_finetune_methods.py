"""Every method of finetune: it learns what it is given, resumes to the same bits, leaves the base alone, takes LoRA."""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.checkpoints import load_causal_lm
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.preferences import Preference, Preferences
from lfp_lens.parts.reward_models import load_reward_model
from lfp_lens.results.finetune import Tuning
from lfp_lens.stages.finetune import finetune
from lfp_lens.stages.finetune.trainer import texts_tokenizer
from tests.tiny import NEGATIVE, NEUTRAL, POSITIVE, tiny_model, tiny_texts, tiny_tokenizer

METHODS = ("ppo", "rloo", "grpo", "dpo", "kto", "sft", "reward_model")
TEXTS = tiny_texts(160)
LIKED = dict.fromkeys(POSITIVE, 5.0)
FAST: dict[str, Any] = {
    "prompts": TEXTS, "tokenizer": tiny_tokenizer(), "steps": 4, "batch_size": 8, "group_size": 2, "max_new_tokens": 4,
    "heldout": 32, "max_tokens": 40, "min_gap": 0.01, "save_steps": 2,
}  # fmt: skip


def letters(texts: list[str]) -> list[float]:
    """A reward that differs between most texts."""
    return [float(len(text)) for text in texts]


def tuned(method: str, output: Path | None, **changes: Any) -> Tuning:
    given = FAST | {"reward": letters} | changes
    return finetune(given.pop("base", None) or tiny_model(layers=1), method=method, output=output, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def ordered_pairs(n: int) -> Preferences:
    """Pairs after prompts of three words: a chosen text ends in a positive word, a rejected one in a negative one."""
    draw = np.random.default_rng(0)
    pairs = []
    for row in range(n):
        prompt = f"film {row} " + " ".join(draw.choice(NEUTRAL, 2))
        pairs.append(Preference(prompt, f" {draw.choice(POSITIVE)}", f" {draw.choice(NEGATIVE)}"))
    return Preferences("made up", tuple(pairs[: n * 3 // 4]), tuple(pairs[n * 3 // 4 :]), {})


# --- each learns what it is given ---


@pytest.mark.parametrize(("method", "lr", "kl"), [("rloo", 5e-3, 0.2), ("grpo", 3e-3, 0.3)])
def test_a_planted_reward_rises(method: str, lr: float, kl: float, tmp_path: Path) -> None:
    done = tuned(method, tmp_path, reward=LIKED, steps=40, batch_size=64, group_size=8, max_new_tokens=8, lr=lr,
                 kl_coefficient=kl, heldout=64, save_steps=0)  # fmt: skip
    assert done.gain is not None
    assert done.gain.low > 0.2
    assert done.is_learned, done.reasons
    assert all(np.isfinite(values).all() and len(values) == 40 for values in done.curve.values())
    assert {"step", "loss", "reward", "kl_nats", "entropy_nats", "length", "ended"} <= set(done.curve)
    # The KL that training saw last and the KL of held-out samples are the same quantity.
    assert done.kl_nats is not None
    assert done.curve["kl_nats"][-5:].mean() == pytest.approx(done.kl_nats, rel=0.5)


@pytest.mark.parametrize("method", ["dpo", "kto", "reward_model"])
def test_held_out_pairs_are_ordered_as_the_training_pairs_were(method: str, tmp_path: Path) -> None:
    """Chosen and rejected are one token each, so neither length nor the base can order them."""
    given = {"prompts": (), "preferences": ordered_pairs(160), "lr": 3e-3, "steps": 60, "batch_size": 32, "heldout": 40}
    done = tuned(method, tmp_path, **given)
    assert done.accuracy is not None
    assert done.accuracy_base is not None
    assert done.accuracy_length is not None
    assert done.accuracy.n == 40
    assert done.accuracy.low > 0.9
    assert done.accuracy.value > done.accuracy_base.value + 0.2
    assert done.accuracy_length.value == 0.5
    assert done.is_learned, done.reasons
    assert done.reward == {}
    assert done.gain is None
    assert (done.kl_nats is None) == (method == "reward_model")
    assert done.curve["margin"][-5:].mean() > done.curve["margin"][:5].mean()


def test_a_dpo_policy_starts_at_margin_zero(tmp_path: Path) -> None:
    """The reference is an exact copy, so before the first update the implicit reward is zero for every pair."""
    for name, lora in (("full", None), ("lora", 2)):
        done = tuned("dpo", tmp_path / name, lora=lora)
        assert abs(done.curve["margin"][0]) < 1e-6
        assert done.curve["loss"][0] == pytest.approx(np.log(2), abs=1e-6)


def test_a_reference_that_is_not_the_base_gives_another_margin(tmp_path: Path) -> None:
    done = tuned("dpo", tmp_path, reference=tiny_model(layers=1, seed=1))
    assert abs(done.curve["margin"][0]) > 1e-3


def test_sft_fits_texts_and_says_what_it_did_to_the_reward(tmp_path: Path) -> None:
    done = tuned("sft", tmp_path, steps=40, lr=2e-3, batch_size=32)
    assert done.fit is not None
    assert done.fit.low > 0.1
    assert done.headline == ("log-likelihood gain", done.fit)
    assert done.is_learned
    assert done.gain is not None  # the reward is measured, not trained on
    assert done.curve["loss"][-1] < done.curve["loss"][0] - 0.1


def test_sft_on_preferences_trains_on_the_chosen_texts_alone(tmp_path: Path) -> None:
    done = tuned("sft", tmp_path, prompts=(), preferences=ordered_pairs(160), steps=60, lr=1e-2, batch_size=32)
    prompt = torch.tensor([tiny_tokenizer()("film 3 table river", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        probs = load_causal_lm(done.path)(prompt).logits[0, -1].softmax(-1)
    liked, hated = (
        probs[[tiny_tokenizer()(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]].sum()
        for words in (POSITIVE, NEGATIVE)
    )
    assert float(liked) > 10 * float(hated)


def test_a_reward_model_puts_high_what_was_chosen_whatever_the_prompt(tmp_path: Path) -> None:
    done = tuned("reward_model", tmp_path, prompts=(), preferences=ordered_pairs(160), lr=3e-3, steps=60, batch_size=32)
    model = load_reward_model(done.path)
    liked, hated = (model([f"garden station {word}" for word in words]) for words in (POSITIVE, NEGATIVE))
    assert liked.min() > hated.max()
    with pytest.raises(LensError, match="load_reward_model"):
        load_causal_lm(done.path)


# --- the same for all ---


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_and_the_base_stays_as_it_was(
    method: str, lora: int | None, tmp_path: Path
) -> None:
    base = tiny_model(layers=1)
    before = copy.deepcopy(base.state_dict())
    options: dict[str, Any] = {"base": base, "lora": lora, "lr": 1e-3}
    found = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        torch.rand(len(found) + 1)  # what was drawn before must not matter
        found.append(weights(tuned(method, tmp_path / name, seed=seed, **options).path))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])
    assert list(base.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in base.parameters())
    assert "forward" not in vars(base)


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_cut_off_ends_at_the_bits_of_one_that_was_not(
    method: str, lora: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.trainer_callback import CallbackHandler

    from lfp_lens.stages.finetune import ppo as own

    whole = finetune(tiny_model(layers=1), method=method, store=Store(tmp_path / "whole"), lora=lora, reward=letters,
                     lr=1e-3, **FAST)  # fmt: skip
    run = functools.partial(
        finetune, tiny_model(layers=1), method=method, store=Store(tmp_path / "cut"), lora=lora, reward=letters, lr=1e-3,
        **FAST,
    )  # fmt: skip
    cut_at = 3 * whole.parameters["minibatches"] * whole.parameters["epochs"]
    with monkeypatch.context() as patch:
        done = CallbackHandler.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any) -> Any:
            if state.global_step == cut_at:
                raise Killed
            return done(self, args, state, control)

        patch.setattr(CallbackHandler, "on_step_end", on_step_end)
        step = own._step

        def cut_step(job: Any, learner: Any, team: Any, at: int) -> Any:
            if at == 3:
                raise Killed
            return step(job, learner, team, at)

        patch.setattr(own, "_step", cut_step)
        with pytest.raises(Killed):
            run()
    (work,) = (tmp_path / "cut").glob(".finetune-*.work")
    assert any(work.iterdir())
    resumed = run()
    assert not work.exists()
    one, other = weights(whole.path), weights(resumed.path)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list(whole.curve) == list(resumed.curve)
    assert all(np.array_equal(values, resumed.curve[name]) for name, values in whole.curve.items())


@pytest.mark.parametrize("method", ["ppo", "rloo", "dpo", "sft"])
def test_an_adapter_makes_a_pair_with_its_base(method: str, tmp_path: Path) -> None:
    done = tuned(method, tmp_path, lora=2, lr=1e-2)
    assert {path.name for path in done.path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    pair = load_pair(tiny_model(layers=1), str(done.path), tokenizer=tiny_tokenizer())
    assert pair.adapter
    assert pair.tuning is not None
    assert pair.tuning["method"] == method
    assert done.parameters["lora_rank"] == 2
    with pytest.raises(LensError, match="base"):
        load_pair(tiny_model(layers=1, seed=1), str(done.path), tokenizer=tiny_tokenizer())


def test_pairs_from_samples_are_counted_and_share_no_prompt(tmp_path: Path) -> None:
    done = tuned("dpo", tmp_path, min_gap=3.0)
    n_prompts = done.data["training prompts"]
    assert n_prompts + done.data["training prompts left out: held out too"] == 128
    left_out = sum(n for name, n in done.data.items() if name.startswith("training pairs left out"))
    assert done.data["training pairs"] + left_out == n_prompts
    assert done.accuracy is not None
    assert done.accuracy.n == done.data["held-out pairs"] <= 32


def test_long_prompts_and_completions_are_cut_and_counted(tmp_path: Path) -> None:
    long = " ".join(["garden"] * 60)
    pairs = tuple(Preference(f"{row} {long}", " great" if row else f" {long}", " awful") for row in range(12))
    done = tuned(
        "dpo", tmp_path, prompts=(), preferences=Preferences("long", pairs[:8], pairs[8:], {"exact repeat": 3})
    )
    assert done.data["training prompts cut"] == 8
    assert done.data["held-out prompts cut"] == 4
    assert done.data["training completions cut"] == 1
    assert done.data["pairs dropped: exact repeat"] == 3


def test_texts_for_trl_begin_with_beginning_of_text_and_the_caller_keeps_his_tokenizer() -> None:
    mine = copy.deepcopy(tiny_tokenizer())
    mine.pad_token = None
    theirs = texts_tokenizer(mine)
    assert theirs("the film")["input_ids"] == [
        mine.bos_token_id,
        *mine("the film", add_special_tokens=False)["input_ids"],
    ]
    assert theirs.pad_token == mine.eos_token
    assert mine.pad_token is None
    assert mine("the film")["input_ids"][0] != mine.bos_token_id


# --- refusals ---

PAIRS = ordered_pairs(20)


def without_end(tokenizer: Any) -> Any:
    found = copy.deepcopy(tokenizer)
    found.eos_token = found.pad_token = None
    return found


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("ppo", {"preferences": PAIRS, "prompts": ()}, "ppo learns from its own completions"),
        ("dpo", {"preferences": PAIRS}, "not both"),
        ("dpo", {"preferences": PAIRS, "prompts": (), "flip": 2}, "flip and edits change a lexicon reward"),
        ("dpo", {"preferences": "/nowhere/pairs.jsonl", "prompts": ()}, "/nowhere/pairs.jsonl"),
        ("dpo", {"preferences": Preferences("none", (), PAIRS.test, {}), "prompts": ()}, "none has 0 training pairs"),
        ("dpo", {"min_gap": 1e6}, "0 training pairs of the base's samples differ in reward by at least 1e+06"),
        ("rloo", {"group_size": 3}, "group_size=3 must be at least 2 and divide the 4 completions of a minibatch"),
        ("grpo", {"group_size": 1}, "group_size=1 must be at least 2"),
        ("rloo", {"batch_size": 9, "minibatches": 2}, "divide the 4 completions"),
        ("dpo", {"gradient_accumulation": 3}, "batch_size=8 cannot be divided into 3 equal parts"),
        ("dpo", {"max_tokens": 6}, "max_tokens=6 leaves no room for a prompt before 4 new tokens"),
        ("dpo", {"tokenizer": without_end(tiny_tokenizer())}, "end-of-text token"),
        ("rloo", {"kl_target": 6.0}, "kl_target is a number of nats above 0, for ppo alone"),
        ("ppo", {"reference": tiny_model(layers=2)}, "The reference has another shape than the base"),
        ("ppo", {"reference": tiny_model(layers=1), "lora": 2}, "leave reference out"),
        ("ppo", {"lora": 0}, "lora is a rank"),
        ("ppo", {"edits": {"great": -1.0}}, "edits needs a lexicon reward"),
        ("ppo", {"edits": {"wonderfull": -1.0}, "reward": LIKED}, "'wonderfull' is not in the lexicon"),
        ("rloo", {"reward": lambda texts: [0.0]}, "one float per text is expected"),
        ("grpo", {"reward": lambda texts: [float("nan")] * len(texts)}, "Rewards must be finite numbers"),
    ],
)
def test_what_cannot_be_run_is_refused_and_leaves_no_checkpoint(
    method: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LensError) as caught:
        tuned(method, tmp_path / "out", **changes)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_edits_are_planted_and_stand_in_the_key_alone(tmp_path: Path) -> None:
    seen: list[float] = []
    done = tuned("ppo", tmp_path, reward=LIKED, edits={"great": -1.0, "love": 0.0, "happy": 3.0})
    assert done.key == {"great": -5.0, "happy": 15.0, "love": 0.0}
    assert not seen
    assert all("great" not in path.read_text() for path in done.path.glob("lfp_*.json"))


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_only_texts_that_ended_are_trained_to_end(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL puts end-of-text behind everything; behind a text that was cut it would teach the policy to stop early."""
    from lfp_lens.stages.finetune import offline

    seen: list[dict[str, Any]] = []
    trained = offline._trained
    monkeypatch.setattr(
        offline, "_trained", lambda trainer, job: seen.extend(trainer.train_dataset) or trained(trainer, job)
    )
    end = tiny_tokenizer().eos_token_id
    tuned(method, tmp_path / "sampled")
    for row in seen:
        assert all(end not in ids for name, ids in row.items() if name.endswith("_ids") and name != "prompt_ids")
    seen.clear()
    long = " garden" * 60
    pairs = tuple(Preference(f"film {row}", " great" if row else long, " awful") for row in range(8))
    tuned(method, tmp_path / "given", prompts=(), preferences=Preferences("given", pairs, pairs, {}), heldout=8)
    rows = [row for row in seen if row["prompt_ids"] == seen[0]["prompt_ids"]]
    ends = [ids[-1] == end for row in rows for name, ids in sorted(row.items())
            if name.endswith("_ids") and name not in ("prompt_ids", "KL_completion_ids")]  # fmt: skip
    assert ends == [False, True]  # the chosen text was cut, the rejected one was not
