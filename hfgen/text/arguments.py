"""What a user may say about a text model and its training; shared by every text recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import transformers
import yaml

from ..config import nearest
from ..errors import BadInput
from ..launch import has_accelerator, keep_freed_memory, set_cpu_threads, supports_bf16


@dataclass
class ModelArguments:
    """Which model is trained: a pretrained one, or an architecture of transformers from scratch.

    Raises:
        BadInput: options that contradict each other, or a mapping that can't be read.
    """

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Go on from this model: a folder or a Hub id; from scratch if not given."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit on the Hub."})
    model_type: str | None = field(
        default=None, metadata={"help": "From scratch: an architecture of transformers, such as llama, gpt2 or bert."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Options of the architecture's config (dropout too): '{hidden_size: 256, num_hidden_layers: 4}'."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "A tokenizer's folder or Hub id; the model's own, or a new one, if not given."}
    )
    tokenizer_type: Literal["bpe", "char"] = field(
        default="bpe", metadata={"help": "A new tokenizer: byte-level BPE, or one token a character."}
    )
    vocab_size: int = field(default=4096, metadata={"help": "Tokens of a new BPE tokenizer, at most."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, …; transformers' choice if not given."}
    )
    dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32", metadata={"help": "Precision of the weights; what is computed in bf16 is --bf16's matter."}
    )

    def __post_init__(self) -> None:
        self.config_overrides = read_mapping("config_overrides", self.config_overrides)
        if self.model_name_or_path is not None and self.model_type is not None:
            raise BadInput("--model_name_or_path and --model_type exclude each other: leave one out")
        if self.vocab_size < 2:
            raise BadInput(f"--vocab_size {self.vocab_size}: must be at least 2")


def read_mapping(name: str, value: str | dict | None) -> dict[str, Any]:
    """A mapping given as YAML (`{a: 1, b: 2}`) or as `a=1,b=2`.

    Raises:
        BadInput: it is neither.
    """
    if value is None or isinstance(value, dict):
        return dict(value or {})
    try:
        if "=" in value and ":" not in value:
            pairs = [pair.partition("=") for pair in value.split(",")]
            return {key.strip(): yaml.safe_load(item) for key, _, item in pairs}
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"--{name} {value!r} is no mapping; write '{{option: value, …}}' or option=value,option=value")
    return found


@dataclass
class TransferArguments:
    """How much of a model moves: freezing, gradual unfreezing, layer-wise learning rates, LoRA, new embeddings.

    Raises:
        BadInput: a value out of its range, or options that contradict each other.
    """

    _argument_group_name = "transfer"

    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parameters that stay as they are, by patterns of their names: '*embed*' 'model.layers.0.*'."
        },
    )
    unfreeze_at: str | None = field(
        default=None,
        metadata={
            "help": "Gradual unfreezing (Howard & Ruder 2018): from an optimizer step on, these too move: "
            '\'{100: ["*layers.3.*"], 200: ["*"]}\'. What it names is frozen until then.'
        },
    )
    layerwise_lr_decay: float = field(
        default=1.0,
        metadata={"help": "Each layer learns at this factor of the rate of the one above it (Howard & Ruder 2018)."},
    )
    resize_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Fit the model's vocabulary to the tokenizer's; new rows start at the mean of the old ones."
        },
    )
    lora_r: int = field(default=0, metadata={"help": "Rank of LoRA adapters (peft); 0 trains the weights themselves."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA: the update is scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA: dropout before each adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "LoRA: names of modules; `all-linear`, or peft's choice if not given."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "LoRA over weights in 4 bits (QLoRA); needs a CUDA GPU and bitsandbytes."}
    )
    merge_adapter: bool = field(
        default=False, metadata={"help": "Publish the adapters merged into the model instead of beside it."}
    )

    def __post_init__(self) -> None:
        steps = read_mapping("unfreeze_at", self.unfreeze_at)
        try:
            self.unfreeze_at = {int(k): [v] if isinstance(v, str) else list(v) for k, v in steps.items()}
        except (TypeError, ValueError):
            raise BadInput(f"--unfreeze_at {self.unfreeze_at}: write '{{step: [patterns], …}}'") from None
        if not 0 < self.layerwise_lr_decay <= 1:
            raise BadInput(f"--layerwise_lr_decay {self.layerwise_lr_decay}: must be above 0 and at most 1")
        if self.lora_r < 0:
            raise BadInput(f"--lora_r {self.lora_r}: must be at least 0")
        if self.lora_r and (self.freeze or self.unfreeze_at):
            raise BadInput("--lora_r freezes the model itself: leave --freeze and --unfreeze_at out")
        if self.lora_r and self.resize_embeddings:
            raise BadInput(
                "--lora_r does not train embeddings, and adapters can't carry new ones: leave one of "
                "--lora_r and --resize_embeddings out"
            )
        for name in ("load_in_4bit", "merge_adapter"):
            if getattr(self, name) and not self.lora_r:
                raise BadInput(f"--{name} true is for LoRA: set --lora_r")
        if self.load_in_4bit and self.merge_adapter:
            raise BadInput("adapters can't be merged into 4-bit weights: leave --load_in_4bit or --merge_adapter out")


@dataclass
class TextDefaults:
    """Defaults of every text recipe, mixed into transformers' and TRL's training arguments.

    They run on any machine: bfloat16 only where an accelerator has it, no gradient checkpointing unless asked for, no
    tracker, a loss that is not finite is shown, not hidden.
    """

    output_dir: str | None = field(default="hfgen-output", metadata={"help": "Folder of the run."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "`true` goes on from output_dir's newest checkpoint, bit for bit; or a checkpoint's folder."
        },
    )
    optim: str = field(
        default="adamw_torch_fused",
        metadata={"help": "One of transformers' optimizers, or `muon` (matrices by Muon, the rest by AdamW)."},
    )
    muon_adam_ratio: float = field(
        default=0.3, metadata={"help": "muon: AdamW's learning rate (embeddings, norms, biases) as a share of Muon's."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 autocast; default: on an accelerator that has it, not on a CPU."},
    )
    float32_matmul_precision: Literal["highest", "high", "medium"] = field(
        default="highest",
        metadata={
            "help": "torch's setting of this name: below highest, float32 products are computed from shorter factors "
            "(TF32 or bfloat16) where the processor can."
        },
    )
    activation_checkpointing: bool | None = field(
        default=False, metadata={"help": "Recompute activations in the backward pass: less memory, a third more time."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "transformers' older name of activation_checkpointing."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Trackers: none, trackio, tensorboard, wandb, mlflow."}
    )
    project: str = field(default="hfgen", metadata={"help": "The trackers' project."})
    logging_steps: float = field(default=50, metadata={"help": "Optimizer steps between logs; below 1, a share."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide losses that are not finite from the log; off: they stop the run."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps, epoch."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept, the best one besides; the oldest go first."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric_for_best_model."}
    )

    def __post_init__(self) -> None:
        self.checkpoints_kept, self.save_total_limit = self.save_total_limit, None  # ExactResume removes the old ones
        self.publish, self.push_to_hub = self.push_to_hub, False  # published once, at the end, with its card
        if self.gradient_checkpointing:
            self.activation_checkpointing = True
        self.gradient_checkpointing = None
        self.use_muon = self.optim == "muon"
        if self.use_muon:
            self.optim = "adamw_torch"
        if not has_accelerator():
            self.use_cpu = True
        if self.use_cpu:
            set_cpu_threads()
            keep_freed_memory()
            self.dataloader_pin_memory = False
            if self.fp16:
                raise BadInput("--fp16 needs a GPU; on a CPU leave it out (float32)")
        if self.train_sampling_strategy != "random":
            raise BadInput(
                f"--train_sampling_strategy {self.train_sampling_strategy}: leave it out; an exact resume needs an "
                "order of its own"
            )
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise BadInput("--early_stopping_patience needs --load_best_model_at_end true, and evaluations")
        known = [name.value for name in transformers.training_args.OptimizerNames]
        if self.optim not in known:
            raise BadInput(f"--optim {self.optim} is not known{nearest(self.optim, [*known, 'muon'])}")
        if self.bf16 is None:
            device = _device(self.use_cpu)
            self.bf16 = not self.fp16 and supports_bf16(device)
        try:
            super().__post_init__()
        except (ValueError, ImportError) as error:
            raise BadInput(f"training options: {' '.join(str(error).split())}") from error


def _device(use_cpu: bool):
    import torch

    return torch.device("cpu") if use_cpu else torch.accelerator.current_accelerator()


@dataclass
class TextTrainingArguments(TextDefaults, transformers.TrainingArguments):
    """transformers.TrainingArguments, with [`TextDefaults`]."""


@dataclass
class Seq2SeqArguments(TextDefaults, transformers.Seq2SeqTrainingArguments):
    """transformers.Seq2SeqTrainingArguments, with [`TextDefaults`]."""


def unused(default: Any = None):
    """A field of a parent's config that would do nothing here: no option of the recipe."""
    return field(default=default, init=False)
