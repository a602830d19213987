"""What a reading of the models tells about learned values: one cell per reading, with its twin and a cheap reading beside it."""

from typing import TYPE_CHECKING

from lfp_lens.core.records import record
from lfp_lens.core.stats import Estimate, RankAgreement

if TYPE_CHECKING:
    import pandas as pd


@record
class GridCell:
    """One reading: what it read, on which side, and how what it says of held-out words agrees with the stated values."""

    side: str
    """`tuned`, `base`, `noise` (the base moved by noise), or `none` (no language model)."""
    input: str
    """`raw` activations; features of an SAE (`sae`), of one trained on the change from base to tuned (`difference_sae`), or of
    random ones (`random_sae`, `difference_random_sae`); the input `embedding`; `random` vectors per word."""
    target: str
    """What it was fitted to: the signal, `control_task` (a random value per word, the same marginal), or `nothing`."""
    agreement: RankAgreement
    """tau-b of held-out predictions with the stated lexicon, over words."""
    sign: Estimate
    """Balanced sign accuracy of the same."""
    place: str = "word"
    """`word`: at the word's own tokens; `before`: at the position before it, where the word is decided."""
    path: str = "ridge"
    """`ridge`: a fitted probe; `direct`: the change from base along the direct path to the word's logit, nothing fitted."""
    minus_twin: Estimate | None = None
    """tau-b less that of the same reading where nothing was learned (base for a probe, noise for the direct path), paired."""
    minus_embedding: Estimate | None = None
    """tau-b less that of the static embedding, on the words that both read, paired."""

    minus_random: Estimate | None = None
    """tau-b less that of random features: the random SAE for an SAE, random vectors per word for activations; paired."""

    @property
    def is_learned(self) -> bool:
        """True if the reading beats its twin, the static embedding and random features, each with the whole interval."""
        found = (self.minus_twin, self.minus_embedding, self.minus_random)
        return all(gap is not None and gap.low > 0 for gap in found)


def verdict(grid: tuple[GridCell, ...]) -> str:
    """Say which readings of the tuned model tell learned values, and which do not."""
    claimed = [cell for cell in grid if cell.minus_twin is not None]
    if not claimed:
        return "no reading was compared with its twin"
    best = sorted((cell for cell in claimed if cell.is_learned), key=lambda cell: -cell.agreement.tau)
    if not best:
        return (
            f"nothing was found: none of {len(claimed)} readings of the tuned model beats its twin, the static embedding and "
            "random features"
        )
    where = {"word": "at", "before": "before"}
    told = [f"{cell.input} {where[cell.place]} the word, {cell.path} ({cell.agreement})" for cell in best]
    return f"{len(best)} of {len(claimed)} readings beat twin, embedding and random features: {'; '.join(told)}"


def grid_frame(grid: tuple[GridCell, ...]) -> "pd.DataFrame":
    """Give one row per reading, controls included."""
    import pandas as pd

    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
    rows = []
    for cell in grid:
        row = {
            "side": cell.side, "input": cell.input, "place": cell.place, "path": cell.path, "target": cell.target,
            "tau": cell.agreement.tau, "low": cell.agreement.low, "high": cell.agreement.high,
            "p_value": cell.agreement.p_value, "sign_accuracy": cell.sign.value, "n": cell.agreement.n,
        }  # fmt: skip
        for name in ("minus_twin", "minus_embedding", "minus_random"):
            gap = getattr(cell, name) or nothing
            row |= {name: gap.value, f"{name}_low": gap.low, f"{name}_high": gap.high}
        rows.append(row | {"is_learned": cell.is_learned})
    return pd.DataFrame(rows)
