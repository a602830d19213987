"""A reward model gives one number per text, read at its last token, and its hooks read what Hugging Face computes."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lfp_lens
from lfp_lens.core.errors import LensError
from lfp_lens.parts import reward_models
from lfp_lens.parts.adapters import attach, make_lora, save_adapter
from lfp_lens.parts.checkpoints import TUNING_FILE, load_tokenizer, weights_fingerprint
from lfp_lens.parts.heads import causal_shell, with_head
from lfp_lens.parts.pair import load_causal_lm, load_pair
from lfp_lens.parts.reward_models import RewardModel, load_reward_model
from lfp_lens.parts.sites import activations_at
from tests.tiny import ARCHITECTURES, CONTEXT, tiny_model, tiny_texts, tiny_tokenizer

TEXTS = [*tiny_texts(5), "a"]


def judge(architecture: str = "neox", labels: int = 1) -> Any:
    """A sequence classifier in memory with a head that is not zero."""
    model = with_head(tiny_model(architecture))
    generator = torch.Generator().manual_seed(1)
    model.score = torch.nn.Linear(model.config.hidden_size, labels, bias=False)
    model.num_labels = model.config.num_labels = labels
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(labels, model.config.hidden_size, generator=generator))
    return model


def loaded(architecture: str = "neox", **options: Any) -> RewardModel:
    return load_reward_model(judge(architecture), tokenizer=tiny_tokenizer(), **options)


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def adapted(base: Any) -> Any:
    """A PEFT reward model on a copy of a sequence classifier: adapter and head are not zero."""
    wrapped = attach(copy.deepcopy(base), make_lora(4, base))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in (weight for weight in wrapped.parameters() if weight.requires_grad):
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return wrapped.eval()


def alone(model: Any, text: str) -> float:
    """Hugging Face's own reward of one text without padding."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rewards_are_hugging_faces_one_text_at_a_time(architecture: str) -> None:
    found = loaded(architecture)
    given = found(TEXTS)
    # fp32 sums of order 10, batched in another order.
    assert given == pytest.approx([alone(found.hf, text) for text in TEXTS], abs=1e-5)
    assert given.shape == (6,) and np.ptp(given) > 0.5
    assert found(TEXTS[::-1]) == pytest.approx(given[::-1], abs=1e-5)
    assert found([]).tolist() == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_reward_is_read_at_the_last_real_token_whatever_the_padding(side: str, architecture: str) -> None:
    """The padding token is the end-of-text token, and one text ends in it: Hugging Face would read a token too early."""
    found = loaded(architecture)
    rows = [[5, 6, 7, 8, 9], [11], [12, 13, 0]]
    ids_BS, mask_BS = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, ids in enumerate(rows):
        where = slice(len(ids)) if side == "right" else slice(9 - len(ids), None)
        ids_BS[row, where], mask_BS[row, where] = torch.tensor(ids), 1
    with torch.no_grad():
        given = found.rewards_of_ids(ids_BS, mask_BS)
        wanted = [float(found.shell(torch.tensor([ids])).logits[0, -1, 0]) for ids in rows]
        swapped = found.rewards_of_ids(torch.where(mask_BS == 1, ids_BS, 77), mask_BS)
    assert given.tolist() == pytest.approx(wanted, abs=1e-5)
    assert swapped.tolist() == given.tolist(), "what stands in the padding does not matter"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_hooked_twin_gives_the_same_rewards_and_activations(architecture: str) -> None:
    found = loaded(architecture)
    ids_BS = torch.randint(400, (3, 14), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        given, cache = found.hooked.run_with_cache(ids_BS, return_type="logits")
        wanted = found.rewards_of_ids(ids_BS, torch.ones_like(ids_BS))
    assert given.shape == (3, 14, 1)
    torch.testing.assert_close(given[:, -1, 0], wanted, atol=1e-5, rtol=0)
    acts = activations_at(found.shell, ids_BS, torch.ones_like(ids_BS), found.sites)
    for site in found.sites:
        torch.testing.assert_close(cache[site], acts[site], atol=2e-5, rtol=0)


def test_small_rewards_of_large_activations_are_hooked_too() -> None:
    """Activations of 1e4 round by more than 1e-5, which says nothing against the hooks."""
    model = judge("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight *= 1e4
    found = load_reward_model(model, tokenizer=tiny_tokenizer())
    ids_BS = torch.tensor([[5, 6, 7]])
    acts = activations_at(found.shell, ids_BS, torch.ones_like(ids_BS), found.sites)
    assert max(float(held.abs().max()) for held in acts.values()) > 1e4


def test_gradients_reach_the_hooked_sites() -> None:
    found = loaded()
    ids_BS = torch.tensor([[5, 6, 7]])
    held: list[torch.Tensor] = []
    handle = found.hf.gpt_neox.layers[1].mlp.register_forward_hook(lambda layer, given, out: held.append(out))
    reward = found.rewards_of_ids(ids_BS, torch.ones_like(ids_BS)).sum()
    handle.remove()
    assert float(torch.autograd.grad(reward, held[0])[0].abs().sum()) > 0


def test_loading_leaves_the_model_as_it_was() -> None:
    model = judge()
    before, modules = weights_fingerprint(model), {name: type(part) for name, part in model.named_modules()}
    first, again = (load_reward_model(model, tokenizer=tiny_tokenizer()) for _ in range(2))
    assert first.hf is model and first.fingerprint == again.fingerprint
    assert weights_fingerprint(model) == before
    assert {name: type(part) for name, part in model.named_modules()} == modules


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_gives_the_same_model_as_memory(architecture: str, tmp_path: Path) -> None:
    memory, disk = loaded(architecture), load_reward_model(saved(tmp_path / "llama_t5_bert", judge(architecture)))
    assert disk.fingerprint == memory.fingerprint
    assert disk(TEXTS) == pytest.approx(memory(TEXTS), abs=1e-5)
    assert disk.name == str(tmp_path / "llama_t5_bert")
    assert lfp_lens.load_reward_model is load_reward_model


def test_other_weights_and_another_reading_have_another_fingerprint() -> None:
    nudged = judge()
    with torch.no_grad():
        nudged.score.weight[0, 0] += 1e-3
    keys = {loaded().fingerprint, loaded(begins=True).fingerprint,
            load_reward_model(nudged, tokenizer=tiny_tokenizer()).fingerprint}  # fmt: skip
    assert len(keys) == 3


def test_a_model_that_finetune_made_reads_beginning_of_text_first(tmp_path: Path) -> None:
    folder = saved(tmp_path, judge())
    plain = load_reward_model(folder)
    (folder / TUNING_FILE).write_text(json.dumps({"method": "reward_model"}))
    ours = load_reward_model(folder)
    assert (plain.begins, ours.begins) == (False, True)
    assert [row.ids[1:] for row in ours.encode(TEXTS)] == [row.ids for row in plain.encode(TEXTS)]
    assert all(row.ids[0] == 0 and row.offsets[0] == (0, 0) for row in ours.encode(TEXTS))
    assert ours(TEXTS) == pytest.approx([alone(ours.hf, "<|endoftext|>" + text) for text in TEXTS], abs=1e-5)


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_beyond_the_context_loses_its_beginning_and_is_counted(begins: bool) -> None:
    found = loaded("gpt2", begins=begins)
    long = " ".join(tiny_texts(40))
    with pytest.warns(UserWarning, match=f"1 of 2 texts are longer than the {CONTEXT} tokens that GPT2.* reads"):
        given = found([long, "a"])
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        (row,) = found.encode([long])
    assert len(row.ids) == len(row.offsets) == CONTEXT
    assert row.ids[0] == 0 or not begins
    assert row.ids[1:] == tiny_tokenizer()(long)["input_ids"][1 - CONTEXT :]
    with torch.no_grad():
        assert given[0] == pytest.approx(float(found.shell(torch.tensor([row.ids])).logits[0, -1, 0]), abs=1e-5)


def test_an_empty_text_is_its_beginning_alone() -> None:
    assert loaded().encode(["", "a"])[0].ids == [0]
    assert loaded()([""]) == pytest.approx(loaded(begins=True)([""]))
    bare = copy.deepcopy(tiny_tokenizer())
    bare.bos_token = bare.eos_token = None
    with pytest.raises(LensError, match="text '' has no token"):
        load_reward_model(judge(), tokenizer=bare)([""])


def test_rows_without_a_token_are_refused() -> None:
    with pytest.raises(LensError, match="with a token in every row"):
        loaded().rewards_of_ids(torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 1], [0, 0, 0]]))


