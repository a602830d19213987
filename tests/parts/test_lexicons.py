from pathlib import Path

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.lexicons import choose_flips, edited, flip, load_lexicon, most_frequent, shuffled

SMALL = {"good": 2.0, "great": 3.0, "bad": -2.5, "ok": 0.5}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_vader_is_read_from_the_wheel_with_its_published_size_and_range():
    vader = load_lexicon("vader")
    assert len(vader) == 7506
    assert (min(vader.values()), max(vader.values())) == (-3.9, 3.4)
    assert (vader["great"], vader["horrible"], vader["ok"]) == (3.1, -2.5, 1.2)


def test_vader_agrees_with_its_own_package():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    assert load_lexicon("vader") == SentimentIntensityAnalyzer().lexicon


def test_changing_a_loaded_lexicon_does_not_change_the_next_one():
    load_lexicon("vader")["great"] = -9.0
    assert load_lexicon("vader")["great"] == 3.1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "word,value\nGood,2\n\nbad,-2.5\n"),
        ("a.csv", "good,2,ignored\nbad,-2.5,ignored\n"),
        ("a.tsv", "good\t2.0\t0.3\t[2, 2]\nbad\t-2.5\t0.1\t[-2, -3]\n"),
        ("a.json", '{"good": 2, "bad": -2.5}'),
    ],
)
def test_every_file_format_gives_the_same_lexicon(tmp_path: Path, name: str, text: str):
    assert load_lexicon(write(tmp_path, name, text)) == {"good": 2.0, "bad": -2.5}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "good,2\nbad,-2\nGood,3\n", r"line 3: 'good' is there already \(line 1\)"),
        ("a.csv", "good,2\nbad,much\n", "line 2: the value of 'bad' is 'much'"),
        ("a.csv", "good,2\nbad,nan\n", "line 2: the value of 'bad' is 'nan'"),
        ("a.csv", "good,2\nbad,inf\n", "line 2: the value of 'bad' is 'inf'"),
        ("a.csv", "good,2\n ,3\n", "line 2: the word is empty"),
        ("a.csv", "good\n", "line 1: 'good' has no value"),
        ("a.csv", "word,value\n", "holds no words"),
        ("a.json", '{"good": 2, "good": 3}', r"entry 2: 'good' is there already \(entry 1\)"),
        ("a.json", '{"good": true}', "entry 1: the value of 'good' is True"),
        ("a.json", "[1, 2]", "holds no object"),
        ("a.json", "{", "is not JSON"),
        ("a.xlsx", "good,2", "ends in '.xlsx'"),
    ],
)
def test_a_bad_lexicon_file_is_refused_with_the_place(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(LensError, match=message):
        load_lexicon(write(tmp_path, name, text))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(LensError, match="cannot be read"):
        load_lexicon(path)


def test_an_unknown_lexicon_name_is_refused_with_the_nearest():
    with pytest.raises(LensError, match="Did you mean 'vader'"):
        load_lexicon("vadr")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "empty"),
        ({"Good": 1.0}, "'Good' must be lower-case"),
        ({"good": float("nan")}, "'good'"),
        ({"good": "x"}, "'good'"),
        ({3: 1.0}, "strings"),
    ],
)
def test_a_bad_mapping_is_refused(mapping: dict, message: str):
    with pytest.raises(LensError, match=message):
        load_lexicon(mapping)


def test_flipping_negates_the_named_words_only_and_twice_restores_them():
    flipped = flip(SMALL, ["good", "bad"])
    assert flipped == {"good": -2.0, "great": 3.0, "bad": 2.5, "ok": 0.5}
    assert flip(flipped, ["good", "bad"]) == SMALL


def test_flipping_an_unknown_word_is_refused_with_the_nearest():
    with pytest.raises(LensError, match=r"'goood' is not in the lexicon.*'good'"):
        flip(SMALL, ["goood"])


def test_most_frequent_counts_strong_words_and_breaks_ties_by_alphabet():
    texts = ["Great, bad! ok ok ok", "good bad great"]
    assert most_frequent(SMALL, texts, 3) == ("bad", "great", "good")


def test_asking_for_more_frequent_words_than_there_are_is_refused_with_the_count():
    with pytest.raises(LensError, match=r"5 lexicon words .* hold 3"):
        most_frequent(SMALL, ["good bad great ok"], 5)


def test_flips_are_drawn_from_the_ten_times_most_frequent_words_and_follow_the_seed():
    names = [a + b for a in "bcdfg" for b in "klmnprt"]
    lexicon = dict.fromkeys(names, 2.0)
    texts = [" ".join([name] * (50 - place)) for place, name in enumerate(names)]
    draws = [choose_flips(lexicon, texts, 2, seed) for seed in range(30)]
    assert draws[0] == choose_flips(lexicon, texts, 2, 0)
    assert len(set(draws)) > 10
    assert {word for draw in draws for word in draw} <= set(names[:20])
    assert choose_flips(lexicon, texts, 0, 0) == ()


def test_more_flips_than_words_are_refused():
    with pytest.raises(LensError, match="hold 1"):
        choose_flips(SMALL, ["good"], 2, 0)
    with pytest.raises(LensError, match="0 or more"):
        choose_flips(SMALL, ["good"], -1, 0)


def test_editing_multiplies_the_named_words_only_and_leaves_the_lexicon_alone():
    before = dict(SMALL)
    assert edited(SMALL, {"good": -1, "bad": 0, "ok": 3}) == {"good": -2.0, "great": 3.0, "bad": 0.0, "ok": 1.5}
    assert before == SMALL
    assert edited(SMALL, {}) == SMALL


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"goood": 2.0}, r"'goood' is not in the lexicon.*'good'"),
        ({"good": float("nan")}, "factor of 'good' is nan"),
        ({"good": None}, "factor of 'good' is None"),
    ],
)
def test_an_edit_of_an_unknown_word_or_by_no_number_is_refused(factors: dict, message: str):
    with pytest.raises(LensError, match=message):
        edited(SMALL, factors)


def test_shuffling_keeps_words_and_values_and_follows_the_seed_alone():
    vader = load_lexicon("vader")
    one = shuffled(vader, 0)
    assert list(one) == list(vader)
    assert sorted(one.values()) == sorted(vader.values())
    assert shuffled(dict(reversed(vader.items())), 0) == one
    assert shuffled(vader, 1) != one
    # 7,506 pairs of unrelated values: the correlation's standard deviation is 0.012
    assert abs(np.corrcoef([vader[word] for word in vader], [one[word] for word in vader])[0, 1]) < 0.05
