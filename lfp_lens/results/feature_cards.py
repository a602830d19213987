"""The card of a feature: what a labeller says of it, how far that holds, and where the feature fires."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import LensError
from lfp_lens.results.label_tables import RELIABILITY
from lfp_lens.view.feature_card import Shown, activation_histogram, feature_card
from lfp_lens.view.page import number
from lfp_lens.view.tokens import token_html

if TYPE_CHECKING:
    from lfp_lens.results.explain import Example, Labels

NO_ANSWER = {
    "dead": "Dead: it never fires on the shown texts, so nobody was asked.",
    "unanswered": "Unanswered: the labeller gave no usable answer.",
}


def card(
    labels: "Labels", site: str, index: int, activations: Float[np.ndarray, " tokens"] | None = None, of: str = ""
) -> Shown:
    """Make the card of one labelled feature; see `Labels.card`.

    Args:
        labels: that hold it.
        site: where it is.
        index: its index there.
        activations: at all tokens of some texts, for the histogram; None draws those of the stored windows.
        of: which texts these are.
    """
    row = row_of(labels, site, index)
    windows = labels.examples[row]
    if activations is None:
        activations = np.concatenate([np.asarray(one.activations, float) for one in windows] or [np.zeros(0)])
        of = "the windows below, which were chosen by how strongly it fires (1 is its maximum over all texts)"
    return feature_card(
        f"Feature {index} at {site}",
        NO_ANSWER.get(labels.status[row], labels.description[row]),
        _facts(labels, row),
        {"fires on": labels.tokens[row], "promotes": labels.promotes[row], "suppresses": labels.suppresses[row]},
        [(one.kind, _window(one)) for one in windows],
        activation_histogram(activations, of) if len(activations) else "",
    )


def has_row(labels: "Labels", site: str, index: int) -> bool:
    """Tell whether a feature is among those that were chosen."""
    return any((at, int(own)) == (site, index) for at, own in zip(labels.site, labels.index))


def row_of(labels: "Labels", site: str, index: int) -> int:
    """Give the row of a feature. Raises `LensError`, with some that there are, for one that was not chosen."""
    for row, (at, own) in enumerate(zip(labels.site, labels.index)):
        if (at, int(own)) == (site, index):
            return row
    here = [int(own) for at, own in zip(labels.site, labels.index) if at == site]
    sites = ", ".join(dict.fromkeys(labels.site))
    known = f"Chosen there: {', '.join(map(str, sorted(here)[:20]))}." if here else f"Sites: {sites}."
    raise LensError(
        f"Feature {index} at {site!r} is not among the {len(labels.site)} features that were chosen. {known}"
    )


def _facts(labels: "Labels", row: int) -> dict[str, object]:
    facts: dict[str, object] = {}
    if labels.status[row] == "labelled":
        related = "yes" if labels.is_relevant[row] else "no"
        sure = f", confidence {number(float(labels.confidence[row]))}" if np.isfinite(labels.confidence[row]) else ""
        facts[f"related to {labels.task!r}"] = (
            f"{related}{sure} (by {labels.labeller}; {RELIABILITY[labels.is_reliable]})"
        )
    for one in labels.scores:
        controls = f"shuffled explanation {number(float(one.shuffled[row]))}"
        random = one.random[np.isfinite(one.random)]
        if len(random):
            controls += f", random features {number(float(random.mean()))} (mean of {len(random)})"
        facts[one.kind] = f"{number(float(one.own[row]))}; {controls}; {int(one.n[row])} windows"
    rate = labels.saes.one(labels.site[row], side=labels.side, size=labels.size).firing_rate
    facts["fires on held-out tokens"] = f"{100 * float(rate[int(labels.index[row])]):.2f} %"
    return facts


def _window(example: "Example") -> str:
    peak = () if example.kind in ("silent", "hard negative") or not len(example.tokens) else (example.peak,)
    return token_html(example.tokens, example.activations, largest=1.0, marked=peak)
