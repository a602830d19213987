"""Any Hugging Face causal LM (or one with a reward head in place of its unembedding) as a TransformerLens model with
weight processing off: the only importer of TransformerLens.

HookedTransformer where TransformerLens has a converter for the architecture, TransformerBridge elsewhere. Processing
stays off because centring the writing weights changes `hook_mlp_out`. The checkpoint's own path is never shown to
TransformerLens, which guesses the architecture from the path's letters; it is staged into a neutral folder.
"""

import contextlib
import copy
import io
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from lfp_lens.core.errors import LensError

HOOKED_ARCHITECTURES = ("GPTNeoXForCausalLM", "GPTNeoForCausalLM", "GPT2LMHeadModel", "LlamaForCausalLM")


def to_hooked(model: Any, tokenizer: Any) -> Any:
    """Give the TransformerLens twin of a Hugging Face causal LM, on the same device and in the same dtype.

    Raises `LensError` if TransformerLens cannot convert the model.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="stage_") as root:
        warnings.simplefilter("ignore")
        folder = Path(root) / "checkpoint"
        tokenizer.save_pretrained(folder)
        # A relative path, because the folder for temporary files has a name too.
        with contextlib.chdir(root):
            try:
                if type(model).__name__ in HOOKED_ARCHITECTURES:
                    return _hooked(model, tokenizer, folder.name)
                return _bridged(model, folder.name)
            except (
                RuntimeError,
                ValueError,
                KeyError,
                AttributeError,
                NotImplementedError,
                TypeError,
                IndexError,
            ) as error:
                first = (str(error).strip() or type(error).__name__).replace("\n", " ")[:300]
                raise LensError(
                    f"TransformerLens cannot convert this {type(model).__name__}: {first} Give a checkpoint of another "
                    f"architecture or shape; tried and tested: {', '.join(HOOKED_ARCHITECTURES)}."
                ) from error


def _hooked(model: Any, tokenizer: Any, folder: str) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoTokenizer

    settings = model.config.to_dict() | {"architectures": [type(model).__name__]}
    if type(model).__name__ == "GPT2LMHeadModel":
        settings.setdefault("n_ctx", settings["n_positions"])
    (Path(folder) / "config.json").write_text(json.dumps(settings, default=str), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        config = loading.get_pretrained_model_config(
            folder, hf_cfg=settings, fold_ln=False, device=str(model.device), dtype=model.dtype
        )
        config.tokenizer_name = None
        # TransformerLens takes four times the width for GPT-2 and GPT-Neo, whatever the checkpoint says.
        config.d_mlp = settings.get("n_inner") or settings.get("intermediate_size") or config.d_mlp
        needs_grad = [weight.requires_grad for weight in model.parameters()]
        state = loading.get_pretrained_state_dict(folder, config, model, dtype=model.dtype)
        if (n_out := model.get_output_embeddings().out_features) != config.d_vocab:
            # A reward head stands where the unembedding would; TransformerLens made a bias per token for it.
            config.d_vocab_out, state["unembed.b_U"] = n_out, torch.zeros(n_out, dtype=model.dtype, device=model.device)
        for weight, needed in zip(model.parameters(), needs_grad):
            weight.requires_grad_(needed)
        staged = AutoTokenizer.from_pretrained(folder, padding_side=tokenizer.padding_side)
        hooked = HookedTransformer(config, staged, move_to_device=False)
        hooked.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
        hooked.to(model.device, print_details=False)
    return hooked.eval()


def _bridged(model: Any, folder: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    staged = AutoTokenizer.from_pretrained(folder)
    # The bridge replaces modules of the model that it is given, so it gets a copy.
    with contextlib.redirect_stdout(io.StringIO()):
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=copy.deepcopy(model), tokenizer=staged, device=str(model.device), dtype=model.dtype
        )
    return bridge.eval()


def hooked_logits(hooked: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    """Give the logits of a TransformerLens model for full-length rows of token ids."""
    return hooked(ids_BS, return_type="logits")
