"""Preference pairs: HH-RLHF, toxic-dpo, any file with prompt, chosen and rejected, or pairs of a model's own samples.

A pair is a prompt with two continuations, the first preferred. What cannot be used is dropped and counted, and no
prompt is ever on both sides of the split: prompts are grouped (a dialogue by its first human turn, case and white space
folded), and a group goes to one side as a whole.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.preference_sources import COLUMNS, Row, read_sides
from lfp_lens.view import page

if TYPE_CHECKING:
    import pandas as pd

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
EMPTY, EQUAL, DIFFER = "empty chosen or rejected", "chosen equal to rejected", "prompts differ"
NO_PROMPT, NO_TURN = "empty prompt", "no assistant turn"
REPEAT, IN_TRAIN = "exact repeat", "test prompt stands in train"
CUT_LETTER = "\N{REPLACEMENT CHARACTER}"
ROUNDING = 1e-9
"""Rewards of 0.3 and 0.1 are 0.2 apart, whatever the last binary digit says."""


class Preference(NamedTuple):
    """A prompt, and which of two continuations of it is preferred."""

    prompt: str
    """What both continue."""
    chosen: str
    """The preferred continuation alone."""
    rejected: str
    """The other continuation alone."""


@dataclass(frozen=True, eq=False)
class Preferences:
    """Preference pairs, divided so that no prompt is on both sides."""

    name: str
    """Where they come from."""
    train: tuple[Preference, ...] = field(repr=False)
    """Pairs to tune on."""
    test: tuple[Preference, ...] = field(repr=False)
    """Pairs to measure on."""
    dropped: dict[str, int]
    """Why rows were left out -> how many of both sides."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the pairs of both sides."""
        return fingerprint({"train": self.train, "test": self.test})

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per pair: `side` (train or test), `prompt`, `chosen`, `rejected`."""
        import pandas as pd

        rows = [(side, *pair) for side in ("train", "test") for pair in getattr(self, side)]
        return pd.DataFrame(rows, columns=["side", *COLUMNS])

    def _repr_html_(self) -> str:
        facts = {"name": self.name, "train pairs": len(self.train), "test pairs": len(self.test)}
        facts |= {f"dropped: {reason}": rows for reason, rows in self.dropped.items()}
        return page.card("Preferences", facts | {"fingerprint": self.fingerprint})


def load_preferences(
    name: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    columns: tuple[str, str, str] = COLUMNS,
    heldout: float = 0.1,
) -> Preferences:
    """Give preference pairs, checked, with a train and a test side that share no prompt.

    Args:
        name: "hh" (all of HH-RLHF) or "hh:SUBSET" (harmless-base, helpful-base, helpful-online or helpful-rejection-sampled),
            from the folder that LFP_LENS_DATA names when it has them, else from the hub; "toxic" (toxic-dpo-v0.2, from the
            hub); a local .parquet, .jsonl, .jsonl.gz or .csv file; a folder with such files named train and test; else the
            name of a data set on the Hugging Face hub.
        n: shuffle with the seed and keep the first n train pairs, so a smaller n is the beginning of a larger one; test
            is cut to n * heldout, at least 2. None: all, in file order.
        seed: of the shuffle.
        columns: those of the prompt, of the chosen and of the rejected continuation. Where no column is called "prompt",
            chosen and rejected are whole dialogues, and the prompt is all up to the last "\\n\\nAssistant:". Where every
            chosen and rejected text begins with its row's prompt, they are whole texts, and the prompt is cut off.
        heldout: share of prompts that goes to test, by a hash, where the source has no test side of its own; with n, also
            the size of test.

    Returns:
        The pairs, and how many rows were dropped for which reason: a continuation or prompt that is empty, chosen equal
        to rejected but for white space at the ends, dialogues with different prompts or without an assistant turn, exact
        repeats, test rows whose prompt group stands in train.

    Raises:
        LensError: for a set that cannot be read, a missing column (the columns are listed), values that are no text, a
            side without usable pairs (with the counts), and fewer than n pairs.

    >>> hh = load_preferences("hh:harmless-base", n=1000)  # doctest: +SKIP
    >>> hh.train[0].prompt, hh.train[0].chosen, hh.train[0].rejected, hh.dropped  # doctest: +SKIP
    """
    if n is not None and n < 1:
        raise LensError(f"n must be at least 1, or None for all pairs; {n} given.")
    if not 0 < heldout < 1:
        raise LensError(f"heldout is a share between 0 and 1; {heldout} given.")
    if len(columns) != 3 or isinstance(columns, str):
        raise LensError(f"columns names three columns (prompt, chosen, rejected); {columns!r} given.")
    sides = read_sides(str(name), tuple(columns))
    dropped: Counter[str] = Counter()
    pairs = {side: _usable(rows, dropped) for side, rows in sides.items()}
    if "test" in pairs:
        train, test = pairs["train"], _apart(pairs["test"], pairs["train"], dropped)
    else:
        train = [pair for pair in pairs["train"] if not _is_test(pair, heldout)]
        test = [pair for pair in pairs["train"] if _is_test(pair, heldout)]
    _check_sides(str(name), sides, train, test, dropped)
    if n is not None:
        if len(train) < n:
            raise LensError(f"{n} pairs were asked for; the train side of {str(name)!r} has {len(train)} usable ones.")
        generator = np.random.default_rng(seed)
        train = [train[at] for at in generator.permutation(len(train))[:n]]
        test = [test[at] for at in generator.permutation(len(test))[: max(2, round(n * heldout))]]
    return Preferences(str(name), tuple(train), tuple(test), dict(dropped))


def sample_preferences(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    score: Callable[[list[str], list[str]], np.ndarray],
    *,
    max_new_tokens: int,
    min_gap: float,
    seed: int,
) -> tuple[list[Preference], dict[str, int]]:
    """Make pairs of a model's own samples: two per prompt, the one with the higher reward chosen.

    Args:
        model: the model that is sampled from, at temperature 1.
        tokenizer: its tokenizer.
        prompts: token ids, beginning-of-text first.
        score: (prompts with their completions, completions alone) -> one reward each.
        max_new_tokens: longest completion, in tokens.
        min_gap: smallest difference of the two rewards at which a pair is kept; equal rewards never make a pair.
        seed: of the sampling.

    Returns:
        Every pair that is far enough apart, in the order of the prompts, and how many prompts made none for which reason.
        Prompts hold no special tokens; prompt + continuation is the sampled text to the letter, and a sample that ended at
        once is an empty continuation.
    """
    from lfp_lens.parts.generation import sample

    if not (math.isfinite(min_gap) and min_gap >= 0):
        raise LensError(f"min_gap must be a finite number of at least 0, in units of reward; {min_gap} given.")
    twice = [list(ids) for ids in prompts for _ in range(2)]
    done = sample(model, tokenizer, twice, max_new_tokens=max_new_tokens, seed=seed)
    rewards = score(done.whole, done.texts)
    pairs: list[Preference] = []
    dropped: Counter[str] = Counter()
    for one, other in zip(range(0, len(twice), 2), range(1, len(twice), 2)):
        gap = rewards[one] - rewards[other]
        better, worse = (one, other) if gap > 0 else (other, one)
        # A prompt may end within a letter of several bytes; the letter then belongs to the continuations.
        prompt = done.prompts[one].rstrip(CUT_LETTER)
        if gap == 0 or abs(gap) < min_gap - ROUNDING:
            dropped[f"rewards closer than {min_gap:g}"] += 1
        elif not prompt.strip():
            dropped[NO_PROMPT] += 1
        elif not all(done.whole[at].startswith(prompt) for at in (one, other)):
            dropped["prompt and sample do not join to the letter"] += 1
        else:
            pairs.append(Preference(prompt, *(done.whole[at][len(prompt) :] for at in (better, worse))))
    return pairs, dict(dropped)


def _usable(rows: list[Row], dropped: Counter[str]) -> list[Preference]:
    """Give the pairs of a source's rows, and count the rows that make none."""
    is_whole = bool(rows) and len(rows[0]) == 3 and all(_repeats_prompt(*row) for row in rows)
    found: dict[Preference, None] = {}
    for row in rows:
        pair = _of_dialogues(*row) if len(row) == 2 else _of_columns(*row, is_whole=is_whole)
        if isinstance(pair, str):
            dropped[pair] += 1
        elif pair in found:
            dropped[REPEAT] += 1
        else:
            found[pair] = None
    return list(found)


