"""Features on a user's text: what is planted is what is coloured, at its place, and nothing else."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from lfp_lens.core.errors import LensError
from lfp_lens.parts.activations import batches, encode
from lfp_lens.parts.feature_view import Features
from lfp_lens.parts.harvest import read_batch
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.results import Labels
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.train_sae import SAESet
from tests.results.labelled import some_labels
from tests.tiny import tiny_pair, tiny_texts, word_saes

SITE = "blocks.0.hook_mlp_out"
PLANTED = ("wonderful", "terrible", "table", "river")
TEXT = "the film was wonderful and the river was terrible."
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return tiny_pair()


@pytest.fixture(scope="module")
def saes(pair: Pair) -> SAESet:
    return word_saes(pair, PLANTED)


@pytest.fixture(scope="module")
def labels(saes: SAESet) -> Labels:
    """Labels of the first two planted features."""
    made = some_labels(n=1)
    return dataclasses.replace(
        made,
        saes=saes,
        site=(SITE,) * 3,
        index=np.array([0, 1, 5]),
        description=(f"the word wonderful {HOSTILE}", "", ""),
    )


def coloured(html: str) -> list[str]:
    """Give the tokens that have a colour."""
    return re.findall(r'<span title="[^"]+" style="background[^"]+">([^<]*)</span>', html)


def test_a_text_is_coloured_at_the_planted_words_by_the_features_that_fire_there(pair: Pair, saes: SAESet) -> None:
    shown = Features(pair, saes).show(TEXT, k=10)
    assert sorted(coloured(shown.html)) == [" river", " terrible", " wonderful"]
    assert all(word in shown.text for word in ("wonderful", "terrible", "river"))
    assert "table" not in shown.text


def test_a_named_feature_is_shown_even_where_it_is_silent(pair: Pair, saes: SAESet) -> None:
    features = Features(pair, saes)
    assert coloured(features.show(TEXT, site=SITE, index=PLANTED.index("river")).html) == [" river"]
    silent = features.show(TEXT, site=SITE, index=PLANTED.index("table"))
    assert coloured(silent.html) == [] and "silent" in silent.text
    assert silent.html.count("<span title=") == len(pair.tokenizer(TEXT)["input_ids"])


def test_the_value_on_hover_is_the_dictionarys_own(pair: Pair, saes: SAESet) -> None:
    shown = Features(pair, saes).show(TEXT, site=SITE, index=0).html
    read = encode(pair.tokenizer, [TEXT], max_tokens=96)
    [batch] = batches(read, device="cpu")
    begin = pair.tokenizer.bos_token_id
    acts_ND = read_batch({"tuned": pair.tuned_hf}, batch, [("tuned", SITE)], begin)["tuned", SITE]
    wanted = load_sae(saes.one(SITE)).encode(acts_ND)[:, 0].tolist()
    assert re.findall(r'title="(-?\d+\.\d+)"', shown) == [f"{value:.3f}" for value in wanted]


def test_the_strongest_come_first_and_no_more_than_k(pair: Pair, saes: SAESet) -> None:
    features = Features(pair, saes)
    lines = features.show(TEXT, k=10).text.splitlines()[1:]
    assert features.show(TEXT, k=1).text.splitlines()[1:] == lines[:1]
    record = saes.one(SITE)
    norms = np.linalg.norm(record.weights.tensors["W_dec"], axis=1)
    writes = [norms[int(line.split()[1])] * float(re.search(r"' (\S+?)(,|$)", line)[1]) for line in lines]
    assert writes == sorted(writes, reverse=True)


def test_a_set_of_features_shows_those_alone(pair: Pair, saes: SAESet) -> None:
    chosen = FeatureSet(saes, ((SITE, PLANTED.index("river")), (SITE, PLANTED.index("table"))))
    assert coloured(Features(pair, chosen).show(TEXT).html) == [" river"]


def test_a_text_on_which_nothing_fires_says_so(pair: Pair, saes: SAESet) -> None:
    assert "No feature fires" in Features(pair, saes).show("the garden was in there.").text


def test_labels_stand_beside_the_text_and_hostile_text_is_text(pair: Pair, labels: Labels) -> None:
    shown = Features(pair, labels).show(f"{HOSTILE} wonderful river", k=10)
    assert "the word wonderful" in shown.html
    assert "<script" not in shown.html and shown.html.count("&lt;script&gt;") >= 1


def test_every_character_of_a_text_is_shown_once(pair: Pair, saes: SAESet) -> None:
    text = "the  film…\nwas “déjà” 🎬 wonderful"
    shown = Features(pair, saes).show(text, site=SITE, index=0).html
    pieces = re.findall(r'<span title="[^"]*"[^>]*>([^<]*)</span>', shown)
    assert "".join(pieces) == text.replace("\n", "\u21b5")


def test_the_other_side_is_read_where_it_is_asked_for(pair: Pair, saes: SAESet) -> None:
    shown = {side: Features(pair, saes, side=side).show(TEXT, site=SITE, index=0).text for side in ("base", "tuned")}
    assert "base: feature 0" in shown["base"] and "tuned: feature 0" in shown["tuned"]


def test_a_card_of_labels_needs_no_texts_and_texts_give_it_their_histogram(pair: Pair, labels: Labels) -> None:
    features = Features(pair, labels)
    assert features.card(SITE, 0).html == labels.card(SITE, 0).html
    texts = tiny_texts(30)
    said = sum(len(re.findall(r" wonderful\b", text)) for text in texts)
    shown = features.card(SITE, 0, texts)
    assert "the word wonderful" in shown.text
    assert re.search(rf"fires on {said} of [\d,]+ tokens of 30 given texts", shown.html)


def test_a_card_without_labels_is_read_from_texts(pair: Pair, saes: SAESet) -> None:
    shown = Features(pair, saes).card(SITE, PLANTED.index("river"), tiny_texts(30))
    assert "fires on: river" in shown.text
    assert "Nobody was asked" in shown.text
    assert set(coloured(shown.html)) == {" river"}
    assert shown.html.count("decoration:underline") == shown.html.count("<tr>")


def test_a_card_without_labels_says_what_the_decoder_row_promotes(pair: Pair, saes: SAESet) -> None:
    """Against the definition, in full: centred where the final norm centres, scaled by its weight, unembedded."""
    index = PLANTED.index("river")
    row_D = torch.from_numpy(saes.one(SITE, side="tuned").weights.tensors["W_dec"][index])
    with torch.no_grad():
        norm = pair.tuned_hf.gpt_neox.final_layer_norm
        logits_V = pair.tuned_hf.get_output_embeddings().weight @ (norm.weight * (row_D - row_D.mean()))
    ranked = logits_V[: len(pair.tokenizer)].argsort(descending=True).tolist()
    shown = Features(pair, saes).card(SITE, index, tiny_texts(30)).text
    for name, ids in (("promotes", ranked[:10]), ("suppresses", ranked[:-11:-1])):
        assert f"{name}: {' | '.join(pair.tokenizer.decode([token]).strip() for token in ids)}" in shown


def test_features_look_at_themselves(pair: Pair, labels: Labels) -> None:
    features = Features(pair, labels)
    assert "labels: yes" in repr(features) and ".show(" in features._repr_html_()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda features: features.show(TEXT, index=1), "Feature 1 of which site"),
        (lambda features: features.show(TEXT, site=SITE, index=99), "Feature 99 does not exist"),
        (lambda features: features.show(TEXT, site="blocks.9.hook_mlp_out"), "No SAE matches"),
        (lambda features: features.show(""), "Text 0 has no token"),
        (lambda features: features.show([TEXT]), "show takes one text; list given"),
        (lambda features: features.show(TEXT, k=0), "k must be at least 1"),
        (lambda features: features.card(SITE, 0), "have no labels: give texts"),
        (lambda features: features.card(SITE, -1, [TEXT]), "Feature -1 does not exist"),
        (lambda features: features.card(SITE, 0, []), "No texts were given"),
    ],
)
def test_what_cannot_be_shown_is_refused(pair: Pair, saes: SAESet, ask, message: str) -> None:
    with pytest.raises(LensError, match=message):
        ask(Features(pair, saes))


def test_a_card_of_a_feature_that_was_not_chosen_is_refused(pair: Pair, labels: Labels) -> None:
    with pytest.raises(LensError, match="is not among the 3 features that were chosen"):
        Features(pair, labels).card(SITE, 3)


def test_features_that_cannot_be_read_are_refused(pair: Pair, saes: SAESet) -> None:
    with pytest.raises(LensError, match="mean nothing here"):
        Features(pair, dataclasses.replace(saes, pair="another"))
    with pytest.raises(LensError, match="Unknown side of one model 'both'"):
        Features(pair, saes, side="both")
    with pytest.raises(LensError, match="of Labels, a FeatureSet or an SAESet; list given"):
        Features(pair, [1])  # type: ignore[arg-type]
    nothing = Features(pair, FeatureSet(saes, ()))
    with pytest.raises(LensError, match="The feature set has none at"):
        nothing.show(TEXT, site=SITE)
