"""What every text recipe does around its trainer: the launch guard, exact resume, the published folder, the record."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import TrainerCallback

from ..checkpoint import written_aside
from ..data.text import TextSplits
from ..errors import BadInput
from ..launch import check_launch
from ..lifecycle import finish_run
from ..runs import check_run_dir
from .arguments import TransferArguments
from .resume import train_exactly
from .tokenizer import load_tokenizer
from .transfer import GradualUnfreezing, freeze, make_text_optimizer


def trainer_options(model, args, transfer: TransferArguments) -> dict[str, Any]:
    """Freezes what `transfer` says, and returns the keyword arguments of a trainer that follow from both.

    Args:
        model: the model, adapters included.
        args: the training arguments (see [`TextDefaults`]).
        transfer: see [`TransferArguments`].

    Returns:
        dict: `callbacks` and, where it is not transformers' own, `optimizers`.

    Raises:
        BadInput: adapters on a model from scratch, which nothing could load again; and as [`freeze`] and
            [`GradualUnfreezing`].
    """
    if transfer.lora_r and not model.config.name_or_path:
        raise BadInput("--lora_r adapts a pretrained model, this one is new: set --model_name_or_path, or --lora_r 0")
    freeze(model, transfer)
    callbacks: list[TrainerCallback] = []
    if transfer.unfreeze_at:
        callbacks.append(GradualUnfreezing(model, transfer.unfreeze_at))
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    options: dict[str, Any] = {"callbacks": callbacks}
    optimizer = make_text_optimizer(model, args, transfer.layerwise_lr_decay)
    if optimizer is not None:
        options["optimizers"] = (optimizer, None)
    return options


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, the libraries' notes on what the user cannot change are left out."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        for text in (".*pin_memory.*", ".*tokenizer has new PAD/BOS/EOS tokens.*", ".*use_reentrant.*"):
            warnings.filterwarnings("ignore", message=text)
        logger = logging.getLogger("transformers.trainer_utils")
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)


def train_text(trainer: Trainer, transfer: TransferArguments) -> None:
    """Trains with an exact resume, and publishes model (or adapters) and tokenizer in `output_dir`.

    Args:
        trainer: ready to train, with the callbacks and the optimizer of [`trainer_options`].
        transfer: says whether adapters are merged.

    Raises:
        BadInput: what was asked of the launcher does not run; and as [`train_exactly`].
        SystemExit: on SIGTERM or SIGINT, after a checkpoint was written.
    """
    args = trainer.args
    check_launch(trainer.accelerator.num_processes, trainer.accelerator.distributed_type.value)
    with _matmul_precision(args.float32_matmul_precision), quietly():
        train_exactly(trainer, args.resume_from_checkpoint, args.checkpoints_kept)
    publish(trainer, transfer.merge_adapter)


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def publish(trainer: Trainer, merge: bool = False) -> None:
    """Writes the model, its tokenizer and `trainer_state.json` to `output_dir`, all or nothing.

    Args:
        trainer: after training.
        merge: write the model with its adapters merged into the weights.

    Raises:
        BadInput: the folder could not be written, such as on a full disk.
    """
    with written_aside(Path(trainer.args.output_dir), trainer.accelerator, "the checkpoints are kept") as folder:
        if merge:
            if trainer.accelerator.is_main_process:
                model = trainer.accelerator.unwrap_model(trainer.model)
                copy.deepcopy(model).merge_and_unload().save_pretrained(folder)
                trainer.processing_class.save_pretrained(folder)
        else:
            trainer.save_model(str(folder))
        if trainer.accelerator.is_main_process:
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here reads
            trainer.state.save_to_json(str(folder / "trainer_state.json"))


def finish_text_run(
    trainer: Trainer,
    *,
    recipe: str,
    config: str | None,
    argv: list[str] | None,
    arguments: tuple[Any, ...],
    metrics: dict[str, float],
    dataset: dict[str, Any],
    auto_class: str,
    pipeline_tag: str,
    samples: list[dict[str, str]] | None = None,
    load_options: str = "",
) -> None:
    """Writes the run's record and card, and publishes it on the Hub where that was asked for.

    Args:
        trainer, recipe, config, argv, arguments, metrics: as for [`finish_run`].
        dataset: its `name`, `fingerprint` and `samples`.
        auto_class: transformers' class whose `from_pretrained` loads the folder.
        pipeline_tag: the Hub's name of the task.
        samples: rows of what the model makes, by column, for the gallery.
        load_options: further arguments of `from_pretrained`, as the card shows them.
    """
    options = f", {load_options}" if load_options else ""
    usage = (
        f"from transformers import AutoTokenizer, {auto_class}\n\n"
        f"model = {auto_class}.from_pretrained({{name!r}}{options})\n"
        "tokenizer = AutoTokenizer.from_pretrained({name!r})"
    )
    finish_run(
        trainer,
        recipe=recipe,
        config=config,
        argv=argv,
        arguments=arguments,
        metrics=metrics,
        usage=usage,
        pipeline_tag=pipeline_tag,
        dataset=dataset,
        samples=samples,
    )


def load_published(run_dir: Path, auto_class, **options: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """As [`load_folder`], of a finished run.

    Raises:
        BadInput: the folder is no finished run, or its model can't be loaded.
    """
    return load_folder(check_run_dir(run_dir), auto_class, **options)


def load_folder(folder: str | Path, auto_class, **options: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """Model (in evaluation mode) and tokenizer from a folder; adapters come with the model that they adapt.

    Args:
        folder: of a run, or of a model.
        auto_class: such as `AutoModelForCausalLM`.
        options: further ones of `from_pretrained`: adapters know nothing of the head that was built for them.

    Raises:
        BadInput: it can't be loaded.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():  # as in `with_adapters`
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            model = auto_class.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{folder} can't be loaded: {' '.join(str(error).split())[:300]}") from error
    return model.eval(), load_tokenizer(str(folder))


def describe(texts: TextSplits) -> dict[str, Any]:
    """What run.json says of the training data."""
    if "train" not in texts:  # a stream
        return {"name": texts.name}
    train = texts["train"]
    return {"name": texts.name, "fingerprint": train._fingerprint, "samples": len(train), "skipped": texts.skipped}
