"""What the labeller is shown of each feature, from what was kept of the shown half."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lfp_lens.parts.labellers import Evidence
from lfp_lens.parts.labellers.oracle import FeatureOracle, SiteReader
from lfp_lens.parts.logit_lens import SHOWN, promoted, spelled
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.stages.explain.firing import Watched
from lfp_lens.stages.explain.windows import Half, Words

BACKGROUND = 2048
"""Windows of the shown texts that stand for ordinary text, the same for every feature."""
Kept = list[tuple[int, np.ndarray]]
"""(window, activations) of windows."""


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature that fires."""

    name: str
    """Site and index, or `random` and a number."""
    own: Watched
    """What was kept of its dictionary."""
    row: int
    """Its place there."""

    @property
    def index(self) -> int:
        """Its index in the dictionary."""
        return int(self.own.features[self.row])

    @property
    def maximum(self) -> float:
        """Its largest activation on any text."""
        return float(self.own.maximum_F[self.row])

    @property
    def level(self) -> float:
        """The activation from which it fires strongly."""
        return float(self.own.level_F[self.row])


def build_evidence(
    pair: Pair, side: str, features: Sequence[Feature], shown: Half, words: Words, n_examples: int, *, part: int = 0
) -> list[Evidence]:
    """Give every feature's evidence; `part` 1 takes other windows than `part` 0, for asking again."""
    lens = _lenses(pair, side, features)
    readers = _readers(pair, side, features)
    background = tuple(shown.window_ids(window) for window in shown.drawn(BACKGROUND).tolist())
    known = np.unique(shown.ids).tolist()
    spelling = dict(zip(known, spelled(pair.tokenizer, known)))
    made = [
        _evidence(pair, one, shown, words, n_examples, part, lens[one.name], readers[id(one.own)]) for one in features
    ]
    return [replace(one, background=background, spelling=spelling) for one in made]


def _evidence(
    pair: Pair, one: Feature, shown: Half, words: Words, n_examples: int, part: int,
    lens: tuple[tuple[str, ...], tuple[str, ...]], reader: SiteReader,
) -> Evidence:  # fmt: skip
    own, row, maximum = one.own, one.row, one.maximum
    firing, silent = pick(own, row, n_examples, part)
    places, values = own.strongest.of(row)
    return Evidence(
        feature=one.name,
        examples=tuple(shown.example(window, acts / maximum, kind) for kind, window, acts in firing),
        silent=tuple(shown.example(window, acts / maximum, kind) for kind, window, acts in silent),
        words=words.vocabulary, total=words.total(places, values / maximum), count=words.count,
        tokens=spelled(pair.tokenizer, own.tokens[row][:SHOWN].tolist()), promotes=lens[0], suppresses=lens[1],
        level=one.level / maximum, oracle=FeatureOracle(reader, one.index, maximum),
    )  # fmt: skip


def pick(
    own: Watched, row: int, n_examples: int, part: int = 0
) -> tuple[list[tuple[str, int, np.ndarray]], list[tuple[str, int, np.ndarray]]]:
    """Choose (kind, window, activations) to show: half the strongest and half of every quantile, and half as many silent ones.

    Half of the silent windows hold one of the tokens that the feature fires on most, as far as there are such. `part` 1
    chooses among the windows that `part` 0 leaves.
    """
    n_top, n_silent = n_strongest(n_examples), n_silent_of(n_examples)
    used: set[int] = set()
    firing: list[tuple[str, int, np.ndarray]] = []
    silent: list[tuple[str, int, np.ndarray]] = []
    for _ in range(part + 1):
        top = _fresh(own.top.of(row), used)[:n_top]
        rest = _fresh(own.sample.of(row), used | {window for window, _ in top})
        middling = _quantiles(rest, n_examples - n_top)
        firing = [("top", *one) for one in top] + [("quantile", *one) for one in middling]
        used |= {window for _, window, _ in firing}
        hard = _fresh(own.hard.of(row), used)[: n_silent // 2]
        plain = _fresh(own.silent.of(row), used | {window for window, _ in hard})[: n_silent - len(hard)]
        silent = [("silent", *one) for one in plain] + [("hard negative", *one) for one in hard]
        used |= {window for _, window, _ in silent}
    return firing, silent


def n_strongest(n_examples: int) -> int:
    """Give how many of the windows shown are the strongest."""
    return -(-n_examples // 2)


def n_silent_of(n_examples: int) -> int:
    """Give how many silent windows are shown beside."""
    return max(1, n_examples // 2)


def _fresh(kept: Kept, used: set[int]) -> Kept:
    return [one for one in kept if one[0] not in used]


def _quantiles(kept: Kept, n: int) -> Kept:
    """Give `n` windows at evenly spaced ranks of the peak."""
    ranked = sorted(kept, key=lambda one: -one[1].max())
    n = min(n, len(ranked))
    return [ranked[(place + 1) * len(ranked) // (n + 1)] for place in range(n)]


def _lenses(
    pair: Pair, side: str, features: Sequence[Feature]
) -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for own, group in _by_dictionary(features):
        rows_FD = torch.from_numpy(own.record.weights.tensors["W_dec"][[one.index for one in group]])
        found.update(
            zip([one.name for one in group], promoted(pair.hf(side), pair.tokenizer, own.record.site, rows_FD))
        )
    return found


def _readers(pair: Pair, side: str, features: Sequence[Feature]) -> dict[int, SiteReader]:
    """Give one reader per dictionary, shared by the oracles of its features."""
    begin = pair.tokenizer.bos_token_id
    return {
        id(own): SiteReader(pair.hf(side), load_sae(own.record, device=pair.device), own.record.site, begin)
        for own, _ in _by_dictionary(features)
    }


def _by_dictionary(features: Sequence[Feature]) -> list[tuple[Watched, list[Feature]]]:
    groups: dict[int, tuple[Watched, list[Feature]]] = {}
    for one in features:
        groups.setdefault(id(one.own), (one.own, []))[1].append(one)
    return list(groups.values())
