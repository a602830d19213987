"""Preference triples: a rewriter writes three answers from one original, grades them unseen, and what fails is counted.

The public code of arXiv 2310.08164 (section 3.3) compared the preferred original with a rewrite by a model cut at 16
tokens: a probe could tell them by their length and their author. Here one rewriter writes all three, at the same length,
from an original that is as often the preferred as the other answer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.parts.preferences import ASSISTANT, HUMAN, Preference, group_of
from lfp_lens.parts.rewriters import Declined, Rewriter, Setting, make_rewriter
from lfp_lens.results.contrast import MEMBERS, PreferenceTriples, mismatch, word_count
from lfp_lens.stages.contrast.words import MIN_TRIPLES

MAX_WORDS = 120
"""Answers are cut here before they are rewritten: probes read 128 tokens, and a rewriter is paid by the word."""
MIN_PROMPT_WORDS = 4
"""Shorter prompts may well stand in an answer."""
TASKS = {"hh": ("a helpful, honest and harmless answer", False), "toxic": ("a harmless and respectful answer", True)}
"""Name -> the quality graded, and whether the pairs prefer what lacks it."""
OPPOSITE = {"positive": "negative", "neutral": "neutral", "negative": "positive"}
EMPTY, REPEAT = "empty chosen or rejected", "exact repeat"
EQUAL = f"chosen equal to rejected in the first {MAX_WORDS} words"
UNCHANGED, REPEATS_PROMPT, NEXT_TURN = (
    "rewrite equal to its original",
    "rewrite repeats the prompt",
    "rewrite goes on with another turn",
)


@dataclass(frozen=True)
class Item:
    """One pair as the rewriter gets it."""

    row: int
    """Row of the input."""
    pair: Preference
    """The pair, its answers cut and stripped."""
    lead: str
    """White space before the answer that is rewritten; every member keeps it."""
    original: str
    """The answer that is rewritten."""


@dataclass(frozen=True)
class Written:
    """The members of one item with their grades."""

    item: Item
    members: tuple[str, str, str]
    grades: tuple[int, int, int]
    original_grades: tuple[int, int]


def task_of(task: str | None, swap: bool | None, name: str) -> tuple[str, bool]:
    """Give the quality that is graded and whether the pairs prefer what lacks it.

    Args:
        task: "hh", "toxic", or a quality in words; None for "toxic" where the set's name holds that word, else "hh".
        swap: as the user says; None for the task's own.
        name: of the set of pairs, "" if it has none.

    >>> task_of(None, None, "unalignment/toxic-dpo-v0.2")
    ('a harmless and respectful answer', True)
    >>> task_of("an honest answer", None, "hh:harmless-base")
    ('an honest answer', False)
    """
    if task is not None and not (isinstance(task, str) and task.strip()):
        raise LensError(f"task is 'hh', 'toxic' or the name of a quality; {task!r} given.")
    own = ("toxic" if "toxic" in name.casefold() else "hh") if task is None else task
    quality, is_swapped = TASKS.get(own, (own, False))
    return quality, is_swapped if swap is None else bool(swap)


def preference_triples(
    pairs: Sequence[Preference],
    rewriter: Any,
    setting: Setting,
    task: str,
    is_swapped: bool,
    max_triples: int,
) -> PreferenceTriples:
    """Give the triples of `contrast` on preference pairs. Raises `LensError` and `GateError` as that tells."""
    items, rejected = _items(pairs, setting.seed)
    texts = dict.fromkeys(text for item in items for text in (item.pair.chosen, item.pair.rejected))
    writer = make_rewriter(rewriter, replace(setting, texts=tuple(texts)))
    poles = [OPPOSITE[member] if is_swapped else member for member in MEMBERS]
    kept: list[Written] = []
    order = np.random.default_rng(setting.seed).permutation(len(items)).tolist()
    with tqdm(total=min(len(items), max_triples), desc="contrast", unit="item") as bar:
        while order and len(kept) < max_triples:
            # No more are asked at once than are still needed, so that nothing is paid for in vain.
            n = max_triples - len(kept)
            block, order = order[:n], order[n:]
            bar.total = bar.n + len(block)
            for found in _each(writer, [items[at] for at in block], poles, task, is_swapped):
                if isinstance(found, Written):
                    kept.append(found)
                else:
                    rejected[found] += 1
                bar.update()
    if order:
        rejected["not needed: max_triples reached"] += len(order)
    if len(kept) < MIN_TRIPLES:
        reasons = "; ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise GateError(
            f"{len(kept)} preference triples passed; at least {MIN_TRIPLES} are needed. {len(pairs)} pairs were looked at "
            f"with the rewriter {writer.name!r}: {reasons}. Give more pairs, or another rewriter."
        )
    return _as_result(kept, rejected, len(pairs), task, writer.name, is_swapped)


def _items(pairs: Sequence[Preference], seed: int) -> tuple[list[Item], Counter[str]]:
    """Cut the answers and say which of the two is rewritten: the preferred one where row + seed is even."""
    rejected: Counter[str] = Counter()
    items: list[Item] = []
    seen: set[Preference] = set()
    for row, pair in enumerate(pairs):
        chosen, other = _opening(pair.chosen), _opening(pair.rejected)
        if pair in seen:
            rejected[REPEAT] += 1
        elif not chosen or not other:
            rejected[EMPTY] += 1
        elif chosen == other:
            rejected[EQUAL] += 1
        else:
            source = pair.rejected if (row + seed) % 2 else pair.chosen
            lead = source[: len(source) - len(source.lstrip())]
            items.append(Item(row, Preference(pair.prompt, chosen, other), lead, _opening(source)))
        seen.add(pair)
    return items, rejected


def _opening(text: str) -> str:
    """Give the first words of a text, without white space at its ends.

    >>> _opening(" a  b ")
    'a  b'
    """
    text = text.strip()
    if word_count(text) <= MAX_WORDS:
        return text
    rest = text.split(maxsplit=MAX_WORDS)[-1]
    return text[: len(text) - len(rest)].rstrip()


def _each(
    writer: Rewriter, items: Iterable[Item], poles: Sequence[str], task: str, is_swapped: bool
) -> Iterable["Written | str"]:
    """Write every item, at most `writer.workers` at once; give what came of it, or why nothing did, in their order."""
    with ThreadPoolExecutor(max_workers=writer.workers) as pool:
        try:
            for future in [pool.submit(_write, writer, item, poles, task, is_swapped) for item in items]:
                yield future.result()
        except BaseException:
            # What was not asked yet stays unasked: after a failure or Ctrl-C nothing more is paid for.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(writer: Rewriter, item: Item, poles: Sequence[str], task: str, is_swapped: bool) -> "Written | str":
    """Have one item written and graded; give the reason where it fails. Grades are asked only for what can be kept."""
    prompt, n_words = item.pair.prompt, word_count(item.original)

    def grade(text: str) -> int:
        grade = writer.grade(prompt, text, task)
        if grade not in range(1, 6):
            raise LensError(f"The rewriter {writer.name!r} graded {grade!r}; a whole number from 1 to 5 is expected.")
        return 6 - int(grade) if is_swapped else int(grade)

    try:
        texts = [_text(writer.rewrite(prompt, item.original, pole, task, n_words), writer) for pole in poles]
        reason = mismatch(texts) or next((why for text in texts if (why := _flaw(text, item))), None)
        if reason:
            return reason
        grades = [grade(text) for text in texts]
        if reason := mismatch(texts, grades):
            return reason
        originals = (grade(item.pair.chosen), grade(item.pair.rejected))
    except Declined as declined:
        return str(declined)
    one, two, three = (item.lead + text for text in texts)
    return Written(item, (one, two, three), (grades[0], grades[1], grades[2]), originals)


def _text(written: Any, writer: Rewriter) -> str:
    if not isinstance(written, str):
        raise LensError(f"The rewriter {writer.name!r} wrote {written!r}; a text is expected.")
    return written.strip()


def _flaw(text: str, item: Item) -> str | None:
    """Tell what is wrong with one rewrite, None if nothing is."""
    folded = _folded(text)
    if folded == _folded(item.original):
        return UNCHANGED
    last_turn = item.pair.prompt.rpartition(HUMAN)[2].partition(ASSISTANT)[0]
    for asked in (_folded(item.pair.prompt), _folded(last_turn)):
        if word_count(asked) >= MIN_PROMPT_WORDS and folded.startswith(asked):
            return REPEATS_PROMPT
    turns = [marker.strip() for marker in (HUMAN, ASSISTANT) if marker.strip() not in item.original]
    return NEXT_TURN if any(marker in text for marker in turns) else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _as_result(
    kept: Sequence[Written], rejected: Counter[str], n_items: int, task: str, rewriter: str, is_swapped: bool
) -> PreferenceTriples:
    kept = sorted(kept, key=lambda one: one.item.row)
    positive, neutral, negative = zip(*(one.members for one in kept), strict=True)
    return PreferenceTriples(
        prompt=tuple(one.item.pair.prompt for one in kept),
        positive=positive,
        neutral=neutral,
        negative=negative,
        original_chosen=tuple(one.item.pair.chosen for one in kept),
        original_rejected=tuple(one.item.pair.rejected for one in kept),
        grades=np.array([one.grades for one in kept], dtype=np.int64),
        original_grades=np.array([one.original_grades for one in kept], dtype=np.int64),
        source=np.array([one.item.row for one in kept], dtype=np.int64),
        group=tuple(group_of(one.item.pair) for one in kept),
        task=task,
        rewriter=rewriter,
        is_swapped=is_swapped,
        rejected=dict(rejected.most_common()),
        n_items=n_items,
    )
