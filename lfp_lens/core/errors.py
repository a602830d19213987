"""The errors a user can cause, each saying what was given, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class LensError(Exception):
    """The user's input cannot be used; the message says why and what to do. Exit code 2 on the command line."""


class GateError(LensError):
    """A measurement gate failed: a refusal that says what is missing stands in place of a number nobody can trust."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Give " Did you mean 'x'?" for the closest of `choices`, or an empty string.

    >>> nearest("difverge", ["diverge", "probe"])
    " Did you mean 'diverge'?"
    """
    close = get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: str, choices: Iterable[str]) -> LensError:
    """Make the error for a name that is not in a closed set, with the nearest match and the whole list."""
    known = sorted(choices)
    return LensError(f"Unknown {kind} {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
