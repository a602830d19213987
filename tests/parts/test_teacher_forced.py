"""Teacher-forced readings: equal to the model's own predictions, hooks gone, both models of a pair."""

import dataclasses

import numpy as np
import pytest
import torch

from lfp_lens.parts import teacher_forced
from lfp_lens.parts.activations import Encoded, encode
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.interventions import feature_edit
from lfp_lens.parts.teacher_forced import TeacherForced
from tests.stages.planted import SITE, planted_saes, speaking_pair
from tests.tiny import tiny_texts, tiny_tokenizer

PAIR = speaking_pair()
VALUES = torch.randn(PAIR.tuned_hf.config.vocab_size, generator=torch.Generator().manual_seed(0))
BEGIN = tiny_tokenizer().bos_token_id


def texts() -> list[Encoded]:
    return encode(tiny_tokenizer(), tiny_texts(9), max_tokens=20)


def forced(size: int = 4096) -> TeacherForced:
    base = TeacherForced(PAIR.base_hf, texts(), VALUES, begin=BEGIN, max_batch_tokens=size)
    return TeacherForced(PAIR.tuned_hf, texts(), VALUES, other=base, begin=BEGIN, max_batch_tokens=size)


def test_the_clean_reading_is_the_models_own() -> None:
    found = forced().clean
    for row, text in enumerate(texts()):
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            log_p = PAIR.tuned_hf(ids).logits[0].log_softmax(-1)
        assert found.valence[row] == pytest.approx(float((log_p.exp() @ VALUES).sum()), abs=1e-4)
        own = log_p[:-1].gather(-1, ids[0, 1:, None]).sum()
        assert found.log_p[row] == pytest.approx(float(own), abs=1e-3)
    assert (found.kl == 0).all()


def test_nothing_ablated_is_the_untouched_model_bit_for_bit() -> None:
    one = forced()
    dictionary = as_dictionary(planted_saes(PAIR).one(SITE))
    empty = one.read({SITE: feature_edit(dictionary, [])})
    assert np.array_equal(empty.log_p, one.clean.log_p) and np.array_equal(empty.valence, one.clean.valence)
    assert empty.kl == pytest.approx(np.zeros(len(empty.kl)), abs=1e-6)


@pytest.mark.parametrize("size", [1, 4096])
def test_kl_is_that_of_the_changed_to_the_untouched_predictions(size: int) -> None:
    one = forced(size)
    dictionary = as_dictionary(planted_saes(PAIR).one(SITE))
    edit = feature_edit(dictionary, [0])
    found = one.read({SITE: edit})
    row = 3
    ids = torch.tensor([texts()[row].ids])
    content = (ids != BEGIN)[..., None]
    with torch.no_grad():
        clean = PAIR.tuned_hf(ids).logits[0].log_softmax(-1)
        handle = PAIR.tuned_hf.gpt_neox.layers[2].mlp.register_forward_hook(
            lambda module, args, out: torch.where(content, edit(out), out)
        )
        changed = PAIR.tuned_hf(ids).logits[0].log_softmax(-1)
        handle.remove()
    assert found.kl[row] == pytest.approx(float((changed.exp() * (changed - clean)).sum()), rel=1e-3)
    assert found.kl[row] > 1e-3


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
def test_the_size_of_batches_changes_no_reading(mode: str) -> None:
    dictionary = as_dictionary(planted_saes(PAIR).one(SITE))
    few, many = (forced(size) for size in (1, 4096))
    assert len(few.batches) > len(many.batches)
    reference_MF = few.features(dictionary)
    edit = {SITE: feature_edit(dictionary, [0, 2], mode=mode, reference_MF=reference_MF)}
    one, two = few.read(edit), many.read(edit)
    assert one.kl == pytest.approx(two.kl, rel=1e-3, abs=1e-5) and (one.kl > 0).all()
    assert one.valence == pytest.approx(two.valence, abs=1e-3)


def test_a_prompt_is_given_and_not_predicted() -> None:
    whole = forced().clean
    cut = [dataclasses.replace(text, n_prompt=at % 4) for at, text in enumerate(texts())]
    part = TeacherForced(PAIR.tuned_hf, cut, VALUES, begin=BEGIN, max_batch_tokens=64)
    for row, text in enumerate(cut):
        ids, first = torch.tensor([text.ids]), max(text.n_prompt, 1)
        with torch.no_grad():
            log_p = PAIR.tuned_hf(ids).logits[0].log_softmax(-1)
        own = log_p[first - 1 : -1].gather(-1, ids[0, first:, None])
        assert part.clean.log_p[row] == pytest.approx(float(own.sum()), abs=1e-3)
        assert part.predicted[row] == len(own) == len(text.ids) - first
    assert part.clean.valence == pytest.approx(whole.valence, abs=1e-3), "the next word is expected in a prompt too"


def test_keeping_the_clean_predictions_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = as_dictionary(planted_saes(PAIR).one(SITE))
    kept = forced().read({SITE: feature_edit(dictionary, [0])})
    monkeypatch.setattr(teacher_forced, "LOG_P_KEPT", 0)
    made_anew = forced().read({SITE: feature_edit(dictionary, [0])})
    assert np.array_equal(kept.kl, made_anew.kl)
    assert (kept.kl > 0).all()


def test_hooks_are_gone_when_an_edit_fails() -> None:
    def broken(acts: torch.Tensor, other: torch.Tensor | None, place: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        forced().read({SITE: broken})
    assert not any(module._forward_hooks for module in PAIR.tuned_hf.modules())


def test_hooks_are_gone_when_what_follows_an_edit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    one, dictionary = forced(), as_dictionary(planted_saes(PAIR).one(SITE))
    monkeypatch.setattr(teacher_forced, "_logits", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError) as held:
        one.read({SITE: feature_edit(dictionary, [0])})
    assert held.traceback is not None, "the traceback keeps every frame alive, as a notebook does"
    assert not any(module._forward_hooks for module in PAIR.tuned_hf.modules())


def test_edits_see_the_other_model_at_the_same_tokens() -> None:
    one = forced()
    patched = one.read({SITE: lambda acts, other, place: other})
    assert not np.allclose(patched.log_p, one.clean.log_p)
    back = one.other.read({SITE: lambda acts, other, place: acts + (other - acts)}, other=one)
    assert not np.allclose(back.log_p, one.other.clean.log_p)


def test_a_hooked_transformer_reads_as_its_hugging_face_twin() -> None:
    hooked = TeacherForced(PAIR.tuned, texts(), VALUES, begin=BEGIN)
    assert hooked.clean.valence == pytest.approx(forced().clean.valence, abs=1e-3)
    dictionary = as_dictionary(planted_saes(PAIR).one(SITE))
    edit = {SITE: feature_edit(dictionary, [0, 2])}
    assert hooked.read(edit).kl == pytest.approx(forced().read(edit).kl, rel=1e-2, abs=1e-4)


def test_features_are_those_of_content_tokens() -> None:
    dictionary = as_dictionary(planted_saes(PAIR).one(SITE))
    found = forced().features(dictionary)
    assert len(found) == sum(sum(token != BEGIN for token in text.ids) for text in texts())
    assert torch.allclose(found.std(0) > 0, torch.ones(24, dtype=torch.bool))
    assert len(forced().features(dictionary, most=7)) == 7
