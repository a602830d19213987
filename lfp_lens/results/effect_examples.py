"""The texts on which a feature has its largest effects, and those on which it fires most, token by token."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.records import record
from lfp_lens.view import page, tokens

BY = ("effect", "activation")


@record
class EffectExamples:
    """What `Effects.top_examples` reads: the texts of exact confirmation, and a few of them for each confirmed feature."""

    tokens: tuple[tuple[str, ...], ...]
    """Tokens of every text, as the tokenizer spells them."""
    text: Int[np.ndarray, " texts"]
    """Where each text (of a preference pair: each pair) stood in the list that was given."""
    role: tuple[str, ...]
    """`chosen` or `rejected` where texts are preference pairs, else ``."""
    before: Float[np.ndarray, " texts"]
    """The scalar of each text before anything is removed: per token where effects are, else of the whole text."""
    feature: Int[np.ndarray, " examples"]
    """Row of the feature in `Effects`."""
    shown: Int[np.ndarray, " examples"]
    """Row of the text in `tokens`."""
    activations: Float[np.ndarray, "examples positions"]
    """The feature's activation at each token; NaN past the text's end."""
    effects: Float[np.ndarray, "examples positions"]
    """scalar(original) - scalar(feature zeroed) at each token; NaN past the text's end."""


@dataclass(frozen=True, eq=False)
class TopExample:
    """One text and what a feature does in it."""

    tokens: tuple[str, ...]
    """The tokens, as the tokenizer spells them."""
    activations: Float[np.ndarray, " tokens"]
    """The feature's activation at each token."""
    effects: Float[np.ndarray, " tokens"]
    """What removing the feature takes from the scalar at each token; their sum is the text's effect."""
    before: float
    """The scalar of the text: per token where effects are, else of the whole text."""
    after: float
    """The same with the feature zeroed."""
    text: int
    """Where the text, or its pair, stood in the list that was given."""
    role: str
    """`chosen` or `rejected` of a preference pair, else ``."""


@dataclass(frozen=True, eq=False)
class TopExamples:
    """Texts of one feature, the first the largest. It shows itself in Jupyter: activations, then effects, as colours."""

    site: str
    """Where the feature is."""
    index: int
    """Its index there."""
    by: str
    """What they are the largest by: `effect` or `activation`."""
    examples: tuple[TopExample, ...]
    """The texts; the two of a preference pair follow each other."""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, at: int) -> TopExample:
        return self.examples[at]

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [
            {
                "text": f"{one.text} {one.role}".strip(),
                "scalar": f"{one.before:.4g} → {one.after:.4g}",
                "activation": tokens.token_html(one.tokens, one.activations),
                "effect": tokens.token_html(one.tokens, one.effects),
            }
            for one in self.examples
        ]
        frame = pd.DataFrame(rows, columns=["text", "scalar", "activation", "effect"])
        title = f"Feature {self.index} at {self.site}: texts by {self.by}; scalar before and after its removal"
        return page.table(frame, title, raw=("activation", "effect"))


def top_examples(
    held: EffectExamples, feature: int, *, site: str, index: int, by: str, sign: int, k: int, per_token: bool
) -> TopExamples:
    """Give the k texts (or pairs) of a feature's row with the largest effect of this sign, or the largest activation.

    Raises `LensError` for another `by`, or where nothing was kept of the feature.
    """
    if by not in BY:
        raise unknown("order of examples", by, BY)
    mine = np.flatnonzero(held.feature == feature)
    if not len(mine):
        raise LensError(
            f"No text is kept of feature {index} at {site}: it was not confirmed exactly, or fires on none of these texts."
        )
    units = held.text[held.shown[mine]]
    signs = np.array([-1.0 if held.role[row] == "rejected" else 1.0 for row in held.shown[mine]])
    if by == "effect":
        total = np.nansum(held.effects[mine], axis=1) * signs * sign
        if per_token:
            total = total / np.array([len(held.tokens[row]) for row in held.shown[mine]])
    else:
        total = np.nanmax(held.activations[mine], axis=1)
    score = {
        unit: total[units == unit].sum() if by == "effect" else total[units == unit].max() for unit in units.tolist()
    }
    wanted = [
        unit for unit in sorted(score, key=lambda unit: (-score[unit], unit)) if by != "effect" or score[unit] > 0
    ]
    rows = [row for unit in wanted[:k] for row in mine[units == unit]]
    return TopExamples(site, index, by, tuple(_example(held, row, per_token) for row in rows))


def _example(held: EffectExamples, row: int, per_token: bool) -> TopExample:
    at = int(held.shown[row])
    n = len(held.tokens[at])
    effects, before = held.effects[row, :n].astype(float), float(held.before[at])
    lost = effects.sum() / n if per_token else effects.sum()
    return TopExample(
        held.tokens[at], held.activations[row, :n].astype(float), effects, before, float(before - lost), int(held.text[at]),
        held.role[at],
    )  # fmt: skip
