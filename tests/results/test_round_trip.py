"""Every result survives a round trip through the store's files, and opens without the heavy libraries."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import read_record, write_record
from lfp_lens.core.store import Store
from lfp_lens.results import FeatureSet, Report
from lfp_lens.results.train_sae import SAEWeights
from tests.results import samples

ALL = {
    **samples.results(),
    "features": FeatureSet(samples.an_sae_set(), ((samples.SITES[4], 3),)),
    "ablate alone": samples.an_ablation(single=True),
}


def assert_same(one: Any, other: Any, where: str = "result") -> None:
    """Compare two records field by field; NaN equals NaN."""
    if dataclasses.is_dataclass(one):
        assert type(one) is type(other), where
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, where
        np.testing.assert_array_equal(one, other, err_msg=where)
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other), where
        for row, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{where}[{row}]")
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("name", ALL)
def test_a_result_comes_back_from_disk_as_it_was(name: str, tmp_path: Path) -> None:
    write_record(ALL[name], tmp_path)
    assert_same(ALL[name], read_record(tmp_path))


def test_a_checkpoint_inside_the_result_moves_with_it(tmp_path: Path) -> None:
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    write_record(samples.a_tuning(first / "checkpoint"), first)
    first.rename(moved)
    assert read_record(moved).path == moved / "checkpoint"


def test_a_stored_sae_set_is_referred_to_and_not_copied(tmp_path: Path) -> None:
    store = Store(tmp_path)
    saes = store.get("train_sae", {}, lambda folder: samples.an_sae_set())
    effects = dataclasses.replace(samples.an_effects(), saes=saes)
    read = store.get("attribute", {"saes": saes}, lambda folder: effects)
    assert not list((tmp_path / "attribute").resolve().glob("saes/*"))
    assert_same(samples.an_sae_set(), read.saes)


def test_an_sae_folder_outside_the_result_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the result"):
        SAEWeights.read_files({"folder": "../elsewhere"}, tmp_path)


def test_a_damaged_result_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write_record(samples.a_divergence(), tmp_path)
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(LensError, match="Delete that folder and rerun"):
        read_record(tmp_path)


def test_a_report_round_trips_with_its_path(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.html", ("probe",), {"ablate": "no SAE passes"})
    write_record(report, tmp_path)
    assert_same(report, read_record(tmp_path))


def test_importing_results_loads_no_heavy_library() -> None:
    heavy = (
        "torch",
        "transformers",
        "transformer_lens",
        "sae_lens",
        "pandas",
        "plotly",
        "sklearn",
        "spacy",
        "datasets",
    )
    code = f"import sys, lfp_lens.results; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
