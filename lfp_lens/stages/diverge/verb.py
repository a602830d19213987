"""The verb: open what is compared, in memory or tensor by tensor, and put weights, activations and the null together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import Store, keep
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.replicates import listed
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.results.diverge import Divergence
from lfp_lens.results.seeds import SeedNull
from lfp_lens.stages.diverge.activations import activation_fields, activation_measures, read_activations
from lfp_lens.stages.diverge.opened import Opened, open_pair, open_stored
from lfp_lens.stages.diverge.parameters import compare_parameters


def diverge(
    pair: Any,
    texts: Sequence[str] | None = None,
    *,
    replicates: Any = (),
    max_tokens: int = 128,
    seed: int = 0,
    store: Store | None = None,
) -> Divergence:
    """Measure the distance between base and tuned at every layer.

    Args:
        pair: base and tuned, as a `Pair`; or `(base, tuned)`, two hub names or folders whose weights are compared tensor by
            tensor, at most one of each in memory, without building a model. There, `tuned` may be a LoRA adapter.
        texts: held-out texts for activations and KL, each cut to `max_tokens`; None measures the weights only.
        replicates: other tunings of the same base that differ from `tuned` by their seed alone: hub names, folders, and for a
            `Pair` also models in memory or pairs. They are the null of the ranking.
        max_tokens: longest text, in tokens.
        seed: of the resampling of texts.
        store: a run's store, or None.

    Returns:
        Parameter divergence as published (sum of per-tensor L2 norms) and relative to the base; with texts, activation
        divergence and KL per token with 95 % intervals over texts, and KL by position; with replicates, how much of the
        ranking is seed noise. `.top(k)` gives the sites to train SAEs at.

    Raises:
        LensError: if there are no texts in a list, if texts are given for stored weights, if a checkpoint is missing, damaged
            or quantised, if tensors do not match by name and shape, or if a replicate is a copy or another kind of tuning.

    Source: arXiv 2310.08164, section 3.2; tensors are matched by name, in fp32. The change of a LoRA adapter is measured in
    closed form, in fp64, and is 0 wherever the adapter is not.

    >>> diverge(pair, texts).top(5)  # doctest: +SKIP
    >>> diverge(("EleutherAI/pythia-6.9b", "my/tuned")).top(5)  # doctest: +SKIP
    """
    given = listed(replicates)
    is_stored = isinstance(pair, (tuple, list))
    if is_stored and texts is not None:
        raise LensError(
            "Activations and KL need the models: give diverge(load_pair(base, tuned), texts), or leave the texts out to "
            "compare the weights tensor by tensor."
        )
    if not is_stored and not isinstance(pair, Pair):
        raise LensError(
            f"diverge compares a pair: what load_pair gives, or (base, tuned) as names or folders; {type(pair).__name__} given."
        )
    opened = open_stored(pair, given) if is_stored else open_pair(pair, given)
    inputs = {
        "pair": pair if opened.pair is not None else _content(opened, store),
        "texts": texts,
        "replicates": list(opened.keys) if opened.pair is not None else len(opened.replicates),
        "max_tokens": max_tokens,
        "seed": seed,
    }

    def make(folder: Path | None) -> Divergence:
        with fast_matmul():
            return _measure(opened, texts, max_tokens, seed)

    return keep(store, "diverge", inputs, make)


def _measure(opened: Opened, texts: Sequence[str] | None, max_tokens: int, seed: int) -> Divergence:
    first, *rest = compare_parameters(opened.base, opened.tuned, opened.replicates)
    fields: dict[str, Any] = dict(first.to_base)
    others = [(compared.to_base, compared.to_tuned or {}) for compared in rest]
    if texts is not None and opened.pair is not None:
        read = read_activations(opened.pair, texts, opened.pair.room(max_tokens), opened.models)
        fields |= activation_fields(read, seed)
        others = [
            (to_base | activation_measures(read, 0, at), to_tuned | activation_measures(read, 1, at))
            for at, (to_base, to_tuned) in enumerate(others, start=2)
        ]
    sites = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(len(opened.base.layers)))
    tuned = {name: values for name, values in fields.items() if name in (others[0][0] if others else ())}
    nulls = tuple(
        SeedNull(weights.name, sites, tuned, to_base, to_tuned)
        for weights, (to_base, to_tuned) in zip(opened.replicates, others)
    )
    return Divergence(sites=sites, n_texts=len(texts or ()), seed_nulls=nulls, **fields)


def _content(opened: Opened, store: Store | None) -> Any:
    """Hash the files that stored weights are read from, for the key of a stored result."""
    if store is None:
        return None
    from hashlib import file_digest

    found = []
    for weights in (opened.base, opened.tuned, *opened.replicates):
        for path in weights.content:
            with path.open("rb") as file:
                found.append(file_digest(file, "blake2b").hexdigest())
    return fingerprint(found)