@pytest.mark.parametrize("architecture", ["neox", "llama", "gpt2", "gpt_neo"])
def test_an_adapter_on_a_language_model_with_its_head_is_a_reward_model(architecture: str, tmp_path: Path) -> None:
    language = tiny_model(architecture)
    language.name_or_path = str(saved(tmp_path / "base", language))
    start = with_head(language)
    start.name_or_path = language.name_or_path
    wrapped = adapted(start)
    save_adapter(wrapped, tmp_path / "adapter")
    wanted = [alone(wrapped, text) for text in TEXTS]
    assert np.ptp(wanted) > 0.1
    ways = [
        load_reward_model(tmp_path / "adapter"),
        load_reward_model(tmp_path / "adapter", base=language, tokenizer=tiny_tokenizer()),
        load_reward_model(wrapped, tokenizer=tiny_tokenizer()),
    ]
    for found in ways:
        assert found(TEXTS) == pytest.approx(wanted, abs=2e-5)
    assert len({found.fingerprint for found in ways}) == 1
    assert weights_fingerprint(language) == weights_fingerprint(tiny_model(architecture))


def test_an_adapter_on_a_reward_model_is_read_too(tmp_path: Path) -> None:
    saved(tmp_path / "base", judge())
    wrapped = adapted(load_reward_model(tmp_path / "base").hf)
    save_adapter(wrapped, tmp_path / "adapter")
    for base in (None, judge()):
        found = load_reward_model(tmp_path / "adapter", base=base)
        assert found(TEXTS) == pytest.approx([alone(wrapped, text) for text in TEXTS], abs=2e-5)


