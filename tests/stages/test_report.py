"""The page of a run: headline, sections, refusals, provenance; hostile text stays text."""

import re
from pathlib import Path

import pytest

from lfp_lens.core.errors import LensError
from lfp_lens.core.store import Store
from lfp_lens.stages.report import report
from lfp_lens.stages.report.headline import planted_flips, tiles
from tests.results import samples

VERBS = ("finetune", "diverge", "train_sae", "contrast", "probe", "attribute", "explain", "ablate")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert report(samples.results(), title="A run", path=path).sections == VERBS
    return path.read_text(encoding="utf-8")


def test_every_verb_has_a_section_with_its_limits(whole: str) -> None:
    assert [verb for verb in VERBS if f'<section id="{verb}">' in whole] == list(VERBS)
    assert whole.count("What this does not show.") == len(VERBS)


def test_every_figure_has_its_place(whole: str) -> None:
    assert whole.count('class="figure" data-plot=') == whole.count('class="plot"') == 15


def test_hostile_model_text_is_shown_as_text(whole: str) -> None:
    assert "<script>alert" not in whole
    assert "&lt;script&gt;alert(1)" in whole


def test_published_numbers_are_marked_as_such(whole: str) -> None:
    for table in ("Table 3", "Table 4", "Table 5", "Table 9", "Table 10"):
        assert re.search(f"{table}: [^<]*\\(PUBLISHED: as printed", whole), table
    assert "PUBLISHED in the paper, Tables 6 and 7" in whole and "99.92" in whole and "0.520" in whole
    assert "PUBLISHED: pythia-160m" in whole


def test_the_headline_states_each_number_with_its_control() -> None:
    shown = {tile.name: f"{tile.value} {tile.detail}" for tile in tiles(samples.results(), {})}
    assert shown["Did the tuning learn?"].startswith("learned")
    assert "n=256 held-out prompts, paired" in shown["Reward gain"]
    assert shown["Layers that moved most"].startswith("layer 4, 5, 3")
    assert (
        "noise twin" in shown["Agreement with the stated lexicon"]
        and "above zero" in shown["Agreement with the stated lexicon"]
    )
    assert "than 200 of 200 random sets" in shown["Ablating the features"]
    assert "by mode: zero 0.500 [0.450, 0.550], n=96, mean 0.200" in shown["Ablating the features"]
    assert shown["Do features carry it?"].startswith(
        "yes tuned SAE (one seed) carries it: share of the gain at KL 0.03: zero 0.5"
    )
    assert "best floor (pca) 0.2" in shown["Do features carry it?"]
    assert shown["Planted sign flips found"].startswith("3 of 3 0 other words")


def test_planted_flips_are_those_whose_sign_was_turned() -> None:
    learned = samples.a_learned()
    flipped, found = planted_flips(learned, {"great": -3.0, "good": 0.5, "awful": 2.0, "unheard": -1.0})
    assert flipped == {"great", "awful"}
    assert found == set(samples.FLIPPED)


def test_a_run_that_learned_nothing_claims_nothing(tmp_path: Path) -> None:
    given = {
        "finetune": samples.a_tuning(verdict="nothing was learned"),
        "probe": samples.a_learned(null=True),
    }
    shown = {tile.name: tile for tile in tiles(given, {})}
    assert (shown["Did the tuning learn?"].value, shown["Did the tuning learn?"].tone) == (
        "nothing was learned",
        "bad",
    )
    assert shown["Agreement with the stated lexicon"].tone == "bad"
    assert shown["Ablating the features"].value == "not run"


def test_a_refused_verb_shows_its_reason_and_none_of_its_numbers(tmp_path: Path) -> None:
    made = report(samples.results(), refusals={"probe": "only 2 words"}, path=tmp_path / "page.html")
    text = made.path.read_text(encoding="utf-8")
    assert "only 2 words" in text and "Learned with the wrong sign, most certain" not in text
    assert "probe" not in made.sections and made.refusals == {"probe": "only 2 words"}


@pytest.mark.parametrize("verb", VERBS)
def test_any_single_result_makes_a_page(verb: str, tmp_path: Path) -> None:
    made = report({verb: samples.results()[verb]}, path=tmp_path / "page.html")
    assert made.sections == (verb,)


def test_a_stored_run_ends_with_its_provenance(tmp_path: Path) -> None:
    store = Store(tmp_path / "tiny")
    divergence = store.get("diverge", {"seed": 7}, lambda folder: samples.a_divergence())
    made = report({"diverge": divergence}, store=store)
    text = made.path.read_text(encoding="utf-8")
    assert made.path == store.root / "report.html"
    assert 'id="provenance"' in text and "<td>7</td>" in text and "numpy" in text
    assert "<h1>tiny</h1>" in text
    assert [path.name for path in store.root.iterdir() if path.name.startswith(".")] == []


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    pages = [
        report({"probe": samples.a_learned()}, path=tmp_path / name).path.read_bytes() for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]


def test_results_with_nothing_in_them_still_make_a_page(tmp_path: Path) -> None:
    from dataclasses import replace

    import numpy as np

    nothing, none = np.array([]), np.array([], int)
    labels = replace(
        samples.a_labels(),
        site=(),
        index=none,
        status=(),
        description=(),
        is_relevant=np.array([], bool),
        confidence=nothing,
        pattern=(),
        scores=(),
        agreement=(),
        examples=(),
        tokens=(),
        promotes=(),
        suppresses=(),
    )
    triples = replace(
        samples.a_triples(),
        prefix=(),
        suffix=(),
        positive=(),
        neutral=(),
        negative=(),
        part_of_speech=(),
        source=none,
        rejected={},
    )
    learned = replace(samples.a_learned(), predicted=np.full(60, np.nan), grid=(), positive=None)
    effects = replace(samples.an_effects(), exact=np.full(16, np.nan))
    ablation = samples.an_ablation(single=True)
    ablation = replace(ablation, random=(replace(ablation.random[0], differences=nothing, kl=nothing),))
    given = {
        "contrast": triples,
        "probe": learned,
        "attribute": effects,
        "explain": labels,
        "ablate": ablation,
    }
    text = report(given, path=tmp_path / "page.html").path.read_text(encoding="utf-8")
    assert "no random sets were run" in text and "not measured (see the notes)" in text


def test_a_page_with_nowhere_to_go_is_refused() -> None:
    with pytest.raises(LensError, match="nowhere to go"):
        report(samples.results())


def test_a_folder_as_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="is a folder"):
        report(samples.results(), path=tmp_path)


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="nothing to report"):
        report({}, path=tmp_path / "page.html")


def test_an_unknown_verb_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="Did you mean 'probe'"):
        report({"prob": samples.a_learned()}, path=tmp_path / "page.html")


def test_a_result_of_another_verb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LensError, match="must be of type Learned or LearnedPreference; Tuning was given"):
        report({"probe": samples.a_tuning()}, path=tmp_path / "page.html")


def test_a_signal_signed_by_the_label_makes_a_page_that_tests_no_word(tmp_path: Path) -> None:
    from dataclasses import replace

    import numpy as np

    unknown = np.full(60, np.nan)
    learned = replace(
        samples.a_learned(), signal="activation_delta", p_wrong=unknown, z=unknown, neutral=np.zeros(0),
        neutral_z=np.zeros(0), neutral_words=(), rescaled=unknown, grid=(),
    )  # fmt: skip
    text = report({"probe": learned}, path=tmp_path / "page.html").path.read_text(encoding="utf-8")
    assert "Not tested: this signal takes its sign" in text and "signed by the label: no evidence" in text
    assert "this signal is its own zero" in text and "base model (the null)" in text
