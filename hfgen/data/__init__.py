"""Images for training: loading, checking, caching, streaming, augmentation."""

from .arguments import ImageDataArguments
from .augment import AugmentationArguments, ImageTransform
from .images import ImageDataset, load_images

__all__ = [
    "AugmentationArguments",
    "ImageDataArguments",
    "ImageDataset",
    "ImageTransform",
    "StreamingImages",
    "load_images",
]


def __getattr__(name: str):
    # Streaming needs the datasets library, which takes most of a second to import.
    if name == "StreamingImages":
        from .streaming import StreamingImages

        return StreamingImages
    raise AttributeError(name)
