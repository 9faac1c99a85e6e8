"""The same arrays from every kind of dataset."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from data.samples import folder_rows, pixels, write_metadata
from sklearn.datasets import load_digits

from hfgen.data import ImageDataArguments, load_images


def images_of(seeds, *shape) -> np.ndarray:
    stacked = np.stack([pixels(seed, *shape) for seed in seeds])
    return stacked.transpose(0, 3, 1, 2) if stacked.ndim == 4 else stacked[:, None]


def test_digits_are_all_there_once_with_their_labels():
    splits = load_images(ImageDataArguments())
    assert {name: len(split) for name, split in splits.items()} == {"train": 1297, "validation": 250, "test": 250}
    images = np.concatenate([split.images for split in splits.values()])
    labels = np.concatenate([split.labels for split in splits.values()])
    levels, classes = load_digits(return_X_y=True)
    ours = np.concatenate([images.reshape(1797, 64), labels[:, None]], 1)
    theirs = np.concatenate([np.round(levels / 16 * 255), classes[:, None]], 1)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    assert images.dtype == np.uint8 and images.max() == 255
    # The order must never change: runs are compared, and resumed, across versions.
    assert splits["train"].labels[:12].tolist() == [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8]
    assert splits["train"].label_names == [str(i) for i in range(10)] and splits["train"].num_labels == 10
    assert load_images(ImageDataArguments())["train"].fingerprint == splits["train"].fingerprint


def test_digits_at_another_shape():
    splits = load_images(ImageDataArguments(resolution="16x12", channels=3, resize_mode="pad", max_train_samples=7))
    train = splits["train"]
    assert train.images.shape == (7, 3, 16, 12) and train.image_size == (16, 12) and train.num_channels == 3
    assert (train.images[:, :, :2] == 0).all() and (train.images[:, :, 2:14] > 0).any()  # 8x8 becomes 12x12
    assert train.labels.tolist() == load_images(ImageDataArguments())["train"].labels[:7].tolist()


def test_image_folder_with_class_folders(image_folder):
    splits = load_images(ImageDataArguments(dataset_name=str(image_folder), validation_fraction=0.25))
    assert list(splits) == ["train", "validation"]
    train, validation = splits["train"], splits["validation"]
    assert (len(train), len(validation)) == (15, 5) and train.image_size == (6, 8) and train.num_channels == 3
    assert train.label_names == ["cat", "dog"]
    seen = []
    for split in (train, validation):
        for i in range(len(split)):
            item = split[i]
            matches = [s for s in range(20) if (pixels(s).transpose(2, 0, 1) == item["pixel_values"].numpy()).all()]
            assert len(matches) == 1 and item["labels"].item() == matches[0] % 2
            seen += matches
    assert sorted(seen) == list(range(20))
    again = load_images(ImageDataArguments(dataset_name=str(image_folder), validation_fraction=0.25))
    assert {k: v.fingerprint for k, v in again.items()} == {k: v.fingerprint for k, v in splits.items()}


def test_a_batch_is_what_was_indexed(image_folder):
    train = load_images(ImageDataArguments(dataset_name=str(image_folder), validation_fraction=0))["train"]
    np.testing.assert_array_equal(train.images, images_of(folder_rows()))
    for indices in ([3, 0, 19], np.array([3, 0, 19]), torch.tensor([3, 0, 19])):
        batch = train.__getitems__(indices)
        np.testing.assert_array_equal(batch["pixel_values"].numpy(), images_of(folder_rows())[[3, 0, 19]])
        assert batch["labels"].tolist() == [0, 0, 1] and batch["labels"].dtype == torch.int64
    assert train[-1]["pixel_values"].shape == (3, 6, 8)
    np.testing.assert_array_equal(train[-1]["pixel_values"], train[19]["pixel_values"])
    with pytest.raises(IndexError):
        train[20]


def test_select_is_a_view_of_a_range_and_a_copy_of_anything_else(image_folder):
    train = load_images(ImageDataArguments(dataset_name=str(image_folder), validation_fraction=0))["train"]
    first, some = train.select(range(4)), train.select([7, 2])
    assert np.shares_memory(first.images, train.images) and not np.shares_memory(some.images, train.images)
    np.testing.assert_array_equal(first.images, train.images[:4])
    np.testing.assert_array_equal(some.images, train.images[[7, 2]])
    assert some.labels.tolist() == train.labels[[7, 2]].tolist() and some.label_names == ["cat", "dog"]
    assert len({train.fingerprint, first.fingerprint, some.fingerprint}) == 3


def test_image_folder_with_splits_and_metadata(tmp_path):
    for split, seeds in {"train": range(4), "validation": range(4, 6), "test": range(6, 9)}.items():
        (tmp_path / "set" / split).mkdir(parents=True)
        for seed in seeds:
            PIL.Image.fromarray(pixels(seed)).save(tmp_path / "set" / split / f"{seed}.png")
        write_metadata(
            tmp_path / "set" / split, [{"file_name": f"{s}.png", "label": "even odd".split()[s % 2]} for s in seeds]
        )
    splits = load_images(ImageDataArguments(dataset_name=str(tmp_path / "set")))
    assert list(splits) == ["train", "validation", "test"]
    np.testing.assert_array_equal(splits["train"].images, images_of(range(4)))
    np.testing.assert_array_equal(splits["test"].images, images_of(range(6, 9)))
    assert splits["validation"].labels.tolist() == [0, 1] and splits["validation"].label_names == ["even", "odd"]


def test_parquet_as_folder_glob_and_file(parquet_folder):
    options = {"image_column": "picture", "validation_fraction": 0}
    folder = load_images(ImageDataArguments(dataset_name=str(parquet_folder), **options))
    glob = load_images(ImageDataArguments(dataset_name=str(parquet_folder / "*.parquet"), **options))
    file = load_images(ImageDataArguments(dataset_name=str(parquet_folder / "test.parquet"), validation_fraction=0))
    assert list(folder) == list(glob) == ["train", "test"] and list(file) == ["train"]
    for splits in (folder, glob):
        np.testing.assert_array_equal(splits["train"].images, images_of(range(30), 4, 4, 1))
        assert splits["train"].labels.tolist() == [i % 3 for i in range(30)]
        assert splits["train"].label_names == ["a", "b", "c"] and splits["test"].num_channels == 1
    np.testing.assert_array_equal(file["train"].images, images_of(range(30, 35), 4, 4, 1))
    assert folder["test"].fingerprint == file["train"].fingerprint  # of the content, wherever it comes from


def test_arrow_file_and_save_to_disk(tmp_path, parquet_folder):
    loaded = datasets.load_dataset(str(parquet_folder))
    loaded.save_to_disk(tmp_path / "saved")
    loaded["train"].save_to_disk(tmp_path / "single")
    whole = load_images(ImageDataArguments(dataset_name=str(tmp_path / "saved"), validation_fraction=0))
    single = load_images(ImageDataArguments(dataset_name=str(tmp_path / "single"), validation_fraction=0))
    arrow = next((tmp_path / "single").glob("*.arrow"))
    file = load_images(ImageDataArguments(dataset_name=str(arrow), validation_fraction=0))
    assert list(whole) == ["train", "test"] and list(single) == list(file) == ["train"]
    for splits in (whole, single, file):
        np.testing.assert_array_equal(splits["train"].images, images_of(range(30), 4, 4, 1))
        assert splits["train"].labels.tolist() == [i % 3 for i in range(30)]


def test_parquet_of_other_makers_with_bytes_and_string_labels(tmp_path, parquet_folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = datasets.load_dataset(str(parquet_folder), split="train").data.column("picture").combine_chunks()
    names = [["pear", "apple", "fig"][i % 3] for i in range(30)]
    for column in (encoded.field("bytes"), encoded):
        pq.write_table(pa.table({"id": list(range(30)), "pixels": column, "label": names}), tmp_path / "plain.parquet")
        train = load_images(ImageDataArguments(dataset_name=str(tmp_path / "plain.parquet"), validation_fraction=0))[
            "train"
        ]
        np.testing.assert_array_equal(train.images, images_of(range(30), 4, 4, 1))
        assert train.label_names == ["apple", "fig", "pear"] and train.labels[:4].tolist() == [2, 0, 1, 2]


def test_subsets_are_random_fixed_and_keep_their_labels(parquet_folder):
    arguments = ImageDataArguments(dataset_name=str(parquet_folder), max_train_samples=9, max_eval_samples=2)
    splits = load_images(arguments)
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "validation": 2, "test": 2}
    everything = images_of(range(30), 4, 4, 1)
    numbers = [int(np.flatnonzero((everything == image).all((1, 2, 3)))[0]) for image in splits["train"].images]
    assert numbers == sorted(set(numbers)) and numbers != list(range(9))
    assert splits["train"].labels.tolist() == [n % 3 for n in numbers]
    for image in splits["validation"].images:
        assert not (splits["train"].images == image).all((1, 2, 3)).any()
    np.testing.assert_array_equal(load_images(arguments)["train"].images, splits["train"].images)


def test_validation_takes_the_size_and_channels_of_train(tmp_path):
    for split, channels in (("train", 3), ("validation", 1)):
        (tmp_path / "mixed" / split).mkdir(parents=True)
        for i in range(3):
            PIL.Image.fromarray(pixels(i, channels=channels)).save(tmp_path / "mixed" / split / f"{i}.png")
    splits = load_images(ImageDataArguments(dataset_name=str(tmp_path / "mixed")))
    assert splits["validation"].images.shape == (3, 3, 6, 8) and splits["validation"].labels is None
    np.testing.assert_array_equal(splits["validation"].images[:, 2], images_of(range(3), 6, 8, 1)[:, 0])


def test_a_split_without_any_label_has_none(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    splits = datasets.DatasetDict()
    for name, labels in {"train": [0, 1, 1, 0], "test": [-1, -1]}.items():
        images = [PIL.Image.fromarray(pixels(i, channels=1)) for i in range(len(labels))]
        splits[name] = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    splits.save_to_disk(tmp_path / "secret")
    loaded = load_images(ImageDataArguments(dataset_name=str(tmp_path / "secret"), validation_fraction=0))
    assert loaded["train"].labels.tolist() == [0, 1, 1, 0] and loaded["test"].labels is None
    assert list(loaded["test"][0]) == ["pixel_values"]
