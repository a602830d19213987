"""The cache: what is read is what the models gave; half-written, foreign and hostile folders are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from lfp_lens.core.errors import LensError
from lfp_lens.parts import cache as module
from lfp_lens.parts.activation_cache import ActivationCache, open_cache
from lfp_lens.parts.activations import encode
from lfp_lens.parts.cache import cache, opened
from lfp_lens.parts.harvest import Models, text_batches
from lfp_lens.parts.speed import fast_matmul
from tests.tiny import tiny_pair, tiny_texts

SITES = ("blocks.2.hook_mlp_out", "blocks.0.hook_mlp_out")
TEXTS = tiny_texts(40)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return cache(tiny_pair(), SITES, TEXTS, tmp_path_factory.mktemp("cache") / "one")


def test_shards_hold_the_activations_at_hook_names_with_token_ids_and_positions(stored: ActivationCache) -> None:
    pair, seen = tiny_pair(), 0
    encoded = encode(pair.tokenizer, TEXTS, max_tokens=96)
    for path in sorted(stored.folder.glob("shard-*.safetensors")):
        with safe_open(path, "pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert set(held) == {"tokens", "positions", "texts"} | {
            f"{side}.{site}" for side in ("base", "tuned") for site in SITES
        }
        for row in held["texts"].unique().tolist():
            own = held["texts"] == row
            seen += int(own.sum())
        assert held["tokens"].ne(pair.tokenizer.bos_token_id).all()
        assert (held["positions"] >= 1).all(), "the beginning-of-text token is at 0"
    assert seen == stored.n_tokens == sum(len(text.ids) - 1 for text in encoded)
    assert stored.streams == tuple((side, site) for side in ("base", "tuned") for site in SITES[::-1])


def test_a_text_reads_as_the_transformer_lens_model_computes_it(stored: ActivationCache) -> None:
    pair = tiny_pair()
    for text in encode(pair.tokenizer, TEXTS[:5], max_tokens=96):
        _, seen = pair.tuned.run_with_cache(torch.tensor([text.ids]), names_filter=SITES[0])
        torch.testing.assert_close(stored.read(text, ("tuned", SITES[0])), seen[SITES[0]][0, 1:], atol=1e-5, rtol=1e-5)


def test_a_reader_gives_the_models_own_bits_and_asks_them_for_what_is_not_there(stored: ActivationCache) -> None:
    pair = tiny_pair()
    encoded = encode(pair.tokenizer, TEXTS, max_tokens=96)[:-4]
    batches = text_batches(encoded, width=16, begin=0, device=torch.device("cpu"))
    streams = [("tuned", SITES[0]), ("both", SITES[1]), ("base", "blocks.1.hook_mlp_out")]
    models = Models({"base": pair.base_hf, "tuned": pair.tuned_hf}, batches, streams)
    reader = stored.reader(batches, streams, pair, models)
    for at in range(len(batches.rows)):
        with fast_matmul():  # as the stages do
            wanted, found = models.read(at), reader.read(at)
        assert list(found) == streams
        assert all(torch.equal(found[one], wanted[one]) for one in streams)


def test_an_unfinished_cache_is_completed_without_doing_shards_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 4 * 4 * 16 * 100)
    read, left = Models.read, [3]

    def failing(self: Any, at: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return read(self, at)

    monkeypatch.setattr("lfp_lens.parts.harvest.VALUES_AT_ONCE", 1)
    monkeypatch.setattr(Models, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        cache(tiny_pair(), SITES, tiny_texts(400), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    with pytest.raises(LensError, match="There is no finished activation cache in"):
        open_cache(tmp_path)
    left[0] = 10**6
    found = cache(tiny_pair(), SITES, tiny_texts(400), tmp_path)
    assert before and len(found.index["shards"]) > len(before)
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in before.items())
    assert not list(tmp_path.glob(".*shard*"))


def test_half_precision_takes_half_the_room(stored: ActivationCache, tmp_path: Path) -> None:
    half = cache(tiny_pair(), SITES, TEXTS, tmp_path / "half", dtype="bfloat16")
    assert half.n_bytes < 0.65 * stored.n_bytes
    (text,) = encode(tiny_pair().tokenizer, TEXTS[:1], max_tokens=96)
    exact, rough = (one.read(text, ("base", SITES[0])) for one in (stored, half))
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 4e-3


def test_the_size_is_told_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache(tiny_pair(), SITES, TEXTS, tmp_path / "told")
    assert f"MB in {tmp_path / 'told'}" in capsys.readouterr().out


def test_what_does_not_fit_is_refused(stored: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair()
    with pytest.raises(LensError, match="holds another cache"):
        cache(pair, SITES[:1], TEXTS, stored.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(LensError, match="is not empty and holds no cache"):
        cache(pair, SITES, TEXTS, tmp_path / "mine")
    with pytest.raises(LensError, match="dtype is one of float32, bfloat16, float16"):
        cache(pair, SITES, TEXTS, tmp_path / "new", dtype="int8")
    with pytest.raises(LensError, match=r"'blocks\.9\.hook_mlp_out' does not exist: the model has layers 0 to 2"):
        cache(pair, ["blocks.9.hook_mlp_out"], TEXTS, tmp_path / "new")
    with pytest.raises(LensError, match="was made from the pair"):
        stored.check_pair(tiny_pair(seed=5))
    batches = text_batches(
        encode(pair.tokenizer, tiny_texts(3, seed=9), max_tokens=96), width=16, begin=0, device=torch.device("cpu")
    )
    with pytest.raises(LensError, match="lacks 3 of 3 texts as they are read here"):
        stored.reader(batches, [("tuned", SITES[0])], pair, Models({}, batches, []))
    with pytest.raises(LensError, match="does not hold"):
        stored.read(encode(pair.tokenizer, ["never cached at all"], max_tokens=96)[0], ("tuned", SITES[0]))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Disk", (), {"free": 10}))
    with pytest.raises(LensError, match="Take fewer sites or texts"):
        cache(pair, SITES, TEXTS, tmp_path / "new")
    assert not (tmp_path / "new" / "identity.json").exists()


def test_the_rows_of_a_word_are_found_by_its_positions_or_not_at_all(stored: ActivationCache) -> None:
    (text, stranger) = encode(tiny_pair().tokenizer, [TEXTS[7], "never cached at all"], max_tokens=96)
    place = stored.word(text, [2, 3])
    assert place is not None
    whole = stored.read(text, ("base", SITES[0]))
    assert torch.equal(stored.at(place, ("base", SITES[0])), whole[1:3]), "row 0 is position 1"
    assert stored.word(text, [0]) is None, "the beginning-of-text token is not in it"
    assert stored.word(text, [2, 4]) is None, "positions that do not follow one another"
    assert stored.word(text, [len(text.ids)]) is None
    assert stored.word(stranger, [1]) is None


def test_what_a_verb_is_given_as_a_cache_is_opened_made_or_refused(stored: ActivationCache, tmp_path: Path) -> None:
    pair = tiny_pair()
    assert opened(None, pair, SITES, TEXTS, max_tokens=96) is None
    assert opened(stored, pair, SITES, TEXTS, max_tokens=96) is stored
    made = opened(tmp_path / "made", pair, SITES[:1], TEXTS, sides=("base",), max_tokens=96)
    assert made is not None and made.streams == (("base", SITES[0]),)
    with pytest.raises(LensError, match="was made from the pair"):
        opened(stored, tiny_pair(seed=5), SITES, TEXTS, max_tokens=96)
    with pytest.raises(LensError, match=r"cache is an ActivationCache \(lfp_lens.cache\) or a folder; a dict given"):
        opened({}, pair, SITES, TEXTS, max_tokens=96)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside_its_folder_is_refused(file: str, tmp_path: Path) -> None:
    index = {
        "format": 1,
        "streams": [],
        "shards": [{"file": file, "tokens": 1, "texts": [], "starts": [], "lengths": []}],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(LensError, match="is no file of this folder"):
        open_cache(tmp_path)


def test_a_damaged_shard_says_what_to_do(tmp_path: Path) -> None:
    made = cache(tiny_pair(), SITES, TEXTS, tmp_path / "one")
    (made.folder / "shard-00000.safetensors").write_bytes(b"no tensors")
    (text,) = encode(tiny_pair().tokenizer, TEXTS[:1], max_tokens=96)
    with pytest.raises(LensError, match=r"cannot be read .* Delete it and make it anew"):
        open_cache(made.folder).read(text, ("tuned", SITES[0]))


def test_a_finished_cache_is_opened_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cache(tiny_pair(), SITES, TEXTS, tmp_path / "one")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("Disk", (), {"free": 0}))
    monkeypatch.setattr(module, "_write_whole", None)
    assert cache(tiny_pair(), SITES, TEXTS, tmp_path / "one").index == made.index


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    made = cache(tiny_pair(), SITES, TEXTS, folder)
    (folder / "index.json").unlink()
    left = folder / ".shard-00009.safetensors.999999999"
    left.write_bytes(b"half")
    assert cache(tiny_pair(), SITES, TEXTS, folder).index == made.index
    assert not left.exists()
