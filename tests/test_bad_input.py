"""Bad input from the command line: exit code 2, one message that says what to do, no traceback, nothing lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lfp_lens import cli
from tests.tiny import perturbed, tiny_model, tiny_texts, tiny_tokenizer


class Told(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `tuned` fit together; every other folder is wrong in one way."""
    home = tmp_path_factory.mktemp("models")

    def save(name: str, model: Any, tokenizer: Any = None, **config: Any) -> Path:
        model.save_pretrained(home / name)
        (tokenizer or tiny_tokenizer()).save_pretrained(home / name)
        if config:
            path = home / name / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return home / name

    save("base", tiny_model())
    save("tuned", perturbed(tiny_model()))
    save("llama", tiny_model("llama"))
    save("wider", tiny_model(width=32))
    wordy = tiny_model()
    wordy.resize_token_embeddings(500)
    save("bigger-vocabulary", wordy)
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<end>": 0, "film": 1, "<unknown>": 2}, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    save("other-tokenizer", perturbed(tiny_model()), PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>"))
    save("quantised", tiny_model(), quantization_config={"quant_method": "gptq", "bits": 4})
    save("classifier", tiny_model(), architectures=["GPTNeoXForSequenceClassification"])
    no_number = perturbed(tiny_model())
    with torch.no_grad():
        no_number.gpt_neox.layers[0].mlp.dense_4h_to_h.bias[0] = float("nan")
    save("not-a-number", no_number)
    broken = save("broken", tiny_model()) / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    shutil.rmtree(save("no-weights", tiny_model()) / "nothing", ignore_errors=True)
    (home / "no-weights" / "model.safetensors").unlink()
    shutil.copytree(home / "base", home / "no-tokenizer")
    for file in (home / "no-tokenizer").glob("token*"):
        file.unlink()
    (home / "no-json").mkdir()
    (home / "no-json" / "config.json").write_text("{")
    return home


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = tiny_texts(400)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "number": 3}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def tell(
    models: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Told]:
    """Run a command on a config file that is right but for what is given."""
    monkeypatch.chdir(tmp_path)

    def run(command: str = "diverge", *options: str, extra: str = "", **values: Any) -> Told:
        plain = {
            "name": "mine", "base": str(models / "base"), "tuned": str(models / "tuned"), "texts": str(data),
            "n_texts": 60, "n_heldout": 50,
        } | values  # fmt: skip
        lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items() if value is not None]
        (tmp_path / "mine.toml").write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
        capsys.readouterr()
        code = cli.main([command, "mine.toml", "--store", "runs", "--quiet", *options])
        return Told(code, *capsys.readouterr())

    return run


def refused(told: Told, *parts: str) -> None:
    assert told.code == 2, told
    assert told.out == ""
    assert told.err.startswith("lfp-lens: ")
    assert "Traceback" not in told.err
    assert len(told.err.splitlines()) == 1, "one message"
    for part in parts:
        assert part in told.err


def test_the_input_that_all_others_are_changed_from_is_right(tell: Any) -> None:
    told = tell()
    assert told.code == 0, told.err
    assert "blocks.2.hook_mlp_out" in told.out


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nowhere", ("cannot be loaded", "Expected a local folder with config.json, safetensors and tokenizer")),
        ("broken", ("The model", "cannot be loaded", "Expected a local folder")),
        ("no-weights", ("cannot be loaded",)),
        ("no-json", ("cannot be loaded",)),
        ("no-tokenizer", ("tokenizer", "cannot be loaded")),
        ("llama", ("Base is a GPTNeoXForCausalLM, tuned a LlamaForCausalLM: a pair has one architecture",)),
        ("wider", ("Base and tuned differ in", "A pair has one shape and one vocabulary")),
        ("bigger-vocabulary", ("Base and tuned differ in", "one vocabulary")),
        ("other-tokenizer", ("different tokenizers",)),
        ("quantised", ("is quantised", "Load the full-precision checkpoint")),
        ("classifier", ("is a sequence classifier (GPTNeoXForSequenceClassification); a causal LM is expected",)),
        ("not-a-number", ("disagree on",)),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused(
    name: str, parts: tuple[str, ...], tell: Any, models: Path
) -> None:
    refused(tell(tuned=str(models / name)), *parts)


@pytest.mark.parametrize("name", ["nowhere", "broken", "quantised", "classifier"])
def test_a_base_that_cannot_be_used_is_refused_before_it_is_tuned(name: str, tell: Any, models: Path) -> None:
    refused(tell("finetune", base=str(models / name), tuned=None, extra="[finetune]\nheldout = 8\n"), name)


