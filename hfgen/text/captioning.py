"""Captioning (supervised, image to text): pictures and captions as batches, training, evaluation, finished runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
)

from ..data import AugmentationArguments, ImageDataArguments, ImageTransform
from ..data.captions import CaptionedImages, load_captioned_images
from ..data.decode import PixelFormat, UnreadableImage, open_image, to_array
from ..errors import BadInput, speaks
from ..lifecycle import saved_arguments
from ..precision import full_float32
from ..runs import check_run_dir
from ..seeding import mix, seed_globals
from .arguments import Seq2SeqArguments
from .caption_report import caption_figure, caption_scores, save_figures, some_rows, spread
from .captioner import CaptioningArguments, CaptionModelArguments, Ends, make_image_processor
from .fit import load_folder
from .generation import write_samples
from .pairs import IGNORED, shift_right
from .tokenizer import digest
from .tokens import as_batch, tokenize_corpus
from .translation import decode, loss_function, sequence_loss

# How a finished run is used elsewhere; `{name!r}` is its folder or repository.
USAGE = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

model = AutoModelForImageTextToText.from_pretrained({name!r})
processor = AutoImageProcessor.from_pretrained({name!r})
tokenizer = AutoTokenizer.from_pretrained({name!r})
picture = processor(Image.open("picture.png"), return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**picture), skip_special_tokens=True))"""


@dataclass
class CaptionTrainingArguments(Seq2SeqArguments):
    """transformers.Seq2SeqTrainingArguments, with hfgen's defaults, and captions generated in evaluations."""

    predict_with_generate: bool = field(
        default=True, metadata={"help": "Generate captions in evaluations, for exact match, BLEU and chrF."}
    )


# ---- pictures and captions as batches


class Processors:
    """Tokenizer and image processor, saved together wherever the model is; the trainer's `processing_class`.

    Args:
        tokenizer, image_processor: as transformers'.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_processor):
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.pad_token_id = tokenizer.pad_token_id
        self.model_input_names = ["pixel_values"]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes both."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def make_processors(tokenizer, args: CaptionModelArguments, images, data: ImageDataArguments) -> Processors:
    """The tokenizer, and the image processor that does what training does (see [`make_image_processor`])."""
    return Processors(tokenizer, make_image_processor(args, images, data.resize_mode))


class Normalize:
    """uint8 pictures as the encoder takes them: (x / 255 - mean) / std, a mean and a deviation a channel.

    Args:
        image_processor: has `image_mean` and `image_std`.
        augmentation: in training.
    """

    def __init__(self, image_processor, augmentation: AugmentationArguments | None = None):
        self.image_processor = image_processor
        self.transform = ImageTransform(augmentation)
        self.augments = augmentation is not None
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None]
            for values in (image_processor.image_mean, image_processor.image_std)
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W); augmentation draws from torch's global generator."""
        generator = torch.default_generator if self.augments else None
        return (self.transform({"pixel_values": images}, generator)["pixel_values"] - self.mean) / self.std


