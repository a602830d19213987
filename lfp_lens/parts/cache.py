"""`lfp_lens.cache`: the activations of texts, written once as safetensors shards, read by `train_sae`, `probe` and `explain`.

Every shard is written aside and renamed, so that a killed run goes on with the next one. What is read from a cache is what the
models give, computed in the same batches.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.work import is_alive
from lfp_lens.parts.activation_cache import FORMAT, INDEX, ActivationCache, open_cache, text_key
from lfp_lens.parts.activations import encode
from lfp_lens.parts.checkpoints import DTYPES
from lfp_lens.parts.harvest import Models, Stream, TextBatches, split, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.sites import layer_of, module_at
from lfp_lens.parts.sources import cache_folder
from lfp_lens.parts.speed import fast_matmul

SHARD_BYTES = 2**28


def cache(
    pair: Pair,
    sites: Sequence[str],
    texts: Sequence[str],
    folder: str | os.PathLike[str] | None = None,
    *,
    sides: Sequence[str] = ("base", "tuned"),
    max_tokens: int = 128,
    keep_end: bool = False,
    dtype: str = "float32",
) -> ActivationCache:
    """Write the activations of texts to disk once; `train_sae`, `probe` and `explain` read them by `cache=`.

    Args:
        pair: base and tuned.
        sites: hook names, for example `diverge(pair, texts).top(5)`.
        texts: each is cut to `max_tokens`.
        folder: where to write; None: a folder of its own in the user's cache. An unfinished one is completed.
        sides: `base`, `tuned` or both.
        max_tokens: longest text, in tokens.
        keep_end: cut longer texts at their start, as `probe` reads what comes before a word, and not at their end.
        dtype: `float32`; `bfloat16` or `float16` take half the room and change activations by up to 0.4 %.

    Returns:
        The cache; its size is printed before the first byte is written.

    Raises:
        LensError: for a site that does not exist, texts without tokens, too little room on the disk, or a folder that
            holds something else.

    >>> stored = cache(pair, pair.sites[:2], texts)  # doctest: +SKIP
    >>> saes = train_sae(pair, pair.sites[:2], texts, cache=stored)  # doctest: +SKIP
    """
    if dtype not in DTYPES:
        raise LensError(f"dtype is one of {', '.join(DTYPES)}; {dtype!r} given.")
    for name, given in (("site", sites), ("side", sides)):
        if isinstance(given, str) or not len(given) or len(set(given)) < len(given):
            raise LensError(f"{name}s must be a list of at least one {name}, each once; {given!r} given.")
    for side in sides:
        pair.hf(side)
    for site in sites:
        module_at(pair.tuned_hf, site)
    width, begin = pair.tuned_hf.config.hidden_size, pair.tokenizer.bos_token_id
    encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens), keep_end=keep_end)
    plans = [text_batches(part, width=width, begin=begin, device=pair.device) for part in split(encoded)]
    if not any(plan.rows for plan in plans):
        raise LensError("The texts hold no tokens: there is nothing to cache.")
    streams = [(side, site) for side in sides for site in sorted(set(sites), key=layer_of)]
    identity = {"format": FORMAT, "pair": pair.fingerprint, "streams": [list(one) for one in streams], "dtype": dtype,
                "max_tokens": max_tokens, "content": fingerprint([text.ids for text in encoded])}  # fmt: skip
    place = Path(folder) if folder is not None else cache_folder() / f"activations-{fingerprint(identity)}"
    if _is_finished(place, identity):
        return open_cache(place)
    shards = list(_shards(plans, streams, width, DTYPES[dtype].itemsize))
    lacking = sum(shard.n_tokens for at, shard in enumerate(shards) if not (place / _name(at)).exists())
    _begin(place, identity, lacking * len(streams) * width * DTYPES[dtype].itemsize)
    written = []
    with (
        fast_matmul(),
        tqdm(total=sum(shard.n_tokens for shard in shards), desc="cache", unit="tok", unit_scale=True) as bar,
    ):
        for at, shard in enumerate(shards):
            written.append(shard.write(place, at, pair, streams, DTYPES[dtype]))
            bar.update(shard.n_tokens)
    try:
        _write_whole(place / INDEX, json.dumps(identity | {"shards": written}))
    except OSError as error:
        raise LensError(f"The cache could not be written in {place}: {error}.") from error
    return open_cache(place)


def opened(
    given: Any,
    pair: Pair,
    sites: Sequence[str],
    texts: Sequence[str],
    *,
    sides: Sequence[str] = ("base", "tuned"),
    max_tokens: int,
    keep_end: bool = False,
) -> ActivationCache | None:
    """Give what a verb's `cache=` stands for: None, an `ActivationCache` of this pair, or one made in a folder from these texts.

    Raises `LensError` for anything else, for another pair's, and for what `cache` refuses.
    """
    if isinstance(given, (str, os.PathLike)):
        return cache(pair, sites, texts, given, sides=sides, max_tokens=max_tokens, keep_end=keep_end)
    if given is not None and not isinstance(given, ActivationCache):
        raise LensError(f"cache is an ActivationCache (lfp_lens.cache) or a folder; a {type(given).__name__} given.")
    if given is not None:
        given.check_pair(pair)
    return given


def in_key(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a verb's inputs as they key its result: where activations are read changes nothing, their precision does."""
    given = inputs["cache"]
    dtype = given.index["dtype"] if isinstance(given, ActivationCache) else "float32"
    rounded = {} if dtype == "float32" else {"cache_dtype": dtype}
    return {name: value for name, value in inputs.items() if name != "cache"} | rounded


