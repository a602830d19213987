"""`attribute`: which features carry a scalar, screened in one backward pass and confirmed by exact ablation."""

from lfp_lens.stages.attribute.verb import attribute

__all__ = ["attribute"]
