"""The floors of the house: the import contracts hold, and each floor opens without what lies above it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "sae_lens",
    "trl",
    "datasets",
    "spacy",
    "openai",
    "plotly",
    "sklearn",
)
FLOORS = ("core.store", "core.stats", "results", "view.page", "view.plots", "view.score_plots", "config")
STAGES = ("finetune", "diverge", "train_sae", "contrast", "probe", "attribute", "explain", "ablate", "report")


def held_after(code: str, wanted: tuple[str, ...]) -> set[str]:
    """Give which of these modules a fresh Python holds after `code`."""
    told = f"{code}\nimport sys\nprint(*[name for name in {wanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", told], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_import_contracts_hold() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    if not command.exists():
        pytest.skip("import-linter is not installed: pip install lfp-lens[dev]")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("floor", FLOORS)
def test_the_lower_floors_open_without_torch(floor: str) -> None:
    assert not held_after(f"import lfp_lens.{floor}", HEAVY) - {"plotly"}


@pytest.mark.parametrize("module", ["commands", "recipes"])
def test_what_the_help_of_organism_reads_opens_without_torch(module: str) -> None:
    assert not held_after(f"import lfp_lens.organisms.{module}", (*HEAVY, "pandas", "joblib"))


def test_organisms_are_made_and_scored_without_a_library_that_only_some_verbs_need() -> None:
    code = "import lfp_lens.organisms.grid, lfp_lens.organisms.scoring"
    assert not held_after(code, ("trl", "datasets", "openai", "plotly", "sae_lens", "transformer_lens"))


def test_the_page_of_a_run_is_written_without_torch() -> None:
    assert not held_after("import lfp_lens.stages.report, lfp_lens.pipeline", ("torch", "transformers", "spacy"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_no_other_stage_and_no_library_it_may_not_need(stage: str) -> None:
    """The heaviest ones take seconds: they are imported where they are used."""
    others = tuple(f"lfp_lens.stages.{other}" for other in STAGES if other != stage)
    late = ("transformer_lens", "sae_lens", "trl", "datasets", "spacy", "openai", "plotly", "sklearn", "pandas")
    assert not held_after(f"import lfp_lens.stages.{stage}", (*others, *late))
