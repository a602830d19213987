from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.substitutes import case_of, starts_with_vowel_sound
from lfp_lens.parts.tagger import Tagger
from lfp_lens.parts.word_classes import ADJECTIVE, ADVERB, NOUN, VERB, cue, learn_classes
from lfp_lens.parts.words import stem, tokenize
from lfp_lens.results.contrast import MEMBERS, Triples
from lfp_lens.stages.contrast import contrast

LEXICON = {
    "great": 3.0, "awesome": 3.0, "bad": -2.5, "awful": -2.5, "loved": 2.9, "hated": -3.2, "love": 2.9,
    "hate": -2.7, "joy": 2.8, "shame": -2.1, "okay": 0.7,
}  # fmt: skip
ADJECTIVES = ("great", "awesome", "bad", "awful", "long", "blue", "early", "okay")


def small_world() -> list[str]:
    texts = [f"It was {'an' if starts_with_vowel_sound(one) else 'a'} {one} film. It was {one}." for one in ADJECTIVES]
    texts += [f"I {verb} the film. We {verb} it." for verb in ("loved", "hated", "watched", "love", "hate", "watch")]
    texts += [f"They want to {verb} it." for verb in ("love", "hate", "watch")]
    texts += [f"The {noun} of it was blue. There is a {noun} in it." for noun in ("joy", "shame", "story")]
    return texts * 4


@pytest.fixture(scope="module")
def triples() -> Triples:
    return contrast(small_world(), lexicon=LEXICON)


def test_every_member_has_the_sign_it_stands_for(triples: Triples):
    values = {member: np.array([triples.lexicon[word.lower()] for word in triples.words(member)]) for member in MEMBERS}
    assert (values["positive"] >= 1).all()
    assert (values["negative"] <= -1).all()
    assert (np.abs(values["neutral"]) < 0.5).all()


def test_one_member_is_the_original_text_and_the_others_differ_in_one_word(triples: Triples):
    texts = small_world()
    for place, source in enumerate(triples.source):
        originals = [triples.texts(member)[place] for member in ("positive", "negative")]
        assert originals.count(texts[source]) == 1
    for member in MEMBERS:
        for text, word, (start, end) in zip(triples.texts(member), triples.words(member), triples.spans(member)):
            assert text[start:end] == word


def test_all_three_words_share_part_of_speech_and_inflection(triples: Triples):
    kinds = {
        "adjective, base": {"great", "awesome", "bad", "awful", "long", "blue", "early"},
        "verb, past": {"loved", "hated", "watched"},
        "verb, base": {"love", "hate", "watch"},
        "noun, singular": {"joy", "shame", "story", "film"},
    }
    for place, kind in enumerate(triples.part_of_speech):
        assert {triples.words(member)[place] for member in MEMBERS} <= kinds[kind]
    assert set(triples.part_of_speech) == set(kinds)


def test_articles_keep_agreeing(triples: Triples):
    checked = 0
    for place, prefix in enumerate(triples.prefix):
        article = prefix.split()[-1] if prefix else ""
        if article in ("a", "an"):
            checked += 1
            sounds = {starts_with_vowel_sound(triples.words(member)[place]) for member in MEMBERS}
            assert sounds == {article == "an"}
    assert checked > 10


def test_each_occurrence_gives_at_most_one_triple(triples: Triples):
    places = Counter((source, len(prefix)) for source, prefix in zip(triples.source.tolist(), triples.prefix))
    assert max(places.values()) == 1


def test_the_case_of_the_word_is_kept():
    texts = small_world() + ["GREAT fun! It was long.", "It was GREAT. Great was it."] * 3
    found = contrast(texts, lexicon=LEXICON)
    cases = {tuple(case_of(found.words(member)[place]) for member in MEMBERS) for place in range(len(found))}
    assert ("upper", "upper", "upper") in cases
    assert all(len(set(case)) == 1 for case in cases)


