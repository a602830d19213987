"""Rewriters: who grades an answer for a task, and writes it anew as better, middling or worse.

`offline` needs no model and no network and knows the valence of words only; `openai:MODEL` asks a chat model. A Python
caller may pass any object that follows the `Rewriter` protocol.
"""

from lfp_lens.parts.rewriters.base import REWRITERS, Declined, Rewriter, Setting, make_rewriter
from lfp_lens.parts.rewriters.chat import ChatRewriter
from lfp_lens.parts.rewriters.offline import OfflineRewriter

__all__ = ["REWRITERS", "ChatRewriter", "Declined", "OfflineRewriter", "Rewriter", "Setting", "make_rewriter"]
