"""The record of preference triples: what it refuses, what it gives, how it shows itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.results.contrast import MEMBERS, PreferenceTriples, Triples

HOSTILE = "</script><script>alert(1)</script>"


def some(**changed: Any) -> PreferenceTriples:
    made = PreferenceTriples(
        prompt=("Is it?", f"Was it {HOSTILE}?", "Is it?"),
        positive=(" yes it is so", " it was so", " oh yes"),
        neutral=(" may be it is", " may be not", " may be"),
        negative=(" no it is not", f" {HOSTILE} not so", " oh no"),
        original_chosen=("yes", "was", "oh"),
        original_rejected=("no", "not", "ah"),
        grades=np.array([[5, 3, 1], [4, 3, 2], [5, 4, 1]]),
        original_grades=np.array([[4, 2], [3, 3], [2, 4]]),
        source=np.array([0, 4, 7]),
        group=("is it?", "was it?", "is it?"),
        task="a true answer",
        rewriter="by hand",
        is_swapped=False,
        rejected={"empty rewrite": 5},
        n_items=8,
    )
    return replace(made, **changed)


def test_spans_mark_the_continuation_in_the_whole_text() -> None:
    made = some()
    for member in MEMBERS:
        for text, (start, end), own in zip(made.texts(member), made.spans(member), made.continuations(member)):
            assert text[start:end] == own and end == len(text)


def test_grader_agreement_counts_ties_half_and_a_prompt_once() -> None:
    # "is it?": right once and wrong once; "was it?": a tie
    agreement = some().grader_agreement()
    assert (agreement.value, agreement.n) == (0.5, 2)
    assert some(original_grades=np.array([[4, 2], [3, 3], [5, 4]])).grader_agreement().value == 0.75


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"neutral": (" may be it is", " may be not", " may be it")}, r"Triple 2 .*: lengths more than 20 % apart"),
        ({"grades": np.array([[5, 3, 1], [4, 4, 2], [5, 4, 1]])}, r"Triple 1 .*: grades out of order"),
        ({"grades": np.array([[6, 3, 1], [4, 3, 2], [5, 4, 1]])}, r"Triple 0 .*: grades out of order"),
        ({"positive": (" NO it is  not", " it was so", " oh yes")}, r"Triple 0 .*: identical rewrites"),
        ({"positive": (" yes it is so", " ", " oh yes")}, r"Triple 1 .*: empty rewrite"),
        ({"group": ("is it?",)}, "one entry per triple in every field"),
    ],
)
def test_what_makes_no_triple_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        some(**changed)


def test_a_fifth_more_words_is_still_of_like_length() -> None:
    members = {"positive": (" a b c d e f",), "neutral": (" a b c d e",), "negative": (" b b c d e",)}
    rest = {"prompt": ("p",), "original_chosen": ("x",), "original_rejected": ("y",), "source": np.array([0]), "group": ("p",),
            "grades": np.array([[5, 3, 1]]), "original_grades": np.array([[5, 1]])}  # fmt: skip
    assert len(some(**members, **rest)) == 1


def test_it_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    write_record(some(), tmp_path)
    read = read_record(tmp_path)
    assert read.to_frame().equals(some().to_frame())
    assert (read.task, read.rejected, read.is_swapped, read.n_items) == (
        "a true answer",
        {"empty rewrite": 5},
        False,
        8,
    )


def test_it_shows_itself_with_texts_escaped() -> None:
    made = some()
    html = made._repr_html_()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert "3 preference triples from 8 pairs" in html and "5 empty rewrite" in html
    assert "poles swapped" in some(is_swapped=True)._repr_html_()
    assert made.plot().data[0].x[-1] == 3
    assert list(made.to_frame().columns[-5:]) == [
        "grade_positive", "grade_neutral", "grade_negative", "grade_original_chosen", "grade_original_rejected",
    ]  # fmt: skip


def test_word_triples_give_the_lemma_of_every_word() -> None:
    made = Triples(
        prefix=("It was ",), suffix=(".",), positive=("Loved",), neutral=("seen",), negative=("hated",),
        part_of_speech=("verb, participle",), source=np.array([0]), lexicon={}, rejected={}, n_texts=1,
        lemmas={"loved": "love", "hated": "hate"},
    )  # fmt: skip
    assert [made.lemma(member) for member in MEMBERS] == [("love",), ("seen",), ("hate",)]


def test_the_groups_of_word_triples_stand_in_the_order_of_their_texts() -> None:
    made = Triples(
        prefix=("It was ", "So "), suffix=("", ""), positive=("loved", "good"), neutral=("seen", "big"),
        negative=("hated", "bad"), part_of_speech=("verb, past", "adjective, base"), source=np.array([3, 5]), lexicon={},
        rejected={}, n_texts=6, lemmas={"loved": "love", "hated": "hate"},
    )  # fmt: skip
    ends = [text.split()[-1] for text in made.up_to_word()]
    assert ends == ["loved", "good", "seen", "big", "hated", "bad"]
    assert made.groups() == ("love", "good", "seen", "big", "hate", "bad")
    assert made.groups("source") == ("3", "5") * 3
    with pytest.raises(LensError, match=r"Unknown group of triples 'lema'\. Did you mean 'lemma'"):
        made.groups("lema")
