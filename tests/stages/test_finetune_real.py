"""finetune on real data: human preferences and their harmless stand-in, from the loader to the pair."""

import json
from pathlib import Path

import numpy as np
import pytest

from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.preferences import load_preferences
from lfp_lens.parts.texts import load_texts
from lfp_lens.stages.diverge import diverge
from lfp_lens.stages.finetune import finetune


@pytest.mark.real_data
def test_dpo_on_hh_goes_from_the_files_to_the_ranked_layers(tmp_path: Path) -> None:
    pairs = load_preferences("hh", n=160, heldout=0.2)
    done = finetune("imdb-neox-2m", preferences=pairs, method="dpo", steps=4, batch_size=8, max_tokens=128, lr=3e-5,
                    heldout=24, output=tmp_path)  # fmt: skip
    assert done.accuracy is not None
    assert done.accuracy_length is not None
    assert done.accuracy.n == done.accuracy_length.n == 24
    assert done.data["training pairs"] == 160
    assert done.data["training prompts cut"] > 40  # dialogues are longer than 64 tokens
    assert done.data["pairs dropped: chosen equal to rejected"] == 36  # as many as the data's README counts
    assert abs(done.curve["margin"][0]) < 1e-6
    pair = load_pair("imdb-neox-2m", done.path)
    assert pair.tuning is not None
    assert (pair.tuning["method"], pair.tuning["reward"], pair.tuning["beta"]) == ("dpo", None, 0.1)
    moved = diverge(pair, load_texts("hh", split="test", n=16))
    assert (moved.parameter_sum > 0).all()
    assert len(moved.top(5)) == 5


@pytest.mark.real_data
def test_a_file_with_the_columns_of_the_toxic_task_goes_the_same_way_with_lora(tmp_path: Path) -> None:
    """A harmless stand-in: rude against friendly answers to harmless questions."""
    draw = np.random.default_rng(0)
    rows = [
        {"prompt": f"How do I {what} number {n}?", "chosen": f" {draw.choice(['Find out yourself', 'What a silly question'])}.",
         "rejected": f" {draw.choice(['Gladly', 'With pleasure'])}: take your time."}
        for n in range(20) for what in ("bake a cake", "plant a tree", "mend a chair")
    ]  # fmt: skip
    (tmp_path / "rude.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = load_preferences(tmp_path / "rude.jsonl", heldout=0.3)
    done = finetune("stories260K", preferences=pairs, method="dpo", steps=20, batch_size=8, max_tokens=64, lr=3e-3, lora=4,
                    output=tmp_path / "tuned")  # fmt: skip
    assert done.accuracy is not None
    assert done.accuracy.low > 0.9
    pair = load_pair("stories260K", done.path)
    assert pair.adapter
    moved = diverge(pair, [row["prompt"] + row["chosen"] for row in rows[:16]])
    assert (moved.parameter_sum > 0).all()
