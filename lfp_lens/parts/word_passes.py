"""One pass of each model over texts, for everything that is read where words stand: signals, log-probabilities, activations.

No logits are computed but at the places asked for, and those a chunk at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Batch, Encoded, batches, hidden_states, tokens_of_span, unembed
from lfp_lens.parts.signals import Seen, Signal
from lfp_lens.parts.sites import watching

CHUNK_VALUES = 2**23
"""Logits held at once per model."""


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens of measured words in one batch: N tokens, in the order of the words."""

    line_N: torch.Tensor
    """Row of the batch."""
    at_N: torch.Tensor
    """Position of the token."""
    word_N: torch.Tensor
    """Which of the measured words it belongs to."""
    is_first_N: torch.Tensor
    """First token of its word."""
    is_last_N: torch.Tensor
    """Last token of its word."""
    ids_N: torch.Tensor
    """The token."""


@dataclass(frozen=True, eq=False)
class Look:
    """What an observer is shown of one batch."""

    places: Places
    acts: Sequence[Mapping[str, torch.Tensor]]
    """For each model (0 is the base), what was watched: name -> activation `[B, S, D]`."""


@dataclass(eq=False)
class WordValues:
    """What was read at W words, in the order in which they were given."""

    values: dict[str, Float[np.ndarray, "others words"]]
    """For each signal, one row per other model; NaN where a word does not align with whole tokens."""
    base_log_p: Float[np.ndarray, " words"]
    """The base model's log p of the word in its context, in nats."""
    tokens: int = 0
    """Tokens that each model read."""
    is_read: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    """Which words aligned."""


def read_words(
    base: Any,
    others: Sequence[Any],
    encoded: Sequence[Encoded],
    spans: Sequence[Sequence[tuple[int, int]]],
    signals: Mapping[str, Signal],
    *,
    worth_V: torch.Tensor | None = None,
    observers: Sequence[Any] = (),
) -> WordValues:
    """Measure words in their contexts, one forward pass per model.

    Args:
        base: the base model (Hugging Face).
        others: models to compare with it, such as the tuned model and its noise twin.
        encoded: the texts.
        spans: for each text, the character spans of the words to measure; values come back in this order, flattened.
        signals: what to measure.
        worth_V: for signals that need the lexicon, the value each token promises.
        observers: objects with `sites` (watched in every model), `see_words(look)` called once per batch, and
            `see_predictions(other, seen, word_N)` called per model and chunk of places before words.
    """
    starts = np.cumsum([0, *(len(row) for row in spans)])
    found = WordValues(
        {name: np.zeros((len(others), starts[-1])) for name in signals}, np.zeros(starts[-1]),
        is_read=np.zeros(starts[-1], dtype=bool),
    )  # fmt: skip
    models = [base, *others]
    sites = tuple(dict.fromkeys(site for observer in observers for site in observer.sites))
    with torch.no_grad():
        # A text without words to measure is not read at all.
        wanted = [row for row, some in enumerate(spans) if some]
        for batch in batches([_cut(encoded[row], spans[row]) for row in wanted], device=base.device):
            batch.rows[:] = [wanted[row] for row in batch.rows]
            places = _places(batch, encoded, spans, starts)
            if places is None:
                continue
            found.tokens += int(batch.mask_BS.sum())
            found.is_read[places.word_N.numpy()] = True
            hidden, acts = [], []
            for model in models:
                with watching(model, sites) as seen:
                    hidden.append(hidden_states(model, batch))
                acts.append(dict(seen))
            _compare(models, hidden, places, signals, worth_V, found, observers)
            for observer in observers:
                observer.see_words(Look(places, acts))
    for values in (*found.values.values(), found.base_log_p[None]):
        values[:, ~found.is_read] = np.nan
    return found


def _cut(text: Encoded, spans: Sequence[tuple[int, int]]) -> Encoded:
    """Give the text up to the last word that is measured: what follows changes nothing at it."""
    end = max(end for _, end in spans)
    n = sum(low < end for low, _ in text.offsets)
    return Encoded(text.ids[:n], text.offsets[:n], text.text)


def _places(
    batch: Batch, encoded: Sequence[Encoded], spans: Sequence[Sequence[tuple[int, int]]], starts: np.ndarray
) -> Places | None:
    rows: list[tuple[int, int, int, bool, bool]] = []
    for line, text in enumerate(batch.rows):
        for offset, span in enumerate(spans[text]):
            tokens = tokens_of_span(encoded[text], span)
            if tokens and tokens[0] > 0:
                word = int(starts[text]) + offset
                rows += [(line, at, word, at == tokens[0], at == tokens[-1]) for at in tokens]
    if not rows:
        return None
    line, at, word, first, last = (torch.tensor(column) for column in zip(*rows))
    return Places(line, at, word, first, last, batch.ids_BS.cpu()[line, at])


def log_probs(model: Any, hidden_ND: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Give the log-probabilities `[n, V]` of the next token at final hidden states, a chunk of places at a time."""
    step = max(16, CHUNK_VALUES // model.config.vocab_size)
    for start in range(0, len(hidden_ND), step):
        part = slice(start, start + step)
        yield part, torch.log_softmax(unembed(model, hidden_ND[part]).float(), dim=-1)


def _compare(
    models: Sequence[Any],
    hidden: Sequence[torch.Tensor],
    places: Places,
    signals: Mapping[str, Signal],
    worth_V: torch.Tensor | None,
    found: WordValues,
    observers: Sequence[Any],
) -> None:
    """Add every signal's values at one batch's places; before the words first, then after them."""
    device = hidden[0].device
    for place in ("before", "after"):
        wanted = {name: signal for name, signal in signals.items() if signal.place == place}
        if place == "after" and not wanted:
            return
        keep = torch.arange(len(places.at_N)) if place == "before" else places.is_last_N.nonzero()[:, 0]
        at_N = places.at_N[keep] - int(place == "before")
        line_N, ids_N, word_N = places.line_N[keep], places.ids_N[keep].to(device), places.word_N[keep].numpy()
        is_first_N = places.is_first_N[keep].to(device)
        parts = [log_probs(model, states[line_N, at_N]) for model, states in zip(models, hidden)]
        for (part, base_NV), *compared in zip(*parts, strict=True):
            if place == "before":
                own = base_NV.gather(-1, ids_N[part, None])[:, 0]
                np.add.at(found.base_log_p, word_N[part], own.double().cpu().numpy())
            for which, (_, other_NV) in enumerate(compared):
                seen = Seen(base_NV, other_NV, ids_N[part], is_first_N[part], worth_V)
                for name, signal in wanted.items():
                    np.add.at(found.values[name][which], word_N[part], _measured(signal, seen))
                for observer in observers if place == "before" else ():
                    observer.see_predictions(which, seen, word_N[part])


def _measured(signal: Signal, seen: Seen) -> np.ndarray:
    """Give a signal's values at some places; a user's own may give anything."""
    values = signal.measure(seen)
    shape = getattr(values, "shape", None)
    if not isinstance(values, torch.Tensor) or shape != seen.ids_N.shape:
        raise LensError(
            f"A signal gives one value per place, a tensor of shape {list(seen.ids_N.shape)}; this one gave a "
            f"{type(values).__name__}{'' if shape is None else f' of shape {list(shape)}'}."
        )
    return values.double().cpu().numpy()
