"""`report`: one self-contained page with every number, control and refusal of a run (paper, section 4)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfp_lens.core.errors import LensError, unknown
from lfp_lens.core.store import Store
from lfp_lens.results.report import Report
from lfp_lens.stages.report.headline import details, tiles
from lfp_lens.stages.report.prose import WORDS
from lfp_lens.stages.report.provenance import provenance
from lfp_lens.stages.report.sections import BUILDERS
from lfp_lens.view.page import Section, render

PAGE_FILE = "report.html"


def report(
    results: Mapping[str, Any],
    *,
    title: str = "",
    refusals: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
    store: Store | None = None,
) -> Report:
    """Write the page of a run: the headline, then every verb with its figures, tables, controls and limits.

    The page needs no network, opens from disk, and carries the paper's published numbers (arXiv
    2310.08164, Tables 3 to 7 and 10) beside ours, marked as such.

    Args:
        results: verb -> its result, for any of the first eight verbs.
        title: of the page; empty takes the name of the store's folder.
        refusals: verb -> why it gave no number; shown in place of its section.
        path: where to write; None writes `report.html` into the store.
        store: the run; its provenance ends the page.

    Returns:
        Where the page is, its sections and its refusals.

    Raises:
        LensError: if there is nothing to report, nowhere to write, an unknown verb, or a result of another.
    """
    refusals = dict(refusals or {})
    _check(results, refusals, path, store)
    results = {verb: result for verb, result in results.items() if verb not in refusals}
    heading = title or (store.root.name if store else "Learned feedback")
    page = render(
        title=heading,
        tiles=tiles(results, refusals),
        headline=details(results),
        sections=[_section(verb, results, refusals) for verb in BUILDERS if verb in results or verb in refusals],
        provenance=provenance(store, tuple(BUILDERS)) if store else (),
    )
    target = Path(path).expanduser().absolute() if path is not None else None
    home = store if target is None else Store(target.parent)
    assert home is not None
    written = home.write_text(target.name if target else PAGE_FILE, page)
    return Report(written, tuple(verb for verb in BUILDERS if verb in results), refusals)


def _section(verb: str, results: Mapping[str, Any], refusals: Mapping[str, str]) -> Section:
    if verb in refusals:
        return Section(verb, WORDS[verb].title, refusal=refusals[verb])
    return BUILDERS[verb][type(results[verb])](results[verb], results)


def _check(
    results: Mapping[str, Any],
    refusals: Mapping[str, str],
    path: str | os.PathLike[str] | None,
    store: Store | None,
) -> None:
    if path is None and store is None:
        raise LensError("The page has nowhere to go: give path='report.html' or a store.")
    if path is not None and Path(path).is_dir():
        raise LensError(f"path={str(path)!r} is a folder: name a file in it, such as {str(Path(path) / PAGE_FILE)!r}.")
    if not results and not refusals:
        raise LensError("There is nothing to report: results and refusals are both empty. Run at least one verb first.")
    for verb in (*results, *refusals):
        if verb not in BUILDERS:
            raise unknown("verb", verb, BUILDERS)
    for verb, result in results.items():
        if type(result) not in BUILDERS[verb]:
            expected = " or ".join(kind.__name__ for kind in BUILDERS[verb])
            raise LensError(f"results[{verb!r}] must be of type {expected}; {type(result).__name__} was given.")
