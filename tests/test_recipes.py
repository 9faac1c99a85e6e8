"""Every recipe and every config: two real steps, and what a run folder must hold."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from hfgen.cli import run
from hfgen.config import recipes_dir
from hfgen.recipes import list_recipes

CONFIGS = [(recipe.name, config.name) for recipe in list_recipes() for config in recipe.configs]
FEW_STEPS = ["--max_steps=2", "--max_train_samples=160", "--max_eval_samples=20", "--per_device_train_batch_size=4"]
FEW_STEPS += ["--eval_steps=2", "--save_steps=1", "--gradient_accumulation_steps=1", "--disable_tqdm=true"]
# What a config that names no embedded data is tried on instead.
OWN_TEXT = {"pretrain_causal_lm": "text", "pretrain_masked_lm": "text"}
# How `hfgen generate` is asked; the same twice gives the same files.
GENERATE = {
    "vae": ["--num_images", "3"],
    "gan": ["--num_images", "3"],
    "pretrain_causal_lm": ["--prompt", "The with statement", "--num_samples", "2", "--max_new_tokens", "5"],
    "pretrain_masked_lm": ["--prompt", "The [MASK] statement"],
    "sft": ["--prompt", "What does os.path.join do?", "--max_new_tokens", "5"],
    "reward": ["--prompt", "What does len do?", "--response", "Return the number of items in a container."],
    "translation": ["--prompt", "e\u0301"],
    "captioning": ["--image", "PICTURE"],
}


def image_folder(folder, resolution: str | None, channels: int | None):
    """A small imagefolder of the size that a config wants."""
    height, _, width = (resolution or "28").partition("x")
    shape = (int(height), int(width or height)) + ((3,) if channels != 1 else ())
    dice = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for index in range(40):
            Image.fromarray(dice.integers(0, 256, shape, dtype=np.uint8)).save(folder / label / f"{index}.png")
    return folder


def test_there_are_recipes():
    assert {("vae", "digits"), ("gan", "digits"), ("pretrain_causal_lm", "stdlib")} <= set(CONFIGS)
    assert {recipe.name for recipe in list_recipes()} == GENERATE.keys()


def own_data(folder, recipe: str, options: dict):
    """A stand-in for data that a config expects elsewhere."""
    if recipe in OWN_TEXT:
        folder.mkdir()
        for number in range(40):
            (folder / f"{number}.txt").write_text("".join(f"Line {i} of text {number}.\n" for i in range(60)))
        return folder
    return image_folder(folder, options.get("resolution"), options.get("channels"))


def files_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("recipe", "config"), CONFIGS)
def test_two_real_steps_of_every_config(recipe, config, tmp_path, capsys):
    options = yaml.safe_load((recipes_dir() / "configs" / recipe / f"{config}.yaml").read_text())
    flags = ["--config", config, *FEW_STEPS, f"--output_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    if options["dataset_name"] not in ("digits", "stdlib"):
        flags.append(f"--dataset_name={own_data(tmp_path / 'data', recipe, options)}")
    assert run(["train", recipe, *flags]) == 0, capsys.readouterr().err
    folder = tmp_path / "run"
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["recipe"], facts["config"]) == (recipe, config)
    assert facts["command"].startswith(f"hfgen train {recipe} --config {config}")
    assert "output_dir" not in facts["command"]
    assert facts["arguments"]["max_steps"] == 2
    assert facts["metrics"]
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    assert (folder / "README.md").read_text().startswith("---\n")
    shown = [folder / "figures" / "figures.json", folder / "samples.json"]
    assert any(json.loads(path.read_text()) for path in shown if path.exists())
    assert list(folder.glob("checkpoint-2/training_state/*"))
    assert not list(folder.rglob("training_args.bin"))

    picture = tmp_path / "picture.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)
    asked = ["generate", str(folder), *(w.replace("PICTURE", str(picture)) for w in GENERATE[recipe]), "--seed", "1"]
    assert run(asked) == 0, capsys.readouterr().err
    assert run([*asked, "--output", str(tmp_path / "again")]) == 0
    assert files_in(folder / "generated")
    assert files_in(folder / "generated") == files_in(tmp_path / "again")
    capsys.readouterr()
    fewer = ["--num_importance_samples", "20"] if recipe == "vae" else []
    assert run(["evaluate", str(folder), *fewer]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((folder / "evaluation.json").read_text()) == figures
    if recipe == "gan":
        assert figures["num_samples"] == figures["num_reals"] and "trained on" in figures["feature_model"]
        # What training published is what anyone measures again.
        assert all(figures[name.split("_", 1)[1]] == value for name, value in facts["metrics"].items())
    if recipe == "vae":
        assert figures["iw_bound"] > figures["elbo"] - 0.1 * abs(figures["elbo"])  # one noisy sample against twenty
        assert (folder / "generated" / "grid.png").exists()


@pytest.mark.parametrize(("recipe", "config"), CONFIGS)
def test_every_config_says_its_command_time_and_score(recipe, config):
    (header,) = [c for r in list_recipes() if r.name == recipe for c in r.configs if c.name == config]
    assert header.command.startswith(f"hfgen train {recipe} --config {config}")
    assert any(unit in header.time for unit in (" s ", " min ", " h "))
    assert any(digit.isdigit() for digit in header.score)


@pytest.mark.parametrize("recipe", [r.name for r in list_recipes()])
def test_recipes_are_wiring(recipe):
    lines = (recipes_dir() / f"{recipe}.py").read_text().splitlines()
    assert len(lines) <= 80
    (embedded,) = [r.embedded for r in list_recipes() if r.name == recipe]
    assert lines[0] == f'"""accelerate launch recipes/{recipe}.py --config recipes/configs/{recipe}/{embedded}.yaml'
