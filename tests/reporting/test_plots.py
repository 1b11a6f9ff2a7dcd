"""The figures hold what they were given: checked on their axes, never on pixels."""

from __future__ import annotations

import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from jtln.errors import UserError
from jtln.reporting.numbers import percent
from jtln.reporting.plots import MANY_ROWS, column_shares, confusion, cost_heatmap, plan_heatmap, training_curves

SOURCE = ["Trouser", "Dress", "Coat", "Sneaker", "Bag", "T-shirt/top"]
TARGET = ["Pullover", "Sandal", "Shirt", "Ankle boot"]


def shown(figure: Figure) -> np.ndarray:
    return np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)


def row_names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def column_names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def title(figure: Figure) -> str:
    return figure.get_suptitle()


def saved_size(figure: Figure) -> tuple[int, int]:
    """Width and height in pixels as a PNG's header states them."""
    file = BytesIO()
    figure.savefig(file, format="png")
    header = file.getvalue()[:24]
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def curves(figure: Figure) -> dict[str, dict[str, np.ndarray]]:
    """{panel title: {curve label: its (n, 2) points}}"""
    return {
        ax.get_title(loc="left"): {
            str(line.get_label()): np.asarray(line.get_xydata())
            for line in ax.lines
            if not str(line.get_label()).startswith("_")
        }
        for ax in figure.axes
    }


def test_small_cost_names_every_class_and_writes_every_value():
    cost = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    figure = cost_heatmap(cost, SOURCE, TARGET, "WordNet cost")
    assert np.allclose(shown(figure), cost.detach().numpy())
    assert row_names(figure) == SOURCE
    assert column_names(figure) == TARGET
    assert title(figure) == "WordNet cost"
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{value:.2f}" for value in cost.flatten()]
    assert saved_size(figure)[0] < 1000


def test_low_cost_and_large_share_are_dark():
    for figure, low_is_dark in (
        (cost_heatmap(np.array([[0.1, 0.9]]), ["a"], ["b", "c"]), True),
        (plan_heatmap(np.array([[0.1], [0.9]]), ["a", "b"], ["c"]), False),
    ):
        image = figure.axes[0].images[0]
        low, high = (sum(image.cmap(image.norm(value))[:3]) for value in (0.1, 0.9))
        assert bool(low < high) is low_is_dark
        assert "dark" in figure.axes[0].child_axes[0].get_ylabel()


def test_many_rows_are_grouped_by_their_cheapest_column_and_keep_their_names():
    rows, columns = 150, 50
    cost = np.random.default_rng(0).uniform(size=(rows, columns))
    source = [f"s{i}" for i in range(rows)]
    figure = cost_heatmap(cost, source, [f"t{j}" for j in range(columns)], "Cost")
    assert "grouped" in title(figure)
    order = [source.index(name) for name in row_names(figure)]
    assert sorted(order) == list(range(rows))
    assert np.allclose(shown(figure), cost[order])
    nearest = cost[order].argmin(1)
    assert (np.diff(nearest) >= 0).all()
    lowest = cost[order].min(1)
    assert all(lowest[i] <= lowest[i + 1] for i in range(rows - 1) if nearest[i] == nearest[i + 1])
    assert not figure.axes[0].texts


def test_few_rows_keep_their_order():
    rows = MANY_ROWS
    figure = cost_heatmap(np.eye(rows)[::-1], [str(i) for i in range(rows)], [str(i) for i in range(rows)])
    assert row_names(figure) == [str(i) for i in range(rows)]
    assert "grouped" not in title(figure)


@pytest.mark.slow
def test_a_thousand_classes_stay_within_bounds_and_say_how_names_are_thinned():
    source, target = [f"source {i}" for i in range(1000)], [f"target {j}" for j in range(256)]
    cost = np.arange(1000)[:, None] / 1000 + np.zeros((1, 256))
    figure = cost_heatmap(cost, source, target)
    width, height = saved_size(figure)
    assert width < 2600
    assert height < 2600
    ax = figure.axes[0]
    shown_rows = len(row_names(figure))
    assert 50 < shown_rows < 200
    assert f"1,000, one in {round(1000 / shown_rows)} named" in ax.get_ylabel()
    assert "256, one in" in ax.get_xlabel()
    for index, name in zip(ax.get_yticks(), row_names(figure), strict=True):  # thinned, not shifted
        assert shown(figure)[int(index), 0] == pytest.approx(source.index(name) / 1000)


