import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.parts.preference_sources import HH_SUBSETS
from lfp_lens.parts.preferences import Preference, Preferences, load_preferences, sample_preferences
from tests.tiny import tiny_model, tiny_tokenizer

PAIRS = [{"prompt": f"Question {number}?", "chosen": " yes", "rejected": " no"} for number in range(200)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    import pandas as pd

    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines)
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return str(path)


def dialogue(*turns: str) -> str:
    """Give a transcript of human and assistant turns, in HH's layout."""
    return "".join(f"\n\n{('Human', 'Assistant')[at % 2]}:{turn and ' '}{turn}" for at, turn in enumerate(turns))


def first_turns(pairs: tuple[Preference, ...]) -> set[str]:
    return {
        " ".join(pair.prompt.split("\n\nHuman:", 1)[-1].split("\n\nAssistant:", 1)[0].lower().split()) for pair in pairs
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_every_file_type_gives_the_same_pairs_on_two_sides_without_overlap(tmp_path: Path, name: str):
    found = load_preferences(write(tmp_path / name, PAIRS))
    assert sorted(found.train + found.test) == sorted(tuple(row.values()) for row in PAIRS)
    assert not {pair.prompt for pair in found.train} & {pair.prompt for pair in found.test}
    assert 7 <= len(found.test) <= 35  # 20 expected, 3.5 standard deviations of 4.2 on each side
    assert found.dropped == {}
    assert found.fingerprint == load_preferences(write(tmp_path / "b.jsonl", PAIRS)).fingerprint


def test_prompts_that_differ_by_case_and_space_only_stay_on_one_side(tmp_path: Path):
    twins = [row | {"prompt": f"  QUESTION  {number}? "} for number, row in enumerate(PAIRS)]
    found = load_preferences(write(tmp_path / "a.jsonl", PAIRS + twins), heldout=0.5)
    assert len(found.train) + len(found.test) == 400
    assert len(found.test) == 2 * len(first_turns(found.test))
    assert not first_turns(found.train) & first_turns(found.test)


def test_the_side_of_a_prompt_does_not_depend_on_its_neighbours(tmp_path: Path):
    whole = load_preferences(write(tmp_path / "a.jsonl", PAIRS))
    part = load_preferences(write(tmp_path / "b.jsonl", PAIRS[:100]))
    assert set(part.test) == set(whole.test) & {tuple(row.values()) for row in PAIRS[:100]}


def test_dialogues_are_cut_behind_the_last_assistant_mark_and_grouped_by_the_first_human_turn(tmp_path: Path):
    rows = [
        {"chosen": dialogue(f"Hi {number}", "Hello", more, "Good"), "rejected": dialogue(f"Hi {number}", "Hello", more, "Bad")}
        for number in range(60)
        for more in ("Who?", "What?")
    ]  # fmt: skip
    found = load_preferences(write(tmp_path / "a.jsonl", rows), heldout=0.3)
    first = found.train[0]
    assert first.prompt.endswith("\n\nAssistant:")
    assert first.prompt.count("Assistant:") == 2
    assert (first.chosen, first.rejected) == (" Good", " Bad")
    assert len(found.train) + len(found.test) == 120
    assert not first_turns(found.train) & first_turns(found.test)
    assert len(found.test) == 2 * len(first_turns(found.test))


def test_every_unusable_dialogue_is_dropped_and_counted(tmp_path: Path):
    good = [{"chosen": dialogue(f"Hi {at}", "yes"), "rejected": dialogue(f"Hi {at}", "no")} for at in range(60)]
    bad = [
        {"chosen": dialogue("a", "yes"), "rejected": dialogue("b", "no")},
        {"chosen": dialogue("a", "yes"), "rejected": dialogue("a", "no", "more", "no")},
        {"chosen": dialogue("a", "yes"), "rejected": dialogue("a", "yes") + " \n"},
        {"chosen": dialogue("a", ""), "rejected": dialogue("a", "no")},
        {"chosen": dialogue("a", "yes"), "rejected": None},
        {"chosen": "no marks", "rejected": "at all"},
        good[0],
    ]
    found = load_preferences(write(tmp_path / "a.jsonl", good + bad), heldout=0.3)
    assert len(found.train) + len(found.test) == 60
    assert found.dropped == {
        "prompts differ": 2, "chosen equal to rejected": 1, "empty chosen or rejected": 2, "no assistant turn": 1,
        "exact repeat": 1,
    }  # fmt: skip


def test_every_unusable_row_of_a_file_with_a_prompt_column_is_dropped_and_counted(tmp_path: Path):
    bad = [
        {"prompt": "p", "chosen": "same", "rejected": " same "},
        {"prompt": "p", "chosen": " ", "rejected": "no"},
        {"prompt": None, "chosen": "yes", "rejected": "no"},
        PAIRS[5],
    ]
    found = load_preferences(write(tmp_path / "a.jsonl", PAIRS + bad))
    assert len(found.train) + len(found.test) == 200
    assert found.dropped == {
        "chosen equal to rejected": 1, "empty chosen or rejected": 1, "empty prompt": 1, "exact repeat": 1,
    }  # fmt: skip


def test_whole_texts_beside_a_prompt_column_lose_the_prompt_but_only_where_all_rows_have_it(tmp_path: Path):
    whole = [row | {side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in PAIRS]
    apart = load_preferences(write(tmp_path / "a.jsonl", PAIRS))
    assert load_preferences(write(tmp_path / "b.jsonl", whole)).fingerprint == apart.fingerprint
    mixed = load_preferences(write(tmp_path / "c.jsonl", whole[:-1] + PAIRS[-1:]))
    assert Preference(*whole[0].values()) in mixed.train + mixed.test


def test_a_folder_keeps_its_own_split_and_test_loses_what_stands_in_train(tmp_path: Path):
    write(tmp_path / "train.jsonl", PAIRS[:20])
    write(tmp_path / "test.parquet", [PAIRS[3] | {"prompt": "question 3? "}, *PAIRS[20:25]])
    found = load_preferences(tmp_path)
    assert [pair.prompt for pair in found.train] == [row["prompt"] for row in PAIRS[:20]]
    assert [pair.prompt for pair in found.test] == [row["prompt"] for row in PAIRS[20:25]]
    assert found.dropped == {"test prompt stands in train": 1}
    (tmp_path / "test.parquet").unlink()
    (tmp_path / "train.jsonl").rename(tmp_path / "other.jsonl")
    with pytest.raises(LensError, match=r"holds no train file\. Expected train\.parquet or train\.jsonl"):
        load_preferences(tmp_path)


def test_columns_may_have_other_names(tmp_path: Path):
    renamed = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in PAIRS]
    path = write(tmp_path / "a.csv", renamed)
    assert load_preferences(path, columns=("q", "good", "bad")).fingerprint == (
        load_preferences(write(tmp_path / "b.csv", PAIRS)).fingerprint
    )
    with pytest.raises(LensError, match=r"no column 'question'\. .*Columns: q, good, bad"):
        load_preferences(path, columns=("question", "good", "bad"))
    with pytest.raises(LensError, match=r"no column 'chosen'"):
        load_preferences(path)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one_and_follows_the_seed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    large, small = load_preferences(path, n=100), load_preferences(path, n=10)
    assert large.train[:10] == small.train
    assert (len(large.test), len(small.test)) == (10, 2)
    assert load_preferences(path, n=100, seed=1).train != large.train
    with pytest.raises(LensError, match=r"1000 pairs were asked for; .* has 1\d\d usable ones"):
        load_preferences(path, n=1000)


def test_the_fingerprint_follows_the_pairs(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    prints = {load_preferences(path).fingerprint, load_preferences(path, n=50).fingerprint}
    assert len(prints | {load_preferences(write(tmp_path / "b.jsonl", swapped)).fingerprint}) == 3


def test_preferences_show_themselves_with_counts_and_escape_what_they_hold(tmp_path: Path):
    pairs = (Preference("<b>", "<i>", "<u>"),)
    shown = Preferences("<script>", pairs, pairs, {"exact repeat": 3})
    assert "<script>" not in shown._repr_html_()
    assert "dropped: exact repeat" in shown._repr_html_()
    assert shown.to_frame().to_dict("records")[1] == {
        "side": "test", "prompt": "<b>", "chosen": "<i>", "rejected": "<u>",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "chosen": "a", "rejected": "a "}] * 3, r"Chosen is equal to rejected in all 3 rows"),
        ([{"chosen": dialogue("q", "a"), "rejected": dialogue("q", "a")}], r"equal to rejected in all 1 rows"),
        (
            [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 2 + [{"prompt": "p", "chosen": "", "rejected": "a"}],
            r"None of the 3 rows .* 2 chosen equal to rejected, 1 empty chosen or rejected",
        ),
        (PAIRS[:1] * 4, r"side of .* usable pairs of 1, .* \(dropped: 3 exact repeat\)"),
        ([{"prompt": "p", "chosen": ["a"], "rejected": "b"}], r"column 'chosen' .* holds list values"),
        ([], "holds no rows"),
    ],
)
def test_a_source_without_usable_pairs_is_refused_with_the_counts(tmp_path: Path, rows: list, message: str):
    with pytest.raises(LensError, match=message):
        load_preferences(write(tmp_path / "a.jsonl", rows))


