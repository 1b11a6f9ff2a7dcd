"""Nonsense for every key: it is taken where it makes sense, refused in one message where not, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jtln.cli.hydra_app import run_hydra
from jtln.cli.overrides import config_dir
from jtln.cli.train import main

pytestmark = [pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing"), pytest.mark.slow]

NONSENSE = ["null", "-1", "0", "0.5", "1e20", "nan", "inf", "abc", "true", "[]", "[1,2]", "{a:1}", "../../x", "99999"]
BASES = (
    [],
    ["trunk=torchvision", "optimizer=sgd", "schedule=step"],
    ["method=delta"],
    ["cost=centroid", "method=jtln"],
)
SMALL = ["trunk.width=0.05"]


def keys(base: list[str]) -> list[str]:
    """Every key with a single value or a list, but for what Hydra and studies have."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides=base), resolve=False)

    def walk(node: Any, above: str) -> list[str]:
        if not isinstance(node, dict):
            return [above]
        return [key for name, child in node.items() for key in walk(child, f"{above}.{name}".lstrip("."))]

    return [key for key in walk(config, "") if not key.startswith(("study", "resume"))]


def cases(count: int) -> list[tuple[list[str], str]]:
    draw = random.Random(0)
    found = []
    for base in BASES:
        names = keys(base)
        found += [(base, f"{draw.choice(names)}={draw.choice(NONSENSE)}") for _ in range(count // len(BASES))]
    return found


def built(config: Any) -> None:
    from jtln.cli.build import build

    build(config)


@pytest.mark.parametrize("part", range(6))
def test_nothing_ends_in_a_traceback(part: int) -> None:
    """60 values, composed and built: exit code 0 or 2, and a message of one paragraph."""
    wrong = []
    for base, override in cases(60)[part::6]:
        out = io.StringIO()
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
            code = run_hydra([*base, override, "hydra.run.dir=run"], built)
        message = out.getvalue()
        raw = any(
            each in message for each in ("Traceback", "Error(", "object has no attribute", "not supported between")
        )
        if code not in (0, 2) or raw or (code == 2 and "error: " not in message):
            wrong.append(f"{base} {override}: {code} {message[-300:]}")
    assert wrong == []


@pytest.mark.parametrize("part", range(2))
def test_what_can_be_built_runs_or_is_refused(part: int) -> None:
    """8 values, run on synthetic images."""
    wrong = []
    for base, override in [case for case in cases(160)[1::20] if "num_workers" not in case[1]][part::2]:
        out = io.StringIO()
        small = SMALL if "trunk=torchvision" not in base else ["dataset.image_size=32"]
        arguments = [*base, *small, "debug=smoke", "trainer=cpu", "hydra.run.dir=run", override]
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
            code = main(arguments)
        if code not in (0, 2) or "Traceback" in out.getvalue():
            wrong.append(f"{base} {override}: {code} {out.getvalue()[-300:]}")
    assert wrong == []


@pytest.mark.parametrize(
    "override",
    [
        *(
            "cache=5",
            "dataset.image_size=100000",
            "num_workers=9999",
            "trainer.devices=99",
            "trainer.precision=16-true",
        ),
        *("trainer.gradient_clip_val=nan", "+trainer.limit_test_batches=0", "+trainer.accumulate_grad_batches=0"),
        *("dataset._target_=builtins.dict", "optimizer.betas=[]"),
        *("+nope=1", "~method.lambda_ot", "trainer.deterministic=xxx", "dataset.name=null", "dataset.name=../../x"),
        *("dataset.shift=100", "trainer.gradient_clip_val=-1", "transport.tolerance=inf", "method.lambda_ot=inf"),
        *("dataset.root=", "cost.metric=", "hydra.job.chdir=true", "--config-name=experiment", "seed=-1", "epochs=0"),
    ],
)
def test_the_absurd_is_refused(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["dataset=fashion_full"] if override == "dataset.root=" else []
    assert run_hydra([*base, override, "hydra.run.dir=run"], built) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    assert "Error(" not in message


@pytest.mark.parametrize("override", ["trunk.width=null", "trunk.weights=5"])
def test_what_the_trunk_does_not_take(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([override, "debug=smoke", "pretrain=none", "method=consecutive", "hydra.run.dir=run"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert override in message
