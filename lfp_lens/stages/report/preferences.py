"""Sections of a run on preference pairs: rewrites in place of words, a task in place of a lexicon."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lfp_lens.results.contrast import MEMBERS, PreferenceTriples
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.stages.report.prose import PREFERENCE_WORDS
from lfp_lens.view import page
from lfp_lens.view.page import Section, Tile
from lfp_lens.view.phrases import interval, signed

SHOWN_TRIPLES, SHOWN_FEATURES, CUT = 20, 20, 200
PCA_CAPTION = "The paper's Figure 5: the probe's inputs on their first two components, by label and by length."


def contrast(triples: PreferenceTriples, results: Mapping[str, Any]) -> Section:
    """Show what was rewritten, by whom, and why the rest was not kept."""
    shown = triples.to_frame().head(SHOWN_TRIPLES)[["prompt", *MEMBERS]]
    shown = shown.map(lambda text: text if len(text) <= CUT else f"{text[:CUT]} …")
    facts = {
        "triples kept": f"{len(triples):,} from {triples.n_items:,} pairs",
        "task, rewriter": f"{triples.task}, {triples.rewriter}{' (poles swapped)' if triples.is_swapped else ''}",
        "the grader agrees with the data's preference": str(triples.grader_agreement()),
        "pairs rejected": f"{sum(triples.rejected.values()):,} for {len(triples.rejected)} reasons",
    }
    words = PREFERENCE_WORDS["contrast"]
    figure = (triples.plot(), words.caption)
    title = f"The first {len(shown)} triples"
    return Section("contrast", words.title, words.measures, words.limits, facts, [figure], [page.table(shown, title)])


def probe(learned: LearnedPreference, results: Mapping[str, Any]) -> Section:
    """Show every classifier beside the probe, the verdict, and Table 3."""
    words = PREFERENCE_WORDS["probe"]
    facts = {
        "verdict": learned.verdict,
        "accuracy on tuned SAE features": str(learned.accuracy),
        "tuned minus base, the headline": str(learned.difference),
        "minus shuffled poles": str(learned.selectivity),
        "positive member has the higher implicit reward": str(learned.preferred),
        "items, prompt groups, folds": f"{len(learned)}, {len(set(learned.group))}, {learned.folds}",
    }
    fragments = [
        page.table(learned.grid_frame(), "Every classifier, on the same folds of prompts"),
        page.table(learned.top_features(SHOWN_FEATURES), "Features with the largest weights"),
        page.table(learned.table_3(), "Table 3 of the paper, beside ours"),
    ]
    made = Section(
        "probe", words.title, words.measures, words.limits, facts, [(learned.plot(), words.caption)], fragments
    )
    more = [(learned.plot_pca(by), PCA_CAPTION) for by in ("label", "length")]
    return replace(made, figures=[*made.figures, *more])


def tiles(learned: LearnedPreference) -> list[Tile]:
    """Give the headline numbers."""
    tone = "bad" if learned.is_style or not learned.is_found else "good"
    gap = learned.difference
    detail = f"accuracy on tuned less on base features, {interval(gap)} prompt groups, paired"
    return [
        Tile("Tuned minus base", signed(gap), detail, ""),
        Tile("What the probe shows", learned.task, learned.verdict, tone),
    ]
