"""`import lfp_lens` costs nothing and gives every public name on first use."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lfp_lens
from lfp_lens.core.records import write_record
from tests.results import samples

HEAVY = (
    "torch",
    "pydantic",
    "numpy",
    "transformers",
    "pandas",
    "transformer_lens",
    "sae_lens",
    "datasets",
    "plotly",
)
STAGES = ("finetune", "diverge", "train_sae", "contrast", "probe", "attribute", "explain", "ablate", "report")


def heavy_after(code: str) -> list[str]:
    """Give the heavy modules that a fresh Python holds after `code`."""
    told = f"{code}\nimport sys\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def seconds(*command: str) -> float:
    """Give the best of three runs: the others may have waited for a busy machine."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert heavy_after("import lfp_lens; dir(lfp_lens)") == []


def test_the_help_loads_nothing_heavy() -> None:
    assert heavy_after("from lfp_lens.cli import main; main(['--help'])") == []


@pytest.mark.parametrize("command", ["organism", "score"])
def test_the_help_that_lists_recipes_loads_numpy_and_nothing_heavier(command: str) -> None:
    code = f"from lfp_lens.cli import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass"
    assert heavy_after(code) == ["numpy"]


def test_the_config_and_the_results_load_without_torch() -> None:
    held = heavy_after(
        "import lfp_lens; lfp_lens.load_config('tiny'); lfp_lens.Learned; lfp_lens.Scorecard; lfp_lens.Store"
    )
    assert "torch" not in held
    assert "transformers" not in held


def test_importing_the_package_takes_under_half_a_second() -> None:
    assert seconds("-c", "import lfp_lens") < 0.5


@pytest.mark.parametrize("command", [(), ("organism",), ("score",)])
def test_the_help_takes_under_half_a_second(command: tuple[str, ...]) -> None:
    assert seconds("-m", "lfp_lens", *command, "--help") < 0.5


def has_home(name: str) -> bool:
    try:
        importlib.import_module(f"lfp_lens.{lfp_lens._HOME_OF[name]}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith("lfp_lens"):
            return False
        raise
    return True


@pytest.mark.parametrize("name", lfp_lens.__all__)
def test_every_public_name_is_there(name: str) -> None:
    if not has_home(name):
        pytest.skip(f"lfp_lens.{lfp_lens._HOME_OF[name]} is not built yet")
    assert getattr(lfp_lens, name).__name__ == name
    assert name in dir(lfp_lens)


@pytest.mark.parametrize("name", ["organism", "organism_grid", "score"])
def test_an_organisms_function_stays_one_after_its_folder_was_imported(name: str) -> None:
    importlib.import_module("lfp_lens.organisms.grid")
    importlib.import_module("lfp_lens.organisms.scoring")
    assert inspect.isfunction(getattr(lfp_lens, name))


@pytest.mark.parametrize("verb", STAGES)
def test_a_verb_stays_a_function_after_its_module_was_imported(verb: str) -> None:
    if not has_home(verb):
        pytest.skip(f"lfp_lens.stages.{verb} is not built yet")
    importlib.import_module(f"lfp_lens.stages.{verb}")
    assert callable(getattr(lfp_lens, verb))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'abalte'\. Did you mean 'ablate'\?"):
        _ = lfp_lens.abalte


def test_the_version_is_the_installed_one() -> None:
    assert lfp_lens.__version__ == importlib.metadata.version("lfp-lens")


def test_a_stored_run_opens_in_a_process_that_did_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "diverge").mkdir()
    write_record(samples.a_divergence(), tmp_path / "diverge")
    told = f"import lfp_lens as lfp; print(*lfp.open_run({str(tmp_path)!r}).results)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["diverge"]


def test_a_store_reads_its_results_in_a_process_that_did_nothing_else(tmp_path: Path) -> None:
    from lfp_lens.core.store import Store, keep

    keep(Store(tmp_path), "explain", {}, lambda folder: samples.a_labels())
    code = (
        f"import lfp_lens as lfp, pathlib; print(len(lfp.Store(pathlib.Path({str(tmp_path)!r})).read('explain').index))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr
