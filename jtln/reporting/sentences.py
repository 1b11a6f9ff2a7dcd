"""Evidence in plain sentences: where the transport terms gain, and where they do not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from jtln.reporting.evidence import Comparison, DatasetEvidence
from jtln.reporting.numbers import points


def summary(evidence: DatasetEvidence) -> list[str]:
    """Return a sentence for each method and control that the claims are about, over all numbers of labels."""
    if not evidence.claims:
        return [
            "The transport terms cannot be judged from these runs: that takes runs of a method that has them, "
            "jtln_annealed or jtln, under an informative cost beside runs of other methods, with the same seeds."
        ]
    chosen = "; ".join(f"{name} at {labels}" for labels, name in evidence.chosen.items())
    sentences = [f"Chosen on validation among the informative costs: {chosen}."] if chosen else []
    by_other: dict[tuple[str, str], list[Comparison]] = {}
    for claim in evidence.claims:
        row = "" if claim.row == evidence.chosen.get(claim.labels) else f"{claim.row} over "
        by_other.setdefault((row, claim.other), []).append(claim)
    for (row, other), claims in by_other.items():
        start = f"{row}{other}" if row else f"Over {other}"
        sentences.append(f"{start}: {_where(claims)}{_meaning(evidence, other, claims)}.")
    return sentences


def details(evidence: DatasetEvidence) -> list[str]:
    """Return a line for each claim.

    For instance: "annealed_wordnet over consecutive at 1 shot: +3.2 [1.1, 5.3], p_Holm = 0.004: a significant gain".
    """
    return [
        f"{claim.row} over {claim.other} at {claim.labels}: {claim.text}: {claim.verdict}"
        f"{_meaning(evidence, claim.other, [claim])}"
        for claim in evidence.claims
    ]


def correction(comparisons: Sequence[Comparison]) -> str:
    """Return how the p-values were corrected, and for how many comparisons."""
    sizes = ", ".join(map(str, dict.fromkeys(each.family for each in comparisons)))
    if all(each.bootstrap for each in comparisons):
        test = "95% intervals by a bootstrap over seeds and test images together, which are not corrected; p_Holm: from"
        test += " the same bootstrap"
    elif any(each.bootstrap for each in comparisons):
        test = "95% intervals by a bootstrap over seeds and test images together where every image's prediction is "
        test += "stored, else t intervals over seeds, which are not corrected; p_Holm: from the same"
    else:
        test = "95% t intervals over seeds, which are not corrected; p_Holm: two-sided paired t test"
    return (
        f"Differences on test images in percentage points, paired by seed, with {test}, corrected by Holm's method "
        f"over all comparisons of the table ({sizes}). A gain or a loss is called significant where p_Holm < 0.05."
    )


def _where(claims: Iterable[Comparison]) -> str:
    """Return "a significant gain at 1 shot and 2 shots (+3.2, +2.9); no significant gain at 5 shots (+0.3)"."""
    by_verdict: dict[str, list[Comparison]] = {}
    for claim in claims:
        verdict = "nothing can be tested" if math.isnan(claim.difference.p) else claim.verdict.partition(":")[0]
        by_verdict.setdefault(verdict, []).append(claim)
    parts = []
    for verdict, members in by_verdict.items():
        means = ", ".join(points(claim.difference.mean) for claim in members)
        parts.append(f"{verdict} at {_listed(members)} ({means})")
    return "; ".join(parts)


def _listed(claims: Sequence[Comparison]) -> str:
    """Return "1 shot, 2 shots and 5 shots"."""
    *first, last = (claim.labels for claim in claims)
    return f"{', '.join(first)} and {last}" if first else last


def _meaning(evidence: DatasetEvidence, other: str, claims: Sequence[Comparison]) -> str:
    """Return what a comparison with a control tells about the cost; nothing where the other row is no control."""
    control = evidence.row(other).control
    if control is None or all(math.isnan(claim.difference.p) for claim in claims):
        return ""
    if not all(evidence.row(other).controls(evidence.row(each.row)) for each in claims):
        return ""  # another method or head, or the control of another cost
    gains = [claim for claim in claims if claim.is_gain]
    some = "" if len(gains) in (0, len(claims)) else f" at {_listed(gains)}"
    winner = (
        "an informative cost beats a uniform one" if control == "uniform" else "the cost beats its permuted columns"
    )
    return f": {winner}{some}" if gains else f": not significant that {winner}"
