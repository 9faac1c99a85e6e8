"""Generated images beside the training images nearest to them: invented, or remembered?"""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from ..figures import image_grid, to_bytes
from .distances import nearest


def memorisation(samples: Tensor, training: Tensor) -> float:
    """The share of samples that are closer to their nearest training vector than that one is to any other training
    vector: 1 - authenticity of Alaa et al. 2022, section 2.3 (https://arxiv.org/abs/2102.08921).

    Samples of the true distribution have one too: mostly between 0.3 and 0.6, so compare it with that of held-out
    data. Copies of training data have 1.

    Args:
        samples: (N, D).
        training: (M, D), at least 2.

    Returns:
        float: 0 to 1.
    """
    distance, index = nearest(samples, training)
    close, own = index[:, 0].unique(return_inverse=True)
    # Of the few training vectors that are someone's nearest: the second entry, since the first is the vector itself.
    others = nearest(training[close], training, 2)[0][:, 1]
    return (distance[:, 0] < others[own]).double().mean().item()


def neighbour_figure(samples: Tensor, training, indices: Tensor) -> Image.Image:
    """Each sample (a row's first picture) and its nearest training images, nearest first.

    Args:
        samples: (N, C, H, W) in [0, 1].
        training: an [`hfgen.data.ImageDataset`], or uint8 (M, C, H, W).
        indices: int64 (N, k), from [`nearest`] in an embedding.

    Returns:
        PIL.Image.Image: two rows side by side where there are many samples.
    """
    images = np.asarray(getattr(training, "images", training))
    pixels = to_bytes(samples).numpy()
    rows = np.concatenate([pixels[:, None], images[indices.cpu().numpy()]], 1)
    side_by_side = 2 if len(rows) >= 8 else 1
    rows = rows[: len(rows) // side_by_side * side_by_side]
    return image_grid(rows.reshape(-1, *rows.shape[2:]), columns=side_by_side * rows.shape[1], padding=3)
