"""`ablate`: zero-ablate features, score the reward again, and compare with what random features do (section 4.2)."""

from lfp_lens.stages.ablate.verb import ablate

__all__ = ["ablate"]
