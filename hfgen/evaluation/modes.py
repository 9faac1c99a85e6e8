"""Which modes of the data the samples reach, and how evenly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import BadInput
from .distances import nearest


def mode_statistics(modes: Tensor, num_modes: int, reference: Tensor | None = None) -> dict[str, float | int]:
    """Modes covered, and the reverse KL divergence KL(samples || data) over them in nats (Metz et al. 2017).

    The divergence of N perfect samples is not 0 but about (num_modes - 1) / (2 N): 0.019 for stacked MNIST's 26,000.

    Args:
        modes: int64 (N,), each sample's predicted mode, see [`hfgen.data.stacked.joint_labels`].
        num_modes: how many there are.
        reference: (num_modes,) the data's share of each; by default all the same.

    Returns:
        dict: `modes_covered`, with at least one sample; `num_modes`; `mode_kl`, infinite if a sample is of a mode that
        the data does not have.

    Raises:
        BadInput: a mode out of range, no sample, a reference of another length.
    """
    if len(modes) == 0 or modes.min() < 0 or modes.max() >= num_modes:
        raise BadInput(f"modes are counted of at least one sample, each in 0..{num_modes - 1}")
    if reference is None:
        reference = torch.ones(num_modes)
    if reference.shape != (num_modes,):
        raise BadInput(f"the data's shares of {num_modes} modes are wanted, there are {tuple(reference.shape)}")
    share = torch.bincount(modes.cpu(), minlength=num_modes).double() / len(modes)
    reference = reference.double().cpu() / reference.double().sum().cpu()
    seen = share > 0
    divergence = (share[seen] * (share[seen] / reference[seen]).log()).sum().item()
    return {"modes_covered": int(seen.sum()), "num_modes": num_modes, "mode_kl": divergence}


def near_centres(samples: Tensor, centres: Tensor, deviation: float, within: float = 3.0) -> dict[str, float | int]:
    """Of a mixture of Gaussians with known centres: the modes found and the share of good samples (as counted since
    Srivastava et al. 2017, https://arxiv.org/abs/1705.07761, and Lin et al. 2018, https://arxiv.org/abs/1712.04086).

    Args:
        samples: (N, D).
        centres: (K, D).
        deviation: each mode's standard deviation.
        within: a sample is good if it is closer than this many deviations to a centre.

    Returns:
        dict: `modes_covered`, centres with at least one good sample; `num_modes`; `good_samples`, 0 to 1; `mode_kl` of
        the good samples' modes against the uniform distribution (nan without any).
    """
    distance, index = nearest(samples, centres)
    good = distance[:, 0] < within * deviation
    found = {"modes_covered": 0, "num_modes": len(centres), "mode_kl": math.nan}
    if good.any():
        found = mode_statistics(index[good, 0], len(centres))
    return found | {"good_samples": good.double().mean().item()}
