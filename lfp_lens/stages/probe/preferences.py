"""The logistic probe of preference tasks: positive against negative rewrites, and everything that might tell them apart.

Every classifier runs on the same folds of prompt groups, so that each pair of them can be compared group by group.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit
from tqdm import tqdm

from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.stats import Estimate, auc, mean_estimate
from lfp_lens.parts.cache import opened
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae, load_weights, random_twin
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.text_readings import (
    Continuation,
    continuation_embeddings,
    continuation_log_p,
    continuation_means,
    encode_continuations,
)
from lfp_lens.parts.twins import noise_twin
from lfp_lens.results.contrast import MEMBERS, PreferenceTriples, word_count
from lfp_lens.results.preference_probe import LearnedPreference, PreferenceCell
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.probe.logistic import HeldOut, by_group, cross_fit, folds_of, is_above, is_right

GATES = ("refuse", "warn")
ORIGINALS = ("chosen", "rejected")
COLUMNS = (*MEMBERS, *ORIGINALS)
MIN_GROUPS = 10
NOISE_TWINS = 5
"""One twin's implicit reward prefers one pole by chance, by more than its interval over prompts tells."""

Readings = dict[tuple[str, str], "np.ndarray | Sequence[str]"]
"""(side, input) -> one row of features per text, or the texts themselves for a bag of words."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Five texts per item: all positive members, then the neutral, the negative, the chosen and the rejected originals."""

    items: Int[np.ndarray, " items"]
    """Which triples they come from."""
    texts: Sequence[str]
    """The continuations alone."""
    tokens: Sequence[Continuation]
    """Each after its prompt."""
    group: np.ndarray
    """Prompt group of each text."""
    fold: Int[np.ndarray, " rows"]
    """Fold of each text."""

    def of(self, *columns: str) -> Int[np.ndarray, " rows"]:
        """Give the rows of these columns, one column after another."""
        n = len(self.items)
        return np.concatenate([np.arange(n) + n * COLUMNS.index(column) for column in columns])

    def table(self, values: np.ndarray) -> np.ndarray:
        """Give one value per row as one row per item and one column per kind of text."""
        return values.reshape(len(COLUMNS), -1).T


def probe_preferences(
    pair: Pair,
    saes: SAESet,
    triples: PreferenceTriples,
    *,
    folds: int = 5,
    max_tokens: int = 128,
    gate: str = "refuse",
    cache: Any = None,
    seed: int = 0,
) -> LearnedPreference:
    """Ask how well tuned features tell the positive from the negative rewrite, and what else tells them as well.

    Features are means over the continuation's tokens, after its prompt. Each probe is an L2-penalised logistic regression
    on other prompt groups; its penalty is chosen among the groups it is fitted on.

    Args:
        pair: base and tuned.
        saes: their dictionaries, of both sides.
        triples: rewrites by one hand at matched length.
        folds: of the cross-validation; a prompt group is in one.
        max_tokens: a prompt is read from its end, at most half of these tokens; a continuation from its beginning.
        gate: `refuse` leaves out sites whose SAE fails its gates on either side, and raises where none is left; `warn` reads
            all.
        cache: an `ActivationCache` of the whole texts with this `max_tokens`, or a folder, where one is made first; texts
            that it lacks, or that are cut otherwise here, are read from the models.
        seed: of folds, random dictionaries, the noise twin, shuffled poles and bootstraps.

    Returns:
        Every classifier with intervals over prompt groups, and a verdict. `difference`, tuned minus base, is the headline.

    Raises:
        GateError: if no site passes on both sides, one side has no SAEs, or there are fewer than 10 prompt groups.
        LensError: for SAEs or a cache of another pair, fewer prompt groups than folds, or readings that are not finite.

    Source: arXiv 2310.08164, 3.3 and Table 3, with the split by prompt, masked means, a penalty that is chosen, and the
    classifiers beside it, which the paper lacks.

    >>> learned = probe_preferences(pair, saes, triples); learned.verdict  # doctest: +SKIP
    """
    sites = _sites(pair, saes, gate)
    rows, dropped = _rows(pair, triples, folds=folds, max_tokens=max_tokens, seed=seed)
    prompts = [triples.prompt[at] for at in rows.items] * len(COLUMNS)
    whole = [prompt + text for prompt, text in zip(prompts, rows.texts)]
    held = opened(cache, pair, saes.sites, whole, max_tokens=max_tokens)
    with fast_matmul():
        readings = _readings(pair, saes, sites, rows, held, seed)
        noise = _noise(pair, rows, np.asarray(readings["base", "log_probability"])[:, 0], seed)
    readings["noise", "implicit_reward"] = noise[0][:, None]
    cells, features = _cells(rows, readings, seed)
    probability = rows.table(expit(features.score))
    reward = rows.table(np.asarray(readings["difference", "implicit_reward"])[:, 0])
    over = lambda values: mean_estimate(by_group(values, rows.group[: len(values)]), seed=seed)  # noqa: E731
    base = next(cell for cell in cells if (cell.side, cell.input) == ("base", "sae"))
    assert base.gap is not None
    n_features = [saes.one(site).n_features for site in sites]
    points, explained = _components(np.asarray(readings["tuned", "sae"]), rows)
    return LearnedPreference(
        task=triples.task, rewriter=triples.rewriter, is_swapped=triples.is_swapped, sites=sites, cells=cells,
        difference=base.gap, placed={name: over(probability[:, at]) for at, name in enumerate(COLUMNS)},
        preferred=over(is_above(reward[:, 0], reward[:, 2])),
        preferred_original=over(is_above(reward[:, 3], reward[:, 4])),
        preferred_noise=np.array([over(is_above(one[:, 0], one[:, 2])).value for one in map(rows.table, noise)]),
        preferred_original_noise=np.array([over(is_above(one[:, 3], one[:, 4])).value for one in map(rows.table, noise)]),
        probability=probability[:, :3], implicit_reward=reward[:, :3],
        words=rows.table(np.array([word_count(text) for text in rows.texts]))[:, :3],
        components=points, explained=explained, weights=features.weights,
        feature_site=np.repeat(np.arange(len(sites)), n_features),
        feature_index=np.concatenate([np.arange(n) for n in n_features]), source=triples.source[rows.items],
        group=tuple(triples.group[at] for at in rows.items), dropped=dropped,
        cut=sum(text.is_cut for text in rows.tokens), folds=folds,
    )  # fmt: skip


