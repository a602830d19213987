"""Records become plain files and come back; what would need code, or would leave the folder, is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import ARRAY_FILE, RESULT_FILE, home_of, read_record, record, write_record
from lfp_lens.core.store import Store


@record
class Leaf:
    """A record with every plain kind of value."""

    values: Any


@record
class Tree:
    left: Leaf
    right: Leaf


PLAIN: list[Any] = [
    None, True, 7, 0.1, float("inf"), float("-inf"), "naïve\n\x00", (), (1, ("a", None)), {}, {"$record": {"$array": 3}},
    {"a": (1.5, {"b": np.arange(3)})}, np.array(["ab", "c"]), np.zeros((0, 4)), np.array(2.5), np.array([True, False]),
    np.array([np.nan, np.inf]), np.float32(0.5), np.int64(2), np.bool_(True), "2024-01-01",
]  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(same(*parts) for parts in zip(one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return one == other and type(one) is type(other)


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_every_plain_value_comes_back_as_it_was(value: Any, tmp_path: Path) -> None:
    write_record(Leaf(value), tmp_path)
    wanted = value.item() if isinstance(value, np.generic) else value
    assert same(wanted, read_record(tmp_path).values)


def test_a_missing_number_comes_back_as_nan(tmp_path: Path) -> None:
    write_record(Leaf(float("nan")), tmp_path)
    assert np.isnan(read_record(tmp_path).values)


def test_a_path_inside_the_folder_is_kept_relative_and_one_outside_absolute(tmp_path: Path) -> None:
    inside, elsewhere = tmp_path / "inside", Path("/elsewhere/model")
    inside.mkdir()
    write_record(Leaf((inside / "checkpoint" / "x", elsewhere)), inside)
    moved = inside.rename(tmp_path / "moved")
    assert read_record(moved).values == (moved / "checkpoint" / "x", elsewhere)


def test_records_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Leaf(1).values = 2  # type: ignore[misc]


def test_object_arrays_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="object arrays would need pickle"):
        write_record(Leaf(np.array([object()])), tmp_path)


def test_a_pickled_array_is_not_read(tmp_path: Path) -> None:
    write_record(Leaf(np.arange(3)), tmp_path)
    np.savez(tmp_path / ARRAY_FILE, a0=np.array([print], dtype=object))
    with pytest.raises(LensError, match="cannot be read"):
        read_record(tmp_path)


@pytest.mark.parametrize("value", [object(), {1: "a"}, {1, 2}])
def test_a_value_that_is_no_plain_data_is_not_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_record(Leaf(value), tmp_path)


def test_a_record_read_from_a_store_knows_its_folder(tmp_path: Path) -> None:
    leaf = Leaf(1)
    assert home_of(leaf) is None
    kept = Store(tmp_path).get("leaf", {}, lambda folder: leaf)
    assert home_of(kept) is not None and home_of(kept).parent == tmp_path


def test_a_record_of_the_same_run_is_referred_to(tmp_path: Path) -> None:
    store = Store(tmp_path)
    leaf = store.get("leaf", {}, lambda folder: Leaf(np.arange(3)))
    tree = store.get("tree", {}, lambda folder: Tree(leaf, leaf))
    written = json.loads((home_of(tree) / RESULT_FILE).read_text())
    assert written["fields"]["left"] == {"$stored": home_of(leaf).name}
    assert tree.left.values.tolist() == [0, 1, 2]


def test_a_record_of_another_run_is_copied(tmp_path: Path) -> None:
    leaf = Store(tmp_path / "one").get("leaf", {}, lambda folder: Leaf(np.arange(3)))
    tree = Store(tmp_path / "two").get("tree", {}, lambda folder: Tree(leaf, leaf))
    assert tree.right.values.tolist() == [0, 1, 2]


def test_a_run_reached_through_a_link_is_the_same_run(tmp_path: Path) -> None:
    Store(tmp_path / "real").get("leaf", {}, lambda folder: Leaf(1))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    leaf = Store(tmp_path / "link").read("leaf")
    tree = Store(tmp_path / "link").get("tree", {}, lambda folder: Tree(leaf, leaf))
    assert '"$stored"' in (home_of(tree) / RESULT_FILE).read_text()


HOSTILE: list[Any] = [
    {"$stored": "../leaf"}, {"$stored": "/etc"}, {"$stored": ".."}, {"$stored": "."}, {"$stored": ""}, {"$stored": 3},
    {"$stored": "a\\..\\b"}, {"$stored": "here"}, {"$files": "SAEWeights", "found": {"folder": "../elsewhere"}},
    {"$files": "SAEWeights", "found": {"folder": "/etc"}}, {"$files": "SAEWeights", "found": 3}, {"$files": "Leaf", "found": {}},
    {"$files": "../x", "found": {}}, {"$record": "os.system", "fields": {}}, {"$record": "Leaf", "fields": {"other": 1}},
    {"$record": ["Leaf"], "fields": {}}, {"$record": "SAEWeights", "fields": {}}, {"$array": "a9"}, {"$float": "one"},
    {"$path": 3}, {"$tuple": 3}, {"$dict": 3}, {"$unknown": 1}, {"plain": 1}, {"$tuple": [], "$dict": {}}, {"$record": "Leaf"},
    3, None, [1], "text", {"$tuple": []}, {"$dict": {}},
]  # fmt: skip


@pytest.mark.parametrize("written", HOSTILE, ids=json.dumps)
def test_a_result_file_made_by_hand_is_refused_with_its_folder(written: Any, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    write_record(Leaf(1), folder)
    (folder / RESULT_FILE).write_text(json.dumps(written), encoding="utf-8")
    with pytest.raises(LensError, match=r"The stored result .*here cannot be read.*Delete that folder and rerun"):
        read_record(folder)


def test_a_result_nested_too_deep_is_refused(tmp_path: Path) -> None:
    write_record(Leaf(1), tmp_path)
    (tmp_path / RESULT_FILE).write_text('{"$tuple": [' * 50_000, encoding="utf-8")
    with pytest.raises(LensError, match="cannot be read"):
        read_record(tmp_path)


def test_arrays_that_are_cut_off_or_garbled_are_refused(tmp_path: Path) -> None:
    write_record(Leaf(np.random.default_rng(0).normal(size=2000)), tmp_path)
    whole = (tmp_path / ARRAY_FILE).read_bytes()
    for damaged in (b"", b"garbage", whole[:100], whole[: len(whole) // 2], whole[:200] + b"\0" * 400 + whole[600:]):
        (tmp_path / ARRAY_FILE).write_bytes(damaged)
        with pytest.raises(LensError, match=rf"{tmp_path.name} cannot be read"):
            read_record(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name in (RESULT_FILE, ARRAY_FILE):
        write_record(Leaf(1), tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(LensError, match=name):
            read_record(tmp_path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_record(Leaf(1), tmp_path)
    (tmp_path / RESULT_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(LensError, match="cannot be read"):
        read_record(tmp_path)


def test_the_array_file_holds_no_pickle(tmp_path: Path) -> None:
    write_record(Leaf((np.arange(3), np.array(["a"]))), tmp_path)
    with zipfile.ZipFile(tmp_path / ARRAY_FILE) as held:
        for name in held.namelist():
            assert held.read(name)[:6] == b"\x93NUMPY"
            assert b"'|O'" not in held.read(name)
