"""Muon: momentum whose matrices are orthogonalised before each step, and AdamW for all other parameters."""

from __future__ import annotations

import torch

# Coefficients of the quintic iteration that pulls singular values towards 1 quickest (Jordan et al. 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Near to U V^T of a matrix U S V^T, by Newton-Schulz iterations; its singular values end in about [0.7, 1.2].

    Computed in the matrix's own dtype: torch's own Muon computes in bfloat16, which a CPU without it does ten times
    slower.

    Args:
        matrix: (..., M, N).
        steps: iterations.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.add(_A * x, torch.add(_B * gram, gram @ gram, alpha=_C) @ x)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon on groups with `use_muon`, AdamW (decoupled decay, Loshchilov & Hutter 2019) on the others.

    Both in one optimizer, so that one schedule and one checkpoint hold them. Each group's `lr` is the schedule's; in
    an AdamW group it is multiplied by `adam_lr / lr`.

    Args:
        params: parameter groups; those with `use_muon: True` hold matrices.
        lr: of Muon; an update of an (M, N) matrix has the root mean square lr * max(1, M / N)^0.5 / max(M, N)^0.5.
        adam_lr: of AdamW.
        momentum: of Muon, Nesterov's.
        betas, eps: of AdamW.
        weight_decay: decoupled, for groups that name none.
        ns_steps: Newton-Schulz iterations.
    """

    def __init__(
        self,
        params,
        lr: float = 0.02,
        adam_lr: float = 3e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ):
        defaults = {
            "lr": lr,
            "adam_ratio": adam_lr / lr if lr else 0.0,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "use_muon": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One step of all groups."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving:
                (self._muon if group["use_muon"] else self._adamw)(group, moving)
        return loss

    def _muon(self, group: dict, parameters: list[torch.Tensor]) -> None:
        gradients = [p.grad for p in parameters]
        buffers = [
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p, memory_format=torch.preserve_format))
            for p in parameters
        ]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # Matrices of one shape are orthogonalised together.
        shapes: dict[torch.Size, list[int]] = {}
        for index, update in enumerate(updates):
            shapes.setdefault(update.shape, []).append(index)
        for shape, indices in shapes.items():
            together = orthogonalise(torch.stack([updates[i] for i in indices]), group["ns_steps"])
            scale = max(1.0, shape[-2] / shape[-1]) ** 0.5
            for index, update in zip(indices, together, strict=True):
                parameters[index].add_(update, alpha=-group["lr"] * scale)

    def _adamw(self, group: dict, parameters: list[torch.Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters]
        averages, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        lr, (beta1, beta2) = group["lr"] * group["adam_ratio"], group["betas"]
        for s in states:
            s["step"] += 1
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        steps = [s["step"].item() for s in states]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2**n) ** 0.5 for n in steps])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(parameters, averages, roots, [-lr / (1 - beta1**n) for n in steps])
