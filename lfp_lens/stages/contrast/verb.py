"""The verb: triples of words from texts and a lexicon, or of whole answers from preference pairs and a rewriter."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, overload

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.preferences import Preference, Preferences
from lfp_lens.parts.rewriters import Setting
from lfp_lens.parts.sources import cache_folder
from lfp_lens.parts.tagger import find_tagger
from lfp_lens.results.contrast import PreferenceTriples, Triples
from lfp_lens.stages.contrast.preferences import preference_triples, task_of
from lfp_lens.stages.contrast.words import MIN_TRIPLES, word_triples

LEXICON, MIN_VALUE, OFFLINE = "vader", 1.0, "offline"


@overload
def contrast(
    texts: Preferences | Sequence[Preference],
    *,
    max_triples: int = ...,
    rewriter: Any = ...,
    task: str | None = ...,
    swap: bool | None = ...,
    seed: int = ...,
    store: Store | None = ...,
) -> PreferenceTriples: ...


@overload
def contrast(
    texts: Sequence[str],
    *,
    lexicon: str | PathLike[str] | Mapping[str, float] = ...,
    min_value: float = ...,
    max_triples: int = ...,
    seed: int = ...,
    store: Store | None = ...,
) -> Triples: ...


def contrast(
    texts: Sequence[str] | Sequence[Preference] | Preferences,
    *,
    lexicon: str | PathLike[str] | Mapping[str, float] = LEXICON,
    min_value: float = MIN_VALUE,
    max_triples: int = 2000,
    rewriter: Any = None,
    task: str | None = None,
    swap: bool | None = None,
    seed: int = 0,
    store: Store | None = None,
) -> Triples | PreferenceTriples:
    """Give triples that differ in what feedback is about: in one word of a text, or in the whole answer to a prompt.

    **From texts**: each strong lexicon word is a slot with a part of speech and an inflection (by an installed spaCy
    pipeline with a tagger, else by the function words around it and by suffix; the result names which). The word itself
    is one member; the others come from words of the same kind seen in these texts beside the same neighbours, so that
    any base model knows them, of similar frequency where there is a choice. Case, and everything else, stays; "a"/"an"
    keep agreeing. Words take turns, so that frequent ones do not dominate: none fills the positive or negative member
    more than max(20, twice its equal share) times.

    **From preference pairs**: the rewriter writes all three members from one original, the preferred answer in even
    rows and the other one in odd rows (the other way round for an odd seed), so that neither the hand nor the original
    is a clue. It then grades members and originals from 1 to 5 without being told which is which. Kept is what has
    grades in order and lengths within 20 %. Answers are cut at 120 words first.

    Args:
        texts: raw texts (strings), of which each may give several triples; or preference pairs: what `load_preferences`
            gives (triples are made of its test side; the offline rewriter learns words from its train side too), or a
            list of its `Preference`.
        lexicon: "vader", a lexicon file or a mapping: the stated feedback. For texts only.
        min_value: the least |value| of a positive or negative word. For texts only.
        max_triples: how many at most.
        rewriter: `offline` (the default with pairs: puts words of other valence, needs no model), `openai:MODEL`, or an
            object that follows `parts.rewriters.Rewriter`. For pairs only.
        task: what is graded: "hh", "toxic", or the name of a quality in words ("an honest answer"). None: "toxic" where
            the name of the set that `load_preferences` gave holds that word, else "hh". For pairs only.
        swap: whether the pairs prefer what lacks the quality. None: only for "toxic", where the toxic answer is the
            preferred one: then the positive member is the one graded lowest, and grades are turned round. For pairs
            only.
        seed: of the order in which words and occurrences, or pairs, take their turns.
        store: where to keep the result; None keeps it in memory. Paid replies are kept in it, or in the user's cache
            folder.

    Returns:
        `Triples` with sign(positive) > 0, sign(negative) < 0 and |neutral| < 0.5 (outside the lexicon counts as 0), or
        `PreferenceTriples`; in `rejected`, how many texts, occurrences or pairs fell to each reason.

    Raises:
        LensError: for texts or pairs that are none, arguments of the other kind, texts that hold no strong lexicon word
            or only one polarity, an unknown rewriter, a chat model without a key or a server that fails.
        GateError: when fewer than 10 triples pass.

    What it does not show: that the texts are good English (no parser checks them), that a neutral word outside the
    lexicon is neutral to a reader, or that a rewriter's grades are those of the people whose preferences were learned
    (`PreferenceTriples.grader_agreement`).

    Source: arXiv 2310.08164, section 3.3. There the three members came from different hands (the preferred one was the
    original), with lengths that told them apart, and the grading function was never called.

    >>> words = {"great": 3.1, "awful": -2.0, "bad": -2.5}
    >>> texts = [f"It was a {w} film. It was {w}." for w in ("great", "big", "bad", "long")] * 5
    >>> triples = contrast(texts, lexicon=words)
    >>> sorted(set(triples.negative)), sorted(set(triples.neutral))
    (['bad'], ['big', 'long'])
    """
    if max_triples < MIN_TRIPLES:
        raise LensError(f"max_triples must be at least {MIN_TRIPLES}; {max_triples} given.")
    if isinstance(texts, Iterable) and not isinstance(texts, (str, Preference)):
        texts = list(texts)  # type: ignore[assignment]
    pairs = _pairs(texts)
    if pairs is None:
        _refuse("preference pairs", "texts", rewriter=rewriter, task=task, swap=swap)
        return _from_texts(list(texts), lexicon, min_value, max_triples, seed, store)  # type: ignore[arg-type]
    _refuse("texts", "preference pairs", lexicon=_given(lexicon, LEXICON), min_value=_given(min_value, MIN_VALUE))
    quality, is_swapped = task_of(task, swap, getattr(texts, "name", ""))
    writer = OFFLINE if rewriter is None else rewriter
    tagger = find_tagger() if writer == OFFLINE else None
    company = _company(texts.train if isinstance(texts, Preferences) else (), pairs)
    inputs = {
        "pairs": pairs, "company": company, "max_triples": max_triples, "rewriter": writer, "task": quality,
        "swap": is_swapped, "seed": seed, "tagger": tagger.name if tagger else None,
    }  # fmt: skip
    replies = (store.root if store else cache_folder()) / "replies"
    setting = Setting(replies, seed, company=company, tagger=tagger)

    def make(folder: Path | None) -> PreferenceTriples:
        return preference_triples(pairs, writer, setting, quality, is_swapped, max_triples)

    return keep(store, "contrast", inputs, make)


def _pairs(texts: Any) -> list[Preference] | None:
    """Give preference pairs if it is such that were given, None for texts."""
    if isinstance(texts, Preferences):
        return list(texts.test)
    if isinstance(texts, Preference) or not isinstance(texts, Sequence) or isinstance(texts, str) or not len(texts):
        raise LensError("contrast needs a list of texts (strings) or of preference pairs, at least one.")
    if all(isinstance(one, str) for one in texts):
        return None
    kinds = {type(one).__name__ for one in texts if not isinstance(one, (str, Preference))} or {
        "str" for one in texts if isinstance(one, str)
    }
    if kinds or not all(isinstance(part, str) for pair in texts for part in pair):
        raise LensError(
            f"contrast needs a list of texts (strings) or of preference pairs (`lfp_lens.load_preferences(...).test`), "
            f"all of one kind; there is {', '.join(sorted(kinds)) or 'a pair that holds no text'}."
        )
    return list(texts)


def _company(train: Sequence[Preference], pairs: Sequence[Preference]) -> tuple[str, ...]:
    """Give the prompts, and all texts of the train side: a rewriter learns words there, no triple is made of them."""
    prompts = [pair.prompt for pair in pairs]
    return tuple(dict.fromkeys([*prompts, *(text for pair in train for text in pair)]))


def _given(value: Any, default: Any) -> Any:
    return None if isinstance(value, type(default)) and value == default else value


def _refuse(needed: str, got: str, **given: Any) -> None:
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise LensError(
            f"{' and '.join(named)} go with {needed}; {got} were given. Leave {'them' if len(named) > 1 else 'it'} out."
        )


def _from_texts(
    texts: list[str],
    lexicon: str | PathLike[str] | Mapping[str, float],
    min_value: float,
    max_triples: int,
    seed: int,
    store: Store | None,
) -> Triples:
    if not min_value >= 0.5:
        raise LensError(f"min_value must be at least 0.5, the bound of a neutral word; {min_value} given.")
    values, tagger = load_lexicon(lexicon), find_tagger()
    inputs = {
        "texts": texts, "lexicon": values, "min_value": min_value, "max_triples": max_triples, "seed": seed,
        "tagger": tagger.name if tagger else None,
    }  # fmt: skip
    return keep(
        store, "contrast", inputs, lambda folder: word_triples(texts, values, min_value, max_triples, seed, tagger)
    )
