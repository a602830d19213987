"""`probe`: the learned value of every word, and what a linear probe can read of it (arXiv 2310.08164, 3.3 and 4.1)."""

from lfp_lens.stages.probe.verb import PREFERENCE_ARGUMENTS, probe

__all__ = ["PREFERENCE_ARGUMENTS", "probe"]
