"""The commands `lfp-lens organism` and `lfp-lens score`: what they take, and the calls they are."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfp_lens.core.errors import LensError
from lfp_lens.organisms.recipes import RECIPES

if TYPE_CHECKING:
    from lfp_lens.organisms.folder import Organism
    from lfp_lens.results.scorecard import Scorecard

SCORED = "runs/score"
VERBS = ("probe", "train_sae", "attribute", "ablate")
VERBS_HELP = f"{', '.join(VERBS)} (default: probe)"
USUAL: dict[str, Any] = {
    "dose": [1.0],
    "seed": [0],
    "method": ["ppo"],
    "replicates": 3,
    "no_shuffled": False,
    "set": [],
}
"""What is made where nothing is said."""


def organism_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `lfp-lens organism` takes; lists are multiplied out."""
    parser.add_argument(
        "bases", metavar="BASE", nargs="+", help="world, stories260K, imdb-neox-2m, a hub name or a folder"
    )
    _making(parser, "flip")


def score_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `lfp-lens score` takes."""
    parser.add_argument(
        "found",
        metavar="FOLDER",
        nargs="*",
        help="organisms, or folders of organisms (the quick card if none is given)",
    )
    parser.add_argument(
        "--bases",
        metavar="BASE",
        nargs="+",
        default=[],
        help="first make organisms of these, where they are not there yet",
    )
    _making(parser, "flip clean")
    own = parser.add_argument_group("what is measured")
    own.add_argument("--verbs", nargs="+", default=["probe"], choices=VERBS, metavar="VERB", help=VERBS_HELP)
    own.add_argument("--causes", action="store_true", help="the same as adding attribute and ablate")
    own.add_argument("--signals", nargs="+", default=["implicit_reward"], help="signals that probe measures")
    own.add_argument("--fdr", type=float, default=0.1, help="false discovery rate of the lists of words (default: 0.1)")
    own.add_argument("--n-texts", type=int, help="texts that words are measured in (the preset's number if not given)")
    own.add_argument("--contexts", type=int, default=8, help="occurrences measured per word (default: 8)")
    own.add_argument("--store", default=SCORED, metavar="DIR", help=f"folder of what was measured (default: {SCORED})")
    own.add_argument("--plot", metavar="FILE.html", help="write the figure of recall against frequency and dose")


def _making(parser: argparse.ArgumentParser, recipes: str) -> None:
    width = max(map(len, RECIPES))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "recipes:\n" + "\n".join(f"  {name:<{width}}  {RECIPES[name].says}" for name in RECIPES)
    own = parser.add_argument_group("what is made (lists are multiplied out; what is there is not made again)")
    own.add_argument("--recipe", nargs="+", metavar="NAME", help=f"what is planted, see below (default: {recipes})")
    own.add_argument("--dose", nargs="+", type=float, help="0 is the stated value, 1 the full edit (default: 1)")
    own.add_argument("--seed", nargs="+", type=int, help="of the secret and the tunings (default: 0)")
    own.add_argument("--method", nargs="+", help="ppo, rloo, grpo, dpo, kto (default: ppo)")
    own.add_argument("--words", type=int, help="words that are planted (default: 30; 10 in the tiny world)")
    own.add_argument("--replicates", type=int, help="tunings of each organism (default: 3)")
    own.add_argument(
        "--no-shuffled", action="store_true", default=None, help="leave out the twin tuned on a shuffled reward"
    )
    own.add_argument("--lexicon", help="the stated feedback (default: vader)")
    own.add_argument("--texts", help="text set or file, in place of the preset's")
    own.add_argument("--preset", metavar="PRESET|FILE.toml", help="values for another base than the three")
    own.add_argument("--set", metavar="KEY=VALUE", action="append", help="a key of [finetune], as in steps=60")
    own.add_argument("--organisms", default="organisms", metavar="DIR", help="folder of organisms (default: organisms)")
    own.add_argument("--device", default="cpu", help="where models are tuned and read: cpu, cuda, ... (default: cpu)")
    own.add_argument("--workers", type=int, help="tunings at a time (default: every core)")


def act_organism(given: argparse.Namespace) -> str:
    """Make organisms and tell where they are, not what they are."""
    made = _made(given, given.bases, given.recipe or ["flip"])
    return "\n".join(f"{one.path}  {len(one.tuned)} tunings{' and a twin' if one.shuffled else ''}" for one in made)


def act_score(given: argparse.Namespace) -> str:
    """Make what is missing, measure everything blind, open the keys, and give the card as text."""
    from lfp_lens.organisms.scoring import score

    organisms: list[Any] = list(given.found)
    if given.plot is not None and not Path(given.plot).absolute().parent.is_dir():
        raise LensError(f"--plot {given.plot}: there is no folder {Path(given.plot).parent}.")
    if given.bases or not organisms:
        organisms += _made(given, given.bases or ["world"], given.recipe or ["flip", "clean"])
    else:
        _refuse_making(given)
    card: Scorecard = score(
        organisms, verbs=given.verbs, causes=given.causes, signals=given.signals, fdr=given.fdr, texts=given.texts,
        n_texts=given.n_texts, contexts=given.contexts, store=given.store, device=given.device,
        lexicon=given.lexicon,
    )  # fmt: skip
    if given.plot is not None:
        card.plot().write_html(Path(given.plot), include_plotlyjs=True)
    return str(card)


def _refuse_making(given: argparse.Namespace) -> None:
    """Raise `LensError` for an option of what is made where nothing is."""
    for name in ("recipe", *USUAL, "words", "preset", "workers"):
        if getattr(given, name) is not None:
            raise LensError(
                f"--{name.replace('_', '-')} says what is made: name --bases to make organisms of, or leave it out to score "
                "these folders."
            )


def _made(given: argparse.Namespace, bases: list[str], recipes: list[str]) -> "list[Organism]":
    from lfp_lens.config import parse_value
    from lfp_lens.organisms.grid import organism_grid

    own = {name: usual if getattr(given, name) is None else getattr(given, name) for name, usual in USUAL.items()}
    changes = {}
    for pair in own["set"]:
        key, sign, text = pair.partition("=")
        if not sign:
            raise LensError(f"--set {pair}: expected KEY=VALUE, as in --set steps=60.")
        key = key.strip().removeprefix("finetune.")
        changes[key] = parse_value(f"finetune.{key}", text.strip())
    made = []
    for base in bases:
        words = given.words if given.words is not None else 10 if base == "world" else 30
        made += organism_grid(
            [base], recipes, doses=own["dose"], seeds=own["seed"], methods=own["method"], folder=given.organisms, words=words,
            replicates=own["replicates"], shuffled=not own["no_shuffled"], lexicon=given.lexicon or "vader", texts=given.texts,
            preset=given.preset, finetune=changes, workers=given.workers, device=given.device,
        )  # fmt: skip
    return made
