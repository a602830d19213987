"""`contrast`: validated triples, the same text with a positive, a neutral and a negative word.

The paper (arXiv 2310.08164, section 3.3) had GPT-4 rewrite whole sentences and took what came back: in the public code's
data 13 of 1,120 "negative" targets are positive by VADER, and the neutral "interesting" is rated +1.7. Here one word
changes, by another of the same part of speech and inflection that these texts themselves hold in the same company, and
every member is checked against the lexicon.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.substitutes import Slot, Substitutes, case_of, in_case, learn_substitutes, polarity
from lfp_lens.parts.word_classes import cue, is_function_word
from lfp_lens.parts.words import Tokens, tokenize
from lfp_lens.results.contrast import Triples

MIN_TRIPLES = 10
CAP_FLOOR = 20
EARLY = 400  # characters: probes cut texts at some token count, so slots near the beginning are taken first
GLUE = frozenset("-'’/*_&@#")
SENTENCE_ENDS = frozenset((".", "!", "?", "...", "…"))


@dataclass(frozen=True)
class Found:
    """The triples kept, and what fell to which reason."""

    triples: list[tuple[Slot, str, str, str]]
    rejected: Counter[str]


def contrast(
    texts: Sequence[str],
    *,
    lexicon: str | PathLike[str] | Mapping[str, float] = "vader",
    min_value: float = 1.0,
    max_triples: int = 2000,
    seed: int = 0,
    store: Store | None = None,
) -> Triples:
    """Give triples of texts that differ in one word: positive, neutral, negative by the lexicon.

    Each strong lexicon word is a slot with a part of speech and an inflection (told by the function words
    around it and by suffix; no tagger). The word itself is one member; the others come from words of the same
    kind seen in these texts beside the same neighbours, so that any base model knows them, of similar
    frequency where there is a choice. Case, and everything else, stays; "a"/"an" keep agreeing. Words take
    turns, so that frequent ones do not dominate: none fills the positive or negative member more than max(20,
    twice its equal share) times.

    Args:
        texts: raw texts; a text may give several triples, one per occurrence.
        lexicon: "vader", a lexicon file or a mapping: the stated feedback.
        min_value: the least |value| of a positive or negative member.
        max_triples: how many at most.
        seed: of the order in which words and occurrences take their turns.
        store: where to keep the result; None keeps it in memory.

    Returns:
        Triples with sign(positive) > 0, sign(negative) < 0 and |neutral| < 0.5 (outside the lexicon counts as
        0), and in `rejected` how many texts or occurrences fell to each reason.

    Raises:
        LensError: for texts that are none, and when they hold no strong lexicon word or only one polarity.
        GateError: when fewer than 10 triples pass.

    What it does not show: that the texts are good English (no parser checks them), nor that a neutral word
    outside the lexicon is neutral to a reader.

    >>> words = {"great": 3.1, "awful": -2.0, "bad": -2.5}
    >>> texts = [f"It was a {w} film. It was {w}." for w in ("great", "big", "bad", "long")] * 5
    >>> triples = contrast(texts, lexicon=words)
    >>> sorted(set(triples.negative)), sorted(set(triples.neutral))
    (['bad'], ['big', 'long'])
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise LensError("contrast needs a list of texts (strings), at least one.")
    if not min_value >= 0.5:
        raise LensError(f"min_value must be at least 0.5, the bound of a neutral word; {min_value} given.")
    if max_triples < MIN_TRIPLES:
        raise LensError(f"max_triples must be at least {MIN_TRIPLES}; {max_triples} given.")
    texts, values = list(texts), load_lexicon(lexicon)
    inputs = {
        "texts": texts,
        "lexicon": values,
        "min_value": min_value,
        "max_triples": max_triples,
        "seed": seed,
    }

    def make(folder: Path | None) -> Triples:
        return _make(texts, values, min_value, max_triples, seed)

    return store.get("contrast", inputs, make) if store else make(None)


def _make(texts: list[str], lexicon: dict[str, float], min_value: float, max_triples: int, seed: int) -> Triples:
    tokens = [tokenize(text) for text in texts]
    _check_polarities(tokens, lexicon, min_value)
    substitutes = learn_substitutes(texts, tokens, lexicon, min_value)
    slots, rejected = _find_slots(texts, tokens, substitutes)
    found = _fill(_take_turns(slots, np.random.default_rng(seed)), substitutes, max_triples)
    rejected += found.rejected
    if len(found.triples) < MIN_TRIPLES:
        reasons = "; ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise GateError(
            f"{len(found.triples)} triples passed; at least {MIN_TRIPLES} are needed. "
            f"{len(texts)} texts were looked at: {reasons}. "
            "Give more texts, or a lexicon with more of their words."
        )
    return _as_result(texts, lexicon, found.triples, rejected)


