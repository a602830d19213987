"""Parts of speech by a spaCy pipeline where one is installed; its tags then stand in for the rules of `word_classes`.

None is among the requirements: the pipelines are no packages of the index, and the rules need no download. Who found
the parts of speech stands in the result, because other tags make other triples.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from lfp_lens.parts.word_classes import (
    ADJECTIVE,
    ADVERB,
    MIN_VOTES,
    NOUN,
    SURE,
    VERB,
    Kind,
    WordClasses,
    learn_classes,
)
from lfp_lens.parts.words import Tokens, is_word

PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
"""Best first."""
RULES = "function words and suffixes (no tagger)"
KINDS: Mapping[str, Kind] = {
    "JJ": (ADJECTIVE, "base"), "JJR": (ADJECTIVE, "comparative"), "JJS": (ADJECTIVE, "superlative"),
    "NN": (NOUN, "singular"), "NNS": (NOUN, "plural"),
    "VB": (VERB, "base"), "VBP": (VERB, "present"), "VBZ": (VERB, "third person"), "VBD": (VERB, "past"),
    "VBN": (VERB, "participle"), "VBG": (VERB, "ing"),
    "RB": (ADVERB, "base"), "RBR": (ADVERB, "comparative"), "RBS": (ADVERB, "superlative"),
}  # fmt: skip
"""Penn Treebank tag -> part of speech and inflection; names, function words and the rest have none."""


@dataclass(frozen=True)
class TaggedClasses:
    """What a tagger says of the words of the texts; it answers as `WordClasses` does."""

    profiles: Mapping[str, Counter[Kind]]
    """Word -> how often it has each kind."""
    counts: Mapping[str, int]
    """Word -> occurrences."""
    kinds: Mapping[int, tuple[Kind | None, ...]] = field(repr=False)
    """Number of the text -> kind of each of its tokens."""

    def kind(self, word: str) -> Kind | None:
        """Give the kind that a word nearly always has, None if it has no such one."""
        votes = self.profiles.get(word, Counter())
        best = max(votes, key=lambda kind: (votes[kind], kind), default=None)
        return best if votes.total() >= MIN_VOTES and best and votes[best] >= SURE * self.counts[word] else None

    def kind_at(self, text: int, tokens: Tokens, place: int) -> Kind | None:
        """Give the kind of one occurrence."""
        return self.kinds[text][place]


@dataclass(frozen=True)
class Tagger:
    """A spaCy pipeline with a tagger, on tokens that are made already."""

    name: str
    """Package and version, for the result."""
    pipeline: Any = field(repr=False)
    """The pipeline."""

    def classes(self, texts: Sequence[str], tokens: Sequence[Tokens]) -> TaggedClasses:
        """Tag the texts and count the kinds of every word."""
        from spacy.tokens import Doc

        profiles: dict[str, Counter[Kind]] = defaultdict(Counter)
        counts: Counter[str] = Counter()
        kinds: dict[int, tuple[Kind | None, ...]] = {}
        docs = (
            Doc(
                self.pipeline.vocab,
                words=[text[start:end] for start, end in zip(one.starts, one.ends)],
                spaces=[text[end : end + 1].isspace() for end in one.ends],
            )
            for text, one in zip(texts, tokens)
        )
        for number, (doc, one) in enumerate(zip(self.pipeline.pipe(docs), tokens)):
            kinds[number] = tuple(KINDS.get(token.tag_) for token in doc)
            counts.update(one.words)
            for word, kind in zip(one.words, kinds[number]):
                if kind and is_word(word):
                    profiles[word][kind] += 1
        return TaggedClasses(dict(profiles), counts, kinds)


def find_tagger() -> Tagger | None:
    """Give the best spaCy pipeline for English that is installed and has a tagger, None if there is none."""
    for name in PIPELINES:
        try:
            package = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        pipeline = package.load(exclude=["parser", "ner", "lemmatizer"])
        if "tagger" in pipeline.pipe_names:
            return Tagger(f"{name} {package.__version__}", pipeline)
    return None


def classes_of(texts: Sequence[str], tokens: Sequence[Tokens], tagger: Tagger | None) -> "WordClasses | TaggedClasses":
    """Sort the words of the texts into parts of speech, by the tagger if there is one."""
    return tagger.classes(texts, tokens) if tagger else learn_classes(tokens)
