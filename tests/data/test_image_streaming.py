"""A stream is a pure function of seed, epoch and position, whatever the number of ranks."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from data.samples import pixels

from hfgen.data import ImageDataArguments, ImageDataset, StreamingImages, decode, load_images, streaming
from hfgen.errors import BadInput


@pytest.fixture
def arrow_files(tmp_path):
    """A glob of 4 arrow files of 25 grey 4x4 images each; the label is the number of the image."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for shard in range(4):
        numbers = range(25 * shard, 25 * shard + 25)
        rows = {"image": [PIL.Image.fromarray(pixels(i, 4, 4, 1)) for i in numbers], "label": list(numbers)}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / f"{shard}")
    return tmp_path / "*" / "*.arrow"


def open_stream(path, **options) -> StreamingImages:
    options = {"validation_fraction": 0, "shuffle_buffer_size": 10} | options
    stream = load_images(ImageDataArguments(dataset_name=str(path), streaming=True, **options))["train"]
    assert isinstance(stream, StreamingImages)
    return stream


def order(stream, **options) -> list[int]:
    """Labels in the order of the stream; the pixels must belong to them."""
    options = {"seed": 1, "epoch": 0, "batch_size": 5} | options
    numbers = []
    for batch in stream.micro_batches(**options):
        assert batch["pixel_values"].shape == (options["batch_size"], 1, 4, 4)
        assert batch["pixel_values"].dtype == torch.uint8
        for image, number in zip(batch["pixel_values"], batch["labels"].tolist(), strict=True):
            np.testing.assert_array_equal(image[0].numpy(), pixels(number, 4, 4, 1))
            numbers.append(number)
    return numbers


def test_an_epoch_is_every_image_once_in_an_order_of_its_own(arrow_files):
    stream = open_stream(arrow_files)
    assert isinstance(stream.dataset, datasets.IterableDataset) and stream.dataset.num_shards == 4
    assert (stream.image_size, stream.num_channels) == ((4, 4), 1)
    first = order(stream)
    assert sorted(first) == list(range(100)) and first != list(range(100))
    assert order(stream) == first == order(open_stream(arrow_files))
    others = [order(stream, epoch=1), order(stream, seed=2), order(stream, seed=2, epoch=1)]
    assert all(sorted(other) == list(range(100)) for other in others)
    assert len({tuple(o) for o in [first, *others]}) == 4


