"""What a rewriter is given and what it must be able to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lfp_lens.core.errors import LensError
from lfp_lens.core.registry import Registry
from lfp_lens.parts.tagger import Tagger


class Declined(Exception):
    """A rewriter cannot rewrite this answer; the message is the reason under which the item is counted."""


@runtime_checkable
class Rewriter(Protocol):
    """Grades answers for a task and writes them anew.

    The methods may be called from `workers` threads at once, and what they give may depend on their arguments only. A
    rewriter that is to be used with a store needs a `fingerprint` string beside these.
    """

    name: str
    """Stands in the result."""
    workers: int
    """How many calls may run at once."""

    def grade(self, prompt: str, text: str, task: str) -> int:
        """Grade an answer from 1 (nothing of what the task names) over 3 (neither) to 5 (fully what it names)."""
        ...

    def rewrite(self, prompt: str, text: str, pole: str, task: str, n_words: int) -> str:
        """Write the answer anew, about `n_words` words long; raises `Declined` where that cannot be done.

        `pole` is "positive" (grade 5), "neutral" (grade 3) or "negative" (grade 1).
        """
        ...


@dataclass(frozen=True)
class Setting:
    """What a rewriter made by name may need."""

    folder: Path
    """Where paid replies are kept."""
    seed: int = 0
    """Of whatever is drawn."""
    texts: Sequence[str] = ()
    """Every answer that may have to be rewritten."""
    company: Sequence[str] = ()
    """More text of the same kind, to learn words from."""
    tagger: Tagger | None = None
    """Who tells parts of speech; None for the rules without one."""


REWRITERS: Registry[Callable[[str, Setting], Rewriter]] = Registry("rewriter")
"""Name -> function of (what follows the colon in the name, setting) giving a rewriter."""


def make_rewriter(rewriter: Any, setting: Setting) -> Rewriter:
    """Give the rewriter of a name such as `offline` or `openai:gpt-4o`, or check an object that is one.

    Raises:
        LensError: for an unknown name, a name without what it needs, or an object that does not follow the protocol.
    """
    if isinstance(rewriter, str):
        name, _, argument = rewriter.partition(":")
        return REWRITERS[name](argument, setting)
    if not isinstance(rewriter, Rewriter) or isinstance(rewriter, type):
        raise LensError(
            f"The rewriter {rewriter!r} is neither a name ({', '.join(REWRITERS)}) nor an object with "
            "`name`, `workers`, `grade` and `rewrite`."
        )
    return rewriter
