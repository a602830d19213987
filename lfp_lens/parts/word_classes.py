"""Part of speech and inflection without a tagger: function words around a word vote, its suffix gives the
inflection.

A closed list of English function words tells what may stand in a slot ("a _ film" holds an adjective, "to _
the" a verb). The votes of all occurrences of a word make its profile; a word or slot whose votes disagree has
no class, and its user skips it.

Limits, stated: English only; words seen fewer than three times in a telling place have no class, nor has an
adjective that never follows a form of "be" or a word of degree (else the first noun of "the horror film"
would be one); count and mass nouns, and what a verb governs, are not told apart here (`stages/contrast.py`
asks that a substitute was seen beside the same neighbours).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from lfp_lens.parts.words import Tokens, is_word

ADJECTIVE, NOUN, VERB, ADVERB = "adjective", "noun", "verb", "adverb"
MIN_VOTES = 3
SURE, CUED = 0.75, 0.35
PREDICATE_SHARE = 0.15
BOUNDARY = "<edge>"
Kind = tuple[str, str]
"""Part of speech and inflection."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set("a an the this these those my your his her its our their some any no every each another such")
DEGREES = _set("very so too quite pretty rather extremely incredibly how more most less as")
BE = _set("is was are were be been being 'm 're am seem seems seemed feel feels felt looks sounded remains")
HAVE = _set("has have had having 've")
MODALS = _set("will would can could should may might must do does did 'll 'd ca wo shall lets let")
SUBJECTS = _set("i you he she we they who")
OBJECTS = _set("it me him them us you her")
PREPOSITIONS = _set(
    "of in on at for with from by about into through over after before between without during against "
    "toward towards under upon within among despite"
)
CONJUNCTIONS = _set("but because than while when if though although or and nor where since until unless yet")
RELATIVES = _set("that who which whose")
SKIPPED = _set(
    "not n't never really just also even still always actually truly totally completely only somewhat almost ever once"
)
CLOSED_RIGHT = PREPOSITIONS | CONJUNCTIONS | RELATIVES | BE | HAVE | MODALS | SUBJECTS | OBJECTS | {"to", BOUNDARY}
IRREGULAR_DEGREE = {
    "better": "comparative",
    "worse": "comparative",
    "best": "superlative",
    "worst": "superlative",
}
SIMPLE_PASTS = _set(
    "said went made took saw came got gave found told thought knew felt left became began brought kept "
    "held wrote stood heard meant met ran paid sat spoke led grew lost fell sent built understood drew "
    "broke spent rose drove bought wore chose stole won fought shot hid caught taught sank sang shook "
    "sold slept stuck struck threw tore woke froze forgot forgave ate drank bit blew dealt dug fed fled "
    "flew hung laid lent rang rode sought shone slid spat spun swore swept swam swung wept withdrew"
)
PARTICIPLES = _set(
    "taken seen done given known shown written gone been broken driven chosen stolen hidden fallen "
    "forgotten beaten eaten sung torn worn thrown drawn grown"
)
ADVERBS = _set(
    "instead soon often maybe perhaps again later ahead apart alone together forward back sometimes "
    "somehow anyway meanwhile however therefore thus indeed tad bit far ago today yesterday tomorrow "
    "tonight twice already either neither etc"
)
LY_ADJECTIVES = _set(
    "lonely lovely friendly unfriendly ugly silly deadly costly holy unholy jolly lively likely unlikely "
    "early cowardly ghastly grisly heavenly homely sickly smelly timely untimely ungodly unruly worldly "
    "bully family elderly manly fly reply apply rely supply belly jelly imply comply anomaly assembly "
    "melancholy monopoly"
)
FUNCTION_WORDS = (
    DETERMINERS
    | DEGREES
    | BE
    | HAVE
    | MODALS
    | SUBJECTS
    | OBJECTS
    | PREPOSITIONS
    | CONJUNCTIONS
    | RELATIVES
    | SKIPPED
    | ADVERBS
) | {"to", "there", "what", "'s", "all", "one", "out", "up", "down", "off", "away", "like"}


