"""The Weights & Biases run of a run, read back from what it leaves on the disk offline."""

from __future__ import annotations

import csv
import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from jtln.cli.overrides import config_dir
from jtln.cli.train import main
from jtln.cli.wandb_logger import ID_FILE, _id
from jtln.reporting.numbers import GOALS
from jtln.reporting.predictions import read_predictions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")]

QUICK = ["debug=smoke", "trunk.width=0.05", "trainer.progress_bar=false", "logger=wandb"]
SMALL = [*QUICK, "method=consecutive", "pretrain=none"]


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline by itself: there is no key, and nobody is asked for one."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key might be
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for something"))


def records(path: Path) -> Iterator[Any]:
    """What a .wandb file holds: after a header of 7 bytes a LevelDB log of protobuf records, in blocks of 32 KiB.

    Before each part of a record stand a checksum (4 bytes), its length (2) and its kind (1).

    W&B's own reader, wandb.sdk.internal.datastore, is gone from its newer releases.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, part = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 2**15 - position % 2**15) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if position + 7 + length > len(data):  # is being written
            return
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


class Logged:
    """The W&B run that a file holds.

    Attributes:
        run: the record that began it.
        config: its configuration, nested.
        values: key -> the last value that was logged or is in the summary.
        exit_codes: of its ends.
        artifacts: name, without the run's id -> the files of the artifact.
        better: metric -> which of its values the summary has, "max" or "min".
    """

    def __init__(self, path: Path) -> None:
        until = time.monotonic() + 600  # W&B's own process writes; on a busy machine it ends after the run
        while not any(each.HasField("exit") for each in records(path)):
            assert time.monotonic() < until
            time.sleep(0.2)
        found = list(records(path))
        self.run = next(each.run for each in found if each.HasField("run"))
        assert {each.run.run_id for each in found if each.HasField("run")} == {self.run.run_id}
        self.config: dict[str, Any] = {}
        for update in [*(each.run.config for each in found if each.HasField("run")), *(each.config for each in found)]:
            for item in update.update:
                *above, last = [item.key] if item.key else item.nested_key
                node = self.config
                for key in above:
                    node = node.setdefault(key, {})
                node[last] = json.loads(item.value_json)
        items = [item for each in found for item in (*each.summary.update, *each.history.item)]
        self.values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        made = [each.artifact for each in found if each.HasField("artifact")]
        self.artifacts = {
            each.name.replace(f"-{self.run.run_id}", ""): [item.path for item in each.manifest.contents]
            for each in made
        }
        metrics = [each.metric for each in found if each.HasField("metric")]
        self.better = {each.name: "max" if each.summary.max else "min" for each in metrics if each.HasField("summary")}
        self.exit_codes = [each.exit.exit_code for each in found if each.HasField("exit")]


def logged(folder: Path) -> Logged:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return Logged(path)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def id_of(folder: Path) -> str:
    return (folder / ID_FILE).read_text(encoding="utf-8").strip()


def test_each_job_is_a_wandb_run_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert main(["-m", *QUICK, "cost=uniform", "seed=0,1", "dataset.shots=5", f"hydra.sweep.dir={folder}"]) == 0
    runs = []
    for job in range(2):
        found = logged(folder / str(job))
        assert found.run.run_id == id_of(folder / str(job))
        assert found.run.run_group == "sweep"
        assert found.run.display_name == f"jtln_annealed discriminant uniform seed{job}"
        assert found.run.job_type == "jtln_annealed discriminant"
        assert list(found.run.tags) == ["fashion"]
        assert found.exit_codes == [0]
        runs.append(found.run.run_id)

        config = found.config
        assert config["method"]["name"] == "jtln_annealed"
        assert config["head"]["_target_"] == "jtln.heads.Discriminant"
        assert config["cost"]["_target_"] == "jtln.costs.UniformCost"
        assert (config["dataset"]["shots"], config["seed"]) == (5, job)
        composed = OmegaConf.to_container(OmegaConf.load(folder / str(job) / "config.yaml"))
        assert isinstance(composed, dict)
        smaller = {"epochs", "steps_per_epoch", "batch_size", "pretrain", "trunk"}  # by debug=smoke
        assert composed.keys() <= config.keys()
        assert {key: config[key] for key in composed.keys() - smaller} == {
            key: value for key, value in composed.items() if key not in smaller
        }
        del config["_wandb"]  # W&B's own
        assert "${" not in json.dumps(config)  # nothing is left to resolve

        test = result_of(folder / str(job))["target"]["test"]["accuracy"]
        assert found.values["best/test/target/accuracy"] == pytest.approx(test)
        assert "train/loss" in found.values
        assert {"confusion", "training"} <= {key.partition("/")[0] for key in found.values}  # the plots
    assert runs[0] != runs[1]


def table(folder: Path, logged: Logged, name: str) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table that was logged."""
    (path,) = folder.glob(f"wandb/offline-run-*/files/{logged.values[f'{name}/path']}")
    read = json.loads(path.read_text(encoding="utf-8"))
    return read["columns"], read["data"]


