"""Word triples: the same text with a positive, a neutral and a negative word.

The paper (arXiv 2310.08164, section 3.3) had GPT-4 rewrite whole sentences and took what came back: in the public
code's data 13 of 1,120 "negative" targets are positive by VADER, and the neutral "interesting" is rated +1.7. Here one word
changes, by another of the same part of speech and inflection that these texts themselves hold in the same company, and
every member is checked against the lexicon.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.parts.slots import slot_at, strong_places
from lfp_lens.parts.substitutes import Slot, Substitutes, in_case, learn_substitutes, polarity
from lfp_lens.parts.tagger import RULES, Tagger
from lfp_lens.parts.words import Tokens, stem, tokenize
from lfp_lens.results.contrast import Triples

MIN_TRIPLES = 10
CAP_FLOOR = 20
EARLY = 400  # characters: probes cut texts at some token count, so slots near the beginning are taken first


@dataclass(frozen=True)
class Found:
    """The triples kept, and what fell to which reason."""

    triples: list[tuple[Slot, str, str, str]]
    rejected: Counter[str]


def word_triples(
    texts: list[str],
    lexicon: dict[str, float],
    min_value: float,
    max_triples: int,
    seed: int,
    tagger: Tagger | None,
) -> Triples:
    """Give the triples of `contrast` on texts. Raises `LensError` and `GateError` as that tells."""
    tokens = [tokenize(text) for text in texts]
    _check_polarities(tokens, lexicon, min_value)
    substitutes = learn_substitutes(texts, tokens, lexicon, min_value, tagger)
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
    return _as_result(texts, lexicon, found.triples, rejected, tagger.name if tagger else RULES)


def _as_result(
    texts: list[str],
    lexicon: dict[str, float],
    kept: list[tuple[Slot, str, str, str]],
    rejected: Counter[str],
    tagger: str,
) -> Triples:
    kept = sorted(kept, key=lambda triple: (triple[0].text, triple[0].start))
    slots = [slot for slot, *_ in kept]
    positive, neutral, negative = zip(*(members for _, *members in kept), strict=True)
    used = {word.lower() for word in (*positive, *neutral, *negative)}
    result = Triples(
        prefix=tuple(texts[slot.text][: slot.start] for slot in slots),
        suffix=tuple(texts[slot.text][slot.end :] for slot in slots),
        positive=positive,
        neutral=neutral,
        negative=negative,
        part_of_speech=tuple(f"{slot.part}, {slot.inflection}" for slot in slots),
        source=np.array([slot.text for slot in slots], dtype=np.int64),
        lexicon={word: lexicon.get(word, 0.0) for word in sorted(used)},
        rejected=dict(rejected.most_common()),
        n_texts=len(texts),
        lemmas={word: stem(word) for word in sorted(used)},
        tagger=tagger,
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
        places = strong_places(one, substitutes)
        rejected["text without a strong lexicon word"] += not places
        for place in places:
            made = slot_at(number, text, one, place, substitutes)
            if isinstance(made, Slot):
                slots[made.word].append(made)
            else:
                rejected[made] += 1
    return slots, +rejected


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
