"""Two processes are one with twice the batch, for both networks and for what the monitors look at."""

import json

import pytest
import torch
from processes import run
from safetensors.torch import load_file

FLAGS = [
    "gan/small.py",
    "--shared_noise=1",
    "--max_steps=8",
    "--save_strategy=no",
    "--logging_steps=2",
    "--latent_dim=6",
    "--monitor_steps=8",
    "--max_grad_norm=1",
    "--learning_rate=1e-2",
    "--optim=sgd",
    "--disable_tqdm=true",
]
VARIANTS = {
    "default, conditional": ["--architecture=mlp", "--hidden_sizes", "16", "--class_conditional=true"],
    "WGAN-GP, lazy, two D steps": [
        "--architecture=resnet",
        "--block_out_channels",
        "8",
        "8",
        "--loss=wasserstein",
        "--gradient_penalty=one_centered",
        "--penalty_every=2",
        "--d_steps=2",
    ],
}


@pytest.mark.parametrize(
    "variant", [v if "default" in v else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, variant):
    ends = []
    for processes, size in ((1, 16), (2, 8)):
        folder = tmp_path / str(processes)
        flags = [
            *FLAGS,
            *VARIANTS[variant],
            f"--per_device_train_batch_size={size}",
            "--gradient_accumulation_steps=2",
        ]
        run(processes, *flags, f"--output_dir={folder}")
        ends.append(json.loads((folder / "end.json").read_text()))
    assert [end["world"] for end in ends] == [1, 2]
    for network in ("generator", "discriminator"):
        file = f"{network}/diffusion_pytorch_model.safetensors"
        a, b = (load_file(tmp_path / n / file) for n in ("1", "2"))
        assert len(a) > 3
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=f"{network} {name}")
    logs = [json.loads((tmp_path / n / "trainer_state.json").read_text())["log_history"] for n in ("1", "2")]
    for metric in ("d_loss", "g_loss", "g_grad_norm", "d_grad_norm", "d_accuracy", "g_logit_grad"):
        series = [[entry[metric] for entry in log if metric in entry] for log in logs]
        assert len(series[0]) == 4 and series[0] == pytest.approx(series[1], rel=1e-3, abs=1e-4), metric
    assert len(ends[0]["history"]) == 8
    for one, two in zip(*(end["history"] for end in ends), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)