def _sites(pair: Pair, saes: SAESet, gate: str) -> tuple[str, ...]:
    """Give the sites to read, or refuse: an SAE that is worse on the base would win the comparison for the tuned model."""
    if saes.pair != pair.fingerprint:
        raise LensError("These SAEs were trained on another pair; train them on this one.")
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    lacking = sorted({"base", "tuned"} - {sae.side for sae in saes.saes})
    if lacking:
        raise GateError(
            f"A preference probe compares tuned with base; the SAEs of the {' and the '.join(lacking)} model were not trained."
        )
    if gate == "warn":
        return saes.sites
    on_base = saes.passing(side="base")
    both = tuple(site for site in saes.passing() if site in on_base)
    if not both:
        raise GateError(
            f"No site's SAEs pass their gates on both sides: on tuned {', '.join(saes.passing())}, on base "
            f"{', '.join(on_base)}. Train on more tokens, or pass gate='warn'."
        )
    return both


def _rows(
    pair: Pair, triples: PreferenceTriples, *, folds: int, max_tokens: int, seed: int
) -> tuple[Rows, dict[str, int]]:
    """Encode the five texts of every item; items with a text that has no token of its own are left out and counted."""
    originals = [_led(triples.positive, texts) for texts in (triples.original_chosen, triples.original_rejected)]
    columns = [*map(triples.continuations, MEMBERS), *originals]
    room = pair.room(max_tokens)
    found = [encode_continuations(pair.tokenizer, triples.prompt, texts, max_tokens=room) for texts in columns]
    kept = [row for row, five in enumerate(zip(*found)) if all(text.tokens for text in five)]
    dropped = Counter({"a text without tokens of its own": len(triples) - len(kept)})
    groups = [triples.group[row] for row in kept]
    if len(set(groups)) < MIN_GROUPS:
        raise GateError(
            f"The triples come from {len(set(groups))} prompt groups (of {len(set(triples.group))}) whose texts have tokens of "
            f"their own; {MIN_GROUPS} are needed. Give more preference pairs."
        )
    fold = folds_of(groups, folds, seed=seed)
    rows = Rows(
        np.array(kept), [texts[row] for texts in columns for row in kept], [texts[row] for texts in found for row in kept],
        np.array(groups * len(COLUMNS)), np.tile(fold, len(COLUMNS)),
    )  # fmt: skip
    return rows, dict(+dropped)


def _led(members: Sequence[str], texts: Sequence[str]) -> list[str]:
    """Give the originals with the white space that the members begin with: it would tell them from rewrites."""
    return [one[: len(one) - len(one.lstrip())] + text.lstrip() for one, text in zip(members, texts)]


