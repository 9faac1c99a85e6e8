"""Finds recipes and their configs, and loads them; reading the list imports no recipe.

A recipe is a file recipes/<name>.py with `main(argv)`, `generate(run_dir, *, seed, output, **options)` and
`evaluate(run_dir, **options)`; its configs are the YAML files of recipes/configs/<name>/, whose header comments say
`# Command:`, `# Time:` and `# Score:`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import yaml

from .config import nearest, recipes_dir
from .errors import BadInput

# Every recipe has one of these: it trains on what the install brings, without a download.
EMBEDDED_CONFIGS = ("digits", "stdlib")

_HEADER = re.compile(r"^#\s*(Command|Dataset|Time|Score):\s*(.*?)\s*$")


@dataclass(frozen=True)
class RecipeConfig:
    """What a config's header promises: its dataset, how long it takes on what hardware, the score to expect."""

    name: str
    command: str = ""
    dataset: str = ""
    time: str = ""
    score: str = ""


@dataclass(frozen=True)
class Recipe:
    """A recipe's name, file, the first line of its docstring that is no command, and its configs."""

    name: str
    path: Path
    description: str
    configs: tuple[RecipeConfig, ...]

    @property
    def embedded(self) -> str | None:
        """The config that trains on embedded data, or `None`."""
        return next((c.name for c in self.configs if c.name in EMBEDDED_CONFIGS), None)


def read_config_header(path: Path) -> RecipeConfig:
    """Reads the `# Key: value` comments above a config's options; a comment line below a key continues it."""
    text = path.read_text(encoding="utf-8")
    values: dict[str, str] = {}
    key = None
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if match := _HEADER.match(line):
            key = match[1].lower()
            values[key] = match[2]
        elif key and (more := line.lstrip("# ").rstrip()):
            values[key] += f" {more}"
    if "dataset" not in values:
        options = yaml.safe_load(text)
        values["dataset"] = str((options or {}).get("dataset_name", path.stem))
    return RecipeConfig(path.stem, **values)


def _description(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    # A docstring may open with its launch command: an indented, backquoted or `$` line says nothing of the recipe.
    for line in docstring.splitlines():
        if line.strip() and not re.match(r"\s|[`$]|(accelerate|hfgen|python|torchrun)\s", line):
            return line.strip()
    return ""


def list_recipes() -> list[Recipe]:
    """All recipes, in alphabetical order."""
    root = recipes_dir()
    found = []
    for path in sorted(root.glob("[!_]*.py")):
        configs = sorted((root / "configs" / path.stem).glob("*.yaml"))
        # What needs no download stands first.
        configs.sort(key=lambda c: c.stem not in EMBEDDED_CONFIGS)
        found.append(Recipe(path.stem, path, _description(path), tuple(map(read_config_header, configs))))
    return found


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        BadInput: there is none of that name; names the nearest.
    """
    known = sorted(p.stem for p in recipes_dir().glob("[!_]*.py"))
    if name not in known:
        raise BadInput(f"unknown recipe {name}{nearest(name, known)}; known are {', '.join(known) or 'none'}")
    return recipes_dir() / f"{name}.py"


def load_recipe(name: str) -> ModuleType:
    """Imports a recipe's file.

    Raises:
        BadInput: there is none of that name.
    """
    path = find_recipe(name)
    module_name = f"hfgen_recipe_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    # Registered, so that dataclasses and pickles of a recipe find their module.
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module
