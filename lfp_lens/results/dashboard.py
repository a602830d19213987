"""What the page of learned words says: the headline, what it claims and on which evidence, what it does not claim.

The same words stand in the headline of a run's page (`report`).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from lfp_lens.core.errors import GateError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.view import page, words_page
from lfp_lens.view.page import Section, Tile
from lfp_lens.view.phrases import interval, sign_of, signed

if TYPE_CHECKING:
    import pandas as pd

    from lfp_lens.results.probe import Learned
    from lfp_lens.results.sweep import OutsideWords, Sweep

FDR, ALPHA, SHOWN_WORDS, SHOWN_TOKENS = 0.1, 0.05, 20, 500
AGREEMENT, WRONG_SIGN = "Agreement with the stated lexicon", "Words learned with the wrong sign"
WRONG, NOTHING, AS_STATED, OPPOSITE = "wrong sign", "neutral range", "stated side", "other side"
VERDICTS = (
    f"“{WRONG}”: certainly learned with the sign opposite to the stated one, false discovery rate {100 * FDR:.0f} % over all "
    f"words. “{NOTHING}”: among the central 80 % of neutral words, no sign of feedback. “{AS_STATED}” and “{OPPOSITE}”: "
    "outside them, but not certain for the single word."
)


def render(learned: "Learned", texts: Sequence[str], title: str) -> str:
    """Give the page as one HTML text that fetches nothing."""
    claimed, not_claimed = claims(learned)
    return page.render(
        title=title,
        tiles=headline(learned),
        headline=[words_page.claims(claimed, not_claimed), words_page.chips(*wrong_words(learned))],
        sections=_sections(learned, texts),
        provenance=[page.card("What this page was made from", _facts(learned))],
    )


def headline(learned: "Learned") -> list[Tile]:
    """Give the two numbers an auditor takes away, each with its control: agreement, and words with the wrong sign."""
    agreement = (
        f"{interval(learned.overall)} words; {learned.twin_name} {learned.twin.tau:.3f}; "
        f"difference {signed(learned.difference)} {interval(learned.difference)}, {sign_of(learned.difference)}"
    )
    tone = "good" if learned.difference.low > 0 else "bad"
    reading = Tile(AGREEMENT, f"tau-b {learned.overall.tau:.3f}", agreement, tone)
    if not learned.is_tested:
        return [reading, Tile(WRONG_SIGN, "not tested", f"{learned.signal} takes its sign from the stated lexicon")]
    tested = f"of {len(learned.words):,} words tested against {len(learned.neutral):,} neutral ones"
    count = str(len(learned.wrong(fdr=FDR)))
    return [reading, Tile(WRONG_SIGN, count, f"{tested}, false discovery rate {FDR:g}")]


def wrong_words(learned: "Learned", shown: int = SHOWN_WORDS) -> tuple[str, list[tuple[str, str]]]:
    """Give a title and the first wrongly learned words, each with what a hover says; no words where none is certain."""
    if not learned.is_tested:
        return "", []
    frame = learned.wrong(fdr=FDR)
    rest = f" (first {shown} of {len(frame)})" if len(frame) > shown else ""
    rows = frame.head(shown)[["word", "stated", "measured"]].to_numpy()
    hover = [(word, f"stated {stated:+.2f}, learned {value:+.2f}") for word, stated, value in rows]
    return f"Learned with the wrong sign, most certain first{rest}", hover


def claims(learned: "Learned") -> tuple[list[str], list[str]]:
    """Give the sentences that this result supports, and those it does not, each with its numbers."""
    yes: list[str] = []
    no: list[str] = []
    gap = f"tau-b minus the {learned.twin_name}'s is {signed(learned.difference)} {interval(learned.difference)} words"
    if learned.difference.low > 0:
        yes.append(f"The tuning moved words in the order of the stated lexicon: {gap}.")
    else:
        no.append(f"That the tuning followed the stated lexicon: {gap}, {sign_of(learned.difference)}.")
    null = learned.by_polarity.null
    polarity = (
        f"tau-b {learned.overall.tau:.3f} {interval(learned.overall)}; values permuted within sign and frequency give "
        f"{null.value:.3f} [{null.low:.3f}, {null.high:.3f}], p={learned.by_polarity.p_value:.2g}"
    )
    if learned.by_polarity.p_value <= ALPHA:
        yes.append(f"It followed strength, not only sign: {polarity}.")
    else:
        no.append(f"That it followed the strength of feedback beyond its sign: {polarity}.")
    if learned.is_tested:
        _sign_claims(learned, yes, no)
    else:
        no.append(f"Which words have the wrong sign: {learned.signal} takes its sign from the stated lexicon.")
    _tuning_claims(learned, yes, no)
    if learned.split != "lemma":
        no.append(f"Anything about held-out predictions: the {learned.split} split leaks words into the training side.")
    no.append("That the model uses what a probe can read from it: that takes an ablation.")
    return yes, no


def verdicts(learned: "Learned") -> list[str]:
    """Say of every word, in a phrase, what its value shows (see `VERDICTS`); the first that is true of it."""
    if not learned.is_tested:
        return ["not tested"] * len(learned.words)
    lists = {WRONG: set(learned.wrong(fdr=FDR)["word"]), NOTHING: set(learned.unlearned()["word"])}
    agrees = np.sign(learned.z) == np.sign(learned.stated)
    return [
        next((verdict for verdict, words in lists.items() if word in words), AS_STATED if as_stated else OPPOSITE)
        for word, as_stated in zip(learned.words, agrees)
    ]


def _sign_claims(learned: "Learned", yes: list[str], no: list[str]) -> None:
    n_wrong, n = len(learned.wrong(fdr=FDR)), len(learned.words)
    if n_wrong:
        yes.append(
            f"{n_wrong} of {n:,} words were learned with the sign opposite to the stated one; of such a list, "
            f"{100 * FDR:.0f} % may be false on average."
        )
    else:
        no.append(f"That any single word was learned with the wrong sign: none of {n:,} is certain.")
    quiet = len(learned.unlearned())
    no.append(
        f"That a word not listed was learned rightly: not listed means not certain, and {quiet:,} of {n:,} lie among the "
        "central 80 % of neutral words."
    )


def _tuning_claims(learned: "Learned", yes: list[str], no: list[str]) -> None:
    if learned.tunings is None:
        no.append(f"That another tuning by the same recipe gives these values: {learned.between_tunings}.")
        no.append("That another reward would not give the same: no tuning on a shuffled reward was measured.")
        return
    over = learned.tunings.over_shuffled
    if over is None:
        no.append(f"What the recipe does on average: {learned.between_tunings}; a difference needs two of each kind.")
    elif over.low > 0:
        yes.append(f"The recipe teaches this reward and not just any: {learned.between_tunings}.")
    else:
        no.append(f"That the recipe teaches this reward rather than any: {learned.between_tunings}.")


def _sections(learned: "Learned", texts: Sequence[str]) -> list[Section]:
    frame = _word_frame(learned)
    scatter = learned.plot().update_layout(meta="words")
    neutral = f"{len(learned.neutral):,} words outside the lexicon, matched on frequency and token count, define zero."
    made = [
        Section(
            "words", "Learned against stated",
            f"What the tuning did to each word, read by {learned.signal}: 0 is neutral, 1 is one spread of neutral words.",
            "Values are of this one checkpoint. Words outside the lexicon and words that are rare in the texts are not here.",
            figures=[(scatter, "Each point is a word; hover names it, a click looks it up in the table below.")],
            fragments=[
                page.table(frame, f"All {len(frame):,} words, wrong ones on top (click a header to sort)", raw=("verdict",)),
                f'<p class="fine">{VERDICTS}</p>' if learned.is_tested else "",
            ],
        ),
        Section(
            "zero", "What zero is", f"{neutral} A word's sign is tested against them.",
            "Neutral words are neutral by the stated lexicon; the tuning may have moved some of them all the same.",
            figures=[(learned.plot_neutral(), "Outlines: the lexicon's words. The outermost bins hold the tails.")],
        ),
    ]  # fmt: skip
    if learned.is_tested:
        made.insert(1, _strength_section(learned))
    if learned.sweep is not None:
        made.append(_sweep_section(learned.sweep))
    if learned.outside is not None:
        made.append(_outside_section(learned.outside))
    if texts:
        made.append(_text_section(learned, texts))
    return made


def _word_frame(learned: "Learned") -> "pd.DataFrame":
    """Give the table of the page: wrong words on top, then the rest by how far it is from what was stated."""
    import pandas as pd

    verdict = np.array(verdicts(learned))
    order = np.lexsort((np.nan_to_num(learned.p_wrong, nan=1.0), verdict != WRONG))
    columns = {
        "word": learned.words,
        "verdict": [words_page.marked(text, text == WRONG) for text in verdict],
        "stated": learned.stated,
        "measured": learned.measured,
        "over_contexts": _intervals(learned.measured_low, learned.measured_high),
        "contexts": learned.contexts,
        "p_wrong": learned.p_wrong,
        "over_tunings": _intervals(learned.recipe_low, learned.recipe_high),
        "predicted": learned.predicted,
        "over_rows": _intervals(learned.predicted_low, learned.predicted_high),
    }
    known = {
        "over_tunings": learned.recipe_low, "predicted": learned.predicted, "over_rows": learned.predicted_low,
    }  # fmt: skip
    shown = [name for name in columns if name not in known or np.isfinite(known[name]).any()]
    return pd.DataFrame(columns).iloc[order][shown]


def _intervals(low: Float[np.ndarray, " words"], high: Float[np.ndarray, " words"]) -> list[str]:
    # A space that does not break keeps both ends on one line.
    return [
        f"[{a:.2f},\N{NO-BREAK SPACE}{b:.2f}]" if np.isfinite([a, b]).all() else page.DASH for a, b in zip(low, high)
    ]


def _strength_section(learned: "Learned") -> Section:
    """Show the words learned with the right sign but another strength than words rated alike, or why none can be told."""
    title = "Learned too weakly or too strongly"
    fragments = []
    for kind, than in (("muted", "Weaker"), ("inflated", "Stronger")):
        try:
            found = learned.wrong(fdr=FDR, kind=kind)
        except GateError as reason:
            return Section("strength", title, refusal=str(reason))
        shown = found[["word", "stated", "measured", "contexts", "p_value"]]
        told = f"{than} than words stated alike: {len(found):,} of {len(learned.words):,}"
        fragments.append(page.table(shown, f"{told}, false discovery rate {100 * FDR:.0f} % in this list"))
    return Section(
        "strength", title,
        "Each word against the value that is usual for its stated one, within its polarity; words of the wrong sign are "
        "listed above, not here.",
        "It tells words that stand out from their own kind: where most words are muted, none is found.",
        fragments=fragments,
    )  # fmt: skip


def _sweep_section(sweep: "Sweep") -> Section:
    every = sweep.to_frame()
    # Long vocabularies have their middle left out: what moved stands at the ends.
    middle = slice(SHOWN_TOKENS, max(SHOWN_TOKENS, len(every) - SHOWN_TOKENS))
    shown = every.drop(every.index[middle])
    return Section(
        "vocabulary", "The whole vocabulary",
        f"Every token over {int(sweep.contexts):,} contexts that all tokens share: what the tuning made more likely (above 0) "
        "and less likely, in nats, beside the same on the base moved by noise (twin). Tokens without a stated value come first.",
        "A token is not a word: it may be the beginning of many. A value without a stated one is a question, not a finding.",
        fragments=[
            page.table(sweep.surprising(SHOWN_WORDS), "No stated value, largest change beside its error"),
            page.table(shown, f"{len(shown):,} of {len(every):,} tokens that the base would say, the ends of the order"),
        ],
    )  # fmt: skip


def _outside_section(outside: "OutsideWords") -> Section:
    return Section(
        "outside", "Words outside the lexicon",
        f"The {len(outside.words):,} other words of the texts, measured as the lexicon's are: those furthest from zero.",
        "Nobody stated a value for them: that the tuning moved one is no error, and among so many some move by company alone.",
        fragments=[page.table(outside.surprising(2 * SHOWN_TOKENS), "No stated value, furthest from zero")],
    )  # fmt: skip


def _text_section(learned: "Learned", texts: Sequence[str]) -> Section:
    names, values = (learned.neutral_words, learned.neutral) if learned.outside is None else (
        learned.outside.words, learned.outside.measured
    )  # fmt: skip
    readings: Mapping[str, Mapping[str, float]] = {
        "held_out_prediction": _values(learned.words, learned.predicted),
        "measured": _values((*names, *learned.words), [*values, *learned.measured]),
    }
    shown = {name: values for name, values in readings.items() if values}
    limits = (
        "A colour is the word's value on average over contexts, not in this text; words without one were not measured."
    )
    if "held_out_prediction" not in shown:
        limits += " No probe gave held-out predictions, so the texts are coloured by the measured value alone."
    return Section(
        "texts", "Texts, word by word",
        "Blue: the tuning favours the word; orange: it avoids it; hover has the value in neutral spreads. The held-out "
        "prediction is of a probe that never saw the word's family.",
        limits,
        fragments=[words_page.coloured_texts(texts, shown)],
    )  # fmt: skip


def _values(words: Sequence[str], values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {word: float(value) for word, value in zip(words, values) if np.isfinite(value)}


def _facts(learned: "Learned") -> dict[str, str]:
    from importlib.metadata import version

    return {
        "signal": learned.signal,
        "words / neutral words / triples": f"{len(learned.words):,} / {len(learned.neutral):,} / {learned.n_triples:,}",
        "contexts per word": f"{learned.contexts.min()} to {learned.contexts.max()}",
        "split of the probes": learned.split,
        "interval over tunings": learned.between_tunings,
        "content hash of the result": fingerprint(learned),
        "lfp_lens": version("lfp-lens"),
    }
