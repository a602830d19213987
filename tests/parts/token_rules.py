"""Features that follow a rule over tokens, with their windows, held-out windows and an oracle that knows the rule."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lfp_lens.parts.labellers.base import Evidence, Trial
from lfp_lens.results.explain import Example, Explanation

A, B, C = 1, 2, 3
N_TOKENS, LENGTH = 60, 32
SPELLING = {token: f" w{token}" for token in range(N_TOKENS)} | {A: " good", B: " not", C: " fine"}
Rule = Callable[[Sequence[int]], np.ndarray]


def one_token(ids: Sequence[int]) -> np.ndarray:
    return (np.asarray(ids) == A).astype(np.float32)


def one_of_three(ids: Sequence[int]) -> np.ndarray:
    return np.isin(ids, (A, B, C)) * np.where(np.asarray(ids) == C, 0.8, 1.0).astype(np.float32)


def only_after(ids: Sequence[int]) -> np.ndarray:
    return one_token(ids) * np.isin([-1, *ids[:-1]], B)


def unless_after(ids: Sequence[int]) -> np.ndarray:
    return one_token(ids) * ~np.isin([-1, *ids[:-1]], B)


def after_with_a_gap(ids: Sequence[int]) -> np.ndarray:
    return one_token(ids) * np.isin([-1, -1, *ids[:-2]][: len(ids)], B)


def texts(n: int, seed: int) -> list[tuple[int, ...]]:
    """Windows of ordinary tokens, in which the tokens of the rules stand alone, in a row and with a gap."""
    generator = np.random.default_rng(seed)
    found = []
    for row in generator.integers(4, N_TOKENS, (n, LENGTH)):
        for piece in ([A], [B], [C], [B, A], [B, int(row[0]), A], [C, A]):
            if generator.random() < 0.2:
                at = int(generator.integers(0, LENGTH - len(piece)))
                row[at : at + len(piece)] = piece
        found.append(tuple(row.tolist()))
    return found


def window(ids: Sequence[int], rule: Rule, kind: str = "top") -> Example:
    return Example(tuple(SPELLING[token] for token in ids), rule(ids), tuple(ids), kind)


def evidence(rule: Rule, *, seed: int = 0, background: int = 200, oracle: bool = True, n: int = 20) -> Evidence:
    """What the shown texts say about a feature that follows the rule: 20 windows where it fires and 20 where it does not."""
    held = texts(1000, seed)
    fires = [ids for ids in held if rule(ids).max() > 0]
    silent = [ids for ids in held if rule(ids).max() == 0]
    hard = [ids for ids in silent if {A, B, C} & set(ids)]
    shown = [window(ids, rule, "silent") for ids in silent[: n // 2]]
    shown += [window(ids, rule, "hard negative") for ids in hard[-n // 2 :]]
    words = tuple(text.strip() for text in SPELLING.values())
    ids, acts = np.concatenate(held), np.concatenate([rule(ids) for ids in held])
    return Evidence(
        "blocks.1.hook_mlp_out 0", tuple(window(ids, rule) for ids in fires[:n]), tuple(shown), words,
        np.bincount(ids, weights=acts, minlength=N_TOKENS), np.bincount(ids, minlength=N_TOKENS), level=0.7,
        background=tuple(texts(background, seed + 1)), spelling=SPELLING,
        oracle=(lambda contexts: [rule(ids) for ids in contexts]) if oracle else None,
    )  # fmt: skip


def trial(rule: Rule, explanation: Explanation, *, seed: int = 100) -> tuple[Trial, np.ndarray]:
    """Held-out windows, as many where the rule fires as where it does not, half of these with tokens of the rule; and which."""
    held = texts(1500, seed)
    fires = [ids for ids in held if rule(ids).max() > 0][:60]
    silent = [ids for ids in held if rule(ids).max() == 0]
    hard = [ids for ids in silent if {A, B, C} & set(ids)][:30]
    easy = [ids for ids in silent if not {A, B, C} & set(ids)][:30]
    windows = tuple(window(ids, rule) for ids in fires + hard + easy)
    return Trial("0", explanation, windows), np.arange(len(windows)) < len(fires)


def marked(one: Trial, is_true: np.ndarray) -> Trial:
    """The same windows with the tokens at or above half the peak marked, or as many others where the feature is silent."""
    generator, found = np.random.default_rng(0), []
    for example, fires in zip(one.windows, is_true):
        strong = np.flatnonzero(example.activations >= example.activations.max() / 2) if fires else []
        places = strong if fires else generator.choice(np.flatnonzero(example.activations == 0), 1)
        found.append(replace(example, marked=tuple(int(place) for place in places)))
    return replace(one, windows=tuple(found))


def balanced_accuracy(said: Sequence[bool], is_true: np.ndarray) -> float:
    given = np.asarray(said, bool)
    return float((given[is_true].mean() + (~given[~is_true]).mean()) / 2)
