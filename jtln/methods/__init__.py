"""The objective's settings, and the baselines' own terms."""

from jtln.methods.base import Network, Penalty, TargetBatch
from jtln.methods.bss import BSS
from jtln.methods.co_tuning import CoTuning
from jtln.methods.delta import DELTA
from jtln.methods.l2sp import L2SP
from jtln.methods.method import Method

__all__ = ["BSS", "DELTA", "L2SP", "CoTuning", "Method", "Network", "Penalty", "TargetBatch"]
