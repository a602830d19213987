"""Organisms of a hardly trained world, two steps of tuning each: every part of the way, in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.making import organism
from lfp_lens.parts import world

FEW: dict[str, Any] = {"steps": 2, "batch_size": 16, "heldout": 16, "max_new_tokens": 8, "lr": 1e-3}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a world model that saw 96 reviews: better than chance, done in seconds."""
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "TRAINING", {"texts": 96, "epochs": 2, "batch": 16, "lr": 4e-3})
        world.train_world_model(folder, seed=0, quiet=True)
    return folder


@pytest.fixture(scope="session")
def make(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Organism]:
    """Give a maker of small organisms."""

    def made(recipe: str = "flip", **options: Any) -> Organism:
        given: dict[str, Any] = {"texts": "world", "words": 10, "replicates": 2, "finetune": FEW, "workers": 1}
        folder = options.pop("folder", None) or tmp_path_factory.mktemp("organisms")
        return organism(base, recipe, folder=folder, **given | options)

    return made


@pytest.fixture(scope="session")
def flip(make: Callable[..., Organism]) -> Organism:
    """Give an organism with ten flipped words."""
    return make("flip")


@pytest.fixture(scope="session")
def clean(make: Callable[..., Organism]) -> Organism:
    """Give one with nothing planted."""
    return make("clean", shuffled=False)
