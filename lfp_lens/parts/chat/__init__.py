"""Chat models behind OpenAI-compatible servers: questions with a schema, a ledger of every reply, and a budget.

Texts of models and data sets travel as JSON in the user turn and are called data in the system turn; replies follow a schema.
`Chat` asks. The `Desk` decides what may be sent, from the `Ledger` and the `Spending`; the drivers and the Batch API send.
"""

from lfp_lens.parts.chat.bounds import BudgetSpent
from lfp_lens.parts.chat.chat import WORKERS, Chat, Estimate, UnusableReply
from lfp_lens.parts.chat.ledger import Ledger
from lfp_lens.parts.chat.question import DATA, Question
from lfp_lens.parts.chat.spending import KEY_VARIABLE, URL_VARIABLE, Prices, Spending, listed_prices, price_table

__all__ = [
    "DATA",
    "KEY_VARIABLE",
    "URL_VARIABLE",
    "WORKERS",
    "BudgetSpent",
    "Chat",
    "Estimate",
    "Ledger",
    "Prices",
    "Question",
    "Spending",
    "UnusableReply",
    "listed_prices",
    "price_table",
]