class CaptionBatches(torch.utils.data.Dataset):
    """Pictures and a caption of each, as ready batches.

    Args:
        captioned: the pictures and their captions.
        tokens: int (tokens,), all captions one after the other, each with its end.
        starts: int64 (captions,), where each begins in `tokens`.
        normalize: uint8 pictures -> what the encoder takes.
        ends: the special tokens; `ends.start` is the decoder's first input.
        max_caption_length: tokens; what is longer is cut, and does not end then.
        draws: draw one of a picture's captions each time, from torch's global generator (training); else a picture
            has the same one always, and the captions of all take turns.
        fingerprint: of what a batch depends on.
    """

    def __init__(
        self,
        captioned: CaptionedImages,
        tokens: np.ndarray,
        starts: np.ndarray,
        normalize: Callable[[torch.Tensor], torch.Tensor],
        ends: Ends,
        max_caption_length: int,
        draws: bool,
        fingerprint: str | None = None,
    ):
        self.captioned, self.normalize, self.ends, self.draws = captioned, normalize, ends, draws
        self.name, self.fingerprint = captioned.images.name, fingerprint
        self.tokens, self.starts = tokens, starts
        whole = np.diff(np.append(starts, len(tokens)))
        self.lengths = np.minimum(whole, max_caption_length)
        self.cut = int((whole > max_caption_length).sum())
        self.counts = np.diff(captioned.first)

    def __len__(self) -> int:
        return len(self.captioned)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """`pixel_values` float32 (B, C, H, W); `labels` (-100 after their end), `decoder_input_ids` and
        `decoder_attention_mask` int64 (B, T)."""
        rows = np.asarray(rows, np.int64)
        labels = torch.from_numpy(self.labels(self.choose(rows)))
        return {
            "pixel_values": self.normalize(self.captioned.images.__getitems__(rows)["pixel_values"]),
            "labels": labels,
            "decoder_input_ids": shift_right(labels, self.ends.start, self.ends.pad),
            "decoder_attention_mask": (labels != IGNORED).long(),
        }

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([row]).items()}

    def choose(self, rows: np.ndarray) -> np.ndarray:
        """A caption of each picture: numbers in `captioned.texts`, int64 (B,)."""
        counts = self.counts[rows]
        if self.draws:
            chosen = (torch.rand(len(rows), dtype=torch.float64).numpy() * counts).astype(np.int64)
        else:
            chosen = rows % counts
        return self.captioned.first[rows] + chosen

    def labels(self, captions: np.ndarray) -> np.ndarray:
        """int64 (B, longest of them): captions by number, -100 after their end."""
        lengths = self.lengths[captions]
        places = np.arange(lengths.max())
        there = places < lengths[:, None]
        labels = np.full(there.shape, IGNORED, np.int64)
        labels[there] = self.tokens[(self.starts[captions][:, None] + places)[there]]
        return labels


def make_batches(
    captioned: dict[str, CaptionedImages],
    processors: Processors,
    captioning: CaptioningArguments,
    model,
    augmentation: AugmentationArguments | None = None,
    cache_dir: str | None = None,
) -> dict[str, CaptionBatches]:
    """The batches of each split; says how many captions were cut.

    Args:
        captioned: the splits.
        processors: what they are read with.
        captioning: the length of captions.
        model: knows the decoder's first token.
        augmentation: of the training split.
        cache_dir: folder for prepared data.

    Raises:
        BadInput: the cache folder can't be written to, or the disk is full.
    """
    tokenizer, image_processor = processors.tokenizer, processors.image_processor
    ends = replace(Ends.of(tokenizer), start=model.generation_config.decoder_start_token_id)
    batches = {}
    for purpose, split in captioned.items():
        corpus = tokenize_corpus(split.texts, tokenizer, cache_dir=cache_dir, name=split.images.name)
        train = purpose == "train"
        normalize = Normalize(image_processor, augmentation if train else None)
        content = f"{split.fingerprint}/{digest(tokenizer)}/{captioning.max_caption_length}"
        batches[purpose] = CaptionBatches(
            split, corpus.tokens, corpus.starts, normalize, ends, captioning.max_caption_length, train, content
        )
        if (cut := batches[purpose].cut) and speaks():
            print(
                f"hfgen: {cut} of {len(split.texts)} captions of the {purpose} split are longer than "
                f"--max_caption_length {captioning.max_caption_length} tokens and were cut",
                file=sys.stderr,
            )
    return batches


# ---- training and evaluation


def captioning_trainer(
    model, processors: Processors, args, batches: dict[str, CaptionBatches], captioning, **options: Any
) -> Seq2SeqTrainer:
    """A plain transformers `Seq2SeqTrainer` on ready batches.

    Args:
        model, args: as for `Seq2SeqTrainer`.
        processors: saved with the model.
        batches: `train`, and `validation` where it is evaluated.
        captioning: how captions are generated.
        options: further ones of `Seq2SeqTrainer`.

    Raises:
        BadInput: there is nothing to evaluate on.
    """
    args.remove_unused_columns = False  # batches come ready
    args.prediction_loss_only = not args.predict_with_generate
    args.generation_num_beams = args.generation_num_beams or captioning.num_beams
    args.generation_max_length = args.generation_max_length or captioning.max_caption_length + 1
    validation = batches.get("validation")
    if validation is None and args.eval_strategy != "no":
        raise BadInput("there is no validation split to evaluate on: set --validation_fraction, or --eval_strategy no")

    def compute_metrics(prediction) -> dict[str, float]:
        references = validation.captioned.references
        outputs = decode(processors.tokenizer, prediction.predictions)
        # Several processes fill up their last batch with the first rows again.
        return caption_scores(outputs[: len(references)], references)

    trainer = Seq2SeqTrainer(
        model,
        args,
        data_collator=as_batch,
        train_dataset=batches["train"],
        eval_dataset=validation,
        processing_class=processors,
        compute_loss_func=loss_function(args.label_smoothing_factor),
        compute_metrics=compute_metrics if args.predict_with_generate else None,
        **options,
    )
    trainer.label_smoother = None  # the loss function smooths; the loss of an evaluation is the plain one
    return trainer


