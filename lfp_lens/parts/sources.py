"""Where shared data and models lie: the folder that the environment variable LFP_LENS_DATA names."""

import os
from pathlib import Path

from lfp_lens.core.errors import LensError

VARIABLE = "LFP_LENS_DATA"
LOCAL_MODELS = ("imdb-neox-2m", "stories260K")


def data_folder() -> Path | None:
    """Give the folder LFP_LENS_DATA names, None when it is unset. Raises `LensError` if it is no folder."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise LensError(f"{VARIABLE} is {named!r}, which is no folder. Set it to the data folder, or unset it.")
    return folder


def model_path(name: str) -> str:
    """Give the local folder of one of the project's own small models; any other name comes back unchanged.

    Raises `LensError` if such a model is asked for and LFP_LENS_DATA is unset or does not hold it.

    >>> model_path("EleutherAI/pythia-70m")
    'EleutherAI/pythia-70m'
    """
    if name not in LOCAL_MODELS:
        return name
    folder = data_folder()
    if folder is None:
        raise LensError(
            f"The model {name!r} lies in the data folder: set {VARIABLE} to the folder that holds models/{name}."
        )
    path = folder / "models" / name
    if not path.is_dir():
        raise LensError(
            f"The model {name!r} is not in {path.parent} ({VARIABLE}). Set {VARIABLE} to the folder that has it."
        )
    return str(path)


def cache_folder() -> Path:
    """Give the user's cache folder, for files of results without a store (LFP_LENS_CACHE overrides it)."""
    named = os.environ.get("LFP_LENS_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lfp_lens"
