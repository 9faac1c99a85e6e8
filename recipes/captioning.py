"""accelerate launch recipes/captioning.py --config recipes/configs/captioning/digits.yaml

Captioning (supervised, image to text): pictures in, captions out; a vision encoder with a language decoder.

The same as `hfgen train captioning --config digits`. On your own pictures: `--dataset_name ./my_folder`, where a
metadata.jsonl has lines `{"file_name": "a.png", "text": "a cat"}`; from pretrained parts: `--encoder_name_or_path
my/vit --decoder_name_or_path my/gpt2`. The run folder loads with `AutoModelForImageTextToText.from_pretrained`.
"""

from __future__ import annotations

from pathlib import Path

from hfgen import text
from hfgen.config import parse_arguments
from hfgen.data import AugmentationArguments, ImageDataArguments
from hfgen.data.captions import load_captioned_images
from hfgen.errors import guarded, leave
from hfgen.lifecycle import finish_run
from hfgen.text import captioner, captioning

GROUPS = (
    captioner.CaptionModelArguments,
    text.TransferArguments,
    ImageDataArguments,
    AugmentationArguments,
    captioner.CaptioningArguments,
    captioning.CaptionTrainingArguments,
)


def main(argv: list[str] | None = None) -> None:
    *arguments, config = parse_arguments(GROUPS, argv, "captioning")
    model_args, transfer, data_args, augmentation, cap_args, args = arguments
    text.begin_run(args)
    arguments[2] = data_args = captioner.as_the_encoder(model_args, data_args)
    splits = load_captioned_images(data_args, cap_args.caption_column)
    tokenizer = captioner.caption_tokenizer(model_args, splits["train"], data_args.cache_dir)
    model = captioner.build_captioner(model_args, tokenizer, splits["train"].images, cap_args, transfer)
    processors = captioning.make_processors(tokenizer, model_args, splits["train"].images, data_args)
    batches = captioning.make_batches(splits, processors, cap_args, model, augmentation, data_args.cache_dir)
    model = text.with_adapters(model, transfer, None)
    fit = text.trainer_options(model, args, transfer)
    trainer = captioning.captioning_trainer(model, processors, args, batches, cap_args, **fit)
    text.train_text(trainer, transfer)
    metrics, samples = captioning.report(trainer, batches)
    finish_run(
        trainer,
        recipe="captioning",
        config=config,
        argv=argv,
        arguments=tuple(arguments),
        metrics=metrics,
        usage=captioning.USAGE,
        pipeline_tag="image-to-text",
        dataset=captioning.describe(splits),
        samples=samples,
    )


def generate(
    run_dir: Path,
    *,
    image: str = "",
    seed: int = 0,
    output: Path,
    num_beams: int | None = None,
    temperature: float = 0,
):
    """Writes a caption of a picture, or of each in a folder; without one, of some held-out pictures."""
    return captioning.caption_files(run_dir, image, output, seed=seed, num_beams=num_beams, temperature=temperature)


def evaluate(run_dir: Path, *, batch_size: int = 64, num_beams: int | None = None) -> dict:
    """Exact match, chrF, BLEU and loss on the test split, or else the validation split."""
    return captioning.evaluate_run(run_dir, batch_size, num_beams)


if __name__ == "__main__":
    leave(guarded(main))
