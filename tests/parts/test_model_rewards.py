"""Rewards that are models: classifiers, reward models, and sums with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lfp_lens.core.errors import LensError
from lfp_lens.parts.rewards import REWARDS, LexiconReward, Reward, WeightedReward, load_classifier, make_reward
from tests.tiny import CONTEXT, tiny_model, tiny_texts, tiny_tokenizer

TEXTS = [*tiny_texts(9), "the", "", "wonderful " * 20, "awful river. " * 7]
KINDS = ("Bert", "DistilBert", "Roberta", "GPTNeoX", "GPT2", "Llama")


def tiny_classifier(kind: str = "Bert", labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE"), seed: int = 0) -> Any:
    """Give a random sequence classifier over the tiny vocabulary."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tiny_tokenizer()), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": CONTEXT, "initializer_range": 0.25,
        "id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)},
    }  # fmt: skip
    if kind == "Roberta":
        # RoBERTa keeps the first places of its table for padding.
        sizes |= {"pad_token_id": 1, "max_position_embeddings": CONTEXT + 2}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


def saved(folder: Path, model: Any, *, padding_side: str = "right", max_length: int | None = None) -> str:
    tokenizer = tiny_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {"padding_side": padding_side} | ({} if max_length is None else {"model_max_length": max_length})
    transformers.AutoTokenizer.from_pretrained(folder, **options).save_pretrained(folder)
    return str(folder)


def one_by_one(model: Any, label: int, texts: list[str] = TEXTS, longest: int = CONTEXT) -> np.ndarray:
    """Give the logits of texts that are read alone, so that nothing is ever filled up: the second implementation."""
    found = []
    for text in texts:
        ids = tiny_tokenizer()(text)["input_ids"][:longest] or [0]
        with torch.no_grad():
            found.append(float(model(input_ids=torch.tensor([ids])).logits[0, label]))
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_company_order_and_padding_side_change_no_classifier_reward(tmp_path: Path, kind: str, padding_side: str):
    model = tiny_classifier(kind)
    reward = make_reward(f"classifier:{saved(tmp_path, model, padding_side=padding_side)}@1")
    alone = one_by_one(model, 1)
    assert np.ptp(alone) > 0.01
    # 1e-5 is what the rewards promise; sums of fp32 in another order stay far below it
    assert reward(TEXTS) == pytest.approx(alone, abs=1e-5)
    assert reward(TEXTS[::-1]) == pytest.approx(alone[::-1], abs=1e-5)
    assert reward([]).shape == (0,)


def test_more_texts_than_a_batch_holds_keep_their_order(tmp_path: Path):
    reward = make_reward(f"classifier:{saved(tmp_path, tiny_classifier())}@0")
    many = tiny_texts(150, seed=1)
    assert reward(many) == pytest.approx(np.concatenate([reward(many[:75]), reward(many[75:])]), abs=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "GPT2"])
@pytest.mark.parametrize("max_length", [None, 10])
def test_a_text_longer_than_the_model_is_cut_at_its_end(tmp_path: Path, kind: str, max_length: int | None):
    model, longest = tiny_classifier(kind), max_length or CONTEXT
    reward = make_reward(f"classifier:{saved(tmp_path, model, max_length=max_length)}@1")
    long = ["the film was wonderful and " * 30]
    assert len(tiny_tokenizer()(long[0])["input_ids"]) > CONTEXT
    assert reward(long) == pytest.approx(one_by_one(model, 1, long, longest), abs=1e-5)


def test_training_under_autocast_does_not_round_the_reward(tmp_path: Path):
    reward = make_reward(f"classifier:{saved(tmp_path, tiny_classifier())}@1")
    plain = reward(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward(TEXTS).tolist() == plain.tolist()
        assert np.abs(one_by_one(reward.model.model, 1) - plain).max() > 1e-4  # what the rounding would do


def test_a_label_is_an_index_or_a_name_and_may_be_left_out_where_there_is_one(tmp_path: Path):
    two = saved(tmp_path / "two", tiny_classifier())
    by_name, by_index = make_reward(f"classifier:{two}@positive"), make_reward(f"classifier:{two}@1")
    assert by_name(TEXTS).tolist() == by_index(TEXTS).tolist() != make_reward(f"classifier:{two}@0")(TEXTS).tolist()
    assert by_name.name == f"classifier:{two}@positive"
    one = saved(tmp_path / "o@ne", tiny_classifier(labels=("score",)))
    assert make_reward(f"classifier:{one}")(TEXTS) == pytest.approx(one_by_one(load_classifier(one).model, 0), abs=1e-5)
    stars = saved(tmp_path / "stars", tiny_classifier(labels=("1", "0", "5")))
    assert load_classifier(stars, 2).label == load_classifier(stars, "5").label == 2
    with pytest.raises(LensError, match=r"'1' means more than one label"):
        load_classifier(stars, "1")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("", r"has 2 labels: choose one, as in 'classifier:.*@1'\. Labels: 0 \(NEGATIVE\), 1 \(POSITIVE\)"),
        ("@2", r"'2' is no label of"),
        ("@POSITIF", r"'POSITIF' is no label of .* Did you mean 'POSITIVE'\? Labels: 0 \(NEGATIVE\)"),
        ("@-1", r"'-1' is no label"),
    ],
)
def test_a_label_that_is_missing_or_unknown_is_refused_with_the_labels(tmp_path: Path, label: str, message: str):
    folder = saved(tmp_path, tiny_classifier())
    with pytest.raises(LensError, match=message):
        make_reward(f"classifier:{folder}{label}")


