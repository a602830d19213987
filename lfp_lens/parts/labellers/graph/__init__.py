"""The graph labeller: Neuron2Graph's idea without a language model (Foote et al. 2023, arXiv 2305.19911).

A feature's strongest contexts are pruned to the shortest suffix that keeps the activation, and perturbed to see which of its
tokens matter and what may stand in their place (`perturb`). What that shows, the feature's windows and a random sample of text
are counted in a trie of suffixes (`corpus`, `grow`) that predicts the activation at every token, and is written as a pattern
(`words`).
"""

from lfp_lens.parts.labellers.graph.labeller import GraphLabeller

__all__ = ["GraphLabeller"]
