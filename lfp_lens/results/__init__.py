"""What every verb gives back, one file per verb: frozen, NumPy, opens without torch.

`Store` stands here too: it reads records of every kind, so it comes with the floor that defines them.
"""

from lfp_lens.core.store import Store
from lfp_lens.results.ablate import Ablation
from lfp_lens.results.attribute import Effects
from lfp_lens.results.contrast import PreferenceTriples, Triples
from lfp_lens.results.crosscoder import Crosscoder
from lfp_lens.results.diverge import Divergence
from lfp_lens.results.explain import Labels
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.finetune import Tuning
from lfp_lens.results.matching import Match
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.results.probe import Learned
from lfp_lens.results.report import Report
from lfp_lens.results.saes import Floor
from lfp_lens.results.score import PlantedWords, Score
from lfp_lens.results.scorecard import Scorecard
from lfp_lens.results.share_curves import ShareCurves
from lfp_lens.results.train_sae import SAERecord, SAESet
from lfp_lens.results.world import World

__all__ = [
    "Ablation",
    "Crosscoder",
    "Divergence",
    "Effects",
    "FeatureSet",
    "Floor",
    "Labels",
    "Learned",
    "LearnedPreference",
    "Match",
    "PlantedWords",
    "PreferenceTriples",
    "Report",
    "SAERecord",
    "SAESet",
    "Score",
    "Scorecard",
    "ShareCurves",
    "Store",
    "Triples",
    "Tuning",
    "World",
]