def test_the_fingerprint_of_a_classifier_is_its_content_and_label_not_its_place(tmp_path: Path):
    first, copy = (saved(tmp_path / name, tiny_classifier()) for name in ("a", "b"))
    other = saved(tmp_path / "c", tiny_classifier(seed=1))
    short = saved(tmp_path / "d", tiny_classifier(), max_length=8)
    reward = make_reward(f"classifier:{first}@1")
    assert isinstance(reward, Reward)
    before = reward.fingerprint
    reward(TEXTS)
    assert before == reward.fingerprint == make_reward(f"classifier:{copy}@POSITIVE").fingerprint
    prints = {make_reward(f"classifier:{name}").fingerprint for name in (f"{first}@0", f"{other}@1", f"{short}@1")}
    assert len(prints | {before}) == 4
    assert make_reward(reward) is reward


def test_what_is_no_classifier_is_refused(tmp_path: Path):
    model = tiny_model()
    with pytest.raises(LensError, match="no sequence classifier but GPTNeoXForCausalLM"):
        make_reward(f"classifier:{saved(tmp_path, model)}@1")
    model.config.architectures = ["GPTNeoXForSequenceClassification"]
    model.config.save_pretrained(tmp_path)
    with pytest.raises(LensError, match=r"lacks 1 weights, first score\.weight: they would be random"):
        make_reward(f"classifier:{tmp_path}@1")
    with pytest.raises(LensError, match=r"The classifier '.*absent' cannot be loaded"):
        make_reward(f"classifier:{tmp_path}/absent@1")
    with pytest.raises(LensError, match="names no model"):
        make_reward("classifier:")


def test_weights_that_are_a_pickle_are_not_loaded(tmp_path: Path):
    model = tiny_classifier()
    folder = saved(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LensError, match="safetensors"):
        make_reward(f"classifier:{folder}@1")


def test_a_logit_that_is_no_finite_number_is_refused_with_the_text(tmp_path: Path):
    model = tiny_classifier("GPTNeoX")
    word = tiny_tokenizer()(" river", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[word] = float("nan")
    reward = make_reward(f"classifier:{saved(tmp_path, model)}@1")
    assert np.isfinite(reward(["the film"])).all()
    with pytest.raises(LensError, match=r"is nan for the text 'the river' \(1 of 2 texts\)"):
        reward(["the film", "the river"])


def test_a_weighted_sum_adds_its_parts(tmp_path: Path):
    spec = f"classifier:{saved(tmp_path, tiny_classifier())}@1"
    mixed = make_reward([("vader", 1.0), [spec, 0.5], (lambda texts: [len(text) for text in texts], -2)])
    wanted = make_reward("vader")(TEXTS) + 0.5 * make_reward(spec)(TEXTS) - 2 * np.array([len(text) for text in TEXTS])
    assert mixed(TEXTS) == pytest.approx(wanted, abs=1e-9)
    assert mixed.name == f"1*vader + 0.5*{spec} + -2*<lambda>"
    assert isinstance(mixed, WeightedReward)
    assert make_reward(mixed) is mixed


def test_the_fingerprint_of_a_sum_follows_its_parts_and_weights():
    def sums(good: float, weight: float) -> str:
        return make_reward([({"good": good}, weight), ("vader", 1)]).fingerprint

    assert sums(1.0, 0.5) == sums(1.0, 0.5)
    assert len({sums(1.0, 0.5), sums(2.0, 0.5), sums(1.0, 1.0), make_reward("vader").fingerprint}) == 4


def test_a_sum_may_hold_sums_and_names_the_part_that_fails():
    inner = make_reward([({"good": 5.0}, 2.0)])
    assert make_reward([(inner, 3.0), ([("vader", 1.0)], 0.0)])(["good"]).tolist() == [6.0]
    broken = make_reward([("vader", 1.0), (lambda texts: [float("nan")] * len(texts), 1.0)])
    with pytest.raises(LensError, match=r"'<lambda>' is nan for the text 'good'"):
        broken(["good"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one"),
        (["vader"], r"it holds 'vader'"),
        ([("vader", "1")], "finite weights"),
        ([("vader", float("inf"))], "finite weights"),
        ([("vader", True)], "finite weights"),
        ([("vadr", 1.0)], r"Unknown reward 'vadr'"),
        (("vader", 1.0), r"it holds 'vader'"),
    ],
)
def test_a_bad_sum_is_refused(given: Any, message: str):
    with pytest.raises(LensError, match=message):
        make_reward(given)


def test_a_misspelt_kind_of_model_gets_the_nearest():
    with pytest.raises(LensError, match=r"Did you mean 'classifier:MODEL@LABEL'\?"):
        make_reward("clasifier:model@label")
    assert "classifier" not in REWARDS
    assert isinstance(make_reward("vader"), LexiconReward)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_reward_model_is_read_by_its_path(tmp_path: Path, padding_side: str):
    model = tiny_classifier("GPTNeoX", labels=("score",))
    folder = saved(tmp_path, model, padding_side=padding_side)
    reward = make_reward(f"reward_model:{folder}")
    texts = [text for text in TEXTS if text]
    assert reward(texts) == pytest.approx(one_by_one(model, 0, texts), abs=1e-5)
    assert reward.name == f"reward_model:{folder}"
    copy = saved(tmp_path / "copy", model)
    assert make_reward(f"reward_model:{copy}").fingerprint == reward.fingerprint
    assert make_reward([(reward, 2.0)])(texts) == pytest.approx(2 * reward(texts))


def test_a_classifier_of_two_labels_is_no_reward_model(tmp_path: Path):
    folder = saved(tmp_path, tiny_classifier("GPTNeoX"))
    with pytest.raises(LensError, match="classifier"):
        make_reward(f"reward_model:{folder}")