def test_the_base_of_an_adapter_is_checked_by_content(tmp_path: Path) -> None:
    wrapped = adapted(with_head(tiny_model()))
    save_adapter(wrapped, tmp_path)
    (tmp_path / TUNING_FILE).write_text(json.dumps({"base_fingerprint": weights_fingerprint(tiny_model())}))
    load_reward_model(tmp_path, base=tiny_model(), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match="trained on a base with the fingerprint"):
        load_reward_model(tmp_path, base=tiny_model(seed=4), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match=r"names no base model .*load_reward_model\(adapter, base=base\)"):
        load_reward_model(tmp_path, tokenizer=tiny_tokenizer())


def test_an_adapter_whose_head_is_lost_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted(with_head(tiny_model())), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    head = next(name for name in tensors if name.endswith("score.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != head}, path)
    with pytest.raises(LensError, match=r"no saved head \(score\.weight\)"):
        load_reward_model(tmp_path, base=tiny_model(), tokenizer=tiny_tokenizer())
    save_file(tensors | {head: torch.ones(2, 16)}, path)
    with pytest.raises(LensError, match=r"gives 2 logits per text.*classifier:MODEL@LABEL"):
        load_reward_model(tmp_path, base=tiny_model(), tokenizer=tiny_tokenizer())


def test_a_reward_models_adapter_is_no_language_model_and_the_reverse(tmp_path: Path) -> None:
    wrapped = adapted(with_head(tiny_model()))
    save_adapter(wrapped, tmp_path / "judge")
    with pytest.raises(LensError, match=r"is for a sequence classifier.*load_reward_model"):
        load_pair(tiny_model(), tmp_path / "judge", tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match="is for a sequence classifier"):
        load_pair(tiny_model(), wrapped, tokenizer=tiny_tokenizer())
    speaker = attach(tiny_model(), make_lora(2, tiny_model()))
    save_adapter(speaker, tmp_path / "speaker")
    with pytest.raises(LensError, match="no saved head"):
        load_reward_model(tmp_path / "speaker", base=tiny_model(), tokenizer=tiny_tokenizer())
    with pytest.raises(LensError, match="adapter on a GPTNeoXForCausalLM, no reward model"):
        load_reward_model(speaker, tokenizer=tiny_tokenizer())


def test_a_language_model_is_refused_from_disk_and_in_memory(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="is a GPTNeoXForCausalLM, no reward model: it has no trained head"):
        load_reward_model(saved(tmp_path, tiny_model()))
    for given in (tiny_model(), tiny_model().gpt_neox, torch.nn.Linear(2, 2), None):
        with pytest.raises(LensError, match=r"is no reward model: expected .*with one logit"):
            load_reward_model(given, tokenizer=tiny_tokenizer())


def test_a_reward_model_is_refused_as_a_language_model(tmp_path: Path) -> None:
    saved(tmp_path, judge())
    for load in (load_causal_lm, lambda given: load_pair(given, given)):
        with pytest.raises(LensError, match=r"is a sequence classifier .*load_reward_model reads it"):
            load(tmp_path)


def test_more_than_one_logit_is_refused(tmp_path: Path) -> None:
    model = judge(labels=2)
    for given in (saved(tmp_path, model), model):
        with pytest.raises(LensError, match=r"gives 2 logits per text.*'classifier:MODEL@LABEL'"):
            load_reward_model(given, tokenizer=tiny_tokenizer())


def test_a_head_that_would_be_random_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, judge())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({name: held for name, held in tensors.items() if "score" not in name}, path, metadata={"format": "pt"})
    with pytest.raises(LensError, match=r"lack 1 tensors of a GPTNeoXForSequenceClassification, first score\.weight"):
        load_reward_model(tmp_path)


def test_a_model_that_reads_in_both_directions_is_refused() -> None:
    import transformers

    config = transformers.DistilBertConfig(vocab_size=400, dim=16, n_layers=1, n_heads=2, hidden_dim=32, num_labels=1)
    model = transformers.DistilBertForSequenceClassification(config)
    with pytest.raises(LensError, match=r"reads texts in both directions .*'classifier:MODEL@LABEL'"):
        load_reward_model(model, tokenizer=tiny_tokenizer())


def test_quantised_and_unfitting_input_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, judge())
    with pytest.raises(LensError, match="base is for adapters"):
        load_reward_model(tmp_path, base=tiny_model())
    with pytest.raises(LensError, match="dtype must be one of"):
        load_reward_model(tmp_path, dtype="int8")
    with pytest.raises(LensError, match="no tokenizer beside it"):
        load_reward_model(judge())
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(LensError, match="is quantised"):
        load_reward_model(tmp_path)
    larger = copy.deepcopy(tiny_tokenizer())
    larger.add_tokens(["<extra>"])
    with pytest.raises(LensError, match="The tokenizer has 401 tokens, the model 400"):
        load_reward_model(judge(), tokenizer=larger)


