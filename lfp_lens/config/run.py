"""`RunConfig`: the top of a config, its nine sections, and the contradictions between them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lfp_lens.config.finetune import FinetuneConfig
from lfp_lens.config.kinds import AtLeastFifty, NotNegativeCount, Text, TextOrNone
from lfp_lens.config.sections import (
    AblateConfig,
    AttributeConfig,
    ContrastConfig,
    DivergeConfig,
    ExplainConfig,
    ProbeConfig,
    ReportConfig,
    TrainSAEConfig,
)
from lfp_lens.config.strict import Strict, refuse_repeats, toml_lines, toml_value
from lfp_lens.core.errors import LensError, nearest

VERBS = ("finetune", "diverge", "train_sae", "contrast", "probe", "attribute", "explain", "ablate", "report")
LEXICON_FILES = (".csv", ".tsv", ".txt", ".json")


class RunConfig(Strict):
    """Everything a run needs. Make one with `load_config`, change one with `with_values`.

    >>> RunConfig(name="mine", base="world", texts="world", finetune={"steps": 10}).finetune.steps
    10
    """

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            title="a folder name of letters, digits, '.', '_' and '-'",
        ),
    ]
    """The run's folder in the store."""
    base: Text
    """The model before tuning: `world`, a hub name or a local folder."""
    tuned: TextOrNone = None
    """A tuned checkpoint to examine; not given: `finetune` makes one."""
    texts: Text
    """A named text set, a local file or folder, or a data set of the hub."""
    column: Text = "text"
    """The column that holds the text."""
    n_texts: AtLeastFifty = 2000
    """Texts of the train split: prompts and SAE training."""
    n_heldout: AtLeastFifty = 1000
    """Texts of the test split: everything that is measured."""
    lexicon: Text = "vader"
    """The stated feedback: `vader` or a lexicon file."""
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$", title="'cpu', 'cuda', 'cuda:N' or 'mps'")] = "cpu"
    """Where models run."""
    gate: Literal["refuse", "warn"] = "refuse"
    """What a failed quality gate does: refuse the number, or stamp it."""
    seed: NotNegativeCount = 0
    """Of everything random."""
    sites: Annotated[
        Annotated[int, Field(ge=1)] | Annotated[tuple[Text, ...], Field(min_length=1)],
        Field(title="a whole number of at least 1 (that many sites, by divergence), or a list of site names"),
    ] = 5
    """How many of the most divergent sites, or their names."""
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, title="a section")
    """How the base is tuned."""
    diverge: DivergeConfig = Field(default_factory=DivergeConfig, title="a section")
    """Where the models differ."""
    train_sae: TrainSAEConfig = Field(default_factory=TrainSAEConfig, title="a section")
    """The dictionaries."""
    contrast: ContrastConfig = Field(default_factory=ContrastConfig, title="a section")
    """The triples."""
    probe: ProbeConfig = Field(default_factory=ProbeConfig, title="a section")
    """The learned value of every word."""
    attribute: AttributeConfig = Field(default_factory=AttributeConfig, title="a section")
    """The effect of every feature."""
    explain: ExplainConfig = Field(default_factory=ExplainConfig, title="a section")
    """Descriptions of features."""
    ablate: AblateConfig = Field(default_factory=AblateConfig, title="a section")
    """What happens without the features."""
    report: ReportConfig = Field(default_factory=ReportConfig, title="a section")
    """The page."""

    @model_validator(mode="after")
    def _agrees(self) -> "RunConfig":
        for contradiction in (_in_tuning(self), _in_dictionaries(self), _in_rewriting(self), _in_lexicon(self)):
            if contradiction:
                raise LensError(contradiction)
        if isinstance(self.sites, tuple):
            refuse_repeats("sites", self.sites)
        return self

    def to_toml(self) -> str:
        """Give the complete config as TOML, defaults written out; `load_config` reads it back as it was."""
        top = {name: value for name, value in self if name not in VERBS}
        blocks = [toml_lines(top)]
        for verb in VERBS:
            if verb == "finetune" and self.tuned is not None:
                continue
            blocks.append(f"\n[{verb}]\n" + toml_lines(dict(getattr(self, verb))))
        return "".join(blocks)


def _in_tuning(config: RunConfig) -> str:
    given = sorted(config.finetune.model_fields_set)
    if config.tuned is not None and given:
        return (
            f"tuned = {toml_value(config.tuned)} contradicts [finetune] {', '.join(given)}: a checkpoint is "
            "examined as it is. Remove tuned to tune the base, or [finetune] to examine the checkpoint."
        )
    if config.finetune.preferences is not None:
        return ""
    if config.tuned is None and config.finetune.heldout + 2 > config.n_texts:
        return (
            f"finetune.heldout = {config.finetune.heldout} contradicts n_texts = {config.n_texts}: two "
            "prompts at least must be left to tune on. Raise n_texts or lower finetune.heldout."
        )
    return ""


def _in_dictionaries(config: RunConfig) -> str:
    sizes, sides = config.train_sae.sizes, config.train_sae.sides
    if config.explain.select == "mmcs" and len(sizes) < 2:
        return (
            f'explain.select = "mmcs" contradicts train_sae.sizes = {toml_value(sizes)}: it matches '
            'the features of two sizes. Give two sizes, or select = "attribution" or "all".'
        )
    if config.attribute.scalar == "log_p_difference" and config.finetune.preferences is None:
        return (
            'attribute.scalar = "log_p_difference" compares chosen with rejected, and there are no pairs. Give '
            "finetune.preferences, or another scalar."
        )
    for verb, section in (("attribute", config.attribute), ("explain", config.explain)):
        if section.side not in sides:
            return f"{verb}.side = {toml_value(section.side)} contradicts train_sae.sides = {toml_value(sides)}."
        if section.size is not None and section.size not in sizes:
            return f"{verb}.size = {section.size} contradicts train_sae.sizes = {toml_value(sizes)}."
    return ""


def _in_rewriting(config: RunConfig) -> str:
    if config.contrast.rewriter is None:
        return ""
    given = f"contrast.rewriter = {toml_value(config.contrast.rewriter)}"
    if config.finetune.preferences is None:
        return f"{given} rewrites preference pairs, and there are none. Give finetune.preferences, or remove contrast.rewriter."
    lacking = {"base", "tuned"} - set(config.train_sae.sides)
    if lacking:
        return f"{given} compares tuned with base features: add {', '.join(sorted(lacking))} to train_sae.sides."
    return ""


def _in_lexicon(config: RunConfig) -> str:
    if config.lexicon == "vader" or Path(config.lexicon).suffix.lower() in LEXICON_FILES:
        return ""
    hint = nearest(config.lexicon, ["vader"])
    files = ", ".join(LEXICON_FILES)
    return f"lexicon = {toml_value(config.lexicon)}: expected 'vader' or a {files} file.{hint}"
