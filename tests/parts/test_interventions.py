"""Interventions change the chosen features and nothing else, the same in both implementations, and leave no hook."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.dictionaries import Dictionary, as_dictionary
from lfp_lens.parts.generation import sample
from lfp_lens.parts.interventions import MODES, feature_edit, intervening, reconstruction_edit
from lfp_lens.parts.saes import export, load_sae, new_sae
from lfp_lens.parts.sites import activations_at
from lfp_lens.results.train_sae import SAERecord
from tests.tiny import ARCHITECTURES, sae_record, tiny_pair, tiny_tokenizer

SITE, DEEP = "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"
BEGIN = 0


def a_record(seed: int = 0, architecture: str = "standard") -> SAERecord:
    sae = new_sae(architecture, d_in=16, d_sae=32, l1=None, k=None, steps=10, seed=seed)
    with torch.no_grad():
        for weight in sae.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
    return sae_record(export(sae, site=SITE, model_name="tiny"), "tuned", SITE, architecture=architecture)


def an_sae(seed: int = 0, architecture: str = "standard") -> Any:
    return load_sae(a_record(seed, architecture))


def a_dictionary(seed: int = 0, architecture: str = "standard") -> Dictionary:
    return as_dictionary(a_record(seed, architecture))


def ids(model: Any) -> torch.Tensor:
    ids_BS = torch.randint(1, model.config.vocab_size, (3, 8), generator=torch.Generator().manual_seed(1))
    ids_BS[:, 0] = BEGIN
    return ids_BS


def acts_like(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


def logits(model: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids_BS, return_type="logits") if hasattr(model, "hook_dict") else model(input_ids=ids_BS).logits


def hooks_on(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_set_leaves_logits_bit_identical(architecture: str, mode: str) -> None:
    pair = tiny_pair(architecture)
    edit = feature_edit(a_dictionary(), [], mode=mode, reference_MF=torch.rand(5, 32))
    for model in (pair.tuned_hf, pair.tuned):
        before = logits(model, ids(pair.tuned_hf))
        with intervening(model, {SITE: edit}, begin=BEGIN):
            assert torch.equal(before, logits(model, ids(pair.tuned_hf)))


def test_ablating_features_that_never_fire_changes_nothing() -> None:
    record, acts = a_record(), acts_like(50, 16)
    record.weights.tensors["b_enc"][3] = -1e6
    with torch.no_grad():
        assert torch.equal(feature_edit(as_dictionary(record), [3])(acts), acts)


@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk", "jumprelu", "gated", "tied"])
def test_ablating_all_features_leaves_the_error_and_the_decoders_bias(architecture: str) -> None:
    sae, dictionary = an_sae(architecture=architecture), a_dictionary(architecture=architecture)
    acts = acts_like(4, 6, 16)
    with torch.no_grad():
        error = acts - sae.decode(sae.encode(acts))
        wanted = error + sae.decode(torch.zeros(4, 6, 32))
        torch.testing.assert_close(feature_edit(dictionary, range(32))(acts), wanted, atol=1e-5, rtol=0)


def test_zero_scale_mean_and_resample_by_hand() -> None:
    sae, dictionary, acts, chosen = an_sae(), a_dictionary(), acts_like(5, 16), [1, 4, 30]
    reference_MF = torch.rand(7, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = sae.encode(acts)
        assert (features[:, chosen] > 0).any()

        def by_hand(wanted: torch.Tensor) -> torch.Tensor:
            moved = acts.clone()
            for row in range(5):
                for at, feature in enumerate(chosen):
                    moved[row] += (wanted[row, at] - features[row, feature]) * sae.W_dec[feature]
            return moved

        close = lambda given, wanted: torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)  # noqa: E731
        close(feature_edit(dictionary, chosen)(acts), by_hand(torch.zeros(5, 3)))
        close(feature_edit(dictionary, chosen, mode="scale", scale=2.5)(acts), by_hand(2.5 * features[:, chosen]))
        close(feature_edit(dictionary, chosen, mode="scale", scale=1.0)(acts), acts)
        mean = reference_MF.mean(0)[chosen].expand(5, 3)
        close(feature_edit(dictionary, chosen, mode="mean", reference_MF=reference_MF)(acts), by_hand(mean))
        rows = torch.randint(7, (5,), generator=torch.Generator().manual_seed(4))
        resample = feature_edit(dictionary, chosen, mode="resample", reference_MF=reference_MF, seed=4)
        close(resample(acts), by_hand(reference_MF[rows][:, chosen]))


def test_resampling_draws_whole_reference_rows_by_seed() -> None:
    """Features that fire together in the reference are drawn together: feature 1 is there always twice feature 0."""
    record, acts = a_record(), acts_like(200, 16)
    record.weights.tensors["W_dec"][:] = torch.eye(32, 16).numpy()
    sae, dictionary = load_sae(record), as_dictionary(record)
    reference_MF = torch.zeros(9, 32)
    reference_MF[:, 0] = torch.arange(9.0)
    reference_MF[:, 1] = 2 * reference_MF[:, 0]
    with torch.no_grad():
        rest = acts - sae.decode(sae.encode(acts))
        edits = [
            feature_edit(dictionary, [0, 1], mode="resample", reference_MF=reference_MF, seed=seed)
            for seed in (0, 0, 1)
        ]
        drawn, again, other = (edit(acts) - rest - sae.b_dec for edit in edits)
    torch.testing.assert_close(drawn[:, 1], 2 * drawn[:, 0], atol=1e-4, rtol=0)
    assert len(set(drawn[:, 0].round().tolist())) == 9
    assert torch.equal(drawn, again) and not torch.equal(drawn, other)


def test_the_order_and_repetition_of_features_do_not_matter() -> None:
    dictionary, acts = a_dictionary(), acts_like(5, 16)
    with torch.no_grad():
        once = feature_edit(dictionary, [1, 4], mode="scale", scale=3.0)(acts)
        assert torch.equal(once, feature_edit(dictionary, [4, 1], mode="scale", scale=3.0)(acts))
        assert torch.equal(once, feature_edit(dictionary, [4, 1, 4], mode="scale", scale=3.0)(acts))


def test_the_activation_given_is_not_changed_in_place() -> None:
    dictionary, acts = a_dictionary(), acts_like(5, 16)
    before = acts.clone()
    with torch.no_grad():
        feature_edit(dictionary, range(32))(acts)
    assert torch.equal(acts, before)


def test_a_reconstruction_leaves_the_error_out() -> None:
    sae, acts, base = an_sae(), acts_like(5, 16), acts_like(5, 16) / 3
    with torch.no_grad():
        own, change = (sae.decode(sae.encode(part)) for part in (acts, acts - base))
        torch.testing.assert_close(reconstruction_edit(a_record())(acts), own, atol=1e-6, rtol=0)
        of_change = reconstruction_edit(replace(a_record(), side="difference"))
        torch.testing.assert_close(of_change(acts, base), base + change, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_implementations_agree_under_the_same_edit(architecture: str, mode: str) -> None:
    pair = tiny_pair(architecture)
    ids_BS, reference_MF = ids(pair.tuned_hf), torch.rand(11, 32)
    found = []
    for model in (pair.tuned_hf, pair.tuned):
        edits = {
            site: feature_edit(
                a_dictionary(at), range(0, 32, 2), mode=mode, scale=-1.0, reference_MF=reference_MF, seed=at
            )
            for at, site in enumerate((SITE, DEEP))
        }
        with intervening(model, edits, begin=BEGIN):
            found.append(logits(model, ids_BS))
    plain = logits(pair.tuned_hf, ids_BS)
    scale = max(1.0, float(plain.abs().max()))
    assert not torch.allclose(found[0], plain, atol=1e-3)
    torch.testing.assert_close(found[1], found[0], atol=2e-5 * scale, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_implementations_generate_the_same_under_the_same_edit(architecture: str) -> None:
    """Greedy decoding by hand is the reference: no cache, the edit at every position of every step."""
    pair = tiny_pair(architecture)
    edit = {DEEP: feature_edit(a_dictionary(), range(32), mode="scale", scale=-3.0)}
    prompt = ids(pair.tuned_hf)[:1, :5]
    whole = prompt
    for _ in range(6):
        with intervening(pair.tuned_hf, edit, begin=BEGIN):
            whole = torch.cat([whole, logits(pair.tuned_hf, whole)[:, -1].argmax(-1, keepdim=True)], 1)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    with torch.no_grad(), intervening(pair.tuned_hf, edit, begin=BEGIN):
        cached = pair.tuned_hf.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), eos_token_id=None, pad_token_id=0, **greedy
        )
    with torch.no_grad(), intervening(pair.tuned, edit, begin=BEGIN):
        hooked = pair.tuned.generate(
            prompt, stop_at_eos=False, prepend_bos=False, verbose=False, return_type="tokens", **greedy
        )
    assert cached.tolist() == whole.tolist()
    assert hooked.tolist() == whole.tolist()


@pytest.mark.parametrize("which", ["tuned_hf", "tuned"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_beginning_of_text_token_is_untouched(architecture: str, which: str) -> None:
    pair = tiny_pair(architecture)
    model, ids_BS = getattr(pair, which), ids(pair.tuned_hf)
    ids_BS[1, 4] = BEGIN
    edit = {SITE: lambda acts, base: acts + 1}
    seen: dict[str, torch.Tensor] = {}
    with intervening(model, edit, begin=BEGIN):
        layer = pair.tuned_hf if which == "tuned_hf" else None
        if layer is not None:
            block = next(m for name, m in model.named_modules() if name.endswith("1.mlp"))
            handle = block.register_forward_hook(lambda module, args, out: seen.__setitem__("now", out))
            logits(model, ids_BS)
            handle.remove()
        else:
            with torch.no_grad():
                seen["now"] = model.run_with_cache(ids_BS)[1][SITE]
    plain = activations_at(pair.tuned_hf, ids_BS, torch.ones_like(ids_BS), [SITE])[SITE]
    moved = (seen["now"] - plain).abs().amax(-1)
    assert float(moved[ids_BS == BEGIN].max()) < 1e-4
    torch.testing.assert_close(moved[ids_BS != BEGIN], torch.ones(int((ids_BS != BEGIN).sum())), atol=1e-4, rtol=0)


def test_every_position_is_edited_where_the_tokenizer_has_no_beginning() -> None:
    pair = tiny_pair()
    ids_BS = ids(pair.tuned_hf)
    with intervening(pair.tuned_hf, {SITE: lambda acts, base: acts + 1}, begin=None):
        everywhere = logits(pair.tuned_hf, ids_BS)
    with intervening(pair.tuned_hf, {SITE: lambda acts, base: acts + 1}, begin=BEGIN):
        most = logits(pair.tuned_hf, ids_BS)
    assert not torch.allclose(everywhere[:, 0], most[:, 0])
    assert torch.allclose(most[:, 0], logits(pair.tuned_hf, ids_BS)[:, 0])


def test_sampling_under_an_empty_set_is_sampling() -> None:
    pair, prompts = tiny_pair(), [[0, 5, 6], [0, 7], [0, 8, 9, 10]]
    for model in (pair.tuned_hf, pair.tuned):
        options = {"max_new_tokens": 8, "seed": 3}
        before = sample(model, tiny_tokenizer(), prompts, **options)
        with intervening(model, {SITE: feature_edit(a_dictionary(), [])}, begin=BEGIN):
            assert sample(model, tiny_tokenizer(), prompts, **options).ids == before.ids
        with intervening(model, {DEEP: lambda acts, base: acts + 5 * torch.arange(16.0)}, begin=BEGIN):
            assert sample(model, tiny_tokenizer(), prompts, **options).ids != before.ids


def test_half_precision_stays_half_precision() -> None:
    acts = acts_like(4, 16).to(torch.bfloat16)
    with torch.no_grad():
        assert feature_edit(a_dictionary(), [1, 2])(acts).dtype == torch.bfloat16
        assert reconstruction_edit(a_record())(acts).dtype == torch.bfloat16


@pytest.mark.parametrize("which", ["tuned_hf", "tuned"])
def test_hooks_are_gone_on_any_exit(which: str) -> None:
    pair = tiny_pair()
    model = getattr(pair, which)

    def fails(acts: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), intervening(model, {SITE: fails}, begin=BEGIN):
        logits(model, ids(pair.tuned_hf))
    assert hooks_on(model) == 0
    with pytest.raises(LensError), intervening(model, {"blocks.7.hook_mlp_out": fails}, begin=BEGIN):
        pass
    assert hooks_on(model) == 0


def test_an_unknown_mode_is_refused_with_the_nearest() -> None:
    with pytest.raises(LensError, match=r"Unknown ablation mode 'means'\. Did you mean 'mean'\?"):
        feature_edit(a_dictionary(), [0], mode="means")


@pytest.mark.parametrize("mode", ["mean", "resample"])
def test_a_mode_that_needs_reference_text_says_so(mode: str) -> None:
    with pytest.raises(LensError, match=f"Mode '{mode}' needs the features' activations on reference text"):
        feature_edit(a_dictionary(), [0], mode=mode)
    with pytest.raises(LensError, match=f"Mode '{mode}' needs the features' activations on reference text"):
        feature_edit(a_dictionary(), [0], mode=mode, reference_MF=torch.zeros(0, 32))


@pytest.mark.parametrize("wrong", [-1, 32])
def test_a_feature_that_does_not_exist_is_refused(wrong: int) -> None:
    with pytest.raises(
        LensError, match=rf"Feature {wrong} does not exist at {SITE}: its dictionary has features 0 to 31"
    ):
        feature_edit(a_dictionary(), [0, wrong])


def test_an_edit_does_not_change_the_sae() -> None:
    record = a_record()
    before = copy.deepcopy(record.weights.tensors)
    with torch.no_grad():
        feature_edit(as_dictionary(record), [0, 1])(acts_like(5, 16))
    assert all((weight == record.weights.tensors[name]).all() for name, weight in before.items())


@pytest.mark.parametrize("which", ["tuned_hf", "tuned"])
def test_edits_are_given_the_bases_activations_where_there_is_a_base_and_none_otherwise(which: str) -> None:
    pair = tiny_pair()
    model, ids_BS = getattr(pair, which), ids(pair.tuned_hf)
    given: list[torch.Tensor | None] = []

    def look(acts: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
        given.append(base)
        return acts

    plain = logits(model, ids_BS)
    with intervening(model, {SITE: look, DEEP: look}, begin=BEGIN):
        assert torch.equal(logits(model, ids_BS), plain)
    assert given == [None, None]
    if which == "tuned":
        return
    with intervening(model, {SITE: look, DEEP: look}, begin=BEGIN, base=pair.base_hf):
        assert torch.equal(logits(model, ids_BS), plain)
    wanted = activations_at(pair.base_hf, ids_BS, torch.ones_like(ids_BS), [SITE, DEEP])
    for found, site in zip(given[2:], (SITE, DEEP), strict=True):
        torch.testing.assert_close(found, wanted[site])


def test_no_edits_need_no_base_and_change_nothing() -> None:
    pair = tiny_pair()
    plain = logits(pair.tuned_hf, ids(pair.tuned_hf))
    with intervening(pair.tuned_hf, {}, begin=BEGIN, base=pair.base_hf):
        assert torch.equal(logits(pair.tuned_hf, ids(pair.tuned_hf)), plain)
    assert hooks_on(pair.tuned_hf) == 0


def test_a_pass_without_beginning_of_text_after_one_with_it_is_edited_everywhere() -> None:
    pair = tiny_pair()
    with_begin, without = ids(pair.tuned_hf), ids(pair.tuned_hf)[:, 1:]
    with intervening(pair.tuned_hf, {SITE: lambda acts, base: acts + 1}, begin=None):
        everywhere = logits(pair.tuned_hf, without)
    with intervening(pair.tuned_hf, {SITE: lambda acts, base: acts + 1}, begin=BEGIN):
        logits(pair.tuned_hf, with_begin)
        assert torch.equal(logits(pair.tuned_hf, without), everywhere)
