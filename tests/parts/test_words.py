from lfp_lens.parts.words import find_words, stem, token_keys, tokenize, word_counts, word_key

TEXTS = ["I can't say it's GREAT, great-looking stuff!", "", "o'clock 3rd\nÉlan vital"]


def test_every_occurrence_points_at_its_own_characters():
    for found in find_words(TEXTS):
        assert TEXTS[found.text][found.start : found.end].lower() == found.word


def test_words_come_by_text_and_position_and_numbers_and_marks_are_none():
    words = [found.word for found in find_words(TEXTS)]
    assert words == [
        "i",
        "ca",
        "n't",
        "say",
        "it",
        "great",
        "great",
        "looking",
        "stuff",
        "o'clock",
        "élan",
        "vital",
    ]


def test_wanted_words_are_the_matching_part_of_all_words():
    wanted = {"great", "vital", "absent"}
    assert find_words(TEXTS, wanted) == [found for found in find_words(TEXTS) if found.word in wanted]
    assert find_words(TEXTS, ()) == []


def test_counts_agree_with_the_occurrences():
    counts = word_counts(TEXTS)
    assert counts["great"] == 2
    assert counts.total() == len(find_words(TEXTS))


def test_tokens_leave_white_space_out_and_keep_punctuation():
    tokens = tokenize("Oh   no .\n\nYes")
    assert tokens.words == ("oh", "no", ".", "yes")
    assert tokens.starts == (0, 5, 8, 11)
    assert tokenize("").words == ()


def test_the_key_of_a_word_is_the_key_of_its_token_in_any_case():
    assert token_keys("GREAT").tolist() == [word_key("great")]


def test_a_stem_joins_a_word_family():
    assert len({stem(word) for word in ("love", "Loved", "loving", "loves")}) == 1
    assert stem("good") != stem("bad")
