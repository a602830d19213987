"""The engine of share curves: a planted carrier is told from floors, whatever is asked is asked of all."""

from functools import cache

import numpy as np
import pytest
import torch

from lfp_lens.parts.activations import batches, encode
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.interventions import feature_edit
from lfp_lens.parts.share_curves import (
    Contender,
    Selection,
    floor_contenders,
    mean_activations,
    principal_dictionaries,
    share_curves,
)
from lfp_lens.parts.sites import watching
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.results.share_curves import ShareCurves
from tests.stages.planted import SITE, planted_saes, reward_direction, speaking_pair
from tests.tiny import NEGATIVE, POSITIVE, tiny_texts, tiny_tokenizer

TEXTS = tiny_texts(40)
BEGIN = tiny_tokenizer().bos_token_id


def values() -> torch.Tensor:
    tokenizer, found = tiny_tokenizer(), torch.zeros(speaking_pair().tuned_hf.config.vocab_size)
    for words, value in ((POSITIVE, 1.0), (NEGATIVE, -1.0)):
        for ids in tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]:
            found[ids[0]] = value
    return found


def gained() -> torch.nn.Module:
    """The base with the reward direction added to a site's output: what tuning would have to learn."""
    import copy

    pair = speaking_pair()
    model = copy.deepcopy(pair.base_hf)
    with torch.no_grad():
        model.gpt_neox.layers[2].mlp.dense_4h_to_h.bias += 2.0 * reward_direction(pair)
    return model


@cache
def measured() -> ShareCurves:
    pair, tuned = speaking_pair(), gained()
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=24)
    selection = Selection(list(batches(encoded[:20], device="cpu")), values(), 20)
    base = TeacherForced(pair.base_hf, encoded[20:], values(), begin=BEGIN)
    forced = TeacherForced(tuned, encoded[20:], values(), other=base, begin=BEGIN)
    record = planted_saes(pair).one(SITE)
    own = Contender("planted", {SITE: as_dictionary(record)})
    others = floor_contenders(tuned, pair.base_hf, [record], selection, begin=BEGIN)
    return share_curves(forced, [own, *others], selection, sizes=(1, 4), doses=(0.25, 0.5, 1.0))


def test_the_planted_feature_removes_the_gain() -> None:
    made = measured()
    assert made.gain > 0.02
    assert made.share("planted", kl=0.05).value > 0.5
    assert made.lead("planted", kl=0.01)["random directions"].low > 0
    assert made.lead("planted", kl=0.05)["random directions"].low > 0


def test_what_needs_no_features_is_among_the_floors() -> None:
    made = measured()
    floors = {"untrained", "pca", "random directions", "neurons", "mean difference", "mean direction"}
    assert set(made.floors) == floors
    # All that was added goes, but at the beginning-of-text tokens, which no edit touches.
    assert 0.95 < made.share("mean difference", kl=10.0).value < 1


def test_a_constant_has_no_mean_reading() -> None:
    made = measured()
    assert np.isnan(made.share("mean difference", mode="mean").value)
    assert "mean difference" not in made.lead("planted", mode="mean")
    assert "mean difference" in made.lead("planted", mode="zero")


def test_every_mode_and_size_is_there_for_every_name_with_features() -> None:
    frame = measured().points()
    sizes = frame[frame["features"] == "planted"].groupby("mode")["k"].nunique()
    assert dict(sizes) == {"zero": 2, "mean": 2, "resample": 2}
    assert (frame["kl"] >= -1e-6).all()


def test_a_given_order_is_kept() -> None:
    pair, tuned = speaking_pair(), gained()
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=24)
    selection = Selection(list(batches(encoded[:20], device="cpu")), values(), 20)
    base = TeacherForced(pair.base_hf, encoded[20:], values(), begin=BEGIN)
    forced = TeacherForced(tuned, encoded[20:], values(), other=base, begin=BEGIN)
    dictionary = as_dictionary(planted_saes(pair).one(SITE))
    given = [Contender(name, {SITE: dictionary}, order=order) for name, order in
             (("first", ((SITE, 0), (SITE, 5))), ("last", ((SITE, 5), (SITE, 0))))]  # fmt: skip
    made = share_curves(forced, given, selection, modes=("zero",), sizes=(1, 300), doses=(1.0,)).points()
    one = made[made["k"] == 1].set_index("features")["share"]
    both = made[made["k"] == 2].set_index("features")["share"]
    assert one["first"] > one["last"] + 0.2
    assert both["first"] == pytest.approx(both["last"])


def test_means_are_over_content_tokens() -> None:
    pair = speaking_pair()
    data = list(batches(encode(tiny_tokenizer(), TEXTS[:4], max_tokens=24), device="cpu"))
    found = mean_activations(pair.tuned_hf, data, [SITE], begin=BEGIN)[SITE]
    rows = []
    for text in encode(tiny_tokenizer(), TEXTS[:4], max_tokens=24):
        with torch.no_grad(), watching(pair.tuned_hf, [SITE]) as seen:
            pair.tuned_hf(torch.tensor([text.ids]))
        rows += [row for row, token in zip(seen[SITE][0], text.ids) if token != BEGIN]
    assert torch.allclose(found, torch.stack(rows).mean(0), atol=1e-5)


@pytest.mark.parametrize("side", ["tuned", "difference"])
def test_all_principal_components_together_leave_the_mean(side: str) -> None:
    pair, tuned = speaking_pair(), gained()
    data = list(batches(encode(tiny_tokenizer(), TEXTS[:6], max_tokens=24), device="cpu"))
    made = principal_dictionaries(tuned, pair.base_hf, [SITE], side, data, begin=BEGIN)[SITE]
    means = [mean_activations(model, data, [SITE], begin=BEGIN)[SITE] for model in (tuned, pair.base_hf)]
    left = means[0] if side == "tuned" else means[0] - means[1]
    acts, base = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    removed = feature_edit(made, range(32))(acts, base)
    if side == "difference":
        removed = removed - base
    assert torch.allclose(removed, left.expand(5, 16), atol=1e-4)
    assert torch.allclose(made.W_dec[:16] @ made.W_dec[:16].T, torch.eye(16), atol=1e-5)
    assert (made.read(acts, base) >= 0).all(), "each direction is two features, one for either sense"