@dataclass(frozen=True)
class WordClasses:
    """What the texts say about the words in them."""

    profiles: Mapping[str, Counter[str]]
    """Word -> votes per part of speech."""
    predicates: Mapping[str, int]
    """Word -> how often "is _" or "very _" says it of something, as the first noun of a compound never is."""
    counts: Mapping[str, int]
    """Word -> occurrences."""

    def kind(self, word: str) -> Kind | None:
        """Give the part of speech and inflection that a word has nearly always, None if it has no such one."""
        part = self.typical(word)
        return None if part is None else (part, self.inflection(word, part))

    def kind_at(self, text: int, tokens: Tokens, place: int) -> Kind | None:
        """Give those of one occurrence, None if they are not usual for the word."""
        word = tokens.words[place]
        part = self.part_of_speech(word, cue(tokens.words, place))
        return None if part is None else (part, self.inflection(word, part))

    def part_of_speech(self, word: str, cue: str | None) -> str | None:
        """Give the part of speech of an occurrence with this cue, None if it is not usual for the word.

        Without a cue the typical one holds, save for words in -ing and -ed: they are verbs as easily as
        adjectives.
        """
        if cue is None:
            return None if word.endswith(("ing", "ed")) else self.typical(word)
        if self._degree(word) != "base":
            return ADJECTIVE
        votes = self.profiles.get(word, Counter())
        is_usual = votes.total() >= MIN_VOTES and votes[cue] >= CUED * votes.total()
        return cue if is_usual and (cue != ADJECTIVE or self._is_predicate(word)) else None

    def typical(self, word: str) -> str | None:
        """Give the part of speech that a word has nearly always, None if it has no such one."""
        if self._degree(word) != "base":
            return ADJECTIVE
        votes = self.profiles.get(word, Counter())
        best = max(votes, key=lambda part: (votes[part], part), default=None)
        if best is None or votes.total() < MIN_VOTES or votes[best] < SURE * votes.total():
            return None
        return None if best == ADJECTIVE and not self._is_predicate(word) else best

    def inflection(self, word: str, part: str) -> str:
        """Give the inflection by suffix: plural, -ing, past, third person, comparative, ... or "base"."""
        if part == ADJECTIVE:
            return self._degree(word)
        if part == NOUN:
            return "plural" if _ends_in_s(word) else "singular"
        if part == VERB:
            if word.endswith("ing"):
                return "ing"
            if _ends_in_s(word):
                return "third person"
            return "past" if word.endswith("ed") or word in SIMPLE_PASTS | PARTICIPLES else "base"
        return "base"

    def _is_predicate(self, word: str) -> bool:
        if _ends_in_s(word) or word in PARTICIPLES:
            return False
        return self.predicates.get(word, 0) >= PREDICATE_SHARE * self.profiles[word][ADJECTIVE]

    def _degree(self, word: str) -> str:
        if word in IRREGULAR_DEGREE:
            return IRREGULAR_DEGREE[word]
        for suffix, degree in (("er", "comparative"), ("est", "superlative")):
            if word.endswith(suffix) and any(self._is_adjective(base) for base in _bases(word, suffix)):
                return degree
        return "base"

    def _is_adjective(self, word: str) -> bool:
        votes = self.profiles.get(word, Counter())
        return votes.total() >= MIN_VOTES and votes[ADJECTIVE] >= votes.total() / 2 and self._is_predicate(word)


def learn_classes(texts: Sequence[Tokens]) -> WordClasses:
    """Count the votes over all occurrences of every word."""
    profiles: dict[str, Counter[str]] = defaultdict(Counter)
    predicates: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for tokens in texts:
        words = tokens.words
        counts.update(words)
        for place, word in enumerate(words):
            if word in FUNCTION_WORDS or not is_word(word):
                continue
            vote = cue(words, place)
            if vote is not None:
                profiles[word][vote] += 1
                left = _left(words, place)[0]
                predicates[word] += vote == ADJECTIVE and left not in DETERMINERS
    return WordClasses(dict(profiles), predicates, counts)