def test_a_file_with_columns_but_no_rows_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(LensError, match="holds no rows"):
        load_preferences(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hh:helpful", {}, r"Unknown subset of hh 'helpful'\. Did you mean 'helpful-base'"),
        ("absent.jsonl", {}, "no preference file"),
        ("hh", {"n": 0}, "n must be at least 1"),
        ("hh", {"heldout": 1.0}, "share between 0 and 1"),
        ("hh", {"columns": ("chosen", "rejected")}, "three columns"),
    ],
)
def test_bad_names_and_parameters_are_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(LensError, match=message):
        load_preferences(name, **options)


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path):
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(LensError, match="unknown kind"):
        load_preferences(tmp_path / "a.docx")


def serve(monkeypatch: pytest.MonkeyPatch, sets: dict[tuple[str, str | None], dict[str, list[dict]]]) -> None:
    """Let the hub have these sets: (name, folder) -> split -> rows."""
    import datasets

    def load(name: str, data_dir: str | None = None) -> Any:
        if (name, data_dir) not in sets:
            raise ConnectionError(f"no {name}")
        return {split: datasets.Dataset.from_list(rows) for split, rows in sets[name, data_dir].items()}

    monkeypatch.setattr(datasets, "load_dataset", load)


def test_named_sets_come_from_the_hub_where_no_data_folder_is_named(monkeypatch: pytest.MonkeyPatch):
    def rows(start: str, n: int) -> list[dict]:
        return [{side: dialogue(f"{start} {at}", side) for side in ("chosen", "rejected")} for at in range(n)]

    hh = {
        ("Anthropic/hh-rlhf", subset): {"train": rows(subset, 5), "test": rows(subset, 2) + rows(subset + "!", 2)}
        for subset in HH_SUBSETS
    }
    serve(monkeypatch, hh | {("unalignment/toxic-dpo-v0.2", None): {"train": PAIRS}})
    monkeypatch.delenv("LFP_LENS_DATA", raising=False)
    every, one = load_preferences("hh"), load_preferences("hh:harmless-base")
    assert (len(every.train), len(every.test), every.dropped) == (20, 8, {"test prompt stands in train": 8})
    assert (len(one.train), len(one.test)) == (5, 2)
    toxic = load_preferences("toxic")
    assert len(toxic.train) + len(toxic.test) == 200


