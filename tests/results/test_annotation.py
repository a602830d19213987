"""Questions for people: fair, blind and answerable; answers read back from the page and from Label Studio."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.results.annotation import Questions
from lfp_lens.results.human_check import agreement
from tests.results.labelled import some_labels, window

CHOICES = "ABCDE"


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    return some_labels(n=30).annotation_questions(tmp_path / "check", n=20)


def answered(questions: Questions, annotator: str, choices: dict[str, int]) -> Path:
    """Write what the page would download."""
    answers = {name: {"choice": choice, "seconds": 3} for name, choice in choices.items()}
    told = {
        "format": "lfp_lens answers 1",
        "questions": questions.fingerprint,
        "annotator": annotator,
        "answers": answers,
    }
    path = questions.folder / f"answers-{annotator}.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def exported(questions: Questions, people: dict[Any, dict[str, int]], *, short: bool = False) -> Path:
    """Write what Label Studio would export: the imported tasks with their annotations, or JSON-MIN."""
    rows: list[dict[str, Any]] = []
    for at, task in enumerate(json.loads((questions.folder / "label_studio.json").read_text())):
        chosen = {person: choices[task["data"]["question"]] for person, choices in people.items()}
        if short:
            rows += [
                {**task["data"], "id": at, "answer": CHOICES[choice], "annotator": person, "lead_time": 25.0}
                for person, choice in chosen.items()
            ]
            continue
        annotations = [
            {"id": at, "completed_by": person, "was_cancelled": False, "lead_time": 25.0, "ground_truth": False,
             "result": [{"from_name": "answer", "to_name": "text", "type": "choices", "value": {"choices": [CHOICES[choice]]}}]}
            for person, choice in chosen.items()
        ]  # fmt: skip
        skipped = {"completed_by": 9, "was_cancelled": True, "result": [], "lead_time": 1.0}
        rows.append({"id": at, **task, "annotations": [*annotations, skipped], "predictions": []})
    path = questions.folder / "export.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def all_right(questions: Questions) -> dict[str, int]:
    return {one.name: one.right for one in questions.keys}


def test_the_right_option_is_the_features_own_explanation_and_the_others_are_of_others(tmp_path: Path) -> None:
    labels = some_labels(n=30)
    own = {(site, int(index)): said for site, index, said in zip(labels.site, labels.index, labels.description)}
    questions = labels.annotation_questions(tmp_path, n=20)
    for asked, key in zip(questions.asked, questions.keys):
        assert asked.options[key.right] == own[key.site, key.index]
        assert len(set(asked.options)) == 4
        assert asked.options == tuple(own[feature] for feature in key.options)
    assert len({(key.site, key.index) for key in questions.keys}) == 20


def test_the_place_of_the_right_option_says_nothing(tmp_path: Path) -> None:
    places = Counter(key.right for key in some_labels(n=200).annotation_questions(tmp_path, n=None).keys)
    # 200 fair draws of four places: 50 each, with a standard deviation of 6.1.
    assert all(abs(places[place] - 50) < 25 for place in range(4))


def test_a_description_that_two_features_share_is_never_two_options(tmp_path: Path) -> None:
    labels = some_labels(n=30)
    said = tuple(f"{'Words' if row % 2 else ' words '} of kind {row % 5}" if row < 30 else "" for row in range(32))
    for asked in dataclasses.replace(labels, description=said).annotation_questions(tmp_path, n=None).asked:
        assert len({" ".join(option.lower().split()) for option in asked.options}) == 4


def test_the_seed_decides_the_questions(tmp_path: Path) -> None:
    labels = some_labels(n=30)
    made = [labels.annotation_questions(tmp_path / str(at), n=10, seed=seed) for at, seed in enumerate((0, 0, 1))]
    assert made[0].fingerprint == made[1].fingerprint != made[2].fingerprint
    assert made[0].keys == made[1].keys


def test_there_are_at_most_as_many_questions_as_features(tmp_path: Path) -> None:
    assert len(some_labels(n=12).annotation_questions(tmp_path, n=50)) == 12


def test_dead_and_unanswered_features_are_not_asked_about(tmp_path: Path) -> None:
    labels = some_labels(n=12)
    asked = {(key.site, key.index) for key in labels.annotation_questions(tmp_path, n=None).keys}
    assert asked == {(site, int(index)) for site, index in zip(labels.site[:12], labels.index[:12])}


def test_a_question_shows_windows_in_which_the_feature_fires_from_strong_to_weak(tmp_path: Path) -> None:
    labels = some_labels(n=5)
    peaks = (1.0, 0.9, 0.8, 0.5, 0.2)
    firing = tuple(window(3 + at, peak=peak) for at, peak in enumerate(peaks))
    held = tuple((*firing, window(9, kind="silent", peak=0.05)) for _ in range(5)) + ((), ())
    shown = dataclasses.replace(labels, examples=held).annotation_questions(tmp_path, n=1, n_windows=3).asked[0].windows
    assert [max(float(part.split('"')[0]) for part in one.split('title="')[1:]) for one in shown] == [1.0, 0.8, 0.2]


def test_neither_the_page_nor_the_tasks_hold_the_key(questions: Questions) -> None:
    for file in ("questions.html", "label_studio.json", "label_studio.xml"):
        text = (questions.folder / file).read_text(encoding="utf-8")
        assert "blocks." not in text, file
    assert json.loads(questions.key.read_text())["keys"][0]["right"] == questions.keys[0].right


def test_other_keys_leave_the_page_as_it_is(tmp_path: Path) -> None:
    labels = some_labels(n=12)
    moved = dataclasses.replace(labels, index=labels.index[::-1].copy())
    pages = [
        one.annotation_questions(tmp_path / str(at)) for at, one in enumerate((dataclasses.replace(labels), moved))
    ]
    assert pages[0].page.read_text() == pages[1].page.read_text()
    assert pages[0].keys != pages[1].keys


def test_label_studio_has_five_choices_and_every_name_that_the_tasks_fill(questions: Questions) -> None:
    config = ElementTree.parse(questions.folder / "label_studio.xml").getroot()
    assert [choice.get("value") for choice in config.iter("Choice")] == [*CHOICES]
    [choices] = config.iter("Choices")
    [text] = config.iter("HyperText")
    assert choices.get("toName") == text.get("name")
    tasks = json.loads((questions.folder / "label_studio.json").read_text())
    assert all(text.get("value", "").removeprefix("$") in task["data"] for task in tasks)
    assert len(tasks) == len(questions)


def test_a_task_for_label_studio_holds_hostile_text_as_text(questions: Questions) -> None:
    for task in json.loads((questions.folder / "label_studio.json").read_text()):
        assert "<script" not in task["data"]["text"]
        assert task["data"]["text"].count("&lt;script&gt;") >= 5


@pytest.mark.parametrize("as_object", [True, False])
def test_all_right_answers_are_all_right(questions: Questions, as_object: bool) -> None:
    paths = [answered(questions, name, all_right(questions)) for name in ("Ann", "Bo")]
    found = agreement(questions if as_object else questions.folder, *paths)
    assert found.accuracy.value == 1
    assert found.kappa.value == 1
    assert found.none_rate.value == 0
    assert [one.name for one in found.annotators] == ["Ann", "Bo"]


def test_accuracy_none_rate_and_kappa_are_those_worked_out_by_hand(questions: Questions) -> None:
    right = all_right(questions)
    names = [*right]
    ann = right | dict.fromkeys(names[:5], 4)
    bo = right | dict.fromkeys(names[:3], 4) | {names[10]: (right[names[10]] + 1) % 4}
    found = agreement(questions, answered(questions, "Ann", ann), answered(questions, "Bo", bo))
    people = {one.name: one for one in found.annotators}
    assert (people["Ann"].accuracy.value, people["Ann"].none_rate.value) == (0.75, 0.25)
    assert (people["Bo"].accuracy.value, people["Bo"].none_rate.value) == (0.8, 0.15)
    assert found.accuracy.value == pytest.approx((0.75 + 0.8) / 2)
    [pair] = found.pairs
    assert pair.agreement.value == pytest.approx(17 / 20)
    assert pair.both_right == pytest.approx(14 / 20)
    a, b = (np.array([chosen[name] for name in names]) for chosen in (ann, bo))
    by_chance = sum(np.mean(a == choice) * np.mean(b == choice) for choice in range(5))
    assert pair.kappa.value == pytest.approx((0.85 - by_chance) / (1 - by_chance))
    rejected = found.questions_frame()
    assert set(rejected["name"][:3]) == set(names[:3])


def test_guessers_are_right_in_a_fifth_and_do_not_agree(tmp_path: Path) -> None:
    questions = some_labels(n=300).annotation_questions(tmp_path, n=None)
    # Not the seed of the questions, whose order of options is drawn from it.
    generator = np.random.default_rng(12)
    paths = [
        answered(questions, name, {one.name: int(generator.integers(5)) for one in questions.keys})
        for name in ("a", "b")
    ]
    found = agreement(questions, *paths)
    assert found.accuracy.low < 0.2 < found.accuracy.high
    assert found.kappa.low < 0 < found.kappa.high


@pytest.mark.parametrize("short", [False, True])
def test_an_export_of_label_studio_says_the_same_as_the_page(questions: Questions, short: bool) -> None:
    right = all_right(questions)
    wrong = {name: (choice + 1) % 5 for name, choice in right.items()}
    given = {1: right, 2: {**right, **dict(list(wrong.items())[:6])}}
    by_page = agreement(questions, *(answered(questions, str(person), choices) for person, choices in given.items()))
    by_export = agreement(questions, exported(questions, given, short=short))
    assert by_export.accuracy.value == by_page.accuracy.value
    assert by_export.kappa.value == by_page.kappa.value
    assert [one.seconds for one in by_export.annotators] == [25.0, 25.0]


def test_an_annotator_may_be_named_by_label_studio_in_any_of_its_ways(questions: Questions) -> None:
    path = exported(questions, {1: all_right(questions)})
    rows = json.loads(path.read_text())
    for row in rows:
        row["annotations"][0]["completed_by"] = {"id": 1, "email": "a@example.org", "first_name": "", "last_name": ""}
    path.write_text(json.dumps(rows))
    assert agreement(questions, path).annotators[0].name == "a@example.org"


def test_questions_that_nobody_answered_count_nowhere(questions: Questions) -> None:
    some = dict(list(all_right(questions).items())[:4])
    found = agreement(questions, answered(questions, "Ann", some))
    assert found.accuracy.n == 4
    assert np.isnan(found.right[4:]).all()


def test_one_person_has_no_kappa_and_three_have_one_each_two(questions: Questions) -> None:
    paths = [answered(questions, name, all_right(questions)) for name in ("a", "b", "c")]
    for given, pairs in ((paths[:1], 0), (paths, 3)):
        found = agreement(questions, *given)
        assert len(found.pairs) == pairs
        with pytest.raises(LensError, match="Kappa is of two people"):
            _ = found.kappa


def test_answers_to_other_questions_are_refused(questions: Questions, tmp_path: Path) -> None:
    other = some_labels(n=30).annotation_questions(tmp_path / "other", n=20, seed=5)
    for path in (answered(other, "Ann", all_right(other)), exported(other, {1: all_right(other)})):
        with pytest.raises(LensError, match="answers the questions"):
            agreement(questions, path)


def test_a_person_who_answered_twice_is_refused(questions: Questions) -> None:
    path = answered(questions, "Ann", all_right(questions))
    with pytest.raises(LensError, match="'Ann' answered q001 twice"):
        agreement(questions, path, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "hold no answer"),
        ("3", "is not an export"),
        ('{"format": "lfp_lens answers 1"}', "is not answers of the page"),
        ('{"format": "other", "questions": "x", "annotator": "a", "answers": {}}', "format"),
        ('{"format": "lfp_lens answers 1", "questions": "x", "annotator": "a", "answers": {"q001": {"choice": 5}}}', "choice"),
        ('[{"annotations": [{"completed_by": 1, "result": [{"from_name": "other"}]}], "data": {}}]', "export"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_answers_is_refused(questions: Questions, text: str, message: str) -> None:
    path = questions.folder / "bad.json"
    path.write_text(text)
    with pytest.raises(LensError, match=message):
        agreement(questions, path)


def test_an_answer_to_a_question_that_is_not_in_the_key_is_refused(questions: Questions) -> None:
    with pytest.raises(LensError, match="a question 'q999' that the key does not have"):
        agreement(questions, answered(questions, "Ann", {"q999": 0}))


def test_no_answers_and_no_files_are_refused(questions: Questions) -> None:
    with pytest.raises(LensError, match="No answers were given"):
        agreement(questions)
    with pytest.raises(LensError, match="cannot be read"):
        agreement(questions, questions.folder / "none.json")
    with pytest.raises(LensError, match="is not an answer key"):
        agreement(questions.folder / "label_studio.json", answered(questions, "Ann", all_right(questions)))


@pytest.mark.parametrize(
    ("given", "message"),
    [({"n": 0}, "n must be at least 1"), ({"n_windows": 0}, "n_windows must be")],
)
def test_questions_that_cannot_be_asked_are_refused(tmp_path: Path, given: dict[str, int], message: str) -> None:
    with pytest.raises(LensError, match=message):
        some_labels().annotation_questions(tmp_path, **given)


def test_too_few_explanations_make_no_question(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="needs 4 different explanations; there are 3"):
        some_labels(n=3).annotation_questions(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LensError, match="is a file: name a folder"):
        some_labels().annotation_questions(tmp_path / "file", n=3)


def test_the_published_check_stands_beside_ours_and_names_are_escaped(questions: Questions) -> None:
    path = answered(questions, "Ann", all_right(questions))
    path.write_text(path.read_text().replace("Ann", "<b>Ann</b>"))
    found = agreement(questions, path)
    assert found.to_frame()["who"].str.startswith("PUBLISHED").sum() == 2
    assert found.pairs_frame().set_index("who").loc["PUBLISHED repository", "kappa"] == 0.842
    shown = found._repr_html_() + questions._repr_html_()
    assert "<b>Ann" not in shown and "&lt;b&gt;Ann" in shown
