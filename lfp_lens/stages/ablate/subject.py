"""What `ablate` works on: a pair, a TransformerLens model, a Hugging Face model or a run, behind one face."""

import tomllib
from dataclasses import dataclass
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.core.fingerprint import fingerprint
from lfp_lens.core.store import Store
from lfp_lens.parts.checkpoints import load_tokenizer, tuning_record, weights_fingerprint
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.sites import blocks

CONFIG_FILE = "config.toml"


@dataclass(frozen=True, eq=False)
class Subject:
    """The model whose features are ablated."""

    model: Any
    """It, as Hugging Face or TransformerLens model."""
    base: Any
    """The model it was tuned from; None if only one model is known."""
    tokenizer: Any
    """Its tokenizer."""
    tuning: dict[str, Any]
    """What its tuning record says; empty if there is none."""
    pair: str | None
    """Fingerprint of the pair; None for a single model."""
    fingerprint: str
    """Content hash."""
    weights: str | None
    """Fingerprint of its weights, as its SAEs name it; None for a pair, and where the model is held in another layout."""
    width: int
    """Width of its sites."""
    n_layers: int
    """Its blocks."""
    context: int | None
    """Longest text it takes, in tokens; None if it does not say."""
    both: Pair | None = None
    """The pair itself; None for a single model."""

    @property
    def is_hooked(self) -> bool:
        """Whether it is a TransformerLens model."""
        return hasattr(self.model, "hook_dict")

    @property
    def device(self) -> Any:
        """Where it is."""
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """How many tokens it predicts."""
        return self.model.cfg.d_vocab_out if self.is_hooked else self.model.config.vocab_size


@dataclass(frozen=True, eq=False)
class Opened:
    """A run, opened: its pair, and what the verbs before left for `ablate`."""

    pair: Pair
    features: Any
    """The features that `explain` found related to the task; None without it."""
    learned: Any
    """What `probe` gave; None without it."""
    reward: Any
    """The reward that the config tunes on; None where the checkpoint's record is to say."""


def is_run(model: Any) -> bool:
    """Tell whether this is a run, as `lfp_lens.run` and `lfp_lens.open_run` give it."""
    return isinstance(getattr(model, "store", None), Store) and isinstance(getattr(model, "results", None), dict)


def open_of_run(run: Any) -> Opened:
    """Load the pair of a run from where its config says. Raises `LensError` for a run without config or tuned model."""
    path = run.store.root / CONFIG_FILE
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise LensError(
            f"The config {path} of this run cannot be read ({error}); give the pair (lfp.load_pair)."
        ) from error
    tuned = config.get("tuned")
    if tuned is None:
        if "finetune" not in run.results:
            raise LensError(f"The run {run.store.root} has no tuned model yet: run finetune first.")
        tuned = run.results["finetune"].path
    base = config["base"]
    if base == "world":
        from lfp_lens.parts.world import world_checkpoint

        base = world_checkpoint(run.store, seed=config.get("seed", 0))
    pair = load_pair(str(base), str(tuned), device=config.get("device", "cpu"))
    tuning = config.get("finetune", {})
    is_rewarded = "tuned" not in config and tuning.get("preferences") is None
    reward = config.get("ablate", {}).get("reward") or (tuning.get("reward") if is_rewarded else None)
    labels = run.results.get("explain")
    return Opened(pair, None if labels is None else labels.relevant, run.results.get("probe"), reward)


def subject_of(model: Any) -> Subject:
    """Give the subject for whatever `ablate` was handed. Raises `LensError` for anything else."""
    if isinstance(model, Pair):
        tuned, key = model.tuned_hf, model.fingerprint
        return Subject(
            tuned, model.base_hf, model.tokenizer, model.tuning or {}, key, key, None, *_shape(tuned), both=model
        )
    if hasattr(model, "hook_dict") and getattr(model, "tokenizer", None) is not None:
        key = fingerprint([weights_fingerprint(model), model.tokenizer.get_vocab()])
        return Subject(
            model, None, model.tokenizer, {}, None, key, None, model.cfg.d_model, model.cfg.n_layers, model.cfg.n_ctx
        )
    if hasattr(model, "base_model_prefix") and hasattr(model, "config"):
        name = model.config._name_or_path
        if not name:
            raise LensError("This model was made in memory and has no tokenizer beside it: load it with lfp.load_pair.")
        tokenizer, tuning = load_tokenizer(name), tuning_record(name) or {}
        weights = weights_fingerprint(model)
        key = fingerprint([weights, tokenizer.get_vocab()])
        return Subject(model.eval(), None, tokenizer, tuning, None, key, weights, *_shape(model))
    raise LensError(
        "ablate works on a pair (lfp.load_pair), a HookedTransformer with its tokenizer, a Hugging Face causal LM or a run "
        f"(lfp.open_run); {type(model).__name__} given."
    )


def _shape(model: Any) -> tuple[int, int, int | None]:
    """Give width, layers and context of a Hugging Face model."""
    return model.config.hidden_size, len(blocks(model)), getattr(model.config, "max_position_embeddings", None)
