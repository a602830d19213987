"""An adapter is put on its base, merged, and computes what PEFT computes; what does not fit is refused with the reason."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfp_lens.core.errors import LensError
from lfp_lens.parts.adapters import (
    ADAPTER_FILE,
    WEIGHTS_FILE,
    adapter_folder,
    attach,
    is_adapter,
    make_lora,
    save_adapter,
)
from lfp_lens.parts.checkpoints import TUNING_FILE, load_causal_lm, load_tokenizer, weights_fingerprint
from lfp_lens.parts.merging import change_norm
from lfp_lens.parts.pair import load_pair
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

FIRST_A = "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_A.weight"


def adapted(base: Any, lora: Any = 4, seed: int = 0, scale: float = 0.1) -> Any:
    """A PEFT model on a copy of `base` whose adapter is not zero."""
    wrapped = attach(copy.deepcopy(base), make_lora(lora, base))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight += scale * torch.randn(weight.shape, generator=generator)
    return wrapped.eval()


def lora(**options: Any) -> Any:
    import peft

    return peft.LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base with its tokenizer and an adapter that names it, each in its folder."""
    root = tmp_path_factory.mktemp("stored")
    tiny_model().save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    save_adapter(adapted(load_causal_lm(root / "base")), root / "adapter")
    return root / "base", root / "adapter"


@pytest.fixture
def broken(stored: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored[1], tmp_path / "adapter"))


def with_setting(folder: Path, **values: Any) -> Path:
    path = folder / ADAPTER_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(len(tiny_tokenizer()), (2, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_adapter_computes_what_peft_computes(architecture: str, tmp_path: Path) -> None:
    base = tiny_model(architecture)
    wrapped = adapted(base)
    save_adapter(wrapped, tmp_path)
    wanted = logits(wrapped)
    assert float((wanted - logits(base)).abs().max()) > 0.1
    for tuned in (tmp_path, wrapped):
        pair = load_pair(base, tuned, tokenizer=tiny_tokenizer())
        # fp32 with logits of order 10 rounds at 1e-6.
        torch.testing.assert_close(logits(pair.tuned_hf), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
        torch.testing.assert_close(pair.tuned(torch.tensor([[5, 6, 7]])), pair.tuned_hf(torch.tensor([[5, 6, 7]])).logits,
                                   atol=1e-4, rtol=0)  # fmt: skip
        assert type(pair.tuned_hf) is type(base) and not is_adapter(pair.tuned_hf)
        assert pair.adapter is not None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_low_rank_change_is_the_change_of_the_merged_weights(architecture: str) -> None:
    base = tiny_model(architecture).double()
    pair = load_pair(base, adapted(base), tokenizer=tiny_tokenizer())
    moved = dict(pair.tuned_hf.named_parameters())
    assert pair.adapter
    for name, weight in base.named_parameters():
        change = (moved[name] - weight).detach()
        if name in pair.adapter:
            assert change_norm(pair.adapter[name]) == pytest.approx(float(change.norm()), rel=1e-5), name
            assert float(change.norm()) > 0
        else:
            assert float(change.abs().max()) == 0, name


def test_the_callers_objects_and_the_stream_of_random_numbers_stay_as_they_are(tmp_path: Path) -> None:
    base = tiny_model()
    wrapped = adapted(base)
    save_adapter(wrapped, tmp_path)
    wrapped.train()
    before = [weights_fingerprint(model) for model in (base, wrapped)]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    pairs = [load_pair(base, tuned, tokenizer=tiny_tokenizer()) for tuned in (tmp_path, wrapped, wrapped)]
    assert torch.equal(state, torch.get_rng_state())
    assert [weights_fingerprint(model) for model in (base, wrapped)] == before
    assert wrapped.training and any(module.training for module in wrapped.modules())
    assert len({pair.fingerprint for pair in pairs}) == 1
    assert pairs[0].base_hf is base
    assert all(weight.requires_grad for weight in pairs[0].tuned_hf.parameters())


def test_an_adapter_alone_gives_the_base_it_names_with_the_adapter_in_it(stored: tuple[Path, Path]) -> None:
    base, folder = stored
    model = load_causal_lm(folder)
    assert weights_fingerprint(model) == weights_fingerprint(load_pair(base, folder).tuned_hf)
    assert weights_fingerprint(model) != weights_fingerprint(load_causal_lm(base))
    assert load_tokenizer(folder).get_vocab() == tiny_tokenizer().get_vocab()
    assert load_pair(base, adapted(load_causal_lm(base)), tokenizer=tiny_tokenizer()).adapter is not None


def test_an_adapter_may_name_its_base_otherwise_than_it_was_loaded(stored: tuple[Path, Path], tmp_path: Path) -> None:
    wrapped = adapted(tiny_model())
    save_adapter(wrapped, tmp_path, str(stored[0]))
    assert weights_fingerprint(load_causal_lm(tmp_path)) == weights_fingerprint(load_causal_lm(stored[1]))
    assert not wrapped.peft_config["default"].base_model_name_or_path


def test_an_adapter_on_an_adapter_is_merged_layer_by_layer(stored: tuple[Path, Path], tmp_path: Path) -> None:
    first = load_causal_lm(stored[1])
    second = adapted(first, seed=1)
    save_adapter(second, tmp_path / "second")
    assert json.loads((tmp_path / "second" / ADAPTER_FILE).read_text())["base_model_name_or_path"] == str(stored[1])
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "second")), logits(second), atol=1e-4, rtol=0)
    assert load_tokenizer(tmp_path / "second").get_vocab() == tiny_tokenizer().get_vocab()


