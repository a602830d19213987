"""What `attribute` reads: texts or preference pairs as tokens, and batches in which no pair is torn apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Batch, Encoded, encode, pad
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.preferences import Preference, Preferences
from lfp_lens.parts.reward_models import RewardModel

MIN_TEXTS = 8
LOGITS_AT_ONCE = 2**26
"""Logits of one batch (256 MB in fp32, a few times over in the backward pass)."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Texts as tokens, in units: a unit is a text, or the two texts of a preference pair."""

    encoded: list[Encoded]
    """Every text; of pairs chosen and rejected by turns."""
    unit_T: np.ndarray
    """The unit of each text."""
    sign_T: np.ndarray
    """1, and -1 for the rejected text of a pair."""
    is_pairs: bool
    """Whether units are preference pairs."""
    prompts: tuple[str, ...] = ()
    """Prompt of each pair."""

    @property
    def n_units(self) -> int:
        """Texts, or pairs."""
        return int(self.unit_T.max()) + 1

    def halves(self) -> tuple[list[int], list[int]]:
        """Give the units that screen and those that confirm: every other one, pairs of one prompt together."""
        group = {prompt: at for at, prompt in enumerate(dict.fromkeys(self.prompts))}
        side = [group[prompt] % 2 for prompt in self.prompts] or [unit % 2 for unit in range(self.n_units)]
        first, second = ([unit for unit, at in enumerate(side) if at == half] for half in (0, 1))
        if min(len(first), len(second)) < 2:
            raise LensError(
                f"The pairs have {len(group)} different prompts: too few to screen on some and confirm on others."
            )
        return first, second

    def batches(self, units: Sequence[int], *, device: torch.device, vocabulary: int) -> Iterator[Batch]:
        """Give batches of units of like length, longest first."""
        rows_of = {unit: np.flatnonzero(self.unit_T == unit).tolist() for unit in units}
        length = {unit: max(len(self.encoded[row].ids) for row in rows) for unit, rows in rows_of.items()}
        order = sorted((unit for unit in units if length[unit]), key=lambda unit: (-length[unit], unit))
        limit, rows, width = min(8192, max(256, LOGITS_AT_ONCE // vocabulary)), list[int](), 0
        for unit in order:
            if rows and width * (len(rows) + len(rows_of[unit])) > limit:
                yield pad(self.encoded, rows, device=device)
                rows = []
            width = width if rows else length[unit]
            rows = rows + rows_of[unit]
        if rows:
            yield pad(self.encoded, rows, device=device)


def read(model: Pair | RewardModel, texts: Any, *, max_tokens: int) -> Reading:
    """Tokenise texts, or preference pairs `(prompt, chosen, rejected)`, cut to `max_tokens`.

    Of a text the end is cut, for a reward model the beginning. Of a pair the beginning of the prompt is cut, from both texts
    alike, then the end of what is still too long.
    """
    if isinstance(texts, Preferences):
        texts = texts.test
    if isinstance(texts, str):
        raise LensError("texts must be a list of strings; one string given. Write [text] for a single text.")
    items = list(texts)
    is_pairs = bool(items) and all(_is_preference(item) for item in items)
    if len(items) < MIN_TEXTS:
        what = "pairs" if is_pairs else "texts"
        raise LensError(f"attribute splits its {what} in two and needs at least {MIN_TEXTS}; {len(items)} given.")
    room = _room(model, max_tokens)
    if not is_pairs:
        encoded = _encoded(model, items, room)
        return Reading(encoded, np.arange(len(encoded)), np.ones(len(encoded)), False)
    pairs = [Preference(*item) for item in items]
    whole = _encoded(model, [pair.prompt + side for pair in pairs for side in (pair.chosen, pair.rejected)], None)
    cut = [text for at in range(0, len(whole), 2) for text in _cut(whole[at], whole[at + 1], room, _n_begin(model))]
    unit_T = np.repeat(np.arange(len(pairs)), 2)
    return Reading(
        cut, unit_T, np.where(np.arange(len(cut)) % 2, -1.0, 1.0), True, tuple(pair.prompt for pair in pairs)
    )


def _is_preference(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 3 and all(isinstance(part, str) for part in item)


def _room(model: Pair | RewardModel, max_tokens: int) -> int:
    if isinstance(model, Pair):
        return model.room(max_tokens)
    if max_tokens < 2:
        raise LensError(f"max_tokens must be at least 2; {max_tokens} given.")
    return min(max_tokens, getattr(model.hf.config, "max_position_embeddings", None) or max_tokens)


def _encoded(model: Pair | RewardModel, texts: list[str], room: int | None) -> list[Encoded]:
    if isinstance(model, Pair):
        return encode(model.tokenizer, texts, max_tokens=10**6 if room is None else room)
    odd = [text for text in texts if not isinstance(text, str)]
    if odd:
        raise LensError(f"texts must be a list of strings; it holds a {type(odd[0]).__name__}.")
    whole = model.encode(texts)
    return whole if room is None else [_without(text, len(text.ids) - room, _n_begin(model)) for text in whole]


def _n_begin(model: Pair | RewardModel) -> int:
    """Count the beginning-of-text tokens that are ours, which stay whatever is cut."""
    begins = isinstance(model, Pair) or model.begins
    return int(begins and model.tokenizer.bos_token_id is not None)


def _cut(chosen: Encoded, rejected: Encoded, room: int, n_begin: int) -> tuple[Encoded, Encoded]:
    shared = next(
        (at for at, (left, right) in enumerate(zip(chosen.ids, rejected.ids)) if left != right),
        min(len(chosen.ids), len(rejected.ids)),
    )
    over = min(max(len(chosen.ids), len(rejected.ids)) - room, shared - n_begin)
    left, right = (_without(text, over, n_begin) for text in (chosen, rejected))
    return tuple(replace(text, ids=text.ids[:room], offsets=text.offsets[:room]) for text in (left, right))  # type: ignore[return-value]


def _without(text: Encoded, n: int, n_begin: int) -> Encoded:
    """Take n tokens away after the beginning-of-text token."""
    if n <= 0:
        return text
    keep = lambda parts: parts[:n_begin] + parts[n_begin + n :]  # noqa: E731
    return replace(text, ids=keep(text.ids), offsets=keep(text.offsets))
