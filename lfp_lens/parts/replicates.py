"""Replicates: other tunings of the same base, opened as pairs that share it."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.checkpoints import DTYPES, weights_fingerprint
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.rewards.make import REWARDS

SAME = ("base_fingerprint", "method", "reward", "scope")
"""What the tuning records of two replicates agree on."""


def listed(given: Any) -> tuple[Any, ...]:
    """Give what a verb's `replicates=` stands for as a tuple: None, or one checkpoint, may be given without a list."""
    if given is None:
        return ()
    is_one = isinstance(given, (str, Path, Pair)) or hasattr(given, "state_dict")
    return (given,) if is_one else tuple(given)


def names_of(given: Sequence[Any], kind: str) -> tuple[str, ...]:
    """Give every checkpoint a name: its path without the folders that all of them share, or its number."""
    paths = [Path(source).parts for source in given if isinstance(source, (str, Path))]
    from_front = _shared(paths)
    from_back = _shared([parts[from_front:][::-1] for parts in paths])
    names = []
    for at, source in enumerate(given, start=1):
        parts = Path(source).parts if isinstance(source, (str, Path)) else ()
        own = parts[from_front : len(parts) - from_back]
        names.append("/".join(own) if own else parts[-1] if parts else f"{kind} {at}")
    return tuple(names)


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """Give how many parts all paths begin with, if there are several."""
    return 0 if len(paths) < 2 else sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths)))


def open_replicates(pair: Pair, replicates: Iterable[Any], *, kind: str = "replicate") -> list[Pair]:
    """Load other tunings of the pair's base; each is refused where it is the pair's own or another's copy.

    Args:
        pair: base and tuned.
        replicates: hub names, folders, models in memory or pairs.
        kind: what they are called in messages. A `replicate` differs from `tuned` by its seed alone, so their tuning records
            must agree; anything else may have been tuned on another reward.
    """
    opened: list[Pair] = []
    own = (pair.tuning or {}).get("reward")
    for at, source in enumerate(replicates, start=1):
        name = str(source) if isinstance(source, (str, Path)) else f"{kind} {at}"
        other = _open(pair, source, name)
        if kind == "replicate":
            check_same_tuning(pair.tuning, other.tuning, name)
        elif own is not None and own in REWARDS and (other.tuning or {}).get("reward") == own:
            raise LensError(f"The {kind} {name} was tuned on {own!r}, as the pair was: it is a replicate, not a null.")
        opened.append(other)
    return opened


def _open(pair: Pair, source: Any, name: str) -> Pair:
    if not isinstance(source, Pair):
        dtype = str(pair.base_hf.dtype).removeprefix("torch.")
        options = {"dtype": dtype} if dtype in DTYPES else {}
        return load_pair(pair.base_hf, source, tokenizer=pair.tokenizer, device=str(pair.device), **options)
    if source.base_hf is not pair.base_hf and weights_fingerprint(source.base_hf) != weights_fingerprint(pair.base_hf):
        raise LensError(f"The pair given as {name} has another base: replicates are tunings of the same base.")
    return source


def check_same_tuning(tuned: dict[str, Any] | None, other: dict[str, Any] | None, name: str) -> None:
    """Refuse a replicate whose record tells of another tuning; a checkpoint without a record tells nothing."""
    for key in SAME if tuned and other else ():
        if (tuned or {}).get(key) != (other or {}).get(key):
            raise LensError(
                f"The replicate {name} was tuned otherwise: {key} is {(other or {}).get(key)!r} there and "
                f"{(tuned or {}).get(key)!r} here. A null of the seed differs by the seed alone."
            )
