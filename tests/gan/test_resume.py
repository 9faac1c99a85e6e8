"""Kill -9 a GAN at any moment, run the same command again: both networks, both optimizers, the average, ADA's state
and the monitors' history are those of the run that nobody killed."""

import json
import random

import pytest
import torch
from processes import kill_after, run, start
from safetensors.torch import load_file
from toy import same

SCRIPT = "gan/small.py"
FLAGS = [
    "--per_device_train_batch_size=8",
    "--max_steps=60",
    "--logging_steps=7",
    "--save_steps=9",
    "--lr_scheduler_type=cosine",
    "--warmup_steps=5",
    "--latent_dim=6",
    "--monitor_steps=10",
    "--disable_tqdm=true",
]
VARIANTS = {
    "ADA, classes, lazy penalties": (
        1,
        [
            "--architecture=resnet",
            "--block_out_channels",
            "8",
            "8",
            "--augment_policy=ada",
            "--ada_target=0.01",
            "--class_conditional=true",
            "--penalty_every=3",
            "--instance_noise=0.1",
            "--dropout=0.1",
        ],
    ),
    "accumulation, two D steps, spectral norm": (
        1,
        [
            "--architecture=dcgan",
            "--block_out_channels",
            "8",
            "--gradient_accumulation_steps=2",
            "--d_steps=2",
            "--spectral_norm=both",
            "--loss=hinge",
            "--max_grad_norm=1",
            "--discriminator_learning_rate=4e-4",
        ],
    ),
    "two processes": (2, ["--architecture=mlp", "--hidden_sizes", "16", "--augment_policy=ada", "--ada_target=0.01"]),
}


def all_weights(folder):
    """The published networks, and the whole state of the last checkpoint."""
    (state,) = (folder / "checkpoint-60").glob("training_state")
    return {
        f"{name}/{key}": value
        for name, file in (
            ("generator", folder / "generator" / "diffusion_pytorch_model.safetensors"),
            ("discriminator", folder / "discriminator" / "diffusion_pytorch_model.safetensors"),
            ("G", state / "model.safetensors"),
            ("D", state / "model_1.safetensors"),
        )
        for key, value in load_file(file).items()
    }


def optimizers(folder):
    state = folder / "checkpoint-60" / "training_state"
    loaded = [torch.load(state / name, weights_only=True) for name in ("optimizer.bin", "optimizer_1.bin")]
    return {
        f"{k} {parameter} {name}": torch.as_tensor(value)
        for k, optimizer in enumerate(loaded)
        for parameter, values in optimizer["state"].items()
        for name, value in values.items()
    }


@pytest.mark.parametrize(
    "variant", [v if v == "two processes" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, variant):
    processes, flags = VARIANTS[variant]
    flags = [SCRIPT, *FLAGS, *flags]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(processes, *flags, "--save_steps=12", f"--output_dir={whole}")
    flags += [f"--output_dir={killed}", "--resume_from_checkpoint=true"]
    dice = random.Random(variant)
    for _ in range(2):
        kill_after(start(processes, *flags, "--delay=0.05"), killed, dice.uniform(0, 0.4))
    assert not (killed / "trainer_state.json").exists(), "the run ended before it was killed"
    assert list(killed.glob("checkpoint-*"))
    run(processes, *flags, "--save_steps=12")
    ends = [json.loads((folder / "end.json").read_text()) for folder in (whole, killed)]
    assert [end["world"] for end in ends] == [processes] * 2
    assert len(ends[0]["history"]) == 10
    assert ends[0] == ends[1]
    assert same(all_weights(whole), all_weights(killed))
    assert same(optimizers(whole), optimizers(killed))
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (whole, killed)]
    assert states[0]["stateful_callbacks"] == states[1]["stateful_callbacks"]
    if "ADA" in variant or processes == 2:
        kept = [torch.load(f / "checkpoint-60/training_state/custom_checkpoint_1.pkl") for f in (whole, killed)]
        assert kept[0] == kept[1] and kept[0]["value"] > 0