def _repeats_prompt(prompt: str | None, chosen: str | None, rejected: str | None) -> bool:
    start = prompt or ""
    return bool(start.strip()) and (chosen or "").startswith(start) and (rejected or "").startswith(start)


def _of_columns(prompt: str | None, chosen: str | None, rejected: str | None, *, is_whole: bool) -> Preference | str:
    if not (prompt or "").strip():
        return NO_PROMPT
    start = len(prompt or "") if is_whole else 0
    return _pair(prompt or "", (chosen or "")[start:], (rejected or "")[start:])


def _of_dialogues(chosen: str | None, rejected: str | None) -> Preference | str:
    if not (chosen or "").strip() or not (rejected or "").strip():
        return EMPTY
    (start, marker, reply), (other_start, other_marker, other) = (
        (text or "").rpartition(ASSISTANT) for text in (chosen, rejected)
    )
    if not marker or not other_marker:
        return NO_TURN
    return DIFFER if start != other_start else _pair(start + marker, reply, other)


def _pair(prompt: str, chosen: str, rejected: str) -> Preference | str:
    if not chosen.strip() or not rejected.strip():
        return EMPTY
    return EQUAL if chosen.strip() == rejected.strip() else Preference(prompt, chosen, rejected)


def group_of(pair: Preference) -> str:
    """Give what pairs have in common that must stay on one side: the first human turn, or the whole prompt."""
    _, marker, turns = pair.prompt.partition(HUMAN)
    return " ".join((turns.partition(ASSISTANT)[0] if marker else pair.prompt).casefold().split())


