"""Is what we train as good? The paper's tied SAE from our stream and from SAELens' own runner, at equal tokens, real text.

Needs the folder that LFP_LENS_DATA names. Both are judged on the same held-out reviews by the same figures.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lfp_lens.parts.activations import encode
from lfp_lens.parts.harvest import split
from lfp_lens.parts.pair import Pair, load_pair
from lfp_lens.parts.saes import export, quiet_sae_lens
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.texts import load_texts
from lfp_lens.stages.train_sae import train_sae
from lfp_lens.stages.train_sae.quality import Judged, measure_quality
from tests.benchmarks.measure import Comparison, Shape, one_thread

SITE, CONTEXT = "blocks.3.hook_mlp_out", 128
MEASURES = ("explained_variance", "l0", "kl_recovered")


def tied_quality(
    shape: Shape | None = None, *, seeds: Sequence[int] = (0, 1, 2), tokens: int = 204_800, n_texts: int = 3000
) -> Iterator[Comparison]:
    """Print each measure of each seed beside the peer's. `shape` is of no use here: the model is a real one."""
    texts = load_texts("imdb", split="train", n=n_texts, seed=0)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair = load_pair("imdb-neox-2m", "imdb-neox-2m")
        for seed in seeds:
            (ours,) = train_sae(
                pair, [SITE], texts, sides=("tuned",), sizes=(2,), architecture="tied", tokens=tokens, seed=seed,
                random_twin=False, max_tokens=CONTEXT,
            ).saes  # fmt: skip
            theirs = _peer(pair, texts, tokens, seed)
            for name in MEASURES:
                yield Comparison(
                    "tied_quality", f"tied SAE of size 2 at {SITE} of imdb-neox-2m, {tokens:,} tokens, seed {seed}: {name}",
                    getattr(ours, name), theirs[name], "SAELens LanguageModelSAETrainingRunner", "fp32 oneDNN", name,
                )  # fmt: skip


def _peer(pair: Pair, texts: Sequence[str], tokens: int, seed: int) -> dict[str, Any]:
    """Train our tied class with SAELens' runner and judge it as ours is."""
    import torch
    from datasets import Dataset

    from lfp_lens.parts.tied_sae import TiedTrainingSAEConfig

    lens = quiet_sae_lens()
    train_texts, heldout = split(encode(pair.tokenizer, texts, max_tokens=CONTEXT))
    stream = [token for text in train_texts for token in text.ids[1:]]
    rows = np.array(stream[: len(stream) // CONTEXT * CONTEXT]).reshape(-1, CONTEXT)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    width = pair.tuned_hf.config.hidden_size
    config = lens.LanguageModelSAERunnerConfig(
        sae=TiedTrainingSAEConfig(d_in=width, d_sae=2 * width), hook_name=SITE, verbose=False, model_name="imdb",
        dataset_path="local", streaming=False, context_size=CONTEXT, training_tokens=tokens, store_batch_size_prompts=32,
        n_batches_in_buffer=32_768 // CONTEXT, train_batch_size_tokens=1024, lr=1e-3, device="cpu", prepend_bos=False,
        n_checkpoints=0, checkpoint_path=None, output_path=None, logger=lens.LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    with torch.random.fork_rng(), fast_matmul():
        torch.manual_seed(seed)
        dataset = Dataset.from_dict({"input_ids": rows.tolist()})
        sae = lens.LanguageModelSAETrainingRunner(config, override_model=pair.tuned, override_dataset=dataset).run()
        judged = Judged("tuned", SITE, export(sae, site=SITE, model_name="peer"), None)
        models = {"base": pair.base_hf, "tuned": pair.tuned_hf}
        return measure_quality(
            models, pair.tokenizer, {"peer": judged}, heldout, tokens=20_000, spliced=4096, seed=seed
        )["peer"]
