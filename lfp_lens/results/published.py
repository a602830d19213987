"""The numbers printed in the paper (arXiv 2310.08164), digits as printed: for comparison only, their models and tasks.

What is not printed but recomputed from printed words (tau-b of Tables 2 and 9) is computed where it is shown.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MODELS = ("pythia-70m", "pythia-160m", "gpt-neo-125m", "gemma-2b-it")
WORDS_MODEL = "gpt-neo-125m"
"""The model of Tables 2 and 9."""

TABLE_2 = {
    "award": (2.5, 1.4), "loved": (2.9, 2.0), "great": (3.1, 1.0), "precious": (2.7, -0.81),
    "beautifully": (2.7, 0.64), "marvelous": (2.9, 1.28), "despised": (-1.7, -2.2), "weak": (-1.9, -2.2),
    "dreadful": (-1.9, -2.6), "cowardly": (-1.6, -2.53), "bad": (-2.5, -2.29),
}  # fmt: skip
"""Word -> (VADER value, value reconstructed by the probe): eleven words drawn at random."""
TABLE_9 = {
    "eagerly": (1.6, 1.3), "reluctantly": (-0.4, 1.7), "fun": (2.3, 1.9), "miserable": (-2.2, -3.3),
    "brilliant": (2.8, 1.3), "terrible": (-2.1, -1.9), "yes": (1.7, 1.9), "no": (-1.2, -1.7),
    "funny": (1.9, 0.7), "depressing": (-1.6, -2.4), "friend": (2.2, 1.1), "foe": (-1.9, -0.6),
    "masterpiece": (3.1, 1.3), "disaster": (-3.1, -2.4), "like": (1.5, 1.9), "dislike": (-1.6, -1.1),
    "won": (2.7, 3.4), "lost": (-1.3, 0.2), "interesting": (1.7, 2.4), "boring": (-1.3, -2.8),
    "amazing": (2.8, 1.3), "dreadful": (-1.9, -2.6), "despise": (-1.4, -2.5), "wonderful": (2.7, 0.9),
    "good": (1.9, 1.4), "better": (1.9, 0.9), "worse": (-2.1, -1.5), "best": (3.2, 1.7), "worst": (-3.1, -1.7),
    "praising": (2.5, 1.9),
}  # fmt: skip
"""The same for the thirty words of appendix D."""
TABLE_3 = {
    "HH": dict(zip(MODELS, ("99.92", "100", "99.90", "99.97"))),
    "toxic": dict(zip(MODELS, ("99.88", "99.90", "99.80", "99.88"))),
}
"""Task -> model -> accuracy of the preference probe in percent."""
TABLE_4 = {"pythia-70m": 0.042, "pythia-160m": 0.093, "gpt-neo-125m": 0.023}
"""Model -> Kendall's tau, computed on word strings."""
TABLE_4_BASELINE = -0.037
"""Tau of an untrained probe, computed on the values of 128 other words, all negative."""
TABLE_5 = {"pythia-70m": (81.38, 92.19), "pythia-160m": (82.4, 90.6), "gpt-neo-125m": (76.4, 84.2)}
"""Model -> sign accuracy of positive and of negative words in percent."""
TABLE_10 = {"pythia-70m": 0.02, "pythia-160m": 0.104, "gpt-neo-125m": 0.097}
"""Model -> Kendall's tau within negative words, computed on word strings."""
APPENDIX_B = {"tuned": (21, 50), "base": (13, 50)}
"""Side -> (features whose printed description is about opinions of films, features printed): counted in appendix B's tables."""
APPENDIX_B_MODEL = "pythia-70m, DistilBERT reward"
"""The model of Tables 1 and 8 and of appendix B."""
HUMAN_CHECK: dict[str, Any] = {
    "n": 40, "accuracy": (0.675, 0.700), "none_rate": (0.20, 0.225), "agreement": 0.875, "kappa": 0.842, "both_right": 0.65,
}  # fmt: skip
"""Two annotators of the original's public repository (pythia-70m, HH-RLHF) on the questions that both answered; not in the paper,
recomputed from its export."""

NOTE = (
    "The public code behind the published tau ranks word strings, not values. On the paper's own 30 words of Table 9 "
    "(gpt-neo-125m) tau-b is 0.520 (p = 8.6e-5), not 0.023. Splitting rows, not words, lets random vectors per word "
    "reach 86 % sign accuracy. The published baseline is of other words, by another statistic. tau_as_published is the "
    "statistic of that code on our values: it is no evidence and stands here only to be compared."
)
ABLATION_TITLE = "PUBLISHED in the paper, Tables 6 and 7 (their models and prompts, not this run)"


def table_3() -> "pd.DataFrame":
    """Give Table 3 as printed: accuracy of the preference probe in percent."""
    import pandas as pd

    return pd.DataFrame([{"task": task, **row} for task, row in TABLE_3.items()])


def ablation_table() -> "pd.DataFrame":
    """Give Tables 6 and 7 as printed."""
    import pandas as pd

    rows = [
        ("6: mean reward before", "2.07", "1.95", "1.43"),
        ("6: mean reward after", "1.96", "1.69", "1.43"),
        ("7: firing rate, flagged features (%)", "19.0", "19.7", "13.9"),
        ("7: firing rate, all features (%)", "9.1", "4.1", "4.2"),
    ]
    return pd.DataFrame(rows, columns=["table", *MODELS[:3]])
