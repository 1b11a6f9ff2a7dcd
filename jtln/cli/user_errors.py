"""One message for each of the user's mistakes, which names the choices."""

from __future__ import annotations

import errno
import functools
import re
import sys
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jtln.cli.overrides import config_dir, files, groups, key_of, overrides_given
from jtln.errors import UserError, unknown


def explain(error: BaseException, overrides: Sequence[str]) -> str | None:
    """Return the message for a user's mistake, or None where the fault is the program's.

    Args:
        error: what was raised; Hydra wraps the exceptions of the classes that it builds, so causes are looked at too.
        overrides: the command line's.
    """
    cause: BaseException | None = error
    seen: set[int] = set()  # an exception may be its own cause
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, UserError):
            return _located(str(cause), error)
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return f"no space is left on the disk, or none for you, in writing {cause.filename or 'a checkpoint'}"
        if isinstance(cause, OSError) and cause.filename is not None:
            return f"{cause.strerror}: {cause.filename}"
        if (wandb := sys.modules.get("wandb")) is not None and isinstance(cause, wandb.Error):
            return f"W&B does not take this run: {' '.join(str(cause).split())}. With logger=csv it goes without"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    if isinstance(error, MissingConfigException):
        return _wrong_file(error)
    if isinstance(error, OverrideParseException):
        return _unquoted(str(error.override))
    if isinstance(error, InstantiationException):
        return _not_made(error, overrides)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _wrong_key(error, overrides) or " ".join(str(error).split())
    return None


def _located(message: str, error: BaseException) -> str:
    """Put the configuration's key before the message of a class that Hydra has called: it names its argument alone."""
    key = re.search(r"^full_key: ([\w.]+)$", str(error), re.MULTILINE)
    return message if key is None or f"{key[1].partition('.')[0]}." in message else f"{key[1]}: {message}"


def _not_made(error: InstantiationException, overrides: Sequence[str]) -> str:
    """Name what could not be made, and the values that were given for it: Python's own words help nobody."""
    text = str(error)
    found, place = (re.search(each, text) for each in (r"target '([^']+)'", r"full_key: ([\w.]+)"))
    what = "the configuration" if found is None else found[1]
    key = "" if place is None else place[1]
    if not key and what.startswith("jtln.trunks."):
        key = "trunk"  # which is made of the values by themselves
    surplus = re.search(r"unexpected keyword argument '(\w+)'", text)
    if surplus is not None and key:  # of a file that goes with another class
        chosen = [each for each in overrides if key_of(each).startswith(f"{key}/")]
        origin = f", of {' and '.join(chosen)}: leave that out" if chosen else f": choose another {key}"
        return f"expected keys that {what} takes, but got {key}.{surplus[1]}{origin}"
    values = [each for each in overrides if key_of(each) not in groups() and not each.startswith("hydra")]
    near = [each for each in values if not key or key_of(each).partition(".")[0] == key.partition(".")[0]]
    reason = (str(error.__cause__ or error).strip().splitlines() or [""])[0]
    given = ", ".join(near) or reason
    return f"expected values that {what} takes, but got {given}"


def _unquoted(override: str) -> str:
    """Return the message for an argument that Hydra cannot parse, with quotes that make it valid."""
    key, sign, value = override.partition("=")
    value = value.strip("\"'")
    told = f"expected GROUP=FILE or KEY=VALUE, but got '{override}'; a value with spaces, =, brackets or "
    told += "letters such as ü needs quotes inside those of the shell"
    if not sign or not re.fullmatch(r"[\w.@/+~-]+", key) or not value or "'" in value or value[0] in "[{":
        return told
    return f"{told}: \"{key}='{value}'\""


_PLUGINS = {  # files of Hydra's plugins, and how they are installed
    "hydra/sweeper/optuna": "hydra-optuna-sweeper (brings optuna 2; beside jtln[tune], optuna 4 and later: --no-deps)",
    "hydra/launcher/submitit_slurm": "'jtln[launchers]'",
    "hydra/launcher/submitit_local": "'jtln[launchers]'",
}


