"""What tuning added, on planted activations: BatchTopK crosscoders beside L1 ones, the norm rule beside latent scaling.

The set: 224 sparse random directions in width 128, each active on 3 % of samples; 180 shared, 12 tuned only, 12 base only,
20 shared but 0.15 times as strong in base. Right is: 12 recovered, and nothing else flagged.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lfp_lens.stages.train_sae.crosscoder import compare
from tests.benchmarks.measure import Shape, one_thread
from tests.stages.planted_pairs import PlantedPair

TRAINERS: tuple[Mapping[str, Any], ...] = (
    {"architecture": "batchtopk", "k": 7},
    {"architecture": "batchtopk", "k": 12},
    {"architecture": "standard", "l1": 0.3, "lr": 1e-3},
    {"architecture": "standard", "l1": 1.0, "lr": 1e-3},
)


@dataclass(frozen=True)
class Verdict:
    """What one trainer's features that are called tuned-only really are, by one rule."""

    what: str
    rule: str
    counts: Mapping[str, int]
    planted: int
    cpu_seconds: float

    def line(self) -> str:
        """Give the JSON line; `recovered` is of `planted`, the others count features that were flagged."""
        return json.dumps({"bench": "crosscoder", "what": self.what, "rule": self.rule, **self.counts,
                           "planted": self.planted, "cpu_seconds": round(self.cpu_seconds)})  # fmt: skip


def crosscoder(
    shape: Shape | None = None,
    *,
    seeds: Sequence[int] = (1, 2),
    steps: int = 3000,
    trainers: Sequence[Mapping[str, Any]] = TRAINERS,
    planted: Mapping[str, int] | None = None,
    d_sae: int = 512,
) -> Iterator[Verdict]:
    """Train and judge every trainer on every seed. `shape` is of no use here: there is no language model."""
    with one_thread():
        for seed in seeds:
            pair = PlantedPair.make(seed, **(planted or {}))
            for options in trainers:
                start = time.process_time()
                weights = pair.train(d_sae=d_sae, steps=steps, **options)
                seconds = time.process_time() - start
                found = compare(weights, pair.chunks(40, 2500))
                setting = f"k {options['k']}" if "k" in options else f"l1 {options['l1']}"
                for rule, counts in pair.verdicts(weights, found).items():
                    yield Verdict(f"{options['architecture']} {setting}, seed {seed}", rule, counts,
                                  int((pair.kinds == "tuned").sum()), seconds)  # fmt: skip
