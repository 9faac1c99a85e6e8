"""Images a second that reach the training step: hfgen's cached pixels against decoding every image in every epoch.

    python benchmarks/image_loading.py [folder with mnist/]

The peer is the way of diffusers' train_unconditional.py: `Dataset.set_transform` with torchvision's Resize,
CenterCrop, RandomHorizontalFlip, ToTensor and Normalize on PIL images, behind a shuffling DataLoader. Both start from
the same opened `datasets` table, deliver float batches of 128 in [-1, 1] with their labels on the device, and take
turns. Each side's best setting counts: 0 or 2 workers for the peer, one torch thread or all for us (all are faster as
long as nothing else runs). Our first epoch builds the cache from nothing; a later one is repeated for at least a
second. `ratio` is of the medians in a later epoch (target: 10), `first_epoch_ratio` in the first (target: 1); of the
datasets, MNIST if it is there and a folder of 64x64 colour JPEGs, the worse one counts.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from common import data_folder, finish, say
from peer import venv

BATCH, ROUNDS, IMAGES = 128, 3, {"mnist": 10_000, "colour_64": 5_000}
NAMES = {
    "hfgen-1": "hfgen, 1 thread",
    "hfgen-all": "hfgen, all threads",
    "peer-0": "datasets + torchvision, 0 workers",
    "peer-2": "datasets + torchvision, 2 workers",
}


def ours(data: str, cache: str, resolution: int) -> tuple[Callable, Callable]:
    """(first epoch, later epoch); each returns the number of images that it delivered."""
    import torch

    from hfgen.data import AugmentationArguments, ImageDataArguments, ImageTransform
    from hfgen.data.cached_splits import load_cached
    from hfgen.data.sources import find_source

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"resolution": str(resolution), "validation_fraction": 0, "cache_dir": cache}
    arguments = ImageDataArguments(dataset_name=data, **options)
    source = find_source(arguments, streaming=False)
    transform = ImageTransform(AugmentationArguments(random_flip=True))
    generator = torch.Generator(device).manual_seed(0)
    minus_one, state = torch.tensor(-1.0, device=device), {}

    def later() -> int:
        count = 0
        for indices in torch.randperm(len(state["train"])).split(BATCH):
            batch = state["train"].__getitems__(indices)
            batch = transform({key: value.to(device) for key, value in batch.items()}, generator)
            images = batch["pixel_values"]
            torch.add(minus_one, images, alpha=2, out=images)
            count += min(len(images), len(batch["labels"]))
        return finished(device, count)

    def first() -> int:
        shutil.rmtree(Path(cache) / "hfgen", ignore_errors=True)
        state["train"] = load_cached(arguments, source)["train"]
        return later()

    return first, later


def peer(data: str, cache: str, resolution: int, workers: int) -> tuple[Callable, Callable]:
    """The same for the peer."""
    import datasets
    import torch
    from torchvision import transforms

    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = {}

    options = {"path": "parquet", "data_files": {"train": [data]}} if data.endswith(".parquet") else {"path": data}
    dataset = datasets.load_dataset(**options, cache_dir=cache, split="train")

    mode = dataset[0]["image"].mode  # grey stays grey, which is less work than diffusers' convert("RGB")
    augmentations = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(resolution),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )

    def transform_images(examples):
        images = [augmentations(image.convert(mode)) for image in examples["image"]]
        return {"input": images, "label": examples["label"]}

    dataset.set_transform(transform_images)

    def first() -> int:
        state["loader"] = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        return later()

    def later() -> int:
        count = 0
        for batch in state["loader"]:
            images, labels = batch["input"].to(device), batch["label"].to(device)
            count += min(len(images), len(labels))
        return finished(device, count)

    return first, later


def finished(device: str, count: int) -> int:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return count


def serve(side: str, data: str, cache: str, resolution: int) -> None:
    """Runs epochs on command: reads `first` or `later`, answers with images a second (`start` only waits)."""
    if side == "hfgen-1":
        import torch

        torch.set_num_threads(1)
    if side.startswith("hfgen"):
        first, later = ours(data, cache, resolution)
    else:
        first, later = peer(data, cache, resolution, workers=int(side[-1]))
    epochs = {"start": (lambda: 1, 0.0), "first": (first, 0.0), "later": (later, 1.0)}
    for line in sys.stdin:
        epoch, minimum = epochs[line.strip()]
        count, start = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - start < minimum:
            count += epoch()
        print(count / (time.perf_counter() - start), flush=True)


def ask(process: subprocess.Popen, question: str) -> float | None:
    """What a side answers; None if it is no longer there."""
    try:
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
        return float(process.stdout.readline())
    except (BrokenPipeError, ValueError):
        return None


def compare(name: str, data: Path, resolution: int, peer_python: Path | None, work: Path) -> dict:
    """Interleaves the epochs of all sides; medians over the rounds, in images/s."""
    from hfgen.data import ImageDataArguments
    from hfgen.data.sources import find_source

    cache = work / f"{name}-cache"
    # The Arrow table that both sides start from is made beforehand: neither side's doing, and the same for both.
    find_source(ImageDataArguments(dataset_name=str(data), cache_dir=str(cache)), streaming=False)
    sides = {"hfgen-1": sys.executable, "hfgen-all": sys.executable}
    if peer_python is not None:
        sides |= {"peer-0": peer_python, "peer-2": peer_python}
    processes, messages = {}, {}
    try:
        for side, python in sides.items():
            command = [python, __file__, "--serve", side, str(data), str(cache), str(resolution)]
            messages[side] = open(work / f"{name}-{side}.log", "w+")
            processes[side] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages[side], text=True
            )
        speeds = {side: {"start": [], "first": [], "later": []} for side in sides}
        for turn, epoch in [(0, "start"), *((turn, epoch) for turn in range(ROUNDS) for epoch in ("first", "later"))]:
            for side, process in processes.items():
                answer = ask(process, epoch)
                if answer is None:
                    messages[side].seek(0)
                    raise RuntimeError(f"{NAMES[side]} stopped at {epoch}:\n{messages[side].read()}")
                speeds[side][epoch].append(answer)
                if epoch != "start":
                    say(f"  round {turn + 1}, {epoch} epoch: {answer:10,.0f} images/s  {NAMES[side]}")
    finally:
        for process in processes.values():
            process.stdin.close()  # the end of its questions
            process.wait()
    medians = {
        side: {epoch: statistics.median(values) for epoch, values in by.items() if epoch != "start"}
        for side, by in speeds.items()
    }
    result = {"images_per_second": {side: {k: round(v) for k, v in by.items()} for side, by in medians.items()}}
    if peer_python is not None:
        for epoch in ("first", "later"):
            ours_best = max(medians["hfgen-1"][epoch], medians["hfgen-all"][epoch])
            peers_best = max(medians["peer-0"][epoch], medians["peer-2"][epoch])
            result[f"{epoch}_ratio"] = round(ours_best / peers_best, 2)
    return result


def colour_folder(folder: Path, count: int) -> Path:
    """Smooth random colour JPEGs of 64x64 pixels in four class folders."""
    import numpy as np
    import PIL.Image

    generator = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"class{i % 4}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64), PIL.Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def mnist_part(folder: Path, count: int, work: Path) -> Path:
    """The first `count` rows of MNIST's train.parquet, as a parquet file of their own."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "train.parquet").slice(0, count)
    pq.write_table(table, work / "mnist.parquet")
    return work / "mnist.parquet"


