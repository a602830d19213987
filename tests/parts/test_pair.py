"""A pair is two causal LMs that fit together, and its hooks read what Hugging Face computes; anything else is refused."""

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lfp_lens.core.errors import LensError
from lfp_lens.parts import checkpoints, hooked
from lfp_lens.parts import pair as pairs
from lfp_lens.parts.checkpoints import TUNING_FILE
from lfp_lens.parts.pair import (
    load_causal_lm,
    load_pair,
    load_tokenizer,
    prove_parity,
    weights_fingerprint,
)
from lfp_lens.parts.sites import activations_at, editing
from tests.tiny import ARCHITECTURES, perturbed, tiny_model, tiny_pair, tiny_tokenizer

WORDY = "llama_gemma_t5_bert_SequenceClassification_opt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint") / "base", tiny_model())


def saved(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def ids_BS(model: Any) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (3, 14), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hooked_logits_and_mlp_outputs_equal_hugging_faces(architecture: str) -> None:
    pair = tiny_pair(architecture)
    assert (type(pair.tuned).__name__ == "TransformerBridge") == (architecture == "gemma")
    for side, twin in (("base", pair.base), ("tuned", pair.tuned)):
        model = pair.hf(side)
        tokens_BS = ids_BS(model)
        mlp: dict[int, torch.Tensor] = {}
        stack = model.transformer.h if "gpt" in architecture else getattr(model, model.base_model_prefix).layers
        handles = [
            block.mlp.register_forward_hook(lambda module, args, out, layer=layer, mlp=mlp: mlp.__setitem__(layer, out))
            for layer, block in enumerate(stack)
        ]
        with torch.no_grad():
            wanted = model(input_ids=tokens_BS).logits
            given, cache = twin.run_with_cache(tokens_BS, return_type="logits")
        for handle in handles:
            handle.remove()
        # fp32 with logits of order 10 rounds at 1e-6; 1e-5 is what docs/validity.md promises.
        torch.testing.assert_close(given, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=0)
        assert len(mlp) == 3
        for layer, out in mlp.items():
            torch.testing.assert_close(cache[f"blocks.{layer}.hook_mlp_out"], out, atol=2e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loading_leaves_the_models_as_they_were(architecture: str) -> None:
    model, tuned = tiny_model(architecture), perturbed(tiny_model(architecture))
    before, trains = weights_fingerprint(model), [weight.requires_grad for weight in model.parameters()]
    modules = {name: type(module) for name, module in model.named_modules()}
    first = load_pair(model, tuned, tokenizer=tiny_tokenizer())
    again = load_pair(model, tuned, tokenizer=tiny_tokenizer())
    assert first.fingerprint == again.fingerprint
    assert first.base_hf is model
    assert weights_fingerprint(model) == before
    assert [weight.requires_grad for weight in model.parameters()] == trains
    assert {name: type(module) for name, module in model.named_modules()} == modules


def test_local_folders_give_the_same_pair_as_models_in_memory(tmp_path: Path) -> None:
    base, tuned = tiny_model(), perturbed(tiny_model())
    memory = load_pair(base, tuned, tokenizer=tiny_tokenizer())
    folders = [saved(tmp_path / name, model) for name, model in (("base", base), ("tuned", tuned))]
    for given in (folders, [str(folder) for folder in folders]):
        disk = load_pair(*given)
        assert disk.fingerprint == memory.fingerprint
        assert disk.tuning is None


def test_the_letters_of_a_path_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens guesses the architecture from the path; the folder for temporary files counts as well."""
    for architecture in ("neox", "gpt2", "llama"):
        folder = saved(tmp_path / WORDY / architecture, tiny_model(architecture))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / WORDY))
        pair = load_pair(folder, folder)
        tokens_BS = ids_BS(pair.base_hf)
        with torch.no_grad():
            torch.testing.assert_close(pair.base(tokens_BS), pair.base_hf(tokens_BS).logits, atol=2e-4, rtol=0)


def test_a_path_full_of_words_to_an_architecture_that_is_bridged(tmp_path: Path) -> None:
    folder = saved(tmp_path / WORDY / "gemma", tiny_model("gemma"))
    assert type(load_pair(folder, folder).tuned).__name__ == "TransformerBridge"


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo"])
def test_an_mlp_of_unusual_width_is_converted(architecture: str) -> None:
    import transformers

    model = tiny_model(architecture)
    if architecture == "gpt2":
        settings = model.config.to_dict() | {"n_inner": 24}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    assert load_pair(model, model, tokenizer=tiny_tokenizer()).tuned.cfg.d_mlp in (24, 32)


def test_half_precision_checkpoints_load_in_full_precision(tmp_path: Path) -> None:
    folder = saved(tmp_path / "half", tiny_model().to(torch.bfloat16))
    assert load_causal_lm(folder).dtype == torch.float32
    pair = load_pair(folder, folder, dtype="bfloat16")
    assert pair.tuned_hf.dtype == pair.tuned.cfg.dtype == torch.bfloat16


def test_a_model_in_double_precision_is_proved_too() -> None:
    model = tiny_model().double()
    assert load_pair(model, model, tokenizer=tiny_tokenizer()).base_hf.dtype == torch.float64


def test_the_fingerprint_tells_weights_sides_and_precision_apart() -> None:
    base, tuned = tiny_model(), perturbed(tiny_model())
    load = lambda one, two: load_pair(one, two, tokenizer=tiny_tokenizer()).fingerprint  # noqa: E731
    assert len({load(base, tuned), load(tuned, base), load(base, base), load(base, perturbed(base, 0.03))}) == 4


def test_weights_of_every_kind_are_hashed() -> None:
    module = torch.nn.Linear(2, 2)
    module.register_buffer("scalar", torch.tensor(1.0))
    module.register_buffer("empty", torch.zeros(0))
    module.register_buffer("short", torch.zeros(3, dtype=torch.bfloat16))
    before = weights_fingerprint(module)
    module.scalar += 1
    assert weights_fingerprint(module) != before


def test_what_the_checkpoint_says_of_its_tuning_is_read(checkpoint: Path, tmp_path: Path) -> None:
    tuned = copied(checkpoint, tmp_path)
    (tuned / TUNING_FILE).write_text(json.dumps({"method": "ppo"}), encoding="utf-8")
    assert load_pair(checkpoint, tuned).tuning == {"method": "ppo"}
    (tuned / TUNING_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(LensError, match=r"tuning record .* is not valid JSON.*remove or repair"):
        load_pair(checkpoint, tuned)
    (tuned / TUNING_FILE).write_text("[1]", encoding="utf-8")
    with pytest.raises(LensError, match=r"tuning record .* is not a table of names and values"):
        load_pair(checkpoint, tuned)


def test_a_side_is_base_or_tuned() -> None:
    pair = tiny_pair()
    assert pair.hf("base") is pair.base_hf and pair.hf("tuned") is pair.tuned_hf
    assert pair.sites == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3))
    with pytest.raises(LensError, match="A side is 'base' or 'tuned'; 'both' given"):
        pair.hf("both")


def test_a_pair_shows_itself() -> None:
    shown = tiny_pair()._repr_html_()
    assert "GPTNeoXForCausalLM" in shown and "HookedTransformer" in shown


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match=r"nowhere' cannot be loaded.*Expected a local folder with config\.json"):
        load_causal_lm(tmp_path / "nowhere")


def test_a_hub_name_without_network_is_refused() -> None:
    with pytest.raises(LensError, match=r"model 'someone/some-model' cannot be loaded.*hub name \(with network\)"):
        load_causal_lm("someone/some-model")


def test_a_folder_without_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LensError, match=r"copy' cannot be loaded.*safetensors"):
        load_causal_lm(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="cannot be loaded"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "header"])
def test_damaged_weights_are_refused(damage: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({
        "empty": b"", "cut": whole[: len(whole) // 2], "text": b"version https://git-lfs.github.com/spec/v1",
        "header": b"\xff" * 8 + whole[8:],
    }[damage])  # fmt: skip
    with pytest.raises(LensError, match=r"model '.*copy' cannot be loaded"):
        load_causal_lm(folder)


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_that_do_not_fill_the_model_are_refused(damage: str, checkpoint: Path, tmp_path: Path) -> None:
    """Transformers would fill the gap with random numbers and only warn."""
    folder = copied(checkpoint, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp.dense_h_to_4h.weight" in name)
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LensError, match=r"(?s)copy' cannot be loaded.*(dense_h_to_4h|mismatch)"):
        load_causal_lm(folder)


def test_a_checkpoint_of_pickles_is_never_loaded(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(LensError, match=r"copy' cannot be loaded.*safetensors"):
        load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_wants_to_run_its_own_code_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(LensError, match="cannot be loaded"):
        load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()


def test_a_quantised_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(LensError, match=r"is quantised: its weights are codes.*full-precision"):
        load_causal_lm(folder)


def test_a_sequence_classifier_is_refused_from_disk_and_in_memory(tmp_path: Path) -> None:
    import transformers

    model = transformers.GPTNeoXForSequenceClassification(tiny_model().config)
    folder = saved(tmp_path / "judge", model)
    for given in (folder, model):
        with pytest.raises(LensError, match=r"is a sequence classifier .*; a causal LM is expected here.*'classifier:"):
            load_causal_lm(given)
    model.config.num_labels = 1
    with pytest.raises(LensError, match=r"a causal LM is expected here\. As a reward, load_reward_model reads it"):
        load_causal_lm(model)


def test_what_is_no_causal_lm_is_refused() -> None:
    for given in (tiny_model().gpt_neox, torch.nn.Linear(2, 2), None, 3):
        with pytest.raises(LensError, match=r"is no causal LM: expected a hub name, a local folder, or a Hugging Face"):
            load_causal_lm(given)


def test_a_folder_with_an_adapter_and_a_whole_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    beside = copied(checkpoint, tmp_path)
    (beside / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x", "peft_type": "LORA"}))
    for load in (load_causal_lm, lambda folder: load_pair(checkpoint, folder)):
        with pytest.raises(LensError, match=r"holds an adapter .* and a whole model .*cannot be told"):
            load(beside)


def test_a_folder_that_holds_a_reward_head_beside_a_language_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    tensors = load_file(folder / "model.safetensors") | {"score.weight": torch.ones(1, 16)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LensError, match=r"holds score\.weight, the head of a reward model.*load_reward_model"):
        load_causal_lm(folder)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(LensError, match="dtype must be one of float32, bfloat16, float16; 'int8' given"):
        load_causal_lm(tiny_model(), dtype="int8")


def test_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(LensError, match="no tokenizer beside it: pass `tokenizer=`"):
        load_pair(tiny_model(), tiny_model())


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(LensError, match=r"tokenizer .* cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    for damaged in ("{", '{"version": "1.0"}', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        (folder / "tokenizer.json").write_text(damaged)
        with pytest.raises(LensError, match=r"tokenizer .* cannot be loaded"):
            load_tokenizer(folder)


class SlowTokenizer:
    is_fast = False


def test_a_slow_tokenizer_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LensError, match="no fast tokenizer: words cannot be aligned"):
        load_pair(tiny_model(), tiny_model(), tokenizer=SlowTokenizer())
    monkeypatch.setattr(checkpoints, "read", lambda *given, **named: SlowTokenizer())
    with pytest.raises(LensError, match="no fast tokenizer: words cannot be aligned"):
        load_tokenizer(checkpoint)


def test_two_architectures_are_no_pair() -> None:
    with pytest.raises(LensError, match="Base is a GPTNeoXForCausalLM, tuned a LlamaForCausalLM: a pair has one"):
        load_pair(tiny_model(), tiny_model("llama"), tokenizer=tiny_tokenizer())


def test_two_shapes_are_no_pair() -> None:
    with pytest.raises(LensError, match=r"differ in \d+ tensors, first .*A pair has one shape"):
        load_pair(tiny_model(), tiny_model(width=24), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match=r"differ in \d+ tensors, first .* against None"):
        load_pair(tiny_model(), tiny_model(layers=2), tokenizer=tiny_tokenizer())


def test_two_vocabularies_are_no_pair() -> None:
    larger = copy.deepcopy(tiny_model())
    larger.resize_token_embeddings(len(tiny_tokenizer()) + 3, mean_resizing=False)
    with pytest.raises(LensError, match=r"differ in 2 tensors.*A pair has one shape and one vocabulary"):
        load_pair(tiny_model(), larger, tokenizer=tiny_tokenizer())


def test_two_tokenizers_are_no_pair(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(LensError, match="different tokenizers: word values could not be compared"):
        load_pair(checkpoint, folder)


def test_tokenizers_that_split_words_differently_are_no_pair(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-5]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(LensError, match="different tokenizers: word values could not be compared"):
        load_pair(checkpoint, folder)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["<extra>"])
    size = len(tiny_tokenizer())
    with pytest.raises(LensError, match=f"The tokenizer has {size + 1} tokens, the model {size}"):
        load_pair(tiny_model(), tiny_model(), tokenizer=tokenizer)


def test_a_hooked_model_with_other_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hooked.to_hooked

    def off(model: Any, tokenizer: Any) -> Any:
        twin = real(model, tokenizer)
        with torch.no_grad():
            twin.blocks[1].mlp.b_out += 1e-3
        return twin

    monkeypatch.setattr(pairs, "to_hooked", off)
    with pytest.raises(LensError, match=r"disagree on .* of GPTNeoXForCausalLM by .*could be trusted"):
        load_pair(tiny_model(), tiny_model(), tokenizer=tiny_tokenizer())


def test_a_site_that_moves_while_logits_stay_is_caught() -> None:
    """Centring the writing weights is harmless to logits and changes what the hook reads."""
    model = tiny_model()
    twin = hooked.to_hooked(model, tiny_tokenizer())
    twin.center_writing_weights = None
    with torch.no_grad():
        for block in twin.blocks:
            block.mlp.W_out -= block.mlp.W_out.mean(-1, keepdim=True)
            block.mlp.b_out -= block.mlp.b_out.mean()
    with pytest.raises(LensError, match=r"disagree on (logits|blocks\.0\.hook_mlp_out)"):
        prove_parity(model, twin)


def test_a_not_a_number_is_no_parity() -> None:
    model = tiny_model()
    twin = hooked.to_hooked(model, tiny_tokenizer())
    with torch.no_grad():
        twin.unembed.b_U[3] = float("nan")
    with pytest.raises(LensError, match="disagree on logits"):
        prove_parity(model, twin)


def test_an_unembedding_that_is_not_ours_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some architectures scale logits after the unembedding; our shortcut past it must give the same logits."""
    model = tiny_model()
    twin = hooked.to_hooked(model, tiny_tokenizer())
    monkeypatch.setattr(pairs, "unembed", lambda model, hidden: 2 * model.get_output_embeddings()(hidden))
    with pytest.raises(LensError, match="disagree on the unembedding"):
        prove_parity(model, twin)


def test_what_transformer_lens_cannot_convert_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens import loading_from_pretrained

    def fails(*given: Any, **named: Any) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(loading_from_pretrained, "get_pretrained_state_dict", fails)
    with pytest.raises(LensError, match=r"TransformerLens cannot convert this GPTNeoXForCausalLM.*size mismatch"):
        load_pair(tiny_model(), tiny_model(), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_edit_gives_the_same_logits_in_both_implementations(architecture: str) -> None:
    pair = tiny_pair(architecture)
    tokens_BS, site = ids_BS(pair.tuned_hf), "blocks.1.hook_mlp_out"
    with torch.no_grad():
        plain = pair.tuned_hf(tokens_BS).logits
        with editing(pair.tuned_hf, {site: lambda acts: -2 * acts}):
            wanted = pair.tuned_hf(tokens_BS).logits
        with editing(pair.tuned, {site: lambda acts: -2 * acts}):
            given = pair.tuned(tokens_BS, return_type="logits")
        after = pair.tuned(tokens_BS, return_type="logits")
    scale = max(1.0, float(wanted.abs().max()))
    assert float((wanted - plain).abs().max()) > 0.01
    torch.testing.assert_close(given, wanted, atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(after, plain, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sites_are_read_without_running_the_rest(architecture: str) -> None:
    model = tiny_pair(architecture).base_hf
    tokens_BS = ids_BS(model)
    found = activations_at(model, tokens_BS, torch.ones_like(tokens_BS), ["blocks.0.hook_resid_post"])
    with torch.no_grad():
        states = model(tokens_BS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found["blocks.0.hook_resid_post"], states[1], atol=1e-5, rtol=0)
