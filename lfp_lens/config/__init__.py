"""One frozen `RunConfig`: everything a run needs, read from TOML with strict keys, written back as TOML.

A config is a saved call: `[ablate] mode = "zero"` is `ablate(..., mode="zero")`, and a section's defaults
are the verb's. Every wrong key, value or contradiction is a `LensError` that names file, key and fix.
"""

from lfp_lens.config.files import (
    describe_presets,
    field_of,
    load_config,
    parse_value,
    presets,
    section_fields,
    with_values,
)
from lfp_lens.config.finetune import FinetuneConfig
from lfp_lens.config.run import VERBS, RunConfig
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
from lfp_lens.config.strict import expected

__all__ = [
    "VERBS",
    "AblateConfig",
    "AttributeConfig",
    "ContrastConfig",
    "DivergeConfig",
    "ExplainConfig",
    "FinetuneConfig",
    "ProbeConfig",
    "ReportConfig",
    "RunConfig",
    "TrainSAEConfig",
    "describe_presets",
    "expected",
    "field_of",
    "load_config",
    "parse_value",
    "presets",
    "section_fields",
    "with_values",
]
