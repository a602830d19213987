"""The oracle: what a feature does on contexts of a labeller's choice, read from the model in as few passes as possible.

Neuron2Graph (arXiv 2305.19911) asks the model about every pruned and every perturbed context of every feature. Here the
contexts of all features of one site run together, equal ones once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import Encoded, pad
from lfp_lens.parts.harvest import VALUES_AT_ONCE, read_batch
from lfp_lens.parts.labellers.base import Evidence
from lfp_lens.parts.speed import fast_matmul, short_text_attention


@dataclass(frozen=True, eq=False)
class SiteReader:
    """Reads one dictionary at one site of one model. All oracles of a site share one."""

    model: Any
    """The side's Hugging Face model."""
    sae: Any
    """The dictionary, a SAELens SAE on the model's device."""
    site: str
    """Where it reads."""
    begin: int | None
    """The beginning-of-text token: it is put before every context, and no dictionary reads it."""

    def read(
        self, contexts: Sequence[Sequence[int]], features: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, "features tokens"]]:
        """Give for each context the activations of the features asked about it, `[features, tokens]`, undivided."""
        found = [np.zeros((len(asked), len(ids)), np.float32) for ids, asked in zip(contexts, features)]
        front = [] if self.begin is None else [self.begin]
        encoded = [Encoded(front + list(ids), []) for ids in contexts]
        with fast_matmul(), short_text_attention(self.model), torch.no_grad():
            for rows in self._batches(encoded):
                batch = pad(encoded, rows, device=self.model.device)
                acts_ND = read_batch({"side": self.model}, batch, [("side", self.site)], self.begin)["side", self.site]
                acts_NF = self.sae.encode(acts_ND)
                start = 0
                for row in rows:
                    is_read = np.array([token != self.begin for token in contexts[row]], bool)
                    stop = start + int(is_read.sum())
                    found[row][:, is_read] = acts_NF[start:stop, list(features[row])].T.float().cpu().numpy()
                    start = stop
        return found

    def _batches(self, encoded: Sequence[Encoded]) -> Iterator[list[int]]:
        """Give the contexts with something to read in batches of like length."""
        is_cpu = self.model.device.type == "cpu"
        limit = min(8192, max(1024, VALUES_AT_ONCE // self.model.config.hidden_size)) if is_cpu else 8192
        full = [row for row, text in enumerate(encoded) if any(token != self.begin for token in text.ids)]
        order = sorted(full, key=lambda row: (-len(encoded[row].ids), row))
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, limit // len(encoded[order[start]].ids))]
            yield rows
            start += len(rows)


@dataclass(frozen=True, eq=False)
class FeatureOracle:
    """Says what one feature does on any context; an `Oracle` of `parts.labellers.base`."""

    reader: SiteReader
    """Shared by all features of the site."""
    index: int
    """The feature."""
    maximum: float
    """Its maximum over all texts, by which activations are divided."""

    def __call__(self, contexts: Sequence[Sequence[int]]) -> list[Float[np.ndarray, " tokens"]]:
        """Give the feature's activation at every token of each context, divided by its maximum."""
        return _together(self.reader, [self], [contexts])[0]


def ask_all(
    evidence: Sequence[Evidence], contexts: Sequence[Sequence[Sequence[int]]]
) -> list[list[Float[np.ndarray, " tokens"]]]:
    """Ask the oracles of many features at once: all contexts of all features of a site share the model's passes.

    Args:
        evidence: features, each with an oracle.
        contexts: for each feature the contexts to read, each a list of token ids without the beginning-of-text token.

    Returns:
        For each feature and each of its contexts the activation at every token, divided by the feature's maximum over all
        texts; 0 at a beginning-of-text token.

    Raises:
        LensError: if a feature has no oracle.

    >>> first, second = ask_all(evidence[:2], [[[17, 4]], [[17, 4], [4]]])  # doctest: +SKIP
    """
    assert len(evidence) == len(contexts), (len(evidence), len(contexts))
    found: list[list[np.ndarray]] = [[] for _ in evidence]
    sites: dict[int, list[int]] = {}
    for row, one in enumerate(evidence):
        if one.oracle is None:
            raise LensError(f"There is no model to ask about {one.feature}: this evidence comes without an oracle.")
        if isinstance(one.oracle, FeatureOracle):
            sites.setdefault(id(one.oracle.reader), []).append(row)
        else:
            found[row] = list(one.oracle(contexts[row]))
    for rows in sites.values():
        oracles = [oracle for row in rows if isinstance(oracle := evidence[row].oracle, FeatureOracle)]
        for row, answers in zip(rows, _together(oracles[0].reader, oracles, [contexts[row] for row in rows])):
            found[row] = answers
    return found


def _together(
    reader: SiteReader, oracles: Sequence[FeatureOracle], contexts: Sequence[Sequence[Sequence[int]]]
) -> list[list[np.ndarray]]:
    """Run each different context once and hand every feature its rows."""
    asked: dict[tuple[int, ...], dict[int, int]] = {}
    for oracle, own in zip(oracles, contexts):
        for ids in own:
            features = asked.setdefault(tuple(ids), {})
            features.setdefault(oracle.index, len(features))
    read = dict(zip(asked, reader.read(list(asked), [list(features) for features in asked.values()])))
    return [
        [read[tuple(ids)][asked[tuple(ids)][oracle.index]] / np.float32(oracle.maximum) for ids in own]
        for oracle, own in zip(oracles, contexts)
    ]
