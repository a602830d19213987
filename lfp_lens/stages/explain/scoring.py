"""Scores of explanations on held-out windows, each beside a shuffled explanation and random features."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.parts.labellers import Labeller, Simulator, Trial
from lfp_lens.results.explain import Explanation
from lfp_lens.results.explain_scores import Scores
from lfp_lens.stages.explain.trials import Held

SCORES = ("detection", "fuzzing", "simulation")


@dataclass(frozen=True, eq=False)
class Tried:
    """One feature with its explanation and its held-out windows."""

    name: str
    """Of the feature."""
    explanation: Explanation | None
    """Its own; None where the labeller gave none."""
    other: Explanation | None
    """Another feature's: the control; None where there is none."""
    detection: Held
    """Windows for detection and simulation."""
    fuzzing: Held
    """Windows with marked tokens."""


def score_all(
    labeller: Labeller, kinds: Sequence[str], features: Sequence[Tried], random: Sequence[Tried], bar: Any
) -> list[Scores]:
    """Score every feature's own and another one's explanation, and the random features' own.

    Simulation is measured for labellers that can simulate, and left out for the others.
    """
    for kind in kinds:
        if kind not in SCORES:
            raise unknown("score", kind, SCORES)
    ask: dict[str, Callable[[Sequence[Trial]], Iterable[Any]]] = {
        "detection": labeller.detect,
        "fuzzing": labeller.fuzz,
    }
    if isinstance(labeller, Simulator):
        ask["simulation"] = labeller.simulate
    return [
        _score(labeller, kind, ask[kind], features, random, bar) for kind in SCORES if kind in kinds and kind in ask
    ]


def deranged(n: int, seed: int) -> list[int]:
    """Give a drawn order in which nothing keeps its place: one cycle through all; empty for a single thing."""
    if n < 2:
        return []
    order = np.random.default_rng((seed, 1)).permutation(n)
    found = np.empty(n, int)
    found[order] = np.roll(order, 1)
    return found.tolist()


def _score(
    labeller: Labeller, kind: str, ask: Callable[[Sequence[Trial]], Iterable[Any]], features: Sequence[Tried],
    random: Sequence[Tried], bar: Any,
) -> Scores:  # fmt: skip
    asked: list[tuple[str, int, Held]] = []
    trials: list[Trial] = []
    for column, group in (("own", features), ("shuffled", features), ("random", random)):
        for row, one in enumerate(group):
            held = one.fuzzing if kind == "fuzzing" else one.detection
            said = one.other if column == "shuffled" else one.explanation
            if said is not None and held.windows:
                asked.append((column, row, held))
                trials.append(Trial(one.name, said, held.windows))
    found = {name: np.full(len(group), np.nan) for name, group in
             (("own", features), ("shuffled", features), ("random", random))}  # fmt: skip
    n = np.zeros(len(features), int)
    judge = correlation if kind == "simulation" else balanced_accuracy
    for (column, row, held), answer in zip(asked, each(labeller, ask(trials), len(trials), bar)):
        if answer is None:
            continue
        if len(answer) != len(held.windows):
            raise LensError(
                f"The labeller {labeller.name} gave {len(answer)} answers about {len(held.windows)} windows ({kind} of "
                f"{(features if column != 'random' else random)[row].name}): it must give one for each."
            )
        found[column][row] = judge(answer, held)
        if column == "own":
            n[row] = len(held.windows)
    return Scores(kind, found["own"], found["shuffled"], found["random"], n)


def each(labeller: Labeller, answers: Iterable[Any], n: int, bar: Any) -> Iterable[Any]:
    """Give a labeller's answers as they come. Raises `LensError` unless there are as many as questions."""
    given = 0
    for answer in answers:
        given += 1
        bar.update()
        yield answer
    if given != n:
        raise LensError(
            f"The labeller {labeller.name} gave {given} answers to {n} questions: it must give one for each."
        )


def balanced_accuracy(said: Sequence[bool], held: Held) -> float:
    """Give the mean of the shares of true and of false windows that were told right; 0.5 is chance."""
    given = np.asarray(said, bool)
    return float((given[held.truth].mean() + (~given[~held.truth]).mean()) / 2)


def correlation(predicted: Sequence[Float[np.ndarray, " tokens"]], held: Held) -> float:
    """Give Pearson's correlation with the activations over all tokens of the windows; 0 for predictions that never vary.

    The correlation score of Bills et al. (2023).
    """
    for given, shown in zip(predicted, held.activations):
        if np.shape(given) != shown.shape:
            raise LensError(
                f"A simulation gives one number per token: {np.shape(given)} given for {len(shown)} tokens."
            )
    said, truth = np.concatenate([np.asarray(one, float) for one in predicted]), np.concatenate(held.activations)
    if said.std() == 0 or truth.std() == 0:
        return 0.0
    return float(np.corrcoef(said, truth)[0, 1])
