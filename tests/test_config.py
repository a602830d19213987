"""The config: strict keys, errors that help, TOML that comes back, and defaults that are the verbs' own."""

import importlib
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest

from lfp_lens.config import (
    VERBS,
    RunConfig,
    describe_presets,
    expected,
    field_of,
    load_config,
    parse_value,
    presets,
    section_fields,
    with_values,
)
from lfp_lens.core.errors import LensError

NOT_IN_A_SECTION = {
    "prompts", "tokenizer", "store", "output", "seed", "lexicon", "gate", "device", "refusals",
    "path", "title", "effects",
}  # fmt: skip
LEAST = {"name": "mine", "base": "world", "texts": "world"}


def written(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_a_sections_values_and_defaults_are_the_verbs_own(verb: str) -> None:
    try:
        module = importlib.import_module(f"lfp_lens.stages.{verb}")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("lfp_lens"):
            raise
        module = None
    if not hasattr(module, verb):
        pytest.skip(f"lfp_lens.stages.{verb} is not built yet")
    parameters = inspect.signature(getattr(module, verb)).parameters.values()
    of_verb = {
        one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in NOT_IN_A_SECTION
    }
    assert {name: field.default for name, field in section_fields(verb).items()} == of_verb


@pytest.mark.parametrize(
    ("key", "home", "registry"),
    [
        ("train_sae.architecture", "lfp_lens.parts.saes", "ARCHITECTURES"),
        ("probe.signal", "lfp_lens.parts.signals", "SIGNALS"),
        ("finetune.method", "lfp_lens.stages.finetune.verb", "METHODS"),
    ],
)
def test_the_names_a_key_takes_are_those_that_exist(key: str, home: str, registry: str) -> None:
    known = getattr(importlib.import_module(home), registry)
    assert sorted(get_args(field_of(key).annotation)) == sorted(known)


def test_every_key_says_what_it_is_and_what_it_takes() -> None:
    for verb in VERBS:
        for name, field in section_fields(verb).items():
            assert field.description, (verb, name)
            assert expected(field), (verb, name)


@pytest.mark.parametrize("name", presets())
def test_a_preset_loads_and_comes_back_from_toml(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == name
    assert load_config(written(tmp_path, config.to_toml())) == config


@pytest.mark.parametrize("name", presets())
def test_a_preset_opens_with_a_sentence(name: str) -> None:
    assert describe_presets()[name].endswith(".")


def test_the_four_presets_are_there() -> None:
    assert {"tiny", "imdb-2m-vader", "stories-260k-vader", "pythia-70m-vader"} <= set(presets())


def test_the_paper_preset_has_the_published_values() -> None:
    config = load_config("pythia-70m-vader")
    tuning = config.finetune
    assert (tuning.lr, tuning.batch_size, tuning.minibatches, tuning.epochs) == (1e-6, 64, 4, 4)
    assert (tuning.kl_coefficient, tuning.prompt_tokens, tuning.max_new_tokens) == (0.5, (2, 9), 19)
    assert (tuning.scope, tuning.steps, config.sites) == ("text", 390, 5)
    saes = config.train_sae
    assert (saes.architecture, saes.sizes, saes.l1, saes.lr) == ("tied", (1, 2), 0.001, 1e-3)


@pytest.mark.parametrize("name", presets())
def test_a_preset_asks_for_no_more_texts_than_there_are(name: str, real_data: Path) -> None:
    from lfp_lens.parts.texts import load_texts

    config = load_config(name)
    assert len(load_texts(config.texts, split="train", n=config.n_texts)) == config.n_texts
    assert len(load_texts(config.texts, split="test", n=config.n_heldout)) == config.n_heldout


def test_awkward_values_come_back_from_toml(tmp_path: Path) -> None:
    awkward = 'quo"te \\ back\tslash \x7f \x01 é 😀\nline'
    config = RunConfig(
        **LEAST | {"column": awkward},
        sites=["blocks.0.hook_mlp_out"],
        finetune={"lr": 1e-6, "steps": 7},
        train_sae={"sizes": [0.5, 1, 2], "l1": 0},
        explain={"task": awkward},
    )
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_a_tuned_checkpoint_comes_back_from_toml(tmp_path: Path) -> None:
    config = RunConfig(**LEAST, tuned="some/where")
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    path = written(tmp_path, 'base = "world"\ntexts = "world"\n', "my own run.toml")
    assert load_config(path).name == "my-own-run"


def test_a_config_cannot_be_changed_in_place() -> None:
    with pytest.raises(Exception, match="frozen"):
        load_config("tiny").seed = 3  # type: ignore[misc]


def test_values_change_by_key_and_the_rest_stays() -> None:
    before = load_config("tiny")
    after = with_values(before, {"finetune.steps": 10, "seed": 1, "train_sae.sizes": [1, 4]})
    assert (after.finetune.steps, after.seed, after.train_sae.sizes) == (10, 1, (1, 4))
    assert after.finetune.flip == before.finetune.flip
    assert with_values(after, {"finetune.steps": before.finetune.steps, "seed": 0, "train_sae.sizes": [1, 2]}) == before


def test_whole_sizes_stay_whole() -> None:
    assert [type(size) for size in load_config("tiny").train_sae.sizes] == [int, int]


def test_an_unknown_preset_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(LensError, match=r"Unknown preset 'tinny'\. Did you mean 'tiny'\?.*pythia-70m-vader.*\.toml"):
        load_config("tinny")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(LensError, match=r"no config file 'nowhere/x\.toml'"):
        load_config("nowhere/x.toml")


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"mine\.toml: is not valid TOML: .*line 2"):
        load_config(written(tmp_path, 'base = "world"\ntexts = \n'))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LensError, match=r"mine\.toml: cannot be read"):
        load_config(path)


