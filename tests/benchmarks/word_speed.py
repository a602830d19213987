"""What does measuring words cost beside the two forward passes it cannot do without?

15,000 word occurrences of real reviews, on `imdb-neox-2m` and itself plus noise (needs the folder that LFP_LENS_DATA names).
"""

import time
from collections.abc import Iterator

import torch

from lfp_lens.parts.activations import batches, hidden_states
from lfp_lens.parts.before_words import VocabularySweep
from lfp_lens.parts.checkpoints import load_causal_lm, load_tokenizer
from lfp_lens.parts.lexicons import load_lexicon
from lfp_lens.parts.signals import SIGNALS
from lfp_lens.parts.texts import load_texts
from lfp_lens.parts.twins import noise_twin
from lfp_lens.parts.word_passes import read_words
from lfp_lens.stages.probe.words import choose
from tests.benchmarks.measure import Growth, Shape, one_thread


def word_speed(shape: Shape | None = None, *, n_texts: int = 1600, repeats: int = 3) -> Iterator[Growth]:
    """Compare CPU seconds, side by side and in turn. `shape` is of no use here: the model is a real one."""
    base, tokenizer = load_causal_lm("imdb-neox-2m"), load_tokenizer("imdb-neox-2m")
    other = noise_twin(base, load_causal_lm("imdb-neox-2m"), seed=0)
    texts = load_texts("imdb", split="test", n=n_texts, seed=0)
    chosen = choose(texts, tokenizer, load_lexicon("vader"), contexts=8, min_contexts=3, max_tokens=128, seed=0)
    n = len(chosen.spots)
    signals = {"implicit_reward": SIGNALS["implicit_reward"]}

    def forward() -> None:
        with torch.no_grad():
            for batch in batches([text for text, spans in zip(chosen.encoded, chosen.spans) if spans], device="cpu"):
                for model in (base, other):
                    hidden_states(model, batch)

    def words() -> None:
        read_words(base, [other], chosen.encoded, chosen.spans, signals)

    def words_and_vocabulary() -> None:
        sweep = VocabularySweep(1, base.config.vocab_size)
        read_words(base, [other], chosen.encoded, chosen.spans, signals, observers=[sweep])

    with one_thread():
        spent: dict[str, list[float]] = {}
        for _ in range(repeats):
            for work in (forward, words, words_and_vocabulary):
                started = time.process_time()
                work()
                spent.setdefault(work.__name__, []).append(time.process_time() - started)
    least = {name: min(times) for name, times in spent.items()}
    for name, what in (
        ("words", "implicit reward"),
        ("words_and_vocabulary", "implicit reward and the whole vocabulary"),
    ):
        told = f"{what} of {n:,} word occurrences beside the two forward passes over their texts (aim: at most 2)"
        yield Growth("word_speed", told, least["forward"], least[name], "CPU seconds")
