"""Two processes are one with twice the batch; and what is launched is what was asked for."""

import json
import os
import subprocess
import sys

import pytest
import torch
from processes import HERE, environment, run
from toy import weights

from hfgen.errors import BadInput
from hfgen.launch import check_launch, set_cpu_threads

FLAGS = ["--max_steps=30", "--save_strategy=no", "--lr_scheduler_type=cosine", "--max_grad_norm=1", "--use_ema=true"]
FLAGS += ["--global_noise=1", "--logging_steps=5", "--eval_strategy=steps"]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(1, *FLAGS, "--per_device_train_batch_size=8", "--gradient_accumulation_steps=2", f"--output_dir={one}")
    run(2, *FLAGS, "--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", f"--output_dir={two}")
    assert [json.loads((d / "world.json").read_text()) for d in (one, two)] == [1, 2]
    a, b = weights(one), weights(two)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=name)
    logs = [json.loads((d / "trainer_state.json").read_text())["log_history"] for d in (one, two)]
    for metric in ("loss", "eval_loss"):
        series = [[e[metric] for e in log if metric in e] for log in logs]
        assert len(series[0]) == 6
    losses = [[e["loss"] for e in log if "loss" in e] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_ranks_draw_different_noise(tmp_path):
    """Without the shared noise the two runs above must differ: a rank that copies another's noise would not."""
    flags = [f for f in FLAGS if "noise" not in f]
    run(2, *flags, "--per_device_train_batch_size=4", f"--output_dir={tmp_path / 'two'}")
    run(1, *flags, "--per_device_train_batch_size=8", f"--output_dir={tmp_path / 'one'}")
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert any((a[name] - b[name]).abs().max() > 1e-4 for name in a)


def test_a_nan_on_both_ranks_is_one_line(tmp_path):
    flags = [*FLAGS, "--per_device_train_batch_size=8", "--nan_at=7", f"--output_dir={tmp_path}"]
    output = run(2, *flags, expect=1)  # torchrun's own code
    assert output.count("hfgen: error: the loss is not finite at step 7") == 1


# ---- the launch guard


@pytest.mark.parametrize(
    ("environment_", "runs", "kind", "line"),
    [
        ({"WORLD_SIZE": "2"}, 1, "NO", "asked for 2 processes, but 1 runs"),
        ({"MASTER_ADDR": "x", "ACCELERATE_MIXED_PRECISION": "no"}, 1, "NO", "asked for 2 processes, but 1 runs"),
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, 2, "MULTI_CPU", "asked for FSDP, but MULTI_CPU"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 1, "NO", "asked for DEEPSPEED, but NO"),
    ],
)
def test_a_mismatch_stops_and_names_the_command_that_works(monkeypatch, environment_, runs, kind, line):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=rf"{line}.*hfgen train \w+ --num_processes 2") as error:
        check_launch(runs, kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("environment_", "runs", "kind"),
    [
        ({}, 1, "NO"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "x"}, 2, "MULTI_GPU"),
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, 2, "FSDP"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, "NO"),
    ],
)
def test_what_was_asked_for_runs(monkeypatch, environment_, runs, kind):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment_.items():
        monkeypatch.setenv(name, value)
    check_launch(runs, kind)


def launch(*words: str, **env: str):
    command = [sys.executable, "-m", "accelerate.commands.launch", *words]
    env = {k: v for k, v in environment().items() if k != "OMP_NUM_THREADS"} | env
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)


def test_accelerate_launch_cpu_with_two_processes_is_stopped(tmp_path):
    toy = [str(HERE / "toy.py"), f"--output_dir={tmp_path / 'run'}", "--max_steps=2"]
    done = launch("--quiet", "--cpu", "--num_processes", "2", *toy)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("hfgen: error: the launcher was asked for 2 processes, but 1 runs")
    assert not (tmp_path / "run").exists()


def test_accelerate_launch_on_a_cpu_runs_and_uses_the_cores(tmp_path):
    """Plain `accelerate launch` sets OMP_NUM_THREADS=1, which would leave the other cores idle."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom hfgen.arguments import TrainingArguments\nfrom hfgen.launch import start_accelerator\n"
        "a = start_accelerator(TrainingArguments())\nprint(a.num_processes, a.device, torch.get_num_threads())\n"
    )
    done = launch(str(script))
    cores = len(os.sched_getaffinity(0))
    assert done.stdout.split() == ["1", "cpu", str(cores)], done.stderr


def test_a_number_of_threads_that_the_user_chose_is_kept(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        torch.set_num_threads(1)
        set_cpu_threads()
        assert torch.get_num_threads() == 1
        monkeypatch.delenv("OMP_NUM_THREADS")
        set_cpu_threads()
        assert torch.get_num_threads() == 3, "each of two processes takes half of six cores"
    finally:
        torch.set_num_threads(before)
