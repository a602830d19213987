"""The raw logit of one label of a sequence classifier, as a reward: the paper's Appendix B, with DistilBERT on IMDB."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError, nearest
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.checkpoints import read, weights_fingerprint
from lfp_lens.parts.sources import model_path

BATCH = 64
NO_LIMIT = 1_000_000
"""A tokenizer that knows no longest text says a huge number."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A sequence classifier read at one label: texts -> raw logits."""

    model: Any = field(repr=False)
    """The Hugging Face classifier, in evaluation mode."""
    tokenizer: Any = field(repr=False)
    """Its tokenizer."""
    label: int
    """The label that is read."""
    max_tokens: int | None
    """Longest text in tokens; longer ones are cut at the end. None: the model has no limit."""
    pad: int
    """The token that short texts of a batch are filled up with; the mask hides it."""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer and label: the same content at another place has the same."""
        content = {"weights": weights_fingerprint(self.model), "tokenizer": _content(self.tokenizer)}
        return fingerprint({"reward": "classifier", **content, "label": self.label, "max_tokens": self.max_tokens})

    def __call__(self, texts: list[str]) -> Float[np.ndarray, " texts"]:
        """Give the label's logit for each text. A text without a token is read as beginning-of-text alone.

        Batches are made of texts of similar length, filled up on the right under a mask, so that neither company nor
        order of texts changes a value beyond rounding (1e-5).
        """
        rows = self._tokens(texts)
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        logits = np.zeros(len(rows))
        with torch.no_grad():
            for start in range(0, len(order), BATCH):
                picked = order[start : start + BATCH]
                logits[picked] = self._logits([rows[at] for at in picked])
        return logits

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        cut = {} if self.max_tokens is None else {"truncation": True, "max_length": self.max_tokens}
        rows = self.tokenizer(list(texts), verbose=False, **cut)["input_ids"] if texts else []
        begin = self.pad if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        return [ids or [begin] for ids in rows]

    def _logits(self, rows: list[list[int]]) -> Float[np.ndarray, " rows"]:
        ids_BS = torch.full((len(rows), max(len(ids) for ids in rows)), self.pad)
        mask_BS = torch.zeros_like(ids_BS)
        for row, ids in enumerate(rows):
            ids_BS[row, : len(ids)], mask_BS[row, : len(ids)] = torch.tensor(ids), 1
        device = self.model.device
        logits_BL = self.model(input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device)).logits
        return logits_BL[:, self.label].float().cpu().numpy()


def load_classifier(name: str, label: str | int | None = None, *, device: str = "cpu") -> Classifier:
    """Load a sequence classifier and choose the label whose raw logit is the reward.

    Args:
        name: a hub name or a local folder of a `ForSequenceClassification` checkpoint.
        label: an index or a label's name; None for a model with one label.
        device: `cpu`, `cuda`, ...

    Raises:
        LensError: for a checkpoint that cannot be loaded or is no classifier, a score head without weights (it would be
            random), a label that is missing or unknown (the labels are listed), and where nothing can fill up a batch.

    >>> load_classifier("lvwerra/distilbert-imdb", "POSITIVE")  # doctest: +SKIP
    """
    import transformers

    place = str(model_path(name))
    config = read(transformers.AutoConfig, place, "classifier")
    kinds = getattr(config, "architectures", None) or ["a model of no stated architecture"]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise LensError(
            f"{name!r} is no sequence classifier but {kinds[0]}; a ForSequenceClassification checkpoint is expected."
        )
    chosen = _label_index(name, config, label)
    tokenizer = read(transformers.AutoTokenizer, place, "classifier")
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    model, found = read(transformers.AutoModelForSequenceClassification, place, "classifier", **options)
    missing = sorted(found["missing_keys"])
    if missing:
        raise LensError(
            f"The checkpoint of {name!r} lacks {len(missing)} weights, first {missing[0]}: they would be random."
        )
    pad = _padding(name, model.config, tokenizer)
    model.config.pad_token_id = pad  # models that read the last token find it by this
    return Classifier(model.to(device).eval(), tokenizer, chosen, _longest(model, tokenizer), pad)


def _label_index(name: str, config: Any, label: str | int | None) -> int:
    """Give the index of a label that is named by its index or its name; case counts only where two names differ by it."""
    names = [str(config.id2label.get(at, at)) for at in range(config.num_labels)]
    listed = ", ".join(f"{at} ({text})" for at, text in enumerate(names))
    if label is None:
        if len(names) == 1:
            return 0
        raise LensError(f"{name!r} has {len(names)} labels: choose one, as in 'classifier:{name}@1'. Labels: {listed}.")
    wanted = str(label)
    same = [at for at, text in enumerate(names) if text == wanted]
    same = same or [at for at, text in enumerate(names) if text.casefold() == wanted.casefold()]
    if wanted.isdecimal() and int(wanted) < len(names):
        same = sorted({int(wanted), *same})
    if len(same) != 1:
        fault = "means more than one label" if same else "is no label"
        raise LensError(f"{wanted!r} {fault} of {name!r}.{nearest(wanted, names)} Labels: {listed}.")
    return same[0]


def _padding(name: str, config: Any, tokenizer: Any) -> int:
    size = config.get_text_config().vocab_size
    for token in (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and 0 <= token < size:
            return token
    raise LensError(
        f"{name!r} names neither a padding nor an end-of-text token, so texts cannot be put into one batch."
    )


def _longest(model: Any, tokenizer: Any) -> int | None:
    """Give the longest text that both the tokenizer and the model's positions allow."""
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if places is not None:
        # RoBERTa and its kin count positions from behind the padding's.
        tables = [part for part_name, part in model.named_modules() if part_name.endswith("position_embeddings")]
        skipped = [part.padding_idx + 1 for part in tables if getattr(part, "padding_idx", None) is not None]
        places -= max(skipped, default=0)
    limits = [limit for limit in (tokenizer.model_max_length, places) if limit is not None and limit < NO_LIMIT]
    return min(limits, default=None)


def _content(tokenizer: Any) -> list[Any]:
    """Give what decides the tokens of a text; padding and truncation are set anew at every call."""
    if not tokenizer.is_fast:
        return [type(tokenizer).__name__, tokenizer.get_vocab()]
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    return [written.get(part) for part in ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")]
