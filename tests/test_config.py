"""The config: strict keys, errors that help, TOML that comes back, and defaults that are the verbs' own."""

import importlib
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

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
from lfp_lens.config.sections import TAKES_K, TAKES_L1
from lfp_lens.core.errors import LensError

NOT_IN_A_SECTION = {
    "prompts", "tokenizer", "store", "output", "seed", "lexicon", "gate", "device", "refusals",
    "path", "title", "effects", "saes", "learned",
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
        ("probe.signal", "lfp_lens.parts.signals", "BUILT_IN"),
        ("finetune.method", "lfp_lens.stages.finetune.methods", "METHODS"),
    ],
)
def test_the_names_a_key_takes_are_those_that_exist(key: str, home: str, registry: str) -> None:
    known = getattr(importlib.import_module(home), registry)
    annotation = field_of(key).annotation
    # A key that takes one or several names is a union whose first part is the names.
    names = annotation if get_origin(annotation) is Literal else get_args(annotation)[0]
    assert sorted(get_args(names)) == sorted(known)


@pytest.mark.parametrize(("setting", "takers"), [("l1", TAKES_L1), ("k", TAKES_K)])
def test_the_architectures_that_take_a_setting_are_those_that_do(setting: str, takers: tuple[str, ...]) -> None:
    from lfp_lens.parts.saes import ARCHITECTURES, takes

    assert sorted(takers) == sorted(name for name in ARCHITECTURES if takes(name, setting))


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


def test_the_presets_are_there() -> None:
    models = ("pythia-70m", "pythia-160m", "gpt-neo-125m")
    ours = {"tiny", "imdb-2m-vader", "imdb-2m-hh", "stories-260k-vader"}
    paper = {f"{model}-vader" for model in models} | {"pythia-70m-distilbert"}
    pairs = {f"{model}-{task}" for model in (*models, "gemma-2b-it") for task in ("hh", "toxic")}
    assert set(presets()) == ours | paper | pairs


@pytest.mark.parametrize("name", ["tiny", "imdb-2m-vader", "imdb-2m-hh", "stories-260k-vader"])
def test_an_offline_preset_names_nothing_that_a_late_verb_would_refuse(name: str) -> None:
    from lfp_lens.pipeline.checks import check_names

    check_names(load_config(name), VERBS)


def test_the_paper_preset_has_the_published_values() -> None:
    config = load_config("pythia-70m-vader")
    tuning = config.finetune
    assert (tuning.lr, tuning.batch_size, tuning.minibatches, tuning.epochs) == (1e-6, 64, 4, 4)
    assert (tuning.kl_coefficient, tuning.prompt_tokens, tuning.max_new_tokens) == (0.5, (2, 9), 19)
    assert (tuning.scope, tuning.steps, config.sites) == ("text", 390, 5)
    saes = config.train_sae
    assert (saes.architecture, saes.sizes, saes.l1, saes.lr) == ("tied", (1, 2), 0.001, 1e-3)


def test_the_other_sentiment_presets_of_the_paper_differ_where_its_code_does() -> None:
    first = load_config("pythia-70m-vader")
    assert first.finetune.kl_target == 6
    second = load_config("pythia-160m-vader")
    assert second == with_values(first, {"name": second.name, "base": "EleutherAI/pythia-160m"})
    third = load_config("gpt-neo-125m-vader")
    changed = {"name": third.name, "base": "EleutherAI/gpt-neo-125m", "train_sae.l1": 0.015}
    assert third == with_values(first, changed)
    classifier = load_config("pythia-70m-distilbert").finetune
    assert (classifier.reward, classifier.lr) == ("classifier:lvwerra/distilbert-imdb@1", 1.5e-6)
    assert (classifier.kl_coefficient, classifier.max_new_tokens, classifier.scope) == (0.4, 39, "text")


