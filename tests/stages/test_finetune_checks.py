"""What finetune refuses, before any training: every bad input that users give, each by a message that says what to do."""

import copy
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.preferences import Preference, Preferences
from lfp_lens.stages.finetune import finetune, verb
from tests.stages.test_finetune_methods import FAST, METHODS, TEXTS, letters, tuned, weights
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained: a refusal that comes later fails the test."""

    class Stop:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError("it came to the training")

    monkeypatch.setattr(verb, "Job", Stop())


def refusal(method: str, output: Path, **changes: Any) -> str:
    with pytest.raises(LensError) as caught:
        tuned(method, output, **changes)
    return str(caught.value)


def larger(tokenizer: Any) -> Any:
    found = copy.deepcopy(tokenizer)
    found.add_special_tokens({"pad_token": "[PAD]"})
    return found


SAME = tuple(Preference(f"film {row}", " great", " great ") for row in range(20))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "32 held-out prompts and some to train on are needed; 0 texts given."),
        ({"prompts": "one long text " * 40}, "prompts is a list of texts; one text given."),
        ({"prompts": (text for text in TEXTS)}, "prompts is a list of texts; generator given."),
        ({"prompts": [*TEXTS, None]}, "prompts holds NoneType where a text is expected"),
        ({"prompts": [None, *TEXTS], "flip": 2}, "prompts holds NoneType where a text is expected"),
        ({"seed": -1}, "seed must be at least 0; -1 given."),
        ({"seed": 2**32}, "seed must be at most 4294967295; 4294967296 given."),
        ({"steps": 2.5}, "steps must be a whole number; 2.5 given."),
        ({"heldout": 32.0}, "heldout must be a whole number; 32.0 given."),
        ({"edits": ["great"]}, "edits is a table of words and factors; list given."),
        (
            {"lora": LoraConfig(target_modules=["nope"])},
            "The adapter does not fit a GPTNeoXForCausalLM: Target modules",
        ),
        ({"lora": LoraConfig(task_type="SEQ_CLS")}, "The LoraConfig is for the task SEQ_CLS; CAUSAL_LM (or none)"),
        ({"lora": LoraConfig(init_lora_weights="pissa")}, "was started with 'pissa'"),
        ({"device": "gpu"}, "device='gpu' cannot be used"),
        ({"device": "meta"}, "The model in memory is on cpu; device='meta' given."),
        ({"report_to": "tensorbord"}, "report_to='tensorbord' cannot be used: there is no such tracker."),
        ({"tokenizer": larger(tiny_tokenizer())}, "The tokenizer has ids up to 400, the model has embeddings for 400"),
        (
            {"base": tiny_model(layers=1).bfloat16()},
            "The model in memory is in bfloat16; weights are tuned in float32.",
        ),
        ({"prompt_tokens": (2, 100)}, "the model's context has 96"),
    ],
)
def test_what_no_method_can_use_is_refused(method: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(method, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untrained")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tiny_model(layers=1).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    message = refusal("ppo", tmp_path / "out", base=str(tmp_path / "base"), device="cuda")
    assert "device='cuda' cannot be used" in message


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda texts: [0.0], "one float per text is expected"),
        (lambda texts: [float("nan")] * len(texts), "Rewards must be finite numbers"),
        (lambda texts: [float("inf") if not text else 1.0 for text in texts], "is inf for the text ''"),
        (lambda texts: [1 / len(text) for text in texts], "raised ZeroDivisionError (division by zero) for 2 texts"),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused(method: str, reward: Any, message: str, tmp_path: Path) -> None:
    """An empty completion is among what it is tried on: a policy may end at once."""
    store = Store(tmp_path)
    with pytest.raises(LensError) as caught:
        finetune(tiny_model(layers=1), method=method, reward=reward, store=store, **FAST)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("method", ["dpo", "kto", "reward_model"])
def test_pairs_without_a_preference_are_refused(method: str, tmp_path: Path) -> None:
    pairs = Preferences("same", SAME[:10], SAME[10:], {})
    message = refusal(method, tmp_path / "out", prompts=(), preferences=pairs)
    assert "Chosen is equal to rejected in all 10 training pairs of same" in message


@pytest.mark.usefixtures("untrained")
def test_pairs_without_a_prompt_need_a_beginning_of_text(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = None
    pairs = tuple(Preference("", " great", f" awful {row}") for row in range(20))
    message = refusal("dpo", tmp_path / "out", prompts=(), preferences=Preferences("bare", pairs[:10], pairs[10:], {}),
                      tokenizer=tokenizer)  # fmt: skip
    assert "bare has a pair without a prompt, and the tokenizer no beginning-of-text" in message


@pytest.mark.usefixtures("untrained")
def test_what_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    for method in ("sft", "reward_model"):
        assert "no use for a reference" in refusal(method, tmp_path / "out", reference=tiny_model(layers=1))
    assert "0 stays 0" in refusal("ppo", tmp_path / "out", kl_target=6.0, kl_coefficient=0.0)


@pytest.mark.usefixtures("untrained")
def test_sampled_pairs_that_would_be_cut_are_refused(tmp_path: Path) -> None:
    for method in ("dpo", "kto", "reward_model"):
        message = refusal(method, tmp_path / "out", prompt_tokens=(2, 30), max_new_tokens=20, max_tokens=50)
        assert "need max_tokens=51" in message


def test_what_a_method_has_no_use_for_is_not_checked(tmp_path: Path) -> None:
    """Online methods sample: the longest text that is trained on is prompt and completion, whatever max_tokens says."""
    assert tuned("ppo", tmp_path, max_tokens=4).path.is_dir()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("method", ["ppo", "dpo"])
def test_prompts_that_are_all_held_out_too_leave_nothing_to_train_on(method: str, tmp_path: Path) -> None:
    message = refusal(method, tmp_path / "out", prompts=["film river"] * 60, prompt_tokens=(2, 2))
    assert "All 28 training prompts are held-out prompts too" in message


def test_a_prompt_on_both_sides_is_measured_and_not_trained_on(tmp_path: Path) -> None:
    seen: list[str] = []

    def reward(texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [float(len(text)) for text in texts]

    prompts = [" film river"] * 30 + [" garden station"] * 30
    done = tuned("ppo", tmp_path, prompts=[*prompts[:29], " garden station", *prompts[30:]], prompt_tokens=(2, 2), heldout=30,
                 scope="text", reward=reward)  # fmt: skip
    assert done.data["training prompts left out: held out too"] == 1
    assert done.data["training prompts"] == 29
    rollouts = seen[-4 * 8 - 60 : -60]
    assert all(text.startswith(" film river") for text in rollouts)
    assert all(text.startswith(" garden station") for text in seen[-60:])


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    long = [f"{text} {'garden ' * 60}" if row % 4 == 0 else text for row, text in enumerate(TEXTS)]
    done = tuned("sft", tmp_path, prompts=long)
    assert done.data["training texts cut"] == 32
    assert done.data["held-out texts cut"] == 8


@pytest.mark.parametrize("method", ["rloo", "grpo"])
@pytest.mark.parametrize("n_prompts", [2, 3, 5])
def test_fewer_prompts_than_a_batch_has_groups_are_trained_on_all_the_same(
    method: str, n_prompts: int, tmp_path: Path
) -> None:
    done = tuned(method, tmp_path, prompts=TEXTS[: n_prompts + 2], heldout=2, steps=3)
    assert done.curve["reward"].shape == (3,)


@pytest.mark.parametrize("method", METHODS)
def test_a_single_step_moves_the_weights(method: str, tmp_path: Path) -> None:
    done = tuned(method, tmp_path, steps=1, lr=1e-2)
    before = tiny_model(layers=1).state_dict()
    # A reward model's new head begins at 0.
    moved = {name: tensor - before.get(name, torch.zeros(())) for name, tensor in weights(done.path).items()}
    assert any(change.any() for change in moved.values())


def test_kto_needs_two_completions_at_once(tmp_path: Path) -> None:
    """Its KL is read off mismatched pairs of prompt and completion."""
    assert "at least 2 completions at once" in refusal("kto", tmp_path / "out", batch_size=4, gradient_accumulation=4)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_a_policy_with_dropout_starts_at_its_reference(method: str, tmp_path: Path) -> None:
    base = tiny_model("gpt2", layers=1)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    done = tuned(method, tmp_path, base=base, lr=1e-9, steps=1, minibatches=1, epochs=1)
    assert abs(done.curve["kl_nats"][0]) < 1e-5


@pytest.mark.parametrize("method", METHODS[:-1])
def test_only_weights_differ_from_the_base(method: str, tmp_path: Path) -> None:
    """TRL switches the cache off and names a padding token; neither belongs into the checkpoint."""
    tiny_model(layers=1).save_pretrained(tmp_path / "base")
    done = tuned(method, tmp_path / "tuned", gradient_checkpointing=True)
    for name in ("config.json", "generation_config.json"):
        assert (done.path / name).read_text() == (tmp_path / "base" / name).read_text()


@pytest.mark.parametrize("method", METHODS)
def test_what_the_caller_draws_next_does_not_change(method: str, tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    def seeded() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    base = tiny_model(layers=1)  # this seeds too
    seeded()
    wanted = draw()
    seeded()
    tuned(method, tmp_path, base=base)
    assert draw() == wanted


# --- where the checkpoint goes ---


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model(layers=1).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.usefixtures("untrained")
def test_the_base_is_never_overwritten(base: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    assert "is the base's own folder" in refusal("ppo", base, base=str(base))
    assert "is the base's own folder" in refusal("ppo", base / ".." / "base", base=base)
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("method", METHODS)
def test_a_place_that_cannot_be_written_is_refused(method: str, base: Path) -> None:
    for place in (base / "config.json", base / "config.json" / "below"):
        assert f"{base / 'config.json'} is no folder that can be written" in refusal(method, place)


@pytest.mark.usefixtures("untrained")
def test_a_cache_that_cannot_be_made_is_said(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFP_LENS_CACHE", str(base / "config.json"))
    with pytest.raises(LensError, match="cannot be made"):
        tuned("ppo", None)


def test_a_model_is_not_put_beside_an_adapter_nor_an_adapter_beside_a_model(tmp_path: Path) -> None:
    whole, adapter = (tuned("ppo", tmp_path / name, lora=lora).path for name, lora in (("a", None), ("b", 2)))
    assert "holds a whole model (model.safetensors)" in refusal("ppo", whole, lora=2)
    assert "holds an adapter (adapter_config.json)" in refusal("ppo", adapter)
    assert tuned("ppo", whole, seed=1).path == whole


def test_nothing_is_left_in_the_cache_beside_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opaque:
        def __call__(self, texts: list[str]) -> list[float]:
            return letters(texts)

    monkeypatch.setenv("LFP_LENS_CACHE", str(tmp_path / "cache"))
    for reward in (letters, Opaque()):
        tuned("ppo", tmp_path / "out", reward=reward)
        assert list((tmp_path / "cache").iterdir()) == []
        shutil.rmtree(tmp_path / "out")


def test_a_reward_that_breaks_down_in_the_middle_loses_no_checkpoint(tmp_path: Path) -> None:
    """It may be a server that will answer again."""
    steps = FAST["steps"]
    calls: list[int] = []

    class Server:
        fingerprint = "server"
        is_up = False

        def __call__(self, texts: list[str]) -> list[float]:
            calls.append(len(texts))
            if len(calls) == steps and not self.is_up:
                raise ConnectionError("the server went away")
            return letters(texts)

    server, store = Server(), Store(tmp_path)
    with pytest.raises(LensError, match=r"raised ConnectionError \(the server went away\) for 8 texts"):
        finetune(tiny_model(layers=1), reward=server, store=store, **FAST)
    (work,) = tmp_path.iterdir()
    assert (work / "ppo.safetensors").is_file()
    server.is_up, n_before = True, len(calls)
    done = finetune(tiny_model(layers=1), reward=server, store=store, **FAST)
    assert not work.exists()
    # One trial, the steps after the checkpoint of step 2, and both models on held-out prompts.
    assert calls[n_before:] == [2, 8, 8, 32, 32]
    whole = finetune(tiny_model(layers=1), reward=letters, store=Store(tmp_path / "whole"), **FAST)
    assert all(torch.equal(tensor, weights(whole.path)[name]) for name, tensor in weights(done.path).items())
    assert np.array_equal(done.curve["reward"], whole.curve["reward"])


def test_the_same_adapter_has_the_same_key_in_every_process(tmp_path: Path) -> None:
    """Or no other process would find the finished result, nor go on from a checkpoint; PEFT keeps module names in a set."""
    program = (
        "from peft import LoraConfig; from tests.stages.trl_jobs import *; names = ['query_key_value', 'dense'];"
        "lora = LoraConfig(r=2, target_modules=names, exclude_modules=['a', 'b', 'c'], task_type='CAUSAL_LM');"
        f"tune(Path({str(tmp_path)!r}), 'ppo', Letters(), lora=lora, steps=1)"
    )
    for hash_seed in ("1", "2"):
        where = os.environ | {"PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=where, check=True, timeout=120)
    assert len(list((tmp_path / "store").glob("finetune-*"))) == 1