def test_every_wrong_key_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'bas = "world"\ntexts = "world"\nseed = -1\n')
    with pytest.raises(LensError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("base is missing" in line for line in lines)
    assert any("Unknown key 'bas'. Did you mean 'base'?" in line for line in lines)
    assert any("seed = -1: expected a whole number of at least 0." in line for line in lines)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finetun": {"steps": 1}}, r"Unknown section \[finetun\]\. Did you mean 'finetune'\?"),
        (
            {"finetune": {"step": 1}},
            r"Unknown key 'finetune\.step'\. Did you mean 'steps'\? \[finetune\] takes: method",
        ),
        ({"report": {"a": 1}}, r"Unknown key 'report\.a'\. \[report\] takes: nothing\."),
        ({"finetune": 3}, r"finetune = 3: expected a section\."),
        ({"name": "a/b"}, r"name = \"a/b\": expected a folder name"),
        ({"name": ".."}, r"name = \"\.\.\": expected a folder name"),
        ({"base": ""}, r"base = \"\": expected text that is not empty\."),
        ({"base": 3}, r"base = 3: expected text that is not empty\."),
        ({"n_heldout": 49}, r"n_heldout = 49: expected a whole number of at least 50"),
        ({"n_texts": 500.0}, r"n_texts = 500\.0: expected a whole number"),
        ({"device": "gpu"}, r"device = \"gpu\": expected 'cpu', 'cuda'"),
        ({"gate": "refus"}, r"gate = \"refus\": expected one of refuse, warn\. Did you mean 'refuse'\?"),
        ({"seed": True}, r"seed = true: expected a whole number"),
        ({"sites": []}, r"sites = \[\]: expected a whole number of at least 1 .* or a list of site names\."),
        ({"sites": 0}, r"sites = 0: expected a whole number of at least 1"),
        ({"sites": ["a", "a"]}, r"sites = \[\"a\", \"a\"\]: \"a\" is given twice\."),
        ({"lexicon": "vadr"}, r"lexicon = \"vadr\": expected 'vader' or a .csv.*Did you mean 'vader'\?"),
        (
            {"finetune": {"method": "pp"}},
            r"finetune\.method = \"pp\": expected one of ppo.*Did you mean 'ppo'\?",
        ),
        ({"finetune": {"steps": 0}}, r"finetune\.steps = 0: expected a whole number of at least 1\."),
        ({"finetune": {"lr": 0}}, r"finetune\.lr = 0: expected a number above 0\."),
        ({"finetune": {"lr": float("nan")}}, r"finetune\.lr = nan: expected a number above 0\."),
        ({"finetune": {"lr": float("inf")}}, r"finetune\.lr = inf: expected a number above 0\."),
        ({"finetune": {"lr": "3e-4"}}, r"finetune\.lr = \"3e-4\": expected a number above 0\."),
        (
            {"finetune": {"prompt_tokens": [9, 2]}},
            r"prompt_tokens = \[9, 2\]: the lowest comes first\. Write \[2, 9\]\.",
        ),
        ({"finetune": {"prompt_tokens": [2]}}, r"prompt_tokens = \[2\]: expected two whole numbers"),
        (
            {"finetune": {"minibatches": 5, "batch_size": 4}},
            r"minibatches = 5 contradicts finetune\.batch_size = 4",
        ),
        (
            {"finetune": {"heldout": 300}, "n_texts": 300},
            r"finetune\.heldout = 300 contradicts n_texts = 300",
        ),
        ({"tuned": "x", "finetune": {"steps": 9}}, r"tuned = \"x\" contradicts \[finetune\] steps"),
        (
            {"train_sae": {"k": 8}},
            r"train_sae\.k = 8 contradicts train_sae\.architecture = 'standard'.*topk, batchtopk",
        ),
        (
            {"train_sae": {"l1": 0.1, "architecture": "topk"}},
            r"train_sae\.l1 = 0\.1 contradicts .*standard, tied, gated",
        ),
        ({"train_sae": {"k": 8, "architecture": "jumprelu"}}, r"which has no k"),
        ({"train_sae": {"sizes": []}}, r"train_sae\.sizes = \[\]: expected a list of numbers above 0\."),
        (
            {"train_sae": {"sizes": [1, -2]}},
            r"train_sae\.sizes = \[1, -2\]: expected a list of numbers above 0\.",
        ),
        ({"train_sae": {"sizes": [1, 1]}}, r"train_sae\.sizes = \[1, 1\]: 1 is given twice\."),
        (
            {"train_sae": {"sides": ["both"]}},
            r"train_sae\.sides = \[\"both\"\]: expected a list of base, tuned\.",
        ),
        ({"train_sae": {"sizes": [1]}}, r"explain\.select = \"mmcs\" contradicts train_sae\.sizes = \[1\]"),
        (
            {"train_sae": {"sides": ["base"]}},
            r"attribute\.side = \"tuned\" contradicts train_sae\.sides = \[\"base\"\]",
        ),
        ({"explain": {"size": 3}}, r"explain\.size = 3 contradicts train_sae\.sizes = \[1, 2\]"),
        (
            {"explain": {"labeller": "open ai"}},
            r"explain\.labeller = \"open ai\": expected 'lexicon', 'openai:MODEL'",
        ),
        ({"probe": {"min_contexts": 9}}, r"probe\.min_contexts = 9 contradicts probe\.contexts = 8"),
        ({"probe": {"split": "word"}}, r"probe\.split = \"word\": expected one of lemma, row\."),
        ({"ablate": {"scale": 0.5}}, r"ablate\.scale = 0\.5 contradicts ablate\.mode = 'zero'"),
        ({"ablate": {"mode": "zeroo"}}, r"ablate\.mode = \"zeroo\".*Did you mean 'zero'\?"),
    ],
)
def test_a_bad_value_or_contradiction_is_named_with_what_is_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LensError, match=message):
        RunConfig(**LEAST | values)


