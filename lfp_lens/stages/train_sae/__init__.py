"""`train_sae`: dictionaries of base and tuned for every site and size, from one pass of each model (section 3.2)."""

from lfp_lens.stages.train_sae.foreign import load_saes
from lfp_lens.stages.train_sae.verb import train_sae

__all__ = ["load_saes", "train_sae"]
