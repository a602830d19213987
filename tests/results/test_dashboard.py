"""The page for an auditor: one file that fetches nothing, wrong words on top, and no claim that the numbers do not carry."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.results import Learned, dashboard
from lfp_lens.results.sweep import Sweep
from lfp_lens.results.tunings import Tunings
from tests.results import samples
from tests.results.test_paper_tables import NOTHING
from tests.view.test_page import Reader

TEXTS = (f"A great film {samples.HOSTILE}", "An awful one, neutral3.")


def a_learned(*, null: bool = False, **changes: object) -> Learned:
    given = {"difference": Estimate(0.02, -0.2, 0.2, 60)} if null else {}
    return replace(samples.a_learned(null=null), **{**given, **changes})


def said(learned: Learned) -> tuple[str, str]:
    yes, no = dashboard.claims(learned)
    return " ".join(yes), " ".join(no)


def test_the_page_is_one_file_that_fetches_nothing_and_holds_hostile_words_as_text(tmp_path: Path) -> None:
    words = (samples.HOSTILE, *samples.GOOD[1:], *samples.BAD)
    learned = a_learned(words=words)
    path = learned.dashboard(tmp_path / "new" / "words.html", TEXTS, title=samples.HOSTILE)
    assert [file.name for file in path.parent.iterdir()] == ["words.html"]
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "default-src 'none'" in text
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "form")
        assert all((attributes.get(name) or "#").startswith("#") for name in ("src", "href", "action"))
        assert not any(name.startswith("on") for name in attributes)


def test_wrong_words_stand_on_top_of_the_table(tmp_path: Path) -> None:
    text = a_learned().dashboard(tmp_path / "words.html").read_text(encoding="utf-8")
    body = text[text.index("wrong ones on top") :]
    cells = re.findall(r"<tr><td>(\w+)</td><td>(.*?)</td>", body)
    assert {word for word, _ in cells[:3]} == set(samples.FLIPPED)
    assert all("alarm" in verdict for _, verdict in cells[:3]) and not any("alarm" in row[1] for row in cells[3:])
    assert len(cells) == 60


def test_texts_are_shown_by_both_readings_and_without_a_probe_by_one_with_a_word_about_it(tmp_path: Path) -> None:
    both = a_learned().dashboard(tmp_path / "both.html", TEXTS).read_text(encoding="utf-8")
    assert "held out prediction</th>" in both and "No probe gave" not in both
    one = a_learned(predicted=NOTHING).dashboard(tmp_path / "one.html", TEXTS).read_text(encoding="utf-8")
    assert "held out prediction</th>" not in one and "No probe gave held-out predictions" in one
    assert 'id="texts"' not in a_learned().dashboard(tmp_path / "none.html").read_text(encoding="utf-8")


def test_a_planted_reading_claims_agreement_and_the_flipped_words() -> None:
    yes, no = said(a_learned())
    assert "moved words in the order of the stated lexicon" in yes and "n=60" in yes
    assert "strength, not only sign" in yes
    assert "3 of 60 words were learned with the sign opposite" in yes
    assert "another tuning by the same recipe" in no and "not listed means not certain" in no


def test_a_null_claims_nothing(tmp_path: Path) -> None:
    learned = a_learned(null=True, z=np.zeros(60))
    yes, no = said(learned)
    assert yes == ""
    for sentence in ("the tuning followed the stated lexicon", "strength of feedback beyond its sign", "none of 60"):
        assert sentence in no
    assert "<li>Nothing.</li>" in learned.dashboard(tmp_path / "null.html").read_text(encoding="utf-8")


def some_tunings(tau: list[float], shuffled: list[float]) -> Tunings:
    values = np.random.default_rng(0).normal(size=(len(tau), 60))
    names = tuple(f"seed{row}" for row in range(len(tau)))
    other = tuple(f"shuffled{row}" for row in range(len(shuffled)))
    return Tunings(names, values, np.array(tau), other, values[: len(shuffled)], np.array(shuffled))


def test_replicates_above_shuffled_ones_turn_the_caveat_into_a_claim_and_others_do_not() -> None:
    yes, no = said(a_learned(tunings=some_tunings([0.6, 0.62, 0.58], [0.02, -0.05, 0.01])))
    assert "teaches this reward and not just any: 3 tunings" in yes and "another tuning" not in no
    yes, no = said(a_learned(tunings=some_tunings([0.6, 0.1, 0.3], [0.02, 0.5, 0.4])))
    assert "rather than any" in no and "recipe" not in yes
    assert "needs two of each kind" in said(a_learned(tunings=some_tunings([0.6, 0.5], [])))[1]


def test_the_vocabulary_is_shown_with_its_ends_and_its_tokens_are_text(tmp_path: Path) -> None:
    n = 1500
    sweep = Sweep(
        tokens=tuple(f"<b>{row}" for row in range(n)), value=np.linspace(-2, 2, n), error=np.full(n, 0.1),
        exposure=np.full(n, 9.0), stated=np.full(n, np.nan), twin=np.linspace(0.1, -0.1, n), contexts=np.array(64),
    )  # fmt: skip
    text = a_learned(sweep=sweep).dashboard(tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "1,000 of 1,500 tokens" in text and "<b>1" not in text
    body = text[text.index("1,000 of 1,500") :]
    assert "&lt;b&gt;1499<" in body and "&lt;b&gt;0<" in body and "&lt;b&gt;750<" not in body


def test_words_of_another_strength_stand_in_lists_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"flipped": [], "muted": ["calm"], "inflated": ["superb", "joy"]}

    def listed(self: Learned, *, fdr: float, kind: str = "flipped") -> Any:
        return self.to_frame().set_index("word").loc[found[kind]].reset_index().assign(p_value=0.01)

    monkeypatch.setattr(Learned, "wrong", listed)
    text = a_learned().dashboard(tmp_path / "words.html").read_text(encoding="utf-8")
    weak, strong = (
        text.index("Weaker than words stated alike: 1 of 60"),
        text.index("Stronger than words stated alike: 2"),
    )
    assert re.findall(r"<tr><td>(\w+)</td>", text[weak:strong]) == ["calm"]
    assert re.findall(r"<tr><td>(\w+)</td>", text[strong:])[:2] == ["superb", "joy"]


def test_where_strength_cannot_be_told_the_reason_stands_in_place_of_the_lists(tmp_path: Path) -> None:
    learned = a_learned(stated=np.abs(samples.a_learned().stated))
    text = learned.dashboard(tmp_path / "words.html").read_text(encoding="utf-8")
    assert "0 negative words were measured; 20 are needed" in text and "Weaker than" not in text


def test_a_row_split_and_a_signal_signed_by_the_label_are_said() -> None:
    _, no = said(a_learned(split="row", signal="activation_delta", p_wrong=NOTHING))
    assert "row split leaks words" in no and "takes its sign from the stated lexicon" in no


def test_a_signal_without_a_test_has_a_page_that_says_so(tmp_path: Path) -> None:
    learned = a_learned(
        signal="activation_delta", p_wrong=NOTHING, measured_low=NOTHING, measured_high=NOTHING, neutral=np.zeros(0),
        neutral_words=(),
    )  # fmt: skip
    text = learned.dashboard(tmp_path / "delta.html", TEXTS).read_text(encoding="utf-8")
    assert "not tested" in text and "this signal is its own zero" in text


def test_every_word_gets_the_verdict_of_its_value() -> None:
    measured = samples.a_learned().measured.copy()
    measured[4], measured[5] = 0.1, -0.9
    # Of 201 neutral words from -1 to 1 the central 80 % lie within 0.8.
    learned = a_learned(neutral_z=np.linspace(-1, 1, 201), z=measured)
    found = dashboard.verdicts(learned)
    assert {learned.words[row] for row in range(60) if found[row] == dashboard.WRONG} == set(samples.FLIPPED)
    expected = [dashboard.AS_STATED, dashboard.NOTHING, dashboard.OPPOSITE]
    assert [found[0], found[4], found[5]] == expected


def test_the_same_result_gives_the_same_page_and_another_one_another_hash(tmp_path: Path) -> None:
    pages = [a_learned().dashboard(tmp_path / f"{row}.html").read_text(encoding="utf-8") for row in range(2)]
    assert pages[0] == pages[1]
    other = a_learned(n_triples=1201).dashboard(tmp_path / "other.html").read_text(encoding="utf-8")
    content = [re.findall(r"content hash of the result</dt><dd>(\w+)", page)[0] for page in (pages[0], other)]
    assert content[0] != content[1]


def test_a_folder_as_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="is a folder: name a file in it"):
        a_learned().dashboard(tmp_path)
