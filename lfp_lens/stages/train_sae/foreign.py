"""Dictionaries trained elsewhere: opened, checked against the pair, and judged on held-out text as our own are."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.activations import encode
from lfp_lens.parts.checkpoints import weights_fingerprint
from lfp_lens.parts.harvest import Blocks, Models, Stream, split, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sae_files import check_owner, read_sae
from lfp_lens.parts.saes import ARCHITECTURES, export, new_sae
from lfp_lens.parts.sites import layer_of, module_at
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.results.train_sae import SAERecord, SAESet, SAEWeights
from lfp_lens.stages.train_sae.job import PCA_TOKENS
from lfp_lens.stages.train_sae.matching import match, stability
from lfp_lens.stages.train_sae.plan import Spec, whole
from lfp_lens.stages.train_sae.quality import Judged, measure_quality

ONE_MODEL = ("base", "tuned", "difference")
UNKNOWN = 0
"""What stands for a learning rate and a number of training tokens that no file tells."""


@dataclass(frozen=True, eq=False)
class _Opened:
    """A dictionary and what is known of its training."""

    spec: Spec
    weights: SAEWeights
    n_train_tokens: int = UNKNOWN


def load_saes(
    pair: Pair,
    saes: Mapping[str, Any],
    texts: Sequence[str],
    *,
    side: str = "tuned",
    heldout_tokens: int = 20_000,
    spliced_tokens: int = 4_096,
    max_tokens: int = 128,
    seed: int = 0,
    store: Store | None = None,
) -> SAESet:
    """Open SAEs that were trained elsewhere and measure them as `train_sae` measures its own: every later verb takes them.

    Args:
        pair: base and tuned.
        saes: site -> one dictionary or a list of them (two sizes, say). A dictionary is a SAELens folder of anyone's, a
            checkpoint of the paper's public code, an `SAEWeights` or an `SAERecord`.
        texts: the last tenth judges the SAEs, the rest fits the principal components. For SAEs of `train_sae` give its
            texts again, whose last tenth they never saw.
        side: what they read: `base`, `tuned` or `difference` (tuned - base at the same token).
        heldout_tokens: tokens for the reconstruction figures, at most.
        spliced_tokens: predictions for KL and CE recovered, at most.
        max_tokens: texts are cut there.
        seed: of the choice of held-out texts, the intervals and the nulls of matches.
        store: a run's store, or None; the set takes the place of that run's `train_sae`.

    Returns:
        The SAEs, by layer, with the floors `untrained` (a fresh SAE of that architecture and shape) and `pca`, and with matches
        over sizes. `architecture` is SAELens' name of the finished dictionary (`standard`, `topk`, `jumprelu`, `gated`); `lr`
        and `n_train_tokens` are 0 where unknown; `seed` counts dictionaries of one site, size and architecture. An
        `SAERecord` keeps what it knows of its training.

    Raises:
        LensError: for a site that does not exist, a dictionary of another width, site or checkpoint, a file that cannot be
            read, or texts without tokens.

    >>> saes = load_saes(pair, {"blocks.3.hook_mlp_out": "path/of/folder"}, texts)  # doctest: +SKIP
    """
    if side == "both":
        raise LensError("A crosscoder reads both models at once: train one with train_sae(sides=('both',)).")
    if side not in ONE_MODEL:
        raise unknown("side", str(side), ONE_MODEL)
    whole("heldout_tokens", heldout_tokens, 1)
    whole("spliced_tokens", spliced_tokens, 1)
    found = _open_all(pair, saes, side)
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
    train_texts, heldout = split(encoded)
    begin, width = pair.tokenizer.bos_token_id, pair.tuned_hf.config.hidden_size
    read = text_batches(train_texts, width=width, begin=begin, device=pair.device)
    if not read.rows:
        raise LensError(
            "The texts before the last tenth hold no tokens to fit principal components on: give more texts."
        )
    models = {"base": pair.base_hf, "tuned": pair.tuned_hf}
    measured = {"tokens": heldout_tokens, "spliced": spliced_tokens, "seed": seed}

    def make(folder: Path | None) -> SAESet:
        streams = list(dict.fromkeys(one.spec.stream for one in found))
        with fast_matmul():
            first = next(Blocks(Models(models, read, streams), read.n_tokens, PCA_TOKENS, seed).blocks(0, [PCA_TOKENS]))
            fit = {stream: acts.float().cpu() for stream, acts in first.items()}
            judged = {
                at: Judged(side, one.spec.site, one.weights, _untrained(one, fit)) for at, one in enumerate(found)
            }
            facts = measure_quality(models, pair.tokenizer, judged, heldout, fit=fit, **measured)
        records = [_record(one, facts[at]) for at, one in enumerate(found)]
        stable = stability(records)
        records = [replace(record, stability=stable.get(record.name)) for record in records]
        return SAESet(tuple(records), pair.fingerprint, match(records, seed=seed), {})

    # What is in the files keys the result, not where they are.
    content = [[asdict(one.spec), one.weights.fingerprint, one.n_train_tokens] for one in found]
    key = {"pair": pair, "loaded": content, "texts": list(texts), "max_tokens": max_tokens} | measured
    return keep(store, "train_sae", key | {"store": store}, make)


def _open_all(pair: Pair, saes: Mapping[str, Any], side: str) -> list[_Opened]:
    """Read every dictionary and check that it belongs here, layer by layer."""
    if not isinstance(saes, Mapping) or not saes:
        raise LensError(
            f"saes maps each site to its dictionary, for example {{'{pair.sites[0]}': 'folder'}}; {saes!r} given."
        )
    width = pair.tuned_hf.config.hidden_size
    owner = pair.fingerprint if side == "difference" else weights_fingerprint(pair.hf(side))
    found: list[_Opened] = []
    for site in sorted(saes, key=layer_of):
        module_at(pair.tuned_hf, site)
        several = saes[site] if isinstance(saes[site], (list, tuple)) else [saes[site]]
        for given in several:
            opened = _open(given, side, site, width)
            check_owner(opened.weights, site, width, owner)
            scaled = opened.weights.config.get("normalize_activations", "none")
            if scaled != "none":
                raise LensError(
                    f"The SAE for {site} takes scaled inputs ({scaled}): fold the scale into its weights first."
                )
            alike = [one for one in found if replace(one.spec, seed=opened.spec.seed) == opened.spec]
            if not isinstance(given, SAERecord):
                opened = replace(opened, spec=replace(opened.spec, seed=len(alike)))
            twice = any(
                one.spec.site == site and one.weights.fingerprint == opened.weights.fingerprint for one in found
            )
            if twice or any(one.spec == opened.spec for one in found):
                raise LensError(
                    f"Two SAEs of one name or one content, {opened.spec.name}, were given for {site}. Give each once."
                )
            found.append(opened)
    if not found:
        raise LensError("saes holds no dictionary: give at least one for one site.")
    return found


def _open(given: Any, side: str, site: str, width: int) -> _Opened:
    if isinstance(given, SAERecord):
        if (given.site, given.side) != (site, side):
            raise LensError(
                f"The SAE {given.name} reads {given.site} of {given.side}; it was given for {site} of {side}."
            )
        spec = Spec(side, site, given.size, given.architecture, given.l1, given.k, given.lr, given.seed, width,
                    given.n_features)  # fmt: skip
        return _Opened(spec, given.weights, given.n_train_tokens)
    if not isinstance(given, (str, os.PathLike, SAEWeights)):
        raise LensError(
            f"A dictionary is a SAELens folder, an original checkpoint, an SAEWeights or an SAERecord; a {type(given).__name__} "
            f"was given for {site}."
        )
    weights = given if isinstance(given, SAEWeights) else read_sae(os.fspath(given))
    config, n_features = weights.config, len(weights.tensors["W_dec"])
    size = n_features / int(config["d_in"])
    spec = Spec(side, site, size, config["architecture"], None, config.get("k"), float(UNKNOWN), 0, width, n_features)
    return _Opened(spec, weights)


def _untrained(one: _Opened, fit: Mapping[Stream, torch.Tensor]) -> SAEWeights:
    """Give a fresh SAE of this shape and architecture, taking activations as they come."""
    spec = one.spec
    architecture = spec.architecture if spec.architecture in ARCHITECTURES else one.weights.config["architecture"]
    sae = new_sae(architecture, d_in=spec.d_in, d_sae=spec.d_sae, l1=None, k=spec.k, steps=1, seed=spec.start_seed)
    if sae.cfg.normalize_activations == "expected_average_only_in":
        acts_ND = fit[spec.stream]
        sae.fold_activation_norm_scaling_factor(float(acts_ND.shape[1] ** 0.5 / acts_ND.norm(dim=-1).mean()))
    return export(sae, site=spec.site, model_name="untrained", side=spec.side)


def _record(one: _Opened, facts: Mapping[str, Any]) -> SAERecord:
    spec = one.spec
    return SAERecord(
        side=spec.side, site=spec.site, size=spec.size, architecture=spec.architecture, seed=spec.seed, l1=spec.l1, k=spec.k,
        lr=spec.lr, weights=one.weights, n_train_tokens=one.n_train_tokens, stability=None, crosscoder=None, **facts,
    )  # fmt: skip