def _wrong_file(error: MissingConfigException) -> str:
    wanted = str(error.missing_cfg_file or "")
    group, _, name = wanted.rpartition("/")
    if (package := _PLUGINS.get(wanted)) is not None:
        return f"expected the plugin of {group}={name}, but it is not installed: pip install {package}"
    options = error.options or (files(group) if group in groups() else ())  # none for a list of choices
    if options:
        return str(unknown(group or "configuration", name, sorted(set(options) - {"train"})))
    return f"unknown configuration group '{group or name}': expected one of {', '.join(groups())}"


def _wrong_key(error: BaseException, overrides: Sequence[str]) -> str | None:
    """Return the message for a key or a group that does not exist, with those that do."""
    text = str(error)
    named = re.search(r"Could not (?:override|append|delete) '([^']+)'|Key '([^']+)' is not", text)
    group = re.search(r"Could not find a match for override '?([^'\s]+)|No match in the defaults list", text)
    if group is not None and named is None:
        wrong = re.search(r"'([^']+)'", text)
        return str(unknown("configuration group", wrong.group(1) if wrong else "?", groups()))
    if named is None:
        return None
    key = (named.group(1) or named.group(2)).lstrip("+~")
    if "/" in key or "@" in key:
        return f"expected a group that the chosen files have, but none of them has {key}: see python train.py --help"
    parent, _, leaf = key.rpartition(".")
    node = _composed(overrides)
    for part in filter(None, parent.split(".")):
        if not isinstance(node, DictConfig) or part not in node:
            keys = sorted(map(str, node)) if isinstance(node, DictConfig) else []
            return str(unknown("key", key, keys))
        node = node[part]
    if not isinstance(node, DictConfig):
        return f"unknown key '{key}': '{parent}' is a single value"
    if not parent and (longer := [each for each in _keys(node) if each.rpartition(".")[2] == leaf]):
        return f"unknown key '{leaf}': did you mean {' or '.join(longer)}?"
    takers = [each for each in overrides if f"{key}.".startswith(f"{each.partition('=')[0].lstrip('+~')}.")]
    takers = [each for each in takers if each.partition("=")[0].lstrip("+~") not in groups()]
    if parent == "trainer":
        return _trainer_key(leaf, list(map(str, node)))
    if leaf in node and len(takers) > 1:  # as chosen, but one of them has taken it away
        return f"expected one of {' and '.join(takers)}, but got both, of which one takes the key away: leave one out"
    return str(unknown(f"key in '{parent}'" if parent else "key", leaf, [str(name) for name in node]))


def _trainer_key(key: str, known: list[str]) -> str:
    """Return the message for a key of the trainer that no file has, though Lightning may have it."""
    from inspect import signature

    from pytorch_lightning import Trainer

    from jtln.training.trainer import REFUSED

    if key in REFUSED:
        return f"expected no trainer.{key}: {REFUSED[key]}"
    others = set(signature(Trainer.__init__).parameters) - {"self"}
    if key in others:
        return f"expected +trainer.{key}=VALUE for an option of pytorch_lightning.Trainer that no file has: add the +"
    return str(unknown("key in 'trainer'", key, [*known, *sorted(others - set(known) - set(REFUSED))]))


def _keys(config: DictConfig, above: str = "") -> list[str]:
    """Every key with dots, a study's left out."""
    found = []
    for name in map(str, config):
        node = config._get_node(name)
        if above + name != "study":
            found += _keys(node, f"{above}{name}.") if isinstance(node, DictConfig) else [above + name]
    return found


_COMBINED = ("experiment", "logger", "callbacks")  # groups of which several files may be chosen at once