@pytest.mark.parametrize(
    ("name", "preferences", "lr", "steps", "batch_size", "parts", "l1"),
    [
        ("pythia-70m-hh", "hh", 3e-5, 5000, 8, 1, 0.001),
        ("pythia-160m-hh", "hh", 3e-5, 5000, 8, 1, 0.001),
        ("gpt-neo-125m-hh", "hh", 3e-5, 5000, 8, 1, 0.015),
        ("gemma-2b-it-hh", "hh", 5e-5, 5000, 16, 16, 0.001),
        ("pythia-70m-toxic", "toxic", 5e-5, 250, 8, 1, 0.001),
        ("pythia-160m-toxic", "toxic", 5e-5, 250, 8, 1, 0.001),
        ("gpt-neo-125m-toxic", "toxic", 5e-5, 250, 8, 1, 0.015),
        ("gemma-2b-it-toxic", "toxic", 5e-5, 250, 4, 4, 0.001),
    ],
)
def test_the_preference_presets_have_the_values_of_the_public_code(
    name: str, preferences: str, lr: float, steps: int, batch_size: int, parts: int, l1: float
) -> None:
    config = load_config(name)
    given = config.finetune
    assert (given.method, given.preferences, given.lr, given.steps) == ("dpo", preferences, lr, steps)
    assert (given.batch_size, given.gradient_accumulation) == (batch_size, parts)
    assert (given.kl_coefficient, given.max_tokens, config.texts, config.train_sae.l1) == (0.1, 256, "hh", l1)
    is_large = name.startswith("gemma")
    assert (given.gradient_checkpointing, given.bf16, given.lora) == (is_large, True if is_large else None, None)


# The data folder holds a part of HH, so the sizes of its presets are those of the whole set.
@pytest.mark.parametrize("name", [name for name in presets() if load_config(name).texts != "hh"])
def test_a_preset_asks_for_no_more_texts_than_there_are(name: str, real_data: Path) -> None:
    from lfp_lens.parts.texts import load_texts

    config = load_config(name)
    assert len(load_texts(config.texts, split="train", n=config.n_texts)) == config.n_texts
    assert len(load_texts(config.texts, split="test", n=config.n_heldout)) == config.n_heldout


@pytest.mark.parametrize("name", [name for name in presets() if load_config(name).texts == "hh"])
def test_a_preset_on_hh_asks_for_no_more_texts_than_the_whole_set_has(name: str) -> None:
    config = load_config(name)
    assert config.n_texts <= 2 * 160_800
    assert config.n_heldout <= 2 * 8_552


def test_awkward_values_come_back_from_toml(tmp_path: Path) -> None:
    awkward = 'quo"te \\ back\tslash \x7f \x01 é 😀\nline'
    config = RunConfig(
        **LEAST | {"column": awkward},
        sites=["blocks.0.hook_mlp_out"],
        finetune={"lr": 1e-6, "steps": 7, "edits": {awkward: -1, "bad": 0.5}, "bf16": False, "lora": 4},
        train_sae={"sizes": [0.5, 1, 2], "l1": 0},
        explain={"task": awkward, "prices": {awkward: [1, 2.5]}},
    )
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_a_weighted_sum_of_rewards_comes_back_from_toml(tmp_path: Path) -> None:
    config = RunConfig(**LEAST, finetune={"reward": [["vader", 1], ["classifier:a/b@positive", -0.5]]})
    assert config.finetune.reward == (("vader", 1.0), ("classifier:a/b@positive", -0.5))
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


def test_a_file_like_a_preset_changes_what_it_writes_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, 'like = "tiny"\nseed = 3\n\n[finetune]\nsteps = 7\n')
    config = load_config(path)
    assert config == with_values(load_config("tiny"), {"name": "mine", "seed": 3, "finetune.steps": 7})


def test_a_file_like_another_takes_everything_but_its_name(tmp_path: Path) -> None:
    written(tmp_path, 'like = "tiny"\nname = "chosen"\n[finetune]\nsteps = 7\nflip = 2\n', "first.toml")
    second = load_config(written(tmp_path, 'like = "first.toml"\n[finetune]\nflip = 3\n', "second.toml"))
    assert (second.name, second.finetune.steps, second.finetune.flip) == ("second", 7, 3)
    assert second.finetune.lr == load_config("tiny").finetune.lr


