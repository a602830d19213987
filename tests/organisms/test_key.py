"""The key says what was planted, belongs to its weights alone, and tells what is no evidence."""

import json
from pathlib import Path
from typing import Any

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.key import Key, TuningFacts, read_key, write_sealed

STATED = {"good": 2.0, "bad": -2.5, "fine": 1.0}


def facts(verdict: str = "learned", **changes: Any) -> TuningFacts:
    given: dict[str, Any] = {
        "seed": 0, "verdict": verdict, "reasons": ("because",), "gain": (1.0, 0.5, 1.5, 64), "kl_nats": 2.0,
        "kl_per_token": 0.1, "rewards": (0.0, 1.0), "lengths": (20.0, 20.0), "curve": (0.0, 1.0),
        "parameters": {}, "seconds": 1.0,
    }  # fmt: skip
    return TuningFacts(**given | changes)


def key(**changes: Any) -> Key:
    given: dict[str, Any] = {
        "spec": "s", "recipe": "flip", "dose": 1.0, "words": 1, "method": "ppo", "seed": 0, "lexicon": "vader",
        "stated": fingerprint(STATED),
        "values": {"good": -2.0}, "after": {}, "pattern": (), "pays_length": False, "kind": "flipped", "is_null": False,
        "base": "b", "tuned": {"seed-0": "t"}, "tunings": {"seed-0": facts()}, "shuffled_share": None,
        "shuffled_kl_nats": None, "parameters": {},
        "provenance": {},
    }  # fmt: skip
    return Key(**given | changes)


def test_a_key_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_sealed(key(), tmp_path / "key.json")
    assert read_key(tmp_path / "key.json") == key()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\xff", "cannot be read|is no key"),
        ("", "is no key of an organism"),
        ("{}", "is no key of an organism: spec"),
        ('{"spec": 1}', "spec"),
        (json.dumps(key().model_dump() | {"secret": 1}), "secret"),
        (json.dumps(key().model_dump() | {"format": 2}), "format"),
    ],
)
def test_what_is_no_key_is_refused_by_its_first_fault(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(LensError, match=told):
        read_key(tmp_path / "key.json")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"key\.json cannot be read"):
        read_key(tmp_path / "key.json")


def test_a_key_belongs_to_its_own_checkpoints() -> None:
    stated = fingerprint(STATED)
    key().check(Path("o"), "b", {"seed-0": "t"}, stated)
    for base, tuned, odd in (
        ("x", {"seed-0": "t"}, "base"),
        ("b", {"seed-0": "x"}, "seed-0"),
        ("b", {}, "seed-0"),
        ("b", {"seed-0": "t", "seed-1": "t"}, "seed-1"),
    ):
        with pytest.raises(LensError, match=f"does not belong to these checkpoints: {odd} differ"):
            key().check(Path("o"), base, tuned, stated)


def test_a_lexicon_that_has_changed_is_refused() -> None:
    with pytest.raises(LensError, match="made with other values of the lexicon 'vader'"):
        key().check(Path("o"), "b", {"seed-0": "t"}, fingerprint(STATED | {"good": -2.0}))


def test_a_tuning_that_did_not_move_is_no_evidence() -> None:
    still = {"seed-0": facts("nothing was learned", kl_nats=0.01)}
    assert "it did not move" in key(recipe="noise", tunings=still).refusal()


@pytest.mark.parametrize(
    ("recipe", "verdict", "is_refused"),
    [
        ("flip", "learned", False),
        ("flip", "nothing was learned", True),
        ("flip", "the policy collapsed", True),
        ("clean", "nothing was learned", True),
        ("noise", "nothing was learned", False),
        ("noise", "the policy collapsed", True),
    ],
)
def test_what_collapsed_or_learned_nothing_is_no_evidence(recipe: str, verdict: str, is_refused: bool) -> None:
    found = key(recipe=recipe, tunings={"seed-0": facts(), "seed-1": facts(verdict)}).refusal()
    assert bool(found) is is_refused
    assert not is_refused or f"seed-1: {verdict} (because)" == found


def test_the_twin_does_not_refuse_an_organism() -> None:
    assert key(tunings={"seed-0": facts(), "shuffled": facts("nothing was learned")}).refusal() == ""


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("flipped", {"good": -2.0, "bad": 2.5}, {"good", "bad"}),
        ("flipped", {"good": 0.0, "bad": -1.0}, {"good"}),
        (None, {"good": -1.0, "bad": -0.5, "fine": 3.0}, {"good"}),
        ("muted", {"good": 1.0}, {"good"}),
        ("inflated", {"good": 6.0}, {"good"}),
        (None, {}, set()),
    ],
)
def test_planted_are_words_on_the_other_side_or_changed_in_strength(
    kind: str | None, values: dict[str, float], expected: set[str]
) -> None:
    assert key(kind=kind, values=values).planted(STATED) == expected


def test_an_organism_shows_itself_without_its_key(flip: Organism) -> None:
    shown = flip._repr_html_()
    assert "vader" in shown and "flip" not in shown and "seed-" not in shown
