"""The report is parsed as HTML, and its statistics are compared with scipy's."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from jtln.errors import UserError
from jtln.reporting.plots import cost_heatmap
from jtln.reporting.run_page import strongest_transports, transport_sentences, write_report

VOID = {"meta", "link", "img", "br"}
RESULT: dict[str, Any] = {
    "method": "jtln_annealed",
    "head": "discriminant",
    "dataset": "fashion",
    "cost": "wordnet",
    "shots": 10,
    "seed": 3,
    "overrides": ["seed=3"],
    "command": "python train.py 'dataset.root=/a & b' seed=3",
    "git_commit": "abc1234",
    "versions": {"torch": "2.10.0", "jtln": "0.1.0"},
    "target": {
        "test": {"accuracy": 0.858, "mean_class_accuracy": 0.85, "macro_f1": 0.8561, "ece": 0.0412, "n": 4000},
        "val": {"accuracy": 0.9, "mean_class_accuracy": 0.9, "macro_f1": 0.899, "ece": 0.05, "n": 40},
    },
    "source": {"test": {"accuracy": 1.0, "n": 60}, "val": {"accuracy": float("nan"), "n": 0}},
    "transport": {
        "epsilon": 0.1,
        "lambda_ot": 10.0,
        "strongest": {"Pullover": [["Coat <b>", 0.612], ["T-shirt/top", 0.22]]},
        "plan_entropy": 0.81234567,
    },
    "calibration": {"epsilon": 0.1134567, "nll": 0.903, "chance": 1.386},
    "unknown_classes": {"source": [], "target": ["yeti", "snark"]},
    "head_fit": {"transport_count": 8.0, "trained_share": 0.3},
    "target_only": {"gap": 0.0312, "standard_error": 0.0204, "val_accuracy": 0.8688, "negative": False},
    "seconds": 83.4,
    "images_per_second": 2345.6,
}


class Page(HTMLParser):
    """The elements, the text and the rows of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open[-1:]:
            self.texts.setdefault(tag, []).append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "config.yaml").write_text("name: a <script>alert(1)</script>\nepsilon: 0.1\n")
    (tmp_path / "overrides.yaml").write_text("- seed=3\n")
    (tmp_path / "plots").mkdir()
    figure = cost_heatmap(np.eye(2), ["a", "b"], ["c", "d"])
    figure.savefig(tmp_path / "plots" / "cost_matrix.png")
    return tmp_path


def read(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_title_facts_and_command(folder):
    page = read(folder)
    assert page.text("h1") == page.text("title") == "jtln_annealed on fashion"
    facts = dict(zip(page.texts["dt"], page.texts["dd"], strict=True))
    assert (facts["cost"], facts["shots"], facts["seed"]) == ("wordnet", "10", "3")
    assert facts["torch"] == "2.10.0"
    assert (facts["head"], facts["transport count"], facts["trained share"]) == ("discriminant", "8", "0.3")
    assert (facts["epsilon"], facts["chance"]) == ("0.1135", "1.386")  # the calibration's stands below the transport's
    assert (facts["2 target"], "0 source" in facts) == ("yeti, snark", False)
    sections = {"Calibration of the cost", "Classes without knowledge", "The target head: discriminant"}
    assert sections | {"Transport between the classes"} <= set(page.texts["h2"])
    assert facts["git commit"] == "abc1234"
    assert facts["time"] == "83 s"
    assert facts["plan entropy"] == "0.8123"
    assert "python train.py 'dataset.root=/a & b' seed=3" in page.texts["code"]


def test_results_table(folder):
    head, *rows = read(folder).rows
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert list(table) == ["target, test", "target, validation", "source, test", "source, validation"]
    low, high = binomtest(3432, 4000).proportion_ci(method="wilson")
    assert table["target, test"] == {
        "Images": "4,000",
        "Accuracy": "85.8%",
        "95% interval": f"{100 * low:.1f}–{100 * high:.1f}%",
        "Mean class accuracy": "85.0%",
        "Macro F1": "0.856",
        "ECE": "0.041",
    }
    assert table["target, validation"]["95% interval"] == ""
    assert table["source, test"]["95% interval"] == "94.0–100.0%"
    assert table["source, test"]["ECE"] == "–"
    assert table["source, validation"]["Accuracy"] == "–"  # NaN


def numbers_in(text: str) -> list[tuple[float, float]]:
    """The numbers of a text, each with half a unit of its last digit."""
    found = re.findall(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w])", text)
    plain = [each.replace(",", "") for each in found]
    return [(float(each), 0.5 * 10.0 ** -len(each.partition(".")[2])) for each in plain]


