"""Which SAEs to train: every combination of what is asked, refused early where one cannot be."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.parts.harvest import Stream
from lfp_lens.parts.saes import ARCHITECTURES, default_k, takes
from lfp_lens.parts.sites import layer_of
from lfp_lens.results.train_sae import SIDES
from lfp_lens.stages.train_sae.crosscoder import LEARNING_RATE as CROSSCODER_LEARNING_RATE

LEARNING_RATE = 1e-3
"""Of every SAE but a crosscoder (`crosscoder.LEARNING_RATE`), where none is given."""
RANDOM = "random"
"""The side of the SAEs that are trained on a model with random weights, as a floor."""


@dataclass(frozen=True)
class Spec:
    """One SAE to train."""

    side: str
    """Whose activations."""
    site: str
    """Where."""
    size: float
    """Features divided by the site's width."""
    architecture: str
    """A name in `parts.saes.ARCHITECTURES`."""
    l1: float | None
    """Weight of the sparsity penalty; None takes the architecture's own."""
    k: int | None
    """Features active per token; None where the architecture has none."""
    lr: float
    """Learning rate."""
    seed: int
    """Of its weights."""
    d_in: int
    """Width of what it reads."""
    d_sae: int
    """Features."""

    @property
    def stream(self) -> Stream:
        """The activations it is trained on."""
        return self.side, self.site

    @property
    def start_seed(self) -> int:
        """Seed of its first weights, another for every place and width: SAEs that began alike would match by that alone.

        Settings are not in it, so that a sweep compares SAEs with the same start.
        """
        return int(fingerprint([self.seed, self.side, self.site, self.d_sae]), 16) % 2**31

    @property
    def name(self) -> str:
        """Its name in messages."""
        given = "".join(f" {name} {value:g}" for name, value in (("l1", self.l1), ("k", self.k)) if value is not None)
        return f"{self.side} {self.site} x{self.size:g} {self.architecture}{given} seed {self.seed}"

    def at(self, side: str) -> "Spec":
        """Give the same SAE on another side."""
        return replace(self, side=side)


def make_specs(
    sites: Sequence[str], sizes: Sequence[float], sides: Sequence[str], settings: Mapping[str, Any], *, width: int,
    seeds: Sequence[int],
) -> list[Spec]:  # fmt: skip
    """Give one spec for every side, site, size, seed and combination of settings, layer by layer.

    `settings` holds `architecture`, `l1`, `k` and `lr`, each a value or a list of values. A setting that an architecture
    lacks is left out of its specs; raises `LensError` where no architecture has it, and for values that cannot be.
    """
    _check_lists(sites, sizes, sides)
    options = {name: many(name, value) for name, value in settings.items()}
    _check_settings(options)
    for name in ("l1", "k"):
        if options[name] != (None,) and not any(takes(architecture, name) for architecture in options["architecture"]):
            takers = ", ".join(other for other in ARCHITECTURES if takes(other, name))
            raise LensError(
                f"{name}={settings[name]} was given, but {', '.join(options['architecture'])} has no {name}: leave it out, "
                f"or use {takers}."
            )
    found: dict[Spec, None] = {}
    own_size: dict[int, float] = {}
    places = itertools.product(sides, sorted(sites, key=layer_of), sizes, options["architecture"], options["l1"], options["k"],
                               options["lr"], seeds)  # fmt: skip
    for side, site, size, architecture, l1, k, lr, seed in places:
        d_sae = round(width * size)
        if d_sae < 1:
            raise LensError(f"An SAE of size {size} on {width} dimensions has no features.")
        if own_size.setdefault(d_sae, size) != size:
            raise LensError(
                f"Sizes {own_size[d_sae]} and {size} are both {d_sae} features on {width} dimensions. Give one."
            )
        own_k = (default_k(width, d_sae) if k is None else k) if takes(architecture, "k") else None
        own_l1 = l1 if takes(architecture, "l1") else None
        d_in = 2 * width if side == "both" else width
        own_lr = lr or (CROSSCODER_LEARNING_RATE if side == "both" else LEARNING_RATE)
        found[Spec(side, site, float(size), architecture, own_l1, own_k, own_lr, seed, d_in, d_sae)] = None
    return list(found)


def whole(name: str, value: Any, least: int) -> None:
    """Raise `LensError` unless a value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise LensError(f"{name} must be a whole number of at least {least}; {value!r} given.")


def many(name: str, value: Any) -> tuple[Any, ...]:
    """Give a value or a list of values as a tuple; each at most once."""
    values = tuple(value) if isinstance(value, (list, tuple, range)) else (value,)
    if not values or len(set(values)) < len(values):
        raise LensError(f"{name} must be a value or a list of different values; {value!r} given.")
    return values


def _check_settings(options: Mapping[str, tuple[Any, ...]]) -> None:
    for architecture in options["architecture"]:
        if not isinstance(architecture, str):
            raise LensError(f"architecture is a name or a list of names; {architecture!r} given.")
    for k in options["k"]:
        if k is not None:
            whole("k", k, 1)
    for name, least in (("l1", "0 or above"), ("lr", "above 0")):
        for value in options[name]:
            if value is None:
                continue
            is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value < 0 or (value == 0 and name == "lr"):
                raise LensError(f"{name} must be a finite number {least}; {value!r} given.")


def _check_lists(sites: Sequence[str], sizes: Sequence[float], sides: Sequence[str]) -> None:
    for name, given in (("site", sites), ("size", sizes), ("side", sides)):
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        if not is_list or not len(given) or len(set(given)) < len(given):
            raise LensError(f"{name}s must be a list of at least one {name}, each once; {given!r} given.")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, Real) or not 0 < size < math.inf:
            raise LensError(
                f"A size is a finite number above 0 (features divided by the site's width); {size!r} given."
            )
    odd = next((side for side in sides if side not in SIDES), None)
    if odd is not None:
        raise unknown("side", str(odd), SIDES)
