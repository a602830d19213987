"""`lfp-lens doctor`: what this machine has and lacks, and what a config will cost before it is run."""

from lfp_lens.doctor.estimates import estimate
from lfp_lens.doctor.machine import Finding, examine
from lfp_lens.doctor.money import prices
from lfp_lens.parts.chat import Prices

__all__ = ["Finding", "Prices", "estimate", "examine", "prices"]
