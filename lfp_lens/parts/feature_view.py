"""Features on texts of the user's own, in Jupyter: a text coloured by its strongest features, and a feature at a glance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.parts.activations import Encoded, batches, encode
from lfp_lens.parts.harvest import read_batch
from lfp_lens.parts.logit_lens import promoted
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import load_sae
from lfp_lens.parts.speed import short_text_attention
from lfp_lens.results.explain import Labels
from lfp_lens.results.feature_cards import card, has_row, row_of
from lfp_lens.results.features import FeatureSet
from lfp_lens.results.train_sae import SAESet
from lfp_lens.view.feature_card import Shown, activation_histogram, coloured_features, feature_card
from lfp_lens.view.tokens import token_html

SIDES = ("base", "tuned")
WINDOW, SHOWN_WINDOWS, SHOWN_TOKENS = 32, 8, 12
"""Tokens of a window, and windows and tokens of a card."""


class Features:
    """The features of a pair's dictionaries, to be looked at on any text. Looking is no measurement: see `explain` for scores.

    Args:
        pair: the two models.
        features: labels from `explain`, whose descriptions are shown beside the text; or a `FeatureSet`, such as
            `effects.top(10)`, which shows those features alone; or the SAEs, every feature of them.
        side: `tuned` or `base`, with SAEs; labels and feature sets know their own.
        size: which SAEs, likewise; None is the smallest at each site.

    Raises:
        LensError: for dictionaries of another pair, or of a side that is no single model.

    >>> features = Features(pair, labels)  # doctest: +SKIP
    >>> features.show("What a wonderful film.")  # doctest: +SKIP
    """

    def __init__(
        self, pair: Pair, features: Labels | FeatureSet | SAESet, *, side: str = "tuned", size: float | None = None
    ) -> None:
        if not isinstance(features, (Labels, FeatureSet, SAESet)):
            raise LensError(
                f"Features are shown of Labels, a FeatureSet or an SAESet; {type(features).__name__} given."
            )
        self.pair = pair
        self.labels = features if isinstance(features, Labels) else None
        self.saes: SAESet = features if isinstance(features, SAESet) else features.saes
        self.side, self.size = (side, size) if isinstance(features, SAESet) else (features.side, features.size)
        self._only = features.by_site() if isinstance(features, FeatureSet) else None
        self._dictionaries: dict[str, Any] = {}
        if self.side not in SIDES:
            raise unknown("side of one model", self.side, SIDES)
        if self.saes.pair != pair.fingerprint:
            raise LensError(
                f"These SAEs were trained on the pair {self.saes.pair}, this pair is {pair.fingerprint}: their features "
                "mean nothing here."
            )

    def show(
        self, text: str, *, site: str | None = None, index: int | None = None, k: int = 5, max_tokens: int = 256
    ) -> Shown:
        """Show a text coloured by features, the value of every token on hover.

        Args:
            text: any text.
            site: shows only features there; None is every site.
            index: shows only this feature of the site.
            k: how many features, where none is named: those that write most at their strongest token, which is
                activation times the norm of the decoder row.
            max_tokens: tokens read of the text; the rest is not shown.

        Returns:
            A table in Jupyter, text elsewhere. Full colour is a feature's largest activation in this text.

        Raises:
            LensError: for a text without a token, or a site or feature that there is not.
        """
        if not isinstance(text, str):
            raise LensError(f"show takes one text; {type(text).__name__} given.")
        if index is not None and site is None:
            raise LensError(f"Feature {index} of which site? Name it: site={self._sites()[0]!r}.")
        if k < 1:
            raise LensError(f"k must be at least 1; {k} given.")
        sites = self._sites() if site is None else (self._checked(site, index),)
        [(tokens, acts)] = self._read([text], sites, max_tokens)
        found = []
        for at in sites:
            peaks_F = acts[at].max(0)
            writes_F = peaks_F * self._norms(at)
            chosen = [index] if index is not None else [one for one in self._indices(at) if peaks_F[one] > 0]
            found += [(float(writes_F[one]), at, int(one), float(peaks_F[one])) for one in chosen]
        found = sorted(found, key=lambda one: (-one[0], one[1:]))[:k]
        rows = [
            ({"site": at, "feature": one, "largest": peak, **self._told(at, one)}, token_html(tokens, acts[at][:, one]))
            for _, at, one, peak in found
        ]
        lines = [
            f"{at} {one} {self._told(at, one).get('description', '')}: {_strongest(tokens, acts[at][:, one])}"
            for _, at, one, _ in found
        ]
        which = "features that write most, first" if index is None else f"feature {index} at {site}"
        title = (
            f"{len(tokens)} tokens, {self.side}: {which}" if rows else f"No feature fires on these {len(tokens)} tokens"
        )
        return coloured_features(title, rows, lines)

    def card(self, site: str, index: int, texts: Sequence[str] | None = None, *, max_tokens: int = 64) -> Shown:
        """Show one feature: what labels say of it, or, without labels, where it fires in texts and what its decoder row promotes.

        Args:
            site: where it is.
            index: its index there.
            texts: read for the histogram of its activations, and for the windows where no labels have them; None draws
                what the labels keep.
            max_tokens: tokens read of each text.

        Raises:
            LensError: for a feature that there is not, or one without labels where no texts are given.
        """
        self._checked(site, index)
        is_told = self.labels is not None and has_row(self.labels, site, index)
        if texts is None:
            if self.labels is None:
                raise LensError(
                    "These features have no labels: give texts to read, or make them with Features(pair, labels)."
                )
            return card(self.labels, site, index)
        read = [(tokens, acts[site][:, 0]) for tokens, acts in self._read(texts, (site,), max_tokens, index)]
        every = np.concatenate([values for _, values in read])
        of = f"{len(read):,} given texts"
        if self.labels is not None and is_told:
            return card(self.labels, site, index, every, of)
        rows_FD = torch.from_numpy(self._record(site).weights.tensors["W_dec"][[index]])
        [(promotes, suppresses)] = promoted(self.pair.hf(self.side), self.pair.tokenizer, site, rows_FD)
        lists = {"fires on": _fires_on(read), "promotes": promotes, "suppresses": suppresses}
        return _bare_card(f"Feature {index} at {site}", read, lists, activation_histogram(every, of))

    def _sites(self) -> tuple[str, ...]:
        return self.saes.sites if self._only is None else tuple(self._only)

    def _indices(self, site: str) -> Sequence[int]:
        return range(self._record(site).n_features) if self._only is None else self._only[site]

    def _record(self, site: str) -> Any:
        return self.saes.one(site, side=self.side, size=self.size)

    def _checked(self, site: str, index: int | None) -> str:
        width = self._record(site).n_features
        if self._only is not None and site not in self._only:
            raise LensError(f"The feature set has none at {site}; it has some at {', '.join(self._only) or 'no site'}.")
        if index is not None and not 0 <= index < width:
            raise LensError(f"Feature {index} does not exist at {site}: its SAE has features 0 to {width - 1}.")
        return site

    def _sae(self, site: str) -> Any:
        if site not in self._dictionaries:
            self._dictionaries[site] = load_sae(self._record(site), device=self.pair.device)
        return self._dictionaries[site]

    def _norms(self, site: str) -> Float[np.ndarray, " features"]:
        return np.linalg.norm(self._record(site).weights.tensors["W_dec"], axis=1)

    def _told(self, site: str, index: int) -> dict[str, str]:
        if self.labels is None:
            return {}
        said = self.labels.description[row_of(self.labels, site, index)] if has_row(self.labels, site, index) else ""
        return {"description": said}

    def _read(
        self, texts: Sequence[str], sites: Sequence[str], max_tokens: int, index: int | None = None
    ) -> list[tuple[list[str], dict[str, Float[np.ndarray, "tokens features"]]]]:
        """Give the tokens of each text as characters, and by site what all features (or one) do there; one pass of the model."""
        model, begin = self.pair.hf(self.side), self.pair.tokenizer.bos_token_id
        encoded = encode(self.pair.tokenizer, texts, max_tokens=self.pair.room(max_tokens))
        tokens = [_pieces(one, begin) for one in encoded]
        if not all(tokens):
            raise LensError(
                f"Text {next(at for at, own in enumerate(tokens) if not own)} has no token that a dictionary reads."
            )
        kept = slice(None) if index is None else [index]
        found: list[dict[str, np.ndarray]] = [{} for _ in texts]
        with short_text_attention(model), torch.no_grad():
            for batch in batches(encoded, device=self.pair.device):
                acts = read_batch({self.side: model}, batch, [(self.side, site) for site in sites], begin)
                lengths = [len(tokens[row]) for row in batch.rows]
                for site in sites:
                    acts_NF = self._sae(site).encode(acts[self.side, site])[:, kept].float().cpu().numpy()
                    for row, part in zip(batch.rows, np.split(acts_NF, np.cumsum(lengths)[:-1])):
                        found[row][site] = part
        return list(zip(tokens, found))

    def _repr_html_(self) -> str:
        return self._look().html

    def __repr__(self) -> str:
        return self._look().text

    def _look(self) -> Shown:
        n = sum(len(self._indices(site)) for site in self._sites())
        facts = {"side": self.side, "sites": ", ".join(self._sites()), "labels": "yes" if self.labels else "none"}
        return feature_card(f"{n:,} features", 'Look with .show("text") and .card(site, index).', facts, {}, [])


def _pieces(encoded: Encoded, begin: int | None) -> list[str]:
    """Give the characters of every token that a dictionary reads; those between two tokens go to the later one."""
    ends = [0] + [end for token, (_, end) in zip(encoded.ids, encoded.offsets) if token != begin]
    return [encoded.text[left:right] for left, right in pairwise(ends)]


def _strongest(tokens: Sequence[str], values: Float[np.ndarray, " tokens"]) -> str:
    places = [int(at) for at in np.argsort(-values, kind="stable")[:5] if values[at] > 0]
    return ", ".join(f"{tokens[at]!r} {values[at]:.3g}" for at in places) or "silent"


def _bare_card(
    title: str, read: Sequence[tuple[list[str], np.ndarray]], lists: Mapping[str, Sequence[str]], histogram: str
) -> Shown:
    """Make a card of what the texts and the weights show alone."""
    peak = max(float(values.max()) for _, values in read)
    windows = sorted(_windows(read), key=lambda one: -float(one[1].max()))[:SHOWN_WINDOWS]
    shown = [
        (f"{values.max():.3g}", token_html(tokens, values, largest=peak, marked=[int(values.argmax())]))
        for tokens, values in windows
        if values.max() > 0
    ]
    return feature_card(title, "Nobody was asked about it.", {"largest activation": peak}, lists, shown, histogram)


def _fires_on(read: Sequence[tuple[list[str], np.ndarray]]) -> list[str]:
    """Give the tokens it is strongest on, each once."""
    places = [(float(value), token) for tokens, values in read for token, value in zip(tokens, values) if value > 0]
    return list(dict.fromkeys(token for _, token in sorted(places, key=lambda one: -one[0])))[:SHOWN_TOKENS]


def _windows(read: Sequence[tuple[list[str], np.ndarray]]) -> Iterator[tuple[list[str], np.ndarray]]:
    for tokens, values in read:
        for start in range(0, len(tokens), WINDOW):
            yield tokens[start : start + WINDOW], values[start : start + WINDOW]
