"""What is compared, opened: base, tuned and replicates as weights, and as models where texts are read."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.checkpoints import tuning_record
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.replicates import check_same_tuning, open_replicates
from lfp_lens.parts.stored_weights import stored, stored_on
from lfp_lens.parts.weights import Weights, of_model


@dataclass(frozen=True, eq=False)
class Opened:
    """Base, tuned and the replicates of tuned."""

    pair: Pair | None
    """Both as models; None where weights are read from disk."""
    base: Weights
    """The base's weights."""
    tuned: Weights
    """The tuned model's."""
    replicates: tuple[Weights, ...] = ()
    """Those of the tunings that differ by seed."""
    models: tuple[Any, ...] = ()
    """The replicates as Hugging Face models; empty where weights are read from disk."""
    keys: tuple[str, ...] = ()
    """A hash of each replicate's weights."""


def open_stored(sources: Any, replicates: Iterable[Any]) -> Opened:
    """Open (base, tuned) and replicates on disk."""
    given = [*sources, *replicates]
    if len(sources) != 2 or not all(isinstance(source, (str, Path)) for source in given):
        kinds = ", ".join(type(source).__name__ for source in given)
        raise LensError(
            f"Weights on disk are given as (base, tuned), two hub names or folders; {kinds} given. A model in memory goes "
            "through load_pair."
        )
    base = replace(stored(sources[0]), changes={})
    tuned, *others = (stored_on(base, source) for source in given[1:])
    for source in given[2:]:
        check_same_tuning(tuning_record(sources[1]), tuning_record(source), str(source))
    return Opened(None, base, tuned, tuple(others))


def open_pair(pair: Pair, replicates: Iterable[Any]) -> Opened:
    """Open a pair in memory, and load its replicates as further pairs over the same base."""
    base = of_model(pair.base_hf, "the base", {})
    tuned = of_model(pair.tuned_hf, "the tuned model", pair.adapter)
    given = list(replicates)
    pairs = open_replicates(pair, given)
    names = [
        str(source) if isinstance(source, (str, Path)) else f"replicate {at}" for at, source in enumerate(given, 1)
    ]
    weights = tuple(of_model(other.tuned_hf, name, other.adapter) for other, name in zip(pairs, names))
    models = tuple(other.tuned_hf for other in pairs)
    return Opened(pair, base, tuned, weights, models, tuple(other.fingerprint for other in pairs))
