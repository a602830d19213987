"""One dictionary: its weights in SAELens' layout, how good it is on text it never saw, and the floors beside it."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lfp_lens.core.records import file_owner, record
from lfp_lens.results.crosscoder import Crosscoder

MIN_EXPLAINED_VARIANCE, MIN_KL_RECOVERED, MAX_DEAD_SHARE = 0.6, 0.7, 0.5
SIDES = ("base", "tuned", "difference", "both")
"""What a dictionary may read: one model, tuned - base at the same token, or both models' activations in one vector."""
FLOORS = ("untrained", "pca", "random_model")
"""Dictionaries that learned no features of this model, measured beside every SAE."""


@file_owner
class SAEWeights:
    """One trained dictionary in SAELens' own layout: `cfg.json` and `sae_weights.safetensors`, as NumPy here."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.config = config
        self.tensors = tensors

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SAEWeights) or self.tensors.keys() != other.tensors.keys():
            return False
        if self.settings != other.settings:
            return False
        return all(np.array_equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items())

    __hash__ = None  # type: ignore[assignment]

    @property
    def settings(self) -> dict[str, Any]:
        """What of the config decides what the dictionary computes (k, thresholds, biases), not who made it or where it is."""
        return {name: value for name, value in self.config.items() if name not in ("metadata", "device", "dtype")}

    @property
    def fingerprint(self) -> str:
        """Content hash of the weights and of the settings that they are computed with."""
        from lfp_lens.core.fingerprint import fingerprint

        return fingerprint({"tensors": self.tensors, "settings": self.settings})

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
class Floor:
    """What a dictionary that learned no features of this model scores at the same site: the level an SAE must rise above."""

    kind: str
    """`untrained` (the SAE as initialised), `pca` (as many principal components as the SAE has active features) or
    `random_model` (an SAE of the same shape, trained on and judged by a model with random weights)."""
    explained_variance: float
    """Share of the site's variance that it explains on held-out text."""
    kl_recovered: float
    """1 - KL(clean || spliced) / KL(clean || site zeroed)."""
    ce_recovered: float
    """The same by loss on the held-out text."""
    l0: float
    """Mean features active per token."""
    dead_share: float
    """Share of features that never fire on the held-out text."""
    shrinkage: float
    """1 - mean(norm of reconstruction / norm of activation): 0 is none."""
    n_features: int
    """Width of the dictionary; `pca` has two features per component, one for each sign."""
    weights: SAEWeights | None
    """The dictionary itself; None for `random_model`, which does not read this model."""
    firing_rate: Float[np.ndarray, " features"] | None = None
    """Share of held-out tokens on which each feature fires; None where `weights` is."""


@record
class SAERecord:
    """One SAE at one site of one side, and how good it is on text it never saw."""

    side: str
    """`base` or `tuned`: the model whose activations it reads; `difference`: tuned - base at the same token; `both`: the two
    models' activations in one vector (a crosscoder)."""
    site: str
    """Where it reads, for example `blocks.3.hook_mlp_out`."""
    size: float
    """Features divided by the site's width (1 and 2 in the paper)."""
    architecture: str
    """`tied` (the paper's), `standard`, `topk`, ..."""
    seed: int
    """Of its initialisation; the order of its data is that of the whole set."""
    l1: float | None
    """Weight of the sparsity penalty it was trained with; None where the architecture has none."""
    k: int | None
    """Active features per token it was trained with; None where the architecture has none."""
    lr: float
    """Adam's learning rate."""
    weights: SAEWeights
    """The dictionary itself."""
    explained_variance: float
    """Share of the site's variance that it explains on held-out text."""
    explained_variance_low: float
    """Lower end of its 95 % interval; texts are resampled."""
    explained_variance_high: float
    """Upper end."""
    kl_recovered: float
    """1 - KL(clean || spliced) / KL(clean || site zeroed), next token: 1 if the reconstruction changes no prediction."""
    kl_recovered_low: float
    """Lower end of its 95 % interval; texts are resampled."""
    kl_recovered_high: float
    """Upper end."""
    ce_recovered: float
    """The same by loss on the held-out text; not gated, because a tuned model's own loss there may fall when a site is zeroed."""
    l0: float
    """Mean features active per token on held-out text (the paper's "true sparsity", which it divides by 100)."""
    dead_share: float
    """Share of features that never fire on the held-out text."""
    shrinkage: float
    """1 - mean(norm of reconstruction / norm of activation) on held-out text: 0 is none."""
    mse: float
    """Mean squared error per element on held-out text (the paper's "reconstruction loss")."""
    firing_rate: Float[np.ndarray, " features"]
    """Share of held-out tokens on which each feature fires."""
    n_train_tokens: int
    """Tokens it was trained on."""
    n_heldout_tokens: int
    """Tokens that the reconstruction figures were measured on."""
    n_spliced_tokens: int
    """Predictions that `kl_recovered` and `ce_recovered` were measured on."""
    floors: dict[str, Floor]
    """Kind -> what a dictionary scores that learned no features of this model; empty where none was measured."""
    stability: Float[np.ndarray, " features"] | None
    """Of each feature the largest cosine with a feature of the same SAE trained from another seed, mean over the other
    seeds; None with one seed."""
    crosscoder: Crosscoder | None
    """Which features both models share and which one has alone; only where `side` is `both`."""

    @property
    def name(self) -> str:
        """Tell this dictionary from every other of its set: side, site, size, architecture, seed and settings."""
        settings = "".join(
            f" {name} {value:g}" for name, value in (("l1", self.l1), ("k", self.k)) if value is not None
        )
        return f"{self.side} {self.site} x{self.size:g} {self.architecture} seed {self.seed}{settings} lr {self.lr:g}"

    @property
    def n_features(self) -> int:
        """Number of features of the dictionary."""
        return len(self.firing_rate)

    @property
    def width(self) -> int:
        """Width of what it reads; twice the site's for a crosscoder."""
        return int(self.weights.tensors["W_dec"].shape[1])

    @property
    def untrained_explained_variance(self) -> float:
        """Explained variance of this SAE as it was initialised; NaN where it was not measured."""
        return self.floors["untrained"].explained_variance if "untrained" in self.floors else float("nan")

    @property
    def failures(self) -> tuple[str, ...]:
        """Why its features may not be interpreted; empty when it passes every gate (docs/validity.md, "SAE gates")."""
        floor = float(np.fmax(MIN_EXPLAINED_VARIANCE, self.untrained_explained_variance))
        found = {
            f"explained variance {self.explained_variance:.2f} < {floor:.2f}": self.explained_variance >= floor,
            f"KL recovered {self.kl_recovered:.2f} < {MIN_KL_RECOVERED}": self.kl_recovered >= MIN_KL_RECOVERED,
            f"dead share {self.dead_share:.2f} > {MAX_DEAD_SHARE}": self.dead_share <= MAX_DEAD_SHARE,
        }
        return tuple(reason for reason, passes in found.items() if not passes)