@torch.no_grad()
def evaluate_captioner(
    model, tokenizer, batches: CaptionBatches, batch_size: int = 64, num_beams: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Captions a split, and measures the captions against all references.

    Args:
        model: in evaluation mode.
        tokenizer: of the captions.
        batches: the split.
        batch_size: pictures at a time.
        num_beams: of the search; the model's own if not given.

    Returns:
        (see [`caption_scores`]; `loss` in nats a token of one reference a picture (they take turns), which a decoder
        that knew the picture would still pay for not knowing which of them is asked for; `images`, how many;
        the captions).
    """
    outputs, total, count = [], 0.0, 0
    search = {} if num_beams is None else {"num_beams": num_beams}
    with full_float32():
        for begin in range(0, len(batches), batch_size):
            batch = batches.__getitems__(range(begin, min(begin + batch_size, len(batches))))
            batch = {name: value.to(model.device) for name, value in batch.items()}
            labels, pixels = batch.pop("labels"), batch["pixel_values"].to(model.dtype)
            logits = model(**batch | {"pixel_values": pixels}, use_cache=False).logits
            total += sequence_loss(logits, labels, count=1).item()
            count += int((labels != IGNORED).sum())
            outputs += decode(tokenizer, model.generate(pixel_values=pixels, **search).cpu())
    scores = caption_scores(outputs, batches.captioned.references, signatures=True)
    return scores | {"loss": total / count, "images": len(outputs)}, outputs


def report(trainer: Seq2SeqTrainer, batches: dict[str, CaptionBatches]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Loads what was published, captions the split that was held out, and draws it into the run folder.

    Returns:
        (see [`evaluate_captioner`], with the split's name before each metric; rows for the gallery); empty in all
        processes but the first, and where nothing was held out.
    """
    split = held_out(batches)
    if split is None or not trainer.accelerator.is_main_process:
        return {}, []
    folder = trainer.args.output_dir
    model, tokenizer, _ = load_trained(folder)
    measured, outputs = evaluate_captioner(model, tokenizer, batches[split])
    save_figures(folder, batches[split], outputs)
    return {f"{split}_{name}": value for name, value in measured.items()}, some_rows(batches[split], outputs)


def describe(captioned: dict[str, CaptionedImages]) -> dict[str, Any]:
    """What run.json says of the training data."""
    train = captioned["train"]
    return {
        "name": train.images.name,
        "fingerprint": train.fingerprint,
        "samples": len(train),
        "captions": len(train.texts),
        "skipped": {purpose: split.images.skipped for purpose, split in captioned.items() if split.images.skipped},
    }


def held_out(splits: dict[str, Any]) -> str | None:
    """The split that final figures are measured on: test, or else validation; None where there is neither."""
    return next((purpose for purpose in ("test", "validation") if purpose in splits), None)


# ---- a finished run


def load_captioner(run_dir: Path):
    """Model (in evaluation mode), tokenizer and image processor of a finished run.

    Raises:
        BadInput: the folder is no finished run, or can't be loaded.
    """
    return load_trained(check_run_dir(run_dir))


def load_trained(folder: str | Path):
    """As [`load_captioner`], of any folder that holds them."""
    model, tokenizer = load_folder(folder, AutoModelForImageTextToText)
    try:
        return model, tokenizer, AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} can't be loaded: {' '.join(str(error).split())[:300]}") from error


