"""`hfgen demo`: every recipe on its embedded data, in this process, and the gallery of what came out."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

from .config import nearest
from .errors import BadInput
from .recipes import Recipe, list_recipes, load_recipe
from .report import summarise, write_gallery
from .runs import Run, read_json, read_run, write_json
from .tables import format_number, format_seconds, format_table

# The key in summary.json by which a demo knows a folder as its own.
_MARK = "written_by"


def _choose(only: list[str]) -> list[Recipe]:
    recipes = [r for r in list_recipes() if r.embedded]
    known = [r.name for r in recipes]
    for name in only:
        if name not in known:
            raise BadInput(f"--only {name}: the demo has {', '.join(known)}{nearest(name, known)}")
    return [r for r in recipes if not only or r.name in only]


def _own_folders(output: Path) -> list[dict]:
    """The entries of an earlier demo in `output`.

    Raises:
        BadInput: `output` is something else than a demo's folder or an empty one.
    """
    if output.exists() and not output.is_dir():
        raise BadInput(f"--output {output} is a file; name a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return []
    summary = read_json(output / "summary.json", {})
    if not isinstance(summary, dict) or summary.get(_MARK) != "hfgen demo":
        raise BadInput(f"--output {output} is not empty and no demo's folder; name another, or remove it yourself")
    # A name with a separator would lead out of the folder; a demo never writes one.
    return [e for e in summary.get("runs", []) if Path(e["run_dir"]).name == e["run_dir"]]


def _release(recipe: str) -> None:
    """Forgets the last recipe's process state: the next one may want another precision or device."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sys.modules.pop(f"hfgen_recipe_{recipe}", None)
    gc.collect()


def _run(recipe: Recipe, run_dir: Path) -> Run:
    """Trains and evaluates one recipe; a failure becomes the run's `error`, so the others go on."""
    begin = time.perf_counter()
    try:
        module = load_recipe(recipe.name)
        module.main(["--config", recipe.embedded, "--output_dir", str(run_dir)])
        write_json(run_dir / "evaluation.json", module.evaluate(run_dir))
        return read_run(run_dir)
    except (Exception, SystemExit) as error:
        if os.environ.get("HFGEN_DEBUG") == "1":
            traceback.print_exc()
        line = " ".join(str(error).split()) or type(error).__name__
        message = line if isinstance(error, BadInput) else f"{type(error).__name__}: {line}"
        print(f"hfgen: error: {recipe.name}: {message}", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - begin
        command = f"hfgen train {recipe.name} --config {recipe.embedded}"
        return Run(run_dir, recipe.name, recipe.embedded, command, seconds, error=message)
    finally:
        _release(recipe.name)


def _one_thread() -> None:
    """More make such small models no faster, and two beside another busy program are 10 to 40 times slower."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"  # for what the recipes start
        torch.set_num_threads(1)


def run_demo(output: Path, only: list[str]) -> int:
    """Trains, evaluates and shows every recipe that has an embedded config.

    Args:
        output: folder to write to; an earlier demo's runs of the same recipes are replaced, its others stay.
        only: names of recipes; none means all.

    Returns:
        int: 0, or 1 where a recipe failed (the others are complete).

    Raises:
        BadInput: unknown recipe; `output` is neither empty nor a demo's.
    """
    output = Path(output)
    recipes = _choose(only)
    if not recipes:
        raise BadInput("no recipe has a config for embedded data")
    earlier = _own_folders(output)
    own = {entry["run_dir"] for entry in earlier}
    for recipe in recipes:
        if recipe.name not in own and os.path.lexists(output / recipe.name):
            raise BadInput(f"{output / recipe.name} is in the way and no demo wrote it; name another --output")
    kept = [e for e in earlier if e["recipe"] not in {r.name for r in recipes} and (output / e["run_dir"]).is_dir()]

    _one_thread()
    # The mark comes first, so that a demo which is stopped halfway can be repeated.
    output.mkdir(parents=True, exist_ok=True)
    planned = [summarise(Run(output / r.name, r.name, r.embedded), output) for r in recipes]
    write_json(output / "summary.json", {_MARK: "hfgen demo", "seconds": 0, "runs": kept + planned})

    begin = time.perf_counter()
    runs = []
    for number, recipe in enumerate(recipes, 1):
        run_dir = output / recipe.name
        if run_dir.is_symlink():
            run_dir.unlink()
        shutil.rmtree(run_dir, ignore_errors=True)
        print(f"[{number}/{len(recipes)}] {recipe.name} --config {recipe.embedded}: {recipe.description}", flush=True)
        runs.append(_run(recipe, run_dir))
    seconds = time.perf_counter() - begin
    shown = [_reread(entry, output) for entry in kept] + runs
    page = write_gallery(output, shown, seconds, **{_MARK: "hfgen demo"})
    print("\n" + _table(runs))
    print(f"\n{format_seconds(seconds)} in all; the page: {page}")
    return 1 if any(run.error for run in runs) else 0


def _reread(entry: dict, output: Path) -> Run:
    """A run of an earlier demo that this one leaves as it is."""
    directory = output / entry["run_dir"]
    if (directory / "run.json").is_file():
        return read_run(directory)
    return Run(directory, entry["recipe"], entry["config"], error=entry.get("error", "did not finish"))


def _table(runs: list[Run]) -> str:
    rows = [("recipe", "config", "time", "score", "alarms")]
    for run in runs:
        score = next((f"{name} {format_number(value)}" for name, value in run.metrics.items()), "")
        alarms = ", ".join(dict.fromkeys(a["alarm"] for a in run.alarms)) or "no alarm"
        state = f"failed: {run.error}" if run.error else alarms
        rows.append((run.recipe, run.config or "", format_seconds(run.seconds), score, state))
    return format_table(rows)
