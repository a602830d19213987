"""A run: every verb in order, through one store, skipping what is finished, stopping where a gate refuses.

Data runs finetune, diverge, train_sae, contrast, probe, attribute, explain, ablate, report. The train split makes the tuned
model and the SAEs; the test split is measured. A verb that a gate refuses leaves its reason, and so do the verbs that
need it; the rest goes on, and the page shows both.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfp_lens.config import VERBS, RunConfig
from lfp_lens.core.errors import GateError, LensError, unknown
from lfp_lens.core.store import Store

NEEDS = {
    "finetune": (),
    "diverge": ("finetune",),
    "train_sae": ("diverge",),
    "contrast": (),
    "probe": ("train_sae", "contrast"),
    "attribute": ("train_sae",),
    "explain": ("train_sae",),
    "ablate": ("explain",),
    "report": (),
}
"""Verb -> the verbs whose results it takes."""
EFFECT_TEXTS, EXPLAIN_TEXTS = 256, 512
"""Held-out texts for `attribute` and `explain`, whose cost grows with features times texts."""
CONFIG_FILE, SUMMARY_FILE = "config.toml", "summary.txt"


@dataclass
class Run:
    """A run and what it has so far; `run.results["probe"]` is the probe's `Learned`."""

    name: str
    """Its name, the folder in the store."""
    store: Store
    """Where everything is."""
    results: dict[str, Any] = field(default_factory=dict)
    """Verb -> result, in order."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Verb -> why it gave no number."""

    def summary(self) -> str:
        """Give the headline numbers as text, the same that open the page, and what they cost."""
        from lfp_lens.stages.report.summary import summary

        spent = [self.store.meta(verb) for verb in (*self.results, "world") if self.store.has(verb)]
        seconds, cpu = (sum(meta[name] for meta in spent) for name in ("seconds", "cpu_seconds"))
        cost = f"{len(self.results)} verbs, {seconds:.0f} s, {cpu:.0f} CPU-seconds"
        return f"{summary(self.name, self.results, self.refusals)}\n{cost}"


def run(
    config: RunConfig, *, store: str | os.PathLike[str] = "runs", until: str | None = None, quiet: bool = False
) -> Run:
    """Run every verb, or those that `until` needs and `until` itself; finished ones are read from the store.

    Args:
        config: from `load_config("tiny")`, a TOML file, or made in Python.
        store: folder of all runs; this one goes to `store/config.name`.
        until: the last verb wanted; None runs all nine.
        quiet: draw no progress bars.

    Raises:
        LensError: for whatever is wrong with the config's models and data. Refusals of gates are in `Run.refusals`.

    >>> run(load_config("tiny")).results["probe"].wrong()  # doctest: +SKIP
    """
    from lfp_lens.parts.speed import without_bars

    if until is not None and until not in VERBS:
        raise unknown("verb", until, VERBS)
    folder = Path(store) / config.name
    _check_names(config, _wanted(until), is_explained=_is_kept(folder, config, "explain"))
    home = _home(folder, config)
    done = Run(config.name, home)
    work = _Work(config, done)
    with warnings.catch_warnings(), without_bars() if quiet else nullcontext():
        # TransformerLens announces its own future on every construction; users can do nothing about it.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"transformer_lens|sae_lens")
        for verb in _wanted(until):
            _step(verb, done, getattr(work, verb))
    if "report" in done.results:
        home.write_text(SUMMARY_FILE, done.summary() + "\n")
    return done


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a stored run with every finished result; nothing is computed. Raises `LensError` if there is none."""
    import lfp_lens.results  # noqa: F401  (a record can only be read once its class is known)

    folder = Path(path)
    if not folder.is_dir():
        raise LensError(f"There is no run at {folder}: expected the folder of a run, such as runs/tiny.")
    store = Store(folder)
    results = {verb: store.read(verb) for verb in VERBS if store.has(verb)}
    if not results and not (folder / CONFIG_FILE).is_file():
        raise LensError(f"{folder} is no run: it holds neither {CONFIG_FILE} nor a finished result.")
    refusals: dict[str, str] = {}
    if "report" in results:
        from lfp_lens.stages.report import PAGE_FILE

        # The run may have been moved since.
        results["report"] = dataclasses.replace(results["report"], path=store.root / PAGE_FILE)
        refusals = dict(results["report"].refusals)
    return Run(folder.name, store, results, refusals)


def _check_names(config: RunConfig, wanted: tuple[str, ...], *, is_explained: bool = False) -> None:
    """Refuse what a late verb would refuse, an unknown reward, lexicon or site, a labeller or judge that cannot do, or a chat
    model without a key, before hours of work. Labels that are finished need no key.
    """
    from lfp_lens.parts.labellers import SPENDING, Setting
    from lfp_lens.parts.labellers.opinions import check_keys, make_labellers
    from lfp_lens.parts.lexicons import load_lexicon
    from lfp_lens.parts.rewards import make_reward
    from lfp_lens.parts.sites import layer_of

    if "finetune" in wanted and config.tuned is None and config.finetune.preferences is None:
        make_reward(config.finetune.reward)
    if "ablate" in wanted and config.ablate.reward is not None:
        make_reward(config.ablate.reward)
    stated = load_lexicon(config.lexicon)
    if "explain" in wanted:
        spending = {name: getattr(config.explain, name) for name in SPENDING}
        setting, asked = Setting(stated, config.explain.task, Path("replies"), spending), config.explain
        made = make_labellers(asked.labeller, asked.judge, setting, repeat=asked.repeat)
        if not is_explained:
            check_keys(*made)
    for site in config.sites if isinstance(config.sites, tuple) else ():
        layer_of(site)


def _is_kept(folder: Path, config: RunConfig, verb: str) -> bool:
    """Tell whether a verb of this very config is finished in the folder of a run."""
    written = folder.expanduser() / CONFIG_FILE
    return (
        written.is_file()
        and written.read_text(encoding="utf-8") == config.to_toml()
        and (written.parent / verb).is_dir()
    )


def _home(folder: Path, config: RunConfig) -> Store:
    """Open the run's folder. Under another config the links of the old one go: what is linked belongs to one config."""
    home, text = Store(folder), config.to_toml()
    written = home.root / CONFIG_FILE
    if written.is_file() and written.read_text(encoding="utf-8") != text:
        for verb in home.verbs():
            home.forget(verb)
    home.write_text(CONFIG_FILE, text)
    return home


