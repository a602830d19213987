"""What was asked to be ablated, as a set of features that belongs to the subject."""

from collections.abc import Iterable
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sae_files import check_owner
from lfp_lens.parts.sites import layer_of
from lfp_lens.results.attribute import Effects
from lfp_lens.results.explain import Labels
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.ablate.subject import Subject


def feature_set(features: Any, saes: Any) -> FeatureSet:
    """Give the set for whatever was handed as features. Raises `LensError` for what is no set and says what would be."""
    if saes is not None and not isinstance(saes, SAESet):
        raise LensError(f"saes is what train_sae or load_saes gave; {type(saes).__name__} given.")
    if isinstance(features, Labels):
        features = features.relevant
    if isinstance(features, FeatureSet):
        if saes is not None:
            raise LensError("These features bring their own SAEs: leave saes out, or give (site, index) pairs.")
        return features
    if isinstance(features, Effects):
        raise LensError("Effects rank every feature and choose none: ablate effects.top(k).")
    if features is None:
        raise LensError("Nothing to ablate was given: pass labels, effects.top(k), or (site, index) pairs with saes=.")
    if isinstance(features, str) or not isinstance(features, Iterable):
        raise LensError(
            "features are labels, a FeatureSet, effects.top(k), or (site, index) pairs with saes=; "
            f"{type(features).__name__} given."
        )
    if saes is None:
        raise LensError("(site, index) pairs say nothing without their SAEs: pass saes=, from train_sae or load_saes.")
    return FeatureSet(saes, tuple(features))


def check_features(features: FeatureSet, subject: Subject) -> None:
    """Raise `LensError` unless these features can be read at the subject's sites and were trained there."""
    if subject.pair and features.saes.pair != subject.pair:
        raise LensError("These features belong to the SAEs of another pair.")
    for site in features.by_site():
        record = features.sae(site)
        if layer_of(site) >= subject.n_layers:
            raise LensError(f"{site!r} does not exist: the model has layers 0 to {subject.n_layers - 1}.")
        sides = 2 if record.side == "both" else 1
        if record.width != sides * subject.width:
            raise LensError(
                f"The SAE at {site} reads {record.width} dimensions, the model has {sides * subject.width}: another model."
            )
        if record.side in ("difference", "both") and subject.base is None:
            raise LensError(
                f"The SAE at {site} reads both models of a pair (side {record.side!r}), and one model was given: pass the pair."
            )
        check_owner(record.weights, site, record.width, subject.weights if record.side == "tuned" else None)
