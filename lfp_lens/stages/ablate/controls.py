"""Everything that a drop must be told from, teacher-forced: modes, doses, random sets, the base, the opposite features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.parts.activations import Encoded, batches
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary, by_layer
from lfp_lens.parts.interventions import Edit, intervening
from lfp_lens.parts.scalars import expected_valence
from lfp_lens.parts.screening import Screen, screen
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.results.ablate_readings import (
    BASE_OWN,
    BASE_SAME,
    FEATURES,
    NEGATIVE,
    RECONSTRUCTION,
    RESTORED,
    RandomSets,
    Reading,
)
from lfp_lens.results.features import FeatureSet
from lfp_lens.stages.ablate.changes import Scale, per_token
from lfp_lens.stages.ablate.edits import Chosen, Edits, patched, reconstructed
from lfp_lens.stages.ablate.subject import Subject

TOGETHER = ("zero", "mean", "resample")
"""Modes that are always shown side by side: each alone can mislead."""
DOSES = (0.0, 0.5, 1.0, 1.5, 2.0)
FOREIGN = 0.5
"""Explained variance that an SAE may lack here of what it had where it was judged."""
FEWER = 4
"""The modes that were not chosen get a quarter of the random sets."""


@dataclass(frozen=True, eq=False)
class Work:
    """One call's models on its reference texts."""

    subject: Subject
    features: FeatureSet
    tuned: TeacherForced
    base: TeacherForced | None
    """None without a base."""
    edits: Edits
    scale: Scale
    screened: Sequence[Encoded]
    """Completions that are not measured: what is chosen by a screen is chosen on them."""
    values_V: torch.Tensor
    mode: str
    factor: float
    seed: int

    @property
    def begin(self) -> int | None:
        """The beginning-of-text token."""
        return self.subject.tokenizer.bos_token_id


@dataclass(frozen=True, eq=False)
class Controlled:
    """What the controls gave."""

    readings: list[Reading]
    over_base: Estimate | None
    over_base_own: Estimate | None
    notes: list[str]


def reference_features(forced: TeacherForced, dictionaries: Mapping[str, Dictionary]) -> dict[str, torch.Tensor]:
    """Give, for each site, all features `[tokens, F]` at content tokens of the untouched model."""
    return {site: forced.features(one, most=int(forced.tokens.sum())) for site, one in dictionaries.items()}


def check_no_op(work: Work) -> None:
    """Check that ablating nothing changes no bit of any prediction, by either way of putting edits on a model.

    Raises `LensError` if it does: then no other number could be trusted.
    """
    nothing = work.edits(dict.fromkeys(work.edits.dictionaries, ()), work.mode, work.factor)
    with intervening(
        work.subject.model, nothing, begin=work.begin, base=work.subject.base if work.edits.needs_base else None
    ):
        sampled_as = work.tuned.read({})
    for empty in (work.tuned.read(nothing), sampled_as):
        for name in ("log_p", "valence", "kl"):
            if not np.array_equal(getattr(empty, name), getattr(work.tuned.clean, name)):
                raise LensError(
                    "An empty set of features changed the predictions: the edits of this model cannot be trusted."
                )


def under_every_mode(work: Work) -> list[Reading]:
    """Give the features zeroed, set to their mean, resampled, and, where asked for, scaled."""
    chosen = work.features.by_site()
    modes = TOGETHER if work.mode in TOGETHER else (*TOGETHER, work.mode)
    return [
        work.scale.reading(
            FEATURES, mode, factor, len(work.features), work.tuned.read(work.edits(chosen, mode, factor))
        )
        for mode, factor in ((mode, work.factor if mode == work.mode else 0.0) for mode in modes)
    ]


def doses(work: Work, zeroed: Reading) -> list[Reading]:
    """Give the dose-response curve, factor 0 taken from what zeroing gave."""
    from dataclasses import replace

    chosen, found = work.features.by_site(), []
    for factor in sorted({*DOSES, work.factor} if work.mode == "scale" else DOSES):
        if factor == 0:
            found.append(replace(zeroed, mode="scale"))
            continue
        seen = work.tuned.read(work.edits(chosen, "scale", factor))
        found.append(work.scale.reading(FEATURES, "scale", factor, len(work.features), seen))
    return found


