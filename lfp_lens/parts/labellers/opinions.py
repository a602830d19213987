"""A labeller and its judge: made together, and refused where a second opinion could not differ from the first."""

import os
from collections.abc import Mapping
from typing import Any

from lfp_lens.core.errors import LensError
from lfp_lens.parts.chat import KEY_VARIABLE, URL_VARIABLE
from lfp_lens.parts.labellers.base import Labeller, Setting, make_labeller
from lfp_lens.parts.labellers.chat import ChatLabeller

CHAT = "openai:"


def make_labellers(labeller: Any, judge: Any, setting: Setting, *, repeat: bool) -> tuple[Labeller, Labeller | None]:
    """Give the labeller and the judge of names or objects; `judge` None is none.

    Raises:
        LensError: as `make_labeller`, for one pair of prices and two chat models, and for an opinion asked again, or of a
            judge, that would say the same by construction.
    """
    _check_prices(labeller, judge, setting.spending.get("prices"))
    asked = make_labeller(labeller, setting)
    second = None if judge is None else make_labeller(judge, setting)
    _check_opinions(asked, second, repeat)
    return asked, second


def check_keys(*labellers: Labeller | None) -> None:
    """Raise `LensError` for a chat model of OpenAI's own server without a key. Nothing is sent and no client is made."""
    for one in labellers:
        if isinstance(one, ChatLabeller) and one.chat.spending.is_vendor and not os.environ.get(KEY_VARIABLE):
            raise LensError(
                f"{one.name!r} needs a key: set the environment variable {KEY_VARIABLE}, or name a server of your own, which "
                f"needs none (explain.base_url or {URL_VARIABLE}), or choose another labeller or judge. What comes before it "
                "runs without: stop there with until='attribute'."
            )


def _check_prices(labeller: Any, judge: Any, prices: Any) -> None:
    """Refuse one pair of prices for two chat models: the bill and the budget of one of them would be wrong."""
    names = [one.removeprefix(CHAT) for one in (labeller, judge) if isinstance(one, str) and one.startswith(CHAT)]
    if prices is None or len(set(names)) < 2:
        return
    if not isinstance(prices, Mapping) or not set(names) <= set(prices):
        told = ", ".join(f"{name!r}: (in, out)" for name in names)
        raise LensError(
            f"The labeller {labeller!r} and the judge {judge!r} are two models, and prices={prices!r} does not say what each "
            f"of them charges. Give prices={{{told}}}, in USD per million tokens, or leave prices out for the package's table."
        )


def _check_opinions(labeller: Labeller, judge: Labeller | None, repeat: bool) -> None:
    """Refuse a second opinion that could not differ: kappa would be 1 and mean nothing."""
    is_fixed = getattr(labeller, "judges_by_valence", False)
    if repeat and is_fixed:
        raise LensError(
            f"repeat=True says nothing about {labeller.name!r}: it judges relevance by all shown words, not by windows, and "
            "would say the same again. Leave repeat out, or give a judge that reads otherwise, such as judge='openai:MODEL'."
        )
    if repeat and getattr(labeller, "answers_any_windows", False):
        raise LensError(
            f"repeat=True says nothing about {labeller.name!r}: an explanation that was recorded without a key answers whatever "
            "windows are shown, and would say the same again. Leave repeat out, or record the answers with RecordingLabeller."
        )
    if is_fixed and getattr(judge, "judges_by_valence", False):
        raise LensError(
            "The labellers 'lexicon' and 'graph' judge relevance by the same rule, so one is no second opinion on the other. "
            "Give another judge, such as judge='openai:MODEL'."
        )
    if judge is not None and _is_same(labeller, judge):
        raise LensError(
            f"The judge {judge.name!r} is the labeller: it agrees with itself by construction. Give another judge, such as "
            "judge='openai:MODEL', or repeat=True for the same one on other windows. Give two labellers two names."
        )


def _is_same(one: Labeller, other: Labeller) -> bool:
    own, others = (getattr(side, "fingerprint", None) for side in (one, other))
    return one is other or one.name == other.name or (own is not None and own == others)
