"""What a user may say about image data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import BadInput

ResizeMode = Literal["crop", "pad", "stretch"]


@dataclass
class ImageDataArguments:
    """Where the images are and what shape they get; one dataclass for every image recipe.

    Raises:
        BadInput: for a value out of its range.
    """

    dataset_name: str = field(
        default="digits",
        metadata={
            "help": "`digits` (1,797 real 8x8 images, always there); a folder of images (class sub-folders or "
            "metadata.jsonl give labels); a folder, glob or single file of parquet or arrow; a folder written by "
            "save_to_disk; a Hub id."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, if it has several."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images; the first one if not given."})
    label_column: str | None = field(
        default=None,
        metadata={"help": "Column of labels; the first ClassLabel or a column called label or labels if not given."},
    )
    resolution: str | None = field(
        default=None,
        metadata={"help": "`64`, or `48x64` = height x width; the images' own size (it must be one) if not given."},
    )
    channels: int | None = field(
        default=None, metadata={"help": "1 (grey) or 3 (colour); as the first image by default."}
    )
    stack_channels: bool = field(
        default=False,
        metadata={
            "help": "Put three grey images, drawn at random, into the three channels of one: MNIST becomes Stacked "
            "MNIST, with 1000 modes."
        },
    )
    resize_mode: ResizeMode = field(
        default="crop",
        metadata={
            "help": "How an image of another shape becomes `resolution`: `crop` covers it and cuts the centre, "
            "`pad` fits inside it with black around, `stretch` ignores the aspect ratio."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Name of the validation split; if not given, `validation`, `valid`, `val` or `dev` if there."
        },
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Name of the test split; if not given, `test` if there."}
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={"help": "Share of the train split held out where there is no validation split; 0 holds out none."},
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Train on a fixed random subset of this many images (streaming: on the first of them)."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Keep this many images of the validation and of the test split (streaming: 2000)."},
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the train images anew in every epoch instead of caching their pixels."}
    )
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Streaming: images held in memory (encoded) to draw the next one from."}
    )
    skip_unreadable: bool = field(
        default=False, metadata={"help": "Count unreadable images and go on instead of stopping at the first."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for prepared data and decoded pixels; the datasets library's own by default."},
    )

    def __post_init__(self) -> None:
        _ = self.image_size  # raises where `resolution` can't be read
        if self.channels not in (None, 1, 3):
            raise BadInput(f"--channels {self.channels}: images have 1 (grey) or 3 (colour) channels")
        if self.stack_channels and (self.streaming or self.channels == 3):
            raise BadInput("--stack_channels puts grey images together: leave out --streaming and --channels 3")
        if self.resize_mode not in get_args(ResizeMode):
            raise BadInput(f"--resize_mode {self.resize_mode}: choose one of {', '.join(get_args(ResizeMode))}")
        if not 0 <= self.validation_fraction < 1:
            raise BadInput(f"--validation_fraction {self.validation_fraction}: must be at least 0 and below 1")
        for name in ("max_train_samples", "max_eval_samples", "shuffle_buffer_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"--{name} {value}: must be at least 1")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that `resolution` asks for, or None."""
        if self.resolution is None:
            return None
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(self.resolution).strip().lower())
        height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if height < 1 or width < 1:
            raise BadInput(f"--resolution {self.resolution}: write 64, or 48x64 for height x width, in pixels")
        return height, width
