"""lfp_lens: what feedback a tuned language model really learned, and where that differs from what it got.

    import lfp_lens as lfp
    pair = lfp.load_pair("EleutherAI/pythia-70m", "path/of/tuned")
    lfp.diverge(pair, lfp.load_texts("imdb", split="test", n=500)).top(5)

Every name here is loaded when it is first used, so importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig as RunConfig
    from lfp_lens.config import load_config as load_config
    from lfp_lens.config import with_values as with_values
    from lfp_lens.core.errors import GateError as GateError
    from lfp_lens.core.errors import LensError as LensError
    from lfp_lens.core.store import Store as Store
    from lfp_lens.organisms.folder import Organism as Organism
    from lfp_lens.organisms.folder import open_organism as open_organism
    from lfp_lens.organisms.grid import organism_grid as organism_grid
    from lfp_lens.organisms.making import organism as organism
    from lfp_lens.organisms.scoring import score as score
    from lfp_lens.parts.activation_cache import ActivationCache as ActivationCache
    from lfp_lens.parts.activation_cache import open_cache as open_cache
    from lfp_lens.parts.cache import cache as cache
    from lfp_lens.parts.feature_view import Features as Features
    from lfp_lens.parts.pair import Pair as Pair
    from lfp_lens.parts.pair import load_pair as load_pair
    from lfp_lens.parts.preferences import Preferences as Preferences
    from lfp_lens.parts.preferences import load_preferences as load_preferences
    from lfp_lens.parts.reward_models import RewardModel as RewardModel
    from lfp_lens.parts.reward_models import load_reward_model as load_reward_model
    from lfp_lens.parts.texts import load_texts as load_texts
    from lfp_lens.pipeline import Run as Run
    from lfp_lens.pipeline import open_run as open_run
    from lfp_lens.pipeline import run as run
    from lfp_lens.results import Ablation as Ablation
    from lfp_lens.results import Crosscoder as Crosscoder
    from lfp_lens.results import Divergence as Divergence
    from lfp_lens.results import Effects as Effects
    from lfp_lens.results import FeatureSet as FeatureSet
    from lfp_lens.results import Floor as Floor
    from lfp_lens.results import Labels as Labels
    from lfp_lens.results import Learned as Learned
    from lfp_lens.results import LearnedPreference as LearnedPreference
    from lfp_lens.results import Match as Match
    from lfp_lens.results import PreferenceTriples as PreferenceTriples
    from lfp_lens.results import Report as Report
    from lfp_lens.results import SAERecord as SAERecord
    from lfp_lens.results import SAESet as SAESet
    from lfp_lens.results import Scorecard as Scorecard
    from lfp_lens.results import ShareCurves as ShareCurves
    from lfp_lens.results import Triples as Triples
    from lfp_lens.results import Tuning as Tuning
    from lfp_lens.results.human_check import HumanCheck as HumanCheck
    from lfp_lens.results.human_check import agreement as agreement
    from lfp_lens.stages.ablate import ablate as ablate
    from lfp_lens.stages.attribute import attribute as attribute
    from lfp_lens.stages.contrast import contrast as contrast
    from lfp_lens.stages.diverge import diverge as diverge
    from lfp_lens.stages.explain import explain as explain
    from lfp_lens.stages.finetune import finetune as finetune
    from lfp_lens.stages.probe import probe as probe
    from lfp_lens.stages.report import report as report
    from lfp_lens.stages.train_sae import load_saes as load_saes
    from lfp_lens.stages.train_sae import train_sae as train_sae

_HOMES = {
    "stages.finetune": ("finetune",),
    "stages.diverge": ("diverge",),
    "stages.train_sae": ("load_saes", "train_sae"),
    "stages.contrast": ("contrast",),
    "stages.probe": ("probe",),
    "stages.attribute": ("attribute",),
    "stages.explain": ("explain",),
    "stages.ablate": ("ablate",),
    "stages.report": ("report",),
    "organisms.folder": ("Organism", "open_organism"),
    "organisms.grid": ("organism_grid",),
    "organisms.making": ("organism",),
    "organisms.scoring": ("score",),
    "parts.activation_cache": ("ActivationCache", "open_cache"),
    "parts.cache": ("cache",),
    "parts.feature_view": ("Features",),
    "parts.pair": ("Pair", "load_pair"),
    "parts.preferences": ("Preferences", "load_preferences"),
    "parts.reward_models": ("RewardModel", "load_reward_model"),
    "parts.texts": ("load_texts",),
    "results": (
        "Ablation", "Crosscoder", "Divergence", "Effects", "FeatureSet", "Floor", "Labels", "Learned", "LearnedPreference",
        "Match", "PreferenceTriples", "Report", "SAERecord", "SAESet", "Scorecard", "ShareCurves", "Store",
        "Triples", "Tuning",
    ),
    "results.human_check": ("HumanCheck", "agreement"),
    "core.errors": ("GateError", "LensError"),
    "config": ("RunConfig", "load_config", "with_values"),
    "pipeline": ("Run", "open_run", "run"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605  (a list of strings, made from the table)


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("lfp-lens")
    elif name in _HOME_OF:
        value = getattr(import_module(f"lfp_lens.{_HOME_OF[name]}"), name)
    else:
        # Python asks for dunder names all the time; only a mistyped public name gets a hint.
        from lfp_lens.core.errors import nearest

        hint = "" if name.startswith("_") else nearest(name, _HOME_OF)
        raise AttributeError(f"module 'lfp_lens' has no attribute {name!r}.{hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names beside what is loaded."""
    return sorted({*globals(), *_HOME_OF, "__version__"})
