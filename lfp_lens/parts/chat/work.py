"""What goes over the desk: questions on their way, and what is decided about them."""

from dataclasses import dataclass
from typing import Any

from lfp_lens.parts.chat.question import Question


@dataclass
class Tally:
    """What this caller did, beside what the ledger holds from others."""

    requests: int = 0
    cached: int = 0
    repeated: int = 0
    unusable: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0


@dataclass
class Work:
    """One question on its way."""

    question: Question[Any]
    key: str
    lost: int = 0
    failed: int = 0
    unreachable: int = 0
    is_new: bool = True
    is_final: bool = False


@dataclass(frozen=True)
class Answer:
    """The end of a question: its reply, or None if no usable one ever came."""

    reply: Any


@dataclass(frozen=True)
class Send:
    """A request whose intent is written."""

    id: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Full:
    """The budget has no room for this request."""

    needed: float
    unit: str
