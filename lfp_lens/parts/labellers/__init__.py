"""Labellers: who says in words what a feature responds to, whether that serves a task, and where it fires.

`lexicon` needs no model and no network; `openai:MODEL` asks a chat model. A Python caller may pass any object
that follows the `Labeller` protocol.
"""

from lfp_lens.parts.labellers.base import LABELLERS, Evidence, Labeller, Setting, make_labeller
from lfp_lens.parts.labellers.chat import ChatLabeller
from lfp_lens.parts.labellers.lexicon import LexiconLabeller

__all__ = ["LABELLERS", "ChatLabeller", "Evidence", "Labeller", "LexiconLabeller", "Setting", "make_labeller"]
