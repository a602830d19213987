"""The embedded base model: what was trained, and how well."""

from pathlib import Path

from lfp_lens.core.records import record


@record
class World:
    """The tiny world's GPT-NeoX, trained on the seeded grammar."""

    path: Path
    """Folder of the checkpoint and its tokenizer."""
    loss_nats: float
    """Mean loss per token on the grammar's test split, in nats."""
    n_weights: int
    """Weights of the model."""
    n_texts: int
    """Reviews it was trained on."""
