"""What a tuning is trained and measured on: prompts, pairs or texts, held-out ones apart, every cut and drop counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import encode
from lfp_lens.parts.generation import prompt_ids
from lfp_lens.parts.preferences import Preference, Preferences, sample_preferences
from lfp_lens.stages.finetune.job import Score, Settings


@dataclass(frozen=True, eq=False)
class Side:
    """Training or held-out data; what a method has no use for is empty."""

    prompts: list[list[int]] = field(default_factory=list)
    """Prompts as token ids, beginning-of-text first."""
    pairs: list[Preference] = field(default_factory=list)
    """Ordered pairs of completions."""
    texts: list[str] = field(default_factory=list)
    """Whole texts."""


@dataclass(frozen=True, eq=False)
class Data:
    """Both sides, and what happened on the way."""

    train: Side
    """What the method is given."""
    test: Side
    """What is measured, never trained on."""
    counts: dict[str, int]
    """Name -> number, for the result's `data`."""


def from_prompts(
    tokenizer: Any,
    texts: Sequence[str],
    lengths: tuple[int, int],
    *,
    heldout: int,
    seed: int,
    max_tokens: int | None = None,
) -> Data:
    """Cut prompts from the beginnings of texts; the last `heldout` texts are held out.

    A training prompt that is a held-out prompt too is left out. Where the texts themselves are trained on, `max_tokens` is
    where they will be cut; None: they are not.
    """
    train, test = list(texts[: len(texts) - heldout]), list(texts[len(texts) - heldout :])
    train_ids = prompt_ids(tokenizer, train, lengths, seed=seed)
    test_ids = prompt_ids(tokenizer, test, lengths, seed=seed + 1)
    if len(test_ids) < 2:
        raise LensError(f"{len(test_ids)} of {len(test)} held-out texts are long enough to make a prompt of; 2 needed.")
    counts = {}
    short = len(texts) - len(train_ids) - len(test_ids)
    if short:
        counts["texts too short for a prompt"] = short
    # Short prompts recur. What is measured on is never trained on, so it is the training side that loses them.
    held = {tuple(ids) for ids in test_ids}
    kept = [ids for ids in train_ids if tuple(ids) not in held]
    if not kept:
        raise LensError(
            f"All {len(train_ids)} training prompts are held-out prompts too. Give more texts, or raise prompt_tokens."
        )
    if len(kept) < len(train_ids):
        counts["training prompts left out: held out too"] = len(train_ids) - len(kept)
    counts |= {"training prompts": len(kept), "held-out prompts": len(test_ids)}
    held_texts = set(test)
    train = [text for text in train if text not in held_texts]
    for name, side in (("training", train), ("held-out", test)):
        n_cut = 0 if max_tokens is None else _n_longer(tokenizer, side, max_tokens)
        if n_cut:
            counts[f"{name} texts cut"] = n_cut
    return Data(Side(kept, texts=train), Side(test_ids, texts=test), counts)


def with_sampled_pairs(
    data: Data, model: Any, tokenizer: Any, score: Score, settings: Settings, *, min_gap: float
) -> Data:
    """Add pairs made of the base's own samples, two per prompt, ordered by the reward."""
    sides: list[Side] = []
    counts = dict(data.counts)
    for name, side in (("training", data.train), ("held-out", data.test)):
        pairs, dropped = sample_preferences(
            model,
            tokenizer,
            side.prompts,
            score,
            max_new_tokens=settings.max_new_tokens,
            min_gap=min_gap,
            seed=settings.seed + 2 + len(sides),
        )
        if len(pairs) < 2:
            raise LensError(
                f"{len(pairs)} {name} pairs of the base's samples differ in reward by at least {min_gap:g} ({dropped}); at "
                "least 2 are needed. Lower min_gap, give more prompts, or another reward."
            )
        sides.append(Side(side.prompts, pairs, side.texts))
        counts[f"{name} pairs"] = len(pairs)
        counts |= {f"{name} pairs left out: {reason}": n for reason, n in dropped.items() if n}
    return Data(sides[0], sides[1], counts)


def from_preferences(tokenizer: Any, given: Preferences, *, max_tokens: int, max_new_tokens: int, heldout: int) -> Data:
    """Cut pairs to `max_tokens`, prompts to the half of it that comes last; held-out prompts are the test pairs'."""
    counts = {f"pairs dropped: {reason}": n for reason, n in given.dropped.items() if n}
    sides = []
    for name, found in (("training", given.train), ("held-out", given.test[:heldout])):
        if len(found) < 2:
            raise LensError(f"{given.name} has {len(found)} {name} pairs; at least 2 are needed.")
        pairs, prompts_cut, completions_cut = cut(tokenizer, found, max_tokens)
        counts[f"{name} pairs"] = len(pairs)
        counts |= {
            f"{name} {what} cut": n for what, n in (("prompts", prompts_cut), ("completions", completions_cut)) if n
        }
        prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
        encoded = encode(tokenizer, prompts, max_tokens=max_tokens - max_new_tokens, keep_end=True)
        if not all(text.ids for text in encoded):
            raise LensError(
                f"{given.name} has a pair without a prompt, and the tokenizer no beginning-of-text to write on from."
            )
        sides.append(Side([text.ids for text in encoded], pairs, [pair.prompt + pair.chosen for pair in pairs]))
    return Data(sides[0], sides[1], counts | {"held-out prompts": len(sides[1].prompts)})


def cut(tokenizer: Any, pairs: Sequence[Preference], max_tokens: int) -> tuple[list[Preference], int, int]:
    """Cut prompts at their start and completions at their end; give the pairs and how many of either were cut.

    A prompt keeps at most half of `max_tokens` (the paper's 128 of 256), a completion the room that is left; one token
    each is left for beginning- and end-of-text.
    """
    prompts, chosen, rejected = (_spans(tokenizer, [pair[place] for pair in pairs]) for place in range(3))
    room = max_tokens // 2
    kept, prompts_cut, completions_cut = [], 0, 0
    for pair, *spans in zip(pairs, prompts, chosen, rejected):
        prompt = pair.prompt[spans[0][-room][0] :] if len(spans[0]) > room else pair.prompt
        left = max_tokens - 2 - min(len(spans[0]), room)
        texts = [text[: found[left - 1][1]] if len(found) > left else text for text, found in zip(pair[1:], spans[1:])]
        kept.append(Preference(prompt, *texts))
        prompts_cut += len(spans[0]) > room
        completions_cut += sum(len(found) > left for found in spans[1:])
    return kept, prompts_cut, completions_cut


def _n_longer(tokenizer: Any, texts: list[str], max_tokens: int) -> int:
    """Count the texts that have more tokens than this, beginning-of-text included."""
    room = max_tokens - (tokenizer.bos_token_id is not None)
    return sum(len(ids) > room for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])


def _spans(tokenizer: Any, texts: list[str]) -> list[list[tuple[int, int]]]:
    """Give the character span of every token of every text."""
    return tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
