"""What ends the spending: a budget without room, and a server that does not keep to what was reserved."""

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat.spending import Spending

SLACK = 1e-9
"""USD by which sums of floats may be off."""


class BudgetSpent(LensError):
    """The budget does not suffice for the next request, or cannot be kept; what was answered is kept."""


def overrun(
    name: str,
    spending: Spending,
    reserved: tuple[int, int],
    reserved_usd: float | None,
    counted: tuple[int, int],
    usd: float | None,
) -> BudgetSpent | None:
    """Make the error for a reply that cost more than its request had reserved; None if it did not, or there is no budget.

    Args:
        name: who was asked, for the message.
        spending: with the budgets.
        reserved: tokens of question and answer.
        reserved_usd: what they cost, None at an unknown price.
        counted: the same tokens as the server counted them.
        usd: what these cost.
    """
    is_over_usd = usd is not None and reserved_usd is not None and usd > reserved_usd + SLACK
    is_over_tokens = sum(counted) > sum(reserved)
    for unit, budget, is_over in (
        ("usd", spending.budget_usd, is_over_usd),
        ("tokens", spending.budget_tokens, is_over_tokens),
    ):
        if budget is not None and is_over:
            return BudgetSpent(
                f"A reply of {name} counts {counted[0]:,} + {counted[1]:,} tokens where {reserved[0]:,} + {reserved[1]:,} were "
                f"reserved: the server does not keep max_completion_tokens, so budget_{unit} cannot be kept. No further request "
                "was sent, and what was answered is kept. Use a server that keeps it, or give no budget."
            )
    return None
