import gzip
import json
from pathlib import Path

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.sources import data_folder, model_path
from lfp_lens.parts.texts import load_texts

ROWS = [f"Text number {number}." for number in range(200)]


def write(folder: Path, ending: str, rows: list[str] = ROWS, column: str = "text") -> str:
    import pandas as pd

    path = folder / f"rows{ending}"
    lines = "".join(json.dumps({"id": 1, column: row}) + "\n" for row in rows)
    match ending:
        case ".txt":
            path.write_text("\n".join(rows))
        case ".csv":
            pd.DataFrame({"id": 1, column: rows}).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame({"id": 1, column: rows}).to_parquet(path)
        case ".jsonl":
            path.write_text(lines)
        case ".jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
    return str(path)


@pytest.mark.parametrize("ending", [".txt", ".csv", ".parquet", ".jsonl", ".jsonl.gz"])
def test_every_file_type_gives_the_same_two_sides_without_overlap(tmp_path: Path, ending: str):
    path = write(tmp_path, ending)
    train, test = load_texts(path), load_texts(path, split="test")
    assert sorted(train + test) == sorted(ROWS)
    assert not set(train) & set(test)
    assert train == load_texts(write(tmp_path, ".txt"))
    assert 20 <= len(test) <= 60  # 40 expected, 3.5 standard deviations of 5.7 on each side


def test_the_side_of_a_text_does_not_depend_on_its_neighbours(tmp_path: Path):
    whole = set(load_texts(write(tmp_path, ".txt"), split="test"))
    part = set(load_texts(write(tmp_path, ".jsonl", ROWS[:100]), split="test"))
    assert part == whole & set(ROWS[:100])


def test_a_folder_with_split_files_keeps_its_own_split(tmp_path: Path):
    (tmp_path / "train.txt").write_text("a\nb\na\n\n")
    (tmp_path / "test.txt").write_text("c\n")
    assert load_texts(str(tmp_path)) == ["a", "b"]
    assert load_texts(str(tmp_path), split="test") == ["c"]
    (tmp_path / "test.txt").unlink()
    with pytest.raises(LensError, match="holds no test file"):
        load_texts(str(tmp_path), split="test")


def test_a_smaller_sample_is_the_beginning_of_a_larger_one_and_follows_the_seed(tmp_path: Path):
    path = write(tmp_path, ".txt")
    assert load_texts(path, n=50)[:10] == load_texts(path, n=10)
    assert load_texts(path, n=50) != load_texts(path, n=50, seed=1)
    assert len(set(load_texts(path, n=50))) == 50