def test_any_set_of_the_hub_is_read_by_its_splits_and_columns(monkeypatch: pytest.MonkeyPatch):
    sets = {"someone/pairs": {"train": PAIRS[:20], "test": PAIRS[20:24]}, "someone/odd": {"train_prefs": PAIRS}}
    serve(monkeypatch, {(name, None): splits for name, splits in sets.items()})
    found = load_preferences("someone/pairs")
    assert (len(found.train), len(found.test)) == (20, 4)
    with pytest.raises(LensError, match=r"no column 'train'\. .*Columns: train_prefs"):
        load_preferences("someone/odd")
    with pytest.raises(LensError, match=r"'toxi' is no local file, .* Did you mean 'toxic'"):
        load_preferences("toxi")


def test_the_real_pairs_are_counted_and_no_first_turn_is_on_both_sides(real_data: Path):
    found = load_preferences("hh")
    # 8,552 rows; 36 pairs are equal by the data's own notes.
    assert (len(found.train), len(found.test)) == (6363, 2125)
    assert found.dropped == {"prompts differ": 17, "chosen equal to rejected": 36, "empty chosen or rejected": 11}
    assert not first_turns(found.train) & first_turns(found.test)
    assert all(pair.prompt.endswith("\n\nAssistant:") for pair in found.train + found.test)
    parts = [load_preferences(f"hh:{subset}") for subset in HH_SUBSETS]
    assert sum(len(part.train) for part in parts) == len(found.train)


def ids_of(*texts: str) -> list[list[int]]:
    tokenizer = tiny_tokenizer()
    return [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]


def by_length(whole: list[str], completions: list[str]) -> np.ndarray:
    return np.array([len(text) for text in completions], dtype=float)


