"""Table 7: do the features fire where the feedback was strongly positive, and more so than features like them?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lfp_lens.core.errors import LensError
from lfp_lens.core.stats import Estimate
from lfp_lens.parts.activations import Encoded, tokens_of_span
from lfp_lens.parts.dictionaries import Dictionary
from lfp_lens.parts.teacher_forced import TeacherForced
from lfp_lens.parts.words import find_words
from lfp_lens.results.ablate_readings import EVERY, FLAGGED, MATCHED, FiringRates, Rate
from lfp_lens.results.probe import Learned
from lfp_lens.stages.ablate.changes import DRAWS

Sums = tuple[np.ndarray, np.ndarray]
"""Of each text: a sum over some of its rows, and how many rows those are."""
THRESHOLD = 3.0
"""The paper's "activation delta of more than 3", on the lexicon's scale."""
N_SETS = 20
PERCENTILES = (10, 90)


def word_values(learned: Any, lexicon: Mapping[str, float]) -> tuple[dict[str, float], float | None, str]:
    """Give word -> value, the value of every other word (None: such words are no rows), and where the values come from.

    A probe's predictions are on the lexicon's scale as it stores them (the 10th and 90th percentile of its training rows go
    to the lexicon's extremes); without a probe the measured values are put there in the same way. Raises `LensError` for
    something that `probe` did not give for words.
    """
    if learned is None:
        return dict(lexicon), 0.0, "the stated lexicon; words that it leaves out count 0"
    if not isinstance(learned, Learned):
        raise LensError(f"learned is what probe gave for words (Learned); {type(learned).__name__} given.")
    if np.isfinite(learned.rescaled).any():
        values, source = learned.rescaled, "held-out predictions of the probe, on the lexicon's scale"
    else:
        low, high = np.percentile(learned.measured, PERCENTILES)
        least, most = float(learned.stated.min()), float(learned.stated.max())
        values = np.clip(least + (learned.measured - low) / max(high - low, 1e-12) * (most - least), least, most)
        source = "measured values, their 10th and 90th percentile at the lexicon's extremes"
    return {word: float(value) for word, value in zip(learned.words, values) if np.isfinite(value)}, None, source


class Fired:
    """Which features fire at which content token of the untouched model's completions."""

    def __init__(self, forced: TeacherForced, dictionaries: Mapping[str, Dictionary]) -> None:
        lines, places = [], []
        for batch in forced.batches:
            line, place = batch.content(forced.begin).cpu().numpy().nonzero()
            lines.append(np.array(batch.rows)[line])
            places.append(place)
        self.text_N, self.place_N = np.concatenate(lines), np.concatenate(places)
        self.n_texts = len(forced.tokens)
        self.by_site = {
            site: (forced.features(one, most=len(self.text_N)) != 0).cpu().numpy() for site, one in dictionaries.items()
        }

    def any(self, chosen: Mapping[str, Sequence[int]]) -> bool:
        """Tell whether any of these features fires anywhere."""
        return any(self.by_site[site][:, list(indices)].any() for site, indices in chosen.items())

    def mean(self, sets: Sequence[Mapping[str, Sequence[int]]]) -> np.ndarray:
        """Give the share of features that fire at each token `[N]`, mean over several sets of features."""
        found = np.zeros(len(self.text_N))
        for chosen in sets:
            fires = [self.by_site[site][:, list(indices)] for site, indices in chosen.items()]
            found += np.concatenate(fires, axis=1).mean(1) / len(sets)
        return found


def firing_rates(
    fired: Fired, texts: Sequence[Encoded], chosen: Mapping[str, Sequence[int]],
    matched: Sequence[Mapping[str, Sequence[int]]], values: tuple[dict[str, float], float | None, str], *, seed: int,
) -> FiringRates:  # fmt: skip
    """Give how often flagged, all and matched features fire on strongly positive rows and on the others."""
    by_word, elsewhere, source = values
    worth_N = _worth(fired, texts, by_word, elsewhere)
    groups: dict[str, Sequence[Mapping[str, Sequence[int]]]] = {
        FLAGGED: [chosen], EVERY: [{site: range(fires.shape[1]) for site, fires in fired.by_site.items()}],
        MATCHED: matched[:N_SETS],
    }  # fmt: skip
    is_high, is_other = worth_N >= THRESHOLD, worth_N < THRESHOLD
    rates, sums = [], {}
    for group, sets in groups.items():
        if not sets or not any(sets[0].values()):
            rates.append(Rate(group, None, None, None))
            continue
        fires_N = fired.mean(sets)
        high, other = (_by_text(fired, rows, fires_N) for rows in (is_high, is_other))
        sums[group] = (high, other)
        rates.append(Rate(group, _rate(high, seed=seed), _rate(other, seed=seed), _ratio(high, other, seed=seed)))
    beyond = None
    if FLAGGED in sums and MATCHED in sums:
        beyond = _ratio(*sums[FLAGGED], over=sums[MATCHED], seed=seed)
    return FiringRates(
        values=source, threshold=THRESHOLD, n_high=int(is_high.sum()), n_other=int(is_other.sum()),
        n_matched=len(groups[MATCHED]), rates=tuple(rates), beyond=beyond,
    )  # fmt: skip


def _worth(fired: Fired, texts: Sequence[Encoded], by_word: Mapping[str, float], elsewhere: float | None) -> np.ndarray:
    """Give the value of the word that each content token belongs to `[N]`; NaN at tokens that are no row."""
    worth = {}
    for spot in find_words([text.text for text in texts]):
        value = by_word.get(spot.word, elsewhere)
        if value is not None:
            for at in tokens_of_span(texts[spot.text], (spot.start, spot.end)):
                worth[spot.text, at] = value
    return np.array([worth.get(key, np.nan) for key in zip(fired.text_N.tolist(), fired.place_N.tolist())])


def _by_text(fired: Fired, rows: np.ndarray, fires_N: np.ndarray) -> Sums:
    """Give the sum of firing rates over some rows of each text, and how many rows there are."""
    lines = fired.text_N[rows]
    return np.bincount(lines, fires_N[rows], fired.n_texts), np.bincount(lines, minlength=fired.n_texts).astype(float)


def _rate(sums: Sums, *, seed: int) -> Estimate | None:
    """Give a mean firing rate over rows; None where there are none."""
    return _estimate(_quotient(_counts(len(sums[0]), seed), sums), len(sums[0]))


def _ratio(high: Sums, other: Sums, *, over: tuple[Sums, Sums] | None = None, seed: int) -> Estimate | None:
    """Give the rate on strongly positive rows over that on the others; None where either is empty."""
    counts = _counts(len(high[0]), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = _quotient(counts, high) / _quotient(counts, other)
        if over is not None:
            found = found / (_quotient(counts, over[0]) / _quotient(counts, over[1]))
    return _estimate(found, len(high[0]))


def _counts(n: int, seed: int) -> np.ndarray:
    """Give how often each text counts, `[draws, texts]`; the first row is the data as they are."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
    return np.concatenate([np.ones((1, n)), drawn])


def _quotient(counts: np.ndarray, sums: Sums) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts @ sums[0]) / (counts @ sums[1])


def _estimate(found: np.ndarray, n: int) -> Estimate | None:
    """Make an estimate of the data's value and those of the draws that have one."""
    if not np.isfinite(found[0]):
        return None
    low, high = np.quantile(found[1:][np.isfinite(found[1:])], (0.025, 0.975))
    return Estimate(float(found[0]), float(low), float(high), n)
