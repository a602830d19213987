"""The page of questions is one file that fetches nothing, runs its own script only and holds untrusted text as text."""

import xml.etree.ElementTree as ElementTree

import pytest

from lfp_lens.view import annotation_page
from lfp_lens.view.annotation_page import Asked
from lfp_lens.view.tokens import token_html
from tests.view.test_page import HOSTILE, Reader

TRICKS = (HOSTILE, '"><img src=x onerror=alert(1)>', "{{ content }}", "]]>&amp;<!--")


@pytest.fixture(scope="module")
def shown() -> str:
    window = token_html([*TRICKS], [0.1, 0.5, 1.0, 0.0])
    return annotation_page.render([Asked("q001", (window,), TRICKS), Asked("q002", (window, window), TRICKS)], "c0ffee")


def test_only_the_page_s_own_script_may_run(shown: str) -> None:
    scripts = [attributes for tag, attributes in Reader(shown).tags if tag == "script"]
    assert scripts == [{"nonce": "c0ffee"}]
    assert "default-src 'none'; script-src 'nonce-c0ffee'" in shown
    assert "<script>alert" not in shown


def test_the_page_fetches_nothing_and_sends_nothing(shown: str) -> None:
    for tag, attributes in Reader(shown).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "form")
        assert not any(
            name in ("src", "href", "action", "srcset", "data") or name.startswith("on") for name in attributes
        )
    for way in ("fetch(", "XMLHttpRequest", "sendBeacon", "WebSocket", "innerHTML", "url(", "@import"):
        assert way not in shown


def test_every_question_has_five_choices_of_its_own_and_the_last_is_none(shown: str) -> None:
    radios = [attributes for tag, attributes in Reader(shown).tags if tag == "input" and attributes["type"] == "radio"]
    assert [(one["name"], one["value"]) for one in radios] == [
        (q, str(at)) for q in ("q001", "q002") for at in range(5)
    ]
    assert shown.count("None of the above") == 2


def test_template_marks_in_a_text_are_text(shown: str) -> None:
    assert "{{ content }}" in shown


def test_the_same_questions_give_the_same_page(shown: str) -> None:
    asked = [Asked("q001", ("w",), ("a", "b", "c", "d"))]
    assert annotation_page.render(asked, "x") == annotation_page.render(asked, "x")


def test_half_a_character_can_still_be_written() -> None:
    assert annotation_page.render([Asked("q001", (), ("\ud83d",) * 4)], "x").encode("utf-8")


def test_the_config_of_label_studio_is_xml_with_five_choices_of_which_one_is_taken() -> None:
    root = ElementTree.fromstring(annotation_page.config())
    [choices] = root.iter("Choices")
    assert (choices.get("choice"), choices.get("required")) == ("single-radio", "true")
    assert len([*choices]) == 5


def test_a_task_shows_all_five_choices_and_no_markup_of_its_text() -> None:
    [task] = annotation_page.tasks([Asked("q001", ("w",), TRICKS)], "x")
    tags = {tag for tag, _ in Reader(task["data"]["text"]).tags}
    assert tags == {"div", "p", "hr", "b"}
    assert all(f"<b>{letter}.</b>" in task["data"]["text"] for letter in "ABCDE")
