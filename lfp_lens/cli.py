"""The command `lfp-lens`: run a preset, run up to one verb, look at what the store holds, check the machine.

Nothing heavy is imported before a command needs it, so that `--help` answers at once. Exit codes: 0 done, 1
the doctor found a conflict, 2 the input cannot be used (one message, no traceback), 3 a gate refused the
tuning, so nothing was measured, 130 interrupted.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lfp_lens.core.errors import LensError, nearest, unknown

if TYPE_CHECKING:
    from lfp_lens.config import RunConfig
    from lfp_lens.pipeline import Run

VERBS = {
    "finetune": "tune the base model on the reward",
    "diverge": "measure how far each layer moved, and rank the sites",
    "train_sae": "train sparse autoencoders on base and tuned, and measure their quality",
    "contrast": "make triples of texts that differ in one word: positive, neutral, negative",
    "probe": "measure the learned value of every word, with every control",
    "attribute": "measure the effect of every feature",
    "explain": "describe features and judge which serve the task",
    "ablate": "remove features and measure what the model loses",
    "report": "write the page with every number, control and refusal",
}
COMMANDS = {
    "run": "run everything and write the report",
    **VERBS,
    "organism": "tune models on feedback whose truth is planted, and seal the answer key",
    "score": "measure organisms blind, then open their keys: what was found of what was planted",
    "list": "list the presets, and the runs in the store with what they have finished",
    "show": "print the summary and the tables of a stored run",
    "doctor": "check libraries, device, data and keys, what a config needs, and what it will cost",
}
TABLE_ROWS = 40
REFUSED = 3
CONFIG_METAVAR = "PRESET|FILE.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code.

    Args:
        argv: the words after the program's name; None takes them from the process.
    """
    # Both are read once, when torch and the tokenizers start: idle threads sleep instead of spinning.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _run_command(list(sys.argv[1:] if argv is None else argv))
    except LensError as error:
        print(f"lfp-lens: {_printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nlfp-lens: interrupted. Finished stages are kept; the same command again continues after them.",
            file=sys.stderr,
        )
        return 130


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are `LensError`s."""

    def error(self, message: str) -> NoReturn:
        raise LensError(f"{message}. See `{self.prog} --help`.")


def _run_command(argv: list[str]) -> int:
    command = argv[0] if argv else "--help"
    if not command.startswith("-") and command not in COMMANDS:
        raise unknown("command", command, COMMANDS)
    if command not in COMMANDS:
        return _top(command)
    parser = _Parser(prog=f"lfp-lens {command}", description=_sentence(COMMANDS[command]), allow_abbrev=False)
    kind = _KINDS[command]
    kind.arguments(parser, command)
    given, extra = parser.parse_known_args(argv[1:])
    if extra:
        known = [option for action in parser._actions for option in action.option_strings]
        hint = nearest(extra[0].partition("=")[0], known) if extra[0].startswith("-") else ""
        parser.error(f"unexpected argument {extra[0]!r}{hint and f' ({hint.strip()})'}")
    return kind.act(given, command)


def _top(option: str) -> int:
    if option == "--version":
        from importlib.metadata import version

        print(f"lfp-lens {version('lfp-lens')}")
        return 0
    if option not in ("-h", "--help"):
        raise LensError(f"Unknown option {option!r}. A command comes first: {', '.join(COMMANDS)}.")
    width = max(map(len, COMMANDS))
    print("usage: lfp-lens COMMAND ...\n\nMeasure what feedback a tuned language model really learned.")
    for title, inside in (("commands", False), ("verbs: each first runs what it needs", True)):
        chosen = {name: text for name, text in COMMANDS.items() if (name in VERBS) is inside}
        print(f"\n{title}\n" + "\n".join(f"  {name:<{width}}  {text}" for name, text in chosen.items()))
    print("\n`lfp-lens COMMAND --help` lists a command's options. To begin: lfp-lens run tiny")
    return 0


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of command."""

    arguments: Callable[[argparse.ArgumentParser, str], None]
    """Adds the arguments it takes."""
    act: Callable[[argparse.Namespace, str], int]
    """Does what it is for and gives the exit code."""


def _run_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("config", metavar=CONFIG_METAVAR, help="a preset (see `lfp-lens list`) or a config file")
    _set_argument(parser)
    _store_argument(parser)
    parser.add_argument("--name", help="name of the run in the store (the config's name if not given)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _verb_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    from lfp_lens.config import expected, section_fields

    _run_arguments(parser, command)
    own = parser.add_argument_group(f"the values of [{command}]")
    for name, field in section_fields(command).items():
        told = f"{(field.description or '').rstrip('.')}: {expected(field)}"
        told = told.replace("%", "%%").replace("no such key", "none")
        flags = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        own.add_argument(*flags, dest=f"{command}.{name}", metavar="VALUE", help=told)


def _set_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a value of the config, as in seed=1 or finetune.steps=10; may be repeated",
    )


def _store_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def _act_run(given: argparse.Namespace, command: str) -> int:
    run = _pipeline(given, command, until=None)
    _print(run.summary())
    _print_page(run)
    measured = run.results.keys() - {"finetune", "report"}
    return REFUSED if run.refusals and not measured else 0


def _act_verb(given: argparse.Namespace, command: str) -> int:
    run = _pipeline(given, command, until=command)
    if command not in run.results:
        raise LensError(f"{command} gave no number: {run.refusals.get(command, 'this run has no use for it.')}")
    _print(_table(run.results[command]))
    _print_page(run)
    return 0


