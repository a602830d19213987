"""Which word of these texts may stand in another's place: of the same class, seen in the same company."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lfp_lens.parts.tagger import TaggedClasses, Tagger, classes_of
from lfp_lens.parts.word_classes import WordClasses, context_key, is_function_word
from lfp_lens.parts.words import Tokens, is_word, stem

NEUTRAL_BOUND = 0.5
MIN_COUNT = 3
TOKENS_PER_NEUTRAL = 25_000  # what is rare and outside a lexicon is often a strong word the raters did not get to see
EVALUATIVE = re.compile(r"(?:un|dis|mis|over|non)\w{4,}|\w+(?:less|ful|fully|lessly)")
MIN_LOWER_SHARE = (
    0.6  # a word that is mostly capitalised is a name; one that mostly stands beside a hyphen is half a word
)
MARGIN_NATS, SHORTLIST = 3.0, 8
FREQUENCY_WEIGHT, BIGRAM_BONUS = 0.3, 1.0
# Spelling misleads about the first sound: "an hour", "a unique", "a one-off", "a European".
VOWEL_SOUND = re.compile(r"hour|honest|hono|heir|(?!uni(?![nm])|unif|us[eua]|eu|one\b|once\b|ubiq|utopia|util)[aeiou]")


@dataclass(frozen=True)
class Slot:
    """One occurrence of a strong lexicon word, and what may replace it."""

    text: int
    """Index of the text."""
    place: int
    """Index of the token."""
    word: str
    """The word, lower-cased."""
    start: int
    """Its first character in the text."""
    end: int
    """One past its last character."""
    case: str
    """`lower`, `capitalised` or `upper`."""
    part: str
    """Part of speech."""
    inflection: str
    """Inflection."""
    tokens: Tokens = field(repr=False)
    """The tokens of the text."""


@dataclass(frozen=True)
class Substitutes:
    """The words of the texts by class and polarity, with the company they keep."""

    lexicon: Mapping[str, float]
    """The stated values."""
    min_value: float
    """The least |value| of a positive or negative word."""
    classes: WordClasses | TaggedClasses
    """Parts of speech."""
    pools: Mapping[tuple[str, str, str], Sequence[str]]
    """(part of speech, inflection, polarity) -> words, alphabetical."""
    lefts: Mapping[str, Counter[str]]
    """Word -> keys of its left neighbours."""
    rights: Mapping[str, Counter[str]]
    """Word -> keys of its right neighbours."""
    bigrams: frozenset[tuple[str, str]]
    """Neighbouring words seen."""

    def pole(self, word: str) -> str | None:
        """Give `positive`, `negative`, `neutral` or, in between, None."""
        return polarity(self.lexicon.get(word, 0.0), self.min_value)

    def choose(self, slot: Slot, pole: str, used: Mapping[str, int], cap: int | None) -> str | None:
        """Give the word that fits the slot best, the least used of the close ones; None if none was seen in
        such company.

        Args:
            slot: the place to fill.
            pole: the polarity asked for.
            used: how often words were taken before.
            cap: words used as often as this are left out; None for no cap.
        """
        words, place = slot.tokens.words, slot.place
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        left, right = context_key(words, place - 1), context_key(words, place + 1)
        scored = []
        for word in self.pools.get((slot.part, slot.inflection, pole), ()):
            if stem(word) == stem(slot.word) or (cap is not None and used.get(word, 0) >= cap):
                continue
            if before in ("a", "an") and starts_with_vowel_sound(word) != starts_with_vowel_sound(slot.word):
                continue
            seen_left, seen_right = self.lefts[word][left], self.rights[word][right]
            if seen_left and seen_right:
                scored.append((self._score(word, slot.word, seen_left * seen_right, before, after), word))
        if not scored:
            return None
        best = max(score for score, _ in scored)
        close = sorted((one for one in scored if one[0] >= best - MARGIN_NATS), key=lambda one: (-one[0], one[1]))
        return min(close[:SHORTLIST], key=lambda one: (used.get(one[1], 0), -one[0], one[1]))[1]

    def _score(self, word: str, original: str, seen: int, before: str, after: str) -> float:
        """Log of how typical both neighbours are of the word, nearness in frequency, bigrams really seen."""
        count = self.classes.counts[word]
        frequency = abs(math.log(count / self.classes.counts[original]))
        together = ((before, word) in self.bigrams) + ((word, after) in self.bigrams)
        return math.log(seen / count**2) - FREQUENCY_WEIGHT * frequency + BIGRAM_BONUS * together


def learn_substitutes(
    texts: Sequence[str],
    tokens: Sequence[Tokens],
    lexicon: Mapping[str, float],
    min_value: float,
    tagger: Tagger | None = None,
) -> Substitutes:
    """Sort the words of the texts into pools; names, function words and rare words are left out."""
    classes = classes_of(texts, tokens, tagger)
    lower: Counter[str] = Counter()
    lefts: dict[str, Counter[str]] = defaultdict(Counter)
    rights: dict[str, Counter[str]] = defaultdict(Counter)
    bigrams: set[tuple[str, str]] = set()
    for text, one in zip(texts, tokens):
        keys = [context_key(one.words, place) for place in range(-1, len(one.words) + 1)]
        bigrams.update(zip(one.words, one.words[1:]))
        for place, word in enumerate(one.words):
            if is_word(word):
                lower[word] += _is_lower_alone(text, one.starts[place], one.ends[place])
                lefts[word][keys[place]] += 1
                rights[word][keys[place + 2]] += 1
    valenced = {stem(word) for word, value in lexicon.items() if word.isalpha() and abs(value) >= NEUTRAL_BOUND}
    least_neutral = sum(len(one.words) for one in tokens) / TOKENS_PER_NEUTRAL
    pools: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for word in sorted(classes.profiles):
        pole, kind = polarity(lexicon.get(word, 0.0), min_value), classes.kind(word)
        is_plain = len(word) > 2 and word.isalpha() and not is_function_word(word)
        is_common = classes.counts[word] >= MIN_COUNT and lower[word] >= MIN_LOWER_SHARE * classes.counts[word]
        is_loaded = stem(word) in valenced or EVALUATIVE.fullmatch(word) or classes.counts[word] < least_neutral
        if pole and kind and is_plain and is_common and not (pole == "neutral" and is_loaded):
            pools[*kind, pole].append(word)
    return Substitutes(lexicon, min_value, classes, dict(pools), lefts, rights, frozenset(bigrams))


def _is_lower_alone(text: str, start: int, end: int) -> bool:
    return text[start].islower() and "-" not in (text[max(start - 1, 0) : start], text[end : end + 1])


def polarity(value: float, min_value: float) -> str | None:
    """Name the member a value may fill; None for one too weak to be a pole and too strong to be neutral."""
    if abs(value) >= min_value:
        return "positive" if value > 0 else "negative"
    return "neutral" if abs(value) < NEUTRAL_BOUND else None


def starts_with_vowel_sound(word: str) -> bool:
    """Tell whether "an" goes before the word.

    >>> [starts_with_vowel_sound(word) for word in ("awful", "unique", "unintended", "honest", "bad")]
    [True, False, True, True, False]
    """
    return VOWEL_SOUND.match(word.lower()) is not None


def case_of(word: str) -> str | None:
    """Name the case of a word: `lower`, `capitalised`, `upper`; None for a mixture and for "OK"."""
    if word == word.lower():
        return "lower"
    if len(word) > 2 and word == word.upper():
        return "upper"
    return "capitalised" if word == word.capitalize() else None


def in_case(word: str, case: str) -> str:
    """Give a lower-case word in one of these cases."""
    return {"lower": word, "capitalised": word.capitalize(), "upper": word.upper()}[case]