def test_duplicates_and_missing_texts_are_dropped(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n\n{"text": " a "}\n{"text": "  "}\n')
    assert [text for split in ("train", "test") for text in load_texts(str(path), split=split)] == ["a"]


def test_asking_for_more_texts_than_there_are_says_how_many_there_are(tmp_path: Path):
    with pytest.raises(LensError, match=r"1000 texts were asked for; .* has 1\d\d distinct ones"):
        load_texts(write(tmp_path, ".txt"), n=1000)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_a_missing_column_is_refused_with_the_columns_listed(tmp_path: Path, ending: str):
    path = write(tmp_path, ending, column="review")
    assert load_texts(path, column="review")
    with pytest.raises(LensError, match=r"no column 'reviews'. Did you mean 'review'\? Columns: id, review"):
        load_texts(path, column="reviews")


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".jsonl.gz", ".txt"])
def test_a_damaged_file_is_refused(tmp_path: Path, ending: str):
    path = tmp_path / f"bad{ending}"
    path.write_bytes(b"\x1f\x8b\xff\x00PAR1 nonsense")
    with pytest.raises(LensError, match=r"cannot be read|is not JSON"):
        load_texts(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2, is not JSON"),
        ("a.jsonl", "[1]\n", "line 1, holds no object"),
        ("a.jsonl", '{"text": 3}\n', r"holds int values \('3'\)"),
        ("a.jsonl", '{"text": ""}\n', "holds no text"),
        ("a.csv", "", "cannot be read"),
        ("a.docx", "x", "unknown kind"),
    ],
)
def test_a_file_with_unusable_content_is_refused_with_the_reason(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(LensError, match=message):
        load_texts(str(tmp_path / name))


def test_bad_names_and_parameters_are_refused(tmp_path: Path):
    with pytest.raises(LensError, match="no text file"):
        load_texts(str(tmp_path / "absent.csv"))
    with pytest.raises(LensError, match=r"Unknown split 'valid'\. Known: train, test"):
        load_texts("imdb", split="valid")
    with pytest.raises(LensError, match="n must be at least 1"):
        load_texts("imdb", n=0)


def test_a_set_that_the_hub_does_not_give_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def refuse(name: str, split: str) -> None:
        raise ConnectionError(f"no {name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(LensError, match=r"'imbd' is no local file, .* Did you mean 'imdb'"):
        load_texts("imbd")


def test_a_hub_set_is_read_by_name_split_and_column(monkeypatch: pytest.MonkeyPatch):
    import datasets

    table = datasets.Dataset.from_dict({"body": ["a", "a", "b"]})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or table)
    shown = datasets.is_progress_bar_enabled()
    assert load_texts("someone/set", split="test", column="body") == ["a", "b"]
    assert asked == [("someone/set", "test")]
    assert datasets.is_progress_bar_enabled() == shown
    with pytest.raises(LensError, match=r"no column 'text'\. Columns: body"):
        load_texts("someone/set")


def test_named_sets_come_from_the_hub_where_no_data_folder_is_named(monkeypatch: pytest.MonkeyPatch):
    import datasets

    sets = {
        "stanfordnlp/imdb": {"train": ["Seen<br /><br />twice"], "test": ["Seen twice", "New  one\n"]},
        "roneneldan/TinyStories": {"train[:100000]": [f"One {number}.\n\nTwo. " for number in range(50)] + ["â bad"]},
    }
    monkeypatch.delenv("LFP_LENS_DATA", raising=False)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: datasets.Dataset.from_dict({"text": sets[name][split]})
    )
    assert load_texts("imdb") == ["Seen twice"]
    assert load_texts("imdb", split="test") == ["New one"]  # what train holds is not measured on
    stories = load_texts("tinystories") + load_texts("tinystories", split="test")
    assert sorted(stories) == sorted(f"One {number}.\nTwo." for number in range(50))


def test_the_real_reviews_are_clean_and_the_sides_share_no_text(real_data: Path):
    train, test = load_texts("imdb"), load_texts("imdb", split="test")
    assert (len(train), len(test)) == (24_902, 24_676)
    assert not set(train) & set(test)
    assert not any("<br" in text or "  " in text or "\n" in text for text in test)


def test_the_real_stories_hold_no_mojibake_and_no_blank_line(real_data: Path):
    stories = load_texts("tinystories") + load_texts("tinystories", split="test")
    assert len(stories) == 917
    assert not any("â" in text or "\n\n" in text for text in stories)


def test_the_real_dialogues_are_both_replies_of_every_pair_and_the_sides_share_no_question(real_data: Path):
    train, test = load_texts("hh"), load_texts("hh", split="test")
    assert (len(train), len(test)) == (12_726, 4_250)
    assert all(text.startswith("\n\nHuman:") for text in train + test)
    questions = [{" ".join(text.split("\n\nAssistant:")[0].lower().split()) for text in side} for side in (train, test)]
    assert not questions[0] & questions[1]
    assert load_texts("hh", n=5) == load_texts("hh", n=10)[:5]


def test_own_models_are_found_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LFP_LENS_DATA", str(tmp_path))
    with pytest.raises(LensError, match="'stories260K' is not in"):
        model_path("stories260K")
    (tmp_path / "models" / "stories260K").mkdir(parents=True)
    assert model_path("stories260K") == str(tmp_path / "models" / "stories260K")
    assert model_path("gpt2") == "gpt2"


def test_an_unset_or_wrong_data_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LFP_LENS_DATA", raising=False)
    assert data_folder() is None
    with pytest.raises(LensError, match="set LFP_LENS_DATA"):
        model_path("imdb-neox-2m")
    monkeypatch.setenv("LFP_LENS_DATA", str(tmp_path / "absent"))
    with pytest.raises(LensError, match="which is no folder"):
        data_folder()
