"""report on a run of preference pairs: rewrites and classifiers in place of words."""

from pathlib import Path

from lfp_lens.stages.report import report
from lfp_lens.stages.report.summary import summary
from tests.results.samples import a_tuning
from tests.results.test_preference_probe import a_preference
from tests.results.test_preference_triples import some


def test_the_page_shows_rewrites_every_classifier_and_the_verdict(tmp_path: Path) -> None:
    learned = a_preference()
    results = {"finetune": a_tuning(), "contrast": some(), "probe": learned}
    text = report(results, path=tmp_path / "page.html").path.read_text(encoding="utf-8")
    for told in (
        "The contrastive rewrites",
        "Every classifier, on the same folds",
        "Table 3 of the paper",
        "Learned preference",
    ):
        assert told in text
    assert str(learned.difference) in text


def test_the_headline_is_tuned_minus_base_and_says_when_it_is_style() -> None:
    good, style = a_preference(), a_preference(none_length=0.9)
    assert not good.is_style
    assert style.is_style
    for learned in (good, style):
        told = " ".join(summary("a", {"probe": learned}, {}).split())
        assert f"Tuned minus base: {learned.difference.value:+.3f}" in told
        assert ("the task is style" in told) == learned.is_style
        assert "Wrong sign" not in told


def test_long_texts_are_cut_and_escaped(tmp_path: Path) -> None:
    triples = some()
    long = tuple(f"<script>alert(1)</script>{'word ' * 300}" for _ in triples.prompt)
    from dataclasses import replace

    text = report({"contrast": replace(triples, prompt=long)}, path=tmp_path / "page.html").path.read_text(
        encoding="utf-8"
    )
    assert "<script>alert(1)" not in text
    assert "word " * 100 not in text