def _readings(pair: Pair, saes: SAESet, sites: tuple[str, ...], rows: Rows, cache: Any, seed: int) -> Readings:
    """Read every text in every way: features of both sides, and what is cheaper than features."""
    found: Readings = {}
    log_p = {}
    for side in ("tuned", "base"):
        chosen = {site: saes.one(site, side=side) for site in sites}
        dictionaries = {
            "sae": {site: load_sae(sae, device=pair.device) for site, sae in chosen.items()},
            "random_sae": {
                site: load_weights(random_twin(sae.weights, seed=seed), device=pair.device) for site, sae in chosen.items()
            },
        }  # fmt: skip
        model = pair.hf(side)
        read = continuation_means(model, rows.tokens, sites, dictionaries, cache=cache, side=side)
        found |= {(side, name): read[name] for name in ("sae", "raw", "random_sae")}
        log_p[side] = continuation_log_p(model, rows.tokens)
        found[side, "log_probability"] = log_p[side][:, None]
    found["difference", "implicit_reward"] = (log_p["tuned"] - log_p["base"])[:, None]
    found["base", "embedding"] = continuation_embeddings(pair.base_hf, rows.tokens)
    found["none", "length"] = np.array([[word_count(text), len(text)] for text in rows.texts], float)
    found["none", "bag_of_words"] = rows.texts
    return found


def _noise(pair: Pair, rows: Rows, base_log_p: np.ndarray, seed: int) -> Float[np.ndarray, "twins rows"]:
    """Give the implicit reward of the base moved by noise of the tuned change's norms, for several draws of the noise."""
    seeds = range(seed, seed + NOISE_TWINS)
    twins = (noise_twin(pair.base_hf, pair.tuned_hf, seed=one) for one in tqdm(seeds, desc="noise twins"))
    return np.stack([continuation_log_p(twin, rows.tokens) for twin in twins]) - base_log_p


@dataclass(frozen=True, eq=False)
class Job:
    """One classifier that is to be fitted."""

    side: str
    input: str
    target: str
    """As in `PreferenceCell`."""
    rows: Int[np.ndarray, " fitted"]
    """What it is fitted on."""
    label: Bool[np.ndarray, " fitted"]
    """What it is to tell."""


def _cells(rows: Rows, readings: Readings, seed: int) -> tuple[tuple[PreferenceCell, ...], HeldOut]:
    """Fit every classifier; also give what the first one, the probe on tuned SAE features, says of every text."""
    n = len(rows.items)
    poles, label = rows.of("positive", "negative"), np.repeat([True, False], n)
    flipped = np.tile(np.random.default_rng(seed).random(n) < 0.5, 2)
    both, is_original = rows.of("positive", "negative", *ORIGINALS), np.repeat([False, False, True, True], n)
    keys = sorted(readings, key=lambda key: key != ("tuned", "sae"))
    jobs = [Job(*key, "preference", poles, label) for key in keys]
    jobs.append(Job("tuned", "sae", "shuffled", poles, label ^ flipped))
    nuisance = [("tuned", "sae"), ("none", "bag_of_words"), ("none", "length")]
    jobs += [Job(*key, "original", both, is_original) for key in nuisance]
    found = [
        cross_fit(readings[job.side, job.input], job.label, job.rows, rows.group, rows.fold)
        for job in tqdm(jobs, desc="probe")
    ]
    right = [by_group(is_right(one.score[job.rows], job.label), rows.group[job.rows]) for job, one in zip(jobs, found)]
    cells = [_cell(job, one.score, rows, own, right[0], seed) for job, one, own in zip(jobs, found, right)]
    return tuple(cells), found[0]


def _cell(
    job: Job, score: Float[np.ndarray, " rows"], rows: Rows, right: Float[np.ndarray, " groups"],
    best: Float[np.ndarray, " groups"], seed: int,
) -> PreferenceCell:  # fmt: skip
    def ordered(preferred: str, other: str) -> Estimate | None:
        above = is_above(score[rows.of(preferred)], score[rows.of(other)])
        return (
            mean_estimate(by_group(above, rows.group[: len(above)]), seed=seed) if job.target == "preference" else None
        )

    return PreferenceCell(
        job.side, job.input, job.target, mean_estimate(right, seed=seed),
        auc(score[job.rows], job.label, rows.group[job.rows], seed=seed),
        gap=None if job.target == "original" else mean_estimate(best - right, seed=seed),
        order=ordered("positive", "negative"), transfer=ordered(*ORIGINALS),
    )  # fmt: skip


def _components(
    features: Float[np.ndarray, "rows features"], rows: Rows
) -> tuple[Float[np.ndarray, "items members 2"], Float[np.ndarray, " 2"]]:
    """Give two principal components of the probe's inputs as they are, fitted on what it was fitted on (Figure 5)."""
    from sklearn.decomposition import PCA

    fitted = features[rows.of("positive", "negative")].astype(float)
    if min(fitted.shape) < 2 or not fitted.std(axis=0).any():
        return np.zeros((len(rows.items), len(MEMBERS), 2)), np.zeros(2)
    found = PCA(2, random_state=0).fit(fitted)
    points = found.transform(features[rows.of(*MEMBERS)].astype(float))
    return points.reshape(len(MEMBERS), -1, 2).swapaxes(0, 1), found.explained_variance_ratio_
