"""The sections of a config, one class per verb: its plain keyword parameters with its own defaults."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lfp_lens.config.kinds import (
    AtLeastTwo,
    Count,
    CountOrNone,
    NotNegative,
    NotNegativeOrNone,
    Number,
    Positive,
    Side,
    Size,
    SizeOrNone,
    Text,
    TextOrNone,
)
from lfp_lens.config.strict import Strict, refuse_repeats
from lfp_lens.core.errors import LensError

TAKES_L1 = ("standard", "tied", "gated")
TAKES_K = ("topk", "batchtopk")


class DivergeConfig(Strict):
    """`[diverge]`: where the two models differ."""

    section = "diverge"
    max_tokens: Count = 128
    """Tokens read of each text."""


class TrainSAEConfig(Strict):
    """`[train_sae]`: the dictionaries."""

    section = "train_sae"
    sizes: Annotated[tuple[Size, ...], Field(min_length=1, title="a list of numbers above 0")] = (1, 2)
    """Features divided by the site's width, one SAE for each."""
    sides: Annotated[tuple[Side, ...], Field(min_length=1, title="a list of base, tuned")] = ("base", "tuned")
    """Whose activations SAEs are trained on."""
    architecture: Literal["standard", "tied", "topk", "jumprelu", "gated", "batchtopk"] = "standard"
    """The kind of SAE."""
    l1: NotNegativeOrNone = None
    """Weight of the L1 norm, for standard, tied and gated; not given: the architecture's own."""
    k: CountOrNone = None
    """Features active per token, for topk and batchtopk; not given: an eighth of the site's width."""
    lr: Positive = 1e-3
    """Learning rate."""
    tokens: Count = 200_000
    """Training tokens per SAE."""
    batch_tokens: Count = 1024
    """Tokens per optimisation step."""
    max_tokens: Count = 128
    """Tokens read of each text."""
    heldout_tokens: Count = 20_000
    """Tokens that quality is measured on."""

    @model_validator(mode="after")
    def _agrees(self) -> "TrainSAEConfig":
        for key, takers in (("l1", TAKES_L1), ("k", TAKES_K)):
            if getattr(self, key) is not None and self.architecture not in takers:
                raise LensError(
                    f"train_sae.{key} = {getattr(self, key)} contradicts "
                    f"train_sae.architecture = {self.architecture!r}, which has no {key}. "
                    f"Remove {key}, or choose one of {', '.join(takers)}."
                )
        for key in ("sizes", "sides"):
            refuse_repeats(f"train_sae.{key}", getattr(self, key))
        return self


class ContrastConfig(Strict):
    """`[contrast]`: the triples."""

    section = "contrast"
    min_value: NotNegative = 1.0
    """Smallest |lexicon value| of a word that makes a triple."""
    max_triples: Count = 2000
    """Most triples kept."""


class ProbeConfig(Strict):
    """`[probe]`: the learned value of every word."""

    section = "probe"
    signal: Literal["implicit_reward", "activation_delta"] = "implicit_reward"
    """The per-token number that stands for learned feedback."""
    split: Literal["lemma", "row"] = "lemma"
    """How words are kept apart: `row` leaks them and stamps the result."""
    folds: AtLeastTwo = 5
    """Parts of the cross-validation."""
    contexts: Count = 8
    """Most contexts per word."""
    min_contexts: Count = 3
    """Fewest contexts that make a word count."""
    neutral_words: Count = 2000
    """Most words outside the lexicon that define zero."""
    max_tokens: Count = 128
    """Tokens read of each text."""

    @model_validator(mode="after")
    def _agrees(self) -> "ProbeConfig":
        if self.min_contexts > self.contexts:
            raise LensError(
                f"probe.min_contexts = {self.min_contexts} contradicts probe.contexts = {self.contexts}: "
                f"no word could count. Raise contexts to {self.min_contexts} or lower min_contexts."
            )
        return self


class AttributeConfig(Strict):
    """`[attribute]`: the effect of every feature."""

    section = "attribute"
    scalar: Literal["valence"] = "valence"
    """What effects are measured on."""
    confirm: AtLeastTwo = 64
    """Features whose effect is confirmed exactly."""
    side: Side = "tuned"
    """Whose dictionaries."""
    size: SizeOrNone = None
    """Which size; not given: the smallest."""
    max_tokens: Count = 64
    """Tokens read of each text."""


class ExplainConfig(Strict):
    """`[explain]`: descriptions of features."""

    section = "explain"
    labeller: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]+(:\S+)?$",
            title="'lexicon', 'openai:MODEL' or a registered name",
        ),
    ] = "lexicon"
    """Who describes: `lexicon` works offline, `openai:MODEL` asks a model."""
    task: Text = "positive or negative sentiment"
    """What relevance is judged against."""
    select: Literal["mmcs", "attribution", "all"] = "mmcs"
    """Which features: those found at both sizes, those with the largest effect, or all."""
    k: Count = 10
    """Features described per site."""
    n_examples: Count = 5
    """Texts the labeller sees per feature."""
    max_tokens: Count = 64
    """Tokens read of each text."""
    side: Side = "tuned"
    """Whose dictionaries."""
    size: SizeOrNone = None
    """Which size; not given: the smallest."""


class AblateConfig(Strict):
    """`[ablate]`: what happens without the features."""

    section = "ablate"
    reward: TextOrNone = None
    """What scores the completions; not given: the reward of the tuning, else VADER."""
    n: AtLeastTwo = 256
    """Prompts."""
    max_new_tokens: Count = 20
    """Longest completion in tokens."""
    mode: Literal["zero", "mean", "resample", "scale"] = "zero"
    """What a feature's activation becomes."""
    scale: Number = 0.0
    """The factor of mode `scale`."""
    controls: Count = 200
    """Random feature sets to compare with."""

    @model_validator(mode="after")
    def _agrees(self) -> "AblateConfig":
        if self.scale != 0 and self.mode != "scale":
            raise LensError(
                f"ablate.scale = {self.scale} contradicts ablate.mode = {self.mode!r}, which does not scale. "
                'Write mode = "scale", or remove scale.'
            )
        return self


class ReportConfig(Strict):
    """`[report]`: the page has no settings yet."""

    section = "report"