@dataclass(frozen=True, eq=False)
class _Shard:
    """Some batches of one plan."""

    plan: TextBatches
    batches: list[int]
    n_tokens: int

    def write(self, folder: Path, at: int, pair: Pair, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Any]:
        """Write the shard unless it is there, and give its entry of the index."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        rows = [row for batch in self.batches for row in self.plan.rows[batch]]
        lengths = [self.plan.content(row) for row in rows]
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        entry = {"file": _name(at), "tokens": self.n_tokens, "starts": starts, "lengths": lengths,
                 "texts": [text_key(self.plan.encoded[row].ids) for row in rows]}  # fmt: skip
        path = folder / entry["file"]
        if path.exists():
            return entry
        models = Models({"base": pair.base_hf, "tuned": pair.tuned_hf}, self.plan, streams)
        parts = [models.read(batch) for batch in self.batches]
        tensors = {".".join(one): torch.cat([part[one] for part in parts]).to(dtype).cpu() for one in streams}
        ids = [(token, at, row) for row in rows for at, token in enumerate(self.plan.encoded[row].ids)
               if token != self.plan.begin]  # fmt: skip
        for column, name in enumerate(("tokens", "positions", "texts")):
            tensors[name] = torch.tensor([one[column] for one in ids], dtype=torch.int32)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, aside)
            with open(aside, "rb") as file:
                # Renamed before its content is on the disk, the file could be empty after a power cut.
                os.fsync(file.fileno())
            os.replace(aside, path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise LensError(f"The cache could not be written in {folder}: {error}.") from error
        return entry


def _shards(plans: Sequence[TextBatches], streams: Sequence[Stream], width: int, itemsize: int) -> Iterator[_Shard]:
    limit = max(1, SHARD_BYTES // (len(streams) * width * itemsize))
    for plan in plans:
        batches: list[int] = []
        filled = 0
        for at, n in enumerate(plan.n_tokens.tolist()):
            if batches and filled + n > limit:
                yield _Shard(plan, batches, filled)
                batches, filled = [], 0
            batches.append(at)
            filled += n
        if batches:
            yield _Shard(plan, batches, filled)


def _is_finished(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether this very cache is there, whole: then nothing has to be written, or be writable."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        whole = {name: index.get(name) for name in identity} == dict(identity)
        return whole and all((folder / shard["file"]).is_file() for shard in index["shards"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _name(at: int) -> str:
    return f"shard-{at:05d}.safetensors"


def _begin(folder: Path, identity: Mapping[str, Any], n_bytes: int) -> None:
    """Make the folder, or take an unfinished one of the same content; say what the cache will take."""
    started = folder / "identity.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if started.exists():
            if json.loads(started.read_text(encoding="utf-8")) != dict(identity):
                raise LensError(f"The folder {folder} holds another cache. Delete it, or choose another folder.")
        elif any(folder.iterdir()):
            raise LensError(f"The folder {folder} is not empty and holds no cache. Choose another folder.")
        free = shutil.disk_usage(folder).free
        if n_bytes > free:
            raise LensError(
                f"The cache takes {n_bytes / 1e9:.2f} GB; {folder} has {free / 1e9:.2f} GB free. Take fewer sites or texts, or "
                'dtype="bfloat16".'
            )
        _write_whole(started, json.dumps(identity))
        for left in folder.glob(".shard-*"):
            # What a killed process was writing; a living one's is its own.
            if not is_alive(left.suffix[1:]):
                left.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise LensError(f"The cache cannot be written in {folder}: {error}.") from error
    tqdm.write(f"cache: {n_bytes / 1e6:,.0f} MB in {folder}")


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
