"""The one training loop of everything that is not a text model."""

from __future__ import annotations

import copy
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from transformers.optimization import get_scheduler
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    EarlyStoppingCallback,
    ExportableState,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from . import checkpoint as checkpointing
from .arguments import TrainingArguments
from .ema import EMA
from .errors import BadInput
from .guard import Scalar, StepGuard
from .launch import start_accelerator
from .optimizer import make_optimizer
from .precision import full_float32
from .progress import closing_bars, say
from .sampling import StepSampler
from .seeding import EVALUATION, evaluation_generator, seed_step  # noqa: F401

_NEED_THE_WRAPPER = ("DEEPSPEED", "MEGATRON_LM", "XLA")


def _collate(samples: Any) -> Any:
    """A dataset with `__getitems__` may hand over a ready batch; anything else is stacked."""
    return samples if isinstance(samples, dict) else default_collate(samples)


class Trainer:
    """Trains a model with Accelerate; speaks Transformers' callback protocol and writes its checkpoint layout.

    A family overrides [`compute_loss`] (one model) or [`training_step`] (several), and [`export`].

    Every random draw inside a step comes from `self.generator` or the global generators, which are seeded from
    (seed, step, rank) before each optimizer step; the order of samples is a function of (seed, epoch, step). So a run
    that was killed and resumed ends with the weights of one that was not, bit for bit, on as many processes.

    Args:
        model: what is trained.
        args: see [`TrainingArguments`].
        train_dataset: a map-style dataset (one with `__getitems__` may return a ready batch as a dict of tensors), or
            a stream with `micro_batches` (see [`hfgen.data.StreamingImages`]), which needs `max_steps`.
        eval_dataset: a map-style dataset.
        batch_transform: `(batch, generator | None) -> batch`, called on the device inside the step; the generator is
            `None` in evaluation.
        data_collator: list of samples -> batch, where stacking is not enough.
        callbacks: further `TrainerCallback`s.
        optimizer: instead of the one that `args` describes.

    Raises:
        BadInput: what was asked of the launcher does not run, `output_dir` holds another run, too few samples.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset=None,
        eval_dataset=None,
        batch_transform: Callable[[dict, torch.Generator | None], dict] | None = None,
        data_collator: Callable[[list], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        self.args = args
        self.accelerator = start_accelerator(args)
        # Kept here: Accelerate's properties are looked up through its shared state each time.
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.batch_transform, self.data_collator = batch_transform, data_collator or _collate
        self._whole = None
        if self._is_sharded and self.accelerator.is_main_process:
            self._whole = copy.deepcopy(model)  # what a sharded model is exported from
        self.model, self.optimizer = self.prepare(model, optimizer)
        kind, scaler = self.accelerator.distributed_type, self.accelerator.scaler
        self._needs_wrappers = scaler is not None or kind in _NEED_THE_WRAPPER
        self.ema = self._make_ema()
        self.lr_scheduler, self._lr_schedulers = None, []
        self.generator = torch.Generator(self.device)
        self.state = TrainerState(
            is_local_process_zero=self.accelerator.is_local_main_process,
            is_world_process_zero=self.accelerator.is_main_process,
        )
        self.control = TrainerControl()
        defaults = [DefaultFlowCallback(), PrinterCallback() if args.disable_tqdm else ProgressCallback()]
        if args.early_stopping_patience is not None:
            defaults.append(EarlyStoppingCallback(args.early_stopping_patience))
        self.callback_handler = CallbackHandler(
            [*defaults, *(callbacks or [])], self.model, None, self.optimizer, None
        )
        self.control = self.callback_handler.on_init_end(args, self.state, self.control)
        self._window: list[dict[str, Scalar]] = []
        self._guard = StepGuard(self.accelerator)
        self._stream_position = (0, 0)

    # ---- what a family overrides ------------------------------------------------------------------------------------

    def compute_loss(self, batch: dict) -> dict[str, torch.Tensor]:
        """The loss of one micro-batch.

        Returns:
            dict: 0-d tensors; `"loss"` is minimised, all are logged as means over the logging interval and the ranks.
        """
        raise NotImplementedError(f"{type(self).__name__} must override compute_loss or training_step")

    def training_step(self, batches: list[dict]) -> dict[str, torch.Tensor]:
        """One optimizer step from its micro-batches (`gradient_accumulation_steps` of them, on the device).

        Returns:
            dict: 0-d tensors to log; the means over the micro-batches.
        """
        outputs = []
        several = len(batches) > 1 or self._needs_wrappers  # for one, Accelerate's context changes nothing, in 30 us
        for batch in batches:
            with self.accelerator.accumulate(self.model) if several else nullcontext():
                losses = self.compute_loss(batch)
                self.backward(losses["loss"])
                outputs.append({name: value.detach() for name, value in losses.items()})
        norm = self.optimizer_step(self.model, self.optimizer)
        if len(outputs) == 1:
            return outputs[0] | norm
        return {name: torch.stack([o[name] for o in outputs]).mean() for name in outputs[0]} | norm

    def optimizer_step(self, model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
        """Clips, steps, clears the gradients; returns the gradient's norm where it was clipped."""
        norm = {}
        if self.args.max_grad_norm > 0:
            norm["grad_norm"] = self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        self.control = self.callback_handler.on_pre_optimizer_step(self.args, self.state, self.control)
        optimizer = self.bare(optimizer)
        optimizer.step()
        self.control = self.callback_handler.on_optimizer_step(self.args, self.state, self.control)
        optimizer.zero_grad(set_to_none=True)
        return {name: torch.as_tensor(value).detach() for name, value in norm.items()}

    def backward(self, loss: torch.Tensor) -> None:
        """Accelerate's backward, without its division of the loss by 1."""
        if self.args.gradient_accumulation_steps == 1 and not self._needs_wrappers:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def bare(self, optimizer):
        """The torch optimizer in Accelerate's wrapper, where that adds nothing but a search for a package on disk at
        each step (0.3 ms); the wrapper itself where a gradient scaler, DeepSpeed or XLA needs it."""
        return optimizer if self._needs_wrappers else optimizer.optimizer

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches that [`training_step`] is given."""
        return self.args.gradient_accumulation_steps

    @property
    def optimizers(self) -> list:
        """All prepared optimizers, `self.optimizer` first; each follows the schedule."""
        return [self.optimizer]

    @property
    def learning_rates(self) -> list[float]:
        """The peak learning rate of each of `optimizers`."""
        return [self.args.learning_rate]

    @torch.no_grad()
    def evaluation_step(self, batch: dict) -> dict[str, torch.Tensor]:
        """The metrics of one evaluation batch, as means over it; [`evaluate`] weighs them by batch size."""
        return self.compute_loss(batch)

    def export(self, model: nn.Module, directory: Path) -> None:
        """Writes what others load in one line.

        Args:
            model: the unwrapped model, holding the weights to publish (the moving average where there is one).
            directory: an empty folder.
        """
        model.save_pretrained(directory)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainerState:
        """Trains to the end, and writes the model, its checkpoints and `trainer_state.json` to `output_dir`.

        Args:
            resume_from_checkpoint: as in [`TrainingArguments`], which it overrides.

        Raises:
            BadInput: bad data or options, a loss that is not finite, a checkpoint that could not be written.
            SystemExit: on SIGTERM or SIGINT, after a checkpoint was written (128 + the signal's number).
        """
        args = self.args
        resume = args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        checkpoint = checkpointing.find_checkpoint(args.output_dir, resume)
        self.accelerator.wait_for_everyone()  # no rank may write before all have looked
        self._prepare_schedule()
        self._start_trackers()
        if checkpoint is not None:
            self._load_checkpoint(checkpoint, resume=True)
        elif str(resume).lower() == "true":
            self.say(f"{args.output_dir} holds no checkpoint yet: starting at step 0")
        self.model.train()
        started = time.perf_counter()
        first_step = self.state.global_step
        with self._guard.signals(), closing_bars(self.callback_handler):
            self._loop()
        seconds = time.perf_counter() - started
        trained = self.state.global_step - first_step
        if args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_checkpoint(Path(self.state.best_model_checkpoint), resume=False)
        self.save_model()
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        self.log(
            {
                "train_runtime": seconds,
                "train_steps_per_second": trained / seconds,
                "train_samples_per_second": trained * self._step_size / seconds,
            },
            show=False,
        )
        if self.accelerator.is_main_process:
            self._write_state(Path(args.output_dir))
        for tracker in self.accelerator.trackers:  # end_training would also end the ranks' connection
            tracker.finish()
        return self.state

    def _loop(self) -> None:
        args, state = self.args, self.state
        if state.global_step >= state.max_steps:
            return
        self.control = self.callback_handler.on_train_begin(args, state, self.control)
        while not self.control.should_training_stop:
            epoch, begin = self._position()
            self.control = self.callback_handler.on_epoch_begin(args, state, self.control)
            batches = self._micro_batches(epoch, begin)
            step = begin
            while True:
                micro_batches = list(islice(batches, self.micro_batches_per_step))
                if len(micro_batches) < self.micro_batches_per_step:
                    if step == 0:
                        raise BadInput("the training stream holds fewer samples than one optimizer step takes")
                    break
                self.control = self.callback_handler.on_step_begin(args, state, self.control)
                seed_step(self.generator, args.seed, state.global_step, self.rank)
                outputs = self.training_step([self.prepare_batch(batch, self.generator) for batch in micro_batches])
                if self.device.type == "cpu":
                    # Small tensors that outlive a step tear holes into the heap, and each step then faults pages anew.
                    outputs = {name: value.item() for name, value in outputs.items()}
                if not self.accelerator.optimizer_step_was_skipped:
                    for lr_scheduler in self._lr_schedulers:
                        lr_scheduler.step()
                if self.ema is not None:
                    self.ema.step()
                step += 1
                state.global_step += 1
                self._stream_position = (epoch, step)
                state.epoch = epoch + (step / self._steps_per_epoch if self._steps_per_epoch else 0)
                self._window.append(outputs)
                self._guard.record(state.global_step, outputs)
                self.control = self.callback_handler.on_step_end(args, state, self.control)
                self._look()
                self._act()
                if self.control.should_training_stop or self.control.should_epoch_stop:
                    break
            self._stream_position = (epoch + 1, 0) if self._epoch_over(step) else self._stream_position
            self.control = self.callback_handler.on_epoch_end(args, state, self.control)
            self._act()

    def _position(self) -> tuple[int, int]:
        """The epoch, and the optimizer step within it, at which training goes on."""
        if self._steps_per_epoch:
            return divmod(self.state.global_step, self._steps_per_epoch)
        return self._stream_position

    def _epoch_over(self, step: int) -> bool:
        return not self.control.should_training_stop and (not self._steps_per_epoch or step == self._steps_per_epoch)

    def _act(self) -> None:
        """Logs, evaluates and checkpoints where the callbacks said so."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._look(now=True)
        if self.control.should_log:
            self._log_window()
        if self.control.should_evaluate:
            self._keep_best(self.evaluate())
        if self.control.should_save:
            self.save_checkpoint()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    # ---- data -------------------------------------------------------------------------------------------------------

    def _micro_batches(self, epoch: int, begin: int) -> Iterator[dict]:
        args = self.args
        if self._is_stream:
            return self.train_dataset.micro_batches(
                seed=args.seed,
                epoch=epoch,
                skip=begin * self._step_size,
                batch_size=args.per_device_train_batch_size,
                rank=self.rank,
                world_size=self.world_size,
            )
        self._sampler.set_position(epoch, begin)
        if args.dataloader_num_workers == 0 and self.device.type == "cpu" and self._hands_over_batches:
            # A DataLoader would only stand in between: a batch is one index into the cache.
            return (self.data_collator(self.train_dataset.__getitems__(indices)) for indices in self._sampler)
        return iter(self._loader(self.train_dataset, self._sampler))

    @property
    def _hands_over_batches(self) -> bool:
        return hasattr(self.train_dataset, "__getitems__")

    def _loader(self, dataset, batch_sampler) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def prepare_batch(self, batch: dict, generator: torch.Generator | None) -> dict:
        """Moves a batch to the device and transforms it there."""
        device = self.device
        if device.type != "cpu":
            batch = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
        return self.batch_transform(batch, generator) if self.batch_transform is not None else batch

    # ---- preparation ------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer | None):
        """Hands model and optimizer to Accelerate; a family with several of them overrides it."""
        if self.train_dataset is None:
            return self.accelerator.prepare_model(model, evaluation_mode=True), None
        optimizer = optimizer or make_optimizer(model, self.args)
        if self.accelerator.distributed_type == "DEEPSPEED":
            plugin = self.accelerator.state.deepspeed_plugin.deepspeed_config
            plugin["train_micro_batch_size_per_gpu"] = self.args.per_device_train_batch_size
        return self.accelerator.prepare(model, optimizer)

    @property
    def _is_sharded(self) -> bool:
        return self.accelerator.distributed_type in ("FSDP", "DEEPSPEED")

    def _make_ema(self) -> EMA | None:
        if not self.args.use_ema:
            return None
        if self._is_sharded:
            raise BadInput("--use_ema needs whole weights on each device: leave it out under FSDP and DeepSpeed")
        return EMA(self.model, self.args.ema_decay)

    def _prepare_schedule(self) -> None:
        args = self.args
        if self.train_dataset is None:
            raise BadInput("there is no training data: pass train_dataset")
        self._is_stream = hasattr(self.train_dataset, "micro_batches")
        self._step_size = args.per_device_train_batch_size * self.world_size * self.micro_batches_per_step
        if self._is_stream:
            self._steps_per_epoch = 0
            if args.max_steps <= 0:
                raise BadInput("a streamed dataset has no known length: set --max_steps")
        else:
            self._sampler = StepSampler(
                len(self.train_dataset),
                args.per_device_train_batch_size,
                self.micro_batches_per_step,
                args.seed,
                self.rank,
                self.world_size,
                args.dataloader_drop_last,
            )
            self._steps_per_epoch = self._sampler.steps_per_epoch
        state = self.state
        state.max_steps = args.max_steps
        if args.max_steps <= 0:
            state.max_steps = math.ceil(args.num_train_epochs * self._steps_per_epoch)
        state.num_train_epochs = math.ceil(state.max_steps / self._steps_per_epoch) if self._steps_per_epoch else 1
        state.train_batch_size = args.per_device_train_batch_size
        state.compute_steps(args, state.max_steps)
        if (self.eval_dataset is None or len(self.eval_dataset) == 0) and args.eval_strategy != "no":
            raise BadInput("there is nothing to evaluate on: pass eval_dataset, or --eval_strategy no")
        if self.lr_scheduler is None:
            self._lr_schedulers = [self._schedule(self.bare(optimizer)) for optimizer in self.optimizers]
            self.accelerator.register_for_checkpointing(*self._lr_schedulers)
            self.lr_scheduler = self._lr_schedulers[0]
            self.callback_handler.lr_scheduler = self.lr_scheduler

    def _schedule(self, optimizer):
        args, steps = self.args, self.state.max_steps
        warmup = math.ceil(args.warmup_steps * steps) if args.warmup_steps < 1 else args.warmup_steps
        # Not prepared by Accelerate, which would step it once a process: the horizon is counted in optimizer steps.
        try:
            return get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, args.lr_scheduler_kwargs)
        except TypeError as error:
            raise BadInput(f"--lr_scheduler_kwargs does not fit {args.lr_scheduler_type}: {error}") from None

    # ---- logging and alarms -----------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """One line on the screen, from rank 0, without breaking the progress bar."""
        say(self.accelerator, line)

    def log(self, logs: dict[str, float], show: bool = True) -> None:
        """Writes to `log_history`, the trackers and (with `show`) the callbacks."""
        logs = {"epoch": round(self.state.epoch, 4), **logs}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        if self.args.trackers:
            scalars = {k: v for k, v in logs.items() if isinstance(v, int | float)}
            self.accelerator.log(scalars, step=self.state.global_step)
        if show:
            self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def _log_window(self) -> None:
        logs = self._mean_over_ranks(self._window)
        self._window.clear()
        logs["learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        self.log(logs)

    def _mean_over_ranks(self, outputs: list[dict[str, Scalar]]) -> dict[str, float]:
        names = list(dict.fromkeys(name for entry in outputs for name in entry))
        if not names:
            return {}
        series = {name: [entry[name] for entry in outputs if name in entry] for name in names}
        if self.device.type == "cpu" and self.world_size == 1:  # floats already: 200 small tensors take a millisecond
            return {name: math.fsum(values) / len(values) for name, values in series.items()}
        means = torch.stack(
            [torch.stack([torch.as_tensor(v, device=self.device).float() for v in s]).mean() for s in series.values()]
        )
        if self.world_size > 1:
            means = self.accelerator.reduce(means, "mean")
        return dict(zip(names, means.tolist(), strict=True))

    def alarm(self, name: str, message: str, **values: float) -> None:
        """Says that something goes wrong: in the log, `trainer_state.json` and the trackers.

        Args:
            name: the alarm's name, such as "posterior collapse".
            message: one sentence with the measured values and the remedy.
            values: the measured values.
        """
        self.say(f"hfgen: alarm at step {self.state.global_step}: {name}: {message}")
        entry = {"alarm": name, "message": message, "epoch": round(self.state.epoch, 4), **values}
        self.state.log_history.append({**entry, "step": self.state.global_step})
        if self.args.trackers:
            scalars = {f"alarm/{name.replace(' ', '_')}/{k}": v for k, v in values.items()}
            self.accelerator.log({f"alarm/{name.replace(' ', '_')}": 1, **scalars}, step=self.state.global_step)
        if self.args.stop_on_alarm:
            self.control.should_training_stop = True
            self.control.should_save = True

    @property
    def alarms(self) -> list[dict]:
        """The alarms raised so far, as they stand in `log_history`."""
        return [entry for entry in self.state.log_history if "alarm" in entry]

    def _look(self, now: bool = False) -> None:
        """Stops for a loss that is not finite and for a signal; all ranks at the same step."""
        found = self._guard.look(self.state.global_step, now)
        if found.bad is not None:
            self._stop_for_nan(*found.bad)
        if found.signal:
            self._stop_for_signal(found.signal)

    def _stop_for_nan(self, step: int, outputs: dict[str, Scalar]) -> None:
        values = ", ".join(f"{name} {float(value):.4g}" for name, value in outputs.items())
        kept = checkpointing.checkpoints(self.args.output_dir)
        last = f"{kept[-1]} is kept" if kept else "no checkpoint was written before"
        raise BadInput(
            f"the loss is not finite at step {step} ({values}); {last}: "
            "lower --learning_rate, or clip with --max_grad_norm 1"
        )

    def _stop_for_signal(self, number: int) -> None:
        folder = self.save_checkpoint()
        self.say(
            f"hfgen: {signal.Signals(number).name} at step {self.state.global_step}: saved {folder}; "
            "continue with --resume_from_checkpoint true"
        )
        raise SystemExit(128 + number)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @contextmanager
    def published_weights(self) -> Iterator[None]:
        """Inside, the model holds what is evaluated and exported: the moving average where there is one."""
        was_training = self.model.training
        self.model.eval()
        try:
            with self.ema.applied() if self.ema is not None else nullcontext(), full_float32():
                yield
        finally:
            self.model.train(was_training)

    def evaluate(self, eval_dataset=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Means of [`evaluation_step`]'s metrics over a dataset.

        The noise is the same at every evaluation of a seed, so that figures along a run compare.

        Returns:
            dict: `{prefix}_{metric}`; logged, and in `log_history`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        size, world = self.args.per_device_eval_batch_size, self.world_size
        # Each rank takes every world-th sample, and as many batches as the others, so that collectives meet.
        mine = list(range(self.rank, len(dataset), world))
        count = math.ceil(math.ceil(len(dataset) / world) / size)
        batches = [mine[i * size : (i + 1) * size] for i in range(count)]
        loader = self._loader(dataset, [batch or [0] for batch in batches])
        self.callback_handler.eval_dataloader = loader
        started, sums, total = time.perf_counter(), {}, 0
        with self.published_weights(), torch.no_grad():
            for index, batch in enumerate(loader):
                seed_step(self.generator, self.args.seed, EVALUATION + index, self.rank)
                metrics = self.evaluation_step(self.prepare_batch(batch, None))
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0) + value.double() * len(batches[index])
                total += len(batches[index])
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        flat = torch.stack([*(torch.as_tensor(v).cpu() for v in sums.values()), torch.tensor(float(total)).double()])
        if world > 1:
            flat = self.accelerator.reduce(flat.to(self.device), "sum").cpu()
        metrics = {f"{metric_key_prefix}_{n}": v for n, v in zip(sums, (flat[:-1] / flat[-1]).tolist(), strict=True)}
        metrics |= self.dataset_metrics(dataset, metric_key_prefix)
        metrics[f"{metric_key_prefix}_runtime"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def dataset_metrics(self, dataset, metric_key_prefix: str) -> dict[str, float]:
        """Metrics that are no mean over samples (active units, FID); a family adds them here."""
        return {}

    def _keep_best(self, metrics: dict[str, float]) -> None:
        if not (self.args.load_best_model_at_end or self.args.early_stopping_patience is not None):
            return
        name = "eval_" + self.args.metric_for_best_model.removeprefix("eval_")
        if name not in metrics:
            known = ", ".join(n.removeprefix("eval_") for n in metrics)
            raise BadInput(f"--metric_for_best_model {name.removeprefix('eval_')} is not measured; there are {known}")
        value, best = metrics[name], self.state.best_metric
        if best is None or (value > best if self.args.greater_is_better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step
            if self.args.load_best_model_at_end:
                self.state.best_model_checkpoint = str(self._checkpoint_folder())
                self.control.should_save = True

    # ---- saving and resuming ----------------------------------------------------------------------------------------

    def _checkpoint_folder(self) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def save_checkpoint(self) -> Path:
        """Writes `checkpoint-<step>`: the model to load, and beside it all that an exact resume needs."""
        folder = self._checkpoint_folder()
        if folder.exists():
            return folder
        kept = checkpointing.checkpoints(self.args.output_dir)
        keeps = f"{kept[-1]} is kept" if kept else "there is no earlier checkpoint"
        with checkpointing.written_aside(folder, self.accelerator, f"{keeps}; free some space and resume") as aside:
            checkpointing.save_state(aside, self.accelerator, self.ema, self._facts())
            self._export_to(aside)
            if self.accelerator.is_main_process:
                self._write_state(aside)
        if self.accelerator.is_main_process:
            checkpointing.remove_old(
                self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint
            )
        return folder

    def save_model(self, directory: str | Path | None = None) -> None:
        """Writes the model to load (no training state) to `directory`, by default `output_dir`."""
        target = Path(directory or self.args.output_dir)
        with checkpointing.written_aside(target, self.accelerator, "the checkpoints are kept") as aside:
            self._export_to(aside)

    def _export_to(self, directory: Path) -> None:
        with self.published_weights():
            model = self.accelerator.unwrap_model(self.model)
            if self._is_sharded:
                model = self._gathered()
            if self.accelerator.is_main_process:
                self.export(model, directory)

    def _gathered(self) -> nn.Module | None:
        """The whole of a sharded model, on rank 0's CPU; `None` on the other ranks."""
        weights = self.accelerator.get_state_dict(self.model)  # all ranks take part
        if self.accelerator.is_main_process:
            self._whole.load_state_dict(weights)
        return self._whole

    def _write_state(self, folder: Path) -> None:
        exportable = [c for c in self.callback_handler.callbacks if isinstance(c, ExportableState)]
        self.state.stateful_callbacks = {type(c).__name__: c.state() for c in exportable}
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _facts(self) -> dict:
        return {
            "trainer": type(self).__name__,
            "stream_position": list(self._stream_position),
            "num_processes": self.world_size,
            "step_size": self._step_size,
            "seed": self.args.seed,
            "learning_rates": self.learning_rates,
            "dataset": getattr(self.train_dataset, "fingerprint", None),
        }

    def _load_checkpoint(self, checkpoint: Path, resume: bool) -> None:
        facts = checkpointing.read_facts(checkpoint)
        if facts["trainer"] != type(self).__name__:
            raise BadInput(f"{checkpoint} was written by {facts['trainer']}, this is {type(self).__name__}")
        checkpointing.load_state(checkpoint, self.accelerator, self.ema)
        if not resume:
            return
        for name, now in self._facts().items():
            if name not in ("trainer", "stream_position") and facts[name] != now:
                self.say(f"hfgen: warning: {name} was {facts[name]}, is {now}: the result will not be bit-identical")
        saved = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for name in (
            "global_step",
            "epoch",
            "log_history",
            "best_metric",
            "best_global_step",
            "best_model_checkpoint",
        ):
            setattr(self.state, name, getattr(saved, name))
        self._stream_position = tuple(facts["stream_position"])
        self._change_learning_rates(facts["learning_rates"])
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                kept = saved.stateful_callbacks.get(type(callback).__name__, {})
                for name, value in kept.get("attributes", {}).items():
                    setattr(callback, name, value)
        self.say(f"resuming {checkpoint} at step {self.state.global_step} of {self.state.max_steps}")

    def _change_learning_rates(self, before: list[float]) -> None:
        """A checkpoint brings its learning rates along; one that was changed on purpose (after a NaN, say) holds."""
        for lr_scheduler, old, new in zip(self._lr_schedulers, before, self.learning_rates, strict=True):
            if new == old:
                continue
            factor = new / old if old else 1.0
            lr_scheduler.base_lrs = [rate * factor for rate in lr_scheduler.base_lrs]
            for group in lr_scheduler.optimizer.param_groups:
                group["lr"] *= factor
                group["initial_lr"] *= factor

    # ---- odds and ends ----------------------------------------------------------------------------------------------

    def _start_trackers(self) -> None:
        if not self.args.trackers:
            return
        config = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in self.args.to_dict().items()}
        name = self.args.run_name
        init = {}
        if name:  # a resumed run goes on under its name
            init = {t: {"name": name, "resume": "allow"} for t in ("trackio", "wandb")} | {
                "mlflow": {"run_name": name}
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.accelerator.init_trackers(self.args.project, config=config, init_kwargs=init)

    def add_callback(self, callback: TrainerCallback) -> None:
        """Adds a callback, as transformers' Trainer does."""
        self.callback_handler.add_callback(callback)
