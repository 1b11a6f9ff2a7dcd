"""``resume=RUN``: go on with a run that was cut off. ``resume=auto`` does so in whatever folder the run has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from jtln.cli.overrides import config_dir, key_of
from jtln.cli.run_folder import AUTO
from jtln.errors import UserError
from jtln.study.job import is_setting
from jtln.study.ledger import read_result

# What may change when a run is resumed, which has no part in what it learns but for how long.
_NO_SETTING = (
    "epochs",
    "trainer",
    "logger",
    "num_workers",
    "cache",
    "compare_target_only",
    "hydra",
    "trust",
    "optimized_metric",
)


def resumed(arguments: list[str]) -> list[str]:
    """Return the arguments of the run that ``resume=FOLDER`` names, its folder, and the arguments given now.

    Raises:
        UserError: there is no such run, it is finished, or it is under way and what was given is one of its settings.
    """
    folders = [argument.partition("=")[2].strip("\"'") for argument in arguments if argument.startswith("resume=")]
    if not folders or folders[-1] in ("null", AUTO):
        return arguments
    folder = Path(folders[-1]).expanduser().resolve()
    overrides = folder / "overrides.yaml"
    if not overrides.is_file():
        raise UserError(f"expected resume= to be the folder of a run, but there is no {overrides}")
    named = {"resume": f'resume="{folder}"', "hydra.run.dir": f'hydra.run.dir="{folder}"'}
    now = [argument for argument in arguments if argument.partition("=")[0] not in named]
    keys = {argument.partition("=")[0] for argument in now if "=" in argument and not argument.startswith("-")}
    if read_result(folder / "result.json") is not None and not keys - {"trust"}:
        raise UserError(f"the run in {folder} is finished: to train it for longer, give epochs= as well")
    try:
        written: Any = OmegaConf.to_container(OmegaConf.load(overrides), resolve=False)
        if not isinstance(written, list):
            raise ValueError(f"expected a list, but got {type(written).__name__}")
    except (OmegaConfBaseException, YAMLError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        reason = " ".join(str(error).split())
        raise UserError(f"expected the run's arguments in {overrides}, but it cannot be read: {reason}") from error
    earlier = [str(override) for override in written]
    if not any(argument.lower() == "trust=true" for argument in now):
        for each in earlier:
            _check_harmless(each, overrides)
    same = {argument.partition("=")[0] for argument in now if argument in earlier}  # given again, by DDP for one
    settings = sorted(key for key in keys - same if not key.lstrip("+~").startswith(_NO_SETTING))
    if settings and (folder / "checkpoints" / "last.ckpt").is_file():
        raise UserError(
            f"expected no other settings for a run that is under way, but got {', '.join(settings)} with "
            f"resume={folder}: leave them out (epochs, trainer, logger and num_workers may change), or start a new run"
        )
    return [*(each for each in earlier if each.partition("=")[0] not in keys), *now, *named.values()]


def _check_harmless(override: str, file: Path) -> None:
    """Raise a UserError for an override of a file that runs code of other packages, or reaches into Hydra."""
    key = key_of(override)
    targets = re.findall(r"(?<!\w)_target_(?!\w)(?:[\"']?\s*[:=]\s*[\"']?([\w.]*))?", override)
    foreign = [target for target in targets if target not in _configured_targets()]
    own_network = override.lstrip("+") == "trunk=module" or key == "trunk.path"  # imports and calls what path names
    # A resolver such as oc.decode can make the word _target_ of parts; oc.env reads the variables of the shell.
    resolver = re.search(r"\$\{.*:", override, re.DOTALL) is not None
    if foreign or own_network or key.startswith("hydra") or override.startswith("-") or resolver:
        raise UserError(
            f"expected settings of a run in {file}, but got {override!r}, which would run or read something else: give "
            "trust=true as well if the folder is from somebody whom you trust"
        )


def _configured_targets() -> set[str]:
    """Return what the package's own configuration names to be called, but for what calls a name that it is given.

    A prefix would not do: jtln.storage.os.system is found by way of this package.
    """
    texts = (path.read_text(encoding="utf-8") for path in config_dir().rglob("*.yaml"))
    return {target for text in texts for target in re.findall(r"_target_: ([\w.]+)", text)} - {
        "jtln.trunks.from_module"
    }


def check_unchanged(config: str, folder: Path) -> None:
    """Raise a UserError where the run under way was begun with other settings: those of another version's defaults.

    Args:
        config: now, YAML.
        folder: of the run, where what it was begun with lies as well.
    """
    begun = folder / "config.yaml"
    if not begun.is_file() or not (folder / "checkpoints" / "last.ckpt").is_file():
        return
    try:
        then, now = (_flat(OmegaConf.to_container(each)) for each in (OmegaConf.load(begun), OmegaConf.create(config)))
    except (OmegaConfBaseException, YAMLError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"expected the run's settings in {begun}, but it cannot be read: {reason}") from error
    nothing = "nothing"
    changed = [
        f"{key} (then {then.get(key, nothing)}, now {now.get(key, nothing)})"
        for key in dict.fromkeys([*then, *now])
        if is_setting(key) and not key.startswith(_NO_SETTING) and then.get(key, nothing) != now.get(key, nothing)
    ]
    if changed:
        raise UserError(
            f"expected the settings that the run in {folder} was begun with, but got others of {', '.join(changed[:8])}"
            f"{', and more' if len(changed) > 8 else ''}: go on with the version that began it, or start a new run"
        )


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    """Every value under its key with dots."""
    if not isinstance(values, dict) or not values:
        return {above: values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{above}.{key}".lstrip(".")).items()}
