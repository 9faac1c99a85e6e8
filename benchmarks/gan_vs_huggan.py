"""hfgen against HugGAN's DCGAN script (Hugging Face, community-events): the same networks, loss and batch, samples/s.

    python benchmarks/gan_vs_huggan.py [folder with mnist/]

HugGAN's huggan/pytorch/dcgan/train.py runs from its public repository in an environment of its own, on the same torch
and Accelerate. It was written for older ones and for the Hub: `fp16` is kept from Accelerate, and the Inception
network, wandb and the Hub's mixin are stand-ins that do nothing. Both train a DCGAN for 64 x 64 colour images on the
same 2,560 digits; the peer's second epoch is timed, of hfgen all but the start. hfgen also keeps a moving average and
watches with its monitors. `ratio` is hfgen's samples/s over the script's, in turns (medians).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from common import data_folder, finish, median_ratio, say
from gan_vs_bare import our_turn
from peer import repository, venv

from hfgen.data import ImageDataArguments, load_images
from hfgen.evaluation import load_feature_model

BATCH, HIDDEN, IMAGES, EPOCHS, TURNS = 128, 16, 2560, 3, 3
OPTIONS = {
    "architecture": "dcgan",
    "block_out_channels": [8 * HIDDEN, 4 * HIDDEN, 2 * HIDDEN, HIDDEN],
    "latent_dim": 100,
    "loss": "non_saturating",
    "discriminator_batch_norm": True,
}

# sys.argv = the clone, a folder of parquet files, images, batch, hidden size, an empty folder.
PEER = """
import json, os, sys, time, types
clone, data, count, batch, hidden, output = sys.argv[1:]
import accelerate, datasets, torch, torchvision  # before the stand-ins: they look for wandb
torch.set_num_threads(len(os.sched_getaffinity(0)))
ends = []
def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
def epoch_ended(*_):
    ends.append(time.perf_counter())
    return 0.0
stand_in("wandb")
stand_in("huggan")
stand_in("huggan.pytorch")
stand_in("huggan.pytorch.metrics")
stand_in("huggan.pytorch.metrics.inception", InceptionV3=torch.nn.Identity)
stand_in("huggan.pytorch.metrics.fid_score", calculate_fretchet=epoch_ended)
stand_in("huggan.pytorch.huggan_mixin", HugGANModelHubMixin=object)
Accelerator, load = accelerate.Accelerator, datasets.load_dataset
accelerate.Accelerator = lambda fp16=None, **options: Accelerator(**options)
def some(name):
    train = load("parquet", data_files={"train": data + "/train*.parquet"}, split="train")
    return datasets.DatasetDict(train=train.select(range(int(count))))
datasets.load_dataset = some
sys.path.insert(0, clone + "/huggan/pytorch/dcgan")
import train
sys.argv = ["train.py", "--batch_size", batch, "--num_epochs", "2", "--cpu", "--output_dir", output]
sys.argv += ["--generator_hidden_size", hidden, "--discriminator_hidden_size", hidden]
train.training_function({}, train.parse_args())
print(json.dumps({"seconds": ends[1] - ends[0]}))
"""


def peer_turn(python: Path, clone: Path, data: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-c", PEER, clone, data, str(IMAGES), str(BATCH), str(HIDDEN), folder]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"HugGAN's script failed:\n{done.stderr[-2000:]}")
    return IMAGES / json.loads(done.stdout.splitlines()[-1])["seconds"]


def main() -> None:
    folder = data_folder("mnist")
    if folder is None:
        raise SystemExit("this benchmark needs MNIST")
    clone = repository("community-events", "https://github.com/huggingface/community-events")
    names = [f"torch=={torch.__version__.split('+')[0]}", "torchvision", "accelerate==1.15.0", "datasets>=5,<6"]
    python = venv("huggan", names)
    if clone is None or python is None:
        finish(ratio=None)
        raise SystemExit(1)
    images = load_images(ImageDataArguments(dataset_name=str(folder), resolution="64", channels=3))["train"]
    dataset = images.select(range(IMAGES))
    features = load_feature_model("auto", dataset)
    ours, peers = [], []
    for turn in range(TURNS):
        peers.append(peer_turn(python, clone, folder))
        steps = EPOCHS * IMAGES // BATCH
        ours.append(our_turn(dataset, features, OPTIONS, steps, BATCH, adam_beta1=0.5, adam_beta2=0.999))
        say(f"turn {turn}: HugGAN {peers[-1]:.0f}, hfgen {ours[-1]:.0f} samples/s")
    finish(
        ratio=median_ratio(ours, peers),
        ours_samples_per_second=statistics.median(ours),
        huggan_samples_per_second=statistics.median(peers),
    )


if __name__ == "__main__":
    main()
