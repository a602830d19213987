"""What would each have reported? The paper's protocol as published and ours on the same organisms, their keys opened last.

Published (arXiv 2310.08164, 3.3 and 4.1): dictionaries where tuning moved the model most, a probe of the signed distance to the
neutral word, rows split at random, the share of words with the stated sign, tau over ranked word strings, no base twin. Its
rule, as generous as it can be read: the feedback was learned if more words than chance have their sign, and a word is wrong if
it does not. Beside it stands what the same protocol reports of the base model, which nobody tuned. Where it is ours: the preset's
dictionaries in place of tied ones, five folds in place of one, a ridge whose strength is chosen on the training rows.
Ours: the implicit reward in contexts, of every tuning and of one alone, less its twin, with the words that `wrong(fdr=)` lists;
and the readings of the grid.

One JSON line per organism and protocol; `python -m tests.benchmarks.published_protocol FOLDER` measures the organisms of a folder
and ends with the table in Markdown.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lfp_lens.config import with_values
from lfp_lens.core.errors import GateError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.stats import Estimate, balanced_sign_accuracy, rank_agreement, tau_as_published, tau_difference
from lfp_lens.core.store import Store
from lfp_lens.organisms.blind import Blind, dictionaries, measure
from lfp_lens.organisms.folder import Organism
from lfp_lens.organisms.grid import organism_grid
from lfp_lens.organisms.key import Key
from lfp_lens.organisms.scoring import find_organisms
from lfp_lens.organisms.settings import setting_told
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.signals import DELTA
from lfp_lens.results import Learned, SAESet
from lfp_lens.stages.probe import probe
from tests.benchmarks.measure import one_thread

RECIPES = ("clean", "flip", "shuffled", "noise")
UNRELATED = ("shuffled", "noise")
"""Recipes whose reward has nothing to do with the stated feedback: who reports that it was learned is wrong."""
PUBLISHED, ONE, ALL, READINGS = "as published", "ours, one tuning", "ours, all tunings", "ours, readings"
SIDES = ("base", "tuned", "difference")
NOTHING = float("nan")


@dataclass(frozen=True, eq=False)
class Said:
    """What one protocol reports of one organism, no key opened."""

    protocol: str
    claims: bool | None
    """Whether it reports that the stated feedback was learned; None where it refuses to say."""
    words: tuple[str, ...] = ()
    """What it measured."""
    wrong: tuple[str, ...] | None = None
    """What it calls wrong; None where it names no words."""
    tau: Estimate | None = None
    """tau-b with the stated values."""
    as_published: float = NOTHING
    """The published statistic of the same numbers: tau of ranked word strings."""
    sign: Estimate | None = None
    """Balanced share of words with the stated sign."""
    twin: str = "none"
    """Where nothing can have been learned."""
    twin_tau: float = NOTHING
    twin_sign: float = NOTHING
    twin_claims: bool | None = None
    """What the published rule says of the twin."""
    gap: Estimate | None = None
    """tau-b less that of the twin, paired by lemma."""
    note: str = ""
    """The reason of a refusal, the verdict over readings."""

    @property
    def reports(self) -> str:
        """Say it in words."""
        if self.claims is None:
            return f"refused: {self.note}"
        told = "the stated feedback was learned" if self.claims else "nothing of the stated feedback was learned"
        if self.wrong is None:
            return told
        return f"{told}; {len(self.wrong) or 'no'} {'word is' if len(self.wrong) < 2 else 'words are'} wrong"


@dataclass(frozen=True, eq=False)
class Report:
    """What a protocol said of an organism, beside its key."""

    organism: str
    base: str
    recipe: str
    refused: str
    """Why the organism is no evidence; empty if it is."""
    said: Said
    is_true: bool | None
    """Whether what is reported of the stated feedback is so; None where nothing is reported."""
    n_planted: int
    """Planted words among those that could be: measured by a protocol, or frequent and strong."""
    found: int
    """Of them, those called wrong."""
    others: int
    """Other words called wrong."""

    def line(self) -> str:
        """Give the JSON line."""
        said = self.said
        told: dict[str, Any] = {
            "organism": self.organism, "base": self.base, "recipe": self.recipe, "refused": self.refused,
            "protocol": said.protocol, "reports": said.reports, "is_true": self.is_true, "n": len(said.words),
            "tau_as_published": _rounded(said.as_published), "tau_b": _row(said.tau), "sign": _row(said.sign),
            "twin": said.twin, "twin_tau_b": _rounded(said.twin_tau), "twin_sign": _rounded(said.twin_sign),
            "published_rule_on_twin": said.twin_claims, "less_twin": _row(said.gap), "planted": self.n_planted,
            "found": None if said.wrong is None else self.found, "others": None if said.wrong is None else self.others,
            "note": said.note,
        }  # fmt: skip
        return json.dumps({"bench": "published_protocol"} | told)


def published_protocol(
    folder: str | os.PathLike[str] | None = None,
    *,
    home: str | os.PathLike[str] = "runs/published_protocol",
    n_texts: int | None = None,
    changes: Mapping[str, Any] | None = None,
    fdr: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> Iterator[Report]:
    """Measure the organisms of a folder both ways, all of them, and then open their keys.

    Args:
        folder: of organisms; None makes one of each recipe in the tiny world, seed 60, 10 words planted, below `home`.
        home: folder of what is made and measured: a second call reads it.
        n_texts: texts that words are measured in; None takes the preset's number.
        changes: keys of the preset that dictionaries and triples are made with.
        fdr: of our lists of words.
        seed: of contexts, folds, dictionaries and intervals.
        options: of the organisms that are made.
    """
    place = Path(home)
    if folder is None:
        folder = place / "organisms"
        organism_grid(("world",), RECIPES, folder=folder, **({"seeds": (60,), "words": 10} | options))
    organisms = find_organisms(folder)
    given: dict[str, Any] = {"n_texts": n_texts, "changes": changes or {}, "fdr": fdr, "seed": seed}
    with one_thread():
        told = [look(one, place / "measured", **given) for one in organisms]
    for blind, said in told:
        key = blind.organism.key()
        key.check(blind.organism.path, blind.base, blind.tuned, fingerprint(dict(blind.stated)))
        yield from judged(blind, said, key)


def look(
    organism: Organism, store: Path, *, n_texts: int | None, changes: Mapping[str, Any], fdr: float, seed: int
) -> tuple[Blind, list[Said]]:
    """Measure one organism by every protocol."""
    setting = setting_told(organism.record)
    assert setting is not None, f"{organism.path} names no texts"
    blind = measure(organism, n_texts=n_texts, seed=seed, store=store)
    pair = organism.pair()
    home = Store(store / pair.fingerprint[:12])
    train, test = setting.texts("train"), setting.texts("test", n_texts)
    given: dict[str, Any] = {
        "texts": test, "lexicon": blind.stated, "max_tokens": setting.config.probe.max_tokens, "seed": seed, "store": home,
    }  # fmt: skip
    config = with_values(setting.config, dict(changes))
    saes, triples = dictionaries(pair, config, train, test, blind.stated, sides=SIDES, seed=seed, store=home)
    # The published protocol has no quality gate, and ours refuses dictionaries below it.
    theirs = {"signal": DELTA, "split": "row", "gate": "warn"} | given
    both = (_learned(probe(*one, triples, **theirs)) for one in ((pair, saes), untuned(pair, saes)))
    found = [as_published(*both), by_words(ONE, _learned(probe(pair, **given)), fdr)]
    found += [by_words(ALL, one.learned, fdr) for one in blind.readings]
    if not blind.readings:
        found.append(Said(ALL, None, note="; ".join(blind.lacking.values())))
    try:
        found.append(by_readings(_learned(probe(pair, saes, triples, **given))))
    except GateError as refusal:
        found.append(Said(READINGS, None, note=str(refusal)))
    return blind, found


def untuned(pair: Pair, saes: SAESet) -> tuple[Pair, SAESet]:
    """Give the pair and its dictionaries the other way round: what is then read as the tuned model is the base."""
    other = replace(pair, base=pair.tuned, tuned=pair.base, base_hf=pair.tuned_hf, tuned_hf=pair.base_hf,
                    fingerprint=f"swapped-{pair.fingerprint}")  # fmt: skip
    turned = {"base": "tuned", "tuned": "base"}
    own = tuple(replace(sae, side=turned[sae.side]) for sae in saes.saes if sae.side in turned)
    return other, SAESet(own, other.fingerprint, (), {})


def as_published(learned: Learned, twin: Learned) -> Said:
    """Give what the published protocol says of the tuned model, and of the base, which it did not look at."""
    (tau, sign, strings), (twin_tau, twin_sign, _) = (_agreement(one, one.rescaled) for one in (learned, twin))
    opposite = np.sign(learned.rescaled) * np.sign(learned.stated) < 0
    of_twin = dict(zip(twin.words, twin.rescaled))
    beside = np.array([of_twin[word] for word in learned.words])
    return Said(
        PUBLISHED, sign.low > 0.5, learned.words, tuple(word for word, is_wrong in zip(learned.words, opposite) if is_wrong),
        tau, strings, sign, "base model", twin_tau.value, twin_sign.value, twin_sign.low > 0.5,
        tau_difference(learned.rescaled, beside, learned.stated, learned.lemma),
    )  # fmt: skip


def by_words(protocol: str, learned: Learned, fdr: float) -> Said:
    """Give what the implicit reward says: less the shuffled-reward twin where there is one, and less the noise twin always."""
    values = learned.recipe if learned.has_replicates else learned.measured
    tau, sign, strings = _agreement(learned, values)
    twin, twin_tau, twin_sign, gap = "noise twin", learned.twin.tau, NOTHING, learned.difference
    if learned.tunings is not None and len(learned.tunings.shuffled_values):
        beside = learned.tunings.shuffled_values.mean(0)
        theirs, theirs_sign, _ = _agreement(learned, beside)
        twin, twin_tau, twin_sign = "shuffled-reward twin", theirs.value, theirs_sign.value
        gap = tau_difference(values, beside, learned.stated, learned.lemma)
    return Said(
        protocol, gap.low > 0 and learned.difference.low > 0, learned.words, tuple(learned.wrong(fdr=fdr)["word"]), tau,
        strings, sign, twin, twin_tau, twin_sign, None, gap,
    )  # fmt: skip


def by_readings(learned: Learned) -> Said:
    """Give what the grid says: a reading counts if it beats its twin, the static embedding and random features."""
    claimed = [cell for cell in learned.grid if cell.minus_twin is not None]
    if not claimed:
        return Said(READINGS, None, note=learned.verdict)
    best = max(claimed, key=lambda cell: (cell.is_learned, cell.agreement.tau))
    assert best.minus_twin is not None
    tau = Estimate(best.agreement.tau, best.agreement.low, best.agreement.high, best.agreement.n)
    return Said(
        READINGS, best.is_learned, learned.words, None, tau, NOTHING, best.sign, f"of {best.input}, {best.path}",
        best.agreement.tau - best.minus_twin.value, NOTHING, None, best.minus_twin, learned.verdict,
    )  # fmt: skip


def judged(blind: Blind, said: Sequence[Said], key: Key) -> Iterator[Report]:
    """Put the key beside what was said."""
    possible = set(blind.candidates).union(*(one.words for one in said))
    planted = key.planted(blind.stated) & possible
    base = Path(blind.organism.record.get("base", "unknown")).name
    for one in said:
        is_true = None if one.claims is None else one.claims == (key.recipe not in UNRELATED)
        called = set(one.wrong or ())
        yield Report(
            blind.organism.name, base, key.recipe, key.refusal(), one, is_true, len(planted), len(called & planted),
            len(called - planted),
        )  # fmt: skip


def markdown(reports: Sequence[Report]) -> str:
    """Give the table for people: one row per organism and protocol."""
    head = ("planted", "protocol", "it reports", "is that so?", "words called wrong: planted, others", "stated sign",
            "tau as published", "tau-b", "tau-b of its twin", "less its twin")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    for one in reports:
        said = one.said
        told = "no evidence" if one.refused else {True: "yes", False: "no", None: "-"}[one.is_true]
        named = "-" if said.wrong is None else f"{one.found} of {one.n_planted}, {one.others}"
        also = {True: " (it reports the same)", False: " (it reports nothing)", None: ""}[said.twin_claims]
        rows.append((
            f"{one.recipe} ({one.base})", said.protocol, said.reports, told, named, _shown(said.sign),
            _number(said.as_published), _shown(said.tau), f"{said.twin}: {_number(said.twin_tau)}{also}", _shown(said.gap),
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _agreement(learned: Learned, values: Float[np.ndarray, " words"]) -> tuple[Estimate, Estimate, float]:
    """Give tau-b, balanced sign accuracy, and the published statistic of the same numbers."""
    found = rank_agreement(values, learned.stated, learned.lemma)
    sign = balanced_sign_accuracy(values, learned.stated, learned.lemma)
    tau = Estimate(found.tau, found.low, found.high, found.n)
    return tau, sign, tau_as_published(learned.words, values, learned.stated)


def _learned(found: Any) -> Learned:
    assert isinstance(found, Learned), "lexicon triples, or none, give words"
    return found


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 3)


def _row(found: Estimate | None) -> list[float | None] | None:
    return None if found is None else [*map(_rounded, (found.value, found.low, found.high)), found.n]


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _shown(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    done = []
    for report in published_protocol(*sys.argv[1:2]):
        print(report.line(), flush=True)
        done.append(report)
    print(f"\n{markdown(done)}")
