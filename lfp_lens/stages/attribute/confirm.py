"""Exact confirmation of chosen features: their effect on every text, and the texts that show it best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.parts.activations import Batch
from lfp_lens.results.effect_examples import EffectExamples
from lfp_lens.stages.attribute.exact import exact_effects
from lfp_lens.stages.attribute.reading import Reading
from lfp_lens.stages.attribute.subject import Subject

N_EXAMPLES = 5
"""Texts kept of each feature, for each of: largest effect, most negative effect, largest activation."""

Feature = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Confirmed:
    """Exact effects of some features."""

    effects_FU: np.ndarray
    """scalar(original) - scalar(feature zeroed) of every unit, summed over its tokens."""
    fires_FU: np.ndarray
    """Whether the feature fires in the unit."""
    before_T: np.ndarray
    """The scalar of every text, summed over its tokens."""
    examples: list[tuple[int, int, np.ndarray, np.ndarray]]
    """(feature, text, activations, effects by token) of the texts kept."""


def confirm(
    subject: Subject, reading: Reading, data: Sequence[Batch], units: Sequence[int], features: Sequence[Feature], *,
    per_token: bool,
) -> Confirmed:  # fmt: skip
    """Ablate each feature exactly on these units.

    Args:
        subject: the model.
        reading: all texts.
        data: the batches that hold the units, whole.
        units: which units, in the order wanted.
        features: (site, index), without repeats.
        per_token: whether the examples kept are those with the largest effect per token, or per unit.
    """
    rows = {site: [row for row, feature in enumerate(features) if feature[0] == site] for site, _ in features}
    wanted = {site: [features[row][1] for row in own] for site, own in rows.items()}
    column = {unit: at for at, unit in enumerate(units)}
    effects_FU, before_T = np.zeros((len(features), len(units))), np.zeros(len(reading.encoded))
    fires_FU = np.zeros((len(features), len(units)), bool)
    kept = [_Kept() for _ in features]
    for batch in tqdm(data, desc="attribute"):
        before_BS, found = exact_effects(subject, batch, wanted)
        before_T[batch.rows] = before_BS.double().sum(1).cpu().numpy()
        columns = np.array([column[unit] for unit in reading.unit_T[batch.rows]])
        n_tokens = np.bincount(columns, batch.mask_BS.sum(1).cpu().numpy()) if per_token else np.ones(columns.max() + 1)
        signs = torch.tensor(reading.sign_T[batch.rows], device=before_BS.device)
        for site, own in rows.items():
            exact = found[site]
            by_text = (exact.effects_MBS.double().sum(2) * signs).cpu().numpy()
            fires = (exact.features_MBS != 0).any(2).cpu().numpy()
            largest = exact.features_MBS.amax(2).cpu().numpy()
            for m, row in enumerate(own):
                np.add.at(effects_FU[row], columns, by_text[m])
                np.logical_or.at(fires_FU[row], columns, fires[m])
                total = {
                    unit: by_text[m][columns == unit].sum() / n_tokens[unit] for unit in columns[fires[m]].tolist()
                }
                peak = {unit: largest[m][columns == unit].max() for unit in total}
                kept[row].offer(total, peak, _tokens(batch, columns, exact.features_MBS[m], exact.effects_MBS[m]))
    examples = [(row, text, acts, lost) for row, one in enumerate(kept) for text, acts, lost in one.texts()]
    return Confirmed(effects_FU, fires_FU, before_T, examples)


def _tokens(batch: Batch, columns: np.ndarray, features_BS: torch.Tensor, effects_BS: torch.Tensor) -> Any:
    """Give the function that gives a unit's texts with their activations and effects at real tokens."""

    def of(unit: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        found = []
        for at in np.flatnonzero(columns == unit).tolist():
            n = int(batch.mask_BS[at].sum())
            found.append((batch.rows[at], features_BS[at, :n].cpu().numpy(), effects_BS[at, :n].cpu().numpy()))
        return found

    return of


class _Kept:
    """The units that show one feature best, of those offered so far."""

    def __init__(self) -> None:
        self.total: dict[int, float] = {}
        self.peak: dict[int, float] = {}
        self.held: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def offer(self, total: dict[int, float], peak: dict[int, float], tokens: Any) -> None:
        """Take the units of a batch into account."""
        self.total |= total
        self.peak |= peak
        best = set[int]()
        for score in (self.total, {unit: -value for unit, value in self.total.items()}, self.peak):
            best.update(sorted(score, key=lambda unit: (-score[unit], unit))[:N_EXAMPLES])
        self.total = {unit: self.total[unit] for unit in best}
        self.peak = {unit: self.peak[unit] for unit in best}
        self.held = {unit: self.held[unit] if unit in self.held else tokens(unit) for unit in best}

    def texts(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Give the texts of the units kept, in the order of the units."""
        return [text for unit in sorted(self.held) for text in self.held[unit]]


def packed(
    tokenizer: Any, reading: Reading, confirmed: Confirmed, feature_rows: Sequence[int], *, per_token: bool
) -> EffectExamples:
    """Give the examples as a record; `feature_rows` says which row of the result each confirmed feature is."""
    texts = sorted({text for _, text, _, _ in confirmed.examples})
    place = {text: at for at, text in enumerate(texts)}
    length = max((len(acts) for _, _, acts, _ in confirmed.examples), default=0)
    activations = np.full((len(confirmed.examples), length), np.nan, np.float32)
    effects = activations.copy()
    for at, (_, _, acts, lost) in enumerate(confirmed.examples):
        activations[at, : len(acts)], effects[at, : len(lost)] = acts, lost
    n_tokens = np.array([len(reading.encoded[text].ids) if per_token else 1 for text in texts], float)
    roles = {1.0: "chosen", -1.0: "rejected"} if reading.is_pairs else {1.0: ""}
    return EffectExamples(
        tokens=tuple(tuple(tokenizer.convert_ids_to_tokens(reading.encoded[text].ids)) for text in texts),
        text=reading.unit_T[texts].astype(int), role=tuple(roles[sign] for sign in reading.sign_T[texts].tolist()),
        before=confirmed.before_T[texts] / n_tokens,
        feature=np.array([feature_rows[row] for row, *_ in confirmed.examples], int),
        shown=np.array([place[text] for _, text, *_ in confirmed.examples], int),
        activations=activations, effects=effects,
    )  # fmt: skip
