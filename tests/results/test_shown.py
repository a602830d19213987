"""Every result shows itself: a frame, a figure, HTML; whatever text it holds."""

from pathlib import Path
from typing import Any

import pytest

from lfp_lens.results import FeatureSet, Report
from tests.results import samples

RESULTS = samples.results()
DRAWN = {
    **RESULTS,
    "ablate alone": samples.an_ablation(single=True),
    "probe null": samples.a_learned(null=True),
}
SHOWN = {
    **DRAWN,
    "features": FeatureSet(samples.an_sae_set(), ((samples.SITES[4], 3),)),
    "report": Report(Path(samples.HOSTILE), ("probe",), {"ablate": samples.HOSTILE}),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_result_draws_itself_without_markup_from_data(name: str) -> None:
    figure = DRAWN[name].plot()
    assert figure.layout.title.text and len(figure.data)
    assert "<script" not in str(figure.to_plotly_json())


@pytest.mark.parametrize("name", SHOWN)
def test_a_result_shows_itself_in_jupyter_with_everything_escaped(name: str) -> None:
    shown = SHOWN[name]._repr_html_()
    assert 'class="lens"' in shown and "<script" not in shown


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("finetune", 120),
        ("diverge", 6),
        ("train_sae", 8),
        ("contrast", 3),
        ("probe", 60),
        ("attribute", 16),
        ("explain", 4),
        ("ablate", 60),
        ("features", 1),
    ],
)
def test_a_frame_has_one_row_per_thing_measured(name: str, rows: int) -> None:
    result: Any = SHOWN[name]
    assert len(result.to_frame()) == rows


def test_what_a_single_model_cannot_give_is_left_out_and_explained() -> None:
    alone = samples.an_ablation(single=True)
    quantities = set(alone.to_frame()["quantity"])
    assert not {"reward_base", "gain_share", "valence: same features in the base", "share: the features"} & quantities
    assert {"reward_base", "gain_share", "share: the features"} <= set(samples.an_ablation().to_frame()["quantity"])
    assert "No base model was given" in alone._repr_html_()
