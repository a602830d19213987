"""The screen: the first-order effect of every feature of every dictionary, from one forward and one backward pass per batch.

Removing feature i moves its site by (ref_i - f_i) W_dec[i], so to first order the scalar moves by that times the gradient at the
site; effect = original - ablated = sum over tokens of (f_i - ref_i) (gradient . W_dec[i]). The error term stays where it is.

`steps` > 1 integrates the gradient along the way from the clean activations to those with every feature removed (integrated
gradients, left Riemann sum, as in Riggs and Brinkmann, 2024), at all sites together.

Damage is what removing a feature does to the predictions, whichever way they go. KL(clean || ablated) per token is, to second
order, half the Fisher information along the change; with next tokens drawn from the model's own predictions, y ~ p, the
gradient of log p(y) at the sites gives it for every feature from one more backward pass. What a feature changes at all its
tokens counts together, so it is summed over each text before it is squared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.parts.activations import Batch, hidden_states, unembed
from lfp_lens.parts.dictionaries import Dictionary
from lfp_lens.parts.scalars import Predictions
from lfp_lens.parts.sites import activations_at, editing

Measure = Callable[[Predictions], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Screen:
    """What the screen found, features of all dictionaries in one row, in the order in which the dictionaries were given."""

    site: tuple[str, ...]
    """Site of each feature."""
    index: np.ndarray
    """Its index in its dictionary."""
    zero: Float[np.ndarray, " features"]
    """First-order effect of setting it to 0, per token."""
    mean: Float[np.ndarray, " features"]
    """First-order effect of setting it to its mean, per token."""
    mean_activation: Float[np.ndarray, " features"]
    """Its mean over content tokens."""
    firing_rate: Float[np.ndarray, " features"]
    """Share of content tokens at which it is not 0."""
    moves: dict[str, Float[np.ndarray, "draws features"]]
    """`zero`, `mean` -> what removing each feature does to log p of drawn next tokens, summed over a text, divided by
    sqrt(2 draws per token): the squares' sum is the KL per token. Empty unless damage was asked for."""
    n_tokens: int
    """Real tokens read."""

    def effect(self, mode: str) -> Float[np.ndarray, " features"]:
        """Give the effect under a mode; a resampled feature is, on average, a feature set to its mean."""
        return self.zero if mode in ("zero", "scale") else self.mean

    def joint_order(self, mode: str, *, most: int = 500, ridge: float = 0.1) -> list[int]:
        """Order features so that every beginning of the order has a large effect for its damage.

        Greedy: the next feature is the one that makes (sum of effects) / sqrt(KL of all of them together) largest, the KL with
        its cross terms; `ridge` adds to each feature's own, because few draws make features look less alike than they are.
        Features without a positive effect are left out. Raises `ValueError` without damage.
        """
        if not self.moves:
            raise ValueError("joint_order needs a screen with damage")
        effect, moves = self.effect(mode), self.moves["zero" if mode in ("zero", "scale") else "mean"]
        own = (moves**2).sum(0) * (1 + ridge)
        able = np.flatnonzero((effect > 0) & (own > 0))
        promising = able[np.argsort(-effect[able] / np.sqrt(own[able]), kind="stable")][: 3 * most]
        return promising[_greedy(effect[promising], own[promising], moves[:, promising], most)].tolist()


def _greedy(effect: np.ndarray, own: np.ndarray, moves: np.ndarray, most: int) -> list[int]:
    """Give the order of `Screen.joint_order` within some features."""
    chosen: list[int] = []
    free = np.ones(len(effect), bool)
    cross, gained, damage = np.zeros(len(effect)), 0.0, 0.0
    for _ in range(min(most, len(effect))):
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(free, (gained + effect) / np.sqrt(np.maximum(damage + own + 2 * cross, 1e-18)), -np.inf)
        best = int(np.argmax(score))
        gained, damage = gained + effect[best], damage + own[best] + 2 * cross[best]
        cross += moves.T @ moves[:, best]
        free[best] = False
        chosen.append(best)
    return chosen


