"""Say what features respond to, whether that serves the task, and how well this holds on held-out texts."""

from lfp_lens.stages.explain.verb import explain

__all__ = ["explain"]
