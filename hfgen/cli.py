"""The command line: `hfgen demo | recipes | train | generate | evaluate | push`.

Nothing heavy is imported before a command needs it: `hfgen --help` answers at once.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import BadInput, guarded
from .tables import format_number, format_table

# What a recipe's own flags need: everything that typer doesn't know is handed on.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="hfgen",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Train any generative model the Hugging Face way."""
    if version:
        print(f"hfgen {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    only: Annotated[list[str] | None, typer.Option(help="Only this recipe; may be given several times.")] = None,
    output: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("hfgen-demo"),
) -> None:
    """Train every recipe on embedded data; write a page of results.

    The data came with the install: no network is needed.
    """
    from .demo import run_demo

    raise typer.Exit(run_demo(output, only or []))


@app.command()
def recipes() -> None:
    """List recipes and configs, their time and expected score."""
    from .recipes import list_recipes

    for recipe in list_recipes():
        print(f"{recipe.name}  {recipe.description}")
        rows = [("config", "dataset", "time", "score")]
        rows += [(config.name, config.dataset, config.time, config.score) for config in recipe.configs]
        print(format_table(rows, indent="  "), end="\n\n")
    print("Train one with `hfgen train RECIPE --config CONFIG`; its options: `hfgen train RECIPE --help`.")


@app.command(context_settings={**_PASS_ON, "help_option_names": []}, options_metavar="RECIPE [OPTIONS]")
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Its name: see `hfgen recipes`.")] = "",
    num_processes: Annotated[int | None, typer.Option("--num_processes", help="Processes to train in.", min=1)] = None,
    accelerate_config: Annotated[
        str | None, typer.Option("--accelerate_config", help="An Accelerate config: a name such as fsdp2, or a file.")
    ] = None,
) -> None:
    """Train a recipe: `hfgen train vae --config digits`.

    Every further option is the recipe's own (`hfgen train RECIPE --help`) and overrides its config.
    """
    from .recipes import find_recipe, load_recipe

    if recipe in ("", "-h", "--help"):
        print(context.get_help())
        return
    if recipe.startswith("-"):
        raise BadInput(f"{recipe} stands where the recipe's name was expected: hfgen train RECIPE [options]")
    script = find_recipe(recipe)
    asks_help = any(word in ("-h", "--help") for word in context.args)
    if asks_help or (accelerate_config is None and num_processes in (None, 1)):
        load_recipe(recipe).main(context.args)
        return
    from .launcher import launch

    raise typer.Exit(launch(script, context.args, num_processes, accelerate_config))


@app.command(context_settings=_PASS_ON)
def generate(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The output_dir of a finished run.")],
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same output.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", help="Folder; default: RUN_DIR/generated.")] = None,
) -> None:
    """Generate from a finished run: pictures, or text.

    Images: --num_images 64 writes a grid and single files. Text: --prompt "…" --num_samples 4 prints and writes it.
    """
    from .runs import read_run

    run = read_run(run_dir)
    output = output or run_dir / "generated"
    files = _call_recipe(run, "generate", context.args, seed=seed, output=output)
    print(f"{len(files)} file{'' if len(files) == 1 else 's'} in {output}")


@app.command(context_settings=_PASS_ON)
def evaluate(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The output_dir of a finished run.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the metrics to this file too.")] = None,
) -> None:
    """Evaluate a finished run: a table, then one line of JSON.

    The metrics are kept in RUN_DIR/evaluation.json.
    """
    from .runs import finite, read_run, write_json

    run = read_run(run_dir)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise BadInput(f"--json {json_file}: there is no folder {json_file.parent}")
    metrics = _call_recipe(run, "evaluate", context.args)
    write_json(run_dir / "evaluation.json", metrics)
    if json_file is not None:
        write_json(json_file, metrics)
    print(format_table([(name, format_number(value)) for name, value in metrics.items()]))
    print(json.dumps(finite(metrics)))


@app.command()
def push(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The output_dir of a finished run.")],
    repo_id: Annotated[
        str | None, typer.Argument(metavar="REPO_ID", help="Its name on the Hub; default: the folder's name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Publish a finished run on the Hub.

    The model, its card and its pictures; no checkpoints and no pickles.
    """
    from .hub import push_to_hub

    print(push_to_hub(run_dir, repo_id, private=private or None))


def _call_recipe(run, name: str, extra: list[str], **given: Any) -> Any:
    """Calls a recipe's `generate` or `evaluate` with further `--option value` pairs of its signature."""
    import yaml

    from .config import nearest
    from .recipes import load_recipe

    function = getattr(load_recipe(run.recipe), name)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:  # a text recipe hands on how to sample
        from .text.generation import continue_texts

        sampling = [p for p in inspect.signature(continue_texts).parameters.values() if p.kind is p.KEYWORD_ONLY]
        parameters += [p for p in sampling if p.name not in given]
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    texts = {p.name for p in parameters if isinstance(p.default, str)}  # a prompt stays as it was typed
    numbers = {p.name for p in parameters if type(p.default) in (int, float)}
    words = iter(extra)
    for word in words:
        option, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or option not in known:
            choices = [f"--{k}" for k in known]
            raise BadInput(
                f"unknown option {word.partition('=')[0]}{nearest(word, choices)}; {name} of "
                f"{run.recipe} knows {', '.join(choices) or 'none'}"
            )
        if not equals and (value := next(words, None)) is None:
            raise BadInput(f"--{option} needs a value")
        given[option] = value if option in texts else yaml.safe_load(value)
        if option in numbers and not isinstance(given[option], int | float):
            raise BadInput(f"--{option} {value}: must be a number")
        if option.startswith("num_") and not given[option] >= 1:
            raise BadInput(f"--{option} {value}: must be at least 1")
    return function(run.directory, **given)


def run(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code; what the user got wrong is one line on stderr and code 2."""
    usage_error = typer.BadParameter.__base__

    def call() -> None:
        try:
            code = app(args=argv, prog_name="hfgen", standalone_mode=False)
        except usage_error as error:
            raise BadInput(f"{error.format_message()} (see hfgen --help)") from None
        if isinstance(code, int):
            raise SystemExit(code)

    return guarded(call)


def main() -> None:
    """The `hfgen` command."""
    sys.exit(run())