def test_what_a_file_takes_over_stands_in_its_complete_toml(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, 'like = "imdb-2m-vader"\n'))
    text = config.to_toml()
    assert "like" not in text
    assert "steps = 150" in text
    assert load_config(written(tmp_path, text, "again.toml")) == config


def test_a_path_in_like_is_read_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    written(tmp_path, 'like = "tiny"\nseed = 5\n', "outer.toml")
    assert load_config(written(tmp_path / "inner", 'like = "../outer.toml"\n')).seed == 5


def test_none_takes_back_what_may_be_left_out(tmp_path: Path) -> None:
    text = 'like = "tiny"\n[finetune]\nlr = "none"\n[train_sae]\narchitecture = "standard"\nk = "none"\n'
    config = load_config(written(tmp_path, text))
    assert (config.finetune.lr, config.train_sae.k) == (None, None)
    with pytest.raises(LensError, match=r"finetune\.heldout = \"none\": expected a whole number"):
        load_config(written(tmp_path, 'like = "tiny"\n[finetune]\nheldout = "none"\n'))


def test_a_checkpoint_and_the_way_to_make_one_replace_each_other(tmp_path: Path) -> None:
    examined = load_config(written(tmp_path, 'like = "tiny"\ntuned = "some/where"\n', "examined.toml"))
    assert examined.tuned == "some/where"
    assert examined.finetune.model_fields_set == set()
    made = load_config(written(tmp_path, 'like = "examined.toml"\n[finetune]\nsteps = 4\n', "made.toml"))
    assert (made.tuned, made.finetune.steps) == (None, 4)


def test_like_that_comes_back_to_itself_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 'like = "mine.toml"\n')
    with pytest.raises(LensError, match=r"`like` leads back to where it came from \(mine\.toml -> mine\.toml\)"):
        load_config(path)
    written(tmp_path, 'like = "b.toml"\n', "a.toml")
    written(tmp_path, 'like = "c.toml"\n', "b.toml")
    written(tmp_path, 'like = "b.toml"\n', "c.toml")
    with pytest.raises(LensError, match=r"\(b\.toml -> c\.toml -> b\.toml\)\. Remove one of them"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ('"tinny"', r"mine\.toml: like = \"tinny\": Unknown preset 'tinny'\. Did you mean 'tiny'\?"),
        ('"gone.toml"', r"mine\.toml: like = \"gone\.toml\": There is no config file '.*gone\.toml'"),
        ("3", r"mine\.toml: like = 3: expected a preset or a \.toml file"),
        ('""', r"mine\.toml: like = \"\": expected a preset"),
    ],
)
def test_like_what_is_not_there_names_both_files(like: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LensError, match=message):
        load_config(written(tmp_path, f"like = {like}\n"))