def leaves(value: Any) -> list[float]:
    """The finite numbers of a result, at any depth."""
    if isinstance(value, dict | list):
        return [each for child in (value.values() if isinstance(value, dict) else value) for each in leaves(child)]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return []
    return [float(value)]


def test_every_figure_is_one_of_the_result(folder):
    """As it is or in percent, to its last digit; else it is the end of an interval, by SciPy."""
    shown = {key: RESULT[key] for key in ("target", "source", "transport", "calibration", "head_fit", "target_only")}
    result = leaves(shown | {key: RESULT[key] for key in ("shots", "seed", "seconds", "images_per_second")})
    ends = [
        end
        for right, images in ((3432, 4000), (60, 60))
        for end in binomtest(right, images).proportion_ci(method="wilson")
    ] + list(norm.interval(0.95, 0.0312, 0.0204))
    page = read(folder)
    texts = [each for tag in ("p", "strong", "td", "dd", "li") for each in page.texts.get(tag, [])]
    versions = RESULT["versions"].values()
    figures = [each for text in texts if text not in versions for each in numbers_in(text.replace("95% interval", ""))]
    assert len(figures) > 30
    for figure, unit in figures:
        known = [*result, *(100 * each for each in result), *(100 * end for end in ends)]
        assert any(abs(figure - each) <= unit * (1 + 1e-9) for each in known), figure
    unseen = (0.0204,)  # the standard error, from which the interval is made
    for each in leaves(shown):
        seen = any(abs(figure - scale * each) <= unit * (1 + 1e-9) for figure, unit in figures for scale in (1, 100))
        assert seen or each in unseen, each


def test_over_the_target_alone_with_its_interval(folder):
    low, high = norm.interval(0.95, 3.12, 2.04)
    (sentence,) = [" ".join(each.split()) for each in read(folder).texts["p"] if "target alone" in each]
    assert f"is +3.1 points (95% interval {low:+.1f} to {high:+.1f}) over the 86.9% of" in sentence
    assert "negative transfer" not in sentence
    worse = RESULT | {"target_only": {"gap": -0.1, "val_accuracy": 0.8, "negative": True}}
    (folder / "result.json").write_text(json.dumps(worse))
    (sentence,) = [" ".join(each.split()) for each in read(folder).texts["p"] if "target alone" in each]
    assert "is -10.0 points over the 80.0% of" in sentence
    assert "negative transfer" in sentence


def test_plots_that_are_too_large_are_named(folder, monkeypatch):
    monkeypatch.setattr("jtln.reporting.run_page.MOST_BYTES", 1000)
    page = read(folder)
    assert not page.all("img")
    size = (folder / "plots" / "cost_matrix.png").stat().st_size / 1e6
    assert f"Cost matrix: cost_matrix.png ({size:.1f} MB)" in page.text("figcaption")


def test_what_the_shares_are_shares_of(folder):
    for origin, words in (("images", "validation images"), ("classes", "balanced plan")):
        transport = RESULT["transport"] | {"strongest_from": origin}
        (folder / "result.json").write_text(json.dumps(RESULT | {"transport": transport}))
        assert words in read(folder).text("p")


def test_names_that_are_no_text_are_written(folder):
    (folder / "result.json").write_text(json.dumps(RESULT | {"dataset": "caf\udce9"}))
    assert read(folder).text("h1") == "jtln_annealed on caf\\udce9"


def test_transport_in_words(folder):
    assert read(folder).texts["li"] == ["Pullover is matched with Coat <b> 0.61, T-shirt/top 0.22"]


def test_pictures_are_inlined(folder):
    (image,) = read(folder).all("img")
    kind, data = str(image["src"]).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (folder / "plots" / "cost_matrix.png").read_bytes()
    assert image["alt"] == "Cost matrix"
    assert int(str(image["width"])) > 0


def test_the_page_is_self_contained(folder):
    page = read(folder)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert str(attributes.get(name, "data:")).startswith("data:")
    assert "url(" not in page.text("style")
    assert "@import" not in page.text("style")
    assert "prefers-color-scheme: dark" in page.text("style")


