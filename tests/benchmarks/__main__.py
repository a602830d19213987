"""`python -m tests.benchmarks [NAME]`: run all benchmarks, or one, and print a JSON line per comparison."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

from tests.benchmarks.ablated_generation import ablated_generation
from tests.benchmarks.calibration import calibration
from tests.benchmarks.carriers import carriers
from tests.benchmarks.crosscoder import crosscoder
from tests.benchmarks.explain_features import explain_features
from tests.benchmarks.feature_screen import feature_screen
from tests.benchmarks.harvest import harvest
from tests.benchmarks.labelling import labelling
from tests.benchmarks.learned_feedback import learned_feedback
from tests.benchmarks.null_calibration import null_calibration
from tests.benchmarks.organism_features import organism_features
from tests.benchmarks.ppo import ppo
from tests.benchmarks.published_protocol import published_protocol
from tests.benchmarks.sae_scale import sae_scale
from tests.benchmarks.tied_quality import tied_quality
from tests.benchmarks.train_sae import train_sae
from tests.benchmarks.word_speed import word_speed

BENCHES = {
    "ablated_generation": ablated_generation,
    "calibration": calibration,
    "carriers": carriers,
    "crosscoder": crosscoder,
    "explain_features": explain_features,
    "feature_screen": feature_screen,
    "harvest": harvest,
    "labelling": labelling,
    "learned_feedback": learned_feedback,
    "null_calibration": null_calibration,
    "organism_features": organism_features,
    "ppo": ppo,
    "published_protocol": published_protocol,
    "sae_scale": sae_scale,
    "tied_quality": tied_quality,
    "train_sae": train_sae,
    "word_speed": word_speed,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all of them."""
    unknown = sorted(set(names) - set(BENCHES))
    if unknown:
        print(f"There is no benchmark {', '.join(unknown)}. Known: {', '.join(BENCHES)}.", file=sys.stderr)
        return 2
    for name in names or BENCHES:
        for comparison in BENCHES[name]():
            print(comparison.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