def sampled(prompts: list[list[int]], **options: Any) -> tuple[list[Preference], dict[str, int]]:
    given: dict[str, Any] = {"score": by_length, "max_new_tokens": 6, "min_gap": 1.0, "seed": 0} | options
    return sample_preferences(tiny_model(), tiny_tokenizer(), prompts, **given)


def test_pairs_of_own_samples_are_ordered_by_the_reward_and_all_that_differ_enough_are_kept():
    prompts = ids_of(*["the film was", "we saw the river", "it was"] * 20)
    seen: list[np.ndarray] = []

    def score(whole: list[str], completions: list[str]) -> np.ndarray:
        seen.append(by_length(whole, completions))
        return seen[-1]

    pairs, dropped = sampled(prompts, score=score, min_gap=3.0)
    gaps = np.abs(seen[0][::2] - seen[0][1::2])
    assert 0 < len(pairs) < 60
    assert len(pairs) == (gaps >= 3).sum()
    assert dropped == {"rewards closer than 3": int((gaps < 3).sum())}
    assert all(len(pair.chosen) - len(pair.rejected) >= 3 for pair in pairs)
    assert {pair.prompt for pair in pairs} == {"the film was", "we saw the river", "it was"}
    assert sampled(prompts, min_gap=3.0)[0] == pairs
    assert sampled(prompts, min_gap=3.0, seed=1)[0] != pairs


def test_equal_rewards_never_make_a_pair():
    pairs, dropped = sampled(ids_of("the film") * 4, score=lambda whole, new: np.zeros(len(new)), min_gap=0.0)
    assert (pairs, dropped) == ([], {"rewards closer than 0": 4})


def test_a_gap_of_exactly_the_least_is_kept_in_spite_of_binary_rounding():
    assert 0.3 - 0.1 < 0.2
    pairs, _ = sampled(ids_of("the film") * 4, score=lambda whole, new: np.array([0.3, 0.1] * 4), min_gap=0.2)
    assert len(pairs) == 4


def test_a_prompt_of_special_tokens_alone_makes_no_pair():
    pairs, dropped = sampled([[tiny_tokenizer().bos_token_id]] * 8, min_gap=0.5)
    assert pairs == []
    assert dropped.get("empty prompt", 0) + dropped.get("rewards closer than 0.5", 0) == 8
    assert dropped["empty prompt"] > 0


@pytest.mark.parametrize("min_gap", [-0.1, float("nan"), float("inf")])
def test_a_gap_that_is_no_number_of_reward_is_refused(min_gap: float):
    with pytest.raises(LensError, match="min_gap must be a finite number"):
        sampled(ids_of("the film"), min_gap=min_gap)


def fixed_samples(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, rows: list[list[int]]) -> None:
    """Let sampling give these continuations, in turn."""
    from lfp_lens.parts import generation

    def sample(model: Any, given: Any, prompts: list[list[int]], **options: Any) -> generation.Completions:
        whole = [[*start, *ids] for start, ids in zip(prompts, rows, strict=True)]

        def texts(of: list[list[int]]) -> list[str]:
            return tokenizer.batch_decode(of, skip_special_tokens=True)

        return generation.Completions(texts(prompts), texts(rows), rows, [True] * len(rows), texts(whole))

    monkeypatch.setattr(generation, "sample", sample)


def test_a_letter_that_the_prompt_cuts_through_goes_to_the_continuations(monkeypatch: pytest.MonkeyPatch):
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the café wins", add_special_tokens=False)["input_ids"]
    cut = next(at for at in range(len(ids)) if tokenizer.decode(ids[:at]).endswith("\ufffd"))
    end = tokenizer("é", add_special_tokens=False)["input_ids"][1:]
    fixed_samples(monkeypatch, tokenizer, [ids[cut:], end])
    pairs, _ = sample_preferences(
        None, tokenizer, [ids[:cut]], by_length, max_new_tokens=6, min_gap=1.0, seed=0
    )  # fmt: skip
    assert pairs == [Preference("the caf", "é wins", "é")]


def test_the_space_where_prompt_and_sample_meet_survives_sentencepiece(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "models" / "stories260K")
    start, long, short = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Once upon", "a time there was", "a day")
    )
    assert not tokenizer.decode(long).startswith(" ")
    fixed_samples(monkeypatch, tokenizer, [short, long])
    pairs, _ = sample_preferences(None, tokenizer, [start], by_length, max_new_tokens=6, min_gap=1.0, seed=0)
    assert pairs == [Preference("Once upon", " a time there was", " a day")]
