"""Rewards: what a tuning maximises. A reward is any callable from a list of texts to one float each."""

from lfp_lens.parts.rewards.base import QUOTED as QUOTED
from lfp_lens.parts.rewards.base import CheckedReward as CheckedReward
from lfp_lens.parts.rewards.base import Reward as Reward
from lfp_lens.parts.rewards.base import checked_values as checked_values
from lfp_lens.parts.rewards.classifier import Classifier as Classifier
from lfp_lens.parts.rewards.classifier import load_classifier as load_classifier
from lfp_lens.parts.rewards.lexicon import CLIP as CLIP
from lfp_lens.parts.rewards.lexicon import SCALE as SCALE
from lfp_lens.parts.rewards.lexicon import LexiconReward as LexiconReward
from lfp_lens.parts.rewards.make import REWARDS as REWARDS
from lfp_lens.parts.rewards.make import make_reward as make_reward
from lfp_lens.parts.rewards.make import vader_reward as vader_reward
from lfp_lens.parts.rewards.mixed import ModelReward as ModelReward
from lfp_lens.parts.rewards.mixed import WeightedReward as WeightedReward
