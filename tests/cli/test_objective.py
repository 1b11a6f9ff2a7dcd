"""What a run returns to a sweeper that optimises, tried with a sweeper of this test's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from jtln.cli.train import main
from jtln.metrics import classification_metrics
from jtln.reporting.numbers import GOALS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing")

SMALL = ["debug=smoke", "trunk.width=0.05", "trainer.progress_bar=false", "method=consecutive", "pretrain=none"]
SMALL += ["cost=uniform", "report=false", "hydra.sweep.dir=out"]


class Asking(Sweeper):
    """Tries three learning rates one after the other, as those do that learn from what a run returned."""

    returned: ClassVar[list[Any]] = []

    def __init__(self, direction: str, most_failures: int) -> None:
        self.most_failures = most_failures

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        self.returned.clear()
        failures = []
        for job, rate in enumerate((1e-3, -1.0, 1e-2)):
            (job_return,) = self.launcher.launch([[*arguments, f"optimizer.lr={rate}"]], initial_job_idx=job)
            try:
                self.returned.append(float(job_return.return_value))
            except ValueError as error:
                failures.append(error)
                if len(failures) > self.most_failures:
                    raise


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the arguments that choose the sweeper."""
    module = ModuleType("hydra_plugins.asking")  # Hydra takes plugins from no other package
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("hydra_plugins.asking", module, raising=False)
    monkeypatch.setattr(Asking, "__module__", module.__name__)
    module.Asking = Asking  # type: ignore[attr-defined]
    Plugins.instance().register(Asking)
    file = tmp_path / "mine" / "hydra" / "sweeper" / "asking.yaml"
    file.parent.mkdir(parents=True)
    target = "hydra_plugins.asking.Asking"
    file.write_text(f"_target_: {target}\ndirection: minimize\nmost_failures: 1\n", encoding="utf-8")
    yield ["-m", "--config-dir", "mine", "hydra/sweeper=asking"]
    del Plugins.instance().class_name_to_class[target]


def kept(job: int) -> dict[str, float]:
    return json.loads(Path(f"out/{job}/result.json").read_text(encoding="utf-8"))["target"]["val"]


@pytest.mark.slow
def test_a_sweeper_gets_the_validation_metric(asking: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A trial that fails is the sweeper's to take or not, and the exit code says that there was one."""
    assert main([*asking, *SMALL, "hydra.sweeper.direction=maximize"]) == 1
    assert Asking.returned == [kept(0)["accuracy"], kept(2)["accuracy"]]
    assert "optimizer, but got lr=-1" in Path("out/1/error.txt").read_text()
    assert "failed: job 1: " in capsys.readouterr().out
    metric = ["optimized_metric=ece", "hydra.sweeper.direction=minimize", "hydra.sweeper.most_failures=0"]
    assert main([*asking, *SMALL, *metric, "hydra.sweep.dir=out2"]) == 2
    assert "lr=-1" in capsys.readouterr().err
    assert Asking.returned == [json.loads(Path("out2/0/result.json").read_text())["target"]["val"]["ece"]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("hydra.sweeper.direction=minimize", "hydra.sweeper.direction=maximize for optimized_metric=accuracy"),
        ("optimized_metric=ece hydra.sweeper.direction=maximize", "direction=minimize for optimized_metric=ece"),
        ("optimized_metric=acuracy", "Did you mean 'accuracy'"),
        ("hydra.sweeper.direction=maximize dataset.validation=0", "got dataset.validation=0"),
    ],
)
def test_what_a_sweeper_cannot_optimise(
    given: str, told: str, asking: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jtln.training.run.run", lambda experiment: pytest.fail("trained"))
    assert main([*asking, *SMALL, *given.split(), "hydra.sweeper.most_failures=0"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # above it Hydra names the job
    assert line.startswith("error: ")
    assert told in line


@pytest.mark.slow
def test_without_a_sweeper_that_optimises_no_validation_image_is_needed() -> None:
    assert main(["-m", *SMALL, "dataset.validation=0", "seed=0,1"]) == 0
    assert kept(1) is None
    (row,) = [
        line for line in Path("out/table.md").read_text().splitlines() if line.startswith("|") and "(all)" in line
    ]
    assert [cell.strip() for cell in row.split("|")][1:5:3] == ["(all)", "–"]


def test_every_metric_of_a_head_has_its_direction() -> None:
    assert set(GOALS) == set(classification_metrics(3, ""))