def test_the_seed_decides_and_the_order_of_the_lexicon_does_not():
    texts = small_world()
    first = contrast(texts, lexicon=LEXICON, max_triples=20, seed=3)
    same = contrast(texts, lexicon=dict(reversed(LEXICON.items())), max_triples=20, seed=3)
    other = contrast(texts, lexicon=LEXICON, max_triples=20, seed=4)
    assert first.to_frame().equals(same.to_frame())
    assert not first.to_frame().equals(other.to_frame())


def test_the_words_of_a_triple_come_with_their_lemmas(triples: Triples):
    for member in MEMBERS:
        assert triples.lemma(member) == tuple(stem(word) for word in triples.words(member))
    assert {triples.lemmas[word] for word in ("loved", "love")} == {"love"}


def test_the_result_says_who_told_the_parts_of_speech(triples: Triples, monkeypatch: pytest.MonkeyPatch):
    assert triples.tagger == "function words and suffixes (no tagger)"
    tags = {"film": "NN", **dict.fromkeys(("great", "bad", "awful", "long"), "JJ")}
    stand_in = Tagger("stand-in 1.0", _Tags(spacy.blank("en").vocab, tags))
    monkeypatch.setattr("lfp_lens.stages.contrast.verb.find_tagger", lambda: stand_in)
    found = contrast(small_world(), lexicon=LEXICON)
    assert found.tagger == "stand-in 1.0"
    assert set(found.part_of_speech) == {"adjective, base"} and set(found.neutral) == {"long"}


class _Tags:
    """A pipeline that tags by a table."""

    def __init__(self, vocab: Any, tags: dict[str, str]) -> None:
        self.vocab, self.tags = vocab, tags

    def pipe(self, docs: Any) -> Any:
        for doc in docs:
            for token in doc:
                token.tag_ = self.tags.get(token.text, "XX")
            yield doc


def test_words_take_turns_so_that_a_frequent_one_does_not_dominate():
    texts = small_world() + ["It was a great film. It was great."] * 300
    found = contrast(texts, lexicon=LEXICON, max_triples=40)
    originals = Counter(
        next(found.words(member)[place] for member in MEMBERS if found.texts(member)[place] == texts[source])
        for place, source in enumerate(found.source)
    )
    assert len(found) == 40
    assert originals["great"] <= 6
    assert found.rejected["not needed: max_triples reached"] > 200


def test_no_word_exceeds_its_share_of_a_member():
    texts = small_world() + ["It was a great film. It was great."] * 300
    found = contrast(texts, lexicon=LEXICON, max_triples=200)
    # 10 lexicon words have slots: twice the equal share of 200 is 40
    assert max(Counter((*found.positive, *found.negative)).values()) == 40
    assert found.rejected["word has had its share"] > 200


def test_rejected_occurrences_are_counted_by_reason():
    odd = ["A feel-great film.", "The film Great Expectations.", "It was gReAt.", "Nothing to see."]
    found = contrast(small_world() + odd, lexicon=LEXICON)
    assert found.rejected["part of a compound"] == 1
    assert found.rejected["capitalised inside a sentence (a name or title)"] == 1
    assert found.rejected["mixed case"] == 1
    # "Nothing to see", and in the small world 4 times: 4 adjectives, 2 verbs, 1 infinitive and 1 noun
    assert found.rejected["text without a strong lexicon word"] == 1 + 4 * (4 + 2 + 1 + 1)
    assert found.n_texts == len(small_world()) + 4


def test_a_neutral_word_never_shares_a_stem_with_a_valenced_one():
    texts = small_world() + ["It was a greatly film. It was greats."] * 5
    found = contrast(texts, lexicon=LEXICON)
    strong = {stem(word) for word, value in LEXICON.items() if abs(value) >= 0.5}
    assert not strong & {stem(word) for word in found.neutral}


def test_a_stored_result_is_read_back_and_a_changed_lexicon_makes_another(tmp_path: Path):
    store, texts = Store(tmp_path), small_world()
    first = contrast(texts, lexicon=LEXICON, store=store)
    again = contrast(texts, lexicon=LEXICON, store=store)
    assert first.to_frame().equals(again.to_frame())
    assert first.to_frame().equals(contrast(texts, lexicon=LEXICON).to_frame())
    contrast(texts, lexicon={**LEXICON, "okay": 0.8}, store=store)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("contrast-")]) == 2


