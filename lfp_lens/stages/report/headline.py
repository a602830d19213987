"""The box on top: what a reader takes away, each number with its interval and control."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lfp_lens.results import Ablation, Divergence, Learned, Tuning
from lfp_lens.results.ablate_readings import FEATURES
from lfp_lens.results.dashboard import AGREEMENT, FDR, WRONG_SIGN, headline, wrong_words
from lfp_lens.results.preference_probe import LearnedPreference
from lfp_lens.stages.report.preferences import tiles as preference_tiles
from lfp_lens.view.page import Tile
from lfp_lens.view.phrases import interval, signed
from lfp_lens.view.words_page import chips

SHOWN_SITES = 3
NOT_RUN = "not run"


def tiles(results: Mapping[str, Any], refusals: Mapping[str, str]) -> list[Tile]:
    """Give the headline numbers; a verb that was refused or not run says so in its tile."""
    made: list[Tile] = []
    for verb, names, build in (
        ("finetune", ("Did the tuning learn?", "Reward gain"), _tuning),
        ("diverge", ("Layers that moved most",), _divergence),
        ("probe", (AGREEMENT, WRONG_SIGN), _learned),
        ("ablate", ("Ablating the features", "Do features carry it?"), _ablation),
    ):
        if verb in refusals:
            made += [Tile(name, "refused", refusals[verb], "bad") for name in names]
        elif isinstance(results.get(verb), LearnedPreference):
            made += preference_tiles(results[verb])
        elif verb in results:
            if verb == "finetune":
                names = (names[0], results[verb].headline[0].capitalize())
            made += [Tile(name, *rest) for name, rest in zip(names, build(results[verb]))]
        else:
            made += [Tile(name, NOT_RUN, f"{verb} is not part of this run") for name in names]
    if "finetune" in results and results["finetune"].key and is_tested(results):
        made.append(_planted(results["probe"], results["finetune"].key))
    return made


def details(results: Mapping[str, Any]) -> list[str]:
    """List the first wrongly learned words below the tiles."""
    shown = chips(*wrong_words(results["probe"])) if is_tested(results) else ""
    return [shown] if shown else []


def is_tested(results: Mapping[str, Any]) -> bool:
    """Tell whether words were tested for the sign they were learned with."""
    learned = results.get("probe")
    return isinstance(learned, Learned) and learned.is_tested


def among_random(ablation: Ablation) -> str:
    """Tell where the effect lies among those of the matched random sets."""
    n = len(ablation.random_differences)
    if not n:
        return "no random sets were run, so nothing can be claimed"
    beaten = f"{round(n * ablation.percentile)} of {n} random sets matched in rate and norm"
    return f"a larger drop than {beaten} (percentile {100 * ablation.percentile:.1f})"


def planted_flips(learned: Learned, key: Mapping[str, float]) -> tuple[set[str], set[str]]:
    """Give the measured words that were planted with the opposite sign, and those listed as wrong."""
    stated = dict(zip(learned.words, learned.stated))
    flipped = {word for word, value in key.items() if word in stated and np.sign(value) == -np.sign(stated[word]) != 0}
    return flipped, set(learned.wrong(fdr=FDR)["word"])


def _tuning(tuning: Tuning) -> list[tuple[str, str, str]]:
    tone = "good" if tuning.is_learned else "bad"
    _, estimate = tuning.headline
    if estimate is tuning.accuracy:
        told = [f"{interval(estimate)} held-out pairs", f"by length alone {tuning.accuracy_length}"]
    elif estimate is tuning.fit:
        told = [f"{interval(estimate)} held-out texts, nats per token, paired"]
    else:
        told = [f"{interval(estimate)} held-out prompts, paired"]
    paid = list(tuning.reasons)
    if tuning.behaviour_base is not None and tuning.behaviour_tuned is not None:
        paid.append(f"KL {tuning.kl_nats:.2f} nats per completion, {tuning.kl_per_token:.3f} per token")
        if tuning.behaviour_base.reward is not None:
            told.append(f"base {tuning.behaviour_base.reward:.3f}, tuned {tuning.behaviour_tuned.reward:.3f}")
    number = f"{estimate.value:.3f}" if estimate is tuning.accuracy else signed(estimate)
    return [(tuning.verdict, "; ".join(paid), tone), (number, "; ".join(told), "")]


def _divergence(divergence: Divergence) -> list[tuple[str, str, str]]:
    top = divergence.top(min(SHOWN_SITES, len(divergence.sites)))
    layers = ", ".join(site.split(".")[1] if site.startswith("blocks.") else site for site in top)
    return [(f"layer {layers}", f"of {len(divergence.sites)}, by the published measure, furthest first", "")]


def _learned(learned: Learned) -> list[tuple[str, str, str]]:
    return [(tile.value, tile.detail, tile.tone) for tile in headline(learned)]


def _ablation(ablation: Ablation) -> list[tuple[str, str, str]]:
    effect = ablation.valence_difference
    what = f"expected valence, {interval(effect)} texts; {among_random(ablation)}"
    carries = ablation.curves is not None and " carries it: " in ablation.verdict
    said = "yes" if carries else "not shown"
    return [
        (signed(effect), f"{what}; {len(ablation.features)} features, mode {ablation.mode}; {by_mode(ablation)}", ""),
        (said, ablation.verdict, "good" if carries else ""),
    ]


def by_mode(ablation: Ablation) -> str:
    """Tell the share of the gain under zero-, mean- and resample-ablation together: each alone can mislead."""
    found = [one for one in ablation.readings if one.what == FEATURES and one.mode != "scale"]
    if any(one.share is None for one in found):
        return "valence by mode: " + ", ".join(f"{one.mode} {signed(one.valence)}" for one in found)
    return "share of the gain by mode: " + ", ".join(f"{one.mode} {one.share}" for one in found)


def _planted(learned: Learned, key: Mapping[str, float]) -> Tile:
    flipped, found = planted_flips(learned, key)
    given = learned.agreement({word: key.get(word, value) for word, value in zip(learned.words, learned.stated)})
    alarms = len(found - flipped)
    agreement = f"tau-b {given.tau:.3f} {interval(given)}"
    detail = f"{alarms} other words listed; agreement with the feedback really given: {agreement}"
    share = f"{len(flipped & found)} of {len(flipped)}" if flipped else "none of the planted words was measured"
    return Tile("Planted sign flips found", share, detail, "wide")
