"""A trie over token ids, read backwards from each token, that predicts a feature's activation there (no torch).

A node stands for a suffix: the root for any, its child 17 for "token 17 here", that child's child 4 for "token 17 here and
token 4 before it"; `ANY` matches every token. What counts at a token is the longest suffix that matches, and of two as long the
one that names more tokens. As JSON it travels with an explanation; that text is not trusted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError

ANY = -1
MAX_NODES, MAX_DEPTH, MAX_TEXT = 4000, 16, 40
MAX_ID = 2**31


@dataclass(frozen=True)
class Node:
    """One suffix and what the feature does where a text's tokens so far end in it."""

    parent: int
    """Place of the node that stands for one token fewer; -1 for the root, which is the first node."""
    token: int
    """The token that it adds, further back than its parent's; `ANY` for whichever."""
    mean: float
    """Activation to expect, as a share of the feature's maximum, 0 to 1."""
    strong: float
    """Share of such places where it fires strongly, 0 to 1."""


@dataclass(frozen=True)
class TokenTrie:
    """Predicts one feature's activations from tokens alone."""

    nodes: tuple[Node, ...]
    """The root first, each node after its parent."""
    fires: float
    """A window fires if `strong` is at least this at one of its tokens."""
    holds: float
    """Marked tokens are where the feature fires if `mean` is at least this over them."""
    texts: Mapping[int, str]
    """How the tokens of the nodes are spelt."""

    def mean(self, ids: Sequence[int]) -> Float[np.ndarray, " tokens"]:
        """Give the activation expected at every token, 0 to 1."""
        return np.array([self.nodes[place].mean for place in self.places(ids)], np.float32)

    def strong(self, ids: Sequence[int]) -> Float[np.ndarray, " tokens"]:
        """Give how likely it is at every token that the feature fires strongly there, 0 to 1."""
        return np.array([self.nodes[place].strong for place in self.places(ids)], np.float32)

    def places(self, ids: Sequence[int]) -> list[int]:
        """Give for every token the node that counts there."""
        return [self._best(ids, at) for at in range(len(ids))]

    @cached_property
    def children(self) -> tuple[dict[int, int], ...]:
        """Token -> child, for every node."""
        found: tuple[dict[int, int], ...] = tuple({} for _ in self.nodes)
        for place, node in enumerate(self.nodes[1:], start=1):
            found[node.parent][node.token] = place
        return found

    def _best(self, ids: Sequence[int], at: int) -> int:
        best = (0, 0, 0)
        open_ends = [best]
        while open_ends:
            depth, named, place = open_ends.pop()
            best = max(best, (depth, named, place))
            below = self.children[place]
            if not below or depth > at:
                continue
            token = ids[at - depth]
            for wanted, gain in ((ANY, 0), (token, 1)):
                if wanted in below:
                    open_ends.append((depth + 1, named + gain, below[wanted]))
        return best[2]

    def to_json(self) -> str:
        """Give the trie as JSON: nodes as [parent, token, mean, strong], the last two in thousandths."""
        nodes = [[node.parent, node.token, round(1000 * node.mean), round(1000 * node.strong)] for node in self.nodes]
        texts = {str(token): text[:MAX_TEXT] for token, text in self.texts.items()}
        packed = {"fires": round(self.fires, 4), "holds": round(self.holds, 4), "nodes": nodes, "texts": texts}
        return json.dumps(packed, separators=(",", ":"))


@lru_cache(maxsize=256)
def read_trie(pattern: str) -> TokenTrie:
    """Read what `TokenTrie.to_json` wrote. Raises `LensError` for anything else."""
    try:
        packed = json.loads(pattern)
        trie = TokenTrie(
            tuple(_node(place, row) for place, row in enumerate(packed["nodes"])),
            _number(packed["fires"]), _number(packed["holds"]),
            {_whole(int(token), 0, MAX_ID): _text(text) for token, text in packed["texts"].items()},
        )  # fmt: skip
        if not 1 <= len(trie.nodes) <= MAX_NODES or len(trie.texts) > MAX_NODES:
            raise ValueError(f"{len(trie.nodes)} nodes")
        depths = [0]
        for node in trie.nodes[1:]:
            depths.append(depths[node.parent] + 1)
        if max(depths) > MAX_DEPTH:
            raise ValueError(f"{max(depths)} levels")
        if sum(map(len, trie.children)) != len(trie.nodes) - 1:
            raise ValueError("a suffix that comes twice")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LensError(
            f"The pattern {pattern[:60]!r} is not the JSON of a token trie ({type(error).__name__}: {error}). Only what the "
            "labeller 'graph' wrote can be read; explain the feature again."
        ) from error
    return trie


def _node(place: int, row: Any) -> Node:
    parent, token, mean, strong = row
    if place == 0:
        return Node(_whole(parent, -1, 0), _whole(token, ANY, 0), _share(mean), _share(strong))
    return Node(_whole(parent, 0, place), _whole(token, ANY, MAX_ID), _share(mean), _share(strong))


def _whole(value: Any, low: int, stop: int) -> int:
    if type(value) is not int or not low <= value < stop:
        raise ValueError(f"{value!r} is not a whole number from {low} to {stop - 1}")
    return value


def _share(thousandths: Any) -> float:
    return _whole(thousandths, 0, 1001) / 1000


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not np.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError("a text that is none or too long")
    return value
