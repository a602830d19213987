"""What each section of the page says: its title, what it measures, what it does not show."""

from typing import NamedTuple


class Words(NamedTuple):
    """The words of one section."""

    title: str
    """What it is called in the contents."""
    measures: str
    """One or two plain sentences."""
    limits: str
    """What it does not show."""
    caption: str
    """Of its first figure."""


WORDS = {
    "finetune": Words(
        "The tuning",
        "The reward of completions of held-out prompts, tuned model against base on the same prompts, and"
        " how far the policy moved to earn it. The base model is the control; the verdict also needs "
        "moderate KL and text that does not repeat itself.",
        "A risen reward does not show which words or features were learned, nor that the reward measures "
        "what its author meant. One tuning says nothing about another seed.",
        "Training batches; the held-out gain is above. Thin lines: each step. Thick: a moving average.",
    ),
    "diverge": Words(
        "Where the model moved",
        "The distance between base and tuned, layer by layer: of the weights, and of the activations of "
        "the same held-out tokens. The paper picks its layers by the sum of norms over a block's tensors.",
        "It shows where weights and activations moved, not why, and not that the layers that moved most "
        "hold the learned feedback. Its control is a choice of sites at random.",
        "The paper's Figure 7. Each measure is divided by its largest value; hover has the number itself.",
    ),
    "train_sae": Words(
        "The dictionaries",
        "How well each sparse autoencoder rebuilds activations of text it never saw, and what the model "
        "loses when it must use the rebuilt ones. MMCS is the mean cosine of each feature of the small "
        "SAE with its match in the larger one.",
        "A good reconstruction does not show that a feature is real. A high MMCS is evidence only as far "
        "as it exceeds that of random dictionaries of the same sizes.",
        "Each point is an SAE; crosses fail a gate. Hollow: the same SAE as initialised, the control.",
    ),
    "contrast": Words(
        "The contrastive triples",
        "The same text with a positive, a neutral and a negative word of the same part of speech in one "
        "slot, so that a difference in activations is the word's doing.",
        "A triple fixes the word, not its sense: a word may read oddly in its slot, and the stated values"
        " are only those of the lexicon.",
        "Every rejection has a reason.",
    ),
    "probe": Words(
        "Learned feedback, word by word",
        "What the tuning did to each word, read by {signal} and centred by words outside the lexicon: 0 "
        "is neutral, 1 is one spread of the neutral words. The headline is the rank agreement with the "
        "stated lexicon minus that of its twin, which learned nothing.",
        "Values are of this one checkpoint: another tuning by the same recipe may differ. An empty list "
        "of wrong words means that none is certain, not that all are right; and a probe that reads a "
        "value off features does not show that the model uses them.",
        "Each point is a word. Orange: certainly learned with the opposite sign. Hover names the word.",
    ),
    "attribute": Words(
        "Effect of every feature",
        "How much the {scalar} falls per {per} when a feature is removed (positive: removal lowers it). "
        "All features are screened in one pass to first order; the strongest of both signs and a random "
        "sample are confirmed by zeroing them, on other texts.",
        "The screened number is no effect: only the exact one is. An effect on this scalar is not yet an "
        "effect on sampled text, and a share that features carry together is no proof before shares are "
        "compared at equal damage (the ablation).",
        "Each confirmed feature with its 95 % interval over texts; on the dashed line the screen is exact.",
    ),
    "explain": Words(
        "What the features respond to",
        "A short description of each feature, made from the texts where it fires most, and whether it "
        "relates to the task. The detection score tests the description: how well it finds held-out texts"
        " where the feature fires.",
        "A description is a hypothesis. Trust one only as far as its score exceeds that of another "
        "feature's description; a label that fits the strongest texts may miss the weak ones.",
        "Balanced accuracy of each description. Hollow: the same test with another feature's description.",
    ),
    "ablate": Words(
        "Ablation",
        "What happens to the reward and to the expected valence of the next word when the features are "
        "removed, the reconstruction error kept: zeroed, set to their mean and resampled, always together. "
        "Controls: random sets of like firing rate and norm, reconstruction alone, the base model, the "
        "opposite features, and floors that the same screen chose, at equal KL.",
        "A drop is the features' doing only as far as it exceeds that of the random sets; a reward lost "
        "together with a large rise of perplexity is broken text. That features of an SAE carry the gain, "
        "and not just any directions, is shown only where they remove ten points more than every floor, in "
        "the zero and in the mean reading. It never shows that no other features carry the same feedback.",
        "Change of expected valence (teacher-forced): the features, and each random set.",
    ),
}
PREFERENCE_WORDS = {
    "contrast": Words(
        "The contrastive rewrites",
        "Three continuations of the same prompt, written by the same rewriter from the same answer at the same length: what the "
        "feedback prefers, a neutral one, and what it disprefers, each graded.",
        "The grades are the rewriter's own; how well they agree with what people preferred stands beside them. A rewriter leaves "
        "its hand in what it writes.",
        "Every rejection has a reason.",
    ),
    "probe": Words(
        "Learned preference",
        "How well a logistic probe on features of the tuned model tells the preferred rewrite from the other, on prompts it "
        "never saw, beside everything that can tell without the tuning: length, word counts, embeddings, the base model.",
        "A probe that tells the poles apart shows that they differ, not that feedback taught the difference, and not that the "
        "model uses it.",
        "Accuracy of every classifier with its interval over prompts; 0.5 is chance.",
    ),
}
"""The same where triples are rewrites of preference pairs."""
