"""Accuracy against the number of labels: checked on the axes, never on pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from scipy import stats

from jtln.reporting.evidence import DatasetEvidence, gather
from jtln.reporting.naming import Run
from jtln.reporting.study_plots import accuracy_plot

ROWS = {  # name -> method, head, cost, lambda_ot, accuracy in %
    "fine-tuning": ("consecutive", "linear", None, 0.0, 50.0),
    "discriminant": ("consecutive", "discriminant", "wordnet", 0.0, 55.0),
    "ours": ("jtln", "linear", "wordnet", 1.0, 60.0),
    "uniform": ("jtln", "linear", "uniform", 1.0, 58.0),
}
SPREAD = (-1.0, 0.0, 2.0)  # of the seeds


def evidence(shots: tuple[int, ...], spread: tuple[float, ...] = SPREAD) -> DatasetEvidence:
    runs = []
    for name, (method, head, cost, weight, accuracy) in ROWS.items():
        for count in shots:
            for seed, own in enumerate(spread):
                figures = {"accuracy": (accuracy + count + own) / 100}
                result: dict[str, Any] = {"method": method, "head": head, "cost": cost, "dataset": "toys", "seed": seed}
                result |= {"shots": count, "transport": {"lambda_ot": weight} if cost else None, "settings": {}}
                result |= {"target": {"test": figures, "val": figures}, "seconds": 1.0, "overrides": []}
                runs.append(Run(name, result, Path()))
    (only,) = gather(runs).datasets
    return only


def panels(figure: Figure) -> dict[str, dict[str, ErrorbarContainer]]:
    return {
        ax.get_title(loc="left"): {str(each.get_label()): each for each in ax.containers}  # type: ignore[misc]
        for ax in figure.axes
    }


def test_means_and_intervals_over_the_number_of_labels() -> None:
    figure = accuracy_plot(evidence((1, 2, 8)))
    (methods, costs) = panels(figure).values()
    assert list(methods) == ["fine-tuning", "discriminant", "ours"]  # those without transport terms, and the best with
    assert list(costs) == ["ours", "uniform", "fine-tuning"]
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["1", "2", "8"]
    assert list(figure.axes[0].get_xticks()) == [0.0, 1.0, 3.0]  # logarithms to the base 2
    line, _, (bars,) = methods["ours"].lines
    mean = 60 + np.mean(SPREAD) + np.array([1, 2, 8])
    assert np.allclose(line.get_ydata(), mean)
    half = stats.t.ppf(0.975, 2) * stats.sem(SPREAD)
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert np.allclose(ends, np.stack([mean - half, mean + half], 1))


def test_controls_are_hollow_and_fine_tuning_is_grey() -> None:
    (methods, costs) = panels(accuracy_plot(evidence((1, 2)))).values()
    assert costs["uniform"].lines[0].get_markerfacecolor() == "white"
    assert costs["ours"].lines[0].get_markerfacecolor() != "white"
    grey = methods["fine-tuning"].lines[0].get_color()
    assert costs["fine-tuning"].lines[0].get_color() == grey
    assert methods["discriminant"].lines[0].get_color() != grey  # fine-tuning with another head is another row


@pytest.mark.parametrize("shots", [(1,), (5,)])
def test_with_one_number_of_labels_the_rows_stand_below_one_another(shots: tuple[int, ...]) -> None:
    figure = accuracy_plot(evidence(shots))
    names = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    assert names == [["fine-tuning", "discriminant", "ours"], ["ours", "uniform", "fine-tuning"]]
    assert f"{shots[0]} shot" in figure.get_suptitle()


@pytest.mark.parametrize("shots", [(1,), (1, 2, 8)])
def test_nothing_is_drawn_where_no_accuracy_can_be(shots: tuple[int, ...]) -> None:
    """Two seeds that lie far apart: their t intervals reach from below 0 to above 100."""
    figure = accuracy_plot(evidence(shots, spread=(-30.0, 30.0)))
    drawn = 0
    for ax in figure.axes:
        low, high = ax.get_xlim() if len(shots) == 1 else ax.get_ylim()
        assert -2 <= low < high <= 102
        for container in ax.containers:
            (bars,) = container.lines[2]  # type: ignore[attr-defined]
            for segment in bars.get_segments():
                ends = segment[:, 0 if len(shots) == 1 else 1]
                assert ends.tolist() == pytest.approx([0.0, 100.0])
                drawn += 1
    assert drawn == (3 + 3) * len(shots)
