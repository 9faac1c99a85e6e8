"""Runs a recipe in several processes through Accelerate's launcher, in the combinations that really start them.

On a CPU, `accelerate launch --cpu --num_processes 2` and a MULTI_CPU config start one process. What starts two is
`--multi_gpu --num_processes 2` with `ACCELERATE_USE_CPU=true` in the workers' environment (accelerate 1.15).

The workers' error line is the last thing on the screen: the launcher's own report is left out, and what the ranks
above 0 print goes to files, from which only a failure that rank 0 did not report is shown. `HFGEN_DEBUG=1` shows all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from .config import nearest, recipes_dir
from .errors import EXIT_BAD_INPUT, BadInput

# Seconds that workers have after a signal to write a checkpoint; torch's own 30 are too few for a large one.
_SHUTDOWN_TIMEOUT = "600"
# What a worker wrote last is shown up to this many characters.
_TAIL = 4000


def accelerate_configs_dir() -> Path:
    """The folder of Accelerate configs: the clone's own, or the copy that the wheel carries."""
    folder = recipes_dir()
    return folder.with_name(folder.name.replace("recipes", "accelerate_configs"))


def find_accelerate_config(name: str) -> Path:
    """The file that `--accelerate_config` names: a path, or a name such as `fsdp2` in accelerate_configs/.

    Raises:
        BadInput: there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise BadInput(f"--accelerate_config {name}: there is no such file")
        return path
    known = sorted(p.stem for p in accelerate_configs_dir().glob("*.yaml"))
    if name not in known:
        raise BadInput(
            f"--accelerate_config {name}: known are {', '.join(known)}{nearest(name, known)}; "
            "a file of your own is named with its .yaml"
        )
    return accelerate_configs_dir() / f"{name}.yaml"


def asks_for_cpu(flags: list[str]) -> bool:
    """Whether the environment or a recipe's flags ask for the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return True
    for index, word in enumerate(flags):
        if word == "--use_cpu":
            return "".join(flags[index + 1 : index + 2]).lower() not in ("false", "0", "no")
        if word.startswith("--use_cpu="):
            return word.partition("=")[2].lower() in ("true", "1", "yes")
    return False


def _launcher_arguments(script: Path, flags: list[str], num_processes: int | None, config: Path | None) -> list[str]:
    """The command line of `accelerate launch`, without the program's name."""
    import torch

    if config is not None:
        count = [] if num_processes is None else ["--num_processes", str(num_processes)]
        return ["--config_file", str(config), *count, str(script), *flags]
    available = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if available and not asks_for_cpu(flags) and num_processes > available:
        raise BadInput(
            f"--num_processes {num_processes}: this machine has {available} device(s); "
            f"use --num_processes {available}, or --use_cpu true for processes on the CPU"
        )
    places = ["--multi_gpu", "--num_processes", str(num_processes), "--num_machines", "1"]
    settings = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [*places, *settings, str(script), *flags]


def _read_config(args) -> bool:
    """Fills in what the launcher would take from its config file: the number of processes and machines, the CPU.

    Returns:
        bool: whether the config is for one process, without FSDP, DeepSpeed and the like.

    Raises:
        BadInput: the file is no Accelerate config, or leaves the number of processes open and so does the user.
    """
    from accelerate.commands.config import load_config_from_file
    from accelerate.utils import DistributedType

    try:
        config = load_config_from_file(args.config_file)
    except Exception as error:
        raise BadInput(f"--accelerate_config {args.config_file} can't be read: {error}") from error
    if args.num_processes is None:
        args.num_processes = config.num_processes
    if args.num_machines is None:
        args.num_machines = config.num_machines
    if args.num_processes < 1:
        raise BadInput(f"--accelerate_config {args.config_file} names no number of processes: pass --num_processes")
    if config.use_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return args.num_processes == 1 and config.distributed_type == DistributedType.NO