def screen(
    model: Any,
    dictionaries: Mapping[str, Dictionary],
    data: Sequence[Batch],
    measure: Measure,
    *,
    values_V: torch.Tensor | None = None,
    base: Any = None,
    begin: int | None = None,
    base_log_p: Sequence[torch.Tensor] | None = None,
    signs: np.ndarray | None = None,
    steps: int = 1,
    draws: int = 0,
    already: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Screen:
    """Screen every feature at once.

    Args:
        model: a Hugging Face model; only its activations get a gradient.
        dictionaries: by site.
        data: batches of texts.
        measure: the scalar, a number per place.
        values_V: for scalars that need the lexicon.
        base: the base model, where a dictionary reads it.
        begin: beginning-of-text token, which no feature is read at.
        base_log_p: for scalars that need it, per batch, at its real tokens.
        signs: +1 or -1 for every text by its number in `Batch.rows`; None is +1.
        steps: points of the integral; 1 is gradient x activation.
        draws: next tokens drawn at each place for the damage; 0 leaves it out.
        already: site -> edit of (acts, base_acts) that is in place while screening, at content tokens: what other features still
            do then. Features are read as they are before it.
        seed: of the draws.
    """
    order = list(dictionaries)
    sums = _Sums(order, dictionaries)
    generator = torch.Generator().manual_seed(seed)
    needs_base = any(dictionary.needs_base for dictionary in dictionaries.values())
    needs_base |= already is not None and base is not None
    for number, batch in enumerate(data):
        base_acts = activations_at(base, batch.ids_BS, batch.mask_BS, order) if needs_base else {}
        content_BS = batch.content(begin)
        features: dict[str, torch.Tensor] = {}
        shift: dict[str, torch.Tensor] = {}
        slopes: dict[str, torch.Tensor] = {}
        drawn: list[dict[str, torch.Tensor]] = []
        for step in range(steps):
            held: dict[str, torch.Tensor] = {}
            read: dict[str, torch.Tensor] = {}
            edits = {
                site: _keep(site, held, read, shift, step / steps, already, base_acts.get(site), content_BS)
                for site in order
            }
            with torch.enable_grad(), editing(model, edits):
                logits_NV = unembed(model, hidden_states(model, batch)[batch.mask_BS.bool()]).float()
                seen = predictions(batch, logits_NV, values_V, None if base_log_p is None else base_log_p[number])
                values_N = measure(seen)
                if signs is not None:
                    values_N = values_N * torch.tensor(signs, device=values_N.device, dtype=values_N.dtype)[seen.text_N]
                total = values_N.sum()
            leaves = [held[site] for site in order]
            is_last = draws == 0 or step > 0
            gradients = torch.autograd.grad(total, leaves, retain_graph=not is_last, allow_unused=True)
            if step == 0:
                with torch.no_grad():
                    for site in order:
                        acts_ND, base_ND = read[site][content_BS], base_acts.get(site)
                        features[site] = dictionaries[site].read(
                            acts_ND, None if base_ND is None else base_ND[content_BS]
                        )
                        if steps > 1:
                            shift[site] = torch.zeros_like(held[site])
                            shift[site][content_BS] = (features[site] @ dictionaries[site].W_dec).to(held[site].dtype)
                drawn = _draw(logits_NV, leaves, order, draws, generator)
            for site, leaf, gradient in zip(order, leaves, gradients):
                part = torch.zeros_like(leaf) if gradient is None else gradient
                slope_NF = part[content_BS].float() @ dictionaries[site].W_dec.T / steps
                slopes[site] = slopes[site] + slope_NF if site in slopes else slope_NF
        with torch.no_grad():
            sums.add(batch, content_BS, features, slopes, drawn)
    return sums.screen(draws)


def predictions(
    batch: Batch, logits_NV: torch.Tensor, values_V: torch.Tensor | None, base_log_p_N: torch.Tensor | None
) -> Predictions:
    """Give what a scalar sees at the real tokens of a batch."""
    real_BS = batch.mask_BS.bool()
    rows = torch.tensor(batch.rows, device=batch.ids_BS.device)
    text_BS = rows[:, None].expand(batch.ids_BS.shape)
    return Predictions(logits_NV, batch.next_ids()[real_BS], text_BS[real_BS], values_V, base_log_p_N)


def _keep(
    site: str, held: dict[str, torch.Tensor], read: dict[str, torch.Tensor], shift: Mapping[str, torch.Tensor], share: float,
    already: Mapping[str, Any] | None, base_acts: torch.Tensor | None, content_BS: torch.Tensor,
) -> Callable[[torch.Tensor], torch.Tensor]:  # fmt: skip
    def edit(acts: torch.Tensor) -> torch.Tensor:
        read[site], made = acts.detach(), acts
        if share and site in shift:
            made = made - share * shift[site]
        if already and site in already:
            made = torch.where(content_BS[..., None], already[site](made, base_acts), made)
        # Features are read before what is removed already and written after it, so the gradient is that of what is written. A
        # model whose weights are frozen starts no graph of its own.
        held[site] = made if made.requires_grad else made.detach().requires_grad_()
        return held[site]

    return edit


def _draw(
    logits_NV: torch.Tensor,
    leaves: Sequence[torch.Tensor],
    order: Sequence[str],
    draws: int,
    generator: torch.Generator,
) -> list[dict[str, torch.Tensor]]:
    """Give, for every draw of next tokens, the gradient of their log p at every site."""
    if not draws:
        return []
    with torch.enable_grad():
        log_p_NV = torch.log_softmax(logits_NV, dim=-1)
    found = []
    for draw in range(draws):
        picked = torch.multinomial(log_p_NV.detach().exp().cpu(), 1, generator=generator).to(log_p_NV.device)
        total = log_p_NV.gather(-1, picked).sum()
        gradients = torch.autograd.grad(total, leaves, retain_graph=draw + 1 < draws, allow_unused=True)
        found.append({
            site: torch.zeros_like(leaf) if gradient is None else gradient
            for site, leaf, gradient in zip(order, leaves, gradients)
        })  # fmt: skip
    return found


class _Sums:
    """Sums over texts while the screen runs."""

    def __init__(self, order: Sequence[str], dictionaries: Mapping[str, Dictionary]) -> None:
        self.order, self.dictionaries = order, dictionaries
        zeros = {site: torch.zeros(dictionaries[site].n_features, dtype=torch.float64) for site in order}
        self.by_name = {name: {site: zeros[site].clone() for site in order} for name in ("zero", "slope", "f", "fires")}
        self.n_tokens = self.n_content = 0
        self.draws: list[tuple[np.ndarray, np.ndarray]] = []

    def add(
        self, batch: Batch, content_BS: torch.Tensor, features: Mapping[str, torch.Tensor], slopes: Mapping[str, torch.Tensor],
        drawn: Sequence[Mapping[str, torch.Tensor]],
    ) -> None:  # fmt: skip
        """Add one batch."""
        self.n_tokens += int(batch.mask_BS.sum())
        self.n_content += int(content_BS.sum())
        for site in self.order:
            self._count("zero", site, features[site] * slopes[site])
            self._count("slope", site, slopes[site])
            self._count("f", site, features[site])
            self._count("fires", site, features[site] != 0)
        line_N = content_BS.nonzero()[:, 0]
        for gradients in drawn:
            moved, sloped = [], []
            for site in self.order:
                slope_NF = gradients[site][content_BS].float() @ self.dictionaries[site].W_dec.T
                zeros = slope_NF.new_zeros(len(batch.rows), slope_NF.shape[1])
                moved.append(zeros.index_add(0, line_N, features[site] * slope_NF).cpu().numpy())
                sloped.append(zeros.index_add(0, line_N, slope_NF).cpu().numpy())
            self.draws.append((np.concatenate(moved, axis=1), np.concatenate(sloped, axis=1)))

    def _count(self, name: str, site: str, values_NF: torch.Tensor) -> None:
        self.by_name[name][site] += values_NF.sum(0).double().cpu()

    def screen(self, draws: int) -> Screen:
        """Give the result."""
        whole = {
            name: np.concatenate([sums[site].numpy() for site in self.order]) for name, sums in self.by_name.items()
        }
        mean = whole["f"] / max(self.n_content, 1)
        zero, slope = whole["zero"] / self.n_tokens, whole["slope"] / self.n_tokens
        moves = {}
        if draws:
            scale = np.sqrt(2.0 * draws * self.n_tokens)
            own = np.concatenate([moved for moved, _ in self.draws]) / scale
            to_mean = own - np.concatenate([sloped for _, sloped in self.draws]) / scale * mean.astype(np.float32)
            moves = {"zero": own, "mean": to_mean}
        return Screen(
            site=tuple(site for site in self.order for _ in range(self.dictionaries[site].n_features)),
            index=np.concatenate([np.arange(self.dictionaries[site].n_features) for site in self.order]),
            zero=zero, mean=zero - slope * mean, mean_activation=mean,
            firing_rate=whole["fires"] / max(self.n_content, 1), moves=moves, n_tokens=self.n_tokens,
        )  # fmt: skip
