"""Starts Accelerate, and stops in one line where what runs is not what was asked for.

On a CPU `accelerate launch --cpu --num_processes 2` silently runs one process, an FSDP config silently becomes DDP,
and without `use_cpu` it becomes two runs of one process each (accelerate 1.15). A user would find out from the bill.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings

import torch

from .arguments import TrainingArguments
from .errors import BadInput


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _asked_processes() -> int | None:
    """How many processes the launcher was asked for, or `None` where it left no trace."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # accelerate's simple launcher sets the address for several processes, and then starts one.
    if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        return _number_on_command_line() or 2
    return None


def _number_on_command_line() -> int | None:
    """`--num_processes` of the launcher that started this process, where the system tells."""
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (words[i + 1] if i + 1 < len(words) else "")
            return int(value) if value.isdigit() else None
    return None


def _working_command(processes: int) -> str:
    script = os.path.basename(sys.argv[0] or "recipes/vae.py")
    recipe = script.removesuffix(".py")
    torchrun = f"torchrun --nproc_per_node {processes} recipes/{recipe}.py"
    return f"`hfgen train {recipe} --num_processes {processes}` or `{torchrun}`"


def check_launch(num_processes: int, distributed_type: str) -> None:
    """Compares what the launcher was asked for (its environment variables) with what runs.

    Args:
        num_processes: world size that runs.
        distributed_type: `accelerator.distributed_type`, e.g. `"MULTI_CPU"`, `"FSDP"`.

    Raises:
        BadInput: they differ; names the command that works.
    """
    asked = _asked_processes()
    for variable, kind, needs in (
        ("ACCELERATE_USE_FSDP", "FSDP", "FSDP needs GPUs"),
        ("ACCELERATE_USE_DEEPSPEED", "DEEPSPEED", "DeepSpeed needs GPUs"),
    ):
        if _flag(variable) and distributed_type != kind:
            raise BadInput(
                f"the launcher was asked for {kind}, but {distributed_type} with {num_processes} process(es) runs: "
                f"{needs}; on this machine use {_working_command(asked or 2)}"
            )
    if asked is not None and asked != num_processes:
        raise BadInput(
            f"the launcher was asked for {asked} processes, but {num_processes} runs (`accelerate launch` does this "
            f"without GPUs); use {_working_command(asked)}"
        )


def has_accelerator() -> bool:
    """Whether this machine has a GPU or another device that torch trains on."""
    return torch.accelerator.is_available()


def supports_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively; on a CPU the answer is no (autocast is far slower there)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type in ("xpu", "npu", "hpu", "mlu")


def set_cpu_threads() -> None:
    """Gives each CPU process its share of the cores, unless OMP_NUM_THREADS says otherwise.

    `accelerate launch` sets OMP_NUM_THREADS=1 for a script that it does not know to be for the CPU: half the speed of
    a two-core machine, and worse on larger ones. So a 1 that comes from Accelerate is not taken for the user's wish.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given is not None and not (given == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_freed_memory() -> None:
    """Lets a process on the CPU use again what it freed.

    glibc gives large blocks back to the system at once, and each step faults their pages anew: a sixth of the time of
    a small GAN's. Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    mallopt(mmap_threshold, 2**25)  # the largest that it takes
    mallopt(trim_threshold, 2**30)


def _quiet_other_ranks() -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        return
    import datasets
    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def start_accelerator(args: TrainingArguments):
    """The `Accelerator` of a run: device, precision, accumulation, trackers.

    Raises:
        BadInput: the launcher was asked for something else than what runs; fp16 without an accelerator.
    """
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import ProjectConfiguration

    _quiet_other_ranks()
    # Without a GPU accelerate needs to be told, or two processes become two runs of world size 1.
    use_cpu = args.use_cpu or not has_accelerator()
    torch.set_float32_matmul_precision(args.float32_matmul_precision)
    if use_cpu:
        set_cpu_threads()
        keep_freed_memory()
        if args.fp16:
            raise BadInput("--fp16 needs a GPU; on a CPU leave it out (float32)")
    state = PartialState(cpu=use_cpu)
    mixed_precision = "no"
    if args.fp16:
        mixed_precision = "fp16"
    elif args.bf16 or (args.bf16 is None and supports_bf16(state.device)):
        mixed_precision = "bf16"
    try:
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=args.trackers or None,
            project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=args.output_dir),
        )
    except ImportError as error:
        raise BadInput(f"{error}; `pip install` what it names") from None
    check_launch(accelerator.num_processes, accelerator.distributed_type.value)
    return accelerator