@pytest.mark.parametrize("part", ["hook", "head"])
def test_a_hooked_model_with_other_weights_is_caught(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reward_models.to_hooked

    def off(shell: Any, tokenizer: Any) -> Any:
        twin = real(shell, tokenizer)
        with torch.no_grad():
            (twin.blocks[1].mlp.b_out if part == "hook" else twin.unembed.W_U)[0] += 1e-2
        return twin

    monkeypatch.setattr(reward_models, "to_hooked", off)
    with pytest.raises(LensError, match="disagree on"):
        loaded()


def test_a_reading_at_the_wrong_token_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RewardModel, "rewards_of_ids", lambda self, ids_BS, mask_BS: self.shell(ids_BS).logits[:, -1, 0]
    )
    with pytest.raises(LensError, match="with padding on the right differ from Hugging Face's"):
        loaded()


def test_the_shell_shares_trunk_and_head() -> None:
    model = judge("gpt2")
    shell = causal_shell(model)
    assert shell.transformer is model.transformer and shell.get_output_embeddings() is model.score
    assert not any(weight.is_meta for weight in shell.parameters())


def test_a_reward_model_shows_itself() -> None:
    shown = loaded()._repr_html_()
    assert "GPTNeoXForSequenceClassification" in shown and "HookedTransformer" in shown


@pytest.mark.parametrize("name", ["stories260K", "imdb-neox-2m"])
def test_a_real_model_with_a_head_is_hooked(name: str, real_data: Any) -> None:
    model = with_head(load_causal_lm(name))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = load_reward_model(model, tokenizer=load_tokenizer(name))
    given = found(["It was a wonderful day.", "The end"])
    assert given == pytest.approx(
        np.concatenate([found([text]) for text in ("It was a wonderful day.", "The end")]), abs=1e-4
    )
