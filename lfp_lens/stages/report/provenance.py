"""The end of the page: what every number was made with."""

from collections.abc import Sequence
from typing import Any

from lfp_lens.core.store import Store
from lfp_lens.view import page


def provenance(store: Store, verbs: Sequence[str]) -> list[str]:
    """Give one row per verb (seconds, seed, key, commit, time) and the library versions, as safe HTML."""
    import pandas as pd

    metas = [store.meta(verb) for verb in verbs if store.has(verb)]
    if not metas:
        return [page.table(pd.DataFrame(columns=["verb"]), "No stored result stands behind this page")]
    rows = [_row(meta) for meta in metas]
    versions = {
        name: _all(meta["versions"].get(name, "not recorded") for meta in metas) for name in metas[0]["versions"]
    }
    facts = {
        **versions,
        "python": _all(meta["python"] for meta in metas),
        "machine": _all(meta["machine"] for meta in metas),
    }
    return [
        page.table(pd.DataFrame(rows), "How each result was made"),
        page.card("With which versions", facts),
    ]


def _row(meta: dict[str, Any]) -> dict[str, Any]:
    seed = meta["inputs"].get("seed")
    return {
        "verb": meta["verb"],
        "seconds": meta["seconds"],
        "cpu_seconds": meta["cpu_seconds"],
        "seed": "none" if seed is None else str(seed),
        "key": meta["key"],
        "commit": (meta["git"] or "not in a checkout")[:12],
        "time": meta["time"],
    }


def _all(values: Any) -> str:
    """Join the different values; more than one means that the run was made in pieces."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
