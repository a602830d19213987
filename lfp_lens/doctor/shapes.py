"""How large a model is, from its config alone: no weights are loaded and nothing is downloaded."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sources import model_path

PYTHIA = {"model_type": "gpt_neox", "vocab_size": 50304, "max_position_embeddings": 2048, "tie_word_embeddings": False}
KNOWN: dict[str, dict[str, Any]] = {
    "EleutherAI/pythia-70m": PYTHIA
    | {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048},
    "EleutherAI/pythia-160m": PYTHIA
    | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "EleutherAI/gpt-neo-125m": {
        "model_type": "gpt_neo", "hidden_size": 768, "num_layers": 12, "num_heads": 12, "vocab_size": 50257,
        "max_position_embeddings": 2048, "attention_types": [[["global", "local"], 6]],
    },
    "google/gemma-2b-it": {
        "model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 16384, "vocab_size": 256000,
    },
    "lvwerra/distilbert-imdb": {"model_type": "distilbert", "num_labels": 2},
}  # fmt: skip
"""The shapes of the presets' models, which are facts of public checkpoints, for machines that have no copy yet."""


@dataclass(frozen=True, eq=False)
class Shape:
    """The size of one model."""

    config: Any
    """Its Hugging Face config."""
    layers: int
    """Transformer layers."""
    width: int
    """Dimensions of the residual stream."""
    vocabulary: int
    """Tokens it predicts among."""
    weights: int
    """Parameters, tied ones counted once."""
    layer_weights: int
    """Parameters of one layer."""
    projections: int
    """Rows and columns of all weight matrices inside the layers, added up: a LoRA adapter holds rank times as many at most."""
    is_causal: bool
    """Whether it predicts tokens: a classifier does not."""

    def cut(self, layers: int, vocabulary: int) -> Any:
        """Give the config of a model of fewer layers and tokens that is otherwise the same."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = layers
        config.vocab_size = vocabulary
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:layers]
        for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, token, None)
        return config


def shape_of(name: str, *, is_causal: bool = True) -> Shape:
    """Give a model's size by name, local folder, or `world`.

    Raises:
        LensError: if its config is not on this machine (nor in the table of the presets' models), or is of no such model.
    """
    return _measured(_config(name), name, is_causal)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    if name == "world":
        from lfp_lens.parts.world import CONTEXT, SHAPE, VOCABULARY

        given = {"model_type": "gpt_neox", "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, **SHAPE}
        return AutoConfig.for_model(**given)
    path = model_path(name)
    try:
        return AutoConfig.from_pretrained(
            Path(path).expanduser() if Path(path).exists() else path, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        if name in KNOWN:
            return AutoConfig.for_model(**KNOWN[name])
        raise LensError(
            f"the config.json of {name} is not on this machine, so its size is not known "
            f"({type(error).__name__}). Fetch that file first: hf download {name} config.json"
        ) from error


def _measured(config: Any, name: str, is_causal: bool) -> Shape:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if is_causal else AutoModel
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except ValueError as error:
        raise LensError(f"{name} is of a kind ({config.model_type}) that cannot be tuned as a causal LM") from error
    head = model.get_output_embeddings() if is_causal else None
    embedded = {id(part.weight) for part in (model.get_input_embeddings(), head) if part is not None}
    inside = [part for part in model.parameters() if id(part) not in embedded]
    return Shape(
        config=config,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        weights=sum(part.numel() for part in model.parameters()),
        layer_weights=sum(part.numel() for part in inside) // config.num_hidden_layers,
        projections=sum(sum(part.shape) for part in inside if part.dim() == 2),
        is_causal=is_causal,
    )
