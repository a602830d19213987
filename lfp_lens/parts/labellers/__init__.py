"""Labellers: who says in words what a feature responds to, whether that serves a task, and where it fires.

`lexicon` and `graph` need no network; `openai:MODEL` asks a chat model; `recorded:FILE` replays answers. A Python caller may
pass any object that follows the `Labeller` protocol.
"""

from lfp_lens.parts.labellers.base import (
    LABELLERS,
    SPENDING,
    Estimating,
    Evidence,
    Labeller,
    Setting,
    Simulator,
    Trial,
    make_labeller,
)
from lfp_lens.parts.labellers.chat import ChatLabeller
from lfp_lens.parts.labellers.graph import GraphLabeller
from lfp_lens.parts.labellers.lexicon import LexiconLabeller
from lfp_lens.parts.labellers.recorded import RecordedLabeller, RecordingLabeller

__all__ = [
    "LABELLERS",
    "SPENDING",
    "ChatLabeller",
    "Estimating",
    "Evidence",
    "GraphLabeller",
    "Labeller",
    "LexiconLabeller",
    "RecordedLabeller",
    "RecordingLabeller",
    "Setting",
    "Simulator",
    "Trial",
    "make_labeller",
]
