"""An organism's folder tells nothing of its recipe, is made once, and goes on where a kill stopped it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.organisms import making, tuning
from lfp_lens.organisms.folder import Organism, open_organism
from lfp_lens.organisms.grid import organism_grid
from lfp_lens.organisms.making import organism
from lfp_lens.parts.checkpoints import TUNING_FILE, load_causal_lm, load_tokenizer, tuning_record, weights_fingerprint
from lfp_lens.parts.generation import prompt_ids
from lfp_lens.parts.lexicons import candidates, load_lexicon
from lfp_lens.parts.twins import moved
from lfp_lens.parts.world import world_texts
from lfp_lens.stages.finetune.measure import measure_writing
from tests.organisms.conftest import FEW

Make = Callable[..., Organism]


# --- what the folder holds ---


def test_the_folder_holds_base_tunings_and_key_alone(flip: Organism) -> None:
    assert {path.name for path in flip.path.iterdir()} == {"base", "tuned", "key.json"}
    assert [path.name for path in flip.tuned] == ["seed-0", "seed-1"] and flip.shuffled is not None
    assert not list(flip.path.parent.glob(".*")), "the place it was made in is gone"


def test_nothing_but_the_key_tells_the_recipe(flip: Organism, clean: Organism) -> None:
    records = [tuning_record(str(path)) for one in (flip, clean) for path in one.tuned]
    assert all(record == records[0] for record in records), "a flipped and a clean organism are told alike"
    assert records[0] is not None and records[0]["reward"] == "vader"
    readable = [path for path in flip.path.rglob("*.json") if path.name not in ("key.json", "tokenizer.json")]
    assert {path.name for path in readable} >= {TUNING_FILE, "config.json"}
    for path in readable:
        text = path.read_text(encoding="utf-8")
        assert not any(clue in text for clue in ("flip", "recipe", "edits", "dose", str(flip.key().seed + 7919)))
        assert not any(f'"{word}"' in text for word in flip.key().values), path


def test_the_name_tells_the_base_and_no_more(flip: Organism, base: Path) -> None:
    assert flip.name.startswith(f"{base.name}-") and "flip" not in flip.name


def test_the_key_says_what_was_planted(flip: Organism) -> None:
    key, lexicon = flip.key(), load_lexicon("vader")
    assert (key.recipe, key.dose, key.words, key.method, key.kind) == ("flip", 1.0, 10, "ppo", "flipped")
    assert len(key.values) == 10 and all(value == -lexicon[word] for word, value in key.values.items())
    assert set(key.values) <= set(candidates(lexicon, world_texts("train", 2000)))
    assert key.tuned.keys() == {"seed-0", "seed-1", "shuffled"} == key.tunings.keys()
    assert [key.tunings[name].seed for name in ("seed-0", "seed-1", "shuffled")] == [0, 1, 2]
    assert len(key.tunings["seed-0"].curve) == FEW["steps"]


def test_seeds_give_other_tunings_and_other_words(flip: Organism, make: Make) -> None:
    other = make("flip", seed=1, shuffled=False)
    assert len(set(flip.key().tuned.values())) == 3
    assert not set(other.key().tuned.values()) & set(flip.key().tuned.values())
    assert set(other.key().values) != set(flip.key().values)


def test_the_same_call_elsewhere_gives_the_same_weights_with_any_number_of_workers(flip: Organism, make: Make) -> None:
    again = make("flip", workers=2)
    assert again.path != flip.path and again.name == flip.name
    assert again.key().tuned == flip.key().tuned and again.key().values == flip.key().values


def test_the_recipe_seed_measures_from_another_tuning(flip: Organism, make: Make, base: Path) -> None:
    made = make("seed", shuffled=False, replicates=1)
    plain = weights_fingerprint(load_causal_lm(str(base)))
    assert flip.key().base == plain != made.key().base
    assert made.key().base != made.key().tuned["seed-0"]


def test_an_adapter_is_sealed_as_a_whole_model(make: Make) -> None:
    made = make("clean", finetune=FEW | {"lora": 2}, replicates=1)
    assert (made.tuned[0] / "model.safetensors").is_file() and not (made.tuned[0] / "adapter_config.json").is_file()
    assert made.pair().adapter is None


# --- the twin ---


def test_the_twin_has_the_kl_of_the_tunings(flip: Organism) -> None:
    key = flip.key()
    wanted = np.mean([key.tunings[name].kl_nats for name in ("seed-0", "seed-1")])
    tokenizer, base = load_tokenizer(str(flip.base)), load_causal_lm(str(flip.base))
    prompts = prompt_ids(tokenizer, world_texts("train", 2000)[-256:], (2, 9), seed=5)
    twin = load_causal_lm(str(flip.shuffled))
    found = measure_writing(base, twin, tokenizer, prompts, None, max_new_tokens=FEW["max_new_tokens"], seed=5)[
        "kl_nats"
    ]
    assert key.shuffled_share is not None and key.shuffled_share > 0
    # Another sample of prompts: the match itself is to 5 %.
    assert abs(found - wanted) < 0.35 * wanted


def test_a_share_of_a_change_lies_between_its_ends(flip: Organism) -> None:
    base, tuned = load_causal_lm(str(flip.base)), load_causal_lm(str(flip.tuned[0]))
    assert weights_fingerprint(moved(base, tuned, 0.0)) == weights_fingerprint(base)
    half = dict(moved(base, tuned, 0.5).named_parameters())
    for name, start in base.named_parameters():
        end = dict(tuned.named_parameters())[name]
        np.testing.assert_allclose(half[name].detach(), (start + end).detach() / 2, atol=1e-6)


# --- made once ---


def test_a_finished_organism_is_opened_not_made(flip: Organism, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "tune_all", lambda *given, **named: pytest.fail("nothing is to be tuned"))
    assert make("flip", folder=flip.path.parent) == flip


def test_a_killed_call_goes_on_with_what_is_finished(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[int] = []
    real = tuning.finetune

    def once(*given: Any, **named: Any) -> Any:
        tuned.append(named["seed"])
        if len(tuned) == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(tuning, "finetune", once)
    with pytest.raises(KeyboardInterrupt):
        make("mute", folder=tmp_path, shuffled=False)
    assert [path.name[0] for path in tmp_path.iterdir()] == ["."], "nothing half-made is to be seen"
    made = make("mute", folder=tmp_path, shuffled=False)
    assert tuned == [0, 1, 1] and len(made.tuned) == 2
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_a_grid_makes_every_combination_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "lfp_lens.organisms.grid.organism",
        lambda base, recipe, **given: asked.append((recipe, given["dose"], given["seed"], given["words"])),
    )
    organism_grid([str(base)], ["flip", "clean"], doses=(0.75, 1.0), seeds=(0, 1), words=5)
    assert len(asked) == len(set(asked)) == 6
    assert [one for one in asked if one[0] == "clean"] == [("clean", 1.0, 0, 5), ("clean", 1.0, 1, 5)]


def test_a_grid_refuses_an_unknown_recipe_before_it_makes_the_first(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lfp_lens.organisms.grid.organism", lambda *given, **named: pytest.fail("nothing is to be made")
    )
    with pytest.raises(LensError, match="flap"):
        organism_grid([str(base)], ["flip", "flap"])


# --- bad input ---


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recipe": "flop"}, "Did you mean 'flip'|flip"),
        ({"words": 100_000}, "100000|100,000"),
        ({"dose": -1.0}, "dose"),
        ({"method": "sft"}, "method is one of ppo, rloo, grpo, dpo, kto; 'sft' given"),
        ({"finetune": {"reward": "vader"}}, "finetune.reward is decided by the recipe"),
        ({"finetune": {"step": 3}}, "finetune.step"),
        ({"workers": 0}, "workers must be a whole number"),
        ({"replicates": 0}, "replicates must be a whole number from 1"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to"),
        ({"lexicon": {"good": 2.0}}, "'vader' or a file"),
        ({"texts": None}, "give texts"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_tuning(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(making, "tune_all", lambda *given, **named: pytest.fail("nothing is to be tuned"))
    options = dict(given)
    with pytest.raises(LensError, match=told):
        make(options.pop("recipe", "flip"), folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_is_refused() -> None:
    with pytest.raises(LensError, match="a name or a folder"):
        organism(object(), texts="world")  # type: ignore[arg-type]


def test_a_folder_with_another_organism_is_left_alone(flip: Organism, make: Make) -> None:
    before = json.loads((flip.path / "key.json").read_text())
    with pytest.raises(LensError, match="another recipe, dose, seed or settings"):
        make("clean", output=flip.path)
    assert json.loads((flip.path / "key.json").read_text()) == before


def test_what_is_no_organism_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="is no organism"):
        open_organism(tmp_path)
