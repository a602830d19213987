"""The sections of a config, one class per verb: its plain keyword parameters with its own defaults."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lfp_lens.config.kinds import (
    Architectures,
    AtLeastTwo,
    Count,
    CountOrNone,
    CountsOrNone,
    Labeller,
    LabellerOrNone,
    NotNegative,
    NotNegativeCount,
    NotNegativesOrNone,
    Number,
    PositiveOrNone,
    PositivesOrNone,
    PricesOrNone,
    SAESide,
    Side,
    Size,
    SizeOrNone,
    Switch,
    SwitchOrNone,
    Text,
    TextOrNone,
)
from lfp_lens.config.strict import Strict, refuse_repeats, toml_value
from lfp_lens.core.errors import LensError

TAKES_L1 = ("standard", "tied", "untied", "gated")
TAKES_K = ("topk", "batchtopk", "matryoshka")


class DivergeConfig(Strict):
    """`[diverge]`: where the two models differ."""

    section = "diverge"
    replicates: Annotated[tuple[Text, ...], Field(title="a list of tuned checkpoints")] = ()
    """Other tunings that differ by their seed only: they say how much of a ranking is noise."""
    max_tokens: Count = 128
    """Tokens read of each text."""


class TrainSAEConfig(Strict):
    """`[train_sae]`: the dictionaries."""

    section = "train_sae"
    sizes: Annotated[tuple[Size, ...], Field(min_length=1, title="a list of numbers above 0")] = (1, 2)
    """Features divided by the site's width, one SAE for each."""
    sides: Annotated[tuple[SAESide, ...], Field(min_length=1, title="a list of base, tuned, difference, both")] = (
        "base",
        "tuned",
    )
    """Whose activations SAEs are trained on; `difference` is tuned - base, `both` a crosscoder of the two."""
    architecture: Architectures = "standard"
    """The kind of SAE; of several, later verbs read the first."""
    l1: NotNegativesOrNone = None
    """Weight of the L1 norm, for standard, tied and gated; not given: the architecture's own."""
    k: CountsOrNone = None
    """Features active per token, for topk, batchtopk and matryoshka; not given: an eighth of the site's width."""
    lr: PositivesOrNone = None
    """Learning rate; not given: 0.001, for a crosscoder 0.003."""
    replicates: Count = 1
    """SAEs of each kind, from as many seeds: two or more tell how stable a feature is."""
    tokens: Count = 200_000
    """Training tokens per SAE."""
    batch_tokens: Count = 1024
    """Tokens per optimisation step."""
    buffer_tokens: Count = 32_768
    """Tokens shuffled together; memory is this times sites times their width."""
    max_tokens: Count = 128
    """Tokens read of each text."""
    heldout_tokens: Count = 20_000
    """Tokens that reconstruction is measured on."""
    spliced_tokens: Count = 4_096
    """Predictions that KL and CE recovered are measured on."""
    random_twin: Switch = True
    """Whether SAEs are also trained on a model with random weights, as a floor."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What products are computed in."""
    from_sae: TextOrNone = None
    """An SAE to start from: a SAELens folder or an original checkpoint."""
    cache: TextOrNone = None
    """A folder for the activations of the training texts; not given: they are not written."""

    @model_validator(mode="after")
    def _agrees(self) -> "TrainSAEConfig":
        given = self.architecture if isinstance(self.architecture, tuple) else (self.architecture,)
        for key, takers in (("l1", TAKES_L1), ("k", TAKES_K)):
            if getattr(self, key) is not None and not set(given) & set(takers):
                raise LensError(
                    f"train_sae.{key} = {toml_value(getattr(self, key))} contradicts "
                    f"train_sae.architecture = {toml_value(self.architecture)}, which has no {key}. "
                    f"Remove {key}, or choose one of {', '.join(takers)}."
                )
        for key in ("sizes", "sides", "architecture", "l1", "k", "lr"):
            values = getattr(self, key)
            if isinstance(values, tuple):
                refuse_repeats(f"train_sae.{key}", values)
        return self


