"""Transfer learning: what of a model moves, when, and how fast."""

from __future__ import annotations

import re
import warnings
from fnmatch import fnmatch

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import TrainerCallback

from ..errors import BadInput
from .arguments import TransferArguments

# `model.layers.3.`, `transformer.h.3.`, `encoder.layer.3.`, `decoder.block.3.`: the number of a layer in its stack.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|block|blocks)\.(\d+)\.")


def matching(model: nn.Module, patterns: list[str], option: str) -> set[str]:
    """Names of the parameters that one of the patterns matches (`*` also crosses dots).

    Raises:
        BadInput: a pattern that matches none; lists some names.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatch(name, pattern)}
        if not hits:
            raise BadInput(
                f"--{option} {pattern} matches no parameter; they are called {', '.join(names[:3])}, … {names[-1]}"
            )
        found |= hits
    return found


def freeze(model: nn.Module, args: TransferArguments) -> None:
    """Freezes what `args.freeze` names, for good.

    Raises:
        BadInput: a pattern that matches nothing, or nothing is left to train.
    """
    if not args.freeze:
        return
    frozen = matching(model, args.freeze, "freeze")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(f"--freeze {' '.join(args.freeze)} leaves nothing to train")


class GradualUnfreezing(TrainerCallback):
    """Lets parameters move from an optimizer step on (Howard & Ruder 2018, section 3.3).

    What is frozen is a function of the step, so a resumed run goes on as the uninterrupted one.

    Args:
        model: the model, before it is wrapped.
        unfreeze_at: step -> patterns of names; what any of them names is frozen until its first step.

    Raises:
        BadInput: a pattern that matches nothing, or nothing would move at first.
    """

    def __init__(self, model: nn.Module, unfreeze_at: dict[int, list[str]]):
        self.opens: dict[str, int] = {}
        for step, patterns in sorted(unfreeze_at.items()):
            for name in matching(model, patterns, "unfreeze_at"):
                self.opens.setdefault(name, step)
        named = dict(model.named_parameters())
        self.parameters = {name: named[name] for name in self.opens if named[name].requires_grad}
        first = min(self.opens.values())
        if first > 0 and not any(p.requires_grad for name, p in named.items() if name not in self.opens):
            raise BadInput(f"--unfreeze_at names every parameter: nothing would move before step {first}")
        self.several = False
        self._closed: list[nn.Parameter] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.several = args.world_size > 1
        if self.several:  # DDP must find the same parameters in each step: they get gradients, all zero
            for name, parameter in self.parameters.items():
                parameter.register_hook(
                    lambda gradient, name=name: (
                        torch.zeros_like(gradient) if state.global_step < self.opens[name] else gradient
                    )
                )

    def on_step_begin(self, args, state, control, **kwargs):
        self._closed = [p for name, p in self.parameters.items() if state.global_step < self.opens[name]]
        if not self.several:
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(state.global_step >= self.opens[name])

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for parameter in self._closed:  # without a gradient, an optimizer neither moves nor decays it
            parameter.grad = None

    def on_train_end(self, args, state, control, **kwargs):
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)


def layer_depths(model: nn.Module) -> dict[str, int]:
    """How far each parameter is from the output: 0 for the head and what follows the layers, 1 for the last layer, …;
    the embeddings come last."""
    numbers = {name: int(m[1]) for name, _ in model.named_parameters() if (m := _LAYER.search(name))}
    count = max(numbers.values(), default=-1) + 1
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    depths = {}
    for name, parameter in model.named_parameters():
        if name in numbers:
            depths[name] = count - numbers[name]
        else:
            depths[name] = count + 1 if id(parameter) in embeddings else 0
    return depths


def make_text_optimizer(model: nn.Module, args, layerwise_lr_decay: float = 1.0) -> torch.optim.Optimizer | None:
    """The optimizer where transformers' own choice is not what was asked for, else None.

    Matrices are decayed, biases, norms and embeddings' one-dimensional parameters are not, as in transformers.

    Args:
        model: before it is wrapped.
        args: the training arguments (see [`TextDefaults`]).
        layerwise_lr_decay: factor of the learning rate from a layer to the one below.
    """
    if layerwise_lr_decay == 1 and not args.use_muon:
        return None
    depths = layer_depths(model)
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups: dict[tuple, dict] = {}
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    outer = embeddings | ({id(p) for p in head.parameters()} if head is not None else set())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = args.learning_rate * layerwise_lr_decay ** depths[name]
        decay = args.weight_decay if name in decayed else 0.0
        muon = args.use_muon and parameter.ndim == 2 and id(parameter) not in outer
        group = groups.setdefault((rate, decay, muon), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        if args.use_muon:
            group["use_muon"] = muon
    if args.use_muon:
        from ..muon import Muon

        return Muon(
            list(groups.values()),
            lr=args.learning_rate,
            adam_lr=args.learning_rate * args.muon_adam_ratio,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return optimizer_class(list(groups.values()), **options)


def with_adapters(model, args: TransferArguments, task_type: str):
    """The model with LoRA adapters (Hu et al. 2022), or as it is where `lora_r` is 0.

    Args:
        model: a transformers model.
        args: see [`TransferArguments`].
        task_type: peft's name of the task, such as `CAUSAL_LM`.

    Raises:
        BadInput: no such module.
    """
    if not args.lora_r:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if args.load_in_4bit:
        model = prepare_model_for_kbit_training(model)
    try:
        with warnings.catch_warnings():  # peft asks the model by a name that transformers is about to drop
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            return get_peft_model(model, lora_config(args, task_type))
    except ValueError as error:
        raise BadInput(f"--lora_target_modules: {' '.join(str(error).split())[:300]}") from error


def lora_config(args: TransferArguments, task_type: str):
    """peft's `LoraConfig`, or None where `lora_r` is 0; TRL's trainers take it as `peft_config`."""
    if not args.lora_r:
        return None
    from peft import LoraConfig

    targets = args.lora_target_modules
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type=task_type,
    )
