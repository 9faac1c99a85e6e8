"""One config style for every recipe: dataclasses, a YAML file, flags that override it.

A YAML file is turned into flags that stand before the user's own, so both go through the same parser: the same types,
the same choices, and an unknown key fails in either.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml

from .errors import BadInput


def recipes_dir() -> Path:
    """The folder of recipes and their configs: the clone's own, or the copy that the wheel carries."""
    package = Path(__file__).resolve().parent
    carried = package / "_recipes"
    return carried if carried.is_dir() else package.parent / "recipes"


def nearest(name: str, known: list[str]) -> str:
    """`" (did you mean X?)"`, or nothing where no known name is near."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def find_config(config: str, recipe: str) -> Path:
    """The YAML file that `--config` names: a path, or a name such as `digits` under recipes/configs/<recipe>/."""
    path = Path(config)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BadInput(f"--config {config}: there is no such file")
        return path
    folder = recipes_dir() / "configs" / recipe
    named = folder / f"{config}.yaml"
    if not named.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        raise BadInput(
            f"--config {config}: {recipe} has the configs {', '.join(known)}{nearest(config, known)}; "
            "a file of your own is named with its .yaml"
        )
    return named


def yaml_to_flags(path: Path, known: set[str]) -> list[str]:
    """The flags that say the same as a YAML file of `option: value` lines."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {error}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise BadInput(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} must hold `option: value` lines")
    flags: list[str] = []
    for key, value in content.items():
        if key not in known:
            raise BadInput(f"{path}: unknown option {key}{nearest(str(key), sorted(known))}")
        if value is None:
            raise BadInput(f"{path}: {key} has no value; remove the line to keep the default")
        if isinstance(value, dict):
            flags += [f"--{key}", yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()]
        elif isinstance(value, list):
            flags += [f"--{key}", *(str(item) for item in value)]
        else:
            flags += [f"--{key}={value}"]
    return flags


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as [`BadInput`] and `--help` left as it is."""

    def error(self, message: str):
        raise BadInput(message)


def build_parser(dataclasses_: tuple[type, ...], recipe: str) -> argparse.ArgumentParser:
    """The parser of a recipe: every dataclass field is a flag, documented by its own `help`."""
    from transformers import HfArgumentParser

    class Parser(_Parser, HfArgumentParser):
        pass

    # Prefixes of flags are refused: `--learn 1` would otherwise be taken as --learning_rate.
    parser = Parser(dataclasses_, prog=f"hfgen train {recipe}", allow_abbrev=False)
    parser.add_argument("--config", help="a config of this recipe by name, or a YAML file of options; flags override")
    return parser


def parse_arguments(dataclasses_: tuple[type, ...], argv: list[str] | None, recipe: str) -> tuple[Any, ...]:
    """Reads `--config` and flags into dataclasses.

    Args:
        dataclasses_: the recipe's dataclasses; an option's name is used once among them.
        argv: the flags, without the program's name; `None` takes `sys.argv[1:]`.
        recipe: its name, to find `--config NAME` under recipes/configs/<recipe>/.

    Returns:
        One instance of each dataclass, then the config's name or path as given (or `None`).

    Raises:
        BadInput: unknown option, wrong type or choice, unreadable file; names it and the nearest known one.
    """
    import sys

    argv = list(sys.argv[1:] if argv is None else argv)
    known = {field.name for cls in dataclasses_ for field in dataclasses.fields(cls) if field.init}
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config, flags = finder.parse_known_args(argv)
    if config.config:
        flags = yaml_to_flags(find_config(config.config, recipe), known) + flags
    parser = build_parser(dataclasses_, recipe)
    namespace, unknown = parser.parse_known_args(flags)
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise BadInput(f"{unknown[0]!r} stands where an option was expected; options begin with --")
        raise BadInput(f"unknown option {name}{nearest(name, [f'--{k}' for k in sorted(known)])}")
    values = vars(namespace)
    built = []
    for cls in dataclasses_:
        built.append(cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init}))
    return (*built, config.config)
