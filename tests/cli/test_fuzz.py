"""Nonsense for every key: it is taken where it makes sense, refused in one message where not, and never a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import warnings
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from jtln.cli.build import build
from jtln.cli.hydra_app import run_hydra
from jtln.cli.overrides import check_overrides, config_dir
from jtln.cli.train import main
from jtln.cli.user_errors import check_choices, check_types, explain

pytestmark = [pytest.mark.usefixtures("in_a_folder_of_its_own", "no_drawing"), pytest.mark.slow]

COUNT = 300
NONSENSE = ["null", "-1", "0", "0.5", "1e20", "nan", "inf", "abc", "true", "[]", "[1,2]", "{a:1}", "../../x", "99999"]
BASES = (  # together they have every key of the groups that a run is made of
    [],
    ["trunk=torchvision", "optimizer=sgd", "schedule=step", "method=lp_ft", "dataset=pictograms", "trainer=ddp"],
    ["trunk=timm", "method=lwf", "cost=centroid", "head=cosine", "dataset=caltech256", "logger=wandb"],
    ["trunk=efficientnet_lite0", "method=bss", "cost=mmd", "head=free_lunch", "pretrain=none", "dataset=cifar10"],
    ["method=co_tuning_source", "cost=posterior", "head=logistic", "schedule=constant"],
    ["method=l2sp", "cost=weights", "head=linear"],
    ["method=delta"],
    ["method=co_tuning", "cost=permuted", "dataset=fashion_full"],
)
RAW = (
    "Traceback",
    "Error(",
    "object has no attribute",
    "not supported between",
    "unsupported operand",
    "object is not",
)

# Values that are absurd but for the keys in TAKES.
ABSURD = frozenset({"-1", "1e20", "nan", "inf", "{a:1}", "../../x", "[1,2]"})
TEXT = frozenset({"../../x"})
LARGE = frozenset(
    {"1e20"}
)  # weights, strengths and costs: a network that they make diverge ends in a message of its own
TAKES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("cache", "dataset.cache", "dataset.root", "dataset.target.root", "cost.file"), TEXT),
    **dict.fromkeys(("optimizer.lr", "pretrain.optimizer.lr", "trunk_lr_factor", "trainer.gradient_clip_val"), LARGE),
    **dict.fromkeys(("optimizer.weight_decay", "pretrain.optimizer.weight_decay", "transport.epsilon"), LARGE),
    **dict.fromkeys((f"method.{key}" for key in ("keep", "lambda_label", "lambda_ot", "lambda_source")), LARGE),
    **dict.fromkeys((f"method.penalty.{key}" for key in ("alpha", "beta", "eta", "weight")), LARGE),
    **dict.fromkeys((f"head.{key}" for key in ("alpha", "inverse_penalty", "length", "prior", "temperature")), LARGE),
    **dict.fromkeys(("method.lambda_target", "transport.tolerance", "dataset.white"), LARGE),
    **dict.fromkeys((f"logger.{key}" for key in ("entity", "group", "name")), TEXT),
    "cost.bandwidths": frozenset({"[1,2]"}),
    # What a network and pl.Trainer take is known when they are made, which is before any image is read.
    "trainer.devices": ABSURD,
    "trainer.accelerator": ABSURD,
    "trainer.precision": ABSURD,
    "trainer.strategy": ABSURD,
    **dict.fromkeys((f"trunk.{key}" for key in ("_target_", "match", "name", "path", "weights")), ABSURD),
    **dict.fromkeys((f"trunk.{key}" for key in ("dropout", "width", "mean", "std")), ABSURD),
    "method.penalty.layers": frozenset({"[1,2]", "../../x"}),  # names of layers, which the network knows
}


class Composed(NamedTuple):
    """A configuration, and the overrides that chose its files."""

    base: list[str]
    config: DictConfig  # Hydra's own node in it


@pytest.fixture(scope="module")
def composed() -> list[Composed]:
    """Each of BASES, composed once: an override of a value changes nothing else."""
    found = []
    for base in BASES:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose("train", overrides=base, return_hydra_config=True)
        with open_dict(config):
            config.hydra.runtime.output_dir = "run"
        found.append(Composed(base, config))
    return found


def keys(config: Any, above: str = "") -> list[str]:
    """Every key with a single value or a list, but for what Hydra and studies have."""
    if not isinstance(config, dict):
        return [above]
    names = [name for name in config if above or name not in ("hydra", "study", "resume")]
    return [key for name in names for key in keys(config[name], f"{above}.{name}".lstrip("."))]


class Tried(NamedTuple):
    """A value of a key, and why no run can be built with it; None where one can."""

    base: list[str]
    override: str
    message: str | None


@pytest.fixture(scope="module")
def tried(composed: list[Composed], tmp_path_factory: pytest.TempPathFactory) -> list[Tried]:
    """COUNT values: every key once, each under the first base that has it, and then any key again."""
    draw = random.Random(0)
    first: dict[str, Composed] = {}
    for each in composed:
        plain = OmegaConf.to_container(each.config, resolve=False)
        for key in keys(plain):
            first.setdefault(key, each)
    drawn = [*first, *(draw.choice([*first]) for _ in range(COUNT - len(first)))]
    cases = [(first[key], f"{key}={draw.choice(NONSENSE)}") for key in drawn]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("built"))  # A logger writes its run's id into the run folder.
        warnings.simplefilter("ignore")
        return [Tried(each.base, override, message_of(each, override)) for each, override in cases]


def message_of(each: Composed, override: str) -> str | None:
    """Build a run with one value changed; None where it can be built, and else the message."""
    config, overrides = copy.deepcopy(each.config), [*each.base, override]
    OmegaConf.set_struct(config, True)
    try:
        check_overrides([override])
        check_choices([override])
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides([override]), config)
        with open_dict(config):
            config.hydra.overrides.task = overrides
        HydraConfig.instance().set_config(config)
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        OmegaConf.set_struct(config, True)
        check_types(config, overrides, each.config)
        build(config)
    except Exception as error:
        message = explain(error, overrides)
        return f"Traceback: {error!r}" if message is None else message
    return None


def test_nothing_absurd_is_built_and_nothing_ends_in_a_traceback(tried: list[Tried]) -> None:
    assert len(tried) == COUNT
    wrong = []
    for base, override, message in tried:
        key, _, value = override.partition("=")
        if message is None and value in ABSURD - TAKES.get(key, frozenset()):
            wrong.append(f"{base} {override}: built")
        elif message is not None and (any(raw in message for raw in RAW) or "\n" in message):
            wrong.append(f"{base} {override}: {message[:300]}")
    assert wrong == []


def quick(base: list[str]) -> list[str]:
    """What makes the networks of a base small."""
    own = [] if any(each.startswith("trunk=") for each in base) else ["trunk.width=0.05"]
    large = [f"dataset.image_size={32 if own else 40}"] if "dataset=caltech256" in base or not own else []
    name = ["trunk.name=resnet18"] if "trunk=torchvision" in base else []
    name += ["trunk.name=resnet10t"] if "trunk=timm" in base else []
    return [*own, *large, *name, "logger.wandb.mode=disabled"] if "logger=wandb" in base else [*own, *large, *name]


@pytest.mark.filterwarnings("ignore")
def test_what_is_built_runs_or_is_refused(tried: list[Tried]) -> None:
    """20 values that a run is built with, run on synthetic images."""
    drawn = random.Random(1).sample(tried, COUNT)
    chosen = [each for each in drawn if not each.override.startswith(("debug", "hydra")) and each.message is None]
    wrong = []
    for number, (base, override, _) in enumerate(chosen[:20]):
        out = io.StringIO()
        arguments = [*base, *quick(base), "debug=smoke", "trainer.accelerator=cpu", "trainer.devices=1"]
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
            code = main([*arguments, f"hydra.run.dir={number}", override])
        if code not in (0, 2) or any(raw in out.getvalue() for raw in RAW):
            wrong.append(f"{base} {override}: {code} {out.getvalue()[-300:]}")
    assert wrong == []


def built(config: Any) -> None:
    build(config)


@pytest.mark.parametrize(
    "override",
    [
        *("cache=5", "dataset.image_size=100000", "num_workers=9999", "trainer.devices=99"),
        *("trainer.precision=16-true", "trainer.gradient_clip_val=nan", "+trainer.limit_test_batches=0"),
        *("+trainer.accumulate_grad_batches=0", "dataset._target_=builtins.dict", "optimizer.betas=[]"),
        *("+nope=1", "~method.lambda_ot", "trainer.deterministic=xxx", "dataset.name=null", "dataset.name=../../x"),
        *("dataset.shift=100", "trainer.gradient_clip_val=-1", "transport.tolerance=inf", "method.lambda_ot=inf"),
        *("dataset.root=", "cost.metric=", "hydra.job.chdir=true", "--config-name=experiment", "seed=-1", "epochs=0"),
        *("schedule.final=-1", "trunk_lr_factor=nan", "dataset.seed=-1", "method.name=../x", "trainer.progress_bar=5"),
        *("dataset.flip=null", "dataset.stored_size=99999", "trunk.views=99999", "method.name=[a]"),
    ],
)
def test_the_absurd_is_refused(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["dataset=fashion_full"] if override.startswith(("dataset.root", "dataset.stored")) else []
    assert run_hydra([*base, override, "hydra.run.dir=run"], built) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    assert "Error(" not in message
    assert any(part in message for part in override.lstrip("+~-").partition("=")[0].split("."))


@pytest.mark.parametrize("override", ["trunk.width=null", "trunk.weights=5"])
def test_what_the_trunk_does_not_take(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([override, "debug=smoke", "pretrain=none", "method=consecutive", "hydra.run.dir=run"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert override in message
