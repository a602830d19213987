"""The benchmarks of features: what they compare, on planted features whose answer is known."""

import json

import pytest

from lfp_lens.parts.activations import batches, encode
from lfp_lens.parts.dictionaries import mean_difference
from lfp_lens.parts.share_curves import Contender, Selection, mean_activations, ordered
from lfp_lens.parts.teacher_forced import TeacherForced
from tests.benchmarks.carriers import Scene, of_curves, restored
from tests.benchmarks.organism_features import of_random_sets
from tests.parts.test_share_curves import BEGIN, TEXTS, gained, values
from tests.results.test_share_curves import curves
from tests.stages.planted import SITE, planted_saes, speaking_pair
from tests.tiny import tiny_texts, tiny_tokenizer


def test_shares_and_leads_are_told_for_every_mode_once_and_at_any_dose() -> None:
    found = [json.loads(one.line()) for one in of_curves(curves({"own": [2.0], "floor": [1.0]}))]
    by_name = {line["what"]: line for line in found}
    lead = by_name["zero, ablated once: lead of own over the best floor, floor"]
    assert lead["value"] == pytest.approx(0.03**0.5, abs=1e-3) and lead["aim"]
    assert by_name["mean, any dose: share within KL 0.03, floor floor"]["value"] == pytest.approx(
        0.03**0.5 / 2, abs=1e-3
    )
    assert {line["bench"] for line in found} == {"carriers"}


def test_what_was_added_to_the_base_is_restored_by_patching_it() -> None:
    pair, tuned = speaking_pair(), gained()
    encoded = encode(tiny_tokenizer(), TEXTS, max_tokens=24)
    selection = Selection(list(batches(encoded[:20], device="cpu")), values(), 20)
    base = TeacherForced(pair.base_hf, encoded[20:], values(), begin=BEGIN)
    forced = TeacherForced(tuned, encoded[20:], values(), other=base, begin=BEGIN)
    means = [mean_activations(model, selection.data, [SITE], begin=BEGIN)[SITE] for model in (tuned, pair.base_hf)]
    contender = Contender("mean difference", {SITE: mean_difference(SITE, *means)})
    ready = ordered(forced, contender, selection, modes=("zero",))
    scene = Scene(pair, {}, selection, forced, [])
    assert restored(scene, ready, "zero", 1, 1.0).value == pytest.approx(1.0, abs=0.05)
    assert restored(scene, ready, "zero", 1, 0.5).value < 0.8


def test_random_sets_are_placed_among_random_sets() -> None:
    found = list(of_random_sets(speaking_pair(), planted_saes(speaking_pair()), tiny_texts(80), draws=4, controls=5, members=3,
                                size=1.5))  # fmt: skip
    mean, p = (one.value for one in found)
    assert 0 <= mean <= 100 and 0 <= p <= 1
    assert [one.n for one in found] == [4, 4]
