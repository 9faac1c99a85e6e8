"""Pixels are decoded once: the cache is found again, follows every change, and survives kills and full disks."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.samples import folder_rows, pixels
from filelock import FileLock

from hfgen.data import ImageDataArguments, cache, load_images
from hfgen.errors import BadInput


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """The purposes whose caches were built since the test began."""
    built = []
    original = cache.build_cache

    def counted(split, *args):
        built.append(split.purpose)
        original(split, *args)

    monkeypatch.setattr(cache, "build_cache", counted)
    return built


def load(folder: Path, **options):
    return load_images(ImageDataArguments(dataset_name=str(folder), validation_fraction=0, **options))["train"]


def test_second_load_maps_the_same_file(image_folder, builds, cache_folder):
    first, second = load(image_folder), load(image_folder)
    assert builds == ["train"]
    assert isinstance(second.images, np.memmap) and second.images.filename == first.images.filename
    assert Path(second.images.filename).is_relative_to(cache_folder / "hfgen") and not second.images.flags.writeable
    np.testing.assert_array_equal(first.images, second.images)


def test_every_option_that_alters_pixels_has_its_own_cache(image_folder, builds):
    sizes = [
        load(image_folder, **options).images.shape[1:]
        for options in (
            {},
            {"resolution": "4"},
            {"resolution": "4x6"},
            {"resolution": "4", "resize_mode": "pad"},
            {"channels": 1},
        )
    ]
    assert sizes == [(3, 6, 8), (3, 4, 4), (3, 4, 6), (3, 4, 4), (1, 6, 8)]
    assert len(builds) == 5
    load(image_folder, max_train_samples=3)
    assert len(builds) == 6
    load(image_folder, label_column="label", skip_unreadable=True, max_eval_samples=1)
    assert len(builds) == 6  # these leave the pixels alone


def test_other_rows_of_the_same_table_have_their_own_cache(parquet_folder, builds):
    options = {"dataset_name": str(parquet_folder / "train.parquet"), "resolution": "4", "channels": 1}
    sizes = [(24, 6), (27, 3)]
    for fraction, expected in zip((0.2, 0.1), sizes, strict=True):
        splits = load_images(ImageDataArguments(**options, validation_fraction=fraction))
        assert (len(splits["train"]), len(splits["validation"])) == expected
    assert builds == ["train", "validation"] * 2


def test_a_changed_added_or_removed_file_is_noticed(image_folder, builds):
    load(image_folder)
    path = image_folder / "cat" / "00.png"
    status = path.stat()
    PIL.Image.fromarray(pixels(99)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    changed = load(image_folder)
    np.testing.assert_array_equal(changed.images[0], pixels(99).transpose(2, 0, 1))
    PIL.Image.fromarray(pixels(20)).save(image_folder / "cat" / "20.png")
    assert len(load(image_folder)) == 21
    path.unlink()
    assert len(load(image_folder)) == 20
    assert len(builds) == 4


def test_a_file_that_a_table_only_names_is_noticed(tmp_path, image_folder, builds):
    files = sorted(image_folder.rglob("*.png"))
    rows = pa.array([{"bytes": None, "path": str(path)} for path in files], datasets.Image.pa_type)
    pq.write_table(pa.table({"image": rows}), tmp_path / "names.parquet")
    load(tmp_path / "names.parquet")
    PIL.Image.fromarray(pixels(99)).save(files[1])
    np.testing.assert_array_equal(load(tmp_path / "names.parquet").images[1], pixels(99).transpose(2, 0, 1))
    assert len(builds) == 2


def test_a_parquet_file_written_anew_is_noticed(parquet_folder, builds):
    file = parquet_folder / "train.parquet"
    load(file)
    shutil.copy(parquet_folder / "test.parquet", file)
    np.testing.assert_array_equal(load(file).images[0, 0], pixels(30, 4, 4, 1))
    assert len(builds) == 2


def test_a_damaged_cache_is_built_again(image_folder, builds):
    path = Path(load(image_folder).images.filename)
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(load(image_folder).images[3], pixels(folder_rows()[3]).transpose(2, 0, 1))
    path.with_name("meta.json").write_text("{")
    load(image_folder)
    assert len(builds) == 3


def test_too_small_a_disk_is_said_before_anything_is_written(image_folder, cache_folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(BadInput, match=r"need 2,880 bytes and .* has 100 free.*--streaming true"):
        load(image_folder)
    assert not list((cache_folder / "hfgen").glob("*.tmp")) and not list((cache_folder / "hfgen").glob("*/pixels.u8"))


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(image_folder, cache_folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(BadInput, match="need 2,880 bytes.*--streaming true"):
            load(image_folder)
    assert not list((cache_folder / "hfgen").glob("*.tmp")) and not list((cache_folder / "hfgen").glob("*/pixels.u8"))
    assert len(load(image_folder)) == 20


def test_a_cache_folder_that_cannot_be_is_named(tmp_path, parquet_folder):
    in_the_way = tmp_path / "cache_in_the_way"
    in_the_way.mkdir()
    (in_the_way / "hfgen").write_text("a file where the folder should be")
    with pytest.raises(BadInput, match="cache_in_the_way/hfgen can't be written to.*--cache_dir"):
        load(parquet_folder, cache_dir=str(in_the_way))


def test_only_leftovers_of_the_dead_are_removed(tmp_path):
    dead, living = tmp_path / "a.tmp", tmp_path / "b.tmp"
    dead.mkdir()
    living.mkdir()
    program = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "b.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        cache.remove_leftovers(tmp_path, FileLock(tmp_path / "c.lock"))
        assert not dead.exists() and living.exists()
        start = time.monotonic()
        cache.let_local_rank_0_go_first(tmp_path / "b", FileLock(tmp_path / "b.lock"), patience=30)
        assert time.monotonic() - start < 5
        holder.stdin.close()


def test_rank_0_alone_shows_progress_and_goes_first(image_folder, monkeypatch, capsys, tmp_path):
    load(image_folder)
    assert "Decoding train: 100%" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    load(image_folder, resolution="4")
    assert "Decoding" not in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    start = time.monotonic()
    cache.let_local_rank_0_go_first(tmp_path / "none", FileLock(tmp_path / "none.lock"), patience=0.3)
    assert time.monotonic() - start >= 0.3  # nobody came: it goes on alone


# Loads the folder, slowly, one image a block, and says how many caches it built.
PROGRAM = """
import sys, time
from hfgen.data import ImageDataArguments, cache, load_images
decode_all, build_cache, builds = cache.decode_all, cache.build_cache, []
cache.BLOCK_IMAGES = 1
cache.decode_all = lambda *args: (time.sleep(0.1), decode_all(*args))[1]
cache.build_cache = lambda *args: (builds.append(1), build_cache(*args))
print("ready", flush=True)
sys.stdin.readline()
arguments = ImageDataArguments(dataset_name=sys.argv[1], cache_dir=sys.argv[2], validation_fraction=0)
images = load_images(arguments)["train"]
print(len(builds), int(images.images.astype(int).sum()), images.fingerprint, flush=True)
"""


def start_loading(folder: Path, cache_dir: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(cache_dir)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_killed_halfway_then_two_at_once(image_folder, cache_folder):
    children = [start_loading(image_folder, cache_folder) for _ in range(3)]
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n"
        victim, *others = children
        victim.stdin.write("go\n")
        victim.stdin.flush()
        deadline = time.monotonic() + 60
        while not list((cache_folder / "hfgen").glob("*.tmp/pixels.u8")):
            assert time.monotonic() < deadline and victim.poll() is None
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        assert list((cache_folder / "hfgen").glob("*.tmp")) and not list((cache_folder / "hfgen").glob("*/meta.json"))
        for child in others:
            child.stdin.write("go\n")
            child.stdin.flush()
        results = [child.communicate(timeout=120)[0].split() for child in others]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert sorted(result[0] for result in results) == ["0", "1"]  # one built, the other mapped
    expected = sum(int(pixels(seed).astype(int).sum()) for seed in range(20))
    assert [int(result[1]) for result in results] == [expected] * 2
    assert results[0][2] == results[1][2] == load(image_folder, cache_dir=str(cache_folder)).fingerprint
    assert not list((cache_folder / "hfgen").glob("*.tmp"))
