"""The quick card: one organism of the tiny world and one null, tuned, measured blind and scored for real by one command."""

from pathlib import Path

import pytest

from lfp_lens.cli import main
from lfp_lens.organisms.scoring import find_organisms, score


@pytest.mark.timeout(1200)
def test_the_quick_card_finds_flipped_words_and_lists_none_on_the_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LFP_LENS_CACHE", str(tmp_path / "cache"))
    folder, store = str(tmp_path / "organisms"), str(tmp_path / "score")
    # Without the twins, which need two tunings more.
    assert main(["score", "--organisms", folder, "--store", store, "--no-shuffled"]) == 0
    printed = capsys.readouterr().out
    assert "Scorecard of 2 organisms; words listed at a false discovery rate of 10%" in printed
    card = score(folder, store=store)
    recipes = {one.recipe: one for one in card.scores}
    assert len(find_organisms(folder)) == 2 and not card.refused
    flip, clean = recipes["flip"], recipes["clean"]
    assert flip.tunings == clean.tunings == 3 and flip.n_planted == 10
    assert flip.auroc >= 0.95 and flip.auroc_tunings.min() >= 0.9
    assert flip.recall >= 0.7 and flip.false_share <= 0.1
    assert flip.gain is not None and flip.gain.low > 0, "it follows the given feedback, not the stated"
    assert clean.false == 0 and clean.tau_stated is not None and clean.tau_stated.low > 0.4
