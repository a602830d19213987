"""A set of SAEs answers which, how good, above which floor, by which setting, and matched with whom."""

import dataclasses

import numpy as np
import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.results import SAERecord, SAESet
from tests.results import samples

SITES = samples.SITES


def saes_that_differ(**values: list[object]) -> SAESet:
    """One SAE for every position of the lists, all else equal."""
    sae = samples.an_sae("tuned", SITES[4])
    rows = [dict(zip(values, row)) for row in zip(*values.values())]
    return SAESet(tuple(dataclasses.replace(sae, **row) for row in rows), "pair", (), {})


def test_of_several_saes_at_one_place_the_first_of_the_set_is_taken() -> None:
    saes = saes_that_differ(architecture=["topk", "standard", "topk"], seed=[1, 0, 0])
    assert (saes.one(SITES[4]).architecture, saes.one(SITES[4]).seed) == ("topk", 1)
    assert saes.one(SITES[4], architecture="standard").seed == 0
    assert saes.one(SITES[4], seed=0).architecture == "standard"
    assert [sae.seed for sae in saes.select(architecture="topk")] == [1, 0]


def test_saes_are_selected_by_what_they_were_trained_with() -> None:
    saes = saes_that_differ(l1=[0.1, 0.2, 0.2], lr=[1e-3, 1e-3, 1e-4])
    assert [sae.lr for sae in saes.select(l1=0.2)] == [1e-3, 1e-4]
    assert len(saes.select(l1=0.2, lr=1e-4)) == 1


def test_a_choice_that_nothing_matches_is_refused_with_what_there_is() -> None:
    saes = saes_that_differ(architecture=["topk", "tied"], k=[4, None])
    with pytest.raises(LensError, match=r"No SAE matches architecture='gated'.*architecture: topk, tied"):
        saes.select(architecture="gated")
    with pytest.raises(LensError, match=r"No SAE matches side='both'. There is side: tuned; site: blocks\.4"):
        saes.select(side="both")
    with pytest.raises(LensError, match=r"No SAE matches k=8.*k: 4, None"):
        saes.select(k=8)


def test_no_two_saes_of_a_set_have_one_name() -> None:
    saes = saes_that_differ(seed=[0, 1, 0, 0, 0], l1=[0.1, 0.1, 0.2, None, 0.1], k=[None, None, None, 8, None],
                            lr=[1e-3, 1e-3, 1e-3, 1e-3, 1e-4])  # fmt: skip
    assert len({sae.name for sae in saes.saes}) == 5
    assert saes.saes[0].name == "tuned blocks.4.hook_mlp_out x1 standard seed 0 l1 0.1 lr 0.001"


def test_width_and_features_are_those_of_the_weights() -> None:
    assert samples.an_sae("tuned", SITES[4], 2.0).width == 8
    assert samples.an_sae("tuned", SITES[4], 2.0).n_features == 16


# --- floors ---


def test_the_floors_of_a_set_answer_the_same_questions_with_their_own_figures() -> None:
    saes = samples.an_sae_set()
    floor = saes.floor("pca")
    for sae, low in zip(saes.saes, floor.saes):
        assert (low.side, low.site, low.size, low.seed) == (sae.side, sae.site, sae.size, sae.seed)
        assert low.explained_variance == sae.floors["pca"].explained_variance
        assert low.weights == sae.floors["pca"].weights and low.n_features == 4
        assert (low.architecture, low.floors, low.n_train_tokens) == ("pca", {}, 0)
    assert floor.pair == saes.pair
    assert floor.one(SITES[4], side="base").l0 == 2.0
    assert saes.floor("untrained").one(SITES[4]).architecture == "standard"
    assert floor.saes[0].failures == ("explained variance 0.45 < 0.60", "KL recovered 0.60 < 0.7")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pcs", "Unknown floor 'pcs'. Did you mean 'pca'"),
        ("random_model", "reads another model"),
        ("untrained", "was not measured for 1 of 8 SAEs: tuned blocks.5.hook_mlp_out x2"),
    ],
)
def test_a_floor_that_is_not_there_is_refused(kind: str, message: str) -> None:
    saes = samples.an_sae_set()
    bare = dataclasses.replace(saes.saes[-1], floors={"pca": saes.saes[-1].floors["pca"]})
    with pytest.raises(LensError, match=message):
        dataclasses.replace(saes, saes=(*saes.saes[:-1], bare)).floor(kind)


def test_without_a_measured_floor_the_fixed_one_holds() -> None:
    sae = dataclasses.replace(samples.an_sae("tuned", SITES[4], explained_variance=0.59), floors={})
    assert np.isnan(sae.untrained_explained_variance)
    assert sae.failures == ("explained variance 0.59 < 0.60",)


def test_a_frame_puts_every_floor_beside_the_figure() -> None:
    bare = dataclasses.replace(samples.an_sae("tuned", SITES[4]), floors={})
    frame = SAESet((samples.an_sae("tuned", SITES[4]), bare), "pair", (), {}).to_frame()
    assert frame["pca_explained_variance"].tolist()[0] == 0.45
    assert frame["random_model_kl_recovered"].tolist()[0] == 0.9
    assert np.isnan(frame["untrained_explained_variance"].tolist()[1])


