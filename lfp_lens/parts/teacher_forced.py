"""What a model predicts on fixed texts while features are changed: no sampling, and so little variance.

The untouched model and the base run once; their final hidden states are kept, and logits are made from them a chunk at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.parts.activations import Batch, Encoded, batches, hidden_states, unembed
from lfp_lens.parts.dictionaries import Dictionary
from lfp_lens.parts.interventions import Edit
from lfp_lens.parts.sites import activations_at, editing, watching

LOGITS_AT_ONCE = 2**23
"""Logits that are held at once (32 MB in fp32, a few times over)."""
LOG_P_KEPT = 2**27
"""Log-probabilities of the untouched model that are kept between readings (512 MB in fp32); beyond, they are made anew."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model predicts on the texts: sums over each text's tokens."""

    valence: Float[np.ndarray, " texts"]
    """Expected lexicon value of the next word."""
    log_p: Float[np.ndarray, " texts"]
    """log p of the text's tokens after its first one and its prompt, in nats."""
    kl: Float[np.ndarray, " texts"]
    """KL(this || untouched), in nats; 0 for the untouched model."""


class TeacherForced:
    """A model on fixed texts, read again and again under edits; the same texts, batches and precision each time.

    Args:
        model: a Hugging Face model or a TransformerLens one.
        texts: at least one token each.
        values_V: the lexicon value that each token promises, where the model is.
        other: the same texts under the other model of a pair, for features that both models are read for.
        begin: beginning-of-text token, which no edit touches.
        max_batch_tokens: tokens in a batch, padding included.
    """

    def __init__(
        self, model: Any, texts: Sequence[Encoded], values_V: torch.Tensor, *, other: "TeacherForced | None" = None,
        begin: int | None, max_batch_tokens: int = 4096,
    ) -> None:  # fmt: skip
        self.model, self.other, self.begin, self._values_V = model, other, begin, values_V
        self.batches = list(batches(texts, device=values_V.device, max_batch_tokens=max_batch_tokens))
        self.tokens = np.array([len(text.ids) for text in texts], float)
        """Tokens of each text."""
        self._n_prompt = torch.tensor([max(text.n_prompt, 1) for text in texts])
        self.predicted = np.maximum(self.tokens - self._n_prompt.numpy(), 0)
        """Tokens of each text whose log p is summed."""
        self._start = torch.tensor(np.cumsum(self.tokens) - self.tokens).long()
        self._acts: dict[str, list[torch.Tensor]] = {}
        self._log_p: dict[tuple[int, int], torch.Tensor] = {}
        with torch.no_grad():
            self._clean = [_hidden(model, batch) for batch in self.batches]
        self.clean = self._reading(self._clean, is_clean=True)
        """The untouched model."""

    def read(self, edits: Mapping[str, Edit], *, other: "TeacherForced | None" = None) -> Reading:
        """Read the model under edits of (its activations, those of the other model, untouched, at the same tokens or None, the
        number of each token among all tokens of the texts)."""
        with torch.no_grad():
            return self._reading(self._edited(edits, other or self.other))

    def features(self, dictionary: Dictionary, *, most: int = 4096) -> Float[torch.Tensor, "tokens features"]:
        """Give a dictionary's features at content tokens of the untouched model, from the first texts in batch order on."""
        found: list[torch.Tensor] = []
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                if sum(map(len, found)) >= most:
                    break
                content_BS = batch.content(self.begin)
                base = None
                if dictionary.needs_base:
                    assert self.other is not None, "this dictionary reads the base too"
                    base = self.other.acts(dictionary.site, number)[content_BS]
                found.append(dictionary.read(self.acts(dictionary.site, number)[content_BS], base))
        return torch.cat(found)[:most]

    def acts(self, site: str, number: int) -> torch.Tensor:
        """Give the untouched activations `[B, S, D]` of one batch at a site; they are kept."""
        if site not in self._acts:
            self._acts[site] = [self._watched(site, batch) for batch in self.batches]
        return self._acts[site][number]

    def _watched(self, site: str, batch: Batch) -> torch.Tensor:
        if not hasattr(self.model, "hook_dict"):
            return activations_at(self.model, batch.ids_BS, batch.mask_BS, [site])[site]
        with torch.no_grad(), watching(self.model, [site]) as seen:
            _hidden(self.model, batch)
        return seen[site]

    def _edited(self, edits: Mapping[str, Edit], other: "TeacherForced | None") -> Iterator[torch.Tensor]:
        for number, batch in enumerate(self.batches):
            content_BS1 = batch.content(self.begin)[..., None]
            place_BS = self._start[batch.rows][:, None].to(batch.ids_BS.device) + batch.mask_BS.cumsum(1) - 1

            def kept(
                edit: Edit, site: str, acts: torch.Tensor, number: int = number, content_BS1: torch.Tensor = content_BS1,
                place_BS: torch.Tensor = place_BS,
            ) -> torch.Tensor:  # fmt: skip
                new = edit(acts, None if other is None else other.acts(site, number), place_BS)
                return acts if new is acts else torch.where(content_BS1, new, acts)

            # Yielding inside would leave the hooks on while, and if, what follows fails.
            with editing(self.model, {site: partial(kept, edit, site) for site, edit in edits.items()}):
                hidden = _hidden(self.model, batch)
            yield hidden

    def _reading(self, hidden: Iterable[torch.Tensor], *, is_clean: bool = False) -> Reading:
        sums = np.zeros((3, len(self.tokens)))
        with torch.no_grad():
            for number, (batch, hidden_BSD) in enumerate(zip(self.batches, hidden)):
                real_BS = batch.mask_BS.bool()
                text_N = torch.tensor(batch.rows)[:, None].expand(real_BS.shape)[real_BS.cpu()].numpy()
                # A token is predicted from the place before it.
                given_BS = batch.mask_BS.cumsum(1) < self._n_prompt[batch.rows][:, None].to(real_BS.device)
                next_N = batch.next_ids().masked_fill(given_BS, -1)[real_BS]
                own_ND = hidden_BSD[real_BS]
                step = _chunk(self.model)
                for start in range(0, len(own_ND), step):
                    rows = slice(start, start + step)
                    log_p_NV = torch.log_softmax(_logits(self.model, own_ND[rows]).float(), dim=-1)
                    p_NV = log_p_NV.exp()
                    np.add.at(sums[0], text_N[rows], _numbers(p_NV @ self._values_V))
                    np.add.at(sums[1], text_N[rows], _numbers(_of_next(log_p_NV, next_N[rows])))
                    if is_clean and self.tokens.sum() * log_p_NV.shape[1] <= LOG_P_KEPT:
                        self._log_p[number, start] = log_p_NV
                    elif not is_clean:
                        moved_NV = log_p_NV - self._clean_log_p(number, start, rows)
                        np.add.at(sums[2], text_N[rows], _numbers(torch.linalg.vecdot(p_NV, moved_NV)))
        return Reading(*sums)

    def _clean_log_p(self, number: int, start: int, rows: slice) -> torch.Tensor:
        """Give the untouched model's log-probabilities of one chunk of places."""
        if (number, start) in self._log_p:
            return self._log_p[number, start]
        clean_ND = self._clean[number][self.batches[number].mask_BS.bool()]
        return torch.log_softmax(_logits(self.model, clean_ND[rows]).float(), dim=-1)


def _of_next(log_p_NV: torch.Tensor, next_N: torch.Tensor) -> torch.Tensor:
    return log_p_NV.gather(-1, next_N.clamp(min=0)[:, None])[:, 0].masked_fill(next_N < 0, 0.0)


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _chunk(model: Any) -> int:
    vocabulary = model.cfg.d_vocab_out if hasattr(model, "hook_dict") else model.config.vocab_size
    return max(16, LOGITS_AT_ONCE // vocabulary)


def _is_bridge(model: Any) -> bool:
    return type(model).__name__ == "TransformerBridge"


def _hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Give what logits are made from: final hidden states, or, of a model that cannot stop before them, the logits."""
    if not hasattr(model, "hook_dict"):
        return hidden_states(model, batch)
    if _is_bridge(model):
        return model(batch.ids_BS, attention_mask=batch.mask_BS, return_type="logits")
    return model(batch.ids_BS, attention_mask=batch.mask_BS, stop_at_layer=model.cfg.n_layers)


def _logits(model: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    if not hasattr(model, "hook_dict"):
        return unembed(model, hidden_ND)
    return hidden_ND if _is_bridge(model) else model.unembed(model.ln_final(hidden_ND[None]))[0]
