"""What results answer: rankings, selections, refusals, discoveries, on planted values."""

import dataclasses

import numpy as np
import pytest

from lfp_lens.core.errors import GateError, LensError
from lfp_lens.results import FeatureSet
from tests.results import samples
from tests.results.samples import SITES


def test_top_and_lowest_follow_the_published_measure_and_any_other_by_name() -> None:
    divergence = samples.a_divergence()
    assert divergence.top(2) == (SITES[4], SITES[5])
    assert divergence.top(1, by="activation_relative") == (SITES[1],)
    assert divergence.lowest(2) == (SITES[0], SITES[1])


def test_random_sites_are_distinct_in_layer_order_and_repeat_with_the_seed() -> None:
    divergence = samples.a_divergence()
    drawn = divergence.random(3, seed=1)
    assert drawn == divergence.random(3, seed=1)
    assert len(set(drawn)) == 3 and list(drawn) == sorted(drawn)
    assert len({divergence.random(3, seed=seed) for seed in range(20)}) > 1


@pytest.mark.parametrize("k", [0, 7])
def test_more_sites_than_layers_are_refused(k: int) -> None:
    with pytest.raises(LensError, match=f"{k} sites were asked for; the model has 6 layers"):
        samples.a_divergence().top(k)


def test_an_unknown_divergence_measure_names_the_nearest() -> None:
    with pytest.raises(LensError, match="Did you mean 'parameter_l2'"):
        samples.a_divergence().top(1, by="parameter_l1")


def test_saes_are_selected_by_all_that_is_named_smallest_first() -> None:
    saes = samples.an_sae_set()
    assert [sae.size for sae in saes.select(side="tuned", site=SITES[4])] == [1.0, 2.0]
    assert saes.one(SITES[4]).size == 1.0
    assert saes.one(SITES[4], side="base", size=2).n_features == 16


def test_a_site_without_an_sae_is_refused_with_the_nearest() -> None:
    with pytest.raises(LensError, match=r"No SAE matches .*Did you mean 'blocks\.[45]\.hook_mlp_out'"):
        samples.an_sae_set().one("blocks.4.hook_mlp_ou")


def test_only_sites_whose_sae_passes_every_gate_are_interpreted() -> None:
    assert samples.an_sae_set().passing() == (SITES[4],)
    assert samples.an_sae_set().passing(side="base") == (SITES[4], SITES[5])


def test_a_set_in_which_no_sae_passes_is_refused_with_every_reason() -> None:
    bad = dataclasses.replace(samples.an_sae_set(), saes=(samples.an_sae("tuned", SITES[4], explained_variance=0.2),))
    with pytest.raises(GateError, match=r"No tuned SAE is good enough .* explained variance 0.20 < 0.60"):
        bad.passing()


def test_an_sae_no_better_than_untrained_fails_though_it_is_above_the_fixed_floor() -> None:
    sae = samples.an_sae("tuned", SITES[4], explained_variance=0.7)
    better = dataclasses.replace(sae.floors["untrained"], explained_variance=0.8)
    sae = dataclasses.replace(sae, floors={"untrained": better})
    assert sae.failures == ("explained variance 0.70 < 0.80",)


def test_a_feature_set_keeps_each_feature_once_and_groups_by_site() -> None:
    features = FeatureSet(samples.an_sae_set(), ((SITES[5], 1), (SITES[4], 2), (SITES[5], 1), (SITES[5], 0)))
    assert len(features) == 3
    assert features.by_site() == {SITES[4]: (2,), SITES[5]: (1, 0)}
    assert len(FeatureSet(samples.an_sae_set(), ())) == 0


@pytest.mark.parametrize("index", [-1, 8])
def test_a_feature_that_does_not_exist_is_refused(index: int) -> None:
    with pytest.raises(LensError, match="its SAE has features 0 to 7"):
        FeatureSet(samples.an_sae_set(), ((SITES[4], index),))


def test_a_larger_size_has_more_features() -> None:
    assert len(FeatureSet(samples.an_sae_set(), ((SITES[4], 15),), size=2)) == 1


def test_a_feature_at_a_site_without_an_sae_is_refused() -> None:
    with pytest.raises(LensError, match="No SAE matches"):
        FeatureSet(samples.an_sae_set(), ((SITES[0], 0),))


def test_planted_wrong_words_are_found_most_certain_first() -> None:
    learned = samples.a_learned()
    z = np.sign(learned.stated) * 1.0
    z[29], z[0] = -9.0, -6.0
    learned = dataclasses.replace(learned, z=z)
    assert list(learned.wrong()["word"]) == [learned.words[29], learned.words[0]]
    p_value = learned.wrong()["p_wrong"].to_numpy()
    # Benjamini and Hochberg over 60 words: the smallest p needs to be at most fdr / 60, the second 2 fdr / 60.
    assert learned.wrong(fdr=1.01 * 60 * p_value[0])["word"].tolist()[:1] == [learned.words[29]]
    assert len(learned.wrong(fdr=0.9 * 30 * p_value[1])) < 2


def test_no_word_is_listed_when_nothing_was_learned() -> None:
    assert samples.a_learned(null=True).wrong().empty


def test_flipped_words_are_listed_and_rightly_learned_ones_are_not() -> None:
    assert set(samples.a_learned().wrong()["word"]) == set(samples.FLIPPED)


def test_words_within_the_neutral_spread_count_as_unlearned() -> None:
    learned = samples.a_learned(null=True)
    assert len(learned.unlearned()) > 30
    assert len(samples.a_learned().unlearned()) < 5


def test_agreement_with_the_feedback_really_given_is_higher_than_with_the_stated_one() -> None:
    learned = samples.a_learned()
    given = {word: -value if word in samples.FLIPPED else value for word, value in zip(learned.words, learned.stated)}
    assert learned.agreement(given).tau > learned.overall.tau
    assert learned.sign_accuracy(given).value == 1.0


def test_a_lexicon_that_shares_no_words_is_refused() -> None:
    with pytest.raises(GateError, match="shares 0 words with the 60 measured"):
        samples.a_learned().agreement({"unheard": 1.0})


def test_the_strongest_confirmed_effects_are_chosen_by_sign() -> None:
    effects = samples.an_effects()
    assert effects.top(2).features == ((SITES[4], 0), (SITES[4], 1))
    assert effects.top(1, sign=-1).features == ((SITES[4], 3),)


def test_a_ranking_whose_screen_does_not_hold_is_refused() -> None:
    with pytest.raises(GateError, match=r"does not rank features as exact ablation does \(Spearman 0.310"):
        samples.an_effects(rank_correlation=0.31).top(2)


def test_no_confirmed_effect_of_a_sign_is_an_error() -> None:
    effects = samples.an_effects()
    with pytest.raises(LensError, match="No feature has a confirmed effect of sign -1"):
        dataclasses.replace(effects, exact=np.abs(effects.exact)).top(1, sign=-1)


def test_relevant_features_are_those_labelled_so() -> None:
    assert samples.a_labels().relevant.features == ((SITES[4], 0), (SITES[4], 1))


def test_the_word_of_a_triple_lies_where_its_span_says() -> None:
    triples = samples.a_triples()
    for member in ("positive", "neutral", "negative"):
        spans = triples.spans(member)
        cut = [text[start:end] for text, (start, end) in zip(triples.texts(member), spans)]
        assert tuple(cut) == triples.words(member)
