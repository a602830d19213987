"""`contrast`: triples that differ in what the feedback is about, one word of a text or the whole answer to a prompt."""

from lfp_lens.stages.contrast.verb import contrast

__all__ = ["contrast"]
