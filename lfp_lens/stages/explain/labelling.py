"""The labeller's part: explanations, second opinions and scores, as the fields of `Labels`."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lfp_lens.parts.labellers import Estimating, Evidence, Labeller
from lfp_lens.parts.labellers.chat_cost import questions_of
from lfp_lens.results.explain import Explanation
from lfp_lens.results.explain_scores import Agreement, Scores
from lfp_lens.stages.explain.asking import agreement, bill_of, bill_since, explanations
from lfp_lens.stages.explain.evidence import Feature, build_evidence
from lfp_lens.stages.explain.scoring import Tried, deranged, score_all
from lfp_lens.stages.explain.seeing import Plan, Seen
from lfp_lens.stages.explain.trials import detection_trial, fuzzing_trial

Said = list[Explanation | None]


def label(
    plan: Plan, seen: Seen, labeller: Labeller, judge: Labeller | None, task: str, n_examples: int,
    scores: Sequence[str], repeat: bool, bar: Any,
) -> dict[str, Any]:  # fmt: skip
    """Ask the labellers everything and give the fields of the result that come from it."""
    n, before = len(seen.alive), bill_of(labeller, judge)
    evidence = build_evidence(plan.pair, plan.side, seen.alive + seen.random, plan.shown, seen.words, n_examples)
    if isinstance(labeller, Estimating):
        labeller.foretell(questions_of(n, tuple(scores), len(seen.random), is_repeated=repeat), n_examples, task)
    said = explanations(labeller, evidence, task, bar)
    agreements = []
    if repeat:
        again = build_evidence(plan.pair, plan.side, seen.alive, plan.shown, seen.words, n_examples, part=1)
        agreements.append(_asked_again(labeller, again, said[:n], task, plan.seed, bar))
    if judge is not None:
        other = explanations(judge, evidence[:n], task, bar)
        agreements.append(agreement("judge", judge.name, said[:n], other, plan.seed))
    measured = score_all(labeller, scores, *_tried(plan, seen, said), bar)
    return _fields(seen, said[:n], evidence[:n], measured, agreements) | {
        "bill": bill_since(before, labeller, judge), "labeller": labeller.name
    }  # fmt: skip


def _asked_again(
    labeller: Labeller, evidence: Sequence[Evidence], first: Said, task: str, seed: int, bar: Any
) -> Agreement:
    """Ask the same labeller about windows that it was not shown; features without any are left out."""
    rows = [row for row, one in enumerate(evidence) if one.examples]
    second: Said = [None] * len(evidence)
    for row, said in zip(rows, explanations(labeller, [evidence[row] for row in rows], task, bar)):
        second[row] = said
    return agreement("repeat", labeller.name, first, second, seed)


def _tried(plan: Plan, seen: Seen, said: Said) -> tuple[list[Tried], list[Tried]]:
    """Put explanations beside held-out windows; those of the features change places for the control."""
    n = len(seen.alive)
    answered = [row for row in range(n) if said[row] is not None]
    others = {answered[row]: said[answered[other]] for row, other in enumerate(deranged(len(answered), plan.seed))}

    def tried(row: int, one: Feature) -> Tried:
        trials = detection_trial(one, plan.held, plan.seed), fuzzing_trial(one, plan.held, seen.busy, plan.seed)
        return Tried(one.name, said[row], others.get(row), *trials)

    made = list(itertools.starmap(tried, enumerate(seen.alive + seen.random)))
    return made[:n], made[n:]


def _fields(
    seen: Seen, said: Said, evidence: Sequence[Evidence], measured: Sequence[Scores], agreements: Sequence[Agreement]
) -> dict[str, Any]:
    """Give the fields with one value per listed feature; dead ones have nothing."""
    row_of = np.cumsum([one.is_alive for one in seen.listed]) - 1
    rows = [int(row) if one.is_alive else None for one, row in zip(seen.listed, row_of)]
    spoken = [None if row is None else said[row] for row in rows]
    shown = [None if row is None else evidence[row] for row in rows]
    return {
        "site": tuple(one.site for one in seen.listed), "index": np.array([one.index for one in seen.listed], int),
        "status": tuple("dead" if row is None else "unanswered" if said[row] is None else "labelled" for row in rows),
        "description": tuple("" if one is None else one.description for one in spoken),
        "is_relevant": np.array([one is not None and one.is_relevant for one in spoken], bool),
        "confidence": np.array([np.nan if one is None else one.confidence for one in spoken], float),
        "pattern": tuple("" if one is None else one.pattern for one in spoken),
        "examples": tuple(() if one is None else one.examples + one.silent for one in shown),
        "tokens": tuple(() if one is None else one.tokens for one in shown),
        "promotes": tuple(() if one is None else one.promotes for one in shown),
        "suppresses": tuple(() if one is None else one.suppresses for one in shown),
        "scores": tuple(_spread(one, rows) for one in measured),
        "agreement": tuple(_spread_agreement(one, rows) for one in agreements),
    }  # fmt: skip


def _spread(scores: Scores, rows: Sequence[int | None]) -> Scores:
    """Give scores of the features that fire as scores of all that are listed."""
    own = np.array([np.nan if row is None else scores.own[row] for row in rows], float)
    shuffled = np.array([np.nan if row is None else scores.shuffled[row] for row in rows], float)
    n = np.array([0 if row is None else scores.n[row] for row in rows], int)
    return Scores(scores.kind, own, shuffled, scores.random, n)


def _spread_agreement(one: Agreement, rows: Sequence[int | None]) -> Agreement:
    """Give an agreement with a row for all features that are listed; dead ones were not asked about."""
    said, is_judged = (
        np.array([row is not None and values[row] for row in rows], bool) for values in (one.is_relevant, one.is_judged)
    )
    return replace(one, is_relevant=said, is_judged=is_judged)