class ContrastConfig(Strict):
    """`[contrast]`: the triples."""

    section = "contrast"
    min_value: NotNegative = 1.0
    """Smallest |lexicon value| of a word that makes a triple."""
    max_triples: Count = 2000
    """Most triples kept."""
    rewriter: TextOrNone = None
    """Who rewrites the answers of preference pairs: `offline` or `openai:MODEL`; not given: triples of words in texts."""
    task: TextOrNone = None
    """What the rewriter grades: `hh`, `toxic` or a quality in words; not given: `toxic` if their name says so, else `hh`."""
    swap: SwitchOrNone = None
    """Whether the preferred answers are those that lack the quality; not given: only for `toxic`."""


class ProbeConfig(Strict):
    """`[probe]`: the learned value of every word."""

    section = "probe"
    signal: Literal["implicit_reward", "valence_shift", "activation_delta"] = "implicit_reward"
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
    replicates: Annotated[tuple[Text, ...], Field(title="a list of tuned checkpoints")] = ()
    """Other tunings that differ by their seed only: they give the interval over tunings."""
    shuffled: Annotated[tuple[Text, ...], Field(title="a list of tuned checkpoints")] = ()
    """Tunings by the same recipe on a reward that says nothing: the null over tunings."""
    cache: TextOrNone = None
    """A folder for the activations of the triples; not given: they are not written."""

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
    scalar: Literal["expected_valence", "implicit_reward", "log_p", "log_p_difference"] = "expected_valence"
    """What effects are measured on; `log_p_difference` is that of the preference pairs of `finetune.preferences`."""
    confirm: Count = 64
    """Features ablated exactly: so many with the largest, so many with the most negative screened effect."""
    joint: NotNegativeCount = 100
    """Features in the largest set whose share is measured together; 0 leaves this out."""
    side: SAESide = "tuned"
    """Whose dictionaries; of `difference` and `both` the tuned model is changed."""
    steps: Count = 1
    """Points of the integrated gradients; 1 is gradient times activation."""
    size: SizeOrNone = None
    """Which size; not given: the smallest."""
    max_tokens: Count = 64
    """Tokens read of each text."""


class ExplainConfig(Strict):
    """`[explain]`: explanations of features."""

    section = "explain"
    labeller: Labeller = "lexicon"
    """Who explains: `lexicon` and `graph` work offline, `openai:MODEL` asks a model, `recorded:FILE` replays answers."""
    task: Text = "positive or negative sentiment"
    """What relevance is judged against."""
    select: Literal["mmcs", "attribution", "all"] = "mmcs"
    """Which features: those found at both sizes, those with the largest effect, or all."""
    k: Count = 10
    """Features explained per site."""
    n_examples: Count = 10
    """Windows where it fires that the labeller sees per feature; half as many where it does not."""
    scores: Annotated[
        tuple[Literal["detection", "fuzzing", "simulation"], ...],
        Field(title="a list of detection, fuzzing, simulation"),
    ] = ("detection", "fuzzing", "simulation")
    """How explanations are tried on held-out windows; simulation where the labeller can simulate."""
    n_random: NotNegativeCount = 20
    """Random directions explained and scored as a control."""
    repeat: Switch = False
    """Whether the labeller is asked again with other windows."""
    judge: LabellerOrNone = None
    """A second labeller, asked with the same windows; not given: none."""
    budget_usd: PositiveOrNone = None
    """Most USD that a paid labeller may spend; not given: no bound."""
    budget_tokens: CountOrNone = None
    """Most tokens of questions and answers together; not given: no bound."""
    prices: PricesOrNone = None
    """USD per million tokens of questions and of answers, or a table of such pairs by model; not given: those of the package."""
    concurrency: Annotated[int, Field(ge=1, le=1000, title="a whole number from 1 to 1000")] = 16
    """Requests that run at once."""
    send: Literal["async", "sync", "batch"] = "async"
    """How requests are sent: many at once, one after the other, or by the Batch API."""
    base_url: TextOrNone = None
    """An OpenAI-compatible server; not given: OPENAI_BASE_URL, or OpenAI's own."""
    max_tokens: Count = 64
    """Tokens read of each text."""
    side: Side = "tuned"
    """Whose dictionaries."""
    size: SizeOrNone = None
    """Which size; not given: the smallest."""
    cache: TextOrNone = None
    """A folder for the activations of the texts; not given: they are not written."""


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
    floors: Switch = True
    """Whether curves of share against KL are measured for floors too (minutes)."""

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
