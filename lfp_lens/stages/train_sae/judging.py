"""From trained modules to records: export, quality beside its floors, crosscoders compared, matching."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lfp_lens.parts.activations import Encoded
from lfp_lens.parts.checkpoints import weights_fingerprint
from lfp_lens.parts.harvest import Models, Stream, TextBatches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.saes import export
from lfp_lens.results.train_sae import Floor, SAERecord, SAESet, SAEWeights
from lfp_lens.stages.train_sae.crosscoder import compare
from lfp_lens.stages.train_sae.learner import Trained
from lfp_lens.stages.train_sae.matching import match, stability
from lfp_lens.stages.train_sae.plan import RANDOM, Spec
from lfp_lens.stages.train_sae.quality import Judged, measure_quality, up_to

CHUNKS = 32
"""Groups of held-out texts that a crosscoder's intervals resample."""


@dataclass(frozen=True, eq=False)
class Judging:
    """What SAEs are judged on."""

    pair: Pair
    """Base and tuned."""
    models: Mapping[str, Any]
    """Side -> model; with the random twin where there is one."""
    heldout: Sequence[Encoded]
    """Texts that no SAE was trained on."""
    tokens: int
    """Tokens for the reconstruction figures, at most."""
    spliced: int
    """Predictions for KL and CE recovered, at most."""
    seed: int
    """Of the choice of texts, of intervals and of random dictionaries; the random twins are of this seed."""
    is_started: bool = False
    """Whether the SAEs began as given dictionaries."""

    def judge(self, trained: Mapping[Spec, Trained], fit: Mapping[Stream, torch.Tensor], batch_tokens: int) -> SAESet:
        """Give every SAE but the random twins, which are a floor of the others; `fit` is what PCA is fitted on."""
        weights = self._exported(trained)
        asked = {
            spec: Judged(spec.side, spec.site, learned, None if spec.side == RANDOM else fresh)
            for spec, (learned, fresh) in weights.items()
        }
        quality = measure_quality(
            self.models, self.pair.tokenizer, asked, self.heldout, tokens=self.tokens, spliced=self.spliced,
            seed=self.seed, fit=fit,
        )  # fmt: skip
        records, curves = [], {}
        for spec, made in trained.items():
            if spec.side == RANDOM:
                continue
            facts, twin = dict(quality[spec]), replace(spec, side=RANDOM, seed=self.seed)
            if twin in quality and spec.side in ("base", "tuned"):
                facts["floors"] = facts["floors"] | {"random_model": _floor(quality[twin])}
            record = SAERecord(
                side=spec.side, site=spec.site, size=spec.size, architecture=spec.architecture, seed=spec.seed,
                l1=getattr(made.sae.cfg, "l1_coefficient", None), k=spec.k, lr=spec.lr, weights=weights[spec][0],
                n_train_tokens=len(made.curve) * batch_tokens, stability=None, crosscoder=None, **facts,
            )  # fmt: skip
            records.append(record)
            curves[record.name] = made.curve
        stable = stability(records)
        records = [replace(record, stability=stable.get(record.name)) for record in records]
        matches = match(records, seed=self.seed)
        if self.is_started:
            # Base's and tuned's began as one dictionary, perhaps: they would match by that alone.
            matches = tuple(one for one in matches if one.relation != "sides")
        return self._compared(SAESet(tuple(records), self.pair.fingerprint, matches, curves))

    def read_texts(self) -> list[Encoded]:
        """Give the held-out texts that hold the tokens to judge on, each with content."""
        begin = self.pair.tokenizer.bos_token_id
        return up_to(self.heldout, self.tokens, lambda ids: sum(token != begin for token in ids))

    def _exported(self, trained: Mapping[Spec, Trained]) -> dict[Spec, tuple[SAEWeights, SAEWeights]]:
        """Give every SAE as trained and as initialised, with the fingerprint of the model that it reads."""
        own = {side: weights_fingerprint(self.pair.hf(side)) for side in ("base", "tuned")}
        found = {}
        for spec, made in trained.items():
            name = {
                "site": spec.site, "side": spec.side, "model_name": f"{type(self.pair.tuned_hf).__name__} {spec.side}",
                "fingerprint": own.get(spec.side, self.pair.fingerprint),
            }  # fmt: skip
            found[spec] = (export(made.sae, **name), export(made.untrained, **name))
        return found

    def _compared(self, saes: SAESet) -> SAESet:
        """Add to every crosscoder which features the two models share, from one pass of both over the held-out texts."""
        sites = list(dict.fromkeys(sae.site for sae in saes.saes if sae.side == "both"))
        if not sites:
            return saes
        texts = self.read_texts()
        groups = [part.tolist() for part in np.array_split(np.arange(len(texts)), CHUNKS) if len(part)]
        streams = [(side, site) for site in sites for side in ("base", "tuned")]
        reader = Models(self.models, TextBatches(texts, groups, self.pair.tokenizer.bos_token_id), streams)
        chunks = [{one: acts.cpu() for one, acts in reader.read(at).items()} for at in range(len(groups))]

        def at(site: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return ((part["base", site], part["tuned", site]) for part in chunks)

        found = {
            sae.name: compare(sae.weights, partial(at, sae.site), seed=self.seed, device=self.pair.device)
            for sae in saes.saes
            if sae.side == "both"
        }
        return replace(saes, saes=tuple(replace(sae, crosscoder=found.get(sae.name)) for sae in saes.saes))


def _floor(facts: Mapping[str, Any]) -> Floor:
    kept = ("explained_variance", "kl_recovered", "ce_recovered", "l0", "dead_share", "shrinkage")
    return Floor(
        kind="random_model", n_features=len(facts["firing_rate"]), weights=None, **{name: facts[name] for name in kept}
    )