def test_configuration_is_folded_and_escaped(folder):
    page = read(folder)
    assert len(page.all("details")) == 2
    assert "name: a <script>alert(1)</script>\nepsilon: 0.1\n" in page.texts["code"]
    assert "- seed=3\n" in page.texts["code"]


def test_everything_from_the_result_is_escaped(tmp_path):
    evil = "<script>\"&'"
    result = {
        **dict.fromkeys(("method", "head", "dataset", "cost", "shots", "seed", "command", "git_commit"), evil),
        "versions": {evil: evil},
        "target": {"test": {"accuracy": evil, "n": evil}},
        "calibration": {evil: evil},
        "unknown_classes": {evil: [evil]},
        "head_fit": {evil: evil},
        "transport": {evil: evil, "nested": [evil], "strongest": {evil: [[evil, 0.5]]}},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / '<i>"x.png').write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16))
    page = read(tmp_path)
    assert not page.all("script")
    assert not page.all("i")
    assert page.text("h1") == f"{evil} on {evil}"
    assert page.texts["li"] == [f"{evil} is matched with {evil} 0.50"]


@pytest.mark.parametrize("missing", [*RESULT, "everything"])
def test_missing_keys_are_left_out(tmp_path, missing):
    result = {name: value for name, value in RESULT.items() if missing not in (name, "everything")}
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = read(tmp_path)
    assert page.text("h1")


@pytest.mark.parametrize(
    "empty", [{}, None, {"test": None}, {"test": {}}, {"test": {"n": 5}}, {"test": {"accuracy": 1}}]
)
def test_missing_metrics_and_a_method_without_transport(tmp_path, empty):
    result = RESULT | {"target": empty, "transport": None, "cost": None}
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = read(tmp_path)
    assert not any("ransport" in each for each in page.texts["h2"])
    assert "cost" not in page.texts["dt"]


def test_writing_twice_gives_the_same_page(folder):
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "finished run"), ("{", "cannot be read"), ("[1]", "but got a list")]
)
def test_a_folder_without_a_result_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)


def test_strongest_transports():
    plan = torch.tensor(
        [
            [0.06, 0.00, 0.000, 0.1],
            [0.03, 0.00, 0.196, 0.1],
            [0.01, 0.00, 0.004, 0.1],
            [0.00, 0.00, 0.000, 0.1],
        ]
    )
    strongest = strongest_transports(plan, ["a", "b", "c", "d"], ["P", "Q", "R", "U"])
    assert list(strongest) == ["R", "P", "U"]  # the clearest first; nothing goes to Q
    assert strongest["R"] == [("b", pytest.approx(0.98))]  # 0.02 is below SMALLEST_SHARE
    assert strongest["P"] == [("a", pytest.approx(0.6)), ("b", pytest.approx(0.3)), ("c", pytest.approx(0.1))]
    assert strongest["U"] == [(name, pytest.approx(0.25)) for name in "abc"]
    assert strongest_transports(plan, list("abcd"), list("PQRU"), top=1)["P"] == [("a", pytest.approx(0.6))]


def test_the_first_is_named_however_small_its_share():
    strongest = strongest_transports(np.ones((100, 1)), [str(i) for i in range(100)], ["P"])
    assert strongest == {"P": [("0", 0.01)]}
    assert strongest_transports(np.ones((400, 1)), [str(i) for i in range(400)], ["P"]) == {}  # related to none


def test_strongest_transports_survive_json():
    strongest = strongest_transports(torch.rand(6, 4), list("abcdef"), list("PQRU"))
    restored = json.loads(json.dumps(strongest))
    assert transport_sentences(restored, 4) == transport_sentences(strongest, 4)


def test_strongest_transports_of_a_wrong_shape():
    with pytest.raises(UserError, match=r"expected a plan of shape \(1, 2\)"):
        strongest_transports(np.ones((2, 1)), ["a"], ["P", "Q"])


def test_transport_sentences():
    strongest = {"Pullover": [("Coat", 0.612), ("T-shirt/top", 0.22)], "Sandal": [("Sneaker", 0.5)], "Bag": []}
    assert transport_sentences(strongest, 2) == [
        "Pullover is matched with Coat 0.61, T-shirt/top 0.22",
        "Sandal is matched with Sneaker 0.50",
    ]
    assert len(transport_sentences(strongest, 1)) == 1
    assert transport_sentences({}, 5) == []