def test_an_adapter_that_names_itself_is_refused(broken: Path) -> None:
    with_setting(broken, base_model_name_or_path=str(broken))
    with pytest.raises(LensError, match="stands on 8 others or on itself"):
        load_causal_lm(broken)
    with pytest.raises(LensError, match=r"tokenizer of .* cannot be loaded"):
        load_tokenizer(broken)


def test_an_adapter_from_the_hub_is_read_from_its_cache(
    stored: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--someone--some-adapter"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(stored[1], kept / "snapshots" / ("0" * 40))
    assert adapter_folder("someone/some-adapter") == kept / "snapshots" / ("0" * 40)
    assert adapter_folder("someone/some-model") is None
    wanted = load_pair(*stored).fingerprint
    assert load_pair(stored[0], "someone/some-adapter").fingerprint == wanted


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"modules_to_save": ["embed_in"]}, {"bias": "lora_only"}, {"lora_bias": True}]
)
def test_what_is_more_than_low_rank_is_merged_and_has_no_closed_form(options: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_model()
    wrapped = adapted(base, lora(**options), scale=0.05)
    save_adapter(wrapped, tmp_path)
    for tuned in (tmp_path, wrapped):
        pair = load_pair(base, tuned, tokenizer=tiny_tokenizer())
        assert pair.adapter is None
        torch.testing.assert_close(logits(pair.tuned_hf), logits(wrapped), atol=1e-4, rtol=0)


def test_another_kind_of_adapter_is_merged_too(tmp_path: Path) -> None:
    import peft

    base = tiny_model()
    config = peft.LoHaConfig(r=2, target_modules=["dense_h_to_4h"], init_weights=False)
    wrapped = attach(copy.deepcopy(base), config)
    save_adapter(wrapped.eval(), tmp_path)
    pair = load_pair(base, tmp_path, tokenizer=tiny_tokenizer())
    assert pair.adapter is None
    assert float((logits(pair.tuned_hf) - logits(base)).abs().max()) > 1e-3
    torch.testing.assert_close(logits(pair.tuned_hf), logits(wrapped), atol=1e-4, rtol=0)


def test_ranks_and_scalings_of_single_layers_are_kept() -> None:
    base = tiny_model().double()
    config = lora(rank_pattern={"dense_h_to_4h": 2}, alpha_pattern={"dense_h_to_4h": 16}, use_rslora=True)
    pair = load_pair(base, adapted(base, config), tokenizer=tiny_tokenizer())
    assert pair.adapter
    one, two, scaling = pair.adapter["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    assert one.shape[0] == two.shape[1] == 2
    assert scaling == pytest.approx(16 / 2**0.5)


def test_an_adapter_on_embeddings_has_a_closed_form_too() -> None:
    base = tiny_model().double()
    pair = load_pair(base, adapted(base, lora(target_modules=["embed_in"])), tokenizer=tiny_tokenizer())
    assert pair.adapter and list(pair.adapter) == ["gpt_neox.embed_in.weight"]
    change = pair.tuned_hf.gpt_neox.embed_in.weight - base.gpt_neox.embed_in.weight
    assert change_norm(pair.adapter["gpt_neox.embed_in.weight"]) == pytest.approx(
        float(change.detach().norm()), rel=1e-9
    )


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_embeddings_that_peft_stores_beside_an_adapter_are_recognised(
    stored: tuple[Path, Path], tmp_path: Path
) -> None:
    wrapped = adapted(load_causal_lm(stored[0]), lora(target_modules=["embed_in", "query_key_value"]))
    wrapped.save_pretrained(tmp_path / "whole", save_embedding_layers=True)
    assert any("base_layer" in name for name in load_file(tmp_path / "whole" / WEIGHTS_FILE))
    pair = load_pair(stored[0], tmp_path / "whole")
    torch.testing.assert_close(logits(pair.tuned_hf), logits(wrapped), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_an_adapter_on_one_of_two_tied_weights_is_refused() -> None:
    base = tiny_model("gpt2")
    with pytest.raises(LensError, match=r"gives other outputs than beside it.*tied embeddings"):
        load_pair(base, adapted(base, lora(target_modules=["lm_head"])), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_a_large_adapter_is_merged_and_keeps_its_closed_form(dtype: str, tmp_path: Path) -> None:
    """Merged in fp32 and rounded once: computing both ways in bf16 would differ by more than any tolerance."""
    base = tiny_model("llama")
    save_adapter(adapted(base, scale=0.4), tmp_path)
    full = load_pair(base, tmp_path, tokenizer=tiny_tokenizer())
    half = load_pair(copy.deepcopy(base).to(getattr(torch, dtype)), tmp_path, tokenizer=tiny_tokenizer())
    assert full.adapter is not None and half.adapter is not None
    assert half.tuned_hf.dtype == half.base_hf.dtype == getattr(torch, dtype)
    moved = dict(full.tuned_hf.named_parameters())
    eps = torch.finfo(getattr(torch, dtype)).eps
    for name, weight in half.tuned_hf.named_parameters():
        allowed = 2 * eps * float(moved[name].detach().abs().max())
        torch.testing.assert_close(weight.detach().float(), moved[name].detach(), atol=allowed, rtol=0)


def test_the_base_that_the_record_names_by_content_is_the_only_one(stored: tuple[Path, Path], broken: Path) -> None:
    record = {"method": "ppo", "base_fingerprint": weights_fingerprint(load_causal_lm(stored[0]))}
    (broken / TUNING_FILE).write_text(json.dumps(record))
    assert load_pair(stored[0], broken).tuning == record
    assert load_pair(stored[0], broken, dtype="bfloat16").adapter is not None
    load_causal_lm(broken)
    other = tiny_model(seed=5)
    with pytest.raises(LensError, match=r"trained on a base with the fingerprint .*; the base given has"):
        load_pair(other, broken, tokenizer=tiny_tokenizer())
    (broken / TUNING_FILE).write_text(json.dumps(record | {"base_fingerprint": "0" * 32}))
    with pytest.raises(LensError, match="trained on a base with the fingerprint 0000"):
        load_causal_lm(broken)


def test_an_adapter_in_memory_belongs_to_the_base_it_wraps() -> None:
    base = tiny_model()
    wrapped = adapted(base)
    nudged = copy.deepcopy(base)
    with torch.no_grad():
        nudged.gpt_neox.embed_in.weight[300, 3] += 1e-4
    with pytest.raises(LensError, match=r"sits on another model than the base: gpt_neox\.embed_in\.weight differs"):
        load_pair(nudged, wrapped, tokenizer=tiny_tokenizer())


def test_a_base_that_carries_the_adapter_already_is_refused_with_what_to_do() -> None:
    base = tiny_model()
    wrapped = attach(base, make_lora(2, base))
    for given in (base, wrapped):
        with pytest.raises(LensError, match=r"carries an adapter in its modules.*merge_and_unload.*made before"):
            load_pair(given, wrapped, tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match="carries adapter layers but is no PEFT model"):
        load_pair(tiny_model(), base, tokenizer=tiny_tokenizer())


def test_one_active_adapter_that_is_not_merged_is_expected() -> None:
    base = tiny_model()
    wrapped = adapted(base)
    wrapped.merge_adapter()
    with pytest.raises(LensError, match="or one that is merged already"):
        load_pair(base, wrapped, tokenizer=tiny_tokenizer())


def test_an_adapter_without_a_base_by_name_needs_the_pair(tmp_path: Path) -> None:
    save_adapter(adapted(tiny_model()), tmp_path)
    with pytest.raises(LensError, match=r"names no base model .*load_pair\(base, adapter\)"):
        load_causal_lm(tmp_path)
    assert load_pair(tiny_model(), tmp_path, tokenizer=tiny_tokenizer()).adapter is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(FIRST_A), r"lacks 1 tensors, first .*lora_A\.weight"),
        (lambda held: held.update({"base_model.model.extra": torch.ones(2)}), "1 that fit nothing, first .*extra"),
        (lambda held: held.update({FIRST_A: held[FIRST_A][:, :-1].clone()}), "is for another shape: .*lora_A"),
        (lambda held: held.update({FIRST_A: held[FIRST_A] / 0}), "not finite in .*lora_A"),
        (dict.clear, "holds no weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None], message: str, stored: tuple[Path, Path], broken: Path
) -> None:
    with_tensors(broken, change)
    for load in (lambda: load_pair(stored[0], broken), lambda: load_causal_lm(broken)):
        with pytest.raises(LensError, match=message):
            load()


def test_an_adapter_of_another_shape_or_architecture_is_refused(stored: tuple[Path, Path]) -> None:
    for model, message in (
        (tiny_model(width=24), r"is for another shape: .* needs"),
        (tiny_model(layers=2), r"does not fit this GPTNeoXForCausalLM: it has 8 that fit nothing"),
        (tiny_model("llama"), r"does not fit a LlamaForCausalLM: .*[Tt]arget modules"),
    ):
        with pytest.raises(LensError, match=message):
            load_pair(model, stored[1], tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_type": "SEQ_CLS"}, "is for a sequence classifier; a causal LM is expected here.*load_reward_model"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "is for the task SEQ_2_SEQ_LM"),
        (
            {"base_model_name_or_path": "unsloth/tiny-bnb-4bit"},
            "trained on 'unsloth/tiny-bnb-4bit', which is quantised",
        ),
        ({"base_model_name_or_path": "someone/tiny-GPTQ-Int4"}, "which is quantised"),
        ({"init_lora_weights": "pissa"}, "started with 'pissa', which changes the base's own weights"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "for Megatron layers"),
        ({"made_up_setting": 3}, "needs a newer PEFT: this one does not know its setting 'made_up_setting'"),
        ({"peft_type": "NEW"}, "adapter_config.json is damaged"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    settings: dict[str, Any], message: str, stored: tuple[Path, Path], broken: Path
) -> None:
    with_setting(broken, **settings)
    with pytest.raises(LensError, match=message):
        load_pair(stored[0], broken)


def test_a_base_on_disk_whose_weights_are_codes_is_refused(
    stored: tuple[Path, Path], broken: Path, tmp_path: Path
) -> None:
    quantised = tmp_path / "codes"
    quantised.mkdir()
    (quantised / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    with_setting(broken, base_model_name_or_path=str(quantised))
    with pytest.raises(LensError, match="codes', which is quantised"):
        load_pair(stored[0], broken)


def test_settings_that_an_older_peft_did_not_know_are_no_reason_to_refuse(
    stored: tuple[Path, Path], broken: Path
) -> None:
    with_setting(broken, made_up_setting=None, another={})
    assert load_pair(stored[0], broken).adapter is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"peft_type": 3}', "\x00"])
def test_a_damaged_configuration_is_refused(text: str, stored: tuple[Path, Path], broken: Path) -> None:
    (broken / ADAPTER_FILE).write_text(text)
    with pytest.raises(LensError, match=r"adapter_config\.json is damaged"):
        load_pair(stored[0], broken)


@pytest.mark.parametrize("damage", ["empty", "cut", "pickle"])
def test_damaged_or_pickled_weights_are_never_loaded(
    damage: str, stored: tuple[Path, Path], broken: Path, tmp_path: Path
) -> None:
    path = broken / WEIGHTS_FILE
    whole = path.read_bytes()
    if damage == "pickle":
        path.unlink()
        (broken / "adapter_model.bin").write_bytes(
            b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
        )
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    message = "Pickles are never loaded" if damage == "pickle" else r"adapter_model\.safetensors is damaged"
    with pytest.raises(LensError, match=message):
        load_pair(stored[0], broken)
    assert not (tmp_path / "ran").exists()


def test_a_learned_prompt_changes_no_weight(tmp_path: Path) -> None:
    import peft

    base = tiny_model()
    wrapped = attach(copy.deepcopy(base), peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(LensError, match=r"learns prompts .*changes no weight"):
        load_pair(base, wrapped, tokenizer=tiny_tokenizer())


def test_a_rank_becomes_an_adapter_of_every_linear_map() -> None:
    for architecture in ARCHITECTURES:
        model = tiny_model(architecture)
        config = make_lora(3, model)
        assert (config.r, config.lora_alpha, config.fan_in_fan_out) == (3, 6, architecture == "gpt2")
        trained = [name for name, weight in attach(model, config).named_parameters() if weight.requires_grad]
        assert trained and all("lora_" in name for name in trained)


@pytest.mark.parametrize("given", [0, -1, True, 2.0, "8", {}])
def test_what_is_no_rank_and_no_configuration_is_refused(given: Any) -> None:
    with pytest.raises(LensError, match=r"lora is a rank .*or a PEFT LoraConfig"):
        make_lora(given, tiny_model())


def test_a_given_configuration_is_not_changed() -> None:
    given = lora(target_modules=["query_key_value"])
    before = copy.deepcopy(given)
    attach(tiny_model(), make_lora(given, tiny_model()))
    assert given == before


def test_modules_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(LensError, match=r"does not fit a GPTNeoXForCausalLM: .*Name modules that it has"):
        attach(tiny_model(), lora(target_modules=["q_proj"]))
