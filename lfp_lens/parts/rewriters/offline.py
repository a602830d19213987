"""The offline rewriter: puts positive, neutral or negative words where an answer has strong ones.

Deterministic, free and needing no model. It knows the valence of words (VADER) and nothing else, so for it every task
is valence: whether the preferences are too, `PreferenceTriples.grader_agreement` tells.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.rewriters.base import REWRITERS, Declined, Setting
from lfp_lens.parts.slots import slot_at, strong_places
from lfp_lens.parts.substitutes import Slot, in_case, learn_substitutes
from lfp_lens.parts.tagger import Tagger
from lfp_lens.parts.word_classes import is_function_word
from lfp_lens.parts.words import tokenize

MIN_VALUE = 1.0
"""Least |VADER value| of a word that is replaced, and of what stands for a pole."""
BOUNDS = (-1.0, -0.25, 0.25, 1.0)
"""Mean values that part the grades 1 to 5."""
POLES = ("positive", "neutral", "negative")
NO_WORD, NO_SUBSTITUTE = "no strong word to replace", "no words of all three kinds fit"


class OfflineRewriter:
    """Replaces every strong word by one of the pole asked for, of the same part of speech and inflection.

    The words come from the answers themselves and from `company`, seen there beside the same neighbours
    (`parts.substitutes`). A strong word stays, in all three rewrites alike, where one of the three kinds has none that
    fits. So the rewrites of an answer differ in the same places, have its length to the word, and hold nothing in those
    places that it held there.

    Grade: the mean VADER value of the answer's rated words, function words aside (0 without one), cut at -1, -0.25,
    0.25 and 1. Negation is not seen.
    """

    workers = 1

    def __init__(
        self, texts: Sequence[str], *, company: Sequence[str] = (), seed: int = 0, tagger: Tagger | None = None
    ) -> None:
        """Learn the words.

        Args:
            texts: the answers that are to be rewritten; others are refused.
            company: more text of the same kind: the more, the more answers find words that fit.
            seed: of the choice among words that fit equally well.
            tagger: who tells parts of speech; None for the rules without one.
        """
        self.name = f"offline, {tagger.name}" if tagger else "offline"
        self.fingerprint = fingerprint([self.name, list(texts), list(company), seed])
        self._lexicon: Mapping[str, float] = load_lexicon("vader")
        self._seed = seed
        self._tokens = {text: tokenize(text) for text in (*texts, *company)}
        self._fills: dict[str, list[tuple[Slot, dict[str, str]]]] = {}
        self._numbers = {text: number for number, text in enumerate(self._tokens)}
        self._substitutes = learn_substitutes(
            list(self._tokens), list(self._tokens.values()), self._lexicon, MIN_VALUE, tagger
        )

    def grade(self, prompt: str, text: str, task: str) -> int:
        """Grade the valence of the words, whatever the task."""
        words = [word for word in tokenize(text).words if word in self._lexicon and not is_function_word(word)]
        mean = float(np.mean([self._lexicon[word] for word in words])) if words else 0.0
        return 1 + int(np.searchsorted(BOUNDS, mean, side="right"))

    def rewrite(self, prompt: str, text: str, pole: str, task: str, n_words: int) -> str:
        """Replace the strong words; `n_words` is met because an answer keeps its words' number."""
        written, end = "", 0
        for slot, words in self._filled(text):
            written += text[end : slot.start] + in_case(words[pole], slot.case)
            end = slot.end
        return written + text[end:]

    def _filled(self, text: str) -> list[tuple[Slot, dict[str, str]]]:
        """Give the places of an answer that change, with their words; the three rewrites of an answer share them."""
        if text not in self._tokens:
            raise LensError("The offline rewriter rewrites only the texts that it was made with.")
        if text not in self._fills:
            number, tokens = self._numbers[text], self._tokens[text]
            places = strong_places(tokens, self._substitutes)
            slots = [
                one for at in places if isinstance(one := slot_at(number, text, tokens, at, self._substitutes), Slot)
            ]
            if not slots:
                raise Declined(NO_WORD)
            self._fills[text] = [(slot, words) for slot in slots if (words := self._words(slot, text))]
        if not self._fills[text]:
            raise Declined(NO_SUBSTITUTE)
        return self._fills[text]

    def _words(self, slot: Slot, text: str) -> dict[str, str] | None:
        """Give a word of every kind for a slot, None if one kind has none."""
        found = {pole: self._substitutes.choose(slot, pole, self._turns(slot, text, pole), None) for pole in POLES}
        chosen = {pole: word for pole, word in found.items() if word is not None}
        return chosen if len(chosen) == len(POLES) else None

    def _turns(self, slot: Slot, text: str, pole: str) -> dict[str, int]:
        """Give an order by the seed and the place in which equally fitting words come up."""
        words = self._substitutes.pools.get((slot.part, slot.inflection, pole), ())
        named = f"{self._seed}:{slot.start}:{text}".encode("utf-8", "surrogatepass")
        generator = np.random.default_rng(int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big"))
        return dict(zip(words, generator.permutation(len(words)).tolist()))


@REWRITERS.add("offline")
def _offline(argument: str, setting: Setting) -> OfflineRewriter:
    if argument:
        raise LensError(f"The rewriter 'offline' takes nothing after its name; {argument!r} given.")
    return OfflineRewriter(setting.texts, company=setting.company, seed=setting.seed, tagger=setting.tagger)