def find_pictures(path: str) -> list[Path]:
    """A picture's file, or all pictures in a folder (not in folders within), by name.

    Raises:
        BadInput: nothing is there.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        endings = PIL.Image.registered_extensions()
        pictures = sorted(file for file in found.iterdir() if file.suffix.lower() in endings)
        if not pictures:
            raise BadInput(f"--image {path}: there is no picture in this folder")
        return pictures
    if not found.is_file():
        raise BadInput(f"--image {path}: there is no such file or folder")
    return [found]


def read_pictures(paths: list[Path], channels: int, image_processor, resize_mode: str) -> np.ndarray:
    """uint8 (N, C, H, W): pictures as training read them.

    Raises:
        BadInput: one can't be read.
    """
    size = image_processor.crop_size or image_processor.size
    pixels = PixelFormat((size["height"], size["width"]), channels, resize_mode)
    arrays = []
    for path in paths:
        try:
            arrays.append(to_array(open_image({"bytes": None, "path": str(path)}, pixels), pixels))
        except UnreadableImage as error:
            raise BadInput(f"unreadable image: {path}: {error}; mend or remove it") from error
    return np.stack(arrays)


@torch.no_grad()
def caption_images(
    model,
    tokenizer,
    image_processor,
    images: np.ndarray,
    *,
    num_beams: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """A caption of each picture.

    Args:
        model: in evaluation mode.
        tokenizer, image_processor: saved with it.
        images: uint8 (N, C, H, W), of the encoder's size.
        num_beams: of the search; the model's own if not given.
        temperature: above 0 draws instead of searching.
        seed: of the draws.
        batch_size: pictures at a time.
    """
    normalize, outputs = Normalize(image_processor), []
    how: dict[str, Any] = {"num_beams": num_beams} if num_beams else {}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "num_beams": 1}
    for begin in range(0, len(images), batch_size):
        seed_globals(mix(seed, begin), model.device)
        pixels = normalize(torch.from_numpy(np.ascontiguousarray(images[begin : begin + batch_size])))
        made = model.generate(pixel_values=pixels.to(model.device, model.dtype), **how)
        outputs += decode(tokenizer, made.cpu())
    return outputs


def evaluate_run(run_dir: Path, batch_size: int = 64, num_beams: int | None = None) -> dict[str, Any]:
    """[`evaluate_captioner`] of a finished run, on the split that it held out; and the split's name.

    Raises:
        BadInput: the folder is no finished run, or its data is not what it was.
    """
    model, tokenizer, batches, split = _held_out_of(run_dir)
    return evaluate_captioner(model, tokenizer, batches, batch_size, num_beams)[0] | {"split": split}


def _held_out_of(run_dir: Path) -> tuple[Any, PreTrainedTokenizerBase, CaptionBatches, str]:
    model, tokenizer, image_processor = load_captioner(run_dir)
    data, captioning = (saved_arguments(run_dir, kind) for kind in (ImageDataArguments, CaptioningArguments))
    splits = load_captioned_images(data, captioning.caption_column)
    split = held_out(splits)
    if split is None:
        raise BadInput(f"{run_dir} held out no images to evaluate on; train with --validation_fraction 0.1")
    some = {split: splits[split]}
    batches = make_batches(some, Processors(tokenizer, image_processor), captioning, model, cache_dir=data.cache_dir)
    return model, tokenizer, batches[split], split


def caption_files(
    run_dir: Path,
    image: str,
    output: Path,
    *,
    seed: int = 0,
    num_beams: int | None = None,
    temperature: float = 0.0,
) -> list[Path]:
    """Prints captions, and writes them to samples.jsonl and, with their pictures, to captions.png.

    Args:
        run_dir: a finished run.
        image: a picture's file, or a folder of pictures; empty: some that the run held out.
        output: folder to write to.
        seed, num_beams, temperature: see [`caption_images`].

    Raises:
        BadInput: there is no such picture, or one can't be read.
    """
    how: dict[str, Any] = {"seed": seed, "num_beams": num_beams, "temperature": temperature}
    if image:
        model, tokenizer, image_processor = load_captioner(run_dir)
        paths = find_pictures(image)
        resize_mode = saved_arguments(run_dir, ImageDataArguments).resize_mode
        channels = getattr(model.config.encoder, "num_channels", len(image_processor.image_mean))
        pictures = read_pictures(paths, channels, image_processor, resize_mode)
        named = [{"image": str(path)} for path in paths]
    else:
        model, tokenizer, batches, split = _held_out_of(run_dir)
        rows = spread(len(batches), 8)
        pictures, image_processor = batches.captioned.images.images[rows], batches.normalize.image_processor
        named = [{"image": f"{split} {row}"} for row in rows]
    captions = caption_images(model, tokenizer, image_processor, pictures, **how)
    files = write_samples([name | {"caption": caption} for name, caption in zip(named, captions, strict=True)], output)
    shown = slice(0, 32)
    figure = caption_figure(pictures[shown], captions[shown])
    figure.savefig(Path(output) / "captions.png")
    return [*files, Path(output) / "captions.png"]