def cue(words: Sequence[str], place: int) -> str | None:
    """Give the part of speech that the function words around `words[place]` ask for, None if they leave it
    open.

    >>> cue(["a", "great", "film"], 1), cue(["to", "love", "the"], 1), cue(["the", "horror", "of"], 1)
    ('adjective', 'verb', 'noun')
    """
    word = words[place]
    left, before = _left(words, place)
    right = _neighbour(words, place + 1)
    is_open = right not in CLOSED_RIGHT and right not in DETERMINERS and right not in SKIPPED
    takes_object = right in DETERMINERS or right in OBJECTS
    if _is_adverb(word):
        return ADVERB
    if left == "to":
        return VERB if not is_open and right not in BE | MODALS else None
    if left in MODALS or (left in SUBJECTS and right not in BE | MODALS):
        return VERB
    if left in DEGREES:
        return None if left in ("so", "as", "how") and (takes_object or right in SUBJECTS) else ADJECTIVE
    if left in BE or (left == "'s" and before in ("it", "that", "he", "she", "there", "what")):
        return _after_be(word, right, is_open, takes_object)
    if left in DETERMINERS:
        return _after_determiner(right, is_open)
    if left in PREPOSITIONS and not is_open and right not in CONJUNCTIONS and not takes_object:
        return None if word.endswith(("ing", "ed")) else NOUN
    if takes_object and right != "her" and left not in HAVE:
        return VERB
    return None


def _after_be(word: str, right: str, is_open: bool, takes_object: bool) -> str | None:
    if word.endswith("ing") or (word.endswith("ed") and right in PREPOSITIONS):
        return VERB if takes_object or right in PREPOSITIONS else None
    return ADJECTIVE if not is_open and not takes_object else None


def _after_determiner(right: str, is_open: bool) -> str | None:
    if right in ("and", "or", "but"):
        return None
    return ADJECTIVE if is_open else NOUN


def _left(words: Sequence[str], place: int) -> tuple[str, str]:
    """The nearest token to the left that no adverb or negation hides, and the one before it."""
    at = place - 1
    while at >= 0 and words[at] in SKIPPED:
        at -= 1
    return _neighbour(words, at), _neighbour(words, at - 1)


def _neighbour(words: Sequence[str], place: int) -> str:
    if not 0 <= place < len(words):
        return BOUNDARY
    word = words[place]
    return word if is_word(word) or (word[0] in "'’" and len(word) > 1) else BOUNDARY


def context_key(words: Sequence[str], place: int) -> str:
    """Give what a neighbour looks like from its slot: a function word itself, an edge, else an ending.

    >>> [context_key(["the", "movies"], place) for place in (0, 1, 2)]
    ['the', '*s', '<edge>']
    """
    word = _neighbour(words, place)
    if word == BOUNDARY or word in FUNCTION_WORDS or word in _stop_words():
        return word
    return "*" + next(
        (ending for ending in ("ing", "ed", "ly") if word.endswith(ending)), "s" if _ends_in_s(word) else ""
    )


def is_function_word(word: str) -> bool:
    """Tell whether a word is in the closed list above or among spaCy's English stop words."""
    return word in FUNCTION_WORDS or word in _stop_words()


@cache
def _stop_words() -> frozenset[str]:
    from spacy.lang.en.stop_words import STOP_WORDS

    return frozenset(STOP_WORDS)


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and len(word) > 4 and word not in LY_ADJECTIVES


def _ends_in_s(word: str) -> bool:
    return len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "ous"))


def _bases(word: str, suffix: str) -> tuple[str, ...]:
    cut = word[: -len(suffix)]
    return (
        cut,
        cut + "e",
        cut[:-1] + "y" if cut.endswith("i") else cut,
        cut[:-1] if cut[-2:-1] == cut[-1:] else cut,
    )
