"""Evidence in plain sentences: where the claim of this project holds, and where it falls short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from jtln.reporting.evidence import Comparison, DatasetEvidence


def summary(evidence: DatasetEvidence) -> list[str]:
    """A sentence for each method and control that the claim is about, over all numbers of labels."""
    if not evidence.claims:
        return [
            "The claim of this project cannot be judged from these runs: that takes runs of method=jtln with a cost "
            "that holds knowledge beside runs of other methods, with the same seeds."
        ]
    sentences = [
        f"Chosen on validation among the costs with knowledge: "
        f"{'; '.join(f'{name} at {labels}' for labels, name in evidence.chosen.items())}."
    ]
    by_other: dict[tuple[str, str], list[Comparison]] = {}
    for claim in evidence.claims:
        row = "" if claim.row == evidence.chosen[claim.labels] else f"{claim.row} over "
        by_other.setdefault((row, claim.other), []).append(claim)
    for (row, other), claims in by_other.items():
        start = f"{row}{other}" if row else f"Over {other}"
        sentences.append(f"{start}: {_where(claims)}{_meaning(evidence, other, claims)}.")
    return sentences


def details(evidence: DatasetEvidence) -> list[str]:
    """ "jtln_wordnet over consecutive at 1 shot: +3.2 [1.1, 5.3], p_Holm = 0.004: a gain is shown" for each claim."""
    return [
        f"{claim.row} over {claim.other} at {claim.labels}: {claim.text}: {claim.verdict}"
        f"{_meaning(evidence, claim.other, [claim])}"
        for claim in evidence.claims
    ]


def correction(comparisons: Sequence[Comparison]) -> str:
    """How the p-values were corrected, and for how many comparisons."""
    families = dict.fromkeys((each.labels, each.family) for each in comparisons)
    sizes = ", ".join(f"{count} at {labels}" for labels, count in families)
    return (
        "Differences on test images in percentage points, paired by seed, with 95% t intervals, which are not "
        "corrected; p_Holm: two-sided paired t test, corrected by Holm's method over all comparisons of the table at "
        f"the same number of labels ({sizes}). A gain or a loss is called shown where p_Holm < 0.05."
    )


def _where(claims: Iterable[Comparison]) -> str:
    """ "a gain is shown at 1 shot and 2 shots (+3.2, +2.9); no gain is shown at 5 shots (+0.3)"."""
    by_verdict: dict[str, list[Comparison]] = {}
    for claim in claims:
        verdict = "nothing can be tested" if math.isnan(claim.difference.p) else claim.verdict.partition(":")[0]
        by_verdict.setdefault(verdict, []).append(claim)
    parts = []
    for verdict, members in by_verdict.items():
        points = ", ".join(f"{claim.difference.mean:+.1f}" for claim in members)
        parts.append(f"{verdict} at {_listed(members)} ({points})")
    return "; ".join(parts)


def _listed(claims: Sequence[Comparison]) -> str:
    """ "1 shot, 2 shots and 5 shots"."""
    *first, last = (claim.labels for claim in claims)
    return f"{', '.join(first)} and {last}" if first else last


def _meaning(evidence: DatasetEvidence, other: str, claims: Sequence[Comparison]) -> str:
    """What a comparison with a control says about knowledge in the cost."""
    control = evidence.row(other).control
    if control is None or all(math.isnan(claim.difference.p) for claim in claims):
        return ""
    if not all(evidence.row(other).controls(evidence.row(each.row)) for each in claims):
        return ""  # another method, or another cost with other knowledge
    shown = [claim for claim in claims if claim.shown]
    some = "" if len(shown) in (0, len(claims)) else f" at {_listed(shown)}"
    if control == "uniform":
        return (
            f": knowledge in the cost pays{some or ' here'}"
            if shown
            else ": that knowledge in the cost pays is not shown here"
        )
    if shown:
        return f": right knowledge beats wrong knowledge{some}"
    return ": that right knowledge beats wrong knowledge is not shown"
