"""The doctor tells what is there, what is missing and what is broken, and never shows a secret."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lfp_lens import doctor
from lfp_lens.core.errors import LensError


def found(name: str, config: Any = None) -> doctor.Finding:
    """Give the one finding of this name."""
    (one,) = [finding for finding in doctor.examine(config) if finding.name.strip() == name]
    return one


def written(tmp_path: Path, **values: object) -> Path:
    path = tmp_path / "mine.toml"
    given = {"base": "world", "texts": "world"} | values
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in given.items()), encoding="utf-8")
    return path


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LFP_LENS_DATA", raising=False)


@pytest.fixture
def some_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a data folder that holds the reviews and one model."""
    folder = tmp_path / "data"
    (folder / "imdb").mkdir(parents=True)
    (folder / "imdb" / "train.parquet").touch()
    (folder / "models" / "stories260K").mkdir(parents=True)
    (folder / "models" / "stories260K" / "config.json").touch()
    monkeypatch.setenv("LFP_LENS_DATA", str(folder))
    return folder


@pytest.fixture
def pretend_version(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Let some libraries have another version, or be missing (None)."""
    real, pretended = metadata.version, {}

    def version(name: str) -> str:
        if name in pretended and pretended[name] is None:
            raise metadata.PackageNotFoundError(name)
        return pretended.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    return pretended


def test_this_installation_has_no_conflict() -> None:
    assert [finding for finding in doctor.examine() if finding.status == "conflict"] == []


def test_every_declared_library_is_listed_with_its_range() -> None:
    names = {finding.name for finding in doctor.examine()}
    assert {"torch", "transformers", "transformer-lens", "sae-lens", "openai", "vaderSentiment"} <= names
    assert found("transformer-lens").text == f"{metadata.version('transformer-lens')} (declared: <4,>=3.9)"


def test_an_extra_is_not_asked_for() -> None:
    assert "mkdocs" not in {finding.name for finding in doctor.examine()}


def test_a_version_out_of_range_is_a_conflict(pretend_version: dict[str, str | None]) -> None:
    pretend_version["transformer-lens"] = "4.1.0"
    conflicts = [finding for finding in doctor.examine() if finding.status == "conflict"]
    assert [finding.name for finding in conflicts] == ["transformer-lens"]
    assert conflicts[0].text.startswith("4.1.0 is outside the declared range <4,>=3.9. Run: pip install")


def test_a_missing_library_is_a_conflict(pretend_version: dict[str, str | None]) -> None:
    pretend_version["einops"] = None
    conflicts = [finding for finding in doctor.examine() if finding.status == "conflict"]
    assert [(finding.name, "not installed" in finding.text) for finding in conflicts] == [("einops", True)]


def test_what_another_library_asks_for_in_vain_is_a_warning(pretend_version: dict[str, str | None]) -> None:
    pretend_version["huggingface_hub"] = pretend_version["huggingface-hub"] = "0.1.0"
    warnings = [finding for finding in doctor.examine() if finding.status == "warn"]
    assert any(finding.name == "transformers" and "0.1.0 is installed" in finding.text for finding in warnings)


def test_a_data_folder_that_is_not_set_is_a_warning(no_data: None) -> None:
    assert found("LFP_LENS_DATA").status == "warn"


def test_a_data_folder_that_is_no_folder_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LFP_LENS_DATA", "/nowhere/at/all")
    assert found("LFP_LENS_DATA").status == "missing"


def test_the_data_folder_is_listed_by_name(some_data: Path) -> None:
    assert found("LFP_LENS_DATA").text == str(some_data)
    assert found("imdb/train.parquet").status == "ok"
    assert found("models/stories260K").status == "ok"
    assert found("imdb/test.parquet").status == "missing"


def test_the_whole_real_data_folder_is_there(real_data: Path) -> None:
    assert [
        finding.name for finding in doctor.examine() if finding.name.startswith("  ") and finding.status != "ok"
    ] == []


def test_a_key_is_reported_but_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:hidden@127.0.0.1")
    text = repr(doctor.examine())
    assert "sk-very-secret" not in text
    assert "hidden" not in text
    assert found("OPENAI_API_KEY").text == "set"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert found("OPENAI_API_KEY").text.startswith("not set")


def test_device_disk_and_python_are_told() -> None:
    assert "cores" in found("processor").text
    assert "GB free" in found("disk").text
    assert "declared: >=3.11" in found("python").text


def test_a_nearly_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert (found("disk").status, found("disk").text[:6]) == ("warn", "1.0 GB")


def test_the_tiny_preset_needs_nothing(no_data: None) -> None:
    assert found("base", "tiny").status == "ok"
    assert found("texts", "tiny").status == "ok"


def test_a_real_preset_without_data_says_what_to_set(no_data: None) -> None:
    base = found("base", "imdb-2m-vader")
    assert base.status == "missing"
    assert "set LFP_LENS_DATA" in base.text


def test_a_real_preset_finds_its_model_and_texts(some_data: Path, tmp_path: Path) -> None:
    path = written(tmp_path, base="stories260K", texts="imdb")
    assert found("base", path).status == "ok"
    assert found("texts", path).status == "ok"


def test_local_paths_that_do_not_exist_are_missing(tmp_path: Path) -> None:
    path = written(tmp_path, base="./nowhere", tuned=str(tmp_path), texts="texts.csv", lexicon="own.csv")
    assert found("base", path).text == "there is no folder './nowhere'"
    assert "holds no config.json" in found("tuned", path).text
    assert found("texts", path).text == "there is no file 'texts.csv'"
    assert found("lexicon", path).status == "missing"


def test_a_hub_name_that_is_not_cached_is_missing_while_offline(tmp_path: Path) -> None:
    path = written(tmp_path, base="some-body/some-model", texts="some-body/some-texts")
    assert "HF_HUB_OFFLINE forbids" in found("base", path).text
    assert found("texts", path).status == "missing"


def test_a_hub_name_may_be_downloaded_while_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert found("base", written(tmp_path, base="some-body/some-model")).status == "warn"


def test_a_name_the_hub_cannot_have_is_missing(tmp_path: Path) -> None:
    assert "neither a local path nor" in found("base", written(tmp_path, base="a b//c")).text


def test_a_device_that_is_not_there_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found("config device", written(tmp_path, device="cuda:1")).status == "missing"


def test_a_paid_labeller_without_a_key_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = written(tmp_path)
    path.write_text(path.read_text() + '[explain]\nlabeller = "openai:gpt-4o"\n')
    assert "OPENAI_API_KEY" in found("labeller", path).text


def with_tuning(tmp_path: Path, lines: str) -> Path:
    path = written(tmp_path)
    path.write_text(path.read_text() + f"[finetune]\n{lines}\n")
    return path


def test_a_rewards_model_is_looked_for(tmp_path: Path, some_data: Path) -> None:
    path = with_tuning(tmp_path, 'reward = [["vader", 1.0], ["classifier:./nowhere@positive", 0.5]]')
    assert found("reward", path).text == "there is no folder './nowhere'"
    path = with_tuning(tmp_path, 'reward = "reward_model:some-body/some-model"')
    assert found("reward", path).text.startswith("some-body/some-model is not in the hub's local cache")
    names = [finding.name for finding in doctor.examine(with_tuning(tmp_path, 'reward = "vader"'))]
    assert "reward" not in names


def test_preferences_and_a_reference_are_looked_for(tmp_path: Path, some_data: Path) -> None:
    path = with_tuning(tmp_path, 'method = "dpo"\npreferences = "hh:harmless-base"\nreference = "stories260K"')
    assert found("preferences", path).text.startswith("Anthropic/hh-rlhf is not in the hub's local cache")
    assert found("reference", path).status == "ok"
    (some_data / "hh_rlhf").mkdir()
    (some_data / "hh_rlhf" / "train.jsonl.gz").touch()
    assert found("preferences", path).status == "ok"
    assert found("preferences", with_tuning(tmp_path, 'method = "dpo"\npreferences = "my.jsonl"')).status == "missing"
    toxic = found("preferences", with_tuning(tmp_path, 'method = "dpo"\npreferences = "toxic"'))
    assert toxic.text.startswith("unalignment/toxic-dpo-v0.2 is not")


def test_a_loaded_config_serves_as_well_as_its_name() -> None:
    from lfp_lens.config import load_config

    assert found("base", load_config("tiny")).status == "ok"


def test_an_unknown_preset_is_the_users_mistake() -> None:
    with pytest.raises(LensError, match="Unknown preset 'tinny'"):
        doctor.examine("tinny")
