"""What is compared, opened: base, tuned and replicates as weights, and as models where texts are read."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.checkpoints import DTYPES, tuning_record, weights_fingerprint
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.stored_weights import stored, stored_on
from lfp_lens.parts.weights import Weights, of_model

SAME = ("base_fingerprint", "method", "reward", "scope")
"""What the tuning records of two replicates agree on."""


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
        _check_same_tuning(tuning_record(sources[1]), tuning_record(source), str(source))
    return Opened(None, base, tuned, tuple(others))


def open_pair(pair: Pair, replicates: Iterable[Any]) -> Opened:
    """Open a pair in memory, and load its replicates as further pairs over the same base."""
    base = of_model(pair.base_hf, "the base", {})
    tuned = of_model(pair.tuned_hf, "the tuned model", pair.adapter)
    pairs, weights = [], []
    for at, source in enumerate(replicates, start=1):
        name = str(source) if isinstance(source, (str, Path)) else f"replicate {at}"
        other = _load(pair, source, name)
        _check_same_tuning(pair.tuning, other.tuning, name)
        pairs.append(other)
        weights.append(of_model(other.tuned_hf, name, other.adapter))
    models = tuple(other.tuned_hf for other in pairs)
    return Opened(pair, base, tuned, tuple(weights), models, tuple(other.fingerprint for other in pairs))


def _load(pair: Pair, source: Any, name: str) -> Pair:
    if not isinstance(source, Pair):
        dtype = str(pair.base_hf.dtype).removeprefix("torch.")
        options = {"dtype": dtype} if dtype in DTYPES else {}
        return load_pair(pair.base_hf, source, tokenizer=pair.tokenizer, device=str(pair.device), **options)
    if source.base_hf is not pair.base_hf and weights_fingerprint(source.base_hf) != weights_fingerprint(pair.base_hf):
        raise LensError(f"The pair given as {name} has another base: replicates are tunings of the same base.")
    return source


def _check_same_tuning(tuned: dict[str, Any] | None, other: dict[str, Any] | None, name: str) -> None:
    """Refuse a replicate whose record tells of another tuning; a checkpoint without a record tells nothing."""
    for key in SAME if tuned and other else ():
        if (tuned or {}).get(key) != (other or {}).get(key):
            raise LensError(
                f"The replicate {name} was tuned otherwise: {key} is {(other or {}).get(key)!r} there and "
                f"{(tuned or {}).get(key)!r} here. A null of the seed differs by the seed alone."
            )
