"""What a method adds to the objective beside cross-entropies and the transport loss: the baselines' terms, and ours."""

from jtln.methods.base import Network, Penalty, Seen
from jtln.methods.bss import BSS
from jtln.methods.co_tuning import CoTuning
from jtln.methods.delta import DELTA
from jtln.methods.l2sp import L2SP
from jtln.methods.label_transport import LabelTransport

__all__ = ["BSS", "DELTA", "L2SP", "CoTuning", "LabelTransport", "Network", "Penalty", "Seen"]
