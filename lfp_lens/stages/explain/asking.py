"""Asking labellers: explanations, a second opinion on relevance, and the bill."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats.kappa import cohen_kappa
from lfp_lens.parts.labellers import Evidence, Labeller
from lfp_lens.results.explain import Explanation
from lfp_lens.results.explain_scores import Agreement, Bill
from lfp_lens.stages.explain.scoring import each


def explanations(labeller: Labeller, evidence: Sequence[Evidence], task: str, bar: Any) -> list[Explanation | None]:
    """Ask for every feature's explanation; None where no usable answer came. Raises `LensError` for anything else."""
    found = list(each(labeller, labeller.explain(evidence, task), len(evidence), bar))
    for one, asked in zip(found, evidence):
        if one is not None and not isinstance(one, Explanation):
            raise LensError(
                f"The labeller {labeller.name} gave a {type(one).__name__} about {asked.feature}: it must give an "
                "lfp_lens.results.explain.Explanation, or None."
            )
    return found


def agreement(
    kind: str, by: str, first: Sequence[Explanation | None], second: Sequence[Explanation | None], seed: int
) -> Agreement:
    """Compare what two judgements say is relevant, over the features on which both said something."""
    is_judged = np.array([one is not None and other is not None for one, other in zip(first, second)], bool)
    said = [np.array([one is not None and one.is_relevant for one in side], bool) for side in (first, second)]
    left, right = said[0][is_judged], said[1][is_judged]
    share = float((left == right).mean()) if len(left) else float("nan")
    return Agreement(kind, by, said[1] & is_judged, is_judged, share, cohen_kappa(left, right, seed=seed))


def bill_of(*labellers: Any) -> Bill:
    """Give what all labellers were asked and paid together, each object once; nothing for those that ask nobody."""
    total = Bill()
    for one in {id(one): one for one in labellers}.values():
        bill = getattr(one, "bill", None)
        if isinstance(bill, Bill):
            total = replace(_each(operator.add, total, bill), ledger=bill.ledger or total.ledger)
    return total


def bill_since(before: Bill, *labellers: Any) -> Bill:
    """Give what was asked and paid since `before`: an object may have been used, and paid, earlier."""
    return _each(operator.sub, bill_of(*labellers), before)


def _each(combine: Callable[[Any, Any], Any], one: Bill, other: Bill) -> Bill:
    """Combine the numbers of two bills; None where either is unknown. The ledger is that of the first."""
    names = [field.name for field in fields(Bill) if field.name != "ledger"]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    found: dict[str, Any] = {name: None if None in pair else combine(*pair) for name, pair in pairs.items()}
    return replace(one, **found)
