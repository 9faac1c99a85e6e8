"""Pictures with captions: the pixels of [`hfgen.data.images`], and what is written beside them, row by row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..config import nearest
from ..errors import BadInput
from .arguments import ImageDataArguments
from .cached_splits import choose_rows, encoded_images, load_cached
from .decode import image_name, stored_values
from .images import ImageDataset, load_digits
from .sources import Source, find_source, image_column

# Columns that are taken for captions where none is named, the first that is there.
CAPTION_COLUMNS = ("text", "caption", "captions")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class CaptionedImages:
    """Pictures, each with one caption or several.

    Attributes:
        images: N of them.
        texts: a column `text` of all captions, those of one image after those of the one before.
        first: int64 (N + 1,), where the captions of each image begin in `texts`, and how many there are in all.
    """

    images: ImageDataset
    texts: Dataset
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def references(self) -> list[list[str]]:
        """All captions of each image."""
        texts = self.texts["text"][:]
        return [texts[a:b] for a, b in zip(self.first[:-1].tolist(), self.first[1:].tolist(), strict=True)]

    @property
    def fingerprint(self) -> str:
        """Of pixels and captions, the same on every machine."""
        digest = hashlib.blake2b(self.images.fingerprint.encode(), digest_size=16)
        digest.update(self.first.tobytes())
        for texts in self.texts.iter(10_000):
            digest.update("\0".join(texts["text"]).encode())
        return digest.hexdigest()


def captioned(images: ImageDataset, captions: pa.ListArray) -> CaptionedImages:
    """Pictures and a list of captions for each, none of which is empty."""
    first = np.concatenate([[0], np.cumsum(pc.list_value_length(captions).to_numpy())]).astype(np.int64)
    texts = pc.utf8_trim_whitespace(captions.flatten().cast(pa.large_string()))
    return CaptionedImages(images, Dataset(pa.table({"text": texts})), first)


def load_captioned_images(args: ImageDataArguments, caption_column: str | None = None) -> dict[str, CaptionedImages]:
    """Loads the splits that `args` names, with the column of captions.

    Args:
        args: see [`ImageDataArguments`].
        caption_column: a column of strings, or of lists of strings; if not given, the first of `CAPTION_COLUMNS`.

    Returns:
        as [`hfgen.data.load_images`]; an image that is passed over takes its captions with it.

    Raises:
        BadInput: there is no such column, an image has no caption or an empty one, or whatever is wrong with the
            images; in one line.
    """
    if args.streaming:
        raise BadInput("--streaming true: captioning decodes its images once, into a cache; leave it out")
    if args.label_column is not None:
        raise BadInput(f"--label_column {args.label_column}: captioning has no use for labels; set --caption_column")
    if args.dataset_name == "digits":
        if caption_column not in (None, "caption"):
            raise BadInput(f"--caption_column {caption_column}: dataset digits has the columns image, caption")
        loaded = load_digits(args)
        return {p: captioned(images, pa.array(map(digit_captions, images.labels))) for p, images in loaded.items()}
    source = find_source(args, streaming=False)
    names, rows = choose_rows(args, source)
    pictures = image_column(source.splits[names["train"]].features, args.image_column, source.name)
    captions = {}
    for purpose, name in names.items():
        column = find_captions(source, name, caption_column)
        captions[purpose] = read_captions(source, name, column)
        require_captions(source, name, column, captions[purpose], rows[purpose], pictures)
    # Without their other columns: a label that some rows lack is no matter here.
    bare = {
        name: encoded_images(source.splits[name], pictures, source.name).select_columns([pictures])
        for name in names.values()
    }
    loaded = load_cached(args, Source(bare, source.fingerprints, source.name))
    return {p: captioned(images, captions[p].take(pa.array(images.rows))) for p, images in loaded.items()}


def find_captions(source: Source, split: str, wanted: str | None) -> str:
    """The column of captions: the one asked for, or the first of the usual names.

    Raises:
        BadInput: it isn't there (the line lists those that are), or holds something else than text.
    """
    features = source.splits[split].features
    column = wanted or next((name for name in CAPTION_COLUMNS if name in features), None)
    if column is None:
        raise BadInput(
            f"dataset {source.name}, split '{split}' has no column {' or '.join(CAPTION_COLUMNS)}, only "
            f"{', '.join(features)}; name the one of the captions with --caption_column"
        )
    if column not in features:
        raise BadInput(
            f"--caption_column {column}: dataset {source.name}, split '{split}' has the columns "
            f"{', '.join(features)}{nearest(column, list(features))}"
        )
    kind = source.splits[split].data.schema.field(column).type
    if not (is_text(kind) or (is_list(kind) and is_text(kind.value_type))):
        raise BadInput(
            f"--caption_column {column}: in dataset {source.name} it holds {kind}; captions are strings, or lists of "
            "strings"
        )
    return column


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def read_captions(source: Source, split: str, column: str) -> pa.Array:
    """A list of captions for each row of a split."""
    # As rows are in the dataset, which may be a selection of those in its table.
    table = source.splits[split].select_columns([column]).with_format("arrow")[:]
    values = table.column(0).combine_chunks()
    if is_list(values.type):
        return values.cast(pa.large_list(pa.large_string()))
    lists = pa.LargeListArray.from_arrays(np.arange(len(values) + 1), values.cast(pa.large_string()))
    return pc.if_else(pc.is_valid(values), lists, pa.scalar(None, lists.type))


def require_captions(
    source: Source, split: str, column: str, captions: pa.Array, rows: np.ndarray, pictures: str
) -> None:
    """Refuses images without a caption, or with an empty one (nothing but white space).

    Raises:
        BadInput: names the first one's file, or its row.
    """
    chosen = captions.take(pa.array(rows))
    lengths = pc.fill_null(pc.list_value_length(chosen), 0).to_numpy(zero_copy_only=False)
    texts = chosen.flatten()
    full = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), False)
    owners = np.repeat(np.arange(len(rows)), lengths)
    good = lengths > 0
    good[owners[~full.to_numpy(zero_copy_only=False)]] = False
    if good.all():
        return
    first = int(np.argmin(good))
    row = int(rows[first])
    dataset = encoded_images(source.splits[split], pictures, source.name).select_columns([pictures])
    stored = dataset.with_format("arrow")[[row]].column(0).combine_chunks()
    place = image_name(next(stored_values(stored)), f"split '{split}', row {row}")
    others = int((~good).sum()) - 1
    raise BadInput(
        f"column {column} of dataset {source.name}: the caption of {place} is empty"
        + (f", and those of {others} more" if others else "")
        + "; write one, or remove the row"
    )


def digit_captions(label: int) -> list[str]:
    """What may be said of the picture of a digit; all of it is true."""
    word, kind = NUMBERS[label], "even" if label % 2 == 0 else "odd"
    return [
        f"a handwritten digit {word}",
        f"the number {word}, written by hand",
        f"the digit {label}, an {kind} number",
        f"a picture of the {kind} number {word}",
    ]