@pytest.mark.parametrize(
    "shape", [(6, 4), *(pytest.param(each, marks=pytest.mark.slow) for each in ((150, 50), (1000, 256)))]
)
def test_names_do_not_overlap(shape):
    figure = cost_heatmap(np.random.default_rng(0).uniform(size=shape), *([f"n{i}" for i in range(n)] for n in shape))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 - 3 for above, below in pairwise(boxes))  # pixels


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_cost_is_drawn(value):
    figure = cost_heatmap(np.full((6, 4), value), SOURCE, TARGET)
    low, high = figure.axes[0].images[0].get_clim()
    assert low <= value <= high
    assert low < high
    saved_size(figure)


def test_odd_names_are_text_and_long_ones_are_cut():
    names = ["$x_1$ and $", "a" * 80, "two\nlines", "<b>"]
    figure = cost_heatmap(np.eye(4), names, names, "costs $5 and $6")
    assert row_names(figure)[0] == "$x_1$ and $"
    assert row_names(figure)[1].endswith("…")
    assert len(row_names(figure)[1]) < 30
    assert row_names(figure)[2] == "two lines"
    saved_size(figure)  # would fail on "$x_1$ and $", were it read as mathematics


def test_long_titles_are_wrapped():
    figure = cost_heatmap(np.eye(2), ["a", "b"], ["c", "d"], "word " * 30)
    assert max(map(len, title(figure).split("\n"))) < 60
    assert title(figure).split() == ["word"] * 30


def test_plan_shows_columns_that_sum_to_one():
    plan = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) / 24
    figure = plan_heatmap(plan, SOURCE, TARGET)
    assert np.allclose(shown(figure).sum(0), 1)
    assert np.allclose(shown(figure), torch.nn.functional.normalize(plan.double(), p=1, dim=0).numpy())
    assert figure.axes[0].images[0].get_clim()[0] == 0


def test_column_without_mass_has_no_shares():
    assert np.array_equal(column_shares(np.array([[0.0, 3.0], [0.0, 1.0]])), [[0.0, 0.75], [0.0, 0.25]])
    saved_size(plan_heatmap(np.zeros((2, 2)), ["a", "b"], ["c", "d"]))


def test_many_rows_of_a_plan_are_grouped_by_their_largest_share():
    plan = np.random.default_rng(0).uniform(size=(60, 5))
    figure = plan_heatmap(plan, [f"s{i}" for i in range(60)], list("abcde"))
    assert (np.diff(shown(figure).argmax(1)) >= 0).all()


def test_confusion_is_row_normalised_and_states_the_accuracy():
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    figure = confusion(counts, ["a", "b", "c"])
    expected = [[0.8, 0.2, 0.0], [np.nan] * 3, [0.25, 0.0, 0.75]]
    assert np.allclose(shown(figure), expected, equal_nan=True)
    assert "78.6% of 14 images" in title(figure)
    assert figure.axes[0].get_ylabel() == "true class"
    assert figure.axes[0].get_xlabel() == "predicted class"
    assert len(figure.axes[0].texts) == 6  # the row without images is left empty


def test_the_confusions_title_rounds_as_the_page_does():
    """69 of 80: torchmetrics has 0.862500012, the counts 0.8625, of which Python makes 86.3 and 86.2."""
    counts = np.array([[35, 5], [6, 34]])
    page = percent(float(np.float32(69) / np.float32(80)))
    assert f"accuracy {page} of 80 images" in title(confusion(counts, ["a", "b"]))
    assert page == "86.3%"


@pytest.mark.parametrize("accuracies", [(0.0, 0.02), (0.98, 1.0), (0.0, 0.0), (0.0, 1.0), (0.4, 0.6)])
def test_the_axis_of_accuracies_ends_where_they_end(accuracies):
    rows = [{"step": step, "val/target/accuracy": each} for step, each in enumerate(accuracies)]
    (ax,) = training_curves(rows).axes
    low, high = ax.get_ylim()
    assert -0.02 <= low <= min(accuracies)
    assert max(accuracies) <= high <= 1.02


def test_confusion_of_many_classes_keeps_its_diagonal():
    figure = confusion(np.eye(100) * 5, [str(i) for i in range(100)])
    assert np.array_equal(shown(figure), np.eye(100))


