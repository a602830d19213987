"""Errors a user can cause name what was meant and list what exists."""

from lfp_lens.core.errors import GateError, LensError, nearest, unknown


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("difverge", ["diverge", "probe"]) == " Did you mean 'diverge'?"


def test_nothing_is_suggested_when_no_name_is_near() -> None:
    assert nearest("xyzzy", ["diverge", "probe"]) == ""


def test_an_unknown_name_lists_the_known_ones_in_order() -> None:
    error = unknown("verb", "prob", ["report", "probe", "ablate"])
    assert str(error) == "Unknown verb 'prob'. Did you mean 'probe'? Known: ablate, probe, report."
    assert type(error) is LensError


def test_a_refusal_by_a_gate_is_a_users_error_too() -> None:
    assert issubclass(GateError, LensError)
