"""The optimizer that TrainingArguments describe."""

from __future__ import annotations

import torch
from torch import nn

from .arguments import TrainingArguments
from .config import nearest
from .errors import BadInput

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: weight decay on matrices and kernels, none on biases, norms and scalars."""
    norms = {p for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    decayed, plain = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or parameter in norms else decayed).append(parameter)
    if weight_decay == 0:
        return [{"params": decayed + plain, "weight_decay": 0.0}]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """Builds it.

    Raises:
        BadInput: an unknown name, or one whose package is missing.
    """
    groups = decay_groups(model, args.weight_decay)
    betas = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    if args.optim in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(groups, lr=args.learning_rate, **betas, fused=args.optim.endswith("fused"))
    if args.optim == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate)
    # transformers knows forty more; its Trainer takes three seconds to import, so only on demand.
    from types import SimpleNamespace

    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    names = [o.value for o in OptimizerNames]
    if args.optim not in names:
        raise BadInput(f"--optim {args.optim} is not an optimizer that is known here{nearest(args.optim, names)}")
    options = SimpleNamespace(**args.to_dict() | {"optim": OptimizerNames(args.optim), "optim_args": None})
    try:
        optimizer, kwargs = Trainer.get_optimizer_cls_and_kwargs(options, model)
    except (ImportError, ValueError) as error:
        raise BadInput(f"--optim {args.optim}: {error}") from None
    return optimizer(groups, **kwargs)
