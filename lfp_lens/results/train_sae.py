"""What `train_sae` gives: SAEs of base and tuned by site and size, with their quality on held-out text."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import GateError, LensError, nearest
from lfp_lens.core.records import file_owner, record
from lfp_lens.view import page, plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MIN_EXPLAINED_VARIANCE, MIN_KL_RECOVERED, MAX_DEAD_SHARE = 0.6, 0.7, 0.5


@file_owner
class SAEWeights:
    """One trained dictionary in SAELens' own layout: `cfg.json` and `sae_weights.safetensors`, as NumPy here."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.config = config
        self.tensors = tensors

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SAEWeights) or self.tensors.keys() != other.tensors.keys():
            return False
        return all(np.array_equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def fingerprint(self) -> str:
        """Content hash of the weights."""
        from lfp_lens.core.fingerprint import fingerprint

        return fingerprint(self.tensors)

    def write_files(self, folder: Path) -> dict[str, Any]:
        """Write the two files that `SAE.load_from_disk` reads, into a folder named by content."""
        import json

        from safetensors.numpy import save_file

        inside = folder / "saes" / self.fingerprint
        inside.mkdir(parents=True, exist_ok=True)
        (inside / "cfg.json").write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        save_file(self.tensors, inside / "sae_weights.safetensors")
        return {"folder": f"saes/{self.fingerprint}"}

    @classmethod
    def read_files(cls, found: dict[str, Any], folder: Path) -> "SAEWeights":
        """Read the two files back."""
        import json

        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        inside = folder / str(found["folder"])
        if not inside.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"SAE folder outside the result: {found['folder']}")
        config = json.loads((inside / "cfg.json").read_text(encoding="utf-8"))
        try:
            return cls(config, load_file(inside / "sae_weights.safetensors"))
        except SafetensorError as error:
            raise ValueError(f"{inside / 'sae_weights.safetensors'}: {error}") from error


@record
class SAERecord:
    """One SAE at one site of one side, and how good it is on text it never saw."""

    side: str
    """`base` or `tuned`: the model whose activations it was trained on."""
    site: str
    """Where it reads, for example `blocks.3.hook_mlp_out`."""
    size: float
    """Features divided by the site's width (1 and 2 in the paper)."""
    architecture: str
    """`tied` (the paper's), `standard`, `topk`, ..."""
    seed: int
    """Of its initialisation and the order of its data."""
    weights: SAEWeights
    """The dictionary itself."""
    explained_variance: float
    """Share of the site's variance that it explains on held-out text."""
    untrained_explained_variance: float
    """The same for this SAE as it was initialised: the control."""
    kl_recovered: float
    """1 - KL(clean || spliced) / KL(clean || site zeroed), next token: 1 if the reconstruction changes no prediction."""
    ce_recovered: float
    """The same by loss on the held-out text; not gated, because a tuned model's own loss there may fall when a site is zeroed."""
    l0: float
    """Mean features active per token on held-out text."""
    dead_share: float
    """Share of features that never fire on the held-out text."""
    mse: float
    """Mean squared error per element on held-out text."""
    firing_rate: Float[np.ndarray, " features"]
    """Share of held-out tokens on which each feature fires."""
    n_train_tokens: int
    """Tokens it was trained on."""
    n_heldout_tokens: int
    """Tokens its quality was measured on."""

    @property
    def n_features(self) -> int:
        """Width of the dictionary."""
        return len(self.firing_rate)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why its features may not be interpreted; empty when it passes every gate (docs/validity.md, "SAE gates")."""
        floor = max(MIN_EXPLAINED_VARIANCE, self.untrained_explained_variance)
        found = {
            f"explained variance {self.explained_variance:.2f} < {floor:.2f}": self.explained_variance >= floor,
            f"KL recovered {self.kl_recovered:.2f} < {MIN_KL_RECOVERED}": self.kl_recovered >= MIN_KL_RECOVERED,
            f"dead share {self.dead_share:.2f} > {MAX_DEAD_SHARE}": self.dead_share <= MAX_DEAD_SHARE,
        }
        return tuple(reason for reason, passes in found.items() if not passes)


@record
class SAESet:
    """All dictionaries of a pair. Good reconstruction does not show that a feature is real: see `mmcs` and its control."""

    saes: tuple[SAERecord, ...]
    """One record per side, site, size and seed."""
    pair: str
    """Fingerprint of the pair they were trained on; other pairs refuse them."""
    mmcs: dict[str, np.ndarray]
    """`SIDE SITE` -> cosine of each small-SAE decoder row with its Hungarian-matched row of the next larger SAE."""
    mmcs_control: dict[str, float]
    """`SIDE SITE` -> mean of the same cosines between random dictionaries of these sizes."""
    curve: dict[str, np.ndarray]
    """`SIDE SITE xSIZE` -> training loss over the steps."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites covered, in layer order."""
        return tuple(sorted({sae.site for sae in self.saes}, key=lambda site: (int(site.split(".")[1]), site)))

    def select(
        self, *, side: str | None = None, site: str | None = None, size: float | None = None
    ) -> tuple[SAERecord, ...]:
        """Give the SAEs that match all that is named, smallest first. Raises `LensError` if there is none."""
        wanted = {"side": side, "site": site, "size": size}
        found = [sae for sae in self.saes if all(value in (None, getattr(sae, name)) for name, value in wanted.items())]
        if not found:
            hint = nearest(site, self.sites) if site and site not in self.sites else ""
            raise LensError(f"No SAE matches {wanted}.{hint} Sites: {', '.join(self.sites)}.")
        return tuple(sorted(found, key=lambda sae: (sae.size, self.sites.index(sae.site), sae.seed)))

    def one(self, site: str, *, side: str = "tuned", size: float | None = None) -> SAERecord:
        """Give the SAE of this site; without a size the smallest, as in the paper."""
        return self.select(side=side, site=site, size=size)[0]

    def passing(self, *, side: str = "tuned", size: float | None = None) -> tuple[str, ...]:
        """Name the sites whose SAE passes the quality gates. Raises `GateError` if none does, with every reason."""
        chosen = [self.one(site, side=side, size=size) for site in self.sites]
        good = tuple(sae.site for sae in chosen if not sae.failures)
        if not good:
            why = "; ".join(f"{sae.site}: {', '.join(sae.failures)}" for sae in chosen)
            raise GateError(
                f"No {side} SAE is good enough to interpret: {why}. Train on more tokens or with another architecture."
            )
        return good

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per SAE with its quality, its control and what it fails."""
        import pandas as pd

        names = ("side", "site", "size", "architecture", "seed", "n_features", "explained_variance",
                 "untrained_explained_variance", "kl_recovered", "ce_recovered", "l0", "dead_share", "mse", "n_train_tokens",
                 "n_heldout_tokens")  # fmt: skip
        rows = [{name: getattr(sae, name) for name in names} | {"fails": "; ".join(sae.failures)} for sae in self.saes]
        return pd.DataFrame(rows)

    def plot(self) -> "go.Figure":
        """Draw explained variance against L0, one point per SAE, untrained twins beside."""
        return plots.sae_quality(self.to_frame())

    def _repr_html_(self) -> str:
        return page.table(self.to_frame(), f"{len(self.saes)} SAEs, quality on held-out text")
