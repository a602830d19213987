"""A trie as one line: the tokens a feature fires on, the ones they must follow in brackets, as in `wonderful | (not) good`."""

from collections.abc import Callable, Mapping

import numpy as np

from lfp_lens.core.token_trie import ANY, TokenTrie
from lfp_lens.parts.labellers.graph.levels import Seen

Spell = Callable[[int], str]
MAX_TOKENS, MAX_BEFORE, MAX_LENGTH = 6, 4, 20
"""Tokens named, tokens named before each, and characters of one that are shown."""
PRIOR = 10
"""Tokens without activation that are added to every token, so that one seen once does not win by luck."""
SHARE_OF_TOP = 0.25
"""A token is named if it fires at least this share as strongly as the first."""
COVERED, HALF = 0.6, 0.5
"""Brackets hold the tokens after which a token fires, mostly silent otherwise, if so much of its firing is there."""
NOTHING = "nothing that recurs"


def pattern_text(trie: TokenTrie, seen: Seen, spelling: Mapping[int, str]) -> str:
    """Give the trie as a line of at most 6 alternatives, the one that explains most first."""
    ids_N, before_N = seen.corpus.before_ND[:, 0], seen.corpus.before_ND[:, 1]
    is_text_N = seen.is_text_W[seen.corpus.window_N]
    mass_N = np.where((seen.acts_N >= seen.level) & is_text_N, seen.acts_N, 0.0)
    total = np.bincount(ids_N, weights=mass_N)
    strength = total / (np.bincount(ids_N, weights=is_text_N.astype(float)) + PRIOR)
    order = np.argsort(-strength, kind="stable")[: 2 * MAX_TOKENS]
    floor = max(SHARE_OF_TOP * float(strength.max(initial=0.0)), 1e-12)
    named = [token for token in order.tolist() if strength[token] >= floor]
    starts_words = any(text.startswith(" ") for text in spelling.values())

    def spelt(token: int) -> str:
        return _spelt(spelling.get(token, f"#{token}"), starts_words)

    def alternative(token: int) -> str:
        place = trie.children[0].get(token)
        if place is None:
            return spelt(token)
        rows = np.flatnonzero((ids_N == token) & (before_N >= 0))
        after = np.bincount(before_N[rows], weights=mass_N[rows])
        return _in_context(trie, place, spelt, after / max(float(total[token]), 1e-12))

    alternatives = list(dict.fromkeys(alternative(token) for token in named))
    return " | ".join(alternatives[:MAX_TOKENS]) or NOTHING


def _in_context(trie: TokenTrie, place: int, spelt: Spell, share_after: np.ndarray) -> str:
    """Spell a token with what it must follow, or must not."""
    node, below = trie.nodes[place], trie.children[place]
    text = spelt(node.token)
    gap = _gap(trie, place, spelt)
    if node.strong < HALF and gap:
        return f"({gap} ...) {text}"
    least = max(HALF, node.strong)
    strong = [token for token, child in below.items() if token != ANY and trie.nodes[child].strong > least]
    strong.sort(key=lambda token: -_at(share_after, token))
    strong = strong[:MAX_BEFORE]
    if node.strong < HALF and sum(_at(share_after, token) for token in strong) >= COVERED:
        return f"({'|'.join(dict.fromkeys(map(spelt, strong)))}) {text}"
    weak = [token for token, child in below.items() if token != ANY and trie.nodes[child].strong < node.strong / 2]
    if node.strong >= HALF and weak:
        weak.sort(key=lambda token: trie.nodes[below[token]].strong)
        return f"{text} unless after ({'|'.join(dict.fromkeys(map(spelt, weak[:MAX_BEFORE])))})"
    return text


def _gap(trie: TokenTrie, place: int, spelt: Spell) -> str:
    """Spell the tokens further back that a token must follow, whatever stands between."""
    ends, found = [place], []
    while ends:
        at = ends.pop()
        for token, child in trie.children[at].items():
            if token == ANY:
                ends.append(child)
            elif at != place and trie.nodes[child].strong >= HALF:
                found.append(spelt(token))
    return "|".join(dict.fromkeys(found[:MAX_BEFORE]))


def _at(shares: np.ndarray, token: int) -> float:
    return float(shares[token]) if token < len(shares) else 0.0


def _spelt(text: str, starts_words: bool) -> str:
    shown = " ".join(text.split()) or {"\n": "line end", " ": "space"}.get(text[:1], "white space")
    is_rest = starts_words and text[:1].isalpha()
    return ("-" if is_rest else "") + (shown if len(shown) <= MAX_LENGTH else shown[:MAX_LENGTH] + "...")
