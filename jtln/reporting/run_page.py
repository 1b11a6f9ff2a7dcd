"""One run as one page: a self-contained ``report.html`` from the files in a run folder.

The page holds its pictures and its style; it runs no script and asks no server for anything.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from jtln.errors import UserError
from jtln.reporting.plots import column_shares
from jtln.reporting.statistics import wilson_interval
from jtln.reporting.tables import clock
from jtln.storage import write_text

SMALLEST_SHARE = 0.05  # of a target class's mass: what is less is not named, unless it is the largest
MOST_SENTENCES = 12

_NONE = "–"
_IMAGE_SCALE = 0.58  # of a picture's pixels: two small matrices stand side by side, and print stays sharp
_METRICS = {"mean_class_accuracy": "Mean class accuracy", "macro_f1": "Macro F1", "ece": "ECE"}
_PERCENT = ("accuracy", "mean_class_accuracy")
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #66707a; --line: #dfe3e8; --back: #fff; --card: #f5f7f9;
  --mark: #2f6db3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --faint: #9aa4ae; --line: #363d45; --back: #15181c; --card: #1f2429; --mark: #7db1ea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; } .faint, figcaption { color: var(--faint); font-size: .88rem; }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; margin: 0; }
.facts div { display: flex; gap: .45rem; } dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.headline { margin: 1.4rem 0; } .headline strong { font-size: 2.4rem; line-height: 1.1; color: var(--mark); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; margin: .5rem 0;
  overflow-x: auto; font: .86rem/1.5 ui-monospace, monospace; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--faint); font-weight: 600; font-size: .86rem; } th:first-child { text-align: left; }
tbody th { font-weight: 600; }
ul { padding-left: 1.2rem; margin: .5rem 0; } .gallery { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .5rem;
  border: 1px solid var(--line); border-radius: 6px; }
summary { cursor: pointer; margin: .5rem 0; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(folder: Path, result: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Args:
        result: what ``result.json`` holds, or is to hold; None reads it.
        folder: holds result.json; overrides.yaml, config.yaml and plots/*.png are shown where they exist.

    Raises:
        UserError: there is no ``result.json``, or it is not a JSON object. Keys that it lacks are left out of the page.
    """
    folder = Path(folder)
    result = _read_result(folder / "result.json") if result is None else result
    title = _title(result)
    parts = [
        _header(result, title),
        _repeat(result),
        _accuracies(result),
        _transfer(_mapping(result.get("target_only"))),
        _transport(_mapping(result.get("transport"))),
        _calibration(_mapping(result.get("calibration"))),
        _unknown(_mapping(result.get("unknown_classes"))),
        _head(str(result.get("head")), _mapping(result.get("head_fit"))),
        pictures(sorted((folder / "plots").glob("*.png"))),
        _configuration(folder),
        _versions(result),
    ]
    path = folder / "report.html"
    write_text(path, page(title, parts))
    return path