def test_texts_without_a_lexicon_word_are_refused():
    with pytest.raises(LensError, match="None of the 20 texts holds a lexicon word"):
        contrast(["It was long."] * 20, lexicon=LEXICON)


def test_texts_with_one_polarity_are_refused():
    with pytest.raises(LensError, match="hold no negative lexicon word"):
        contrast(["It was a great film."] * 20, lexicon=LEXICON)


def test_too_few_triples_are_refused_with_the_reasons():
    with pytest.raises(GateError, match=r"triples passed; at least 10 are needed.*part of speech not settled"):
        contrast(["It was great.", "It was bad."], lexicon=LEXICON)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "at least one"),
        ({"texts": "one string"}, "list of texts"),
        ({"texts": [1]}, "list of texts"),
        ({"texts": ["a"], "min_value": 0.1}, "min_value must be at least 0.5"),
        ({"texts": ["a"], "min_value": float("nan")}, "min_value"),
        ({"texts": ["a"], "max_triples": 3}, "max_triples must be at least 10"),
        ({"texts": ["a"], "lexicon": "vadr"}, "Did you mean 'vader'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(LensError, match=message):
        contrast(**arguments)


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("a great film", 1, ADJECTIVE),
        ("it was not great .", 3, ADJECTIVE),
        ("so boring that", 1, ADJECTIVE),
        ("a very sad and long day", 2, ADJECTIVE),
        ("to love the film", 1, VERB),
        ("they do n't love it", 3, VERB),
        ("he was killing the joke", 2, VERB),
        ("the love of money", 1, NOUN),
        ("with love .", 1, NOUN),
        ("he acted badly .", 2, ADVERB),
        ("a lonely road", 1, ADJECTIVE),
        ("and great Ralph", 1, None),
        ("a dull and long film", 1, None),
    ],
)
def test_function_words_tell_the_part_of_speech(text: str, place: int, expected: str | None):
    assert cue(text.split(), place) == expected


def test_degrees_plurals_and_the_first_noun_of_a_compound_are_told_apart():
    sentences = [
        "It was a strong film.", "It was strong.", "The strongest of them was strong.",
        "I saw the horror film.", "The killer of it. They kill it.", "The films of it. The film of it.",
    ]  # fmt: skip
    classes = learn_classes([tokenize(text) for text in sentences * 5])
    assert classes.inflection("strongest", ADJECTIVE) == "superlative"
    assert classes.typical("strongest") == ADJECTIVE
    assert classes.typical("horror") is None
    assert classes.inflection("killer", ADJECTIVE) == "base"
    assert (classes.inflection("films", NOUN), classes.inflection("film", NOUN)) == ("plural", "singular")
    assert (classes.inflection("took", VERB), classes.inflection("loves", VERB)) == ("past", "third person")


@pytest.fixture(scope="module")
def real(real_data: Path) -> tuple[list[str], Triples]:
    from lfp_lens.parts.texts import load_texts

    texts = load_texts("imdb", split="test", n=300)
    return texts, contrast(texts, max_triples=500)


def test_real_reviews_give_many_checked_triples_of_many_words(real: tuple[list[str], Triples]):
    _, found = real
    vader = load_lexicon("vader")
    assert len(found) == 500
    assert all(vader[word.lower()] >= 1 for word in found.positive)
    assert all(vader[word.lower()] <= -1 for word in found.negative)
    assert all(abs(vader.get(word.lower(), 0.0)) < 0.5 for word in found.neutral)
    assert len({word.lower() for word in (*found.positive, *found.negative)}) > 150


def test_every_substitute_is_a_word_of_the_real_texts(real: tuple[list[str], Triples]):
    texts, found = real
    seen = {word for text in texts for word in tokenize(text).words}
    assert {word.lower() for member in MEMBERS for word in found.words(member)} <= seen
