"""Held-out windows on which explanations are tried. What a feature does there stays here; the labeller sees tokens alone."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from lfp_lens.results.explain import Example
from lfp_lens.stages.explain.evidence import Feature
from lfp_lens.stages.explain.windows import Half

MIN_WINDOWS, MAX_WINDOWS = 4, 20
"""Held-out windows of each kind: fewer are no test, more only cost."""
MARKED_SHARE = 0.5
"""In fuzzing, a token is marked where the activation is at least this share of the window's peak."""


@dataclass(frozen=True, eq=False)
class Held:
    """What one feature is tried on, mixed; nothing where there are too few windows of one kind."""

    windows: tuple[Example, ...]
    """The windows, their activations blanked."""
    truth: Bool[np.ndarray, " windows"]
    """The right answer to each."""
    activations: tuple[Float[np.ndarray, " tokens"], ...]
    """What the feature does in each, divided by its maximum."""


NOTHING = Held((), np.zeros(0, bool), ())


def detection_trial(one: Feature, held: Half, seed: int) -> Held:
    """Give as many windows where the feature fires strongly as where it does not, half of these hard negatives where there are.

    A window fires if its peak reaches the feature's level. A silent window that holds one of the tokens the feature fires on
    most is a hard negative. Silent windows were drawn by how many of the explained features fire in them (`firing.hold_out`):
    they depend on which features are explained, not on random directions.
    """
    fires = one.own.fires.of(one.row)[:MAX_WINDOWS]
    decoys, quiet = one.own.decoys.of(one.row), one.own.quiet.of(one.row)
    n = min(len(fires), len({window for window, _ in decoys + quiet}))
    if n < MIN_WINDOWS:
        return NOTHING
    taken = {window for window, _ in decoys[: n // 2]}
    plain = [kept for kept in quiet if kept[0] not in taken][: n - len(taken)]
    known = {window for window, _ in plain}
    hard = [kept for kept in decoys if kept[0] not in known][: n - len(plain)]
    chosen = fires[:n] + hard + plain
    made = [(_blank(held, window, acts / one.maximum), is_true) for (window, acts), is_true in
            zip(chosen, [True] * n + [False] * n, strict=True)]  # fmt: skip
    return _mixed(one, made, seed)


def fuzzing_trial(one: Feature, held: Half, busy: Int[np.ndarray, " tokens"], seed: int) -> Held:
    """Give windows where the feature fires strongly: in one half its tokens are marked, in the other as many silent ones.

    Marked rightly are the tokens with at least half of the window's peak; wrongly, tokens below that and below the
    feature's level, drawn in proportion to how many of the explained features fire strongly there (`busy`, and one half):
    strong tokens are strong for many, and only which tokens are the feature's own is asked.
    """
    fires = one.own.fires.of(one.row)
    n = min(len(fires) // 2, MAX_WINDOWS)
    if n < MIN_WINDOWS:
        return NOTHING
    generator = _generator(one, seed, 1)
    made = []
    for is_true, kept in ((True, fires[:n]), (False, fires[n : 2 * n])):
        for at, (window, acts) in enumerate(kept):
            shown, activations = _blank(held, window, acts / one.maximum)
            marked = np.flatnonzero(activations >= MARKED_SHARE * activations.max())
            if not is_true:
                floor = min(MARKED_SHARE * activations.max(), one.level / one.maximum)
                silent = np.flatnonzero(activations < floor)
                if not len(silent):
                    continue
                like = fires[at][1]
                count = int((like >= MARKED_SHARE * like.max()).sum())
                low = int(held.window_starts[window])
                weights = busy[low + silent] + 0.5
                chosen = generator.choice(silent, min(count, len(silent)), replace=False, p=weights / weights.sum())
                marked = np.sort(chosen)
            made.append(((replace(shown, marked=tuple(marked.tolist())), activations), is_true))
    counts = [sum(is_true is kind for _, is_true in made) for kind in (True, False)]
    return _mixed(one, made, seed) if min(counts) >= MIN_WINDOWS else NOTHING


def _blank(held: Half, window: int, acts: np.ndarray) -> tuple[Example, np.ndarray]:
    shown = held.example(window, acts, "top")
    return replace(shown, activations=np.zeros_like(shown.activations)), shown.activations


def _mixed(one: Feature, made: list[tuple[tuple[Example, np.ndarray], bool]], seed: int) -> Held:
    order = _generator(one, seed, 0).permutation(len(made))
    return Held(
        tuple(made[at][0][0] for at in order),
        np.array([made[at][1] for at in order], bool),
        tuple(made[at][0][1] for at in order),
    )


def _generator(one: Feature, seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(one.own.record.site.encode()), one.index, stream))