def _wanted(until: str | None) -> tuple[str, ...]:
    """Give the verbs to run, in order."""
    if until is None or until == "report":
        return VERBS
    wanted, open_ = set(), [until]
    while open_:
        verb = open_.pop()
        wanted.add(verb)
        open_ += NEEDS[verb]
    return tuple(verb for verb in VERBS if verb in wanted)


def _step(verb: str, done: Run, make: Callable[[], Any]) -> None:
    """Run one verb unless something it needs was refused; keep a refusal's reason."""
    if verb in done.refusals:
        done.store.forget(verb)
        return
    missing = next((need for need in NEEDS[verb] if need in done.refusals), None)
    if missing is not None:
        done.store.forget(verb)
        done.refusals[verb] = f"it needs {missing}, which was refused: {done.refusals[missing]}"
        return
    try:
        result = make()
    except GateError as refusal:
        done.store.forget(verb)
        done.refusals[verb] = str(refusal)
        return
    if result is not None:
        done.results[verb] = result


class _Work:
    """The nine calls of one config. Models and texts are loaded when first needed, once."""

    def __init__(self, config: RunConfig, done: Run) -> None:
        self.config, self.done, self.store = config, done, done.store
        self._texts: dict[str, list[str]] = {}
        self._pair: Any = None

    def finetune(self) -> Any:
        from lfp_lens.stages.finetune import finetune

        if self.config.tuned is not None:
            return None
        prompts = () if self.config.finetune.preferences is not None else self.texts("train")
        options = self.section("finetune") | self.top("device", "seed")
        result = finetune(self.base(), prompts=prompts, **options, store=self.store)
        if result.method == "reward_model":
            reason = "a reward model writes nothing: it makes no pair to compare (lfp_lens.load_reward_model opens it)"
            self.done.refusals.update(dict.fromkeys(VERBS[1:-1], reason))
        if not result.is_learned and self.config.gate == "refuse":
            reason = f"{result.verdict}: {'; '.join(result.reasons)}"
            self.done.refusals.update(dict.fromkeys(VERBS[1:-1], reason))
        return result

    def diverge(self) -> Any:
        from lfp_lens.stages.diverge import diverge

        return diverge(self.pair(), self.texts("test"), **self.section("diverge"), **self.top("seed"), store=self.store)

    def train_sae(self) -> Any:
        from lfp_lens.stages.train_sae import train_sae

        sites = self.config.sites
        chosen = self.done.results["diverge"].top(sites) if isinstance(sites, int) else sites
        options = self.section("train_sae") | self.top("seed")
        return train_sae(self.pair(), chosen, self.texts("train"), **options, store=self.store)

    def contrast(self) -> Any:
        from lfp_lens.stages.contrast import contrast

        options = self.section("contrast") | self.top("lexicon", "seed")
        if self.config.contrast.rewriter is None:
            return contrast(self.texts("test"), **options, store=self.store)
        from lfp_lens.parts.preferences import load_preferences

        # Rewrites belong to a task: neither a lexicon nor a word's value is asked for.
        options = {name: value for name, value in options.items() if name not in ("lexicon", "min_value")}
        source = self.config.finetune.preferences
        assert source is not None, "the config is checked"
        return contrast(load_preferences(source), **options, store=self.store)

    def probe(self) -> Any:
        from lfp_lens.stages.probe import PREFERENCE_ARGUMENTS, probe

        options = self.section("probe") | self.top("lexicon", "gate", "seed")
        given = (self.pair(), self.done.results["train_sae"], self.done.results["contrast"])
        if self.config.contrast.rewriter is None:
            return probe(*given, self.texts("test"), **options, store=self.store)
        return probe(*given, **{name: options[name] for name in PREFERENCE_ARGUMENTS}, store=self.store)

    def attribute(self) -> Any:
        from lfp_lens.stages.attribute import attribute

        options = self.section("attribute") | self.top("lexicon", "gate", "seed")
        texts: Sequence[Any] = self.texts("test")[:EFFECT_TEXTS]
        if options["scalar"] == "log_p_difference":
            from lfp_lens.parts.preferences import load_preferences

            source = self.config.finetune.preferences
            assert source is not None, "the config is checked"
            texts = load_preferences(source).test[:EFFECT_TEXTS]
        return attribute(self.pair(), self.done.results["train_sae"], texts, **options, store=self.store)

    def explain(self) -> Any:
        from lfp_lens.stages.explain import explain

        options = self.section("explain") | self.top("lexicon", "gate", "seed")
        if options["select"] == "attribution":
            options["effects"] = self.done.results.get("attribute") or self.attribute()
        return explain(
            self.pair(), self.done.results["train_sae"], self.texts("test")[:EXPLAIN_TEXTS], **options, store=self.store
        )

    def ablate(self) -> Any:
        from lfp_lens.parts.generation import prompt_texts
        from lfp_lens.results.probe import Learned
        from lfp_lens.stages.ablate import ablate

        relevant = self.done.results["explain"].relevant
        if not len(relevant):
            raise GateError(
                f"no feature was labelled as related to {self.config.explain.task!r}: there is nothing to ablate"
            )
        lengths = self.config.finetune.prompt_tokens
        prompts = prompt_texts(self.pair().tokenizer, self.texts("test"), lengths, seed=self.config.seed)
        options = self.section("ablate") | self.top("seed")
        if options["reward"] is None and self.config.tuned is None and self.config.finetune.preferences is None:
            # The checkpoint's record names the reward; only the config can find a lexicon file again.
            options["reward"] = self.config.finetune.reward
        learned = self.done.results.get("probe")
        if isinstance(learned, Learned):
            options["learned"] = learned
        return ablate(self.pair(), relevant, prompts=prompts, **options, store=self.store)

    def report(self) -> Any:
        from lfp_lens.stages.report import report

        # The page shows the run as it stands, so it is written every time and its record replaced.
        made = report(self.done.results, title=self.config.name, refusals=self.done.refusals, store=self.store)
        self.store.get("report", {"results": self.done.results, "refusals": self.done.refusals}, lambda folder: made)
        return made

    def base(self) -> str:
        """Give the base model's name or path; the tiny world's is trained once and kept in the store."""
        if self.config.base != "world":
            return self.config.base
        from lfp_lens.parts.world import world_checkpoint

        return str(world_checkpoint(self.store, seed=self.config.seed))

    def pair(self) -> Any:
        """Load the pair once."""
        if self._pair is None:
            from lfp_lens.parts.pair import load_pair

            tuned = self.config.tuned or self.done.results["finetune"].path
            self._pair = load_pair(self.base(), tuned, device=self.config.device)
        return self._pair

    def texts(self, split: str) -> list[str]:
        """Load a split once."""
        from lfp_lens.parts.texts import load_texts

        if split not in self._texts:
            n = self.config.n_texts if split == "train" else self.config.n_heldout
            self._texts[split] = load_texts(self.config.texts, split=split, n=n, **self.top("column", "seed"))
        return self._texts[split]

    def section(self, verb: str) -> dict[str, Any]:
        """Give a verb's own values."""
        return {
            name: getattr(getattr(self.config, verb), name) for name in type(getattr(self.config, verb)).model_fields
        }

    def top(self, *names: str) -> dict[str, Any]:
        """Give values from the top of the config."""
        return {name: getattr(self.config, name) for name in names}