def _is_test(pair: Preference, heldout: float) -> bool:
    digest = hashlib.sha256(group_of(pair).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < heldout * 2**64


def _apart(test: Iterable[Preference], train: Iterable[Preference], dropped: Counter[str]) -> list[Preference]:
    """Leave out the test pairs whose prompt group stands in train."""
    known = {group_of(pair) for pair in train}
    kept = []
    for pair in test:
        if group_of(pair) in known:
            dropped[IN_TRAIN] += 1
        else:
            kept.append(pair)
    return kept


def _check_sides(
    name: str, sides: dict[str, list[Row]], train: list[Preference], test: list[Preference], dropped: Counter[str]
) -> None:
    rows = sum(len(side) for side in sides.values())
    why = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    if rows == 0:
        raise LensError(f"The preference set {name!r} holds no rows.")
    if dropped[EQUAL] == rows:
        raise LensError(
            f"Chosen is equal to rejected in all {rows} rows of {name!r}: nothing is preferred, so nothing can be "
            "learned. Check which columns hold the two continuations."
        )
    if not train and not test:
        raise LensError(
            f"None of the {rows} rows of {name!r} makes a pair: {why}. Repair the rows or name other columns."
        )
    for side, pairs, least in (("train", train, 1), ("test", test, 2)):
        if len(pairs) < least:
            raise LensError(
                f"The {side} side of {name!r} has {len(pairs)} usable pairs of {len(train) + len(test)}, at least {least} "
                f"needed (dropped: {why or 'none'}). Give more pairs or another share `heldout`."
            )
