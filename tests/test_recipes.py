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


def image_folder(folder, resolution: str | None, channels: int | None):
    """A small imagefolder of the size that a config wants."""
    height, _, width = (resolution or "28").partition("x")
    shape = (int(height), int(width or height)) + ((3,) if channels != 1 else ())
    dice = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (folder / label).mkdir(parents=True)
        for index in range(12):
            Image.fromarray(dice.integers(0, 256, shape, dtype=np.uint8)).save(folder / label / f"{index}.png")
    return folder


def test_there_are_recipes():
    assert {("vae", "digits")} <= set(CONFIGS)


@pytest.mark.parametrize(("recipe", "config"), CONFIGS)
def test_two_real_steps_of_every_config(recipe, config, tmp_path, capsys):
    options = yaml.safe_load((recipes_dir() / "configs" / recipe / f"{config}.yaml").read_text())
    flags = ["--config", config, *FEW_STEPS, f"--output_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    if options["dataset_name"] not in ("digits", "stdlib"):
        folder = image_folder(tmp_path / "images", options.get("resolution"), options.get("channels"))
        flags.append(f"--dataset_name={folder}")
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
    assert json.loads((folder / "figures" / "figures.json").read_text())
    assert list(folder.glob("checkpoint-2/training_state/*"))
    if recipe == "vae":
        assert run(["generate", str(folder), "--num_images", "3", "--seed", "1"]) == 0
        first = [np.asarray(Image.open(folder / "generated" / f"0000{i}.png")) for i in range(3)]
        assert run(["generate", str(folder), "--num_images", "3", "--seed", "1", "--output", str(tmp_path / "b")]) == 0
        assert all((np.asarray(Image.open(tmp_path / "b" / f"0000{i}.png")) == first[i]).all() for i in range(3))
        assert (folder / "generated" / "grid.png").exists()
        capsys.readouterr()
        assert run(["evaluate", str(folder), "--num_importance_samples", "20"]) == 0
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures["iw_bound"] > figures["elbo"] - 0.1 * abs(figures["elbo"])  # one noisy sample against twenty
        assert json.loads((folder / "evaluation.json").read_text()) == figures


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
    assert lines[0] == f'"""accelerate launch recipes/{recipe}.py --config recipes/configs/{recipe}/digits.yaml'
