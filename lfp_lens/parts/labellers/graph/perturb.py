"""What the oracle says about a feature's strongest contexts: how much of each is needed, and which of its tokens matter.

Contexts of all features are asked about together, in two rounds: the suffixes of each context, then its shortest suffix that
keeps half of the activation with one token replaced at a time. Substitutes are drawn from the feature's own silent windows and
the background: ordinary tokens of the same texts, with no second model to propose them (`docs/decisions/graph-labeller.md`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lfp_lens.core.token_trie import ANY
from lfp_lens.parts.labellers.base import Evidence
from lfp_lens.parts.labellers.graph.corpus import REACH
from lfp_lens.parts.labellers.oracle import ask_all

CONTEXTS = 8
"""Strongest contexts that are pruned and perturbed, each with other last two tokens."""
LENGTHS = (1, 2, 3, 4, 6, REACH)
"""Suffix lengths that are tried."""
KEEPS = 0.5
"""A suffix keeps the activation, and a token does not matter, if this share is left without the rest."""
FILLERS, SUBSTITUTES = 4, 8
"""Ordinary tokens put in the place of each token before the last, and in place of the last one."""

DRAWN = 1000
"""Ordinary tokens drawn, of which those that differ are put in turn."""

Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Perturbed:
    """What one feature does on contexts that no text holds."""

    contexts: tuple[Ids, ...]
    """Token ids of each."""
    acts: tuple[float, ...]
    """Its activation at the last token of each."""
    gaps: tuple[Ids, ...]
    """Suffixes, last token first, with `ANY` for tokens that do not matter; only those that have such a gap."""


def perturbed(evidence: Sequence[Evidence]) -> list[Perturbed]:
    """Prune and perturb the strongest contexts of features that have an oracle."""
    contexts = [_strongest(one) for one in evidence]
    suffixes = [[[context[-n:] for n in LENGTHS if n <= len(context)] for context in own] for own in contexts]
    asked = [[suffix for one in own for suffix in one] for own in suffixes]
    pruned, rows = [], []
    for own, contexts_of, acts in zip(suffixes, asked, _last(evidence, asked)):
        found = dict(zip(contexts_of, acts))
        pruned.append(list(dict.fromkeys(_shortest(one, found) for one in own)))
        rows.append(list(found.items()))
    changes = [_changes(own, fillers) for own, fillers in zip(pruned, _fillers(evidence))]
    answers = _last(evidence, [[changed for *_, changed in own] for own in changes])
    return [
        Perturbed(*_columns(seen + [(changed, act) for (*_, changed), act in zip(own, acts)]), _gaps(seen, own, acts))
        for seen, own, acts in zip(rows, changes, answers)
    ]


def _strongest(one: Evidence) -> list[Ids]:
    """Give the contexts up to the peaks of the strongest windows, one for each last pair of tokens."""
    found: dict[Ids, Ids] = {}
    for example in sorted(one.examples, key=lambda example: -float(example.activations.max(initial=0.0))):
        if example.ids and example.activations.max() > 0:
            ids = example.ids[max(0, example.peak + 1 - REACH) : example.peak + 1]
            found.setdefault(ids[-2:], ids)
    return list(found.values())[:CONTEXTS]


def _last(evidence: Sequence[Evidence], contexts: Sequence[Sequence[Ids]]) -> list[list[float]]:
    return [[float(acts[-1]) for acts in own] for own in ask_all(evidence, contexts)]


def _shortest(suffixes: Sequence[Ids], acts: dict[Ids, float]) -> Ids:
    enough = KEEPS * acts[suffixes[-1]]
    return next(suffix for suffix in suffixes if acts[suffix] >= enough)


def _changes(pruned: Sequence[Ids], fillers: Sequence[int]) -> list[tuple[Ids, int, Ids]]:
    """Give (suffix, how far back a token is replaced, the changed suffix)."""
    found, drawn = [], 0
    for suffix in pruned:
        for back in range(len(suffix)):
            at = len(suffix) - 1 - back
            for _ in range(FILLERS if back else SUBSTITUTES):
                token = fillers[drawn % len(fillers)]
                drawn += 1
                if token != suffix[at]:
                    found.append((suffix, back, (*suffix[:at], token, *suffix[at + 1 :])))
    return found


def _fillers(evidence: Sequence[Evidence]) -> list[list[int]]:
    """Give each feature ordinary tokens, drawn as often as its background or else its silent windows hold them."""
    known: dict[int, list[int]] = {}
    found = []
    for one in evidence:
        if id(one.background) not in known or not one.background:
            windows = one.background or tuple(example.ids for example in (*one.silent, *one.examples))
            ids = np.concatenate([np.zeros(0, int), *(np.asarray(window, int) for window in windows)])
            drawn = np.random.default_rng(0).choice(ids, DRAWN).tolist() if len(ids) else []
            known[id(one.background)] = list(dict.fromkeys(drawn))
        found.append(known[id(one.background)])
    return found


def _gaps(
    seen: Sequence[tuple[Ids, float]], changes: Sequence[tuple[Ids, int, Ids]], acts: Sequence[float]
) -> tuple[Ids, ...]:
    whole, left = dict(seen), dict[Ids, dict[int, list[float]]]()
    for (suffix, back, _), act in zip(changes, acts):
        left.setdefault(suffix, {}).setdefault(back, []).append(act)
    found = []
    for suffix, by_back in left.items():
        matters = {back for back, own in by_back.items() if np.mean(own) < KEEPS * whole[suffix]} | {0}
        path = tuple(suffix[-1 - back] if back in matters else ANY for back in range(max(matters) + 1))
        if ANY in path:
            found.append(path)
    return tuple(dict.fromkeys(found))


def _columns(rows: Sequence[tuple[Ids, float]]) -> tuple[tuple[Ids, ...], tuple[float, ...]]:
    kept = dict(rows)
    return tuple(kept), tuple(kept.values())