def test_tables_rates_and_the_best_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*QUICK, "method=jtln", "cost=wordnet", "transport.calibrate=true", f"hydra.run.dir={folder}"]) == 0
    found, result = logged(folder), result_of(folder)
    assert result["calibration"] is not None  # cost.csv has the cost before that
    assert found.values["lr-AdamW/heads"] > 0  # in the last step
    assert found.values["lr-AdamW/trunk"] == pytest.approx(found.values["lr-AdamW/heads"])  # of method=jtln
    for split in ("val", "best/test"):
        assert found.better[f"{split}/target/accuracy"] == "max"
        assert found.better[f"{split}/target/ece"] == "min"
    assert found.better["train/loss"] == "min"

    target = ["Pullover", "Shirt", "Sneaker", "Bag"]
    columns, rows = table(folder, found, "cost_table")
    assert columns == ["source class", *target]
    with open(folder / "cost.csv", newline="", encoding="utf-8") as file:
        header, *given = list(csv.reader(file))
    assert header[1:] == target
    assert [name for name, *_ in rows] == [name for name, *_ in given]
    for (_, *cells), (_, *written) in zip(rows, given, strict=True):
        assert cells == pytest.approx([float(each) for each in written], abs=5e-7)  # the file has six digits
    columns, rows = table(folder, found, "plan_table")
    assert (columns[1:], len(rows)) == (target, 6)
    assert sum(sum(cells) for _, *cells in rows) == pytest.approx(1.0, abs=1e-3)

    kept = read_predictions(folder)
    columns, rows = table(folder, found, "confusion_matrix_table")
    counts = {(row[0], row[1]): row[2] for row in rows}
    pairs = list(zip(kept.label.tolist(), kept.predicted.tolist(), strict=True))
    assert counts == {(a, b): pairs.count((i, j)) for i, a in enumerate(target) for j, b in enumerate(target)}
    columns, rows = table(folder, found, "predictions")
    assert columns == ["image", "name", "class", "predicted", "right", "confidence", "nll"]
    assert len(rows) == result["target"]["test"]["n"]
    assert sum(row[4] for row in rows) / len(rows) == pytest.approx(result["target"]["test"]["accuracy"])
    assert [row[6] for row in rows] == pytest.approx(sorted(kept.nll.tolist(), reverse=True))
    pictures = [path for path in found.artifacts["run-predictions"] if path.endswith(".png")]
    assert len(pictures) == len(rows)

    assert found.artifacts["model"] == ["best.ckpt"]
    assert main([*QUICK, "method=jtln", "cost=uniform", "logger.wandb.checkpoint=false", "hydra.run.dir=other"]) == 0
    assert "model" not in logged(tmp_path / "other").artifacts


def test_the_sweep_file_of_the_header_runs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """W&B's agent puts the values of a trial in place of ${args_no_hyphens}."""
    header = (config_dir() / "logger" / "wandb.yaml").read_text(encoding="utf-8").partition("\nwandb:")[0]
    sweep = yaml.safe_load("\n".join(re.findall(r"^#   (.*)$", header, re.MULTILINE)))
    assert sweep["program"] == "train.py"
    _, split, head, metric = sweep["metric"]["name"].split("/")
    assert (split, head, sweep["metric"]["goal"]) == ("val", "target", GOALS[metric])
    *start, rest = sweep["command"]
    assert (start[:3], rest) == (["${env}", "${interpreter}", "${program}"], "${args_no_hyphens}")
    parameters = sweep["parameters"].items()
    trial = [f"{key}={values.get('values', [values.get('max')])[0]}" for key, values in parameters]
    assert main([*start[3:], *trial, "--cfg", "job"]) == 0
    composed = OmegaConf.create(capsys.readouterr().out)
    assert (composed.optimizer.lr, composed.logger.wandb.project) == (0.01, "jtln")


def test_the_run_of_a_wandb_sweep_has_the_agents_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    assert _id(tmp_path / "run") == "r1"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert _id(tmp_path / "other") not in ("r1", "")


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*SMALL, f"hydra.run.dir={folder}"]) == 0
    first = logged(folder)
    assert first.run.run_group == ""  # of a single run
    known = id_of(folder)
    assert main([f"resume={folder}", "epochs=3"]) == 0
    assert id_of(folder) == known == first.run.run_id
    # Within one second W&B takes the same folder for both.
    found = [Logged(path) for path in folder.glob("wandb/offline-run-*/*.wandb")]
    assert {each.run.run_id for each in found} == {known}
    assert main([*SMALL, f"hydra.run.dir={tmp_path}/other"]) == 0
    assert logged(tmp_path / "other").run.run_id != known


def test_name_group_and_tags_that_are_given(tmp_path: Path) -> None:
    given = [f"logger.wandb.{each}" for each in ("name=mine", "group=ours", "tags=[first,second]", "project=toys")]
    assert main([*SMALL, *given, f"hydra.run.dir={tmp_path}/run"]) == 0
    run = logged(tmp_path / "run").run
    assert (run.display_name, run.run_group, run.project) == ("mine", "ours", "toys")
    assert list(run.tags) == ["first", "second", "fashion"]
    assert run.job_type == "consecutive linear"


def test_a_run_that_fails_ends_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(experiment: Any) -> None:
        assert experiment.loggers[0].experiment  # W&B's run begins
        raise ZeroDivisionError

    monkeypatch.setattr("jtln.training.run.run", fails)
    with pytest.raises(ZeroDivisionError):
        main([*SMALL, f"hydra.run.dir={tmp_path}/run"])
    assert logged(tmp_path / "run").exit_codes == [1]


def test_the_runs_of_a_study_are_a_group(tmp_path: Path) -> None:
    call = [*QUICK, "pretrain=none", "study.only=[consecutive]", "study.shots=1", "study.seeds=1", "study.workers=1"]
    assert main(["-m", "study=quick", *call, 'hydra.sweep.dir="Études I"']) == 0
    (folder,) = (tmp_path / "studies" / "runs").glob("consecutive_*")
    found = logged(folder)
    assert found.run.run_group == "Études I"
    assert found.run.display_name == "consecutive linear wordnet seed0"
    assert result_of(folder)["settings"]["run"] in folder.name  # the group is no setting
