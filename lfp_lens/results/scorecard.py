"""What `score` gives: how well the tool, blind, named what was planted, and where it goes blind."""

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.records import record
from lfp_lens.results import score_tables, score_told
from lfp_lens.results.score import PlantedWords, Score
from lfp_lens.results.score_tables import Reach
from lfp_lens.view import page, score_plots

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

NOWHERE = "Nowhere that these organisms show."
SHOWN_WORDS = 200
"""Missed words on the card in Jupyter; `words_frame` has all."""


@record
class Scorecard:
    """How often the tool, blind, names what was planted, and how often it names what was not.

    Only evidence is counted: an organism whose tuning collapsed or learned nothing says nothing about the tool. What a
    scorecard does not show: how the tool does on other edits, bases or methods than these, and on feedback that went wrong
    in ways nobody planted. AUROC ranks the words that could have been edited among themselves, not all words.
    """

    scores: tuple[Score, ...]
    """One per organism and reading."""
    words: PlantedWords
    """The planted words of all of them."""
    fdr: float
    """The false discovery rate of every list of words."""

    def __post_init__(self) -> None:
        times = Counter((one.organism, one.signal, one.input) for one in self.scores)
        for (name, signal, source), often in times.items():
            if often > 1:
                raise LensError(
                    f"The organism {name!r} is scored {often} times by {signal} ({source}): give every organism a name of its "
                    "own."
                )
        strange = set(self.words.organism) - set(self.organisms)
        assert not strange, f"planted words of organisms without a score: {sorted(strange)}"

    @property
    def organisms(self) -> tuple[str, ...]:
        """Names of all organisms, each once."""
        return tuple(dict.fromkeys(one.organism for one in self.scores))

    @property
    def refused(self) -> dict[str, str]:
        """Organism -> why it is no evidence."""
        return {one.organism: one.refused for one in self.scores if one.refused}

    @property
    def reach(self) -> tuple[Reach, ...]:
        """For every base, method, recipe and kind of planted words: from what frequency and dose at least half are found."""
        return score_tables.reach(self._counted_words())

    @property
    def blind_spots(self) -> tuple[str, ...]:
        """Say where the tool goes blind, a sentence each, from these numbers alone; empty where nothing shows it."""
        return score_told.blind_spots(self.scores, self._counted_words(), self.fdr)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per organism and reading; estimates have a column for either end of their interval.

        `auroc_tuning` is the mean of `auroc_tunings`.
        """
        import pandas as pd

        return pd.DataFrame([score_tables.spread(one) for one in self.scores])

    def words_frame(self) -> "pd.DataFrame":
        """Give one row per planted word; `is_evidence` is False where its organism was refused."""
        import pandas as pd

        columns = {field.name: getattr(self.words, field.name) for field in dataclasses.fields(self.words)}
        return pd.DataFrame(columns | {"is_evidence": ~np.isin(self.words.organism, list(self.refused))})

    def _counted_words(self) -> "pd.DataFrame":
        frame = self.words_frame()
        return frame[frame["is_evidence"]].reset_index(drop=True)

    def summary(self, *, draws: int = 2000, seed: int = 0) -> "pd.DataFrame":
        """Give one row per base, method, recipe, dose and reading, over the organisms that count.

        Columns beside those six: `is_null`; `organisms`, those `refused`, and `tunings`, how many were read singly; `auroc`, of
        all tunings of an organism together, `auroc_tuning`, of single ones, `false_share` and `gain`, means over organisms with
        a 95 % interval over them (`score_tables.two_way_mean`), NaN of one value and without width where all agree; `recall` and
        `precision` of all words of tested readings pooled, `planted` words being those that `recall` is a share of, or all
        where no reading is tested; means of `unsigned`, `on_clean`, `tau_twin`, `share` and `percentile`; the median `rank` of
        the planted token. The interval of `recall` is, from two tested organisms on, that of the mean of their recalls; of one
        it is Clopper and Pearson's, which takes words as independent.
        """
        return score_tables.summary(self.scores, draws=draws, seed=seed)

    def nulls(self) -> "pd.DataFrame":
        """Give one row per recipe that plants nothing, base, method and tested reading: how often words are listed all the same.

        `null_of` tells what should find nothing: `wrong`, as in a null recipe of one's own, or tau with the stated lexicon, or
        both. On a `shuffled` reward words are truly learned wrongly, so that only its tau is a null. `share` of the `runs` list
        any word, with its Clopper-Pearson 95 % interval; at a false discovery rate of 10 % one run in ten may. `off_zero`
        counts runs whose interval of tau leaves out zero. Refused runs are counted apart.
        """
        return score_tables.nulls(self.scores)

    def recall_by(self, name: str = "occurrences", *, bins: int = 4) -> "pd.DataFrame":
        """Give the share of planted words that were found by their frequency, dose or stated value.

        Args:
            name: `occurrences` or `stated`, cut into `bins` parts of about equal size, or `dose`, each dose by itself.
            bins: how many parts.

        Returns:
            Columns `base`, `method`, `recipe`, `kind`, each of which is divided by itself, `from`, `middle`, `to` (least, median
            and largest value of the part), `n`, `found`, `recall` and its Clopper-Pearson 95 % interval `low`, `high`, which
            takes words as independent.

        Raises:
            LensError: for another name or fewer than one part.
        """
        return score_tables.recall_by(self._counted_words(), name, bins)

    def plot(self) -> "go.Figure":
        """Draw recall against occurrences, at the largest dose of each line, and against dose."""
        words = self._counted_words()
        by_occurrences = score_tables.recall_by(score_tables.at_largest_dose(words), "occurrences")
        return score_plots.recall(by_occurrences, score_tables.recall_by(words, "dose"), self.fdr)

    def _title(self) -> str:
        noun = "organism" if len(self.organisms) == 1 else "organisms"
        refused = f", {len(self.refused)} of them no evidence" if self.refused else ""
        return f"Scorecard of {len(self.organisms)} {noun}{refused}; words listed at a false discovery rate of {self.fdr:.0%}"

    def __str__(self) -> str:
        parts = [self._title(), _printed(score_told.told(self.summary()))]
        nulls = self.nulls()
        if len(nulls):
            parts.append(f"Nothing planted\n{_printed(score_told.told_nulls(nulls))}")
        spots = self.blind_spots or (NOWHERE,)
        return "\n\n".join([*parts, "\n".join(["Where the tool goes blind", *(f"- {spot}" for spot in spots)])])

    def _repr_html_(self) -> str:
        import pandas as pd

        words = self._counted_words()
        missed = words[~words["found"]].sort_values("occurrences", ascending=False, kind="stable")
        shown = missed.drop(columns=["found", "is_evidence"]).head(SHOWN_WORDS)
        return "".join([
            page.table(score_told.told(self.summary()), self._title()),
            page.table(score_told.told_nulls(self.nulls()), "Nothing planted: words listed all the same"),
            page.table(pd.DataFrame({"where the tool goes blind": self.blind_spots or (NOWHERE,)})),
            page.table(shown, f"Planted words that were missed: {len(missed)} of {len(words)}, the most frequent first"),
        ])  # fmt: skip


def _printed(frame: "pd.DataFrame") -> str:
    return frame.to_string(index=False) if len(frame) else "none"
