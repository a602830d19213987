"""diverge on stored weights: the numbers of the loaded pair, without ever holding a model; bad checkpoints are refused."""

import copy
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.parts import weights as weights_module
from lfp_lens.parts.adapters import attach, make_lora, save_adapter
from lfp_lens.parts.pair import load_pair
from lfp_lens.parts.stored_weights import stored
from lfp_lens.stages.diverge import diverge
from tests.tiny import ARCHITECTURES, perturbed, tiny_model, tiny_texts, tiny_tokenizer

OF_WEIGHTS = ("parameter_sum", "parameter_l2", "parameter_relative", "mlp_relative", "attention_relative")
WHOLE = "model.safetensors"


def saved(folder: Path, model: Any, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and its perturbed twin on disk."""
    home, base = tmp_path_factory.mktemp("stored"), tiny_model()
    return saved(home / "base", base), saved(home / "tuned", perturbed(base))


def changed(
    two: tuple[Path, Path], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> tuple[Path, Path]:
    """The same with other tensors in the tuned file."""
    folder = Path(shutil.copytree(two[1], tmp_path / "changed"))
    tensors = load_file(folder / WHOLE)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WHOLE, {"format": "pt"})
    return two[0], folder


def assert_same_numbers(one: Any, two: Any, rel: float = 1e-12) -> None:
    assert one.sites == two.sites
    for name in OF_WEIGHTS:
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=rel, nan_ok=True), name
        assert (getattr(one, name) > 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_numbers_are_those_of_the_loaded_pair(architecture: str, tmp_path: Path) -> None:
    base = tiny_model(architecture)
    paths = saved(tmp_path / "base", base), saved(tmp_path / "tuned", perturbed(base))
    assert_same_numbers(diverge(paths), diverge(load_pair(*paths, tokenizer=tiny_tokenizer())))


def test_streamed_numbers_of_shards_and_of_bf16_are_those_of_the_loaded_pair(tmp_path: Path) -> None:
    base = tiny_model().to(torch.bfloat16)
    paths = saved(tmp_path / "base", base), saved(tmp_path / "tuned", perturbed(base), max_shard_size="8KB")
    assert len(list(paths[1].glob("*.safetensors"))) > 2
    assert_same_numbers(diverge(paths), diverge(load_pair(*paths, tokenizer=tiny_tokenizer())))


def test_a_planted_change_is_measured_from_disk(two: tuple[Path, Path], tmp_path: Path) -> None:
    """3 in one element and 4 in another of one matrix of layer 1: a distance of 5 there and nothing elsewhere."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update(load_file(two[0] / WHOLE))
        weight = tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
        weight[0, 0] += 3
        weight[2, 5] -= 4

    found = diverge(changed(two, tmp_path, change))
    assert found.parameter_sum == pytest.approx([0, 5, 0], abs=1e-5)
    assert found.parameter_l2 == pytest.approx([0, 5, 0], abs=1e-5)
    assert found.attention_relative.tolist() == [0, 0, 0]
    assert found.mlp_relative[1] > 0
    assert found.top(1) == ("blocks.1.hook_mlp_out",)


def test_at_most_one_tensor_of_each_side_is_held(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor read from a file is counted while it is alive."""
    from lfp_lens.parts import stored_weights

    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = []

    class Counting:
        def __init__(self, path: Path, framework: str) -> None:
            self.inner = original(path, framework=framework)

        def __enter__(self) -> "Counting":
            self.file = self.inner.__enter__()
            return self

        def __exit__(self, *told: Any) -> None:
            self.inner.__exit__(*told)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            tensor = self.file.get_tensor(name)
            alive.add(tensor)
            most.append(len(alive))
            return tensor

    original = stored_weights.safe_open
    monkeypatch.setattr(stored_weights, "safe_open", Counting)
    diverge(two, replicates=[changed_copy(two)])
    assert len(most) > 100
    assert max(most) == 2


def changed_copy(two: tuple[Path, Path]) -> Path:
    folder = two[1].parent / "replicate"
    if not folder.exists():
        saved(folder, perturbed(tiny_model(), seed=9))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_two_large_checkpoints_are_compared_in_the_memory_of_one_tensor_of_each(tmp_path: Path) -> None:
    """Two files of 256 MiB in 64 tensors of 4 MiB: loading either would add 256 MiB, and one pair of tensors adds 8."""
    for side in ("base", "tuned"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}")
        value = 1.0 if side == "base" else 1.5
        tensors = {f"h.{layer}.mlp.weight": torch.full((1024, 1024), value) for layer in range(64)}
        save_file(tensors, tmp_path / side / WHOLE)
    code = f"""
import resource
from lfp_lens.stages.diverge import diverge
from pathlib import Path
home = Path({str(tmp_path)!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = diverge((home / "base", home / "tuned"))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before, found.parameter_l2[63])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    kilobytes, distance = done.stdout.split()
    assert float(distance) == pytest.approx(512)
    assert int(kilobytes) < 80 * 1024


def test_no_model_is_built(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *given, **named: pytest.fail("a module was made"))
    assert (diverge(two).parameter_sum > 0).all()


@pytest.mark.parametrize("architecture", ["neox", "gpt2"])
@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_an_adapter_on_disk_is_measured_in_closed_form(
    architecture: str, rank_stabilised: bool, tmp_path: Path
) -> None:
    """GPT-2 stores its matrices the other way round; a pattern gives one module another scale."""
    base = tiny_model(architecture)
    path = saved(tmp_path / "base", base)
    config = make_lora(2, base)
    config.use_rslora = rank_stabilised
    config.alpha_pattern = {"mlp.dense_h_to_4h": 7, "mlp.c_fc": 7}
    save_adapter(with_factors(attach(copy.deepcopy(base), config)), tmp_path / "adapter", str(path))
    tokenizer = tiny_tokenizer()
    pair = load_pair(path, tmp_path / "adapter", tokenizer=tokenizer)
    assert pair.adapter is not None
    found = diverge((path, tmp_path / "adapter"))
    assert_same_numbers(found, diverge(pair))
    merged = saved(tmp_path / "merged", pair.tuned_hf)
    assert_same_numbers(found, diverge((path, merged)), rel=1e-5)


def with_factors(wrapped: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (weight for weight in wrapped.parameters() if weight.requires_grad):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return wrapped


def test_two_adapters_are_compared_in_closed_form_as_their_merged_models_are(tmp_path: Path) -> None:
    base = tiny_model("gpt2")
    path = saved(tmp_path / "base", base)
    for seed in (1, 2):
        save_adapter(
            with_factors(attach(copy.deepcopy(base), make_lora(2, base)), seed), tmp_path / f"low {seed}", str(path)
        )
        saved(
            tmp_path / f"whole {seed}", load_pair(path, tmp_path / f"low {seed}", tokenizer=tiny_tokenizer()).tuned_hf
        )
    [closed] = diverge((path, tmp_path / "low 1"), replicates=tmp_path / "low 2").seed_nulls
    for replicate, tuned in (("whole 2", "whole 1"), ("low 2", "whole 1"), ("whole 2", "low 1")):
        [subtracted] = diverge((path, tmp_path / tuned), replicates=tmp_path / replicate).seed_nulls
        for name in OF_WEIGHTS:
            assert closed.between[name] == pytest.approx(subtracted.between[name], rel=1e-5)
            assert closed.replicate[name] == pytest.approx(subtracted.replicate[name], rel=1e-5)


def test_names_are_compared_below_the_trunk_and_a_tied_head_may_be_stored_or_not(tmp_path: Path) -> None:
    """As on the hub: one GPT-2 without `transformer.`, with its causal masks, the other with the prefix and the head."""
    base = tiny_model("gpt2")
    paths = saved(tmp_path / "base", base), saved(tmp_path / "tuned", perturbed(base))
    plain = diverge(paths)
    old = {name.removeprefix("transformer."): tensor for name, tensor in load_file(paths[0] / WHOLE).items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for layer in range(3)}
    save_file(old | masks | {"h.0.attn.masked_bias": torch.tensor(-1e4)}, paths[0] / WHOLE)
    new = load_file(paths[1] / WHOLE)
    save_file(new | {"lm_head.weight": new["transformer.wte.weight"].clone()}, paths[1] / WHOLE)
    assert_same_numbers(diverge(paths), plain)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["score.weight"] = torch.zeros(1, 16)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.embed_in.weight"] = tensors["gpt_neox.embed_in.weight"][:-1]


def to_codes(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"] = torch.zeros(32, 16, dtype=torch.int8)


def to_float8(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"] = torch.zeros(32, 16).to(torch.float8_e4m3fn)


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"][0, 0] = float("nan")


def without_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def two_stacks(tensors: dict[str, torch.Tensor]) -> None:
    tensors["vision.layers.0.mlp.weight"] = torch.zeros(2, 2)


def many(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1.attention." in name]:
        del tensors[name]


def no_layers(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"it lacks layers\.1\.mlp\.dense_h_to_4h\.weight. Tensors are matched by name"),
        (add, r"it alone has score\.weight"),
        (reshape, r"of other shapes: embed_in\.weight is \(\d+, 16\) there and \(\d+, 16\) here"),
        (to_codes, r"is quantised: gpt_neox\.layers\.2\.mlp\.dense_h_to_4h\.weight holds I8, codes and not values"),
        (to_float8, r"is quantised: .* holds F8_E4M3, codes"),
        (not_finite, r"holds numbers that are not finite in layers\.2\.mlp\.dense_h_to_4h\.weight"),
        (without_a_layer, r"has weights of layer 2 but none of layer 1: it is incomplete"),
        (two_stacks, r"has 2 stacks of layers \(gpt_neox\.layers, vision\.layers\)"),
        (no_layers, r"no layer can be compared"),
        (many, r"it lacks layers\.1\.attention\.dense\.bias, .* and 1 more"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, two: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(LensError, match=message):
        diverge(changed(two, tmp_path, change))


def test_a_base_without_layers_or_with_a_gap_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    for change, message in (
        (no_layers, "no layer can be compared"),
        (without_a_layer, "none of layer 1: it is incomplete"),
    ):
        _, bad = changed(two, tmp_path / change.__name__, change)
        with pytest.raises(LensError, match=message):
            diverge((bad, bad))


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def quantise_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))


def spoil_weights(folder: Path) -> None:
    (folder / WHOLE).write_bytes((folder / WHOLE).read_bytes()[:1000])


def lose_a_shard(folder: Path) -> None:
    (folder / WHOLE).unlink()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def point_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../base/model.safetensors"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_config, r"config\.json is damaged"),
        (quantise_config, "is quantised: its weights are codes"),
        (spoil_weights, r"model\.safetensors is damaged"),
        (lambda folder: (folder / WHOLE).unlink(), "Pickles are never loaded; save it with safetensors"),
        (lambda folder: (folder / "config.json").unlink(), r"it has no config\.json"),
        (lose_a_shard, "is incomplete: .* names model-00001-of-00001.safetensors, which is not there"),
        (point_outside, "does not name the files beside it"),
    ],
)
def test_a_damaged_or_quantised_checkpoint_is_refused(
    change: Callable[[Path], Any], message: str, two: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(two[1], tmp_path / "bad"))
    change(bad)
    with pytest.raises(LensError, match=message):
        diverge((two[0], bad))


def biased(folder: Path) -> None:
    edit(folder, bias="all")


def weight_decomposed(folder: Path) -> None:
    edit(folder, use_dora=True)


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tensors_of(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (biased, r"more than a low-rank change \(bias='all'\).* load_pair"),
        (weight_decomposed, r"more than a low-rank change \(use_dora\)"),
        (lambda f: tensors_of(f, lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "lacks a factor of layers"),
        (
            lambda f: tensors_of(f, lambda t: {k.replace("layers.2", "layers.7"): v for k, v in t.items()}),
            "which .* lacks",
        ),
        (
            lambda f: tensors_of(
                f, lambda t: {k: v[..., :-1].contiguous() if "lora_A" in k else v for k, v in t.items()}
            ),
            "for another shape",
        ),
        (
            lambda f: tensors_of(f, lambda t: t | {"base_model.model.extra": torch.ones(2)}),
            "no factor of a low-rank change",
        ),
    ],
)
def test_an_adapter_that_cannot_be_measured_in_closed_form_is_refused(
    change: Callable[[Path], Any], message: str, two: tuple[Path, Path], tmp_path: Path
) -> None:
    base = tiny_model()
    save_adapter(with_factors(attach(copy.deepcopy(base), make_lora(2, base))), tmp_path / "adapter", str(two[0]))
    change(tmp_path / "adapter")
    with pytest.raises(LensError, match=message):
        diverge((two[0], tmp_path / "adapter"))


def test_what_is_no_pair_is_refused(two: tuple[Path, Path], tmp_path: Path) -> None:
    base = tiny_model()
    save_adapter(attach(copy.deepcopy(base), make_lora(2, base)), tmp_path / "adapter", str(two[0]))
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (two, {"texts": tiny_texts(2)}, "Activations and KL need the models: give diverge"),
        ((base, base), {}, "two hub names or folders; GPTNeoXForCausalLM, GPTNeoXForCausalLM given"),
        ((*two, two[0]), {}, "given as \\(base, tuned\\)"),
        ("pythia", {}, "diverge compares a pair: .* str given"),
        ((tmp_path / "adapter", two[1]), {}, "is an adapter: give it as tuned"),
        ((two[0], "no/such-model-anywhere"), {}, r"has no config\.json. Expected a local folder"),
    ]
    for pair, options, message in refused:
        with pytest.raises(LensError, match=message):
            diverge(pair, **options)


def test_without_texts_what_needs_them_is_none_and_says_why(two: tuple[Path, Path]) -> None:
    for found in (diverge(two), diverge(load_pair(*two, tokenizer=tiny_tokenizer()))):
        assert found.kl is found.kl_by_position is found.activation_relative is None
        assert (found.n_texts, found.n_tokens) == (0, 0)
        assert list(found.to_frame().columns) == ["site", *OF_WEIGHTS]
        assert len(found.plot().data) == 5
        assert "weights only" in found._repr_html_()
        with pytest.raises(LensError, match="activation_relative was not measured: it needs texts"):
            found.top(1, by="activation_relative")


def test_blocks_without_an_mlp_by_name_have_no_relative_change_of_one(tmp_path: Path) -> None:
    """As in OPT, whose blocks hold `fc1` and `fc2`."""
    for side, value in (("base", 1.0), ("tuned", 2.0)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}")
        names = [
            f"model.decoder.layers.{layer}.{part}.weight" for layer in range(2) for part in ("fc1", "self_attn.k_proj")
        ]
        save_file({name: torch.full((2, 2), value) for name in names}, tmp_path / side / WHOLE)
    found = diverge((tmp_path / "base", tmp_path / "tuned"))
    assert np.isnan(found.mlp_relative).all()
    assert found.attention_relative.tolist() == [1, 1]
    with pytest.raises(LensError, match="mlp_relative was not measured: no tensor"):
        found.top(1, by="mlp_relative")
    assert len(found.plot().data) == 5


def test_the_layer_of_a_tensor_is_the_first_that_its_name_tells(tmp_path: Path) -> None:
    """As in a mixture of experts whose experts have layers of their own."""
    for side, value in (("base", 1.0), ("tuned", 2.0)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}")
        names = [f"layers.{layer}.mlp.experts.layers.{expert}.weight" for layer in range(2) for expert in range(5)]
        save_file({name: torch.full((1, 1), value) for name in names}, tmp_path / side / WHOLE)
    assert diverge((tmp_path / "base", tmp_path / "tuned")).parameter_sum.tolist() == [5, 5]


def test_a_stored_result_is_keyed_by_the_files_and_not_by_their_names(two: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two[1], tmp_path / "tuned"))
    store = Store(tmp_path / "run")
    first = diverge((two[0], folder), store=store)
    assert len(list(store.root.glob("diverge-*"))) == 1
    diverge((two[0], two[1]), store=store)
    assert len(list(store.root.glob("diverge-*"))) == 1, "the same bytes in another folder"
    tensors = load_file(folder / WHOLE)
    tensors["gpt_neox.layers.0.mlp.dense_4h_to_h.bias"][0] += 100
    save_file(tensors, folder / WHOLE, {"format": "pt"})
    second = diverge((two[0], folder), store=store)
    assert second.parameter_l2[0] > 50 > first.parameter_l2[0]


def test_the_largest_tensors_are_summed_in_parts(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = diverge(two)
    monkeypatch.setattr(weights_module, "CHUNK_VALUES", 7)
    assert_same_numbers(diverge(two), whole)


def test_a_checkpoint_names_its_files(two: tuple[Path, Path]) -> None:
    assert [path.name for path in stored(two[0]).content] == ["config.json", WHOLE]


def test_real_checkpoints_on_disk_give_the_numbers_of_the_loaded_pair(real_data: Any, tmp_path: Path) -> None:
    """Two architectures, one with a tied head, by the names of the project's own models."""
    from lfp_lens.parts.checkpoints import load_causal_lm, load_tokenizer

    for name in ("stories260K", "imdb-neox-2m"):
        tuned = saved(tmp_path / name, perturbed(load_causal_lm(name), 0.01), max_shard_size="500KB")
        loaded = load_pair(name, tuned, tokenizer=load_tokenizer(name))
        assert_same_numbers(diverge((name, tuned)), diverge(loaded))


def test_the_bases_own_embedding_beside_an_adapter_is_no_change(two: tuple[Path, Path], tmp_path: Path) -> None:
    """PEFT may store it; another embedding than the base's would be a change that is not low-rank."""
    base = tiny_model()
    folder = tmp_path / "adapter"
    save_adapter(with_factors(attach(copy.deepcopy(base), make_lora(2, base))), folder, str(two[0]))
    plain = diverge((two[0], folder))
    key, own = "base_model.model.gpt_neox.embed_in.weight", base.gpt_neox.embed_in.weight.detach().clone()
    tensors_of(folder, lambda tensors: tensors | {key: own})
    assert_same_numbers(diverge((two[0], folder)), plain)
    tensors_of(folder, lambda tensors: tensors | {key: own + 1})
    with pytest.raises(LensError, match=r"holds base_model\.model\.gpt_neox\.embed_in\.weight, which is no factor"):
        diverge((two[0], folder))


def test_a_name_of_the_hub_is_read_from_the_cache(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetched(name: str, file: str) -> str:
        path = two[0].parent / name.removeprefix("me/") / file
        if not path.is_file():
            raise LocalEntryNotFoundError("not in the cache")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert_same_numbers(diverge(("me/base", "me/tuned")), diverge(two))