@pytest.mark.parametrize("draw", [cost_heatmap, plan_heatmap])
def test_wrong_shapes_are_named(draw):
    with pytest.raises(UserError, match=r"expected a matrix of shape \(6, 4\).* got shape \(4, 6\)"):
        draw(np.zeros((4, 6)), SOURCE, TARGET)


CSV = """\
epoch,step,train/loss,train/target_loss,train/source_loss,train/ot,train/lambda_ot,train/ot_gradient_ratio,\
val/target/accuracy,val/source/accuracy
0,9,3.0,1.5,1.2,0.2,0.0,,,
0,9,,,,,,,0.5,0.6
0,19,2.0,1.0,0.9,-0.1,5.0,0.3,,
0,19,,,,,,,0.7,nan
"""


def test_curves_of_a_metrics_file(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(CSV)
    panels = curves(training_curves(path))
    losses = panels["Cross-entropy"]
    assert np.allclose(losses["target"], [[9, 1.5], [19, 1.0]])
    assert np.allclose(losses["source"], [[9, 1.2], [19, 0.9]])
    accuracy = panels["Validation accuracy"]
    assert np.allclose(accuracy["target"], [[9, 0.5], [19, 0.7]])
    assert np.allclose(accuracy["source"], [[9, 0.6]])  # NaN is passed over
    assert np.allclose(next(iter(panels["Transport loss, before its weight"].values())), [[9, 0.2], [19, -0.1]])
    assert np.allclose(next(iter(panels["Weight of the transport term, λ"].values())), [[9, 0], [19, 5]])
    ratio = panels["Gradient of the transport term / of the cross-entropies"]
    assert np.allclose(next(iter(ratio.values())), [[19, 0.3]])


def test_without_transport_its_panels_are_left_out():
    rows = [{"step": 1, "train/target_loss": 1.0}, {"step": 2, "train/target_loss": 0.5, "val/target/accuracy": 1.0}]
    panels = curves(training_curves(rows))
    assert list(panels) == ["Cross-entropy", "Validation accuracy"]
    assert list(panels["Cross-entropy"]) == ["target"]
    panels = curves(training_curves([row | {"train/penalty": row["step"] / 4} for row in rows]))
    assert list(panels)[2:] == ["The method's own penalty, with its weight"]
    assert np.allclose(next(iter(panels["The method's own penalty, with its weight"].values())), [[1, 0.25], [2, 0.5]])


def test_resumed_steps_are_sorted_and_the_last_value_counts():
    rows = [{"step": step, "train/ot": value} for step, value in [(1, 1.0), (3, 3.0), (2, 2.0), (3, 4.0)]]
    (panel,) = curves(training_curves(rows)).values()
    assert np.allclose(next(iter(panel.values())), [[1, 1], [2, 2], [3, 4]])


def test_many_points_get_a_running_mean_in_front_of_them():
    values = np.random.default_rng(0).uniform(size=400)
    figure = training_curves([{"step": i, "train/target_loss": v, "train/lambda_ot": v} for i, v in enumerate(values)])
    raw, mean = (np.asarray(line.get_ydata()) for line in figure.axes[0].lines)
    assert np.array_equal(raw, values)
    assert np.allclose(mean[8:-8], np.convolve(values, np.ones(17) / 17, mode="valid"))
    assert len(figure.axes[1].lines) == 1  # the schedule is shown as it is


def test_nothing_logged_is_said():
    for rows in ([], [{"step": 1.0}], [{"step": 1.0, "train/ot": None}]):
        figure = training_curves(rows)
        assert not figure.axes
        assert "nothing" in figure.texts[0].get_text()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_pyplot_is_never_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it now fails
    plots = runpy.run_module("jtln.reporting.plots")
    saved_size(plots["cost_heatmap"](np.eye(6, 4), SOURCE, TARGET))
    saved_size(plots["training_curves"]([{"step": 1, "train/ot": 1.0}]))


@pytest.mark.slow
def test_drawing_in_threads():
    with ThreadPoolExecutor(4) as pool:
        sizes = set(pool.map(lambda _: saved_size(cost_heatmap(np.eye(6, 4), SOURCE, TARGET)), range(4)))
    assert len(sizes) == 1