def _list_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    _store_argument(parser)


def _act_list(given: argparse.Namespace, command: str) -> int:
    from lfp_lens.config import describe_presets

    known, runs = describe_presets(), _stored_runs(Path(given.store))
    width = max(map(len, (*known, *runs)))
    print("presets:")
    for name, text in known.items():
        print(f"  {name:<{width}}  {text}")
    print(f"\nruns in {given.store}:" if runs else f"\nno runs in {given.store}")
    for name, verbs in runs.items():
        _print(f"  {name:<{width}}  {', '.join(verbs) or 'nothing finished'}")
    return 0


def _show_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("run", metavar="RUN", help="name of a run in the store, or its folder")
    _store_argument(parser)


def _act_show(given: argparse.Namespace, command: str) -> int:
    store = Path(given.store)
    inside = store / given.run
    path = inside if inside.is_dir() else Path(given.run)
    if not path.is_dir():
        runs = _stored_runs(store)
        raise LensError(
            f"There is no run {given.run!r} in {store}.{nearest(given.run, runs)} "
            f"Runs: {', '.join(runs) or 'none'}. Name another store with --store."
        )
    from lfp_lens import pipeline

    run = pipeline.open_run(path)
    _print(run.summary())
    for verb, result in run.results.items():
        _print(f"\n== {verb}: {VERBS.get(verb, '')}\n{_table(result)}")
    for verb, why in run.refusals.items():
        _print(f"\n== {verb}: refused\n{why}")
    return 0


def _doctor_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    parser.add_argument("config", metavar=CONFIG_METAVAR, nargs="?", help="also check what this config needs and costs")
    _set_argument(parser)
    for side, of in (("in", "questions"), ("out", "answers")):
        told = f"what a paid labeller charges for {of}, USD per million tokens (LFP_LENS_PRICE_{side.upper()} if not given)"
        parser.add_argument(f"--price-{side}", metavar="USD", type=float, help=told)


def _act_doctor(given: argparse.Namespace, command: str) -> int:
    from lfp_lens import doctor

    if given.config is None:
        named = [option for option in ("set", "price_in", "price_out") if getattr(given, option) not in (None, [])]
        if named:
            raise LensError(f"--{named[0].replace('_', '-')} belongs to a config: lfp-lens doctor {CONFIG_METAVAR} ...")
        findings = doctor.examine(None)
    else:
        at = doctor.prices(given.price_in, given.price_out)
        config = _config(given, command)
        findings = [*doctor.examine(config), *doctor.estimate(config, at=at)]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        _print(f"{finding.status:<8}  {finding.name:<{width}}  {finding.text}")
    return 1 if any(finding.status == "conflict" for finding in findings) else 0


def _organism_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    from lfp_lens.organisms import commands

    (commands.organism_arguments if command == "organism" else commands.score_arguments)(parser)


def _act_organism(given: argparse.Namespace, command: str) -> int:
    from lfp_lens.organisms import commands

    _print((commands.act_organism if command == "organism" else commands.act_score)(given))
    return 0


_KINDS = {
    "run": _Kind(_run_arguments, _act_run),
    "list": _Kind(_list_arguments, _act_list),
    "show": _Kind(_show_arguments, _act_show),
    "doctor": _Kind(_doctor_arguments, _act_doctor),
    **dict.fromkeys(("organism", "score"), _Kind(_organism_arguments, _act_organism)),
    **dict.fromkeys(VERBS, _Kind(_verb_arguments, _act_verb)),
}


def _pipeline(given: argparse.Namespace, command: str, *, until: str | None) -> "Run":
    config = _config(given, command)
    from lfp_lens import pipeline

    return pipeline.run(config, store=given.store, until=until, quiet=given.quiet)


def _config(given: argparse.Namespace, command: str) -> "RunConfig":
    from lfp_lens.config import load_config, parse_value, with_values

    config = load_config(given.config)
    values: dict[str, Any] = {}
    for pair in given.set:
        key, sign, text = pair.partition("=")
        if not sign:
            raise LensError(f"--set {pair}: expected KEY=VALUE, as in --set finetune.steps=10.")
        values[key.strip()] = parse_value(key.strip(), text.strip())
    for key, text in vars(given).items():
        if key.startswith(f"{command}.") and text is not None:
            values[key] = parse_value(key, text)
    if getattr(given, "name", None) is not None:
        values["name"] = given.name
    return with_values(config, values) if values else config


def _stored_runs(store: Path) -> dict[str, list[str]]:
    """Name the runs of a store, each with its finished verbs, without making or changing anything."""
    if not store.is_dir():
        return {}
    runs = {}
    for path in sorted(store.iterdir()):
        verbs = [verb for verb in VERBS if (path / verb).is_symlink() and (path / verb).is_dir()]
        if verbs or (path / "config.toml").is_file():
            runs[path.name] = verbs
    return runs


def _table(result: Any) -> str:
    if not hasattr(result, "to_frame"):
        return str(getattr(result, "path", result))
    frame = result.to_frame()
    text = frame.head(TABLE_ROWS).to_string(index=False, max_colwidth=60)
    more = len(frame) - TABLE_ROWS
    return text if more <= 0 else f"{text}\n... and {more} rows more"


def _print_page(run: "Run") -> None:
    if "report" not in run.results:
        return
    top = run.store.root / "report.html"
    print(f"Report: {top if top.exists() else run.results['report'].path}")


def _print(text: str) -> None:
    print(_printable(text))


def _printable(text: str) -> str:
    """Show control characters as escapes: model and data text must not command the terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
