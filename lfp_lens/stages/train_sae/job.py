"""One call of `train_sae`, prepared: what is refused is refused here, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from lfp_lens.core.errors import LensError
from lfp_lens.core.work import SUFFIX, work_folder
from lfp_lens.parts.activation_cache import ActivationCache
from lfp_lens.parts.activations import encode
from lfp_lens.parts.harvest import Blocks, Models, Reader, split, text_batches
from lfp_lens.parts.pair import Pair
from lfp_lens.parts.speed import fast_matmul
from lfp_lens.parts.twins import random_model
from lfp_lens.results.train_sae import SAESet, SAEWeights
from lfp_lens.stages.train_sae.judging import Judging
from lfp_lens.stages.train_sae.learner import Schedule
from lfp_lens.stages.train_sae.plan import RANDOM, Spec
from lfp_lens.stages.train_sae.training import train

PCA_TOKENS = 8192
"""Training tokens that principal components are fitted on."""


class Job:
    """The SAEs to train, the random twins beside them, their stream, and the texts that judge them."""

    def __init__(
        self, pair: Pair, specs: Sequence[Spec], texts: Sequence[str], schedule: Schedule,
        starts: Mapping[Spec, SAEWeights], *, cache: Callable[[], ActivationCache | None], buffer_tokens: int,
        max_tokens: int, heldout_tokens: int, spliced_tokens: int, random_twin: bool, seed: int,
    ) -> None:  # fmt: skip
        self.pair, self.schedule, self.starts = pair, schedule, starts
        encoded = encode(pair.tokenizer, texts, max_tokens=pair.room(max_tokens))
        train_texts, heldout = split(encoded)
        begin = pair.tokenizer.bos_token_id
        batches = text_batches(train_texts, width=pair.tuned_hf.config.hidden_size, begin=begin, device=pair.device)
        have, needed = int(batches.n_tokens.sum()), schedule.batch_tokens
        if have < needed:
            raise LensError(
                f"The training texts hold {have} tokens; one batch needs batch_tokens={needed}: give more texts."
            )
        if not any(token != begin for text in heldout for token in text.ids):
            raise LensError(
                f"The {len(heldout)} held-out texts, the last tenth, hold no tokens to judge an SAE on: give others."
            )
        twins = [
            spec.at(RANDOM) for spec in specs if random_twin and spec.seed == seed and spec.side in ("base", "tuned")
        ]
        self.specs = list(dict.fromkeys([*specs, *twins]))
        self.models = {"base": pair.base_hf, "tuned": pair.tuned_hf}
        self.batches, self.cache, self.seed = batches, cache, seed
        self.block_tokens = min(max(1, buffer_tokens // needed), schedule.steps) * needed
        self.judging = Judging(pair, self.models, heldout, heldout_tokens, spliced_tokens, seed, bool(starts))
        if any(spec.side == "both" for spec in specs) and len(self.judging.read_texts()) < 2:
            raise LensError(
                f"A crosscoder is judged on at least 2 held-out texts, better 20; {len(heldout)} texts and "
                f"heldout_tokens={heldout_tokens} give {len(self.judging.read_texts())}. Give more of either."
            )

    def run(self, folder: Path | None) -> SAESet:
        """Train, measure and match; with a folder, checkpoints lie beside it until the result is whole."""
        source = self._source()
        work = nullcontext(None) if folder is None else work_folder(folder.with_suffix(SUFFIX))
        with fast_matmul(), work as place, self._bar() as bar:
            trained = train(
                self.specs, source, self.schedule, starts=self.starts, device=self.pair.device, work=place, bar=bar
            )
            block = next(source.blocks(0, [min(self.block_tokens, PCA_TOKENS)]))
            fit = {stream: acts.float().cpu() for stream, acts in block.items()}
            return self.judging.judge(trained, fit, self.schedule.batch_tokens)

    def _source(self) -> Blocks:
        """Give the stream, read from the cache where there is one; the random twin, and a cache in a folder, are made now."""
        if any(spec.side == RANDOM for spec in self.specs):
            self.models[RANDOM] = random_model(self.pair.base_hf, seed=self.seed)
        streams = list(dict.fromkeys(spec.stream for spec in self.specs))
        models, cache = Models(self.models, self.batches, streams, self.schedule.bf16), self.cache()
        reader: Reader = models if cache is None else cache.reader(self.batches, streams, self.pair, models)
        return Blocks(reader, self.batches.n_tokens, self.block_tokens, self.seed)

    def _bar(self) -> tqdm:
        """Say what the memory goes to, and give the bar."""
        widths = {spec.stream: spec.d_in for spec in self.specs}
        buffer = 4 * self.block_tokens * sum(widths.values())
        # Weights, gradients, two moments of Adam, and the untrained twin at the end.
        training = 5 * 4 * sum(2 * spec.d_in * spec.d_sae for spec in self.specs)
        total = self.schedule.steps * self.schedule.batch_tokens
        bar = tqdm(total=total, desc="train_sae", unit="tok", unit_scale=True)
        if not bar.disable:
            bar.write(
                f"train_sae: {len(self.specs)} SAEs {training / 1e6:,.0f} MB, buffer of {self.block_tokens:,} tokens at "
                f"{len(widths)} sites {buffer / 1e6:,.0f} MB"
            )
        return bar
