"""`finetune`: the tuned half of a pair, with the truth about the run (arXiv 2310.08164, section 3.1 and appendix A)."""

from lfp_lens.stages.finetune.verb import finetune

__all__ = ["finetune"]