def find_peer() -> Path | None:
    """A Python with datasets and torchvision: this one, or that of an environment of its own."""
    if importlib.util.find_spec("torchvision") is not None:
        return Path(sys.executable)
    torch_version = version("torch").split("+")[0]
    return venv(
        "torchvision", [f"torch=={torch_version}", "torchvision", f"datasets=={version('datasets')}", "pillow"]
    )


def main() -> None:
    peer_python = find_peer()
    if peer_python is None:
        say("without torchvision the peer does not run: hfgen's own figures follow")
    results = {}
    with tempfile.TemporaryDirectory(prefix="hfgen-image-loading-") as temporary:
        work = Path(temporary)
        mnist = data_folder("mnist")
        if mnist is not None:
            say(f"MNIST, the first {IMAGES['mnist']:,} grey images of 28x28, PNG in parquet:")
            data = mnist_part(mnist, IMAGES["mnist"], work)
            results["mnist"] = compare("mnist", data, 28, peer_python, work)
        say(f"colour folder, {IMAGES['colour_64']:,} images of 64x64, JPEG files:")
        data = colour_folder(work / "colour", IMAGES["colour_64"])
        results["colour_64"] = compare("colour_64", data, 64, peer_python, work)
    ratios = dict.fromkeys(("ratio", "first_epoch_ratio"))
    if peer_python is not None:
        ratios["ratio"] = min(result["later_ratio"] for result in results.values())
        ratios["first_epoch_ratio"] = min(result["first_ratio"] for result in results.values())
    finish(**ratios, peer_ran=peer_python is not None, **results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:  # one side, in a process of its own
        side, data, cache, resolution = sys.argv[2:]
        serve(side, data, cache, int(resolution))
    else:
        main()
