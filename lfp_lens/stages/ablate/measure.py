"""The teacher-forced half of the verb: every edit and control on the untouched model's own completions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lfp_lens.core.errors import GateError
from lfp_lens.parts.activations import Encoded, batches
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary, by_layer
from lfp_lens.parts.share_curves import Contender, Selection, floor_contenders, share_curves
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.parts.valence import token_values
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.share_curves import ShareCurves
from lfp_lens.results.train_sae import SAERecord
from lfp_lens.stages.ablate.changes import Scale, per_token, slope
from lfp_lens.stages.ablate.controls import (
    Work,
    base_dictionaries,
    check_no_op,
    controlled,
    doses,
    random_sets,
    reference_features,
    under_every_mode,
)
from lfp_lens.stages.ablate.edits import Edits
from lfp_lens.stages.ablate.matched import matched_random_sets
from lfp_lens.stages.ablate.rates import Fired, firing_rates
from lfp_lens.stages.ablate.subject import Subject

N_MEASURED = 96
"""Completions that are read under every edit; the others choose what a screen is to choose."""
CURVE_SIZES, CURVE_DOSES = (10, 50, 300), (0.3, 1.0)


@dataclass(frozen=True, eq=False)
class Half:
    """What the teacher-forced half gave."""

    edits: Edits
    """Makes the edits that completions are sampled under too."""
    fields: dict[str, Any]
    """Fields of `Ablation`."""
    notes: list[str]
    """What could not be measured, and why."""


def forced_half(
    subject: Subject, features: FeatureSet, texts: Sequence[Encoded], rewards: np.ndarray, given: Mapping[str, Any], *,
    n_apart: int,
) -> Half:  # fmt: skip
    """Measure everything that needs no sampling.

    The first `n_apart` texts may be measured; the others are of other prompts, and a screen chooses on them. Raises
    `GateError` if no feature fires, or for too few lexicon words.
    """
    work = _work(subject, features, texts, rewards, given, n_apart)
    chosen, seed = features.by_site(), given["seed"]
    fired = Fired(work.tuned, work.edits.dictionaries)
    if chosen and not fired.any(chosen):
        raise GateError(
            f"None of the {len(features)} features fires in the {len(work.tuned.tokens)} completions that were read: there is "
            "nothing to ablate. Give prompts on which they fire, or other features."
        )
    check_no_op(work)
    readings = under_every_mode(work)
    sets = matched_random_sets(features, given["controls"], seed=seed)
    found = controlled(work)
    curves = _curves(work) if given["floors"] and subject.both is not None and len(features) else None
    measured = texts[: len(work.tuned.tokens)]
    tokens, clean, base = work.tuned.tokens, work.scale.tuned, work.scale.base
    implicit = None if base is None else clean.log_p - base.log_p
    fields = {
        "valence_before": float(clean.valence.sum() / tokens.sum()),
        "valence_gain": None if base is None else per_token(clean.valence - base.valence, tokens, seed=seed),
        "implicit_reward_before": None if implicit is None else per_token(implicit, work.tuned.predicted, seed=seed),
        "implicit_slope_before": None if implicit is None else slope(implicit, work.scale.rewards, seed=seed),
        "readings": (*readings, *found.readings), "random": tuple(random_sets(work, sets, readings)),
        "dose": tuple(doses(work, readings[0])), "over_base": found.over_base, "over_base_own": found.over_base_own,
        "rates": firing_rates(fired, measured, chosen, sets, given["values"], seed=seed), "curves": curves,
        "perplexity_before": float(np.exp(-clean.log_p.sum() / work.tuned.predicted.sum())),
        "perplexity_after": next(one.perplexity for one in readings if one.mode == given["mode"]),
        "n_texts": len(tokens), "n_tokens": int(tokens.sum()),
    }  # fmt: skip
    return Half(work.edits, fields, found.notes)


def _work(
    subject: Subject, features: FeatureSet, texts: Sequence[Encoded], rewards: np.ndarray, given: Mapping[str, Any],
    n_apart: int,
) -> Work:  # fmt: skip
    """Run the untouched models once on the completions to measure, and keep the rest for choosing."""
    begin, seed, device = subject.tokenizer.bos_token_id, given["seed"], subject.device
    values_V = token_values(
        subject.tokenizer, given["lexicon"], [text.text for text in texts], vocabulary=subject.vocabulary, device=device
    )
    n = min(N_MEASURED, n_apart)
    measured, screened = texts[:n], texts[n_apart:] or texts
    base = None if subject.base is None else TeacherForced(subject.base, measured, values_V, begin=begin)
    tuned = TeacherForced(subject.model, measured, values_V, begin=begin, other=base)
    sites = features.by_site()
    dictionaries = _opened([features.sae(site) for site in sites], device)
    edits = Edits(dictionaries, reference_features(tuned, dictionaries), seed=seed)
    scale = Scale(tuned.tokens, tuned.predicted, rewards[:n], tuned.clean, None if base is None else base.clean, seed)
    return Work(
        subject, features, tuned, base, edits, scale, screened, values_V, given["mode"], given["scale"], seed
    )  # fmt: skip


def _curves(work: Work) -> ShareCurves:
    """Measure share against KL for the features, for all features of their dictionaries, and for every floor."""
    device, begin = work.values_V.device, work.begin
    selection = Selection(
        list(batches(work.screened, device=device, max_batch_tokens=4096)), work.values_V, len(work.screened)
    )
    features, sites = work.features, tuple(work.features.by_site())
    records = [features.sae(site) for site in sites]

    def contenders() -> Iterable[Contender]:
        yield Contender("the features", work.edits.dictionaries, order=features.features)
        for seed, replicate in enumerate(_replicates(features, sites)):
            yield Contender(f"{features.side} SAE", _opened(replicate, device), seed=seed)
        if features.side != "base":
            own = base_dictionaries(work, [])
            if own:
                yield Contender("base SAE", own, is_floor=True)
        yield from floor_contenders(
            work.subject.model, work.subject.base, records, selection, begin=begin, seed=work.seed
        )

    return share_curves(work.tuned, contenders(), selection, sizes=CURVE_SIZES, doses=CURVE_DOSES, seed=work.seed)


def _replicates(features: FeatureSet, sites: Sequence[str]) -> list[list[SAERecord]]:
    """Give the SAEs that the features belong to and, where they were trained from other seeds too, those of every seed."""
    own = [features.sae(site) for site in sites]
    alike = features.saes.select(side=features.side, size=own[0].size, architecture=own[0].architecture, l1=own[0].l1,
                                 k=own[0].k, lr=own[0].lr)  # fmt: skip
    seeds = [own[0].seed, *sorted({one.seed for one in alike} - {own[0].seed})]
    found = [[one for one in alike if one.seed == seed and one.site in sites] for seed in seeds]
    return [own] + [some for some in found[1:] if len({one.site for one in some}) == len(sites) == len(some)]


def _opened(records: Sequence[SAERecord], device: Any) -> dict[str, Dictionary]:
    return by_layer({one.site: as_dictionary(one, device=device) for one in records})
