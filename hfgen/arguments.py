"""The options of hfgen.Trainer: transformers' names and meanings, and none that would do nothing."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from .config import nearest
from .errors import BadInput
from .options import CheckedOptions

TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow")


@dataclass
class TrainingArguments(CheckedOptions):
    """Options of [`Trainer`]. Where transformers.TrainingArguments has the name, the meaning is the same.

    Raises:
        BadInput: a value out of its range, or options that contradict each other.
    """

    _argument_group_name = "training"

    output_dir: str = field(
        default="hfgen-output", metadata={"help": "Folder of the run: checkpoints, figures, model."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "`true` goes on from output_dir's newest checkpoint, bit for bit; or a checkpoint's folder."
        },
    )
    seed: int = field(default=42, metadata={"help": "Every random draw is a function of it, the step and the rank."})

    per_device_train_batch_size: int = field(default=64, metadata={"help": "Samples of a micro-batch, a device."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Samples a device takes in evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches an optimizer step."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the data, unless max_steps is set."})
    max_steps: int = field(default=-1, metadata={"help": "Optimizer steps; above 0 it overrides num_train_epochs."})
    dataloader_drop_last: bool = field(
        default=True,
        metadata={"help": "Leave out samples that do not fill an epoch's last step; false fills it from its start."},
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Loader processes; images from the decoded cache need none."}
    )

    optim: str = field(
        default="adamw_torch_fused",
        metadata={"help": "adamw_torch_fused, adamw_torch, sgd, or another of transformers' `optim` names."},
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.0, metadata={"help": "Decoupled decay; biases and norms are left out."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Adam's beta1."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Adam's beta2."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Adam's epsilon."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the gradient's norm at this; 0 does not clip."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": f"One of {', '.join(s.value for s in SchedulerType)}."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further arguments of the schedule, e.g. '{num_cycles: 2}'."}
    )
    warmup_steps: float = field(default=0, metadata={"help": "Optimizer steps of warm-up; below 1, a share of all."})

    use_ema: bool = field(
        default=False,
        metadata={"help": "Keep an exponential moving average of the weights; it is what is evaluated and published."},
    )
    ema_decay: float = field(default=0.999, metadata={"help": "Decay of the moving average, after its warm-up."})

    logging_strategy: Literal["no", "steps", "epoch"] = field(default="steps", metadata={"help": "When to log."})
    logging_steps: float = field(default=50, metadata={"help": "Optimizer steps between logs; below 1, a share."})
    logging_first_step: bool = field(default=False, metadata={"help": "Log the first step too."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": f"Trackers: none, {', '.join(TRACKERS)}."}
    )
    project: str = field(default="hfgen", metadata={"help": "The trackers' project."})
    run_name: str | None = field(default=None, metadata={"help": "The trackers' name of this run (trackio, wandb)."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars; logs are printed as lines."})

    eval_strategy: Literal["no", "steps", "epoch"] = field(default="epoch", metadata={"help": "When to evaluate."})
    eval_steps: float | None = field(
        default=None,
        metadata={"help": "Optimizer steps between evaluations (default: logging_steps), or a share."},
    )
    eval_delay: float = field(default=0, metadata={"help": "Steps (or epochs) before the first evaluation."})
    load_best_model_at_end: bool = field(
        default=False, metadata={"help": "Publish the best evaluation's weights; each new best is checkpointed."}
    )
    metric_for_best_model: str = field(default="loss", metadata={"help": "The evaluation metric that decides."})
    greater_is_better: bool = field(default=False, metadata={"help": "Whether more of that metric is better."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric_for_best_model."}
    )

    save_strategy: Literal["no", "steps", "epoch"] = field(default="steps", metadata={"help": "When to checkpoint."})
    save_steps: float = field(default=500, metadata={"help": "Optimizer steps between checkpoints; below 1, a share."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept, the best one besides; the oldest go first."}
    )

    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 autocast; default: on an accelerator that has it, not on a CPU."},
    )
    fp16: bool = field(default=False, metadata={"help": "float16 autocast with a gradient scaler, for older GPUs."})
    float32_matmul_precision: Literal["highest", "high", "medium"] = field(
        default="highest",
        metadata={
            "help": "torch's setting of this name: below highest, float32 products are computed from shorter factors "
            "(TF32 or bfloat16) where the processor can: on a CPU with AMX, medium makes them three times faster."
        },
    )
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even where there is an accelerator."})

    monitor_steps: int = field(default=100, metadata={"help": "Optimizer steps between the alarms' checks."})
    stop_on_alarm: bool = field(default=False, metadata={"help": "Stop training when an alarm speaks."})

    push_to_hub: bool = field(default=False, metadata={"help": "Publish the finished model on the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Its name there; default: output_dir's name."})
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make that repository private."})

    def __post_init__(self):
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("monitor_steps", self.monitor_steps >= 1, "at least 1")
        self._require("learning_rate", self.learning_rate >= 0, "at least 0")
        self._require("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1")
        self._require("dataloader_num_workers", self.dataloader_num_workers >= 0, "at least 0")
        if self.max_steps <= 0:
            self._require("num_train_epochs", self.num_train_epochs > 0, "above 0 (or give max_steps)")
        if self.save_total_limit is not None:
            self._require("save_total_limit", self.save_total_limit >= 1, "at least 1")
        if self.eval_steps is None:
            self.eval_steps = self.logging_steps
        for name in ("logging_steps", "eval_steps", "save_steps", "warmup_steps"):
            value = getattr(self, name)
            self._require(name, value > 0 or name == "warmup_steps" and value == 0, "above 0")
            if value >= 1:
                self._require(name, value == int(value), "a whole number of steps, or a share below 1")
                setattr(self, name, int(value))
        if self.bf16 and self.fp16:
            raise BadInput("--bf16 and --fp16 exclude each other: choose one")
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = yaml.safe_load(self.lr_scheduler_kwargs)
        if not isinstance(self.lr_scheduler_kwargs, dict | None):
            raise BadInput("--lr_scheduler_kwargs must be a mapping such as '{num_cycles: 2}'")
        schedules = [s.value for s in SchedulerType]
        self.lr_scheduler_type = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        if self.lr_scheduler_type not in schedules or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            raise BadInput(
                f"--lr_scheduler_type {self.lr_scheduler_type} is not a schedule of steps that is known here"
                f"{nearest(self.lr_scheduler_type, schedules)}"
            )
        self.logging_strategy = IntervalStrategy(self.logging_strategy)
        self.eval_strategy = IntervalStrategy(self.eval_strategy)
        self.save_strategy = SaveStrategy(self.save_strategy)
        self.report_to = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        for tracker in self.report_to:
            if tracker != "none" and tracker not in TRACKERS:
                raise BadInput(
                    f"--report_to {tracker}: known are none, {', '.join(TRACKERS)}{nearest(tracker, TRACKERS)}"
                )
        watching = self.load_best_model_at_end or self.early_stopping_patience is not None
        if watching and self.eval_strategy == IntervalStrategy.NO:
            raise BadInput(
                "--load_best_model_at_end and --early_stopping_patience need evaluations: set --eval_strategy steps"
            )

    @property
    def trackers(self) -> list[str]:
        """The trackers asked for, without `none`."""
        return [t for t in self.report_to if t != "none"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and trackers take them."""
        return {f.name: getattr(v, "value", v) for f in dataclasses.fields(self) for v in [getattr(self, f.name)]}

    def to_json_string(self) -> str:
        """As transformers' callbacks expect it."""
        return json.dumps(self.to_dict(), indent=2)
