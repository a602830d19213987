"""One section per verb: what it measures, what it does not show, the numbers, the figure, the tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.core.stats import Estimate
from lfp_lens.results import Ablation, Divergence, Effects, Labels, Learned, SAESet, Triples, Tuning, published
from lfp_lens.results.contrast import PreferenceTriples
from lfp_lens.results.dashboard import FDR
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.stages.report import preferences
from lfp_lens.stages.report.headline import among_random, by_mode
from lfp_lens.stages.report.prose import WORDS
from lfp_lens.stages.report.tables import (
    agreements,
    answer_key,
    examples,
    mean_kl,
    paper_tables,
    reliability,
    scores,
    seed_facts,
)
from lfp_lens.view import layers, page
from lfp_lens.view.page import Section
from lfp_lens.view.phrases import sign_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN_TRIPLES, SHOWN_EFFECTS, SHOWN_LABELS, SHOWN_TOKENS, CONTEXT = 50, 100, 20, 50, 70
WORD_COLUMNS = [
    "word",
    "stated",
    "measured",
    "measured_low",
    "measured_high",
    "predicted",
    "p_wrong",
    "contexts",
]
UNTESTED = "Not tested: this signal takes its sign from the stated lexicon"
MORE_COLUMNS = ["raw", "tokens", "log_frequency", "lemma"]
SURPRISING = (
    "The whole vocabulary: tokens without a stated value, by change beside its error (nats; twin: base moved by noise)"
)
OUTSIDE = "Words outside the lexicon that moved furthest from zero"
ZERO_CAPTION = (
    "Words outside the lexicon define zero; outlines: the lexicon's words. The outermost bins hold the tails."
)
JOINT_TITLE = "Features removed together: the share that goes, beside random sets"
JOINT_CAPTION = "Each set is screened with the smaller ones removed, and measured on other texts. Grey: random sets."
DOSE_CAPTION = "Teacher-forced: the features times a factor. A straight line through 1 is a linear read-out."
CURVES_CAPTION = (
    "The most that growing sets of features remove within a KL; grey: floors, chosen by the same screen. Only a line above every "
    "floor shows that features carry the gain."
)
FREQUENCY_CAPTION = (
    "The paper's Figure 4, held-out predictions: does a word that occurs more often get a smaller error?"
)


def finetune(tuning: Tuning, results: Mapping[str, Any]) -> Section:
    """Show whether the tuning learned anything."""
    import pandas as pd

    samples = pd.DataFrame(tuning.samples, columns=["prompt", "base", "tuned"])
    settings = pd.DataFrame({"parameter": list(tuning.parameters), "value": map(str, tuning.parameters.values())})
    reward = ", ".join(f"{name} {value}" for name, value in tuning.reward.items())
    facts = tuning.facts() | {"method and reward": f"{tuning.method}; {reward or 'no reward'}"}
    fragments = [page.table(samples, "Completions of the same prompts"), page.table(settings, "Settings")]
    return _section("finetune", facts, tuning.plot(), fragments)


def diverge(divergence: Divergence, results: Mapping[str, Any]) -> Section:
    """Show Figure 7 and its companions."""
    k = min(5, len(divergence.sites))
    facts = {
        "furthest sites, published measure": ", ".join(divergence.top(k)),
        **seed_facts(divergence),
    }
    tables = [page.table(divergence.to_frame(), "Every layer")]
    tables += [page.table(null.to_frame(), f"The replicate {null.name}, by measure") for null in divergence.seed_nulls]
    if divergence.kl_by_position is None or divergence.tokens_by_position is None:
        return _section("diverge", facts | {"n": "weights only: no text was read"}, divergence.plot(), tables)
    facts |= {
        "furthest sites, activations": ", ".join(divergence.top(k, by="activation_relative")),
        "KL of the next token": mean_kl(divergence),
        "n": f"{divergence.n_texts:,} held-out texts, {divergence.n_tokens:,} tokens",
    }
    made = _section("diverge", facts, divergence.plot(), tables)
    positions = layers.kl_by_position(divergence.kl_by_position, divergence.tokens_by_position)
    return replace(made, figures=[*made.figures, (positions, "Mean KL(tuned || base) of the next token.")])


def train_sae(saes: SAESet, results: Mapping[str, Any]) -> Section:
    """Show the quality of every SAE beside its floors, and who found whose features again beside the null."""
    quality = saes.to_frame()
    quality.insert(3, "fails", quality.pop("fails"))
    facts = {
        "SAEs that pass every gate": f"{sum(not sae.failures for sae in saes.saes)} of {len(saes.saes)}",
        "sites": ", ".join(saes.sites),
        "n": f"{saes.saes[0].n_heldout_tokens:,} held-out tokens" if saes.saes else "no SAE",
    }
    fragments = [
        page.table(quality, "Quality"),
        page.table(saes.matches_frame(), "Features found again: by the larger SAE, another seed, the other model"),
    ]
    return _section("train_sae", facts, saes.plot(), fragments)


def contrast(triples: Triples, results: Mapping[str, Any]) -> Section:
    """Show what was kept and why the rest was not."""
    frame = triples.to_frame().head(SHOWN_TRIPLES)
    texts = [
        f"{left[-CONTEXT:]} [ ] {right[:CONTEXT]}".strip() for left, right in zip(frame["prefix"], frame["suffix"])
    ]
    shown = frame[["part_of_speech", "positive", "neutral", "negative"]].assign(text=texts)
    facts = {
        "triples kept": f"{len(triples):,} from {triples.n_texts:,} texts",
        "candidates rejected": f"{sum(triples.rejected.values()):,} for {len(triples.rejected)} reasons",
        "words used": f"{len(triples.lexicon):,}",
    }
    title = f"The first {len(shown)} triples; [ ] is the slot"
    return _section("contrast", facts, triples.plot(), [page.table(shown, title)])


def probe(learned: Learned, results: Mapping[str, Any]) -> Section:
    """Show the learned value of every word, its agreement with the stated lexicon and every control."""
    facts = {
        "agreement with the stated lexicon": str(learned.overall),
        f"{learned.twin_name} (the null)": str(learned.twin),
        "difference, the headline": f"{learned.difference}; {sign_of(learned.difference)}",
        "balanced sign accuracy": f"{learned.sign} (chance 0.5)",
        "interval over tunings": learned.between_tunings,
        "split": learned.split + ("" if learned.split == "lemma" else ": leaks words, no evidence"),
        "readings": learned.verdict,
        "no sign of feedback": _unlearned(learned),
    }
    words = learned.to_frame()[WORD_COLUMNS + MORE_COLUMNS]
    wrong = learned.wrong(fdr=FDR)[WORD_COLUMNS] if learned.is_tested else words.head(0)
    wrong_title = f"Learned with the wrong sign (false discovery rate {FDR:g})" if learned.is_tested else UNTESTED
    grid_title = "Probes: what they read, and how their predictions on words they never saw agree"
    fragments = [
        page.table(agreements(learned), "Agreement with the stated lexicon, and every control"),
        page.table(wrong, wrong_title),
        *answer_key(learned, results),
        page.table(words, f"All {len(words):,} words (click a header to sort)"),
        page.table(learned.grid_frame(), grid_title),
        *(() if learned.sweep is None else (page.table(learned.sweep.surprising(SHOWN_TOKENS), SURPRISING),)),
        *(() if learned.outside is None else (page.table(learned.outside.surprising(SHOWN_TOKENS), OUTSIDE),)),
        *paper_tables(learned),
    ]
    made = _section("probe", facts, learned.plot(), fragments, signal=learned.signal)
    more = [(learned.plot_neutral(), ZERO_CAPTION), (learned.plot_frequency_error(), FREQUENCY_CAPTION)]
    return replace(made, figures=[*made.figures, *more])


def _unlearned(learned: Learned) -> str:
    if not learned.is_tested:
        return UNTESTED
    return f"{len(learned.unlearned())} of {len(learned.words)} words, among the central 80 % of neutral words"


def attribute(effects: Effects, results: Mapping[str, Any]) -> Section:
    """Show the screened and the exact effect of the features, alone and together."""
    frame = effects.to_frame()
    confirmed = frame[np.isfinite(frame["exact"])]
    shown = confirmed.head(SHOWN_EFFECTS)
    facts = {
        "screened / confirmed": f"{len(frame):,} / {len(confirmed):,} features",
        "Spearman of screen and exact, random features": str(effects.rank_correlation),
        "the same, both on the same texts": str(effects.agreement),
        "n": f"{effects.n_texts:,} {'pairs' if effects.per == 'pair' else 'texts'}, {effects.n_tokens:,} tokens",
        **_skipped(effects.skipped),
    }
    fragments = [page.table(shown, f"The {len(shown)} strongest of the confirmed effects")]
    joint = effects.joint
    if joint is None:
        return _section("attribute", facts, effects.plot(), fragments, scalar=effects.scalar, per=effects.per)
    facts[f"{joint.of} that features carry together, per {effects.per}"] = f"{joint.whole}; {sign_of(joint.whole)}"
    fragments.append(page.table(joint.to_frame(), JOINT_TITLE))
    made = _section("attribute", facts, effects.plot(), fragments, scalar=effects.scalar, per=effects.per)
    return replace(made, figures=[*made.figures, (joint.plot(), JOINT_CAPTION)])


def explain(labels: Labels, results: Mapping[str, Any]) -> Section:
    """Show descriptions, their scores and the texts behind them."""
    frame = labels.to_frame()
    own = labels.scores[0].own if labels.scores else np.zeros(len(frame))
    order = np.lexsort((-np.nan_to_num(own), ~labels.is_relevant))
    facts = {
        "related to the task": f"{int(labels.is_relevant.sum())} of {labels.status.count('labelled')} features ({labels.task})",
        "labels of relevance": reliability(labels),
        **scores(labels),
        "labeller / choice of features": f"{labels.labeller} / {labels.select}",
        "never firing / without a usable answer": f"{labels.status.count('dead')} / {labels.status.count('unanswered')}",
        "asked and paid": labels.bill.told(),
        **_skipped(labels.skipped),
    }
    texts = examples(labels, order[:SHOWN_LABELS])
    fragments = [
        page.table(texts, "Texts where the features fire (related first)", raw=("texts",)),
        page.table(frame.iloc[order], "All descriptions"),
    ]
    return _section("explain", facts, labels.plot(), fragments)


def ablate(ablation: Ablation, results: Mapping[str, Any]) -> Section:
    """Show the effect among random controls, under every mode, beside floors at equal KL, and Tables 6 and 7."""
    import pandas as pd

    samples = pd.DataFrame(ablation.samples, columns=["prompt", "before", "after"])
    valence = ablation.valence_difference
    facts = {
        "features / mode": f"{len(ablation.features)} / {ablation.mode}",
        f"reward ({ablation.reward}), before": str(ablation.before),
        "after": str(ablation.after),
        "difference, paired by prompt": f"{ablation.difference}; {sign_of(ablation.difference)}",
        "expected valence, difference": f"{valence}; {sign_of(valence)}",
        "zero, mean and resample together": by_mode(ablation),
        "percentile among random sets": among_random(ablation),
        "reconstruction alone": str(ablation.reconstruction_difference),
        "same features in the base": _or_why(ablation.base_difference),
        "over the same features in the base": _or_why(ablation.over_base),
        "share of the reward gain removed": _or_why(ablation.gain_share),
        "share of the gain restored in the base": _or_why(ablation.restored),
        "carried by features": ablation.verdict,
        "KL of the ablation": f"{ablation.kl_nats:.4f} nats per token",
        "perplexity, before / after": f"{ablation.perplexity_before:.1f} / {ablation.perplexity_after:.1f}",
        "distinct bigrams, before / after": f"{ablation.distinct2_before:.2f} / {ablation.distinct2_after:.2f}",
        **{f"note {row}": note for row, note in enumerate(ablation.notes, start=1)},
    }
    curves = ablation.curves
    fragments = [
        page.table(
            ablation.readings_frame(), "Teacher-forced: the features under every mode, the controls, the reverse"
        ),
        *([] if curves is None else [page.table(curves.to_frame(), "Share of the gain at equal KL, floors beside")]),
        page.table(ablation.table6(), f"Table 6: the reward before and after. {published.ABLATION_TITLE}"),
        page.table(ablation.table7(), "Table 7: firing rates in percent on rows of value 3 or more, and on the others"),
        page.table(ablation.to_frame(), "Every number"),
        page.table(samples, "Completions of the same prompts and sampling seeds"),
    ]
    made = _section("ablate", facts, ablation.plot(), fragments)
    more = [(ablation.plot_dose(), DOSE_CAPTION)]
    if curves is not None:
        more += [(curves.plot(mode), CURVES_CAPTION) for mode in ("zero", "mean")]
    return replace(made, figures=[*made.figures, *more])


BUILDERS: dict[str, dict[type, Callable[[Any, Mapping[str, Any]], Section]]] = {
    "finetune": {Tuning: finetune},
    "diverge": {Divergence: diverge},
    "train_sae": {SAESet: train_sae},
    "contrast": {Triples: contrast, PreferenceTriples: preferences.contrast},
    "probe": {Learned: probe, LearnedPreference: preferences.probe},
    "attribute": {Effects: attribute},
    "explain": {Labels: explain},
    "ablate": {Ablation: ablate},
}
"""Verb -> type of its result -> what makes its section."""


def _section(
    verb: str, facts: Mapping[str, str], figure: "go.Figure", fragments: Sequence[str], **names: str
) -> Section:
    """Put the prose of a verb around its numbers; `names` fill the gaps of the prose."""
    words = WORDS[verb]
    measures = words.measures.format(**names)
    return Section(verb, words.title, measures, words.limits, facts, [(figure, words.caption)], fragments)


def _skipped(skipped: Mapping[str, str]) -> dict[str, str]:
    return {f"left out: {site}": why for site, why in skipped.items()}


def _or_why(estimate: Estimate | None) -> str:
    return "not measured (see the notes)" if estimate is None else str(estimate)