@pytest.mark.parametrize(
    "values",
    [
        {"ablate": {"mode": "scale", "scale": 2.0}},
        {"ablate": {"mode": "scale", "scale": 0}},
        {"train_sae": {"architecture": "topk", "k": 8}},
        {"train_sae": {"architecture": "tied", "l1": 0.001}},
        {"train_sae": {"sizes": [1]}, "explain": {"select": "all"}},
        {"train_sae": {"sides": ["base"]}, "attribute": {"side": "base"}, "explain": {"side": "base"}},
        {"tuned": "x", "n_texts": 100},
        {"device": "cuda:1", "sites": ["blocks.0.hook_mlp_out"], "lexicon": "mine.csv", "gate": "warn"},
        {"explain": {"labeller": "openai:gpt-4o"}},
    ],
)
def test_what_is_no_contradiction_is_accepted(values: dict[str, Any]) -> None:
    RunConfig(**LEAST | values)


def test_a_bare_key_is_pointed_to_its_sections() -> None:
    with pytest.raises(LensError, match=r"Unknown key 'side'\. Did you mean 'attribute\.side' or 'explain\.side'\?"):
        with_values(load_config("tiny"), {"side": "base"})


def test_an_unknown_key_gets_the_nearest() -> None:
    with pytest.raises(LensError, match=r"Unknown key 'finetune\.step'\. Did you mean 'finetune\.steps'\?"):
        with_values(load_config("tiny"), {"finetune.step": 1})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "3", 3),
        ("finetune.lr", "1e-5", 1e-5),
        ("base", "5", "5"),
        ("ablate.mode", "mean", "mean"),
        ("tuned", "none", None),
        ("train_sae.k", "None", None),
        ("train_sae.sizes", "1,2", [1, 2]),
        ("train_sae.sizes", "[1, 0.5]", [1, 0.5]),
        ("train_sae.sizes", "1", 1),
        ("train_sae.sides", "base,tuned", ["base", "tuned"]),
        ("train_sae.sides", "tuned", ["tuned"]),
        ("finetune.prompt_tokens", "3,4", [3, 4]),
        ("sites", "4", 4),
        ("sites", "blocks.0.hook_mlp_out", ["blocks.0.hook_mlp_out"]),
        ("sites", "a, b", ["a", "b"]),
        ("seed", "many", "many"),
    ],
)
def test_typed_text_is_read_by_the_type_of_its_key(key: str, text: str, value: Any) -> None:
    read = parse_value(key, text)
    assert read == value or read == [value]
