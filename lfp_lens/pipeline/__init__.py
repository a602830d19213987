"""A run of every verb, in order."""

from lfp_lens.pipeline.runs import open_run, run
from lfp_lens.pipeline.work import Run

__all__ = ["Run", "open_run", "run"]
