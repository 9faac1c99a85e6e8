"""Whatever is wrong with the data is said in one line that names it and the remedy."""

import datasets
import numpy as np
import PIL.Image
import pytest
from data.samples import pixels, write_metadata

from hfgen.data import ImageDataArguments, load_images
from hfgen.errors import BadInput

BOTH_WAYS = pytest.mark.parametrize("streaming", [False, True])


def complaint(dataset, **options) -> str:
    with pytest.raises(BadInput) as caught:
        splits = load_images(ImageDataArguments(dataset_name=str(dataset), **options))
        if options.get("streaming"):
            list(splits["train"].micro_batches(seed=0, epoch=0, batch_size=1))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resolution": "64x"}, r"--resolution 64x: write 64, or 48x64"),
        ({"resolution": "0"}, r"--resolution 0: write"),
        ({"resolution": "-3"}, r"--resolution -3: write"),
        ({"resolution": "big"}, r"--resolution big: write"),
        ({"channels": 2}, r"--channels 2: .* 1 \(grey\) or 3"),
        ({"resize_mode": "squash"}, r"--resize_mode squash: choose one of crop, pad, stretch"),
        ({"validation_fraction": 1.0}, r"--validation_fraction 1.0: must be"),
        ({"validation_fraction": -0.1}, r"--validation_fraction -0.1: must be"),
        ({"max_train_samples": 0}, r"--max_train_samples 0: must be at least 1"),
        ({"max_eval_samples": -1}, r"--max_eval_samples -1: must be at least 1"),
        ({"shuffle_buffer_size": 0}, r"--shuffle_buffer_size 0: must be at least 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(BadInput, match=message):
        ImageDataArguments(**options)


def test_resolution_is_height_x_width():
    assert ImageDataArguments(resolution="48x64").image_size == (48, 64)
    assert ImageDataArguments(resolution=32).image_size == (32, 32)  # as YAML gives it
    assert ImageDataArguments().image_size is None


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint("./nowhere") == f"dataset ./nowhere: there is no such file or folder (looked in {tmp_path})"
    assert "no file matches" in complaint(tmp_path / "*.parquet")
    (tmp_path / "empty").mkdir()
    assert "empty can't be read: " in complaint(tmp_path / "empty")


def test_hub_id_without_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name in ("someone/birds", "birds"):
        message = complaint(name)
        assert (
            f"dataset {name} is no file or folder in {tmp_path}, nor to be had from the Hub: Couldn't reach" in message
        )
    assert datasets.config.HF_HUB_OFFLINE is True


def test_the_hub_is_not_asked_where_its_name_does_not_resolve(tmp_path, monkeypatch):
    import socket

    def unresolved(*args):
        raise socket.gaierror("Name or service not known")

    def seen(**options):
        offline.append(datasets.config.HF_HUB_OFFLINE)
        return load_dataset_builder(**options)

    offline, load_dataset_builder = [], datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", seen)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    assert "nor to be had from the Hub: Couldn't reach" in complaint("someone/birds")
    assert offline == [True] and datasets.config.HF_HUB_OFFLINE is False  # only meanwhile


def test_files_that_are_no_datasets(tmp_path):
    (tmp_path / "notes.txt").write_text("a")
    assert "read from .parquet, .arrow, all of one kind, not from .txt" in complaint(tmp_path / "notes.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    assert "broken.parquet can't be read: " in complaint(tmp_path / "broken.parquet")


@BOTH_WAYS
def test_splits_that_are_not_there(parquet_folder, streaming):
    for option in ("train_split", "validation_split", "test_split"):
        message = complaint(parquet_folder, streaming=streaming, **{option: "dev"})
        assert message == f"--{option} dev: dataset {parquet_folder} has the splits train, test"


@BOTH_WAYS
def test_columns_that_are_not_there_or_hold_something_else(parquet_folder, streaming):
    where = {"dataset": parquet_folder, "streaming": streaming}
    assert complaint(image_column="img", **where).endswith("has the columns picture, kind")
    assert complaint(label_column="class", **where).endswith("has the columns picture, kind")
    assert complaint(image_column="kind", **where).endswith("it holds ClassLabel, not images")
    assert "holds Image; labels are" in complaint(label_column="picture", **where)


@BOTH_WAYS
def test_no_column_of_images(tmp_path, streaming):
    datasets.Dataset.from_dict({"text": ["a"], "score": [1.0]}).to_parquet(tmp_path / "text.parquet")
    message = complaint(tmp_path / "text.parquet", streaming=streaming)
    assert message.endswith("has no column of images, only text, score")
    assert "it holds string, not images" in complaint(tmp_path / "text.parquet", image_column="text")


@BOTH_WAYS
def test_unreadable_file_is_named(image_folder, streaming):
    path = image_folder / "dog" / "07.png"
    path.write_bytes(path.read_bytes()[:60])
    message = complaint(image_folder, streaming=streaming)
    assert message.startswith(f"unreadable image: {path}: ") and "--skip_unreadable true" in message


def test_unreadable_files_are_skipped_and_counted(image_folder):
    for name in ("00", "04"):
        (image_folder / "cat" / f"{name}.png").write_bytes(b"junk")
    options = {"dataset_name": str(image_folder), "validation_fraction": 0}
    for _ in range(2):  # the first time from the files, then from the cache
        train = load_images(ImageDataArguments(**options, skip_unreadable=True))["train"]
        assert (len(train), train.skipped) == (18, 2) and train.labels.tolist() == [0] * 8 + [1] * 10
        np.testing.assert_array_equal(train.images[0], pixels(2).transpose(2, 0, 1))
    assert str(image_folder / "cat" / "00.png") in complaint(image_folder, validation_fraction=0)


@BOTH_WAYS
def test_unreadable_bytes_are_named_by_split_and_row(tmp_path, streaming):
    good = datasets.Image().encode_example(PIL.Image.fromarray(pixels(0)))["bytes"]
    rows = {"image": [{"bytes": good if i != 2 else good[:50], "path": None} for i in range(4)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "some.parquet")
    message = complaint(tmp_path / "some.parquet", streaming=streaming, validation_fraction=0)
    expected = "unreadable image: split 'train', " + ("sample " if streaming else "row 2: ")
    assert message.startswith(expected)


def test_all_unreadable(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"junk")
    assert "has no readable image" in complaint(tmp_path / "bad", validation_fraction=0, skip_unreadable=True)


@BOTH_WAYS
def test_several_sizes_need_a_resolution(tmp_path, streaming):
    (tmp_path / "mixed").mkdir()
    for i, size in enumerate([(6, 8), (6, 8), (5, 9)]):
        PIL.Image.fromarray(pixels(i, *size)).save(tmp_path / "mixed" / f"{i}.png")
    message = complaint(tmp_path / "mixed", validation_fraction=0, streaming=streaming)
    assert "several sizes: 6x8 and 5x9" in message and "--resolution" in message
    splits = load_images(
        ImageDataArguments(dataset_name=str(tmp_path / "mixed"), resolution="6", validation_fraction=0)
    )
    assert splits["train"].images.shape == (3, 3, 6, 6)


@BOTH_WAYS
def test_empty_split(tmp_path, streaming):
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).to_parquet(tmp_path / "none.parquet")
    assert (
        "split 'train'" in (message := complaint(tmp_path / "none.parquet", streaming=streaming))
        and "empty" in message
    )


def test_too_few_images_to_hold_any_out(tmp_path):
    (tmp_path / "one").mkdir()
    PIL.Image.fromarray(pixels(0)).save(tmp_path / "one" / "a.png")
    assert "has 1 samples: none is left to train on" in complaint(tmp_path / "one")


def test_missing_labels(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(4):
        PIL.Image.fromarray(pixels(i)).save(tmp_path / "set" / f"{i}.png")
    write_metadata(tmp_path / "set", [{"file_name": f"{i}.png", "label": None if i == 2 else i} for i in range(4)])
    assert (
        "label column label of dataset" in (message := complaint(tmp_path / "set")) and "1 rows have none" in message
    )
    assert "a row has none" in complaint(tmp_path / "set", streaming=True, validation_fraction=0)


def test_digits_have_their_columns_and_do_not_stream():
    assert "has the columns image, label" in complaint("digits", label_column="class")
    assert complaint("digits", streaming=True).startswith("--streaming true: dataset digits")