def test_a_hub_name_that_cannot_be_reached_is_refused(tell: Any) -> None:
    refused(tell(tuned="someone/no-such-model"), "The model 'someone/no-such-model' cannot be loaded", "hub name")


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"texts": "./nothing.csv"}, ("There is no text file './nothing.csv'. Give a path to a .parquet",)),
        ({"texts": "imbd"}, ("The text set 'imbd' is no local file", "Did you mean 'imdb'?")),
        ({"column": "txt"}, ("has no column 'txt'. Did you mean 'text'? Columns: text, number.",)),
        ({"column": "number"}, ("holds int values", "text is expected")),
        ({"n_heldout": 300}, ("300 texts were asked for; the test split", "distinct ones")),
        ({"n_heldout": 10}, ("n_heldout = 10: expected a whole number of at least 50",)),
        ({"lexicon": "vadre"}, ("lexicon = \"vadre\": expected 'vader' or a", "Did you mean 'vader'?")),
    ],
)
def test_data_that_cannot_be_used_is_refused(values: dict[str, Any], parts: tuple[str, ...], tell: Any) -> None:
    refused(tell(**values), *parts)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        (b"\x00\x01\x02 not json", ("The text file", "cannot be read")),
        (b'{"text": "a"}\n{"text": ', ("line 2, is not JSON",)),
        (b'{"text": ""}\n', ("holds no text",)),
        (b"", ("holds no text",)),
        (b"[1, 2]\n", ("line 1, holds no object with a column 'text'",)),
    ],
)
def test_a_data_file_that_cannot_be_read_is_refused(
    written: bytes, parts: tuple[str, ...], tell: Any, data: Path
) -> None:
    data.write_bytes(written)
    told = tell()
    refused(told, str(data))
    assert any(part in told.err for part in parts), told.err


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("[difverge]\n", ("Unknown section [difverge]. Did you mean 'diverge'?",)),
        ("[diverge]\nmax_token = 3\n", ("Unknown key 'diverge.max_token'. Did you mean 'max_tokens'?",)),
        ('[train_sae]\narchitecture = "tpok"\n', ("train_sae.architecture", "Did you mean 'topk'?")),
        ('[probe]\nsignal = "implicit"\n', ("probe.signal", "Did you mean 'implicit_reward'?")),
        ("[finetune]\nsteps = 3\n", ("contradicts [finetune] steps", "Remove tuned to tune the base")),
        ('[train_sae]\narchitecture = "topk"\nl1 = 0.1\n', ("train_sae.l1 = 0.1 contradicts train_sae.architecture",)),
        ("[train_sae]\nsizes = [1]\n", ('explain.select = "mmcs" contradicts train_sae.sizes = [1]',)),
        ("[ablate]\nscale = 2.0\n", ("ablate.scale = 2.0 contradicts ablate.mode = 'zero'",)),
        ("[probe]\nmin_contexts = 9\n", ("probe.min_contexts = 9 contradicts probe.contexts = 8",)),
        ("[diverge\n", ("is not valid TOML",)),
    ],
)
def test_a_config_that_cannot_be_is_refused(extra: str, parts: tuple[str, ...], tell: Any) -> None:
    refused(tell(extra=extra), *parts)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (("diverg", "tiny"), ("Unknown command 'diverg'. Did you mean 'diverge'?",)),
        (("run", "tny"), ("Unknown preset 'tny'. Did you mean 'tiny'?",)),
        (("run", "missing.toml"), ("There is no config file 'missing.toml'", "tiny")),
        (("run", "tiny", "--set", "finetune.reward=vadre"), ("Unknown reward 'vadre'. Did you mean 'vader'?",)),
        (("run", "tiny", "--set", "finetune.reward=./no.csv"), ("neither 'vader' nor a file",)),
        (("run", "tiny", "--set", "ablate.reward=vadre"), ("Unknown reward 'vadre'. Did you mean 'vader'?",)),
        (("run", "tiny", "--set", "explain.labeller=lexcon"), ("Unknown labeller 'lexcon'. Did you mean 'lexicon'?",)),
        (("run", "tiny", "--set", "explain.labeller=openai"), ("needs a model's name after a colon",)),
        (("run", "tiny", "--set", "lexicon=no.csv"), ("Unknown lexicon 'no.csv'",)),
        (("run", "tiny", "--set", "sites=blocks.0.hook_mlp_ot"), ("Unknown hook 'hook_mlp_ot'",)),
        (("run", "tiny", "--set", "finetune.method=pp"), ("finetune.method", "Did you mean 'ppo'?")),
        (("run", "tiny", "--set", "device=cudda"), ('device = "cudda": expected',)),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_before_any_work(
    argv: tuple[str, ...], parts: tuple[str, ...], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # The world's model is not needed to see that a name is unknown.
    monkeypatch.setattr("lfp_lens.pipeline.work.Work.base", lambda self: pytest.fail("a model was made first"))
    options = ("--store", "runs") if argv[0] == "run" else ()
    code = cli.main([*argv, *options])
    refused(Told(code, *capsys.readouterr()), *parts)
    assert not (tmp_path / "runs").exists()


def test_a_site_that_does_not_exist_is_refused(tell: Any) -> None:
    told = tell("train_sae", sites=["blocks.7.hook_mlp_out"])
    refused(told, "'blocks.7.hook_mlp_out' does not exist: the model has layers 0 to 2.")
    refused(tell("train_sae", sites=5), "5 sites were asked for; the model has 3 layers.")


def test_too_few_texts_for_the_dictionaries_are_refused(tell: Any) -> None:
    told = tell("train_sae", sites=1, extra="[train_sae]\nbatch_tokens = 4096\n")
    refused(told, "tokens; one batch needs batch_tokens=4096: give more texts.")


def test_too_few_words_or_triples_are_refused(tell: Any) -> None:
    """12 lexicon words are in these texts; a probe needs 30."""
    extra = '[train_sae]\ntokens = 1024\nbatch_tokens = 256\narchitecture = "topk"\n'
    refused(tell("probe", sites=1, gate="warn", extra=extra), "probe gave no number: ")


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("great,2\nawful,-2\nGreat,3\n", ("words.csv, line 3: 'great' is there already (line 1)",)),
        ("great,2\nawful,much\n", ("words.csv, line 2: the value of 'awful' is 'much'", "a finite number is expected")),
        ("unheard,2\nunseen,-2\n", ("texts holds a lexicon word",)),
        ("great,2\nlove,3\nwonderful,3\n", ("hold no negative lexicon word",)),
    ],
)
def test_a_lexicon_that_makes_no_triples_is_refused(
    written: str, parts: tuple[str, ...], tell: Any, tmp_path: Path
) -> None:
    (tmp_path / "words.csv").write_text(written, encoding="utf-8")
    refused(tell("contrast", lexicon="words.csv"), *parts)


