"""Parses the flags and the config file of a run; each mistake is one sentence."""

import ast
import importlib.util
import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from metricjax.cli.parser import Parser
from metricjax.config.parsing import from_config_dict
from metricjax.config.schema import RunConfig
from metricjax.errors import InputError, suggestion
from metricjax.storage.directories import local_path

MODES = ("train", "plan", "folds", "compare")
FORMATS = ("markdown", "latex")
_OVERRIDE = "--config."
_BOOLEANS = {"true": True, "1": True, "yes": True}
_BOOLEANS |= {"false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
      config: the settings.
      config_dict: the same as the config file and the overrides left it.
      name: the config file's name, with its variant.
      workdir: the run's directory, or the address of one in a bucket.
      mode: what to do, one of `MODES`.
      print_config: print the settings and do nothing else.
    """

    config: RunConfig
    config_dict: ConfigDict
    name: str
    workdir: Path | str
    mode: str
    print_config: bool


@dataclass(frozen=True)
class Comparison:
    """What `--mode compare` asked for.

    Attributes:
      runs: workdirs.
      form: of the tables, one of `FORMATS`.
    """

    runs: tuple[str, ...]
    form: str


def parse(arguments: list[str]) -> Options | Comparison:
    """Read the command line.

    Raises:
      InputError: an unknown flag, no such config or variant, a setting that does not
        exist or has another type.
    """
    parser = Parser()
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    parser.add_argument("--mode", default="train")
    parser.add_argument("--print_config", action="store_true")
    parser.add_argument("--format", default="markdown")
    own, overrides = _separate(arguments)
    known, rest = parser.parse_known_args(own)
    if known.mode == "compare":
        return _comparison(known, rest, overrides)
    if rest:
        flag = rest[0].split("=")[0]
        flags = ("--config", "--workdir", "--mode", "--print_config", "--format")
        flags += ("--help",)
        hint = suggestion(flag, flags)
        if not known.config and flag.endswith(".py"):
            hint = f" (did you mean --config {flag}?)"
        raise InputError(f"{flag!r} is no flag{hint}; see --help.")
    if not known.config:
        raise InputError("--config is missing: name a config file; see --help.")
    if known.mode not in MODES:
        raise InputError(
            f"--mode is {known.mode!r}{suggestion(known.mode, MODES)}: choose "
            f"{', '.join(MODES[:-1])} or {MODES[-1]}."
        )
    path, _, variant = known.config.partition(":")
    config = _load(Path(path), variant)
    for setting, text in overrides:
        _override(config, setting, text)
    name = Path(path).stem + (f"-{variant}" if variant else "")
    return Options(
        config=from_config_dict(config),
        config_dict=config,
        name=name,
        workdir=_workdir(known.workdir) if known.workdir else Path("runs") / name,
        mode=known.mode,
        print_config=known.print_config,
    )


def _comparison(known, rest, overrides) -> Comparison:
    """`--mode compare RUN RUN ...`"""
    odd = [argument for argument in rest if argument.startswith("-")]
    odd += [f"{_OVERRIDE}{name}" for name, _ in overrides]
    odd += ["--config"] * bool(known.config) + ["--workdir"] * bool(known.workdir)
    if odd:
        raise InputError(
            f"--mode compare takes no {odd[0].split('=')[0]}: name the workdirs of "
            "finished runs, and --format if you like."
        )
    if not rest:
        raise InputError(
            "--mode compare has nothing to compare: name the workdirs of finished runs."
        )
    if known.format not in FORMATS:
        raise InputError(
            f"--format is {known.format!r}{suggestion(known.format, FORMATS)}: choose "
            f"{' or '.join(FORMATS)}."
        )
    return Comparison(tuple(rest), known.format)


def _workdir(text: str) -> Path | str:
    """A directory of this machine as a path; an address elsewhere as it is."""
    kind = re.match(r"([a-z][a-z0-9]+):/(?!/)", text)
    if kind:
        raise InputError(
            f"--workdir {text} is neither a directory nor an address: write "
            f"{kind[1]}:// with two strokes."
        )
    path = local_path(text)
    return text if path is None else path


def _separate(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The flags proper, and the overrides `--config.KEY=VALUE` as (key, value)."""
    own, overrides, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith(_OVERRIDE):
            own.append(argument)
            continue
        setting, equals, text = argument.removeprefix(_OVERRIDE).partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"{argument} has no value: write {argument}=VALUE.")
            text = left.pop(0)
        overrides.append((setting, text))
    return own, overrides


def _load(path: Path, variant: str) -> ConfigDict:
    """The `get_config(variant)` of a config file."""
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*.py"))
        there = f"; {path.parent} has {', '.join(others)}" if others else ""
        raise InputError(
            f"--config {path}: there is no such file"
            f"{suggestion(path.name, others)}{there}."
        )
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise InputError(f"--config {path}: a config is a Python file, named *.py.")
    module = importlib.util.module_from_spec(spec)
    with _config_errors(path):
        spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise InputError(f"--config {path}: it defines no get_config().")
    if variant and not inspect.signature(get_config).parameters:
        raise InputError(f"--config {path}: it has no variants, but {variant!r} came.")
    with _config_errors(path):
        config = get_config(variant) if variant else get_config()
    if not isinstance(config, ConfigDict):
        raise InputError(f"--config {path}: get_config() must return a ConfigDict.")
    return config.lock()


@contextmanager
def _config_errors(path: Path) -> Iterator[None]:
    """Whatever a config file raises, as one sentence that names the line."""
    try:
        yield
    except InputError:
        raise
    except SyntaxError as error:
        raise InputError(
            f"--config {path}: line {error.lineno or 1} is not Python ({error.msg})."
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename) == path.absolute()]
        message = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"--config {path}: line {own[-1].lineno if own else 1} raises "
            f"{type(error).__name__}: {message}."
        ) from error


def _override(config: ConfigDict, setting: str, text: str) -> None:
    """Set `a.b.c` of a config from text, as the type that it has."""
    *groups, last = setting.split(".")
    place = config
    for depth, name in enumerate([*groups, last]):
        if not isinstance(place, ConfigDict) or name not in place:
            above = ".".join(["config", *groups[:depth]])
            known = list(place) if isinstance(place, ConfigDict) else []
            near = suggestion(name, known)
            has = f"; {above} has {', '.join(sorted(known))}" if known else ""
            raise InputError(f"--config.{setting} is no setting{near}{has}.")
        if depth < len(groups):
            place = place[name]
    place[last] = _value(text, place, last, setting)


def _value(text: str, place: ConfigDict, name: str, setting: str) -> Any:
    kind = place.get_type(name)
    if isinstance(place[name], ConfigDict):
        raise InputError(
            f"--config.{setting} is a group of settings: set one of "
            f"{', '.join(sorted(place[name]))} in it."
        )
    try:
        if text == "None" and place[name] is None:
            return None
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if kind in (tuple, list):
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return kind(text)
    except (ValueError, KeyError, SyntaxError) as error:
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        wanted = words.get(kind, "a list such as (1,2,4)")
        raise InputError(
            f"--config.{setting}={text} does not fit: it must be {wanted}."
        ) from error
