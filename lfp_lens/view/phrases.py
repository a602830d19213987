"""Numbers as phrases, the same on every page: an estimate with its sign, its interval, the side of zero it lies on."""

from lfp_lens.core.stats import Estimate, RankAgreement


def signed(estimate: Estimate) -> str:
    """Give an estimate with its sign.

    >>> signed(Estimate(0.52, 0.4, 0.6, 90))
    '+0.520'
    """
    return f"{estimate.value:+.3f}"


def interval(number: Estimate | RankAgreement) -> str:
    """Give the 95 % interval and n.

    >>> interval(Estimate(0.52, 0.4, 0.6, 1090))
    '[0.400, 0.600], n=1,090'
    """
    return f"[{number.low:.3f}, {number.high:.3f}], n={number.n:,}"


def sign_of(estimate: Estimate) -> str:
    """Tell on which side of zero the whole interval lies.

    >>> sign_of(Estimate(0.5, -0.1, 1.1, 9))
    'not told from zero'
    """
    return "above zero" if estimate.low > 0 else "below zero" if estimate.high < 0 else "not told from zero"