def random_sets(work: Work, sets: Sequence[Chosen], readings: Sequence[Reading]) -> list[RandomSets]:
    """Measure matched random sets under the chosen mode, and fewer of them under the others."""
    found, tokens = [], work.tuned.tokens.sum()
    for own in sorted(readings, key=lambda one: one.mode != work.mode):
        some = sets if own.mode == work.mode else sets[: -(-len(sets) // FEWER)]
        bar = tqdm(some, desc=f"ablate: random sets, {own.mode}")
        seen = [work.tuned.read(work.edits(drawn, own.mode, own.scale)) for drawn in bar]
        change = [(one.valence.sum() - work.tuned.clean.valence.sum()) / tokens for one in seen]
        kl = [one.kl.sum() / tokens for one in seen]
        found.append(RandomSets(own.mode, np.array(change, float), np.array(kl, float), own.valence.value))
    return found


def controlled(work: Work) -> Controlled:
    """Measure reconstruction alone, the features that hold the reward back, the base, and the reverse."""
    chosen, k = work.features.by_site(), len(work.features)
    notes: list[str] = []
    rebuild = reconstructed(work.features, device=work.values_V.device)
    readings = [work.scale.reading(RECONSTRUCTION, "none", 0.0, 0, work.tuned.read(rebuild))]
    if work.subject.pair is None:
        notes += _foreign(work, rebuild)
    opposite = _strongest(work, work.edits.dictionaries, k, notes, sign=-1, of="tuned")
    if opposite is not None:
        seen = work.tuned.read(work.edits(opposite, work.mode, work.factor))
        readings.append(work.scale.reading(NEGATIVE, work.mode, work.factor, _size(opposite), seen))
    if work.base is None:
        notes.append("one model given: nothing to say about the base or the share of the gain")
        return Controlled(readings, None, None, notes)
    over_base = over_own = None
    change = work.tuned.read(work.edits(chosen, work.mode, work.factor)).valence - work.tuned.clean.valence
    if work.edits.needs_base:
        notes.append(
            f"features of {work.features.side!r} are what base and tuned do not share: there is nothing of them in the base"
        )
    else:
        seen = work.base.read(_of_base(work, work.edits.dictionaries)(chosen, work.mode, work.factor))
        readings.append(work.scale.reading(BASE_SAME, work.mode, work.factor, k, seen, of="base"))
        over_base = per_token(change - (seen.valence - work.base.clean.valence), work.tuned.tokens, seed=work.seed)
    found = base_dictionaries(work, notes)
    own = _strongest(work, found, k, notes, sign=1, of="base") if found else None
    if own is not None:
        seen = work.base.read(_of_base(work, found)(own, work.mode, work.factor))
        readings.append(work.scale.reading(BASE_OWN, work.mode, work.factor, _size(own), seen, of="base"))
        over_own = per_token(change - (seen.valence - work.base.clean.valence), work.tuned.tokens, seed=work.seed)
    seen = work.base.read(patched(work.edits.dictionaries, chosen), other=work.tuned)
    readings.append(work.scale.reading(RESTORED, "patch", 0.0, k, seen, of="base"))
    return Controlled(readings, over_base, over_own, notes)


def _foreign(work: Work, rebuild: Mapping[str, Edit]) -> list[str]:
    """Note every SAE that explains far less here than where it was judged: a single model cannot tell whose it is otherwise."""
    found = []
    for site, edit in rebuild.items():
        left = whole = 0.0
        for number, batch in enumerate(work.tuned.batches):
            acts_ND = work.tuned.acts(site, number)[batch.content(work.begin)].float()
            left += float((acts_ND - edit(acts_ND)).pow(2).sum())
            whole += float((acts_ND - acts_ND.mean(0)).pow(2).sum())
        record, here = work.features.sae(site), 1 - left / max(whole, 1e-12)
        if here < record.explained_variance - FOREIGN:
            found.append(
                f"the SAE at {site} explains {here:.2f} of the variance here and {record.explained_variance:.2f} where it was "
                "judged: it may be another checkpoint's"
            )
    return found


def _of_base(work: Work, dictionaries: Mapping[str, Dictionary]) -> Edits:
    """Give edits whose reference is what the features do in the base."""
    assert work.base is not None
    return Edits(dictionaries, reference_features(work.base, dictionaries), seed=work.seed)


def base_dictionaries(work: Work, notes: list[str]) -> dict[str, Dictionary]:
    """Give the base's own dictionaries at the same sites; none with a note where they were not trained."""
    try:
        records = [
            work.features.saes.one(site, side="base", size=work.features.size) for site in work.features.by_site()
        ]
    except LensError:
        notes.append("no SAEs of the base at these sites: its own most effective features are not ablated")
        return {}
    return by_layer({one.site: as_dictionary(one, device=work.values_V.device) for one in records})


def _strongest(
    work: Work, dictionaries: Mapping[str, Dictionary], k: int, notes: list[str], *, sign: int, of: str
) -> dict[str, tuple[int, ...]] | None:  # fmt: skip
    """Give the k features with the largest screened effect of this sign, at most; None where there are none."""
    if work.subject.is_hooked:
        notes.append("a HookedTransformer is not screened: no most negative features are ablated")
        return None
    if not k:
        return None
    data = list(batches(work.screened, device=work.values_V.device, max_batch_tokens=4096))
    model: Any = work.subject.model if of == "tuned" else work.subject.base
    seen: Screen = screen(
        model, dictionaries, data, expected_valence, values_V=work.values_V, base=work.subject.base, begin=work.begin
    )
    effect = sign * seen.effect(work.mode)
    order = [row for row in np.argsort(-effect, kind="stable") if effect[row] > 0][:k]
    chosen: dict[str, tuple[int, ...]] = {}
    for row in order:
        chosen[seen.site[row]] = (*chosen.get(seen.site[row], ()), int(seen.index[row]))
    return chosen or None


def _size(chosen: Chosen) -> int:
    return sum(map(len, chosen.values()))
