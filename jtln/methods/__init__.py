"""The baselines' own terms: what each adds to the objective."""

from jtln.methods.base import Network, Penalty, Seen
from jtln.methods.bss import BSS
from jtln.methods.co_tuning import CoTuning
from jtln.methods.delta import DELTA
from jtln.methods.l2sp import L2SP

__all__ = ["BSS", "DELTA", "L2SP", "CoTuning", "Network", "Penalty", "Seen"]
