"""Tables that put several fields of a result side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lfp_lens.core.stats import Estimate, RankAgreement
from lfp_lens.results import Divergence, Labels, Learned, published
from lfp_lens.results.explain import RELIABLE
from lfp_lens.stages.report.headline import planted_flips
from lfp_lens.view import page
from lfp_lens.view.tokens import token_html

if TYPE_CHECKING:
    import pandas as pd

SHOWN_EXAMPLES = 3
PUBLISHED = "PUBLISHED: as printed in the paper, of its models and tasks"


def mean_kl(divergence: Divergence) -> str:
    """Give the KL of the next token averaged over all tokens, with its interval over texts."""
    return "no tokens" if divergence.kl is None else f"{divergence.kl} texts, nats per token"


def seed_facts(divergence: Divergence) -> dict[str, str]:
    """Say for each replicate how far another seed repeats the published ranking."""
    facts = {}
    for null in divergence.seed_nulls:
        found = null.agreement()
        facts[f"another seed ({null.name}), published measure"] = (
            f"tau-b {found.tau:.2f}, p={found.p_value:.2g}; {found.shared} of the top {found.k} shared ({found.chance:.1f} by "
            f"chance); {found.noise_share:.0%} of the squared movement not shared"
        )
    return facts


def agreements(learned: Learned) -> "pd.DataFrame":
    """Give every tau-b of the result: the reading, its parts, its nulls, the cheap baselines."""
    import pandas as pd

    readings: dict[str, RankAgreement | Estimate | None] = {
        f"{learned.signal}, all words": learned.overall,
        "within positive words": learned.positive,
        "within negative words": learned.negative,
        f"control: {learned.twin_name}": learned.twin,
        f"tuned minus {learned.twin_name}": learned.difference,
        "control: stated values permuted within polarity and frequency": learned.by_polarity.null,
        **{f"baseline: {name.replace('_', ' ')}": agreement for name, agreement in learned.baselines.items()},
    }
    rows = []
    for name, reading in readings.items():
        if reading is None:
            rows.append((f"{name}: fewer than 3 differ", np.nan, np.nan, np.nan, np.nan, 0))
            continue
        value = getattr(reading, "tau", getattr(reading, "value", np.nan))
        low, high, p = (getattr(reading, field, np.nan) for field in ("low", "high", "p_value"))
        rows.append((name, value, low, high, p, getattr(reading, "n", 0)))
    return pd.DataFrame(rows, columns=["reading", "tau_b", "low", "high", "p_value", "n"])


def paper_tables(learned: Learned) -> list[str]:
    """Give the tables of the paper beside ours, what it printed marked as such."""
    titles = {
        4: "Table 4: rank agreement with the stated lexicon",
        10: "Table 10: rank agreement within a polarity",
        5: "Table 5: words on their stated side, in percent",
        9: f"Table 9: values of single words, published by a probe on {published.WORDS_MODEL}",
    }
    tables = [
        page.table(learned.table(number).dropna(axis="columns", how="all"), f"{title} ({PUBLISHED})")
        for number, title in titles.items()
    ]
    preference = page.table(published.table_3(), f"Table 3: accuracy of the preference probe in percent ({PUBLISHED})")
    return [*tables, f'<p class="fine">{published.NOTE}</p>', preference]


def answer_key(learned: Learned, results: Mapping[str, Any]) -> list[str]:
    """Put the planted values beside what was found, where the tuning record has any."""
    key = results["finetune"].key if "finetune" in results else {}
    if not key or not learned.is_tested:
        return []
    flipped, found = planted_flips(learned, key)
    frame = learned.to_frame().set_index("word")[["stated", "measured", "p_wrong"]]
    frame = frame.loc[[word for word in frame.index if word in key]].reset_index()
    frame.insert(2, "given", [key[word] for word in frame["word"]])
    frame["sign_flipped"] = [word in flipped for word in frame["word"]]
    frame["listed_as_wrong"] = [word in found for word in frame["word"]]
    hits = f"{len(flipped & found)} of {len(flipped)} flips found"
    title = f"Answer key: {len(frame)} of {len(key)} planted words were measured; {hits}"
    return [page.table(frame.sort_values("p_wrong"), title)]


def examples(labels: Labels, rows: np.ndarray) -> "pd.DataFrame":
    """Give the texts behind these features, coloured by activation (column `texts` is safe HTML)."""
    import pandas as pd

    made = [
        {
            "site": labels.site[row],
            "feature": int(labels.index[row]),
            "description": labels.description[row],
            "texts": "".join(
                f"<div>{token_html(example.tokens, example.activations, largest=1.0)}</div>"
                for example in labels.examples[row][:SHOWN_EXAMPLES]
            ),
        }
        for row in rows
    ]
    return pd.DataFrame(made, columns=["site", "feature", "description", "texts"])


def scores(labels: Labels) -> dict[str, str]:
    """Give every mean score beside another feature's explanation and random directions."""
    return {f"mean {one.kind}": one.told() for one in labels.scores} or {"scores": "none was asked for"}


def reliability(labels: Labels) -> str:
    """Say how far a repeat and a second judge agree on what is relevant."""
    told = "; ".join(one.told() for one in labels.agreement) or "asked once: neither repeated nor judged by another"
    return told if labels.is_reliable is not False else f"unreliable, kappa below {RELIABLE}: {told}"
