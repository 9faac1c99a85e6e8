"""Everything that a user can get wrong: one line, code 2, and nothing lost. Through the real command."""

import json

import pytest
import torch
from PIL import Image
from test_recipes import image_folder

from hfgen.cli import run
from hfgen.vae import VAEPipeline

TINY = ["--hidden_sizes=16", "--latent_dim=2", "--max_train_samples=64", "--per_device_train_batch_size=16"]
TINY += ["--max_steps=6", "--save_steps=3", "--eval_strategy=no", "--disable_tqdm=true", "--max_eval_samples=20"]


def train(tmp_path, *flags: str) -> int:
    return run(
        ["train", "vae", *TINY, f"--output_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}", *flags]
    )


def refused(capsys, code: int, *parts: str) -> str:
    """Checks the code and the one line; returns it."""
    output = capsys.readouterr().err
    lines = [line for line in output.splitlines() if line.startswith("hfgen: error: ")]
    assert code == 2, output
    assert len(lines) == 1, output
    assert output.splitlines()[-1] == lines[0], "the error is the last line"
    assert "Traceback" not in output
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.fixture
def pictures(tmp_path):
    return image_folder(tmp_path / "pictures", "16", 1)


def test_unknown_keys(tmp_path, capsys):
    refused(capsys, train(tmp_path, "--learning_rat=1"), "--learning_rat", "did you mean --learning_rate?")
    config = tmp_path / "mine.yaml"
    config.write_text("latent_dims: 3\n")
    refused(capsys, train(tmp_path, f"--config={config}"), "latent_dims", "did you mean latent_dim?", "mine.yaml")


def test_missing_column(tmp_path, capsys, pictures):
    line = refused(capsys, train(tmp_path, f"--dataset_name={pictures}", "--image_column=picture"), "picture")
    assert "image" in line
    assert "label" in line


def test_unreadable_image(tmp_path, capsys, pictures):
    broken = pictures / "cats" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    flags = [f"--dataset_name={pictures}", "--per_device_train_batch_size=4"]
    refused(capsys, train(tmp_path, *flags), "3.png", "--skip_unreadable")
    assert not (tmp_path / "run").exists()
    assert train(tmp_path, *flags, "--skip_unreadable=true") == 0


def test_nothing_there(tmp_path, capsys):
    refused(capsys, train(tmp_path, f"--dataset_name={tmp_path / 'nowhere'}"), "nowhere")
    (tmp_path / "empty").mkdir()
    refused(capsys, train(tmp_path, f"--dataset_name={tmp_path / 'empty'}"), "empty")
    refused(capsys, train(tmp_path, "--train_split=trian"), "trian", "train")


def test_a_resolution_that_the_network_can_not_take(tmp_path, capsys, pictures):
    flags = [f"--dataset_name={pictures}", "--architecture=conv", "--resolution=18x20"]
    tiny = [f for f in TINY if not f.startswith(("--hidden", "--latent"))]
    code = run(["train", "vae", *tiny, *flags, f"--output_dir={tmp_path}/run", f"--cache_dir={tmp_path}/cache"])
    refused(capsys, code, "18", "4")


def test_images_of_several_sizes(tmp_path, capsys, pictures):
    Image.new("L", (20, 30)).save(pictures / "cats" / "large.png")
    everything = ["--max_train_samples=100", "--validation_fraction=0"]  # or the large one may not be looked at
    refused(capsys, train(tmp_path, f"--dataset_name={pictures}", *everything), "--resolution")


def test_a_loss_that_is_not_finite(tmp_path, capsys):
    assert train(tmp_path) == 0
    before = VAEPipeline.from_pretrained(tmp_path / "run" / "checkpoint-6")
    code = train(tmp_path, "--resume_from_checkpoint=true", "--max_steps=60", "--learning_rate=1e30")
    refused(capsys, code, "not finite at step", "loss", "checkpoint-6 is kept", "--learning_rate")
    after = VAEPipeline.from_pretrained(tmp_path / "run" / "checkpoint-6")
    for a, b in zip(before.vae.parameters(), after.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_model_or_trainer(tmp_path, capsys):
    assert train(tmp_path) == 0
    line = refused(capsys, train(tmp_path), "already holds checkpoint-6", "--resume_from_checkpoint true")
    assert "--output_dir" in line
    code = train(tmp_path, "--resume_from_checkpoint=true", "--latent_dim=3")
    refused(capsys, code, "checkpoint-6 can't be resumed with these options")
    state = tmp_path / "run" / "checkpoint-6" / "training_state" / "hfgen_state.json"
    facts = json.loads(state.read_text())
    state.write_text(json.dumps(facts | {"trainer": "GANTrainer"}))
    refused(capsys, train(tmp_path, "--resume_from_checkpoint=true"), "written by GANTrainer, this is VAETrainer")
    VAEPipeline.from_pretrained(tmp_path / "run")


def test_run_folders_that_are_none(tmp_path, capsys):
    for command in ("generate", "evaluate"):
        refused(capsys, run([command, str(tmp_path / "nowhere")]), "nowhere")
        refused(capsys, run([command, str(tmp_path)]), "run.json")


def test_a_recipe_that_there_is_not(capsys):
    refused(capsys, run(["train", "vea"]), "vea", "did you mean vae?")
