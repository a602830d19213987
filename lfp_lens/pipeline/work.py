"""What a run has, and the nine calls of its config: which verb gets which texts, results and options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lfp_lens.config import VERBS, RunConfig
from lfp_lens.core.errors import GateError
from lfp_lens.core.store import Store

EFFECT_TEXTS, EXPLAIN_TEXTS = 256, 512
"""Held-out texts for `attribute` and `explain`, whose cost grows with features times texts."""


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


class Work:
    """The nine calls of one config. Models and texts are loaded when first needed, once."""

    def __init__(self, config: RunConfig, done: Run) -> None:
        self.config, self.done, self.store = config, done, done.store
        self._texts: dict[str, list[str]] = {}
        self._pair: Any = None

    def finetune(self) -> Any:
        """Tune the base, unless a tuned model is given; one that did not learn stops what needs it."""
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
        """Compare the two models on held-out texts."""
        from lfp_lens.stages.diverge import diverge

        return diverge(self.pair(), self.texts("test"), **self.section("diverge"), **self.top("seed"), store=self.store)

    def train_sae(self) -> Any:
        """Train at the sites named, or at those that diverge most."""
        from lfp_lens.stages.train_sae import train_sae

        sites = self.config.sites
        chosen = self.done.results["diverge"].top(sites) if isinstance(sites, int) else sites
        options = self.section("train_sae") | self.top("seed")
        return train_sae(self.pair(), chosen, self.texts("train"), **options, store=self.store)

    def contrast(self) -> Any:
        """Make triples of words, or of preferences where a rewriter is named."""
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
        """Measure the feedback that was learned."""
        from lfp_lens.stages.probe import PREFERENCE_ARGUMENTS, probe

        options = self.section("probe") | self.top("lexicon", "gate", "seed")
        given = (self.pair(), self.done.results["train_sae"], self.done.results["contrast"])
        if self.config.contrast.rewriter is None:
            return probe(*given, self.texts("test"), **options, store=self.store)
        return probe(*given, **{name: options[name] for name in PREFERENCE_ARGUMENTS}, store=self.store)

    def attribute(self) -> Any:
        """Screen features for their effect."""
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
        """Label features; those with the largest effects where the config asks for these."""
        from lfp_lens.stages.explain import explain

        options = self.section("explain") | self.top("lexicon", "gate", "seed")
        if options["select"] == "attribution":
            options["effects"] = self.done.results.get("attribute") or self.attribute()
        return explain(
            self.pair(), self.done.results["train_sae"], self.texts("test")[:EXPLAIN_TEXTS], **options, store=self.store
        )

    def ablate(self) -> Any:
        """Zero-ablate the features labelled as relevant."""
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
        """Write the page, of the run as it stands."""
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
