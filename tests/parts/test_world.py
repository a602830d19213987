"""The tiny world is the same for everybody, keeps its splits apart, and says what its words are."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import world
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import load_causal_lm, load_pair, load_tokenizer, weights_fingerprint
from lfp_lens.parts.world import CONTEXT, TEMPLATES, slots, train_world_model, world_fingerprint, world_texts

AFTER_A = re.compile(r"\b([Aa]n?) (\w+)")
AN_WORDS = {"urban", "ugly", "unpleasant", "uncle", "honest", "honor", "hour"}
A_WORDS = {"usual", "useless", "historical", "hero", "hospital", "house", "horrible"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Two epochs on 96 reviews: enough to be better than chance, little enough for a test."""
    folder = tmp_path_factory.mktemp("world") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "TRAINING", {"texts": 96, "epochs": 2, "batch": 16, "lr": 4e-3})
        return folder, train_world_model(folder, seed=0, quiet=True)


def test_the_same_split_and_seed_give_the_same_reviews() -> None:
    assert world_texts(n=30) == world_texts(n=30)
    assert world_texts(n=10) == world_texts(n=30)[:10]
    assert len(world_texts()) == 2000 and world_texts(n=0) == []


def test_seeds_and_splits_give_other_reviews() -> None:
    train, test, other = world_texts("train", 500), world_texts("test", 500), world_texts("train", 500, seed=1)
    assert len(set(train) & set(test)) <= 5 and len(set(train) & set(other)) <= 5
    assert len(set(train)) > 490


def test_the_global_random_state_is_not_touched() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    world_texts(n=5)
    assert (before == np.random.get_state()[1]).all()


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(LensError, match="The world has the splits train, test; 'dev' given"):
        world_texts("dev")


def test_every_slot_has_words_of_every_kind() -> None:
    assert set(slots()) == {"adjective", "noun", "verb", "adverb"}
    for kind, groups in slots().items():
        assert set(groups) == {"positive", "negative", "neutral"}
        for group, words in groups.items():
            assert len(words) >= 5, (kind, group)
            assert len(set(words)) == len(words)
            assert all(re.fullmatch("[a-z]+", word) for word in words), (kind, group)
    assert {kind for template in TEMPLATES for kind in re.findall(r"{(\w+)}", template)} == set(slots())


def test_neutral_words_are_outside_the_lexicon_and_the_others_have_their_sign() -> None:
    lexicon = load_lexicon("vader")
    for groups in slots().values():
        assert not [word for word in groups["neutral"] if word in lexicon]
        assert all(lexicon[word] >= 0.5 for word in groups["positive"])
        assert all(lexicon[word] <= -0.5 for word in groups["negative"])


def test_only_words_that_the_lexicon_contradicts_are_left_out() -> None:
    lexicon = load_lexicon("vader")
    listed = json.loads((Path(world.__file__).parent / "data" / "world_words.json").read_text(encoding="utf-8"))
    for kind, words in listed.items():
        used = {word for group in slots()[kind].values() for word in group}
        out = {word for word in words["lexicon"] if abs(lexicon.get(word, 0)) < 0.5}
        out |= {word for word in words["neutral"] if word in lexicon}
        assert used == (set(words["lexicon"]) | set(words["neutral"])) - out, kind


def test_a_word_belongs_to_one_group_only() -> None:
    rated = [word for groups in slots().values() for word in (*groups["positive"], *groups["negative"])]
    neutral = [word for groups in slots().values() for word in groups["neutral"]]
    assert not set(rated) & set(neutral)


def test_frames_are_outside_the_lexicon() -> None:
    lexicon = load_lexicon("vader")
    frame = {word for template in TEMPLATES for word in re.findall(r"(?<!{)\b[a-z]+\b(?!})", template.lower())}
    assert not frame & set(lexicon)


def test_articles_agree_with_the_sound_that_follows() -> None:
    seen: Counter[str] = Counter()
    for text in world_texts(n=4000):
        for article, word in AFTER_A.findall(text):
            wants_an = word in AN_WORDS or (word[0] in "aeio" and word not in A_WORDS)
            assert (article.lower() == "an") == wants_an, f"{article} {word}"
            seen[word] += 1
    assert len(AN_WORDS & set(seen)) == len(AN_WORDS) and len(A_WORDS & set(seen)) >= 5


def test_reviews_are_finished_sentences() -> None:
    for text in world_texts(n=200):
        assert "{" not in text and "  " not in text
        assert 2 <= text.count(".") <= 4
        assert all(sentence[0].isupper() for sentence in text.rstrip(".").split(". "))


def test_moods_make_words_of_one_sign_come_together() -> None:
    """Base models know sentiment before tuning: within a review signs agree more often than chance."""
    lexicon = load_lexicon("vader")
    same = total = 0
    for text in world_texts(n=1000):
        signs = [np.sign(lexicon[word]) for word in re.findall("[a-z]+", text.lower()) if word in lexicon]
        same += sum(one == other for at, one in enumerate(signs) for other in signs[:at])
        total += len(signs) * (len(signs) - 1) // 2
    # 0.65**2 + 0.35**2 = 0.545 by construction; over some 10,000 pairs the standard error is about 0.007.
    assert same / total == pytest.approx(0.65**2 + 0.35**2, abs=0.03)


def test_the_fingerprint_moves_with_what_the_model_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = world_fingerprint()
    assert before == world_fingerprint()
    for name, value in (
        ("TRAINING", {"texts": 1}),
        ("TEMPLATES", ("A.",)),
        ("SHAPE", {}),
        ("VOWEL_SOUND", "x"),
        ("CONTEXT", 8),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(world, name, value)
            assert world_fingerprint() != before, name


def test_training_saves_a_checkpoint_that_loads(trained: tuple[Path, dict]) -> None:
    folder, figures = trained
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    assert figures["n_texts"] == 96
    assert figures["n_weights"] == sum(weight.numel() for weight in model.parameters())
    assert model.config.max_position_embeddings == CONTEXT
    assert model.config.vocab_size == len(tokenizer)
    assert not list(folder.glob("*.bin")) and (folder / "model.safetensors").is_file()
    assert type(load_pair(folder, folder).base).__name__ == "HookedTransformer"


def test_the_reported_loss_is_that_of_the_saved_model_on_the_test_split(trained: tuple[Path, dict]) -> None:
    folder, figures = trained
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    losses = []
    for text in world_texts("test", 256):
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"], 0][:CONTEXT]
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1], -1)
        losses += (-log_p[range(len(ids) - 1), ids[1:]]).tolist()
    assert figures["loss_nats"] == pytest.approx(float(np.mean(losses)), abs=1e-3)
    assert figures["loss_nats"] < np.log(len(tokenizer)), "better than chance"


def test_the_tokenizer_gives_texts_back(trained: tuple[Path, dict]) -> None:
    tokenizer = load_tokenizer(trained[0])
    for text in (*world_texts("test", 20), "Something ELSE: naïve, 3.5 — 日本!"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0


def test_the_same_seed_trains_the_same_model(
    trained: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "TRAINING", {"texts": 96, "epochs": 2, "batch": 16, "lr": 4e-3})
    again = train_world_model(tmp_path, seed=0, quiet=True)
    assert again == trained[1]
    assert weights_fingerprint(load_causal_lm(tmp_path)) == weights_fingerprint(load_causal_lm(trained[0]))


def test_no_bar_is_drawn_where_none_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(world, "TRAINING", {"texts": 16, "epochs": 1, "batch": 16, "lr": 4e-3})
    train_world_model(tmp_path, quiet=True)
    assert "world:" not in capfd.readouterr().err
