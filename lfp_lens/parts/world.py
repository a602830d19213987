"""The tiny world: a seeded grammar of short reviews, and a GPT-NeoX of about half a million weights trained on them.

It is the embedded default: everything the software measures can be tried in minutes, offline, on a world whose words and
values are known. Sentences come from templates with four kinds of slot (adjective, noun, verb, adverb); each slot holds
lexicon words of both polarities and words outside the lexicon. A review has a mood that most of its lexicon words
follow, so that the base model knows sentiment before any tuning, as real models do.
"""

import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import Store
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.speed import quiet_transformers
from lfp_lens.results.world import World

TEMPLATES = (
    "The {noun} was {adjective} and the {noun} was {adjective}.",
    "I {verb} the {adjective} {noun}.",
    "It is a {adjective} {noun} with a {adjective} {noun}.",
    "The {noun} {adverb} {verb} the {noun}.",
    "My {noun} {verb} this {adjective} {noun}.",
    "The {adjective} {noun} was {adverb} {adjective}.",
    "We {adverb} {verb} the {noun} and the {noun}.",
    "There is a {noun} and a {adjective} {noun}.",
    "This {noun} is {adverb} {adjective}, {adjective} and {adjective}.",
    "They {verb} a {adjective} {noun} in the {noun}.",
)
VOWEL_SOUND = "[aeio]|u(?!s[eu])|hon|hour"
"""Beginnings of words after which "a" is "an": an uncle, an hour, but a useless, a usual one."""
SENTENCES = (2, 4)
NEUTRAL_SHARE, MOOD_SHARE, FREQUENCY_EXPONENT = 0.5, 0.65, 0.4
SPLIT_SEEDS = {"train": 1, "test": 2}
VOCABULARY, CONTEXT = 1536, 96
SHAPE = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256}
TRAINING: dict[str, Any] = {"texts": 6000, "epochs": 3, "batch": 64, "lr": 4e-3}


@cache
def slots() -> dict[str, dict[str, tuple[str, ...]]]:
    """Give, for each kind of slot, its `positive`, `negative` and `neutral` words by the VADER lexicon.

    A word that the lists call neutral but the lexicon rates is left out, and the other way round.
    """
    lexicon = load_lexicon("vader")
    listed = json.loads(resources.files("lfp_lens.parts").joinpath("data/world_words.json").read_text(encoding="utf-8"))
    return {
        kind: {
            "positive": tuple(word for word in words["lexicon"] if lexicon.get(word, 0) >= 0.5),
            "negative": tuple(word for word in words["lexicon"] if lexicon.get(word, 0) <= -0.5),
            "neutral": tuple(word for word in words["neutral"] if word not in lexicon),
        }
        for kind, words in listed.items()
    }


def world_texts(split: str = "train", n: int | None = None, seed: int = 0) -> list[str]:
    """Write `n` reviews (2,000 if None); the same split and seed always give the same reviews, in the same order.

    >>> world_texts(n=1) == world_texts(n=2)[:1]
    True
    """
    if split not in SPLIT_SEEDS:
        raise LensError(f"The world has the splits {', '.join(SPLIT_SEEDS)}; {split!r} given.")
    generator = np.random.default_rng((SPLIT_SEEDS[split], seed))
    return [_review(generator) for _ in range(2000 if n is None else n)]


def _review(generator: np.random.Generator) -> str:
    mood = ("positive", "negative")[generator.integers(2)]
    count = generator.integers(SENTENCES[0], SENTENCES[1] + 1)
    return " ".join(_sentence(generator, mood) for _ in range(count))


def _sentence(generator: np.random.Generator, mood: str) -> str:
    text = TEMPLATES[generator.integers(len(TEMPLATES))]
    for kind in slots():
        while "{" + kind + "}" in text:
            text = text.replace("{" + kind + "}", _word(generator, kind, mood), 1)
    return re.sub(rf"\b([Aa]) (?={VOWEL_SOUND})", r"\1n ", text)


def _word(generator: np.random.Generator, kind: str, mood: str) -> str:
    other = "negative" if mood == "positive" else "positive"
    if generator.random() < NEUTRAL_SHARE:
        group = "neutral"
    else:
        group = mood if generator.random() < MOOD_SHARE else other
    words, weights = _weighted(kind, group)
    return words[generator.choice(len(words), p=weights)]


@cache
def _weighted(kind: str, group: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Give the words in a fixed shuffled order with falling frequencies, so that rank tells nothing of value."""
    words = slots()[kind][group]
    order = np.random.default_rng(len(words)).permutation(len(words))
    weights = 1.0 / (1 + np.arange(len(words))) ** FREQUENCY_EXPONENT
    return tuple(words[at] for at in order), weights / weights.sum()


def world_fingerprint() -> str:
    """Hash everything that the trained model depends on beside the seed."""
    plain = {kind: {group: list(words) for group, words in groups.items()} for kind, groups in slots().items()}
    return fingerprint([plain, list(TEMPLATES), VOWEL_SOUND, SHAPE, TRAINING, VOCABULARY, CONTEXT])


def train_world_model(folder: Path, *, seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Train the tokenizer and the model, save both into `folder`, and give the figures of the training.

    Returns: `loss_nats` (mean per token on the test split), `n_weights`, `n_texts`.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    texts = world_texts("train", TRAINING["texts"], seed)
    tokenizer = _train_tokenizer(texts)
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, **SHAPE,
            hidden_dropout=0.0, attention_dropout=0.0, attn_implementation="eager",
        )
    )  # fmt: skip
    rows = _rows(tokenizer, texts)
    steps = TRAINING["epochs"] * (len(rows) // TRAINING["batch"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TRAINING["lr"], total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="world", disable=quiet):
        ids, labels = _batch(rows, torch.randint(len(rows), (TRAINING["batch"],), generator=generator).tolist())
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    quiet_transformers()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    heldout = _rows(tokenizer, world_texts("test", 256, seed))
    with torch.no_grad():
        ids, labels = _batch(heldout, list(range(len(heldout))))
        loss = float(model(input_ids=ids, labels=labels).loss)
    return {
        "loss_nats": loss,
        "n_weights": sum(part.numel() for part in model.parameters()),
        "n_texts": len(texts),
    }


def world_checkpoint(store: Store, *, seed: int = 0) -> Path:
    """Give the folder of the trained model and its tokenizer, trained once and kept in the store."""

    def make(folder: Path) -> World:
        return World(folder / "checkpoint", **train_world_model(folder / "checkpoint", seed=seed))

    return Path(store.get("world", {"world": world_fingerprint(), "seed": seed}, make).path)


def _train_tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def _rows(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Give every text between two end-of-text tokens, cut to the context."""
    end = tokenizer.eos_token_id
    return [[end, *ids, end][:CONTEXT] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _batch(rows: list[list[int]], picked: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(rows[at]) for at in picked)
    ids = torch.zeros(len(picked), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, at in enumerate(picked):
        ids[row, : len(rows[at])] = labels[row, : len(rows[at])] = torch.tensor(rows[at])
    return ids, labels