def test_too_few_prompts_for_the_held_out_ones_are_refused(tell: Any) -> None:
    told = tell("finetune", tuned=None, extra="[finetune]\nheldout = 59\n")
    refused(told, "finetune.heldout = 59 contradicts n_texts = 60")


def test_a_loss_that_is_no_number_is_refused(tell: Any) -> None:
    extra = "[finetune]\nheldout = 8\nsteps = 2\nbatch_size = 8\nmax_new_tokens = 4\nlr = 1e30\n"
    refused(tell("finetune", tuned=None, extra=extra), "PPO diverged at step", "Lower lr")


@pytest.mark.parametrize("value", ["nan", "inf", "three", ""])
def test_a_reward_that_is_no_number_is_refused(value: str, tell: Any, tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text(f"great,2.0\nawful,{value}\n", encoding="utf-8")
    told = tell("finetune", tuned=None, extra='[finetune]\nheldout = 8\nreward = "words.csv"\n')
    refused(told, "words.csv, line 2: the value of 'awful' is", "a finite number is expected")


def test_a_store_that_cannot_be_written_is_refused(tell: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    refused(tell(), "The store folder", "cannot be made", "--store")


def test_showing_a_run_that_does_not_exist_makes_nothing(tmp_path: Path, capsys: Any) -> None:
    code = cli.main(["show", "mine", "--store", str(tmp_path / "runs")])
    refused(Told(code, *capsys.readouterr()), "There is no run 'mine'")
    assert not (tmp_path / "runs").exists()


def test_a_mistake_loses_nothing_that_was_finished(tell: Any, models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A good run, then three mistakes in the same run: what was finished is found again, not computed anew."""
    from lfp_lens.core.store import Store

    first = tell()
    assert first.code == 0
    kept = {path.name for path in (tmp_path / "runs" / "mine").glob("diverge-*")}
    refused(tell(tuned=str(models / "broken")), "cannot be loaded")
    refused(tell(column="txt"), "has no column")
    refused(tell(extra="[difverge]\n"), "Unknown section")
    assert {path.name for path in (tmp_path / "runs" / "mine").glob("diverge-*")} == kept
    monkeypatch.setattr(Store, "_write", None)
    assert tell() == first
