"""The headline as text, for the command line: the same tiles that open the page."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from lfp_lens.results.dashboard import FDR, SHOWN_WORDS
from lfp_lens.stages.report.headline import is_tested, tiles

WIDTH = 110


def summary(name: str, results: Mapping[str, Any], refusals: Mapping[str, str]) -> str:
    """Give the headline numbers of a run, one block each, with the words learned wrongly."""
    lines = [name, "=" * len(name)]
    for tile in tiles(results, refusals):
        lines.append(f"{tile.name}: {tile.value}")
        lines.append(fill(tile.detail, WIDTH, initial_indent="    ", subsequent_indent="    "))
    if "probe" not in refusals and is_tested(results):
        words = results["probe"].wrong(fdr=FDR)["word"].head(SHOWN_WORDS)
        if len(words):
            lines.append(fill("Wrong sign: " + ", ".join(words), WIDTH, subsequent_indent="    "))
    return "\n".join(lines)