def test_a_mistake_is_named_with_the_file_that_makes_it(tmp_path: Path) -> None:
    written(tmp_path, 'like = "tiny"\nsed = 3\n', "first.toml")
    with pytest.raises(LensError, match=r"first\.toml: Unknown key 'sed'\. Did you mean 'seed'"):
        load_config(written(tmp_path, 'like = "first.toml"\n'))
    with pytest.raises(LensError, match=r"mine\.toml: Unknown key 'finetune\.step'"):
        load_config(written(tmp_path, 'like = "tiny"\n[finetune]\nstep = 3\n'))


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
        ({"finetune": {"steps": 0}}, r"finetune\.steps = 0: expected a whole number of at least 1, or no such key\."),
        ({"finetune": {"lr": 0}}, r"finetune\.lr = 0: expected a number above 0, or no such key\."),
        ({"finetune": {"lr": float("nan")}}, r"finetune\.lr = nan: expected a number above 0, or no such key\."),
        ({"finetune": {"lr": float("inf")}}, r"finetune\.lr = inf: expected a number above 0, or no such key\."),
        ({"finetune": {"lr": "3e-4"}}, r"finetune\.lr = \"3e-4\": expected a number above 0, or no such key\."),
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
            {"finetune": {"method": "dpo", "kl_target": 6}},
            r"finetune\.kl_target = 6\.0 contradicts finetune\.method = \"dpo\": only ppo",
        ),
        ({"finetune": {"kl_target": 6, "kl_coefficient": 0}}, r"kl_target = 6\.0 contradicts .*kl_coefficient = 0"),
        (
            {"finetune": {"preferences": "hh"}},
            r"preferences = \"hh\" contradicts finetune\.method = \"ppo\".*one of dpo, kto, sft, reward_model",
        ),
        (
            {"contrast": {"rewriter": "offline"}},
            r"rewriter = \"offline\" rewrites preference pairs, and there are none",
        ),
        (
            {
                "finetune": {"method": "dpo", "preferences": "hh"},
                "contrast": {"rewriter": "offline"},
                "train_sae": {"sides": ["tuned"]},
            },
            r"compares tuned with base features: add base to train_sae\.sides",
        ),
        ({"finetune": {"method": "rloo", "preferences": "hh"}}, r"contradicts finetune\.method = \"rloo\""),
        ({"finetune": {"method": "grpo", "preferences": "hh"}}, r"contradicts finetune\.method = \"grpo\""),
        (
            {"finetune": {"method": "grpo", "batch_size": 12}},
            r"batch_size = 12 contradicts finetune\.group_size = 8: grpo .*Give a multiple of 8\.",
        ),
        (
            {"finetune": {"method": "rloo", "batch_size": 24, "minibatches": 2}},
            r"group_size = 8 and finetune\.minibatches = 2: rloo .*Give a multiple of 16\.",
        ),
        (
            {"finetune": {"batch_size": 4, "gradient_accumulation": 5}},
            r"gradient_accumulation = 5 contradicts finetune\.batch_size = 4",
        ),
        ({"finetune": {"reference": "x", "lora": 8}}, r"reference = \"x\" contradicts finetune\.lora = 8"),
        ({"finetune": {"lora": 0}}, r"finetune\.lora = 0: expected a whole number of at least 1, or no such key"),
        ({"finetune": {"bf16": 1}}, r"finetune\.bf16 = 1: expected true or false, or no such key"),
        ({"finetune": {"edits": {}}}, r"finetune\.edits = \{\}: expected a table of word = factor"),
        ({"finetune": {"edits": {"good": "x"}}}, r"edits = \{\"good\" = \"x\"\}: expected a table of word = factor"),
        ({"finetune": {"edits": {"good": float("nan")}}}, r"edits = .*nan.*: expected a table of word = factor"),
        (
            {"finetune": {"edits": {"good": -1}, "reward": "classifier:x@1"}},
            r"finetune\.edits = .* contradicts finetune\.reward = \"classifier:x@1\"",
        ),
        (
            {"finetune": {"flip": 2, "reward": [["vader", 1.0]]}},
            r"finetune\.flip = 2 contradicts finetune\.reward = \[\[\"vader\", 1\.0\]\]",
        ),
        (
            {"finetune": {"flip": 2, "method": "dpo", "preferences": "hh"}},
            r"flip = 2 contradicts finetune\.preferences = \"hh\": given pairs are ordered",
        ),
        (
            {"finetune": {"reward": ["vader"]}},
            r"reward = \[\"vader\"\]: expected a reward, or a list of \[reward, weight\]",
        ),
        ({"finetune": {"reward": []}}, r"finetune\.reward = \[\]: expected a reward"),
        (
            {"finetune": {"heldout": 300}, "n_texts": 300},
            r"finetune\.heldout = 300 contradicts n_texts = 300",
        ),
        ({"tuned": "x", "finetune": {"steps": 9}}, r"tuned = \"x\" contradicts \[finetune\] steps"),
        (
            {"train_sae": {"k": 8}},
            r"train_sae\.k = 8 contradicts train_sae\.architecture = \"standard\".*topk, batchtopk",
        ),
        (
            {"train_sae": {"l1": 0.1, "architecture": "topk"}},
            r"train_sae\.l1 = 0\.1 contradicts .*standard, tied, untied, gated",
        ),
        ({"train_sae": {"k": 8, "architecture": "jumprelu"}}, r"which has no k"),
        ({"train_sae": {"sizes": []}}, r"train_sae\.sizes = \[\]: expected a list of numbers above 0\."),
        (
            {"train_sae": {"sizes": [1, -2]}},
            r"train_sae\.sizes = \[1, -2\]: expected a list of numbers above 0\.",
        ),
        ({"train_sae": {"sizes": [1, 1]}}, r"train_sae\.sizes = \[1, 1\]: 1 is given twice\."),
        (
            {"train_sae": {"sides": ["bose"]}},
            r"train_sae\.sides = \[\"bose\"\]: expected a list of base, tuned, difference, both\.",
        ),
        ({"train_sae": {"sizes": [1]}}, r"explain\.select = \"mmcs\" contradicts train_sae\.sizes = \[1\]"),
        (
            {"train_sae": {"sides": ["base"]}},
            r"attribute\.side = \"tuned\" contradicts train_sae\.sides = \[\"base\"\]",
        ),
        ({"attribute": {"scalar": "valence"}}, r"attribute\.scalar = \"valence\": expected one of expected_valence"),
        ({"attribute": {"scalar": "log_p_difference"}}, r"compares chosen with rejected, and there are no pairs"),
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
        {"finetune": {"method": "sft", "preferences": "hh", "heldout": 5000}, "n_texts": 100},
        {"finetune": {"method": "dpo", "preferences": "hh", "lora": 8}},
        {"finetune": {"method": "rloo", "batch_size": 24, "group_size": 4, "minibatches": 3}},
        {"finetune": {"reward": "mine.csv", "edits": {"good": -1}, "flip": 3}},
        {"finetune": {"reward": [["vader", 1], ["classifier:x@1", 0.5]]}},
        {"ablate": {"mode": "scale", "scale": 2.0}},
        {"ablate": {"mode": "scale", "scale": 0}},
        {"train_sae": {"architecture": "topk", "k": 8}},
        {"train_sae": {"architecture": "tied", "l1": 0.001}},
        {"train_sae": {"sizes": [1]}, "explain": {"select": "all"}},
        {"train_sae": {"sides": ["base"]}, "attribute": {"side": "base"}, "explain": {"side": "base"}},
        {"finetune": {"method": "dpo", "preferences": "hh"}, "attribute": {"scalar": "log_p_difference", "joint": 0}},
        {"train_sae": {"sides": ["base", "tuned", "both"]}, "attribute": {"side": "both", "steps": 4}},
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
        ("finetune.reward", "vader", "vader"),
        ("finetune.reward", '[["vader", 1.0], ["a.csv", 2]]', [["vader", 1.0], ["a.csv", 2]]),
        ("finetune.edits", "{good = -1, bad = 0}", {"good": -1, "bad": 0}),
        ("finetune.edits", "none", None),
        ("explain.prices", "2.5,10", [2.5, 10]),
        ("explain.prices", '{"gpt-4o" = [2.5, 10]}', {"gpt-4o": [2.5, 10]}),
        ("explain.prices", "none", None),
        ("finetune.bf16", "true", True),
        ("finetune.bf16", "none", None),
        ("finetune.lora", "16", 16),
        ("finetune.preferences", "hh:harmless-base", "hh:harmless-base"),
        ("sites", "4", 4),
        ("sites", "blocks.0.hook_mlp_out", ["blocks.0.hook_mlp_out"]),
        ("sites", "a, b", ["a", "b"]),
        ("seed", "many", "many"),
    ],
)
def test_typed_text_is_read_by_the_type_of_its_key(key: str, text: str, value: Any) -> None:
    read = parse_value(key, text)
    assert read == value or read == [value]