def _as_result(
    texts: list[str],
    lexicon: dict[str, float],
    kept: list[tuple[Slot, str, str, str]],
    rejected: Counter[str],
) -> Triples:
    kept = sorted(kept, key=lambda triple: (triple[0].text, triple[0].start))
    slots = [slot for slot, *_ in kept]
    positive, neutral, negative = zip(*(members for _, *members in kept), strict=True)
    result = Triples(
        prefix=tuple(texts[slot.text][: slot.start] for slot in slots),
        suffix=tuple(texts[slot.text][slot.end :] for slot in slots),
        positive=positive,
        neutral=neutral,
        negative=negative,
        part_of_speech=tuple(f"{slot.part}, {slot.inflection}" for slot in slots),
        source=np.array([slot.text for slot in slots], dtype=np.int64),
        lexicon={word.lower(): lexicon.get(word.lower(), 0.0) for word in (*positive, *neutral, *negative)},
        rejected=dict(rejected.most_common()),
        n_texts=len(texts),
    )
    for member, is_right in (
        ("positive", lambda v: v > 0),
        ("negative", lambda v: v < 0),
        ("neutral", lambda v: abs(v) < 0.5),
    ):
        wrong = [word for word in result.words(member) if not is_right(result.lexicon[word.lower()])]
        assert not wrong, (member, wrong[:5])
    return result


def _check_polarities(tokens: Sequence[Tokens], lexicon: Mapping[str, float], min_value: float) -> None:
    seen = {word for one in tokens for word in one.words}
    poles = {polarity(lexicon[word], min_value) for word in seen if word in lexicon} - {None, "neutral"}
    if not poles:
        raise LensError(
            f"None of the {len(tokens)} texts holds a lexicon word with |value| >= {min_value}. "
            "Give texts in the lexicon's language and domain, or lower min_value."
        )
    missing = {"positive", "negative"} - poles
    if missing:
        raise LensError(
            f"The texts hold no {missing.pop()} lexicon word with |value| >= {min_value}; a triple needs "
            "both polarities, and substitutes are words of these texts. Give more texts or another lexicon."
        )


def _find_slots(
    texts: Sequence[str], tokens: Sequence[Tokens], substitutes: Substitutes
) -> tuple[dict[str, list[Slot]], Counter[str]]:
    """Give the usable occurrences of every strong lexicon word."""
    slots: dict[str, list[Slot]] = defaultdict(list)
    rejected: Counter[str] = Counter()
    for number, (text, one) in enumerate(zip(texts, tokens)):
        places = [place for place, word in enumerate(one.words) if substitutes.pole(word) in ("positive", "negative")]
        rejected["text without a strong lexicon word"] += not places
        for place in places:
            made = _slot(number, text, one, place, substitutes)
            if isinstance(made, Slot):
                slots[made.word].append(made)
            else:
                rejected[made] += 1
    return slots, +rejected


def _slot(number: int, text: str, tokens: Tokens, place: int, substitutes: Substitutes) -> Slot | str:
    """Give the slot of one occurrence, or why it is none."""
    word, start, end = tokens.words[place], tokens.starts[place], tokens.ends[place]
    case = case_of(text[start:end])
    if is_function_word(word) or not word.isalpha():
        return "function word or no plain word"
    if case is None:
        return "mixed case"
    if text[max(start - 1, 0) : start] in GLUE or text[end : end + 1] in GLUE:
        return "part of a compound"
    if case == "capitalised" and place and tokens.words[place - 1] not in SENTENCE_ENDS:
        return "capitalised inside a sentence (a name or title)"
    classes = substitutes.classes
    part = classes.part_of_speech(word, cue(tokens.words, place))
    if part is None:
        return "part of speech not settled"
    return Slot(number, place, word, start, end, case, part, classes.inflection(word, part), tokens)


def _take_turns(slots: Mapping[str, list[Slot]], generator: np.random.Generator) -> list[Slot]:
    """Order slots so that every word has its first occurrence before any word has its second."""
    words = sorted(slots)
    turns: list[tuple[int, int, Slot]] = []
    for turn, which in enumerate(generator.permutation(len(words))):
        mine = slots[words[which]]
        shuffled = [mine[place] for place in generator.permutation(len(mine))]
        early_first = sorted(shuffled, key=lambda slot: slot.start > EARLY)
        turns += [(number, turn, slot) for number, slot in enumerate(early_first)]
    return [slot for _, _, slot in sorted(turns, key=lambda one: one[:2])]


def _fill(slots: Sequence[Slot], substitutes: Substitutes, max_triples: int) -> Found:
    """Choose the two other members of every slot, until there are enough."""
    cap = max(CAP_FLOOR, -(-2 * max_triples // max(1, len({slot.word for slot in slots}))))
    used: Counter[str] = Counter()
    kept: list[tuple[Slot, str, str, str]] = []
    rejected: Counter[str] = Counter()
    for number, slot in enumerate(slots):
        if len(kept) == max_triples:
            rejected["not needed: max_triples reached"] += len(slots) - number
            break
        if used[slot.word] >= cap:
            rejected["word has had its share"] += 1
            continue
        own = substitutes.pole(slot.word)
        other = substitutes.choose(slot, "negative" if own == "positive" else "positive", used, cap)
        neutral = substitutes.choose(slot, "neutral", used, None)
        if other is None or neutral is None:
            rejected["no word of the other polarity fits" if other is None else "no neutral word fits"] += 1
            continue
        used.update((slot.word, other, neutral))
        mine, theirs, middle = (in_case(word, slot.case) for word in (slot.word, other, neutral))
        kept.append((slot, mine, middle, theirs) if own == "positive" else (slot, theirs, middle, mine))
    return Found(kept, rejected)
