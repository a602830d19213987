"""An organism's folder: base, tunings, and a key that nothing here opens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.organisms.key import KEY_FILE, Key, read_key
from lfp_lens.parts.checkpoints import tuning_record
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.view import page

BASE, TUNED, SHUFFLED = "base", "tuned", "shuffled"


@dataclass(frozen=True)
class Organism:
    """A base model and its tunings, as an auditor gets them; `key()` is for who made it."""

    path: Path
    """The folder."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def base(self) -> Path:
        """The model before tuning."""
        return self.path / BASE

    @property
    def tuned(self) -> tuple[Path, ...]:
        """Tunings by one recipe that differ by their seed alone."""
        return tuple(sorted(self.path.joinpath(TUNED).glob("seed-*"), key=lambda path: (len(path.name), path.name)))

    @property
    def shuffled(self) -> Path | None:
        """The twin tuned on the stated lexicon with its values permuted, at the same KL; None where there is none."""
        path = self.path / TUNED / SHUFFLED
        return path if path.is_dir() else None

    @property
    def record(self) -> dict[str, Any]:
        """What the maker told the auditor: base, method, stated reward, scope, texts."""
        return tuning_record(self.tuned[0]) or {}

    def pair(self, at: int = 0, *, device: str = "cpu") -> Pair:
        """Load the base and one of its tunings."""
        return load_pair(str(self.base), str(self.tuned[at]), device=device)

    def key(self) -> Key:
        """Open the answer key. Raises `LensError` if it is missing or broken."""
        return read_key(self.path / KEY_FILE)

    def _repr_html_(self) -> str:
        told = {name: json.dumps(value) for name, value in self.record.items()}
        return page.card(f"Organism {self.name}", {"folder": str(self.path), "tunings": str(len(self.tuned))} | told)


def open_organism(path: str | Path | Organism) -> Organism:
    """Open an organism's folder; the key stays closed. Raises `LensError` if base or tunings are missing."""
    found = path if isinstance(path, Organism) else Organism(Path(path).expanduser())
    if not (found.base / "config.json").is_file() or not found.tuned:
        raise LensError(
            f"{found.path} is no organism: expected a folder with {BASE}/ and {TUNED}/seed-*/, as lfp_lens.organism makes it."
        )
    return found
