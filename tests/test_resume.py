"""Kill -9 at any moment, run the same command again, and the weights are those of the run that nobody killed."""

import json
import os
import random
import signal
import subprocess

import pytest
from processes import kill_after, run, start
from toy import same, weights

FLAGS = [
    "--per_device_train_batch_size=4",
    "--max_steps=120",
    "--logging_steps=7",
    "--save_steps=9",
    "--eval_strategy=steps",
    "--eval_steps=31",
    "--lr_scheduler_type=cosine",
    "--warmup_steps=10",
    "--max_grad_norm=1",
    "--optim=adamw_torch",
]
VARIANTS = {
    "plain": (1, []),
    "accumulation and EMA": (1, ["--gradient_accumulation_steps=3", "--use_ema=true"]),
    "stream": (1, ["--stream=1", "--use_ema=true"]),
    "two processes": (2, ["--gradient_accumulation_steps=2", "--use_ema=true"]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, variant):
    processes, flags = VARIANTS[variant]
    flags = [*FLAGS, *flags]
    run(processes, *flags, f"--output_dir={tmp_path / 'whole'}")
    killed = tmp_path / "killed"
    flags += [f"--output_dir={killed}", "--resume_from_checkpoint=true"]
    dice = random.Random(variant)
    seen = set()
    for _ in range(3 if processes == 1 else 2):
        process = start(processes, *flags, "--delay=0.02")
        kill_after(process, killed, dice.uniform(0, 0.5))
        seen |= {p.name for p in killed.glob("checkpoint-*")}
    assert not (killed / "trainer_state.json").exists(), "the run ended before it was killed"
    run(processes, *flags)
    assert seen
    assert json.loads((killed / "world.json").read_text()) == processes
    assert same(weights(tmp_path / "whole"), weights(killed))
    whole, mended = (json.loads((tmp_path / d / "trainer_state.json").read_text()) for d in ("whole", "killed"))
    assert mended["global_step"] == whole["global_step"] == 120
    evals = [[e["eval_loss"] for e in s["log_history"] if "eval_loss" in e] for s in (whole, mended)]
    assert len(evals[0]) == 4
    assert evals[0] == evals[1]


def test_how_often_a_run_evaluates_and_logs_does_not_change_its_weights(tmp_path):
    run(1, *FLAGS, f"--output_dir={tmp_path / 'a'}")
    rarely = [f for f in FLAGS if not f.startswith(("--eval", "--logging"))]
    run(1, *rarely, "--eval_strategy=no", "--logging_steps=50", f"--output_dir={tmp_path / 'b'}")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)])
def test_a_signal_saves_and_leaves_a_resumable_checkpoint(tmp_path, processes, number):
    flags = [*FLAGS, "--save_strategy=no"]
    run(processes, *flags, f"--output_dir={tmp_path / 'whole'}")
    flags += [f"--output_dir={tmp_path / 'cut'}", "--resume_from_checkpoint=true"]
    process = start(processes, *flags, "--delay=0.1", "--disable_tqdm=true", "--logging_steps=1", PYTHONUNBUFFERED="1")
    for line in process.stdout:
        if "'loss'" in line:
            break
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    if processes == 1:
        assert process.returncode == 128 + number
    assert f"{number.name} at step" in output
    assert output.count("saved") == 1, "rank 0 alone speaks"
    assert "Traceback" not in output or processes > 1  # torchrun reports the signal that it was sent itself
    saved = list((tmp_path / "cut").glob("checkpoint-*"))
    assert len(saved) == 1
    run(processes, *flags)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")
    try:
        run_dir = small / "run"
        flags = ["--per_device_train_batch_size=4", "--max_steps=40", "--save_steps=10", f"--output_dir={run_dir}"]
        flags += ["--eval_strategy=no", "--save_total_limit=100"]
        (small / "ballast").write_bytes(b"x" * 300_000)
        output = run(1, *flags, expect=2)
        last = output.splitlines()[-1]
        assert last.startswith("hfgen: error")
        assert output.count("hfgen: error") == 1
        assert "disk is full" in last
        assert "Traceback" not in output
        kept = sorted(p.name for p in run_dir.iterdir())
        assert kept, "the first checkpoint fits"
        assert all(name.startswith("checkpoint-") for name in kept), "nothing half-written is left"
        assert kept[-1] in last
        (small / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        run(1, *flags, "--resume_from_checkpoint=true")
        whole = tmp_path / "whole"
        run(1, *flags, f"--output_dir={whole}")
        assert same(weights(run_dir), weights(whole))
    finally:
        subprocess.run(["umount", str(small)], check=True)
