"""Where a strong lexicon word may be replaced: a plain word in plain case whose part of speech is settled."""

from lfp_lens.parts.substitutes import Slot, Substitutes, case_of
from lfp_lens.parts.word_classes import is_function_word
from lfp_lens.parts.words import Tokens

GLUE = frozenset("-'’/*_&@#")
SENTENCE_ENDS = frozenset((".", "!", "?", "...", "…"))
POLES = ("positive", "negative")


def strong_places(tokens: Tokens, substitutes: Substitutes) -> list[int]:
    """Give the tokens of a text that are strong lexicon words."""
    return [place for place, word in enumerate(tokens.words) if substitutes.pole(word) in POLES]


def slot_at(number: int, text: str, tokens: Tokens, place: int, substitutes: Substitutes) -> Slot | str:
    """Give the slot of one occurrence, or why it is none.

    Args:
        number: which of the texts that the substitutes were learned on.
        text: that text.
        tokens: its tokens.
        place: which token.
        substitutes: the words that may stand there.
    """
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
    kind = substitutes.classes.kind_at(number, tokens, place)
    if kind is None:
        return "part of speech not settled"
    return Slot(number, place, word, start, end, case, *kind, tokens)
