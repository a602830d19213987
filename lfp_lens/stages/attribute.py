"""`attribute`: which features carry a scalar, screened in one backward pass and confirmed by exact ablation.

After *Interpreting Preference Models with Sparse Autoencoders* (Riggs and Brinkmann, 2024): screen, then confirm. One sign
throughout: effect = scalar(original) - scalar(feature zeroed). The screen keeps the SAE's error and is first order:
effect of feature i ~ sum over tokens of d scalar / d f_i * f_i.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.stats import Estimate, bootstrap_interval
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import Batch, batches, encode
from lfp_lens.parts.interventions import Edit, feature_edit, intervening
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.sites import editing
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.valence import token_values, valence
from lfp_lens.results.attribute import Effects
from lfp_lens.results.train_sae import SAESet

SCALARS, GATES = ("valence",), ("refuse", "warn")
N_CHECKED = 48
"""Features drawn at random, beside the strongest, to compare screen and exact on."""


def attribute(
    pair: Pair,
    saes: SAESet,
    texts: Sequence[str],
    *,
    scalar: str = "valence",
    lexicon: Any = "vader",
    confirm: int = 64,
    side: str = "tuned",
    size: float | None = None,
    max_tokens: int = 64,
    gate: str = "refuse",
    seed: int = 0,
    store: Store | None = None,
) -> Effects:
    """Give the effect of every feature on a scalar of the tuned model's predictions.

    Args:
        pair: base and tuned.
        saes: the dictionaries of this pair.
        texts: held-out texts; half of them screen, the other half confirm, so that no effect is in-sample.
        scalar: `valence`, the expected lexicon value of the next word, per token.
        lexicon: whose values (the stated feedback).
        confirm: features to ablate exactly: the strongest by the screen.
        side: whose dictionaries and model.
        size: which dictionaries; None is the smallest at each site.
        max_tokens: texts are cut there.
        gate: `refuse` leaves out sites whose SAE fails its quality gates; `warn` keeps them.
        seed: of the features drawn for the rank correlation, and of the bootstraps.
        store: a run's store, or None.

    Raises:
        GateError: if no SAE passes, or too few lexicon words occur in the texts.
        LensError: for SAEs of another pair or fewer than 8 texts.

    >>> attribute(pair, saes, texts).top(20)  # doctest: +SKIP
    """
    inputs = dict(locals())
    if scalar not in SCALARS:
        raise unknown("scalar", scalar, SCALARS)
    if saes.pair != pair.fingerprint:
        raise LensError("These SAEs were trained on another pair; train them on this one.")
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    if len(texts) < 8:
        raise LensError(f"attribute splits its texts in two and needs at least 8; {len(texts)} given.")
    stated = load_lexicon(lexicon)
    sites = saes.passing(side=side, size=size) if gate == "refuse" else saes.sites
    skipped = {
        site: ", ".join(saes.one(site, side=side, size=size).failures) for site in saes.sites if site not in sites
    }

    def make(folder: Path | None) -> Effects:
        model = pair.hf(side)
        values_V = token_values(pair.tokenizer, stated, texts, vocabulary=model.config.vocab_size, device=pair.device)
        loaded = {site: load_sae(saes.one(site, side=side, size=size), device=pair.device) for site in sites}
        encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
        halves = [list(batches(part, device=pair.device)) for part in (encoded[::2], encoded[1::2])]
        with fast_matmul():
            screened = _screen(pair, model, loaded, halves[0], values_V)
            exact = _Exact(pair, model, loaded, halves[1], values_V)
            site_of = [site for site in sites for _ in range(len(screened[site]))]
            index = np.concatenate([np.arange(len(screened[site])) for site in sites])
            screen = np.concatenate([screened[site] for site in sites])
            strongest = np.argsort(-np.abs(screen), kind="stable")[:confirm]
            alive = np.flatnonzero(screen != 0)
            drawn = np.random.default_rng(seed).choice(alive, size=min(N_CHECKED, len(alive)), replace=False)
            chosen = list(dict.fromkeys([*strongest.tolist(), *drawn.tolist()]))
            effects = {row: exact(site_of[row], int(index[row])) for row in tqdm(chosen, desc="attribute")}
        columns = np.full((3, len(screen)), np.nan)
        for row, per_text in effects.items():
            columns[:, row] = _estimate(per_text, exact.tokens, seed)
        return Effects(
            saes=saes, site=tuple(site_of), index=index, screen=screen, exact=columns[0], exact_low=columns[1],
            exact_high=columns[2], rank_correlation=_spearman(screen[drawn], columns[0][drawn], seed), scalar=scalar,
            side=side, size=size, n_texts=len(exact.tokens), n_tokens=int(exact.tokens.sum()), skipped=skipped,
        )  # fmt: skip

    return keep(store, "attribute", inputs | {"lexicon": stated}, make)


def _screen(
    pair: Pair, model: Any, saes: dict[str, Any], data: Sequence[Batch], values_V: torch.Tensor
) -> dict[str, np.ndarray]:
    """Give the first-order effect of every feature, per token, from one forward and one backward pass.

    Zeroing feature i moves the site by -f_i W_dec[i], so the first-order effect is f_i * (gradient at the site . W_dec[i]).
    """
    totals = {site: torch.zeros(sae.cfg.d_sae, dtype=torch.float64) for site, sae in saes.items()}
    n_tokens = 0
    for batch in data:
        held: dict[str, torch.Tensor] = {}

        def keep(site: str, held: dict[str, torch.Tensor] = held) -> Edit:
            def edit(acts: torch.Tensor) -> torch.Tensor:
                # A model whose weights are frozen starts no graph of its own.
                held[site] = acts if acts.requires_grad else acts.detach().requires_grad_()
                return held[site]

            return edit

        with torch.enable_grad(), editing(model, {site: keep(site) for site in saes}):
            total = valence(model, batch, values_V).sum()
        gradients = torch.autograd.grad(total, [held[site] for site in saes])
        real = batch.content(pair.tokenizer.bos_token_id)
        with torch.no_grad():
            for (site, sae), gradient in zip(saes.items(), gradients):
                features_NF = sae.encode(held[site].detach()[real].float())
                slope_NF = gradient[real].float() @ sae.W_dec.T
                totals[site] += (features_NF * slope_NF).sum(0).double().cpu()
        n_tokens += int(batch.mask_BS.sum())
    return {site: (total / n_tokens).numpy() for site, total in totals.items()}


class _Exact:
    """Exact effects by zeroing one feature, error kept; the untouched scalar is computed once."""

    def __init__(
        self, pair: Pair, model: Any, saes: dict[str, Any], data: Sequence[Batch], values_V: torch.Tensor
    ) -> None:
        self.model, self.saes, self.data, self.values_V = model, saes, data, values_V
        self.begin = pair.tokenizer.bos_token_id
        self.tokens = np.concatenate([batch.mask_BS.sum(1).cpu().numpy() for batch in data])
        self.before = self._sums()

    def __call__(self, site: str, index: int) -> np.ndarray:
        """Give scalar(original) - scalar(ablated), summed over each text's tokens."""
        with intervening(self.model, {site: feature_edit(self.saes[site], [index])}, begin=self.begin):
            return self.before - self._sums()

    def _sums(self) -> np.ndarray:
        found = []
        with torch.no_grad():
            for batch in self.data:
                line_N = batch.mask_BS.nonzero()[:, 0]
                sums = torch.zeros(len(batch.rows), device=batch.ids_BS.device)
                found.append(
                    sums.index_add_(0, line_N, valence(self.model, batch, self.values_V)).double().cpu().numpy()
                )
        return np.concatenate(found)


def _estimate(per_text: np.ndarray, tokens: np.ndarray, seed: int, draws: int = 500) -> tuple[float, float, float]:
    """Give the effect per token and its 95 % interval; texts are resampled."""
    rows = np.random.default_rng(seed).integers(len(tokens), size=(draws, len(tokens)))
    low, high = np.quantile(per_text[rows].sum(1) / tokens[rows].sum(1), (0.025, 0.975))
    return float(per_text.sum() / tokens.sum()), float(low), float(high)


def _spearman(screen: np.ndarray, exact: np.ndarray, seed: int) -> Estimate:
    """Give the rank correlation of screen and exact over the features drawn at random."""
    if len(screen) < 5 or np.ptp(exact) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), len(screen))
    low, high = bootstrap_interval(
        lambda rows: stats.spearmanr(screen[rows], exact[rows]).statistic if np.ptp(exact[rows]) else float("nan"),
        np.arange(len(screen)), seed=seed,
    )  # fmt: skip
    return Estimate(float(stats.spearmanr(screen, exact).statistic), low, high, len(screen))