@contextlib.contextmanager
def _silenced_launcher():
    """Leaves out what torch's launcher logs of a failed or stopped worker."""
    if os.environ.get("HFGEN_DEBUG") == "1":
        yield
        return
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.distributed.run")]
    before = [(logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, [logging.NullHandler()]
    try:
        yield
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers


def _report(failures: dict, logs: Path) -> int:
    """Shows what the process that failed first wrote last, unless rank 0 has said it already.

    Args:
        failures: torch's `ProcessFailure` by rank, in the order in which they were seen: the first is the cause, the
            others were then stopped by the launcher, or lost their peer.
        logs: where the output of the ranks above 0 is.

    Returns:
        int: the first failure's exit code; 128 + the number of the signal that ended it.
    """
    first = next(iter(failures.values()))
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        print(f"hfgen: error: process {first.local_rank} was ended by {name}{hint}", file=sys.stderr, flush=True)
        return 128 - first.exitcode
    rank_0 = failures.get(0)
    if first.local_rank > 0 and not (rank_0 and rank_0.exitcode == EXIT_BAD_INPUT):
        files = sorted(logs.glob(f"**/{first.local_rank}/stderr.log"))
        text = files[-1].read_text(encoding="utf-8", errors="replace").strip() if files else ""
        text = text or f"hfgen: error: process {first.local_rank} ended with exit code {first.exitcode}"
        print(text[-_TAIL:], file=sys.stderr, flush=True)
    return first.exitcode


def _children() -> list:
    import psutil

    return psutil.Process().children(recursive=True)


def _end(processes: list) -> None:
    """Kills what a launcher that was itself interrupted twice has left running."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _replace_this_process(args) -> None:
    """Becomes the recipe's process: signals and the exit code then need no passing on."""
    from accelerate.commands.launch import _validate_launch_command
    from accelerate.utils import prepare_simple_launcher_cmd_env

    args, *_ = _validate_launch_command(args)
    command, environment = prepare_simple_launcher_cmd_env(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def launch(
    script: Path, flags: list[str], num_processes: int | None = None, accelerate_config: str | None = None
) -> int:
    """Runs `script` with `flags` in several processes and waits for them.

    SIGTERM and SIGINT are passed on to the workers, which have ten minutes (or TORCH_ELASTIC_SHUTDOWN_TIMEOUT
    seconds) to save.

    Args:
        script: a recipe's file.
        flags: its flags.
        num_processes: how many; `None` leaves it to the config.
        accelerate_config: name or file of an Accelerate config.

    Returns:
        int: 0, or the exit code of the process that failed first; 128 + the signal's number where one ended it.

    Raises:
        BadInput: no such config; more processes than devices.
    """
    config = None if accelerate_config is None else find_accelerate_config(accelerate_config)

    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args(_launcher_arguments(script, flags, num_processes, config))
    single = config is not None and _read_config(args)
    processes = max(1, args.num_processes // args.num_machines)
    if asks_for_cpu(flags) or not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        args.num_cpu_threads_per_process = max(1, cores // processes)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_TIMEOUT)
    if not (Path(__file__).parent / "_recipes").is_dir():
        # A clone that is not installed: the workers must find the package too.
        root = str(Path(__file__).resolve().parent.parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))

    if single:
        _replace_this_process(args)
    logs = Path(tempfile.mkdtemp(prefix="hfgen-"))
    if os.environ.get("HFGEN_DEBUG") != "1":
        args.redirects = ",".join(f"{rank}:3" for rank in range(1, processes)) or "0"
        args.log_dir = str(logs)
    others = _children()
    # The launcher replaces these, and leaves its own.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with _silenced_launcher():
            launch_command(args)
    except ChildFailedError as error:
        return _report(error.failures, logs)
    except SignalException as stop:
        return 128 + stop.sigval
    except (ValueError, ConnectionError, ImportError) as error:
        raise BadInput(f"the launcher refused: {error}") from error
    finally:
        _end([child for child in _children() if child not in others])
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        shutil.rmtree(logs, ignore_errors=True)
    return 0
