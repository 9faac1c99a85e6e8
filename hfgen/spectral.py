"""Spectral normalisation (Miyato et al. 2018) while training, folded into plain weights when the model is saved."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

_NORMALISED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def add_spectral_norm(module: nn.Module, skip: tuple[nn.Module, ...] = ()) -> None:
    """Divides the weight of every linear, convolution and embedding by its largest singular value, in place.

    A weight of zeros (the last layer of a residual branch, at the start) has none: it is drawn anew.

    Args:
        module: the network.
        skip: layers left as they are.
    """
    for layer in list(module.modules()):
        if isinstance(layer, _NORMALISED) and all(layer is not s for s in skip):
            if not layer.weight.any():
                nn.init.xavier_normal_(layer.weight)
            parametrizations.spectral_norm(layer)


def plain_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the same network without parametrizations: the normalised weights as plain weights.

    Call it in evaluation mode, where the estimate of the singular value stands still. The module is left as it is
    (torch's `remove_parametrizations` on a copy would also change the original, with which it shares its class).
    """
    plain = {}
    for name, value in module.state_dict().items():
        layer, parametrized, rest = name.partition(".parametrizations.")
        if not parametrized:
            plain[name] = value
        elif rest.endswith(".original"):
            weight = rest.removesuffix(".original")
            plain[f"{layer}.{weight}"] = getattr(module.get_submodule(layer), weight).detach()
    return plain
