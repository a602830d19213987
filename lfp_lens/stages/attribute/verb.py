"""`attribute`: which features carry a scalar, screened in one backward pass and confirmed by exact ablation.

After *Interpreting Preference Models with Sparse Autoencoders* (Riggs and Brinkmann, 2024): screen, then confirm. One sign
throughout: effect = scalar(original) - scalar(feature zeroed). The SAE's error stays where it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.dictionaries import as_dictionary
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.reward_models import RewardModel
from lfp_lens.parts.scalars import REWARD_HEAD, Scalar
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.valence import token_values
from lfp_lens.results.attribute import Effects
from lfp_lens.results.train_sae import SAESet
from lfp_lens.stages.attribute.confirm import confirm as confirmed_exactly
from lfp_lens.stages.attribute.confirm import packed
from lfp_lens.stages.attribute.estimates import ratio_intervals, spearman
from lfp_lens.stages.attribute.reading import Reading, read
from lfp_lens.stages.attribute.screens import screened
from lfp_lens.stages.attribute.subject import Subject, scalar_of
from lfp_lens.stages.attribute.together import Half, together, tokens_of

GATES = ("refuse", "warn")
N_CHECKED = 48
"""Features drawn at random, beside the strongest, to compare screen and exact on."""


def attribute(
    model: Pair | RewardModel,
    saes: SAESet,
    texts: Any,
    *,
    scalar: Any = "expected_valence",
    lexicon: Any = "vader",
    confirm: int = 64,
    joint: int = 100,
    side: str = "tuned",
    size: float | None = None,
    steps: int = 1,
    max_tokens: int = 64,
    gate: str = "refuse",
    seed: int = 0,
    store: Store | None = None,
) -> Effects:
    """Give the effect of every feature on a scalar of a model's predictions.

    Args:
        model: a pair, whose `side` is examined, or a reward model.
        saes: the dictionaries of this pair or reward model (`SAESet.pair` is its fingerprint).
        texts: at least 8 held-out texts, or preference pairs `(prompt, chosen, rejected)`, whose effect is that on chosen minus
            that on rejected. Every other one screens and the rest confirms, so that no effect is in-sample.
        scalar: `expected_valence` (the expected lexicon value of the next word), `implicit_reward` (log p less the base's,
            nats), `log_p` (nats), `log_p_difference` (log p of chosen minus rejected, nats), `reward_head` (a reward model's
            reward), or a function of `lfp_lens.parts.scalars.Predictions` that gives a number per place.
        lexicon: whose values (the stated feedback), for `expected_valence`.
        confirm: m: the m features with the largest positive screened effect and the m with the most negative one are ablated
            exactly, and 48 drawn at random among those that fire.
        joint: features in the largest set whose share is measured together, chosen one after another; 0 leaves this out.
        side: whose dictionaries: `base`, `tuned`, `difference` or `both`; of the last two the tuned model is changed.
        size: which dictionaries; None is the smallest at each site.
        steps: points of the integrated gradients, along the way to all features removed; 1 is gradient x activation.
        max_tokens: texts are cut there; of pairs, the beginning of a long prompt is cut.
        gate: `refuse` leaves out sites whose SAE fails its quality gates; `warn` keeps them.
        seed: of the features drawn for the rank correlation, of random sets, and of the bootstraps.
        store: a run's store, or None.

    Returns:
        Effects per token; per text for `reward_head`; per pair for preference pairs.

    Raises:
        GateError: if no SAE passes, or too few lexicon words occur in the texts.
        LensError: for SAEs of another pair or model, fewer than 8 texts, or a scalar that the model or the texts do not have.

    >>> attribute(pair, saes, texts).top(20)  # doctest: +SKIP
    """
    inputs = dict(locals())
    if not isinstance(model, (Pair, RewardModel)):
        raise LensError(
            f"attribute examines a pair (load_pair) or a reward model (load_reward_model); a {type(model).__name__} given."
        )
    _check_owner(model, saes)
    for name, value, least in (("confirm", confirm, 1), ("joint", joint, 0), ("steps", steps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise LensError(f"{name} is a whole number of at least {least}; {value!r} given.")
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    reading = read(model, texts, max_tokens=max_tokens)
    is_reward_model = isinstance(model, RewardModel)
    name, measured = scalar_of(scalar, is_reward_model=is_reward_model, is_pairs=reading.is_pairs)
    stated = load_lexicon(lexicon) if measured.needs_lexicon else None
    sites = saes.passing(side=side, size=size) if gate == "refuse" else saes.sites
    skipped = {
        site: ", ".join(saes.one(site, side=side, size=size).failures) for site in saes.sites if site not in sites
    }
    per = "pair" if reading.is_pairs else "text" if name == REWARD_HEAD else "token"

    def make(folder: Path | None) -> Effects:
        records = {site: saes.one(site, side=side, size=size) for site in sites}
        subject = _subject(model, records, side, measured, stated, reading)
        first, second = reading.halves()
        vocabulary = subject.model.get_output_embeddings().weight.shape[0]
        select, report = (
            Half(list(reading.batches(units, device=model.device, vocabulary=vocabulary)), units)
            for units in (first, second)
        )
        under = {
            at: tokens_of(reading, half.units) if per == "token" else np.ones(len(half.units))
            for at, half in (("select", select), ("report", report))
        }
        with fast_matmul():
            found = screened(subject, reading, select.data, steps=steps)
            there = screened(subject, reading, report.data, steps=steps)
            screen = found.zero * found.n_tokens / under["select"].sum()
            same = there.zero * there.n_tokens / under["report"].sum()
            rows, drawn = _chosen(screen, confirm, seed)
            features = [(found.site[row], int(found.index[row])) for row in rows]
            exact = confirmed_exactly(subject, reading, report.data, report.units, features, per_token=per == "token")
            share = None
            if joint:
                base = model.base_hf if isinstance(model, Pair) and side != "base" else None
                share = together(
                    subject, reading, select, report, found, base=base, most=joint, per_token=per == "token", seed=seed
                )
        columns = _columns(len(screen), rows, exact.effects_FU, exact.fires_FU, under["report"], seed)
        return Effects(
            saes=saes, site=found.site, index=found.index, screen=screen, screen_same=same, **columns,
            is_random=np.isin(range(len(screen)), drawn), text_effects=exact.effects_FU.astype(np.float32),
            rank_correlation=spearman(screen[drawn], columns["exact"][drawn], seed),
            agreement=spearman(same[drawn], columns["exact"][drawn], seed), scalar=name, per=per, side=side, size=size,
            steps=steps, n_texts=len(second), n_tokens=there.n_tokens,
            examples=packed(model.tokenizer, reading, exact, rows, per_token=per == "token"), joint=share, skipped=skipped,
        )  # fmt: skip

    return keep(store, "attribute", inputs | {"lexicon": stated, "scalar": [name, measured.measure]}, make)


def _check_owner(model: Pair | RewardModel, saes: SAESet) -> None:
    if saes.pair == model.fingerprint:
        return
    if isinstance(model, RewardModel):
        raise LensError(
            "These SAEs are not this reward model's: nothing ties them to it. Make a set of dictionaries that were trained on "
            "its activations, SAESet(records, reward_model.fingerprint, (), {})."
        )
    raise LensError("These SAEs were trained on another pair; train them on this one.")


def _subject(
    model: Pair | RewardModel, records: Mapping[str, Any], side: str, scalar: Scalar, stated: Any, reading: Reading
) -> Subject:
    dictionaries = {site: as_dictionary(record, device=model.device) for site, record in records.items()}
    if isinstance(model, RewardModel):
        reads_base = [site for site, dictionary in dictionaries.items() if dictionary.needs_base]
        if reads_base:
            raise LensError(
                f"The SAE at {reads_base[0]} reads two models; a reward model is one. Give SAEs of it alone."
            )
        return Subject(model.shell, None, dictionaries, scalar, None, None, model.tokenizer.bos_token_id)
    host = model.hf("base" if side == "base" else "tuned")
    values_V: torch.Tensor | None = None
    if stated is not None:
        whole = [text.text for text in reading.encoded]
        values_V = token_values(model.tokenizer, stated, whole, vocabulary=host.config.vocab_size, device=model.device)
    needs_base = any(dictionary.needs_base for dictionary in dictionaries.values())
    return Subject(
        host, model.base_hf if needs_base else None, dictionaries, scalar, values_V,
        model.base_hf if scalar.needs_base else None, model.tokenizer.bos_token_id,
    )  # fmt: skip


def _chosen(screen: np.ndarray, m: int, seed: int) -> tuple[list[int], np.ndarray]:
    """Give the rows to confirm: m of the largest and m of the most negative effects, and those drawn at random (given beside)."""
    order = np.argsort(-screen, kind="stable")
    top = [row for row in order[:m].tolist() if screen[row] > 0]
    bottom = [row for row in order[::-1][:m].tolist() if screen[row] < 0]
    alive = np.flatnonzero(screen != 0)
    drawn = np.random.default_rng(seed).choice(alive, size=min(N_CHECKED, len(alive)), replace=False)
    return sorted({*top, *bottom, *drawn.tolist()}), drawn


def _columns(
    n: int, rows: list[int], effects_FU: np.ndarray, fires_FU: np.ndarray, under_U: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Give what is known of each confirmed feature, NaN (or -1) for the others."""
    columns = {name: np.full(n, np.nan) for name in ("exact", "exact_low", "exact_high", "consistency")}
    fires_in = np.full(n, -1)
    columns["exact"][rows] = effects_FU.sum(1) / under_U.sum()
    columns["exact_low"][rows], columns["exact_high"][rows] = ratio_intervals(effects_FU, under_U, seed)
    fires_in[rows] = fires_FU.sum(1)
    same = (np.sign(effects_FU) == np.sign(effects_FU.sum(1))[:, None]) & fires_FU
    with np.errstate(invalid="ignore"):
        columns["consistency"][rows] = same.sum(1) / np.where(fires_FU.any(1), fires_FU.sum(1), np.nan)
    return columns | {"fires_in": fires_in}