# --- sweeps ---


def test_a_sweep_is_the_mean_by_one_setting_over_all_else() -> None:
    saes = saes_that_differ(l1=[0.2, 0.1, 0.1, 0.1], site=[SITES[4], SITES[4], SITES[5], SITES[5]], size=[1.0, 1.0, 1.0, 2.0],
                            mse=[0.9, 0.1, 0.2, 0.4], l0=[2.0, 8.0, 10.0, 14.0])  # fmt: skip
    rows = saes.by("l1").to_dict("records")
    assert [row["l1"] for row in rows] == [0.1, 0.2]
    assert (rows[0]["n_saes"], rows[0]["n_units"]) == (3, 2)
    assert rows[0]["mse"] == pytest.approx((0.1 + (0.2 + 0.4) / 2) / 2), "sizes at one site are averaged first"
    assert rows[0]["l0"] == pytest.approx(10) and rows[0]["true_sparsity"] == pytest.approx(0.1)
    # Of two units, draws of the bootstrap are the one, the other or their mean.
    assert (rows[0]["mse_low"], rows[0]["mse_high"]) == pytest.approx((0.1, 0.3))
    assert np.isnan(rows[1]["mse_low"]) and rows[1]["mse"] == 0.9
    assert saes.by("l1", size=2.0)["n_saes"].tolist() == [1]


def test_a_sweep_over_names_keeps_the_order_of_the_set() -> None:
    saes = saes_that_differ(architecture=["tied", "standard"], k=[None, None])
    assert saes.by("architecture")["architecture"].tolist() == ["tied", "standard"]
    assert list(saes.plot_sweep("architecture").data[0].x) == ["tied", "standard"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sizes", "Unknown setting of a sweep 'sizes'. Did you mean 'size'"),
        ("k", "No dictionary here has a setting 'k'; .*tied"),
    ],
)
def test_what_cannot_be_swept_is_refused(name: str, message: str) -> None:
    with pytest.raises(LensError, match=message):
        saes_that_differ(architecture=["tied"]).by(name)


# --- matches ---


def test_the_features_of_either_dictionary_are_ranked_by_their_own_indices() -> None:
    match = samples.an_sae_set().matches[0]
    assert match.ranked().tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert match.ranked("right").tolist() == [7, 6, 5, 4, 3, 2, 1, 0, *range(8, 16)], "without a partner: last"
    assert match.ranked("right", by="largest").tolist() == [*range(15, -1, -1)]
    assert match.mmcs == pytest.approx(np.linspace(0.5, 1, 16)[:8].mean())
    assert match.mmcs_hungarian == match.mmcs


@pytest.mark.parametrize(
    ("given", "message"), [({"which": "rihgt"}, "mean 'right'"), ({"by": "larges"}, "mean 'largest'")]
)
def test_an_unknown_ranking_names_the_nearest(given: dict[str, str], message: str) -> None:
    with pytest.raises(LensError, match=message):
        samples.an_sae_set().matches[0].ranked(**given)


def test_the_match_of_an_sae_is_found_by_relation() -> None:
    saes = samples.an_sae_set()
    sae: SAERecord = saes.one(SITES[4], side="base")
    assert saes.match(sae).right == saes.one(SITES[4], side="base", size=2.0).name
    assert saes.match(sae, "sides").right == saes.one(SITES[4], side="tuned").name
    with pytest.raises(LensError, match=r"No match of seeds begins with base .* Matched by seeds: none"):
        saes.match(sae, "seeds")
    with pytest.raises(LensError, match=r"Unknown relation of two SAEs 'size'\. Did you mean 'sizes'"):
        saes.match(sae, "size")


def test_stability_is_drawn_beside_random_dictionaries_and_needs_a_second_seed() -> None:
    one, other = (samples.an_sae("tuned", SITES[4], seed=seed) for seed in (0, 1))
    saes = SAESet((one, other), "pair", (samples.a_match(one, other, "seeds"),), {})
    for sae in saes.saes:
        assert sae.stability is not None
        figure = saes.plot_stability(sae)
        assert list(figure.data[0].x) == sae.stability.tolist()
        assert [shape.x0 for shape in figure.layout.shapes] == [0.61, 0.8]
    with pytest.raises(LensError, match="has no other seed to compare with"):
        samples.an_sae_set().plot_stability(one)


def test_matches_are_tabled_beside_their_null() -> None:
    frame = samples.an_sae_set().matches_frame()
    assert len(frame) == 8 and set(frame["relation"]) == {"sizes", "sides"}
    assert frame["left_null"].tolist() == [0.61] * 8
    # Of sixteen cosines from 0.5 to 1 the first eight, which a smaller SAE has, end at 0.73.
    assert frame["above_null_99"].tolist()[0] == 0.0
    large = frame[frame["n"] == 16]["above_null_99"].tolist()
    assert large == [np.mean(np.linspace(0.5, 1, 16) > 0.8)] * 2
