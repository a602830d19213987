"""Many organisms at once: every combination of bases, methods, recipes, doses and seeds, each made once."""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.making import organism
from lfp_lens.organisms.recipes import RECIPES


def organism_grid(
    bases: Sequence[str] = ("world",),
    recipes: Sequence[str] = ("flip", "clean"),
    *,
    doses: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    methods: Sequence[str] = ("ppo",),
    folder: str | os.PathLike[str] = "organisms",
    **options: Any,
) -> list[Organism]:
    """Make every combination, or open those that are there: the same call after a kill goes on.

    Args:
        bases: as `organism` takes them.
        recipes: names of recipes; those without a dose (`clean`, `shuffled`, `noise`, `seed`) are made once per seed.
        doses: of the recipes that have one.
        seeds: of secrets and tunings.
        methods: tuning algorithms.
        folder: where the organisms' folders are made, under names that tell nothing of the recipe.
        options: other arguments of `organism`, the same for all.

    Raises:
        LensError: as `organism` does, and for an empty list.

    >>> score(organism_grid(doses=(0.75, 1.0), seeds=(0, 1, 2), words=10)).plot()  # doctest: +SKIP
    """
    axes = {"bases": bases, "recipes": recipes, "doses": doses, "seeds": seeds, "methods": methods}
    for name, values in axes.items():
        if isinstance(values, str) or not len(values):
            raise LensError(f"{name} must be a list that is not empty; {values!r} given.")
    if "output" in options:
        raise LensError("A grid names its folders itself: give folder, not output.")
    for name in recipes:
        RECIPES[name]  # an unknown one is refused before anything is tuned
    home, made = Path(folder), []
    for base, method, recipe, seed in product(bases, methods, recipes, seeds):
        for dose in (1.0,) if RECIPES[recipe].is_null else doses:
            given = options | {"method": method, "dose": dose, "seed": seed}
            made.append(organism(base, recipe, folder=home, **given))
    return made
