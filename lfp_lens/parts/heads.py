"""Heads exchanged: a reward model as a causal LM, and a causal LM as a reward model, on the same trunk."""

import copy
from typing import Any

import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts import sites


def causal_shell(hf: Any) -> Any:
    """Give an empty causal LM of the same architecture with this model's trunk and its head as the unembedding."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(hf.config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not hasattr(hf, "score"):
        raise LensError(
            f"A {type(hf).__name__} reads texts in both directions or has no `score` head: it is no reward model with hooks. "
            "As a reward, 'classifier:MODEL@LABEL' reads it."
        )
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(hf.config)]
    config = copy.deepcopy(hf.config)
    config.architectures, config.tie_word_embeddings = [kind.__name__], False
    if hasattr(config, "final_logit_softcapping"):
        config.final_logit_softcapping = None
    with torch.device("meta"):
        shell = kind(config)
    if shell.base_model_prefix != hf.base_model_prefix:
        raise LensError(f"A {type(hf).__name__} and a {kind.__name__} name their trunks differently: no hooks for it.")
    setattr(shell, shell.base_model_prefix, sites.trunk(hf))
    shell.set_output_embeddings(hf.score)
    return shell.eval()


def with_head(model: Any) -> Any:
    """Give a sequence classifier with a copy of a causal LM's trunk and a head of zeros, one logit."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(model.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise LensError(f"There is no sequence classifier of a {type(model).__name__}'s architecture.")
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(model.config)]
    config = copy.deepcopy(model.config)
    config.num_labels, config.architectures = 1, [kind.__name__]
    with torch.device("meta"):
        found = kind(config)
    setattr(found, found.base_model_prefix, copy.deepcopy(sites.trunk(model)))
    found.score = torch.nn.Linear(
        found.score.in_features, 1, bias=found.score.bias is not None, dtype=model.dtype, device=model.device
    )
    with torch.no_grad():
        for weight in found.score.parameters():
            weight.zero_()
    return found.eval()
