"""hfgen against pythae 0.1.2: the same VAE (784-512-16, BCE), batch and data; then the test ELBO at equal wall-clock.

    python benchmarks/vae_vs_pythae.py [folder with mnist/]

pythae runs in an environment of its own with the same torch. The two take turns, two epochs each; `ratio` is the
median of our samples a second over pythae's (target: 1.4). Then pythae trains for 10 epochs and hfgen for as many
steps as fit into the same time with a margin (with a cosine schedule and a moving average, two flags here), both at a
(peak) learning rate of 1e-3; both are measured on the 10,000 test images (grey pixels, one posterior sample: pythae's
own loss).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import data_folder, finish, median_ratio, say
from peer import venv

from hfgen.arguments import TrainingArguments
from hfgen.data import ImageDataArguments, ImageTransform, load_images
from hfgen.vae import VAEArguments, VAETrainer, build_vae

BATCH, TURNS, EPOCHS_A_TURN, EPOCHS = 128, 4, 2, 10

# Runs in pythae's environment: sys.argv = images.npz, epochs, batch. The time is that of its own train().
PEER = """
import json, os, sys, tempfile, time
import numpy as np, torch
torch.set_num_threads(len(os.sched_getaffinity(0)))
from pythae.models import VAE, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.data.datasets import BaseDataset, DatasetOutput

data = np.load(sys.argv[1])
def dataset(x):
    x = torch.from_numpy(x).float() / 255
    return BaseDataset(x, torch.ones(len(x)))
model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=16, reconstruction_loss="bce"))
config = BaseTrainerConfig(
    output_dir=tempfile.mkdtemp(), num_epochs=int(sys.argv[2]), per_device_train_batch_size=int(sys.argv[3]),
    optimizer_cls="AdamW", optimizer_params={"weight_decay": 0.0}, learning_rate=1e-3, no_cuda=True,
)
trainer = BaseTrainer(model, dataset(data["train"]), training_config=config)
begin = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - begin
model.eval()
test = torch.from_numpy(data["test"]).float() / 255
with torch.no_grad():
    loss = np.mean([model(DatasetOutput(data=x)).loss.item() for x in test.split(1000)])
layers = sorted(tuple(p.shape) for p in model.parameters() if p.ndim == 2)
print(json.dumps({"seconds": seconds, "elbo": -loss, "layers": layers}))
"""


def peer_run(python: Path, images: Path, epochs: int) -> dict:
    done = subprocess.run(
        [python, "-c", PEER, images, str(epochs), str(BATCH)], capture_output=True, text=True, cwd=images.parent
    )
    if done.returncode:
        raise SystemExit(f"pythae failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def our_run(images: dict, steps: int, **options) -> dict:
    vae_args = VAEArguments(latent_dim=16, hidden_sizes=[512])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=f"{folder}/run",
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            eval_strategy="no",
            save_strategy="no",
            seed=0,
            **options,
        )
        torch.manual_seed(0)
        vae = build_vae(vae_args, (28, 28), 1)
        layers = sorted(tuple(p.shape) for p in vae.parameters() if p.ndim == 2)
        trainer = VAETrainer(vae, args, vae_args, images["train"], batch_transform=ImageTransform())
        trainer.train()
        seconds = trainer.state.log_history[-1]["train_runtime"]
        return {"seconds": seconds, "elbo": trainer.evaluate(images["test"])["eval_elbo"], "layers": layers}


def main() -> None:
    folder = data_folder("mnist")
    if folder is None:
        raise SystemExit("this benchmark needs MNIST")
    say("preparing pythae's environment")
    python = venv("pythae", ["pythae==0.1.2", f"torch=={torch.__version__.split('+')[0]}"])
    if python is None:
        say("pythae could not be installed: the peer did not run")
        finish(ratio=None)
        sys.exit(1)
    images = load_images(ImageDataArguments(dataset_name=str(folder), validation_fraction=0))
    count = len(images["train"])
    with tempfile.TemporaryDirectory() as temporary:
        arrays = Path(temporary) / "mnist.npz"
        np.savez(arrays, **{split: np.asarray(images[split].images) for split in ("train", "test")})
        ours, peers = [], []
        steps = count // BATCH * EPOCHS_A_TURN
        for turn in range(TURNS):
            peer, our = peer_run(python, arrays, EPOCHS_A_TURN), our_run(images, steps)
            # The same matrices: pythae has mean and log variance as two layers of 16, we as one of 32.
            assert sum(a * b for a, b in peer["layers"]) == sum(a * b for a, b in our["layers"])
            peers.append(count * EPOCHS_A_TURN / peer["seconds"])
            ours.append(steps * BATCH / our["seconds"])
            say(f"turn {turn}: pythae {peers[-1]:.0f}, hfgen {ours[-1]:.0f} samples/s")
        say(f"equal wall-clock: pythae for {EPOCHS} epochs")
        peer = peer_run(python, arrays, EPOCHS)
        steps = int(peer["seconds"] * statistics.median(ours) / BATCH * 0.9)
        say(f"  pythae: {peer['seconds']:.1f} s, test ELBO {peer['elbo']:.2f}; hfgen for {steps} steps")
        our = our_run(images, steps, lr_scheduler_type="cosine", use_ema=True)
        say(f"  hfgen: {our['seconds']:.1f} s, test ELBO {our['elbo']:.2f}")
    finish(
        ratio=median_ratio(ours, peers),
        ours_samples_per_second=statistics.median(ours),
        pythae_samples_per_second=statistics.median(peers),
        ours_elbo=our["elbo"],
        pythae_elbo=peer["elbo"],
        ours_seconds=our["seconds"],
        pythae_seconds=peer["seconds"],
    )


if __name__ == "__main__":
    main()