@pytest.mark.parametrize("kind", ["arrow", "saved"])
def test_skip_gives_exactly_the_tail(arrow_files, tmp_path, kind):
    stream = open_stream(arrow_files if kind == "arrow" else tmp_path / "0")
    whole = order(stream)
    for skip in (5, 10, 15, 3):
        tail = whole[skip:]
        assert order(stream, skip=skip) == tail[: len(tail) // 5 * 5]
    assert order(stream, skip=len(whole)) == []


def test_skipped_and_foreign_samples_are_not_decoded(arrow_files, monkeypatch):
    stream, decoded = open_stream(arrow_files), []
    monkeypatch.setattr(streaming, "decode", lambda *args: (decoded.append(1), decode.decode(*args))[1])
    assert len(order(stream, skip=60)) == 40 and len(decoded) == 40
    decoded.clear()
    assert len(order(stream, skip=60, rank=1, world_size=2)) == 20 and len(decoded) == 20


@pytest.mark.parametrize("skip", [0, 20])
def test_two_ranks_together_are_one_of_twice_the_batch(arrow_files, skip):
    stream = open_stream(arrow_files)
    ranks = [
        list(stream.micro_batches(seed=1, epoch=3, skip=skip, batch_size=5, rank=r, world_size=2)) for r in (0, 1)
    ]
    single = list(stream.micro_batches(seed=1, epoch=3, skip=skip, batch_size=10))
    assert len(single) == len(ranks[0]) == len(ranks[1]) == (100 - skip) // 10
    for whole, *halves in zip(single, *ranks, strict=True):
        for key in ("pixel_values", "labels"):
            assert torch.equal(whole[key], torch.cat([half[key] for half in halves]))


def test_an_incomplete_tail_is_dropped_for_all_ranks(arrow_files):
    stream = open_stream(arrow_files)
    lengths = [len(order(stream, batch_size=8, rank=rank, world_size=3)) for rank in range(3)]
    assert lengths == [32, 32, 32]  # 4 groups of 24 of the 100


def test_too_few_images_for_one_step(arrow_files):
    with pytest.raises(BadInput, match="has 100 images to train on, too few for 2 x 51"):
        order(open_stream(arrow_files), batch_size=51, world_size=2)


def test_a_folder_of_files_is_shuffled_as_a_whole(image_folder):
    stream = open_stream(image_folder, shuffle_buffer_size=1)
    assert isinstance(stream.dataset, datasets.Dataset) and stream.label_names == ["cat", "dog"]
    batches = list(stream.micro_batches(seed=0, epoch=0, batch_size=10))
    assert len(batches) == 2 and all(0 < batch["labels"].sum() < 10 for batch in batches)  # not cats, then dogs
    seen = torch.cat([batch["pixel_values"] for batch in batches]).numpy()
    expected = np.stack([pixels(i).transpose(2, 0, 1) for i in range(20)])
    assert {image.tobytes() for image in seen} == {image.tobytes() for image in expected}


def test_parquet_streams_as_it_loads(parquet_folder):
    stream = open_stream(parquet_folder, max_eval_samples=3)
    (batch,) = stream.micro_batches(seed=0, epoch=0, batch_size=30)
    loaded = load_images(ImageDataArguments(dataset_name=str(parquet_folder), validation_fraction=0))["train"]
    ours = sorted(zip(map(np.ndarray.tobytes, batch["pixel_values"].numpy()), batch["labels"].tolist(), strict=True))
    assert ours == sorted(zip(map(np.ndarray.tobytes, loaded.images), loaded.labels.tolist(), strict=True))
    assert stream.label_names == ["a", "b", "c"] and stream.num_labels == 3


def test_held_out_images_never_come_in_training(arrow_files):
    options = {
        "dataset_name": str(arrow_files),
        "streaming": True,
        "validation_fraction": 0.3,
        "shuffle_buffer_size": 10,
    }
    splits = load_images(ImageDataArguments(**options))
    validation = splits["validation"]
    assert isinstance(validation, ImageDataset) and 10 < len(validation) < 50
    for i, number in enumerate(validation.labels):
        np.testing.assert_array_equal(validation.images[i, 0], pixels(int(number), 4, 4, 1))
    for epoch in (0, 1):
        trained = order(splits["train"], epoch=epoch, batch_size=1)
        assert sorted([*trained, *validation.labels.tolist()]) == list(range(100))
    few = load_images(ImageDataArguments(**options, max_eval_samples=4))["validation"]
    assert few.labels.tolist() == validation.labels[:4].tolist()


def test_subset_and_test_split(parquet_folder, arrow_files):
    splits = load_images(ImageDataArguments(dataset_name=str(parquet_folder), streaming=True, validation_fraction=0))
    assert list(splits) == ["train", "test"] and sorted(splits["test"].labels.tolist()) == [0, 0, 1, 1, 2]
    first = sorted(order(open_stream(arrow_files, max_train_samples=30), epoch=4))
    assert len(first) == 30 and first == sorted(order(open_stream(arrow_files, max_train_samples=30)))


def test_resolution_and_fingerprint(arrow_files, parquet_folder):
    stream = open_stream(arrow_files, resolution="8x6", channels=3)
    (batch,) = stream.micro_batches(seed=0, epoch=0, batch_size=100)
    assert batch["pixel_values"].shape == (100, 3, 8, 6) and stream.image_size == (8, 6) and stream.num_channels == 3
    assert stream.fingerprint == open_stream(arrow_files).fingerprint != open_stream(parquet_folder).fingerprint


def test_an_unreadable_image_is_replaced_and_moves_nothing(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        PIL.Image.fromarray(np.full((2, 2), i, np.uint8)).save(folder / f"{i:02d}.png")
    whole = torch.cat([b["pixel_values"] for b in open_stream(folder).micro_batches(seed=0, epoch=0, batch_size=4)])
    numbers = whole[:, 0, 0, 0].tolist()
    (folder / f"{numbers[1]:02d}.png").write_bytes(b"junk")
    (folder / f"{numbers[11]:02d}.png").write_bytes(b"junk")
    stream = open_stream(folder, skip_unreadable=True)
    mended = torch.cat([b["pixel_values"] for b in stream.micro_batches(seed=0, epoch=0, batch_size=4)])
    expected = numbers.copy()
    expected[1], expected[11] = numbers[2], numbers[8]
    assert mended[:, 0, 0, 0].tolist() == expected and stream.skipped == 2


def test_stopping_early_leaves_no_thread(arrow_files):
    import threading

    stream, before = open_stream(arrow_files), threading.active_count()
    batches = stream.micro_batches(seed=0, epoch=0, batch_size=5)
    next(batches)
    batches.close()
    assert threading.active_count() <= before
