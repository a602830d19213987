import gzip
from pathlib import Path

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.tables import file_columns, file_rows, local_set, split_file

ROWS = [("a", "1"), ("b", "2")]


def write(folder: Path, ending: str) -> Path:
    import pandas as pd

    path = folder / f"train{ending}"
    frame = pd.DataFrame(ROWS, columns=["word", "count"])
    match ending:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            lines = frame.to_json(orient="records", lines=True).encode()
            path.write_bytes(gzip.compress(lines) if ending.endswith(".gz") else lines)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl", ".jsonl.gz"])
def test_rows_come_by_the_columns_asked_for_in_their_order(tmp_path: Path, ending: str):
    path = write(tmp_path, ending)
    assert file_columns(path, "table") == ["word", "count"]
    assert file_rows(path, ["count", "word"], "table") == [row[::-1] for row in ROWS]
    assert file_rows(path, ["word"], "table") == [("a",), ("b",)]
    assert split_file(tmp_path, "train") == path
    assert split_file(tmp_path, "test") is None
    with pytest.raises(LensError, match=r"no column 'words'\. Did you mean 'word'\? Columns: word, count"):
        file_rows(path, ["word", "words"], "table")


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".jsonl.gz"])
def test_a_damaged_table_is_refused_by_its_name(tmp_path: Path, ending: str):
    path = tmp_path / f"bad{ending}"
    path.write_bytes(b"\x1f\x8b\xff\x00PAR1 nonsense")
    for read in (lambda: file_columns(path, "list"), lambda: file_rows(path, ["word"], "list")):
        with pytest.raises(LensError, match=r"The list .*bad.* (cannot be read|is not JSON)"):
            read()


def test_a_table_of_an_unknown_kind_is_refused(tmp_path: Path):
    for read in (lambda: file_columns(tmp_path / "a.xlsx", "list"), lambda: file_rows(tmp_path / "a.xlsx", [], "list")):
        with pytest.raises(LensError, match=r"The list .*a\.xlsx is of an unknown kind\. Known: \.parquet"):
            read()


def test_a_set_lies_in_the_data_folder_only_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LFP_LENS_DATA", str(tmp_path))
    assert local_set("pairs", "train.csv") is None
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs", ".csv")
    assert local_set("pairs", "train.csv") == tmp_path / "pairs"
    monkeypatch.delenv("LFP_LENS_DATA")
    assert local_set("pairs", "train.csv") is None
