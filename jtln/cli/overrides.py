"""The command line's arguments, before Hydra sees them and as it keeps them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from jtln.errors import UserError

CHOSEN_BY_CONFIGURATIONS = ("cost", "head", "method", "pretrain")  # groups that a study's configurations choose


@functools.cache
def config_dir() -> Path:
    """Return the folder of the configuration groups: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@functools.cache
def groups() -> Sequence[str]:
    """Return every configuration group, "dataset/source" among them."""
    folders = {path.parent.relative_to(config_dir()).as_posix() for path in config_dir().glob("*/**/*.yaml")}
    return tuple(sorted(folder for folder in folders if not folder.startswith("hydra")))


def files(group: str) -> Iterable[str]:
    """Return the names of a group's files."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def key_of(override: str) -> str:
    """Return the key or group that an override sets: "+method.penalty=null" -> "method.penalty"."""
    return override.partition("=")[0].lstrip("+~")


def is_of_a_choice(override: str) -> bool:
    """Return True for a key inside a group that the rows of a study choose (cost.metric=path)."""
    return key_of(override).startswith(tuple(f"{group}." for group in CHOSEN_BY_CONFIGURATIONS))


def is_study(arguments: Sequence[str]) -> bool:
    """Return True if ``arguments`` name a study."""
    return any(re.match(r"\+?study=(?!(none|null)$)", argument) for argument in arguments)


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and a single value as a list of one."""
    return list(value) if isinstance(value, list) or OmegaConf.is_list(value) else [value]


def config_dir_given(hydra: Any) -> list[str]:
    """Return the user's own --config-dir, for further runs; nothing where there is none."""
    sources = [source for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [part for source in sources for part in ("--config-dir", os.path.abspath(source.path))]


def overrides_given(hydra: Any) -> list[str]:
    """Return what was typed, as it was typed: ${seed} in it is not the seed of the moment."""
    typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    return [str(each) for each in typed]


def at_least(key: str, value: Any, least: int) -> int:
    """Return ``value``, or raise a UserError unless it is a whole number of ``least`` or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"expected a whole number >= {least} for {key}, but got {value!r}")
    return value


def check_overrides(arguments: Sequence[str]) -> None:
    """Raise a UserError for an argument that would do nothing, or something else than it says.

    An empty value is mostly an unset variable of the shell, and as a path it is the current folder; a key that is
    deleted takes the value of the code.
    """
    known = set(groups())
    modes = [each for each in arguments if each in ("-m", "--multirun", "-c", "--cfg", "-i", "--info", "-sc")]
    if len(modes) > 1:
        raise UserError(f"expected one of these options at a time, but got {' and '.join(modes)}: leave one out")
    for argument in arguments:
        if re.match(r"(--config-name|-cn|--config-path|-cp)\b", argument):
            raise UserError(
                f"expected no {argument}: experiment=NAME takes a protocol, and --config-dir DIR files of your own"
            )
        if re.match(r"\+*hydra\.job\.chdir=[Tt]rue", argument):
            raise UserError(f"expected no {argument}: the paths of a run are relative to the folder that you are in")
        key, sign, value = argument.partition("=")
        if argument.startswith("-") or not re.match(r"[+~\w]", argument):
            continue
        if sign and not value.strip().strip("\"'").strip():
            raise UserError(
                f"expected a value for {key}, but got an empty one: a variable of the shell that is not set? Give null "
                "for none"
            )
        if argument.startswith("~") and key_of(argument) not in known:
            raise UserError(
                f"expected a value for {key_of(argument)}, but got {argument}, which takes the key away: set it to 0 "
                "or null to leave out what it stands for"
            )


def at_home(argument: str) -> str:
    """Return an argument that names a folder for results with the home folder in place of a leading ~.

    Quotes, which Hydra wants around such a value, keep the shell from doing so.
    """
    found = re.fullmatch(r"((?:study\.folder|hydra\.(?:run|sweep)\.dir)=)([\"']?)~(/.*?|)\2", argument, re.DOTALL)
    return argument if found is None else f'{found[1]}"{Path.home()}{found[3]}"'


def options_first(arguments: list[str]) -> list[str]:
    """Return the same arguments with the options in front that Hydra does not take between values."""
    options, others, left = [], [], iter(arguments)
    for argument in left:
        if argument in ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p"):
            options += [argument, *islice(left, 1)]
        elif argument in ("-m", "--multirun", "--resolve") or argument.startswith("--config-dir="):
            options.append(argument)
        else:
            others.append(argument)
    return [*options, *others]