def page(title: str, parts: Iterable[str]) -> str:
    """A self-contained HTML page from its title, plain text, and its sections, HTML; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def strongest_transports(
    plan: Tensor | NDArray[Any], source: Sequence[str], target: Sequence[str], top: int = 3
) -> dict[str, list[tuple[str, float]]]:
    """For each target class the source classes that send most of its mass, the clearest relation first.

    Args:
        plan: (S, T) masses >= 0; its columns are scaled to sum to 1.
        source, target: the S and T class names.
        top: at most so many source classes each; of these, shares below SMALLEST_SHARE are dropped, but for the first.

    Returns:
        {target class: [(source class, share in [0, 1]), ...]}, the largest share first in both; a target class without
        mass is left out.
    """
    shares = column_shares(plan)  # (S, T)
    if shares.shape != (len(source), len(target)):
        raise UserError(f"expected a plan of shape {(len(source), len(target))}, but got {shares.shape}")
    strongest = {}
    for column, name in enumerate(target):
        order = sorted(range(len(source)), key=lambda row, column=column: -shares[row, column])[:top]  # type: ignore[misc]
        named = [(source[row], float(shares[row, column])) for row in order]
        if named and named[0][1] > 0:
            strongest[name] = named[:1] + [pair for pair in named[1:] if pair[1] >= SMALLEST_SHARE]
    return dict(sorted(strongest.items(), key=lambda item: -item[1][0][1]))


def transport_sentences(strongest: Mapping[str, Sequence[Sequence[Any] | tuple[str, float]]], limit: int) -> list[str]:
    """At most ``limit`` lines such as "Pullover is matched with Coat 0.61, T-shirt/top 0.22", in the order given."""
    return [
        f"{target} is matched with " + ", ".join(f"{source} {share:.2f}" for source, share in sources)
        for target, sources in list(strongest.items())[:limit]
        if sources
    ]


# The page's sections, each HTML or an empty string.


def _header(result: Mapping[str, Any], title: str) -> str:
    facts = [(name, _text(result[name])) for name in ("head", "cost", "shots", "seed") if result.get(name) is not None]
    test = _mapping(_mapping(result.get("target")).get("test"))
    headline = ""
    if (accuracy := _number(test.get("accuracy"))) is not None:
        interval = _interval(test)
        headline = f'<p class="headline"><strong>{accuracy:.1%}</strong> target test accuracy'
        headline += f" (95% interval {interval})</p>" if interval != _NONE else "</p>"
    return f"<header><h1>{escape(title)}</h1>\n{_facts(facts)}\n{headline}</header>"


def _repeat(result: Mapping[str, Any]) -> str:
    command = result.get("command")
    if not command:
        return ""
    return (
        f'<section><h2>Repeat this run</h2>\n<pre class="command"><code>{escape(str(command))}</code></pre></section>'
    )


def _accuracies(result: Mapping[str, Any]) -> str:
    rows = []
    for task in ("target", "source"):
        for split in ("test", "val"):
            metrics = _mapping(_mapping(result.get(task)).get(split))
            if not metrics:
                continue
            n = _number(metrics.get("n"))
            cells = [
                _NONE if n is None else f"{n:,.0f}",
                _metric(metrics, "accuracy"),
                _interval(metrics) if split == "test" else "",
                *(_metric(metrics, name) for name in _METRICS),
            ]
            name = {"test": "test", "val": "validation"}[split]
            rows.append(
                f'<tr><th scope="row">{task}, {name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
            )
    if not rows:
        return ""
    heads = ["", "Images", "Accuracy", "95% interval", *_METRICS.values()]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(rows)
    note = (
        "The interval is Wilson's for the test accuracy of this one trained model: it covers the choice of the test "
        "images, not that of the labelled images or of the seed. ECE: expected calibration error, lower is better."
    )
    return (
        f'<section><h2>Results</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}\n</tbody></table></div>\n<p class="faint">{note}</p></section>'
    )


def _transfer(target_only: Mapping[str, Any]) -> str:
    """Whether the source helped: against the run that had the target alone."""
    gap, alone = (_number(target_only.get(name)) for name in ("gap", "val_accuracy"))
    if gap is None or alone is None:
        return ""
    error = _number(target_only.get("standard_error"))
    spread = "" if error is None else f" (standard error {100 * error:.1f})"
    verdict = " This is negative transfer." if target_only.get("negative") is True else ""
    return (
        f"<section><h2>Did the source help?</h2>\n<p>Validation accuracy is {100 * gap:+.1f} points{spread} over the "
        f"{alone:.1%} of a run that had the target alone, of the same split, budget and seed.{verdict}</p></section>"
    )


def _transport(transport: Mapping[str, Any]) -> str:
    if not transport:
        return ""
    numbers = [(name.replace("_", " "), _text(value)) for name, value in transport.items() if name != "strongest"]
    strongest = _mapping(transport.get("strongest"))
    sentences = transport_sentences(strongest, MOST_SENTENCES)
    listed = ""
    if sentences:
        items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
        rest = len(strongest) - len(sentences)
        more = f", of the {len(sentences)} clearest of {len(strongest)} classes" if rest > 0 else ""
        listed = (
            f"<ul>\n{items}\n</ul>\n"
            f'<p class="faint">Shares of the mass that the transport plans send to each target class{more}.</p>'
        )
    return f"<section><h2>What the transport moved</h2>\n{listed}\n{_facts(numbers)}</section>"


def _calibration(found: Mapping[str, Any]) -> str:
    """How far the labelled images and the cost agree."""
    if not found:
        return ""
    numbers = [(name, _text(value)) for name, value in found.items()]
    return f"<section><h2>Calibration of the cost</h2>\n{_facts(numbers)}</section>"


def _unknown(found: Mapping[str, Any]) -> str:
    """List the classes that the cost has no knowledge of."""
    sides = [(f"{len(names)} {side}", ", ".join(map(str, names))) for side, names in found.items() if _is_list(names)]
    if not sides:
        return ""
    note = "The cost has no knowledge of these classes: they have mean costs."
    return f"<section><h2>Classes without knowledge</h2>\n<p>{note}</p>\n{_facts(sides)}</section>"


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _head(name: str, fit: Mapping[str, Any]) -> str:
    """What was chosen of a head that was formed after training."""
    if not fit:
        return ""
    numbers = [(key.replace("_", " "), _text(value)) for key, value in fit.items()]
    return f"<section><h2>The target head: {escape(name)}</h2>\n{_facts(numbers)}</section>"


def pictures(paths: Iterable[Path]) -> str:
    """A section that shows PNG files, which are put into the page."""
    figures = []
    for path in paths:
        name = escape(path.stem.replace("_", " ").replace("-", " ").capitalize())
        content = path.read_bytes()
        data = base64.b64encode(content).decode("ascii")
        width = round(_IMAGE_SCALE * int.from_bytes(content[16:20], "big"))  # from the PNG's header
        image = f'<img src="data:image/png;base64,{data}" width="{width}" alt="{name}">'
        figures.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
    if not figures:
        return ""
    return '<section><h2>Plots</h2>\n<div class="gallery">\n' + "\n".join(figures) + "\n</div></section>"


def _configuration(folder: Path) -> str:
    files = (("overrides.yaml", "What was set by hand"), ("config.yaml", "The whole configuration"))
    details = [
        f"<details><summary>{title} ({name})</summary>\n"
        f"<pre><code>{escape((folder / name).read_text(encoding='utf-8', errors='replace'))}</code></pre></details>"
        for name, title in files
        if (folder / name).is_file()
    ]
    return "<section><h2>Configuration</h2>\n" + "\n".join(details) + "</section>" if details else ""


def _versions(result: Mapping[str, Any]) -> str:
    rows = [(str(name), _text(version)) for name, version in _mapping(result.get("versions")).items()]
    if result.get("git_commit"):
        rows.append(("git commit", _text(result["git_commit"])))
    if (seconds := _number(result.get("seconds"))) is not None:
        rows.append(("time", clock(seconds)))
    if (speed := _number(result.get("images_per_second"))) is not None:
        rows.append(("images per second", f"{speed:,.0f}"))
    return f"<section><h2>Versions and time</h2>\n{_facts(rows)}</section>" if rows else ""


# Pieces of text.


def _read_result(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"expected a run folder with a result.json, but {path.parent} has none: give the folder of a finished run"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"expected JSON in {path}, but it cannot be read: {error}") from error
    if not isinstance(result, dict):
        raise UserError(f"expected a JSON object in {path}, but got a {type(result).__name__}")
    return result


def _title(result: Mapping[str, Any]) -> str:
    method, dataset = (result.get(name) for name in ("method", "dataset"))
    return " on ".join(str(name) for name in (method, dataset) if name) or "JTLN run"


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, both plain text, as a definition list."""
    items = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs]
    return f'<dl class="facts">{"".join(items)}</dl>' if items else ""


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    value = _number(metrics.get(name))
    if value is None:
        return _NONE
    return f"{value:.1%}" if name in _PERCENT else f"{value:.3f}"


def _interval(metrics: Mapping[str, Any]) -> str:
    accuracy, n = _number(metrics.get("accuracy")), _number(metrics.get("n"))
    if accuracy is None or n is None or n < 1 or not 0 <= accuracy <= 1 + 1e-6:
        return _NONE
    low, high = wilson_interval(min(accuracy, 1.0) * int(n), int(n))
    return f"{100 * low:.1f}–{high:.1%}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: Any) -> str:
    """A value of result.json as a reader wants to see it, plain text."""
    if isinstance(value, str):
        return value
    if value is None:
        return _NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False)