def check_choices(overrides: Sequence[str]) -> None:
    """Raise a UserError where a group's choice is no file's name: null, which Hydra cannot explain, or several files.

    Args:
        overrides: the command line, options among it.
    """
    known = groups()
    for given in overrides:
        key, _, choice = given.partition("=")
        group = key.lstrip("+~").partition("@")[0]  # cost@cost.of
        several = choice.strip().startswith("[") and group not in _COMBINED
        empty = "null" in [each.strip().lower() for each in choice.split(",")]
        if group in known and (several or empty):
            raise UserError(
                f"expected one file's name for {group}, but got {given}: choose from {', '.join(files(group))}"
                + ("; or several runs with -m and commas between the names" if "," in choice else "")
            )


def check_types(config: DictConfig, overrides: Sequence[str] | None = None, before: DictConfig | None = None) -> None:
    """Raise a UserError where an override's value is of another type than the value that it replaces.

    Args:
        config: with the overrides.
        overrides: by default those of this run.
        before: without those that are values; by default composed from the overrides' choices of files.
    """
    overrides = overrides_given(HydraConfig.get()) if overrides is None else list(overrides)
    before = _composed(overrides) if before is None else before
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        old, new = OmegaConf.select(before, key), OmegaConf.select(config, key)
        if (key.startswith("trainer.") and key != "trainer.progress_bar") or key in _OF_SEVERAL_TYPES:
            continue  # what takes these says what it takes
        if key in groups() or override.is_add() or override.is_delete() or old is None:
            continue
        if new is None:  # what takes null for a number (all, the official part, the network's own) says so itself
            if isinstance(old, bool) or (
                isinstance(old, int | float) and not key.startswith(("dataset.", "study.", "trunk."))
            ):
                raise UserError(f"expected {_KINDS[type(old)]} for {key}, but got null")
            continue
        if isinstance(old, DictConfig):
            if not isinstance(new, DictConfig):
                keys = " and ".join(f"{key}.{name}" for name in map(str, old))
                raise UserError(f"expected values for {keys}, but got the single value {key}={new!r}")
            continue
        if OmegaConf.is_config(old):
            if not OmegaConf.is_config(new) and not key.startswith("study."):
                raise UserError(f"expected a list for {key}, but got {new!r}: {key}=[{new}]")
            continue
        wanted = _KINDS[type(old)]
        if not isinstance(new, float | int if wanted == "a number" else type(old)) or (
            isinstance(new, bool) != isinstance(old, bool)
        ):
            if isinstance(old, int | str) and key.startswith("study.") and OmegaConf.is_list(new):
                continue  # a number or a list of them: the study knows
            if isinstance(old, str) and not isinstance(new, bool) and not OmegaConf.is_config(new):
                continue  # a name that looks like a number
            raise UserError(f"expected {wanted} for {key}, but got {new!r}")


# A number or null, a share, a word or a list of names: jtln.data.category_pair and jtln.heads check them.
_OF_SEVERAL_TYPES = frozenset(
    ["head.prior", "head.temperature"]
    + [f"dataset.{key}" for key in ("target_classes", "source_classes", "validation", "source_validation", "decoded")]
)
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _composed(overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration with the command line's choices of files, and none of its values: only read it."""
    known = groups()
    choices = [
        override
        for override in overrides
        if override.partition("=")[0].lstrip("+~") in known and "," not in override.partition("=")[2]
    ]
    if GlobalHydra.instance().is_initialized():
        paths = GlobalHydra.instance().config_loader().get_search_path().get_path()
        return _composed_once(tuple(choices), tuple(str(each.path) for each in paths))
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return compose("train", overrides=choices)
        except HydraException:  # a file from the user's own --config-dir
            return compose("train")


@functools.lru_cache(maxsize=16)  # the jobs of a sweep differ in values more often than in files
def _composed_once(choices: tuple[str, ...], search_path: tuple[str, ...]) -> DictConfig:
    """Compose under the Hydra of the moment; ``search_path`` tells the one of another call from it."""
    return compose("train", overrides=list(choices))
