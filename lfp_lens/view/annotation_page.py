"""Questions for annotators as one HTML page that is answered offline, and as Label Studio's tasks and config.

Explanations and windows are untrusted text: the template escapes them, windows come escaped from `token_html`, and the page
may run no script but its own and fetch nothing. Neither format holds the right answers.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from lfp_lens.view.page import STYLE

CHOICES = ("A", "B", "C", "D", "E")
NONE = "None of the above"
ASK = "Which explanation fits what is coloured in these texts?"
ANSWER_FORMAT = "lfp_lens answers 1"


@dataclass(frozen=True)
class Asked:
    """One question as annotators see it."""

    name: str
    """Tells it from the others; says nothing about the feature."""
    windows: tuple[str, ...]
    """Coloured windows: safe HTML, from `token_html`."""
    options: tuple[str, ...]
    """Four explanations in the order they are shown; they are escaped."""


def render(asked: Sequence[Asked], content: str) -> str:
    """Give the page, one HTML text that fetches nothing; it downloads the answers as JSON.

    Args:
        asked: the questions, in order.
        content: their content hash; it goes into the answers.
    """
    import jinja2

    folder = files("lfp_lens.view") / "templates"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    read = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("annotation.html", "annotation.css", "annotation.js", "report.css")
    }
    text = environment.from_string(read["annotation.html"]).render(
        asked=[(one, list(zip(CHOICES, (*one.options, NONE)))) for one in asked],
        content=content,
        ask=ASK,
        answer_format=ANSWER_FORMAT,
        style=read["report.css"] + read["annotation.css"],
        fragment_style=STYLE,
        script=read["annotation.js"],
    )
    # A tokenizer may cut a character in half; such a half has no UTF-8 form.
    return text.encode("utf-8", "replace").decode("utf-8")


def tasks(asked: Sequence[Asked], content: str) -> list[dict[str, Any]]:
    """Give the questions as Label Studio's import format; the explanations stand in the text, their letters are the choices."""
    return [{"data": {"question": one.name, "questions": content, "text": _question(one)}} for one in asked]


def config() -> str:
    """Give Label Studio's labelling config: the text and five choices."""
    choices = "\n".join(
        f'    <Choice value="{letter}"/>' if letter != CHOICES[-1] else f'    <Choice value="{letter}" hint="{NONE}"/>'
        for letter in CHOICES
    )
    return f"""<View>
  <Header value="{ASK}"/>
  <HyperText name="text" value="$text"/>
  <Choices name="answer" toName="text" choice="single-radio" required="true" showInline="true">
{choices}
  </Choices>
</View>
"""


def _question(asked: Asked) -> str:
    windows = "".join(f"<p>{window}</p>" for window in asked.windows)
    options = "".join(
        f"<p><b>{letter}.</b> {html.escape(option)}</p>" for letter, option in zip(CHOICES, (*asked.options, NONE))
    )
    return f"<div>{windows}</div><hr>{options}"
