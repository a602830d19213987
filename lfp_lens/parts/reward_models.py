"""Reward models: a transformer with one number where the unembedding would be, hooked like a language model.

The reward of a text is read at its last real token, whatever the padding. TransformerLens knows no such models, so the
trunk and the head are set into an empty causal LM of the same architecture (the shell), which it can convert.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts import sites
from lfp_lens.parts.activations import Encoded, batches
from lfp_lens.parts.checkpoints import (
    check_device,
    check_dtype,
    check_fast,
    load_tokenizer,
    tuning_record,
    weights_fingerprint,
)
from lfp_lens.parts.classifiers import load_scalar_classifier
from lfp_lens.parts.heads import causal_shell
from lfp_lens.parts.hooked import to_hooked
from lfp_lens.parts.pair import TOLERANCE, prove_parity
from lfp_lens.parts.sources import model_path
from lfp_lens.view import page


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model: call it with texts for their rewards; `hooked` is its TransformerLens twin."""

    hf: Any
    """The model as Hugging Face loaded it."""
    shell: Any
    """The same trunk and head in a causal LM: `shell(ids).logits` is `[B, S, 1]`, and sites are read on it."""
    hooked: Any
    """The TransformerLens twin (weight processing off): its logits are the rewards at every position, `[B, S, 1]`."""
    tokenizer: Any
    """Its tokenizer."""
    fingerprint: str
    """Hash of its weights and vocabulary."""
    name: str
    """The path or hub name it came from."""
    begins: bool = False
    """Whether it reads beginning-of-text before every text, as `finetune` trains; else what its tokenizer adds."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every MLP-output site, in layer order."""
        return sites.all_sites(self.shell)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.hf.device

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give one reward per text, read at its last token.

        A text is tokenised as the model was trained (see `begins`); an empty one is its beginning-of-text or end-of-text
        token alone. One that is longer than the model's context loses its beginning, with a warning that counts them.
        """
        if not texts:
            return np.zeros(0)
        rows = self.encode(texts)
        found = np.zeros(len(rows))
        with torch.no_grad():
            for batch in batches(rows, device=self.device):
                found[batch.rows] = self._read(batch.ids_BS, batch.mask_BS).double().cpu().numpy()
        return found

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Give the tokens that are read of each text."""
        tokenizer, room = self.tokenizer, getattr(self.hf.config, "max_position_embeddings", None)
        options = {"add_special_tokens": not self.begins, "return_offsets_mapping": True, "verbose": False}
        held = tokenizer(list(texts), return_attention_mask=False, **options)
        alone = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        first = [tokenizer.bos_token_id] if self.begins and tokenizer.bos_token_id is not None else []
        rows, n_cut = [], 0
        for text, ids, spans in zip(texts, held["input_ids"], held["offset_mapping"]):
            if not ids and not first:
                if alone is None:
                    raise LensError(f"The text {text!r} has no token, and the tokenizer none for beginning or end.")
                ids, spans = [alone], [(0, 0)]
            n_over = 0 if room is None else max(0, len(first) + len(ids) - room)
            n_cut += n_over > 0
            kept = [tuple(span) for span in spans[n_over:]]
            rows.append(Encoded(first + ids[n_over:], [(0, 0)] * len(first) + kept, text))
        if n_cut:
            warnings.warn(
                f"{n_cut} of {len(texts)} texts are longer than the {room} tokens that {self.name} reads: their "
                "beginnings were cut off.",
                stacklevel=3,
            )
        return rows

    def rewards_of_ids(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Give one reward per row of token ids `[B]`; padding (mask 0) may stand on either side.

        Gradients flow unless the caller forbids them. Raises `LensError` for a row without a token.
        """
        real = mask_BS.bool()
        if ids_BS.shape != mask_BS.shape or ids_BS.ndim != 2 or not real.any(1).all():
            raise LensError("rewards_of_ids takes ids and mask of one shape [B, S], with a token in every row.")
        # To the right, so that positions count from 0 and no architecture needs to be told.
        order = torch.argsort(~real, dim=1, stable=True)
        return self._read(ids_BS.gather(1, order), real.gather(1, order).long())

    def _read(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        hidden_BSD = sites.trunk(self.hf)(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
        last = mask_BS.sum(1) - 1
        return self.hf.score(hidden_BSD[torch.arange(len(last), device=last.device), last])[:, 0].float()

    def _repr_html_(self) -> str:
        config = self.hf.config
        facts = {
            "name": self.name,
            "architecture": type(self.hf).__name__,
            "layers, width, vocabulary": f"{len(self.sites)}, {config.hidden_size}, {config.vocab_size}",
            "hooked as": type(self.hooked).__name__,
            "fingerprint": self.fingerprint,
        }
        return page.card("Reward model", facts)


def load_reward_model(
    source: Any,
    *,
    base: Any = None,
    tokenizer: Any = None,
    begins: bool | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> RewardModel:
    """Load a reward model, and prove that hooks read what Hugging Face computes.

    Args:
        source: a hub name, a local folder or a model in memory: `...ForSequenceClassification` with one logit, or an
            adapter of one (with its head saved beside it).
        base: for an adapter in a folder, what it was trained on (a name, a folder, a causal LM or a sequence classifier in
            memory); None takes what the adapter names.
        tokenizer: for a model in memory; None loads the one beside `source`.
        begins: put beginning-of-text before every text, as `finetune` does in training; None does so where the tuning record
            says that `finetune` made the model, and else leaves it to the tokenizer.
        device: `cpu`, `cuda`, ...
        dtype: `float32`, `bfloat16` or `float16`, for models loaded from disk.

    Returns:
        A `RewardModel`: called with texts it gives one reward each; `hooked` is its TransformerLens twin.

    Raises:
        LensError: if the model is a causal LM, has more than one logit or no trained head, is quantised or incomplete,
            or if the TransformerLens model does not reproduce it.

    >>> rm = load_reward_model("path/of/reward_model")  # doctest: +SKIP
    >>> rm(["a good film", "a bad film"])  # doctest: +SKIP
    """
    check_dtype(dtype)
    check_device(device)
    in_memory = not isinstance(source, (str, Path))
    name = f"{type(source).__name__} in memory" if in_memory else str(model_path(str(source)))
    hf = load_scalar_classifier(source, name, base=base, device=device, dtype=dtype)
    tokens = load_tokenizer(source) if tokenizer is None else tokenizer
    check_fast(tokens, name)
    if len(tokens.get_vocab()) > hf.config.vocab_size:
        raise LensError(f"The tokenizer has {len(tokens.get_vocab())} tokens, the model {hf.config.vocab_size}.")
    shell = causal_shell(hf)
    hooked = to_hooked(shell, tokens)
    prove_parity(shell, hooked)
    if begins is None:
        begins = (tuning_record(source) or {}).get("method") == "reward_model"
    key = fingerprint([weights_fingerprint(hf), tokens.get_vocab(), begins])
    found = RewardModel(hf, shell, hooked, tokens, key, name, begins)
    _prove_reading(found)
    return found


def _prove_reading(found: RewardModel) -> None:
    """Raise `LensError` unless our reading is Hugging Face's own, and the same with padding on either side."""
    hf, pad = found.hf, found.hf.config.pad_token_id
    generator = torch.Generator().manual_seed(1)
    ids_BS = torch.randint(hf.config.vocab_size, (3, 12), generator=generator)
    # Hugging Face reads at the last token that is not the padding token, so none may stand at the end.
    ids_BS[ids_BS == pad] = 1 if pad == 0 else 0
    ids_BS = ids_BS.to(hf.device)
    lengths = (12, 7, 1)
    with torch.no_grad():
        wanted = torch.cat([hf(input_ids=row[None, :n]).logits[:, 0] for row, n in zip(ids_BS, lengths)]).float()
        gaps = {}
        for side in ("right", "left"):
            mask_BS = torch.zeros_like(ids_BS)
            padded = torch.zeros_like(ids_BS)
            for row, n in enumerate(lengths):
                where = slice(n) if side == "right" else slice(12 - n, None)
                mask_BS[row, where], padded[row, where] = 1, ids_BS[row, :n]
            gaps[side] = float((found.rewards_of_ids(padded, mask_BS) - wanted).abs().max())
    allowed = TOLERANCE[hf.dtype] * max(1.0, float(wanted.abs().max()))
    for side, gap in gaps.items():
        if not gap <= allowed:
            raise LensError(
                f"The rewards of {found.name} with padding on the {side} differ from Hugging Face's by {gap:.2g} "
                f"({allowed:.2g} allowed)."
            )
