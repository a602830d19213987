"""The notebooks run from top to bottom in a fresh kernel, without a network, and show what they promise."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` is not installed")
pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FIGURE = "application/vnd.plotly.v1+json"
SHOWN = {
    "text/html": (
        "finetune",
        "pair",
        "train_sae",
        "contrast",
        "probe",
        "wrong",
        "key",
        "explain",
        "feature",
        "ablate",
        "report",
    ),
    FIGURE: ("finetune-plot", "diverge", "probe-plot", "attribute", "ablate-plot"),
}
"""Kind of output -> the cells that must show one."""


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a copy of the tour, client and kernel in processes of their own: this one would warn of their sockets."""
    folder = tmp_path_factory.mktemp("tour")
    copy = shutil.copy(NOTEBOOKS / "1-tour.ipynb", folder)
    # Plotly's figures come as data, so that no browser and no script is needed.
    settings = {
        "PLOTLY_RENDERER": "plotly_mimetype",
        "TQDM_DISABLE": "1",
        "TMPDIR": str(folder),
        "IPYTHONDIR": str(folder),
    }
    command = [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", "--timeout=300", copy]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return nbformat.read(copy, as_version=4)


def outputs(notebook: Any, cell: str) -> list[Any]:
    """Give the outputs of the cell with this id."""
    [found] = [one for one in notebook.cells if one.id == cell]
    return found.outputs


def test_no_cell_of_the_tour_fails_or_warns(tour: Any) -> None:
    said = [(one.id, out) for one in tour.cells if one.cell_type == "code" for out in one.outputs]
    assert [one for one in said if one[1].output_type == "error"] == []
    # tqdm asks for ipywidgets, which are Jupyter's and not ours.
    assert [one for one in said if one[1].get("name") == "stderr" and "IProgress not found" not in one[1].text] == []


@pytest.mark.parametrize(("kind", "cell"), [(kind, cell) for kind, cells in SHOWN.items() for cell in cells])
def test_a_result_shows_itself(tour: Any, kind: str, cell: str) -> None:
    assert any(kind in out.get("data", {}) for out in outputs(tour, cell))


def test_the_tour_goes_through_all_nine_verbs() -> None:
    from lfp_lens.cli import VERBS

    source = "\n".join(cell.source for cell in nbformat.read(NOTEBOOKS / "1-tour.ipynb", as_version=4).cells)
    assert [verb for verb in VERBS if f"lfp.{verb}(" not in source] == []


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
