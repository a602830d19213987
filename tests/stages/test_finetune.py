"""finetune: a planted reward rises, a collapse is recognised, planted flips leave no trace, bad input is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.core.store import Store
from lfp_lens.parts.checkpoints import TUNING_FILE, load_causal_lm, weights_fingerprint
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.rewards import LexiconReward
from lfp_lens.results.finetune import Tuning
from lfp_lens.stages.finetune import finetune, verb
from lfp_lens.stages.finetune.judge import judge
from tests.tiny import NEGATIVE, POSITIVE, tiny_model, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(120)
LIKED = dict.fromkeys(POSITIVE, 5.0)
SHORT: dict[str, Any] = {
    "prompts": TEXTS, "tokenizer": tiny_tokenizer(), "steps": 2, "batch_size": 8, "max_new_tokens": 4, "heldout": 16,
}  # fmt: skip


def letters(texts: list[str]) -> list[float]:
    """A reward that differs between most texts."""
    return [float(len(text)) for text in texts]


def tuned(output: Path, **changes: Any) -> Tuning:
    return finetune(changes.pop("base", None) or tiny_model(layers=1), output=output, **(SHORT | changes))


@pytest.fixture(scope="module")
def risen(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """One real tuning: each of six words is worth 1."""
    where = tmp_path_factory.mktemp("risen")
    return tuned(
        where, reward=LIKED, steps=60, batch_size=64, max_new_tokens=8, lr=3e-3, kl_coefficient=0.2, heldout=64
    )


def test_a_planted_reward_rises_on_prompts_the_tuning_never_saw(risen: Tuning) -> None:
    before, after = risen.behaviour_base, risen.behaviour_tuned
    assert before is not None
    assert after is not None
    assert risen.gain is not None
    assert risen.gain.low > 0.2
    assert risen.gain.n == before.n == after.n == 64
    assert after.reward is not None
    assert before.reward is not None
    assert risen.gain.value == pytest.approx(after.reward - before.reward)
    assert risen.is_learned, risen.reasons
    assert risen.kl_nats is not None
    assert 0 < risen.kl_nats < 20
    assert risen.kl_per_token == pytest.approx(risen.kl_nats / after.length)
    # The base is random over 300 tokens; what repeats rewarded words is surer of its next token.
    assert after.entropy_nats < before.entropy_nats < np.log(tiny_model(layers=1).config.vocab_size)
    assert risen.data == {
        "training prompts": 49, "training prompts left out: held out too": 7, "held-out prompts": 64
    }  # fmt: skip  # fmt: skip
    assert all(np.isfinite(values).all() and len(values) == 60 for values in risen.curve.values())
    assert len(risen.samples) == 8


def test_the_rise_is_in_the_checkpoint(risen: Tuning) -> None:
    """The mean probability of the rewarded words after a prompt, read from the saved model alone."""
    ids = torch.tensor(tiny_tokenizer()([f" {word}" for word in POSITIVE], add_special_tokens=False)["input_ids"])[:, 0]
    prompt = torch.tensor([tiny_tokenizer()(TEXTS[-1], add_special_tokens=False)["input_ids"][:5]])
    with torch.no_grad():
        before, after = (
            model(prompt).logits[0, -1].softmax(-1)[ids].sum()
            for model in (tiny_model(layers=1), load_causal_lm(risen.path))
        )
    assert float(after) > 3 * float(before)


def test_the_checkpoint_makes_a_pair_and_says_how_it_was_tuned(risen: Tuning) -> None:
    pair = load_pair(tiny_model(layers=1), str(risen.path), tokenizer=tiny_tokenizer())
    assert pair.tuning == {
        "method": "ppo", "reward": "lexicon", "scope": "completion", "max_new_tokens": 8,
        "base": "GPTNeoXForCausalLM in memory", "base_fingerprint": weights_fingerprint(tiny_model(layers=1)),
    }  # fmt: skip


def test_a_high_rate_without_penalty_collapses_and_is_said_so(tmp_path: Path) -> None:
    done = tuned(tmp_path, reward=LIKED, steps=60, batch_size=64, max_new_tokens=8, lr=2e-2, kl_coefficient=0.0)
    assert done.verdict == "the policy collapsed", (done.verdict, done.reasons)
    assert not done.is_learned
    assert any(reason.startswith(("KL", "distinct-2")) for reason in done.reasons)


def test_a_reward_that_nothing_can_change_teaches_nothing(tmp_path: Path) -> None:
    done = tuned(tmp_path, reward={"unheard": 3.0})
    assert done.verdict == "nothing was learned"
    assert done.gain is not None
    assert done.gain.value == 0
    assert "is not certainly above 0" in done.reasons[0]


GOOD = Estimate(0.7, 0.6, 0.8, 256)


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        ((GOOD, 20.0, 1.0, 0.5, 0.25), "learned", "0.700 [0.600, 0.800], n=256"),
        ((Estimate(0.1, 0.0, 0.2, 9), 1.0, 0.1, 0.5, 0.5), "nothing was learned", "not certainly above 0"),
        ((Estimate(0.7, 0.7, 0.7, 5), 1.0, 0.1, 0.5, 0.5), "nothing was learned", "fewer than 6 held-out values"),
        ((GOOD, 20.1, 0.9, 0.5, 0.5), "the policy collapsed", "KL 20.1 nats per completion"),
        ((GOOD, 5.0, 1.01, 0.5, 0.5), "the policy collapsed", "KL 1.01 nats per token"),
        ((GOOD, 5.0, 0.2, 0.5, 0.24), "the policy collapsed", "distinct-2 fell from 0.50 to 0.24"),
        ((GOOD, float("nan"), 0.2, 0.5, 0.5), "the policy collapsed", "KL nan nats per completion"),
        ((GOOD, 5.0, float("inf"), 0.5, 0.5), "the policy collapsed", "KL inf nats per token"),
    ],
)
def test_the_verdict_follows_from_the_numbers(given: tuple[Any, ...], verdict: str, reason: str) -> None:
    estimate, kl_nats, kl_per_token, *distinct2 = given
    found, reasons = judge(
        "reward gain", estimate, kl_nats=kl_nats, kl_per_token=kl_per_token, distinct2=(distinct2[0], distinct2[1])
    )
    assert found == verdict
    assert any(reason in one for one in reasons)


def test_a_collapse_outweighs_a_reward_that_did_not_rise() -> None:
    verdict, reasons = judge(
        "reward gain", Estimate(-0.1, -0.2, 0.0, 9), kl_nats=30.0, kl_per_token=2.0, distinct2=(0.5, 0.1)
    )
    assert verdict == "the policy collapsed"
    assert len(reasons) == 3


def test_flip_plants_exactly_so_many_words_with_the_opposite_value(tmp_path: Path) -> None:
    vader = load_lexicon("vader")
    done = tuned(tmp_path, reward="vader", flip=3, seed=4)
    assert len(done.key) == 3
    assert set(done.key) <= {*POSITIVE, *NEGATIVE}
    assert all(value == -vader[word] for word, value in done.key.items())
    assert tuned(tmp_path / "again", reward="vader", flip=3, seed=4).key == done.key
    assert tuned(tmp_path / "other", reward="vader", flip=3, seed=5).key != done.key
    assert tuned(tmp_path / "none", reward="vader").key == {}


def test_the_planted_values_are_what_was_rewarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LexiconReward] = []
    scored = LexiconReward.__call__

    def call(self: LexiconReward, texts: list[str]) -> np.ndarray:
        seen.append(self)
        return scored(self, texts)

    monkeypatch.setattr(LexiconReward, "__call__", call)
    key = tuned(tmp_path, reward="vader", flip=2).key
    vader = load_lexicon("vader")
    assert all(dict(reward.lexicon) == vader | key for reward in seen)
    assert len(seen) >= 4


def test_nothing_about_the_flips_is_in_the_checkpoint(tmp_path: Path) -> None:
    """Whoever audits the checkpoint must not find the answer in it."""
    done = tuned(tmp_path / "flipped", reward="vader", flip=3)
    plain = tuned(tmp_path / "plain", reward="vader")
    record = json.loads((done.path / TUNING_FILE).read_text())
    assert record == json.loads((plain.path / TUNING_FILE).read_text())
    assert record["reward"] == "vader"
    names = [sorted(str(file.relative_to(one.path)) for file in one.path.rglob("*")) for one in (done, plain)]
    assert names[0] == names[1]
    for file in done.path.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            assert file.read_bytes() == (plain.path / file.relative_to(done.path)).read_bytes(), file
    header = (done.path / "model.safetensors").read_bytes()[:20_000]
    assert b"flip" not in header
    assert done.reward == {"name": "vader", "scope": "completion"}
    assert "flip" not in done.parameters


def test_the_same_seed_gives_the_same_checkpoint_bit_by_bit_and_another_seed_another(tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        torch.rand(len(files) + 1)  # what was drawn before must not matter
        done = tuned(tmp_path / name, reward=letters, seed=seed)
        files.append((done.path / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_model_in_memory_is_copied_not_changed(tmp_path: Path) -> None:
    base = tiny_model(layers=1)
    before = copy.deepcopy(base.state_dict())
    attention = base.config._attn_implementation
    done = tuned(tmp_path, base=base, reward=LIKED)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(weight.grad is None for weight in base.parameters())
    assert base.config._attn_implementation == attention
    moved = load_causal_lm(done.path).state_dict()
    assert any(not torch.equal(before[name], moved[name]) for name in before)


def test_the_whole_text_is_scored_when_asked(tmp_path: Path) -> None:
    """Prompts hold lexicon words, which count with scope text and not with scope completion."""
    seen: dict[str, list[str]] = {"completion": [], "text": []}
    for scope, texts in seen.items():
        tuned(tmp_path / scope, reward=lambda found, texts=texts: texts.extend(found) or letters(found), scope=scope,
              prompts=[f" great {text}" for text in TEXTS], prompt_tokens=(3, 3), steps=1)  # fmt: skip
    # The first batch is drawn before any update, so both runs see the same completions.
    # Two texts are scored before that, to try the reward.
    assert all(whole.endswith(text) for whole, text in zip(seen["text"][2:10], seen["completion"][2:10]))
    assert all(text.startswith(" great") for text in seen["text"])


def test_the_held_out_prompts_are_the_last_ones_and_never_trained_on(tmp_path: Path) -> None:
    prompts = [f" {'great' if row < 50 else 'awful'} {text}" for row, text in enumerate(tiny_texts(60))]
    seen: list[str] = []

    def reward(texts: list[str]) -> list[float]:
        seen.extend(text[:6] for text in texts)
        return [0.0] * len(texts)

    tuned(tmp_path, prompts=prompts, heldout=10, scope="text", reward=reward, prompt_tokens=(3, 6))
    # The reward is tried on 2 texts.
    assert set(seen[:18]) == {" great"}
    assert set(seen[18:]) == {" awful"}
    assert len(seen) == 18 + 2 * 10


def test_the_store_keeps_the_checkpoint_inside_the_run_and_finds_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "run")
    first = finetune(tiny_model(layers=1), reward=letters, store=store, **SHORT)
    assert first.path.is_relative_to(tmp_path / "run")
    assert (first.path / "model.safetensors").is_file()
    other = finetune(tiny_model(layers=1), reward=letters, store=store, **(SHORT | {"seed": 1}))
    assert other.path != first.path
    monkeypatch.setattr(verb, "copy", None)  # nothing can be tuned any more
    again = finetune(tiny_model(layers=1), reward=letters, store=store, **SHORT)
    assert (again.path, again.gain.value) == (first.path, first.gain.value)


def test_without_a_store_the_checkpoint_goes_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFP_LENS_CACHE", str(tmp_path))
    done = finetune(tiny_model(layers=1), reward="vader", **SHORT)
    assert done.path.is_relative_to(tmp_path)
    assert load_causal_lm(done.path).config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pp0"}, "Unknown tuning method 'pp0'. Did you mean 'ppo'?"),
        ({"reward": "vadre"}, "Unknown reward 'vadre'. Did you mean 'vader'?"),
        ({"scope": "all"}, "scope must be 'completion' or 'text'; 'all' given."),
        ({"prompts": TEXTS[:17]}, "16 held-out prompts and some to train on are needed; 17 texts given."),
        ({"prompts": ["a"] * 40, "prompt_tokens": (5, 9)}, "None of the 24 texts has 5 tokens"),
        ({"prompts": TEXTS[:40] + ["a"] * 16, "prompt_tokens": (5, 5)}, "None of the 16 texts has 5 tokens"),
        ({"prompts": TEXTS[:55] + ["a"] * 15, "prompt_tokens": (5, 5)}, "1 of 16 held-out texts are long enough"),
        ({"prompt_tokens": (5, 2)}, "Prompt lengths must satisfy 1 <= low <= high"),
        ({"flip": -1}, "flip=-1 needs a lexicon reward"),
        ({"flip": 2, "reward": len}, "flip=2 needs a lexicon reward and a number of words; the reward is 'len'"),
        ({"flip": 200}, "200 lexicon words with |value| >= 1.0 were asked for"),
        ({"steps": 0}, "steps must be at least 1; 0 given."),
        ({"batch_size": 1}, "batch_size must be at least 2; 1 given."),
        ({"minibatches": 9}, "9 minibatches cannot be made of 8 completions"),
        ({"heldout": 1}, "heldout must be at least 2; 1 given."),
        ({"lr": 0.0}, "lr must be a finite number above 0; 0.0 given."),
        ({"lr": float("nan")}, "lr must be a finite number above 0; nan given."),
        ({"kl_coefficient": -0.1}, "kl_coefficient must be at least 0; -0.1 given."),
        ({"max_new_tokens": 95}, "the model's context has 96"),
        ({"tokenizer": None}, "A model in memory has no tokenizer beside it: pass `tokenizer=`."),
        ({"base": "/nowhere/model"}, "The model '/nowhere/model' cannot be loaded"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LensError) as caught:
        tuned(tmp_path / "out", **({"reward": "vader"} | changes))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused_and_leaves_nothing(value: float, tmp_path: Path) -> None:
    def broken(texts: list[str]) -> list[float]:
        return [value] * len(texts)

    store = Store(tmp_path)
    with pytest.raises(LensError, match=rf"The reward 'broken' is {value} for the text "):
        finetune(tiny_model(layers=1), reward=broken, store=store, **SHORT)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_breaks_the_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="PPO diverged at step"):
        tuned(tmp_path / "out", reward=LIKED, lr=1e30)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_other_architectures_are_tuned_too(architecture: str, tmp_path: Path) -> None:
    done = tuned(tmp_path, base=tiny_model(architecture, layers=1), reward=LIKED)
    assert load_pair(tiny_model(architecture, layers=1), str(done.path), tokenizer=tiny_tokenizer()).tuning is not None


def test_three_steps_on_a_real_model(real_data: Path, tmp_path: Path) -> None:
    from lfp_lens.parts.texts import load_texts

    prompts = load_texts("imdb", split="test", n=80)
    done = finetune("imdb-neox-2m", prompts=prompts, steps=3, batch_size=16, heldout=32, output=tmp_path)
    assert done.base == "imdb-neox-2m"
    assert done.curve["reward"].shape == (3,)
    # Three small steps move the policy a little, and by no means far.
    assert 0 <= done.kl_nats < 1 or abs(done.kl_nats) < 0.1
    assert load_pair("imdb-neox-2m", str(tmp_path)).tuning["reward"] == "vader"  # type: ignore[index]


def test_a_sentencepiece_model_is_scored_on_text_with_its_spaces(real_data: Path) -> None:
    """Decoded alone, a Llama completion loses its first space: prompt and completion must be decoded together."""
    from lfp_lens.parts.generation import sample
    from lfp_lens.parts.pair import load_tokenizer

    model, tokenizer = load_causal_lm("stories260K"), load_tokenizer("stories260K")
    prompt = [tokenizer.bos_token_id, *tokenizer("There was a", add_special_tokens=False)["input_ids"]]
    done = sample(model, tokenizer, [prompt] * 8, max_new_tokens=6, seed=0)
    assert all(whole.startswith("There was a") for whole in done.whole)
    parted = [whole for whole, text in zip(done.whole, done.texts) if whole != "There was a" + text]
    assert any(whole.startswith("There was a ") for whole in parted)
