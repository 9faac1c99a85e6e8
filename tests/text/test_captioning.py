"""Pictures and their captions: which belongs to which, what the decoder is shown, and what others load."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from text.recipe_runs import killed_at, same, train, weights
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hfgen.cli import run
from hfgen.data import AugmentationArguments, ImageDataArguments, ImageDataset
from hfgen.data.captions import captioned, digit_captions, load_captioned_images
from hfgen.errors import BadInput
from hfgen.text import caption_report, captioner
from hfgen.text import captioning as cap
from hfgen.text.resume import EpochDataset
from hfgen.text.tokenizer import load_tokenizer, train_tokenizer

VIT = "{patch_size: 4, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
GPT2 = "{n_embd: 32, n_layer: 1, n_head: 2}"
SMALL = [f"--encoder_overrides={VIT}", f"--decoder_overrides={GPT2}", "--vocab_size=300", "--max_caption_length=16"]
FLAGS = [*SMALL, "--max_train_samples=64", "--max_eval_samples=12", "--per_device_train_batch_size=8"]
FLAGS += ["--optim=muon", "--learning_rate=2e-2", "--logging_steps=5"]


def colours(folder: Path, rows: list[dict], size: tuple[int, int] = (8, 8)) -> Path:
    """A folder of pictures of one colour each; `red` of a row is how much red, the rest goes to metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        name = f"{number:02d}.png"
        picture = np.zeros((*size, 3), np.uint8)
        picture[..., 0] = row.get("red", number)
        PIL.Image.fromarray(picture).save(folder / name)
        lines.append(json.dumps({"file_name": name} | {k: v for k, v in row.items() if k != "red"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def noise(count: int, channels: int = 1, size: int = 8) -> ImageDataset:
    return ImageDataset(np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8))


def small(captions: list[list[str]], *, images: ImageDataset | None = None, length: int = 16, **options):
    """(batches of the train split, tokenizer, model) of a character tokenizer and a tiny model."""
    split = captioned(images or noise(len(captions)), pa.array(captions))
    tokenizer = train_tokenizer(iter(split.texts["text"]), "char", 0, "seq2seq")
    args = captioner.CaptionModelArguments(encoder_overrides=VIT, decoder_overrides=GPT2)
    captioning = captioner.CaptioningArguments(max_caption_length=length)
    torch.manual_seed(0)
    model = captioner.build_captioner(args, tokenizer, split.images, captioning).eval()
    processor = captioner.make_image_processor(args, split.images, "crop")
    made = cap.make_batches({"train": split}, cap.Processors(tokenizer, processor), captioning, model, **options)
    return made["train"], tokenizer, model


# ---- what the decoder is shown


def test_labels_are_captions_with_their_end_and_the_decoder_sees_the_token_before(tmp_path):
    batches, tokenizer, model = small([["ab"], ["c"]], cache_dir=str(tmp_path))
    a, b, c = tokenizer.convert_tokens_to_ids(list("abc"))
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert len({a, b, c, start, end, pad}) == 6
    batch = batches.__getitems__([0, 1])
    assert batch["labels"].tolist() == [[a, b, end], [c, end, -100]]
    assert batch["decoder_input_ids"].tolist() == [[start, a, b], [start, c, end]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batches.__getitems__([1])["labels"].tolist() == [[c, end]]
    labels = batch.pop("labels")
    logits = model(**batch).logits.log_softmax(-1)
    by_hand = -(logits[0, 0, a] + logits[0, 1, b] + logits[0, 2, end] + logits[1, 0, c] + logits[1, 1, end]) / 5
    torch.testing.assert_close(cap.loss_function(0.0)(model(**batch), labels), by_hand)
    assert (model.config.decoder_start_token_id, model.config.pad_token_id) == (start, pad)
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[start, a, b], [start, c, end]]


def test_long_captions_are_cut_counted_and_do_not_end(tmp_path, capsys):
    batches, tokenizer, _ = small([["abc"], ["c"]], length=2, cache_dir=str(tmp_path))
    a, b, c = tokenizer.convert_tokens_to_ids(list("abc"))
    assert batches.__getitems__([0, 1])["labels"].tolist() == [[a, b], [c, tokenizer.eos_token_id]]
    assert "1 of 2 captions of the train split are longer than --max_caption_length 2" in capsys.readouterr().err


def test_a_caption_is_drawn_as_a_function_of_seed_and_epoch(tmp_path):
    captions = [["a", "b"]] * 40 + [["c"]] * 8
    batches, _, _ = small(captions, cache_dir=str(tmp_path))

    def look(seed: int, epoch: int) -> list[tuple[int, int]]:
        data = EpochDataset(batches, seed)
        data.set_epoch(epoch)
        firsts = [data.__getitems__(range(i, i + 8))["labels"][:, 0].tolist() for i in range(0, 48, 8)]
        return list(zip(data.order.tolist(), [first for batch in firsts for first in batch], strict=True))

    assert look(1, 0) == look(1, 0)
    epochs = [dict(look(1, epoch)) for epoch in range(6)]
    assert len({tuple(sorted(epoch.items())) for epoch in epochs}) == 6
    assert dict(look(2, 0)) != epochs[0]
    assert all(len({epoch[row] for epoch in epochs}) == 1 for row in range(40, 48))
    both = [row for row in range(40) if len({epoch[row] for epoch in epochs}) == 2]
    assert len(both) > 30
    share = np.mean([epoch[row] == epochs[0][both[0]] for epoch in epochs for row in range(40)])
    assert 0.35 < share < 0.65


def test_in_evaluation_the_references_take_turns_and_nothing_is_drawn(tmp_path):
    batches, tokenizer, model = small([["a", "b"], ["a", "b", "c"], ["c"]], cache_dir=str(tmp_path))
    processors, captioning = (
        cap.Processors(tokenizer, batches.normalize.image_processor),
        captioner.CaptioningArguments(),
    )
    made = cap.make_batches({"test": batches.captioned}, processors, captioning, model, cache_dir=str(tmp_path))
    split = made["test"]
    a, b, c = tokenizer.convert_tokens_to_ids(list("abc"))
    before = torch.random.get_rng_state()
    assert [split.__getitems__([row])["labels"][0, 0].item() for row in range(3)] == [a, b, c]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert split.captioned.references == [["a", "b"], ["a", "b", "c"], ["c"]]


def test_pictures_are_scaled_and_augmented_in_training_only(tmp_path):
    extremes = np.zeros((2, 1, 8, 8), np.uint8)
    extremes[1] = 255
    plain, _, _ = small([["a"], ["b"]], images=ImageDataset(extremes), cache_dir=str(tmp_path))
    assert plain.__getitems__([0, 1])["pixel_values"].flatten(1).unique(dim=1).tolist() == [[-1.0], [1.0]]
    some, tokenizer, model = small([["a"]] * 4, cache_dir=str(tmp_path))
    turned = AugmentationArguments(random_rotation=90)
    processors, captioning = cap.Processors(tokenizer, some.normalize.image_processor), captioner.CaptioningArguments()
    splits = {"train": some.captioned, "validation": some.captioned}
    made = cap.make_batches(splits, processors, captioning, model, turned, str(tmp_path))

    def look(split: str, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return made[split].__getitems__(range(4))["pixel_values"]

    assert torch.equal(look("train", 0), look("train", 0))
    assert not torch.equal(look("train", 0), look("train", 1))
    assert torch.equal(look("validation", 0), look("validation", 1))
    assert torch.equal(look("validation", 0), some.normalize(torch.from_numpy(some.captioned.images.images)))


@pytest.mark.parametrize("label", range(10))
def test_what_is_said_of_a_digit_is_true(label):
    word = "zero one two three four five six seven eight nine".split()[label]
    said = digit_captions(label)
    assert len(set(said)) == len(said) >= 3
    for caption in said:
        assert (word in caption.split(",")[0].split()) != (str(label) in caption.replace(",", " ").split())
        assert ("odd" in caption) <= (label % 2 == 1)
        assert ("even" in caption.replace("seven", "")) <= (label % 2 == 0)


def test_scores_by_hand():
    references = [["a cat", "one cat"], ["a dog"], ["a bird", "b", "c"], ["x y z"]]
    outputs = ["one  cat ", "a dog!", "c", ""]
    assert caption_report.matches(outputs, references).tolist() == [True, False, True, False]
    assert caption_report.caption_scores(outputs, references)["exact_match"] == 0.5
    perfect = caption_report.caption_scores(
        ["a small brown cat", "one big black dog"], [["a small brown cat"], ["x", "one big black dog"]]
    )
    assert perfect == {"exact_match": 1.0, "chrf": pytest.approx(100), "bleu": pytest.approx(100)}


def test_a_figure_shows_each_caption_as_it_is_and_a_reference_where_it_is_wrong():
    outputs = ["$a$ cat", "a \\frac{dog", "", "x"]
    references = [["$a$ cat"], ["a dog", "dog"], ["b"], ["x"]]
    figure = caption_report.caption_figure(noise(4, 3).images, outputs, references, columns=3)
    figure.canvas.draw()
    shown = [(text.get_text(), text.get_color()) for text in figure.texts]
    right, wrong, grey = caption_report.GREEN, caption_report.RED, caption_report.GREY
    assert shown == [
        ("$a$ cat", right),
        ("a \\frac{dog", wrong),
        ("a dog", grey),
        ("(nothing)", wrong),
        ("b", grey),
        ("x", right),
    ]
    assert len(figure.axes) == 4
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)


# ---- which caption belongs to which picture


def of_colour(split, texts: list[list[str]]) -> None:
    """Each picture's captions are those written for its colour."""
    assert len(split) == len(split.references) > 0
    for picture, several in zip(split.images.images, split.references, strict=True):
        assert several == texts[picture[0, 0, 0]]


def test_captions_stay_with_their_pictures(tmp_path):
    texts = [[f"{number} red", f"red {number} "] if number % 2 else [f"{number} red"] for number in range(30)]
    folder = colours(tmp_path / "data", [{"text": several} for several in texts])
    (folder / "07.png").write_bytes(b"no picture")
    texts = [[text.strip() for text in several] for several in texts]
    options = {"dataset_name": str(folder), "cache_dir": str(tmp_path / "cache"), "validation_fraction": 0.2}
    with pytest.raises(BadInput, match=r"unreadable image: .*07\.png"):
        load_captioned_images(ImageDataArguments(**options))
    before = torch.random.get_rng_state()
    splits = load_captioned_images(ImageDataArguments(**options, skip_unreadable=True))
    assert torch.equal(torch.random.get_rng_state(), before), "initial weights would depend on what is cached"
    assert (len(splits["train"]) + len(splits["validation"]), len(splits["validation"])) in ((29, 6), (29, 5))
    for split in splits.values():
        of_colour(split, texts)
    fewer = load_captioned_images(
        ImageDataArguments(**options, skip_unreadable=True, max_train_samples=5, max_eval_samples=3)
    )
    assert [len(fewer[split]) for split in ("train", "validation")] in ([5, 3], [4, 3], [5, 2])
    for split in fewer.values():
        of_colour(split, texts)
    assert splits["train"].images.num_labels is None


@pytest.mark.parametrize("several", [True, False])
def test_parquet_with_a_caption_column(tmp_path, several):
    import datasets

    captions = [["a b", "c"] if several else "a b"] * 6
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "said": datasets.List(datasets.Value("string")) if several else datasets.Value("string"),
            "label": datasets.Value("string"),  # some rows lack one, which is no matter here
        }
    )
    pictures = [PIL.Image.fromarray(np.full((8, 8), number, np.uint8)) for number in range(6)]
    rows = {"photo": pictures, "said": captions, "label": ["x", None] * 3}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    args = ImageDataArguments(dataset_name=str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    splits = load_captioned_images(args, "said")
    assert splits["train"].references == [["a b", "c"] if several else ["a b"]] * 5
    assert splits["train"].fingerprint == load_captioned_images(args, "said")["train"].fingerprint
    with pytest.raises(BadInput, match=r"no column text or caption or captions, only photo, said, label"):
        load_captioned_images(args)


# ---- runs


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the digits, and the cache's flag."""
    folder = tmp_path_factory.mktemp("digits")
    cache = f"--cache_dir={folder / 'cache'}"
    flags = ["--max_steps=150", "--eval_strategy=steps", "--eval_steps=150", "--save_steps=150", "--logging_steps=50"]
    flags += ["--learning_rate=5e-2", "--per_device_train_batch_size=32", "--max_train_samples=1000"]
    return train("captioning", folder / "run", *FLAGS, cache, *flags), cache


def test_the_folder_holds_scores_pictures_and_a_card(digits):
    run_dir, _ = digits
    facts = json.loads((run_dir / "run.json").read_text())
    assert next(iter(facts["metrics"])) == "test_exact_match"
    assert facts["metrics"]["test_exact_match"] > 0.4  # a caption that is always the same gets a tenth
    assert (facts["dataset"]["samples"], facts["dataset"]["captions"]) == (1000, 4000)
    figures = json.loads((run_dir / "figures" / "figures.json").read_text())
    assert [figure["title"] for figure in figures][0] == "Captioned"
    assert len(json.loads((run_dir / "samples.json").read_text())) == 8
    log = json.loads((run_dir / "trainer_state.json").read_text())["log_history"]
    (evaluated,) = [entry for entry in log if "eval_loss" in entry]
    assert {"eval_exact_match", "eval_bleu", "eval_chrf"} <= evaluated.keys()
    assert "AutoModelForImageTextToText.from_pretrained" in (run_dir / "README.md").read_text()
    assert (run_dir / "checkpoint-150" / "preprocessor_config.json").exists()
    assert not list(run_dir.rglob("training_args.bin"))


def test_stock_classes_write_the_same_captions(digits, tmp_path, capsys):
    run_dir, _ = digits
    splits = load_captioned_images(ImageDataArguments(max_eval_samples=12))
    images, references = splits["test"].images, splits["test"].references
    paths = []
    for number, picture in enumerate(images.images):
        paths.append(tmp_path / f"{number:02d}.png")
        PIL.Image.fromarray(picture[0]).save(paths[-1])
    processor = AutoImageProcessor.from_pretrained(run_dir)
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    pixels = processor([PIL.Image.open(path) for path in paths], return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, cap.Normalize(processor)(torch.from_numpy(images.images)), rtol=0, atol=1e-6)
    made = []
    for auto_class in (AutoModelForImageTextToText, VisionEncoderDecoderModel):
        model = auto_class.from_pretrained(run_dir).eval()
        assert type(model) is VisionEncoderDecoderModel
        made.append(tokenizer.batch_decode(model.generate(pixels), skip_special_tokens=True))
    assert len(set(made[0])) > 3
    assert run(["generate", str(run_dir), "--image", str(tmp_path), "--output", str(tmp_path / "made")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "made" / "samples.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert made[0] == made[1] == [row["caption"] for row in rows]
    assert (tmp_path / "made" / "captions.png").exists()
    capsys.readouterr()
    assert run(["evaluate", str(run_dir)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["exact_match"] == caption_report.matches(made[0], references).mean()
    assert (figures["split"], figures["images"]) == ("test", 12)
    facts = json.loads((run_dir / "run.json").read_text())["metrics"]
    assert facts == {f"test_{name}": value for name, value in figures.items() if name != "split"}


def test_generate_says_what_it_saw(digits, tmp_path, capsys):
    run_dir, _ = digits
    picture = tmp_path / "large.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(picture)
    assert run(["generate", str(run_dir), "--image", str(picture), "--num_beams", "2"]) == 0
    assert run(["generate", str(run_dir), "--output", str(tmp_path / "a"), "--temperature", "1", "--seed", "3"]) == 0
    assert run(["generate", str(run_dir), "--output", str(tmp_path / "b"), "--temperature", "1", "--seed", "3"]) == 0
    drawn = [(tmp_path / name / "samples.jsonl").read_text() for name in "ab"]
    assert drawn[0] == drawn[1]
    assert len(drawn[0].splitlines()) == 8
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"x")
    capsys.readouterr()
    for image, line in (
        ("nowhere.png", "--image nowhere.png: there is no such file or folder"),
        (str(tmp_path / "empty"), "there is no picture in this folder"),
        (str(tmp_path / "broken.png"), f"unreadable image: {tmp_path / 'broken.png'}: "),
    ):
        assert run(["generate", str(run_dir), "--image", image]) == 2
        said = capsys.readouterr().err.strip()
        assert line in said
        assert "\n" not in said


VARIANTS = {
    "plain": ["--random_rotation=20", f"--decoder_overrides={GPT2[:-1]}, resid_pdrop: 0.2}}"],
    "best model": ["--load_best_model_at_end=true", "--metric_for_best_model=chrf", "--eval_steps=6"],
    "accumulation": ["--gradient_accumulation_steps=2", "--per_device_train_batch_size=4", "--random_translation=0.2"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_short_and_resumed_equals_uninterrupted(digits, tmp_path, monkeypatch, variant):
    flags = [*FLAGS, digits[1], "--max_steps=20", "--save_steps=6", "--eval_strategy=steps", "--eval_steps=9"]
    flags += VARIANTS[variant]
    whole = train("captioning", tmp_path / "whole", *flags)
    flags.append("--resume_from_checkpoint=true")
    killed_at(monkeypatch, 14, "captioning", tmp_path / "cut", *flags)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    mended = train("captioning", tmp_path / "cut", *flags)
    assert same(weights(whole), weights(mended))
    other = train("captioning", tmp_path / "other", *flags[:-1], "--seed=1")
    assert not same(weights(whole), weights(other))


def test_accumulated_steps_are_those_of_the_whole_batch(tmp_path):
    folder = colours(tmp_path / "data", [{"text": "a" * (1 + number % 5)} for number in range(12)])
    flags = [*SMALL, f"--dataset_name={folder}", f"--cache_dir={tmp_path / 'cache'}", "--eval_strategy=no"]
    flags += ["--max_steps=2", "--tokenizer_type=char", "--save_strategy=no", "--optim=sgd", "--learning_rate=0.1"]
    flags += ["--max_grad_norm=0", f"--decoder_overrides={GPT2[:-1]}, resid_pdrop: 0, attn_pdrop: 0, embd_pdrop: 0}}"]
    # Of two runs one decodes the pictures, and the other finds them; the initial weights are the same all the same.
    whole = weights(train("captioning", tmp_path / "a", *flags, "--per_device_train_batch_size=4"))
    parts = ["--per_device_train_batch_size=1", "--gradient_accumulation_steps=4"]
    pieces = weights(train("captioning", tmp_path / "b", *flags, *parts))
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-4, atol=1e-6)


def test_two_steps_on_a_folder_of_pictures(tmp_path, capsys):
    rows = [{"text": [f"{n} parts of red", "some red"], "red": n * 10} for n in range(20)]
    folder = colours(tmp_path / "data", rows, size=(12, 20))
    flags = [*SMALL, f"--dataset_name={folder}", f"--cache_dir={tmp_path / 'cache'}", "--max_steps=2"]
    flags += ["--resolution=8x16", "--tokenizer_type=char", f"--output_dir={tmp_path / 'run'}", "--random_flip=true"]
    assert run(["train", "captioning", *flags, "--per_device_train_batch_size=4", "--disable_tqdm=true"]) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["metrics"]["validation_images"] == 2
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "run"), "--num_beams", "2"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["split"] == "validation"
    assert run(["generate", str(tmp_path / "run"), "--image", str(folder / "03.png")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["encoder"]["image_size"], config["encoder"]["num_channels"]) == ([8, 16], 3)


# ---- pretrained


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a vision encoder (12x12, with a mean and a deviation), a text decoder, and a two-tower model."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=12, patch_size=4, **tower)).save_pretrained(folder / "vit")
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    ViTImageProcessorPil(size={"height": 12, "width": 12}, **statistics).save_pretrained(folder / "vit")
    tokenizer = train_tokenizer(iter(["some red parts of 0123456789"]), "char", 0, "causal")
    language = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), n_positions=40)
    GPT2LMHeadModel(language).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    vision = tower | {"image_size": 12, "patch_size": 4}
    clip = CLIPConfig(text_config=tower | {"vocab_size": 20}, vision_config=vision, projection_dim=16)
    CLIPModel(clip).save_pretrained(folder / "clip")
    data = colours(folder / "data", [{"text": f"{n} parts of red"} for n in range(20)], size=(12, 16))
    flags = [f"--dataset_name={data}", f"--cache_dir={folder / 'cache'}", "--max_steps=2", "--max_caption_length=20"]
    return folder, [*flags, "--per_device_train_batch_size=4", "--eval_strategy=no", "--save_strategy=no"]


@pytest.mark.parametrize("encoder", ["vit", "clip"])
def test_pretrained_parts(parts, tmp_path, encoder):
    folder, flags = parts
    named = [f"--encoder_name_or_path={folder / encoder}", f"--decoder_name_or_path={folder / 'gpt2'}"]
    run_dir = train("captioning", tmp_path / "run", *flags, *named, "--learning_rate=0")
    model = AutoModelForImageTextToText.from_pretrained(run_dir)
    assert type(model.encoder).__name__ == {"vit": "ViTModel", "clip": "CLIPVisionModel"}[encoder]
    assert model.config.decoder.add_cross_attention
    before = GPT2LMHeadModel.from_pretrained(folder / "gpt2").state_dict()
    after = model.decoder.state_dict()
    assert len(before) > 10
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(after) - set(before)  # cross-attention
    processor = AutoImageProcessor.from_pretrained(run_dir)
    known = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]) if encoder == "vit" else ([0.5] * 3, [0.5] * 3)
    assert (list(processor.image_mean), list(processor.image_std)) == known
    assert json.loads((run_dir / "run.json").read_text())["arguments"]["resolution"] == "12x12"
    assert load_tokenizer(str(run_dir)).get_vocab() == load_tokenizer(str(folder / "gpt2")).get_vocab()


def test_on_from_a_whole_model_and_with_adapters(parts, tmp_path):
    folder, flags = parts
    named = [f"--encoder_name_or_path={folder / 'vit'}", f"--decoder_name_or_path={folder / 'gpt2'}"]
    first = train("captioning", tmp_path / "first", *flags, *named)
    again = [*flags, f"--model_name_or_path={first}"]
    assert same(weights(first), weights(train("captioning", tmp_path / "still", *again, "--learning_rate=0")))
    assert AutoImageProcessor.from_pretrained(tmp_path / "still").image_mean[0] == 0.4
    moved = train("captioning", tmp_path / "moved", *again, "--freeze", "encoder.*")
    changed = {n for n, value in weights(moved).items() if not torch.equal(value, weights(first)[n])}
    assert changed
    assert not [name for name in changed if name.startswith("encoder.")]
    lora = [*again, "--lora_r=2", "--lora_target_modules", "c_attn", "--learning_rate=0.1"]
    adapted = train("captioning", tmp_path / "adapted", *lora)
    merged = train("captioning", tmp_path / "merged", *lora, "--merge_adapter=true")
    assert all("lora" in name for name in weights(adapted))
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    start = torch.zeros(2, 3, dtype=torch.long)
    models = [AutoModelForImageTextToText.from_pretrained(d).eval() for d in (adapted, merged, first)]
    with torch.no_grad():
        a, b, c = (model(pixel_values=pixels, decoder_input_ids=start).logits for model in models)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert (a - c).abs().max() > 1e-4


@pytest.mark.parametrize(("mode", "size"), [("stretch", (12, 16)), ("crop", (12, 16)), ("pad", (12, 12))])
def test_the_saved_image_processor_does_what_training_did(tmp_path, mode, size):
    images = ImageDataset(np.zeros((2, 3, 12, 12), np.uint8))
    captioner.make_image_processor(captioner.CaptionModelArguments(), images, mode).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = np.stack([rows * 10, columns * 8, (rows + columns) * 6], -1).astype(np.uint8)
    PIL.Image.fromarray(smooth).save(tmp_path / "smooth.png")
    ours = cap.Normalize(processor)(torch.from_numpy(cap.read_pictures([tmp_path / "smooth.png"], 3, processor, mode)))
    theirs = processor(PIL.Image.open(tmp_path / "smooth.png"), return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


# ---- what a user gets wrong


@pytest.mark.parametrize(
    ("row", "flags", "line"),
    [
        (
            {"caption": "a"},
            ["--caption_column=captoin"],
            r"--caption_column captoin: .* has the columns image, caption \(did you mean caption\?\)",
        ),
        (
            {"title": "a"},
            [],
            r"has no column text or caption or captions, only image, title; name .* --caption_column",
        ),
        ({"text": 3}, [], r"--caption_column text: .* it holds int64; captions are strings, or lists of strings"),
    ],
)
def test_no_such_captions(tmp_path, row, flags, line):
    folder = colours(tmp_path / "data", [row] * 4)
    with pytest.raises(BadInput, match=line) as error:
        train("captioning", tmp_path / "run", *SMALL, *flags, f"--dataset_name={folder}", f"--cache_dir={tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("empty", ["", "  ", None])
@pytest.mark.parametrize("several", [True, False])
def test_an_empty_caption_is_named_by_its_file(tmp_path, empty, several):
    rows = [{"text": ["a", "b"] if several else "a"} for _ in range(10)]
    for number in (4, 6):
        rows[number] = {"text": ["a", empty] if several else empty}
    folder = colours(tmp_path / "data", rows)
    args = ImageDataArguments(dataset_name=str(folder), cache_dir=str(tmp_path), validation_fraction=0)
    with pytest.raises(BadInput, match=r"the caption of .*04\.png is empty, and those of 1 more; write one"):
        load_captioned_images(args)
    rows[4] = rows[6] = {"text": [] if several else "a"}
    folder = colours(tmp_path / "other", rows)
    args = ImageDataArguments(dataset_name=str(folder), cache_dir=str(tmp_path), validation_fraction=0)
    if several:
        with pytest.raises(BadInput, match=r"the caption of .*04\.png is empty"):
            load_captioned_images(args)
    else:
        assert len(load_captioned_images(args)["train"]) == 10


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--encoder_overrides={patch_size: 3}"],
            "pictures of 8x8 .* can't be cut into patches of 3x3: choose another",
        ),
        (["--encoder_type=vti"], r"--encoder_type vti is no architecture of transformers \(did you mean vit\?\)"),
        (["--encoder_type=gpt2", "--encoder_overrides={}"], "the encoder gpt2 takes no pictures; take vit"),
        (["--decoder_type=llama", "--decoder_overrides={}"], "the decoder llama has no cross-attention"),
        (["--decoder_overrides={n_head: 3, n_embd: 32}"], "--decoder"),
        (["--encoder_overrides={hiden_size: 3}"], r"--encoder_overrides: vit has no option hiden_size \(did you mean"),
        (["--encoder_overrides={hidden_size: big}"], "--encoder_overrides"),
        (["--encoder_name_or_path=/nowhere"], "/nowhere can't be loaded"),
        (["--encoder_type=vit", "--encoder_name_or_path=x"], "exclude each other"),
        (["--decoder_type=gpt2", "--model_name_or_path=x"], "--model_name_or_path and --decoder_type exclude"),
        (["--model_type=vit"], "unknown option --model_type"),
        (["--lora_r=2"], "--lora_r adapts a whole pretrained model"),
        (["--label_column=label"], "captioning has no use for labels"),
        (["--streaming=true"], "--streaming true: captioning decodes its images once"),
        (["--caption_column=text"], "dataset digits has the columns image, caption"),
        (["--max_caption_length=1"], "--max_caption_length 1: must be at least 2"),
        (["--num_beams=0"], "--num_beams 0: must be at least 1"),
    ],
)
def test_options_that_do_not_fit(tmp_path, flags, line, digits):
    with pytest.raises(BadInput, match=line) as error:
        train("captioning", tmp_path / "run", *FLAGS, digits[1], *flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_of_another_kind_is_no_captioner(parts, tmp_path):
    folder, flags = parts
    for flag, line in (
        (f"--model_name_or_path={folder / 'gpt2'}", "is a gpt2, no VisionEncoderDecoderModel; name parts"),
        (
            f"--encoder_name_or_path={folder / 'vit'}",
            "can't take pictures of 3 x 8x8 .*; it takes 12x12: set --resolution",
        ),
    ):
        with pytest.raises(BadInput, match=line):
            train("captioning", tmp_path / "run", *flags, flag, "--resolution=8", "--decoder_overrides=" + GPT2)
