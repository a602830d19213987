"""Preference triples: a scripted rewriter with planted quality, one without, every way to fail, the offline one on HH."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.core.store import Store
from lfp_lens.parts.preferences import Preference, Preferences, load_preferences
from lfp_lens.parts.rewriters import Declined
from lfp_lens.results.contrast import MEMBERS, PreferenceTriples, word_count
from lfp_lens.stages.contrast import contrast
from lfp_lens.stages.contrast.preferences import MAX_WORDS
from tests.chat_server import ChatServer, data_of, schema_of

LEVELS = {"positive": 5, "neutral": 3, "negative": 1}


@dataclass
class Scripted:
    """Writes `q=GRADE from ORIGINAL`, padded to the length asked for; reads the grade back from any text that holds one."""

    name: str = "scripted"
    workers: int = 4
    fingerprint: str = "scripted"
    write: Callable[[str, str, int], str] = lambda original, pole, n: f"q={LEVELS[pole]} {original}"
    read: Callable[[str], int] = lambda text: int(found[1]) if (found := re.search(r"q=(\d)", text)) else 3
    graded: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def grade(self, prompt: str, text: str, task: str) -> int:
        self.graded.append(text)
        return self.read(text)

    def rewrite(self, prompt: str, text: str, pole: str, task: str, n_words: int) -> str:
        self.written.append(text)
        return self.write(text, pole, n_words)


def a_pair(number: int, *, chosen: str = "", rejected: str = "") -> Preference:
    prompt = f"\n\nHuman: How do I do thing {number}?\n\nAssistant:"
    return Preference(
        prompt, chosen or f" q=4 chosen words here {number}", rejected or f"  q=2 other words here {number}"
    )


PAIRS = [a_pair(number) for number in range(30)]


@pytest.fixture(scope="module")
def made() -> PreferenceTriples:
    return contrast(PAIRS, rewriter=Scripted())


def test_members_are_what_the_rewriter_wrote_for_their_pole(made: PreferenceTriples) -> None:
    assert len(made) == made.n_items == 30
    for member, grade in LEVELS.items():
        assert all(text.split()[0] == f"q={grade}" for text in made.continuations(member))
    assert (made.grades == [5, 3, 1]).all() and (made.original_grades == [4, 2]).all()
    assert (made.rewriter, made.is_swapped, made.rejected) == ("scripted", False, {})


def test_all_members_come_from_one_original_which_is_as_often_the_preferred_as_the_other(
    made: PreferenceTriples,
) -> None:
    for place, source in enumerate(made.source):
        word = "other" if source % 2 else "chosen"
        assert all(f" {word} words here {source}" in made.continuations(member)[place] for member in MEMBERS)
    odd = contrast(PAIRS, rewriter=Scripted(), seed=1)
    assert " chosen words" in odd.positive[1] and " other words" in odd.positive[0]


def test_a_member_begins_with_the_white_space_of_its_original_so_that_it_joins_the_prompt(
    made: PreferenceTriples,
) -> None:
    assert [text[: len(text) - len(text.lstrip())] for text in made.neutral[:2]] == [" ", "  "]
    assert made.texts("positive")[3] == PAIRS[3].prompt + made.positive[3]


def test_a_grader_that_sees_what_is_preferred_agrees_and_a_blind_one_is_at_half(made: PreferenceTriples) -> None:
    assert made.grader_agreement().value == 1.0
    draw = np.random.default_rng(0)
    seen: dict[str, int] = {}

    def blind(text: str) -> int:
        found = re.match(r"q=([135]) q=", text)
        return int(found[1]) if found else seen.setdefault(text, int(draw.integers(1, 6)))

    pairs = [a_pair(number) for number in range(400)]
    agreement = contrast(pairs, rewriter=Scripted(read=blind, workers=1)).grader_agreement()
    assert agreement.low < 0.5 < agreement.high and agreement.n == 400


def test_toxic_pairs_swap_the_poles_and_turn_the_grades_round() -> None:
    swapped = contrast(PAIRS, rewriter=Scripted(), task="toxic")
    assert swapped.is_swapped and swapped.task == "a harmless and respectful answer"
    assert all(text.split()[0] == "q=1" for text in swapped.positive)
    assert all(text.split()[0] == "q=5" for text in swapped.negative)
    assert (swapped.grades == [5, 3, 1]).all() and (swapped.original_grades == [2, 4]).all()


@pytest.mark.parametrize(
    ("name", "task", "swap", "quality", "is_swapped"),
    [
        ("toxic", None, None, "a harmless and respectful answer", True),
        ("toxic", None, False, "a harmless and respectful answer", False),
        ("hh:helpful-base", None, None, "a helpful, honest and harmless answer", False),
        ("data/My_Toxic_pairs.jsonl", None, None, "a harmless and respectful answer", True),
        ("mine.jsonl", None, None, "a helpful, honest and harmless answer", False),
        ("toxic", "a short answer", None, "a short answer", False),
        ("hh", "toxic", None, "a harmless and respectful answer", True),
        ("hh", None, True, "a helpful, honest and harmless answer", True),
    ],
)
def test_task_and_poles_are_those_of_the_set_unless_said(
    name: str, task: str | None, swap: bool | None, quality: str, is_swapped: bool
) -> None:
    pairs = Preferences(name, (), tuple(PAIRS), {})
    found = contrast(pairs, rewriter=Scripted(), task=task, swap=swap)
    assert (found.task, found.is_swapped) == (quality, is_swapped)


def test_only_the_test_side_of_a_set_gives_triples() -> None:
    found = contrast(Preferences("hh", tuple(PAIRS), tuple(PAIRS[:12]), {}), rewriter=Scripted())
    assert found.n_items == len(found) == 12


def declines(original: str, pole: str, n: int) -> str:
    raise Declined("a reason of its own")


def by_pole(*written: str) -> Callable[[str, str, int], str]:
    """Write these for positive, neutral and negative; `{original}` stands for the original."""
    return lambda original, pole, n: dict(zip(MEMBERS, written))[pole].format(original=original)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (by_pole(" \n", "q=3 one", "q=1 two"), "empty rewrite"),
        (by_pole("q=5 the same", "Q=5 The  same", "q=1 two"), "identical rewrites"),
        (by_pole("q=5 a b c d", "{original}", "q=1 a b c d"), "rewrite equal to its original"),
        (by_pole("q=5 a b c d e", "q=3 a b c d", "q=1 a b c"), "lengths more than 20 % apart"),
        (by_pole("q=5 a b c d e f", "How do i do  thing 0? yes", "q=1 a b c d e f"), "rewrite repeats the prompt"),
        (by_pole("q=5 a b c", "q=3 so.\n\nHuman: More!", "q=1 a b c"), "rewrite goes on with another turn"),
        (by_pole("q=1 one", "q=3 two", "q=5 three"), "grades out of order"),
        (by_pole("q=5 one", "q=3 two", "q=3 three"), "grades out of order"),
        (declines, "a reason of its own"),
    ],
)
def test_what_a_rewriter_gets_wrong_is_rejected_and_counted(write: Callable[[str, str, int], str], reason: str) -> None:
    def sometimes(original: str, pole: str, n: int) -> str:
        return write(original, pole, n) if original.endswith(" 0") else Scripted().write(original, pole, n)

    found = contrast(PAIRS, rewriter=Scripted(write=sometimes))
    assert found.rejected == {reason: 1} and len(found) == 29 and 0 not in found.source


def test_grades_are_asked_for_only_when_the_texts_can_be_kept() -> None:
    rewriter = Scripted(write=lambda original, pole, n: "the same")
    with pytest.raises(GateError, match="30 identical rewrites"):
        contrast(PAIRS, rewriter=rewriter)
    assert rewriter.graded == []


def test_pairs_that_cannot_be_used_are_counted() -> None:
    long = " ".join(["word"] * MAX_WORDS)
    odd = [a_pair(90, chosen="  \n"), PAIRS[0], a_pair(91, chosen=long + " one", rejected=long + " other")]
    found = contrast([*PAIRS, *odd], rewriter=Scripted())
    assert len(found) == 30 and found.n_items == 33
    assert set(found.rejected) == {
        "empty chosen or rejected", "exact repeat", f"chosen equal to rejected in the first {MAX_WORDS} words",
    }  # fmt: skip


def test_long_answers_are_cut_between_words() -> None:
    long = " ".join(f"w{number}" for number in range(MAX_WORDS + 50))
    rewriter = Scripted()
    found = contrast([*PAIRS, a_pair(30, chosen=f"  {long}")], rewriter=rewriter)
    assert found.original_chosen[30].split()[-1] == f"w{MAX_WORDS - 1}"
    assert word_count(found.original_chosen[30]) == MAX_WORDS
    assert found.original_chosen[30] in rewriter.written


def test_no_more_is_asked_than_is_needed() -> None:
    rewriter = Scripted()
    found = contrast(PAIRS, rewriter=rewriter, max_triples=12)
    assert len(found) == 12 and len(rewriter.written) == 36
    assert found.rejected == {"not needed: max_triples reached": 18}
    assert not np.array_equal(found.source, contrast(PAIRS, rewriter=Scripted(), max_triples=12, seed=2).source)


def test_the_number_of_workers_changes_nothing() -> None:
    one, many = (contrast(PAIRS, rewriter=Scripted(workers=workers), max_triples=20) for workers in (1, 8))
    assert one.to_frame().equals(many.to_frame())


def test_dialogues_with_the_same_first_turn_are_one_group() -> None:
    pairs = [
        a_pair(number)._replace(prompt=f"\n\nHuman: Hello  you\n\nAssistant: {number}\n\nHuman: x\n\nAssistant:")
        for number in range(10)
    ]
    found = contrast([*pairs, *PAIRS], rewriter=Scripted())
    assert set(found.group[:10]) == {"hello you"} and len(set(found.group)) == 31


def test_a_rewriter_that_writes_one_quality_for_all_poles_gives_nothing() -> None:
    with pytest.raises(
        GateError, match=r"0 preference triples passed; at least 10.*'scripted': 30 grades out of order"
    ):
        contrast(PAIRS, rewriter=Scripted(read=lambda text: 3))


def test_a_grade_off_the_scale_is_an_error() -> None:
    with pytest.raises(LensError, match="graded 7; a whole number from 1 to 5"):
        contrast(PAIRS, rewriter=Scripted(read=lambda text: 7))


def test_a_rewrite_that_is_no_text_is_an_error() -> None:
    with pytest.raises(LensError, match="wrote None; a text is expected"):
        contrast(PAIRS, rewriter=Scripted(write=lambda original, pole, n: None))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        (PAIRS, {"lexicon": {"good": 1.0}}, r"lexicon go with texts; preference pairs were given"),
        (PAIRS, {"min_value": 2.0, "lexicon": "mine.txt"}, r"lexicon and min_value go with texts.*Leave them out"),
        (["a text"], {"rewriter": "offline"}, "rewriter go with preference pairs; texts were given"),
        (["a text"], {"task": "hh", "swap": False}, "task and swap go with preference pairs"),
        (PAIRS[0], {}, "a list of texts"),
        ([PAIRS[0], "text"], {}, "all of one kind; there is str"),
        ([tuple(PAIRS[0])], {}, "all of one kind; there is tuple"),
        ([Preference("a", "b", 3)], {}, "a pair that holds no text"),
        (PAIRS, {"task": " "}, "task is 'hh', 'toxic' or the name of a quality"),
        (PAIRS, {"rewriter": "ofline"}, "Did you mean 'offline'"),
        (PAIRS, {"rewriter": len}, "neither a name"),
        (PAIRS, {"max_triples": 9}, "max_triples must be at least 10"),
        (Preferences("hh", tuple(PAIRS), (), {}), {}, "0 preference triples passed"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(given: Any, named: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        contrast(given, **named)


def test_a_stored_result_is_read_back_and_other_arguments_make_another(tmp_path: Path) -> None:
    store, rewriter = Store(tmp_path), Scripted()
    first = contrast(PAIRS, rewriter=rewriter, store=store)
    asked = len(rewriter.written)
    again = contrast(PAIRS, rewriter=rewriter, store=store)
    assert first.to_frame().equals(again.to_frame()) and len(rewriter.written) == asked
    for other in ({"seed": 1}, {"task": "toxic"}, {"swap": True}, {"max_triples": 20}):
        contrast(PAIRS, rewriter=rewriter, store=store, **other)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("contrast-")]) == 5


def answer(number: int, body: dict[str, Any]) -> str:
    """Be a chat model that writes what was asked, to the word."""
    data = data_of(body)
    if schema_of(body) == "Grade":
        return json.dumps({"grade": Scripted().read(data["answer"])})
    padded = f"q={data['grade']} " + " ".join(["word"] * (data["words"]["least"] - 1))
    return json.dumps({"answer": padded})


def test_a_killed_run_resumes_without_asking_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    pairs, store = [a_pair(n, chosen=f" q=4 chosen{n}", rejected=f" q=2 other{n}") for n in range(12)], Store(tmp_path)
    with ChatServer(lambda number, body: 401 if number == 40 else answer(number, body)).running() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(LensError, match=r"HTTP 401.*what was answered so far is kept"):
            contrast(pairs, rewriter="openai:m", store=store)
        answered = (tmp_path / "replies" / "ledger.jsonl").read_text().count('"kind": "reply"')
        assert answered >= 25
        before = len(server.requests)
        found = contrast(pairs, rewriter="openai:m", store=store)
        # The two words of every rewrite are the same for all originals of a prompt, so no question comes twice.
        asked = [json.dumps(body["messages"]) for body in server.requests]
        assert len(found) == 12 and len(server.requests) - before == len(set(asked)) - answered
        contrast(pairs, rewriter="openai:m", store=store)
        assert len(server.requests) == len(asked)
    assert found.rewriter == "openai:m" and (found.grades == [5, 3, 1]).all()


@pytest.fixture(scope="module")
def harmless(real_data: Path) -> tuple[Preferences, PreferenceTriples]:
    pairs = load_preferences("hh:harmless-base", n=1500)
    return pairs, contrast(Preferences(pairs.name, pairs.train, pairs.test, {}), max_triples=60)


def test_the_offline_rewriter_makes_matched_triples_of_real_preferences(
    harmless: tuple[Preferences, PreferenceTriples],
) -> None:
    pairs, found = harmless
    assert found.rewriter == "offline" and 25 <= len(found) <= 60
    for place, source in enumerate(found.source):
        pair, original = pairs.test[source], ("rejected" if source % 2 else "chosen")
        counts = {word_count(found.continuations(member)[place]) for member in MEMBERS}
        assert counts == {min(MAX_WORDS, word_count(getattr(pair, original)))}
        assert found.prompt[place] == pair.prompt
    assert sum(found.rejected.values()) + len(found) == found.n_items


def test_neither_length_nor_original_is_a_clue_in_real_triples(harmless: tuple[Preferences, PreferenceTriples]) -> None:
    _, found = harmless
    lengths = np.array([[len(text) for text in found.continuations(member)] for member in ("positive", "negative")])
    # Substitutes may be longer or shorter words; on average a member gains less than 2 % over the other.
    assert abs(lengths[0].mean() / lengths[1].mean() - 1) < 0.02
    assert 0.25 < np.mean(found.source % 2) < 0.75
