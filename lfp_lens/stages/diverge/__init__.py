"""`diverge`: how far each layer moved, in weights, activations and predictions (arXiv 2310.08164, 3.2 and appendix C)."""

from lfp_lens.stages.diverge.verb import diverge

__all__ = ["diverge"]
