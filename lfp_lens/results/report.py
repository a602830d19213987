"""What `report` gives: the path of one self-contained page."""

from pathlib import Path

from lfp_lens.core.records import record
from lfp_lens.view import page


@record
class Report:
    """One HTML file with every number, control and refusal of a run; it needs no network to open."""

    path: Path
    """The page."""
    sections: tuple[str, ...]
    """Verbs that have a section."""
    refusals: dict[str, str]
    """Verb -> why it gave no number."""

    def _repr_html_(self) -> str:
        facts = {"page": str(self.path), "sections": ", ".join(self.sections)}
        return page.card("Report", facts | {f"refused: {verb}": why for verb, why in self.refusals.items()})
