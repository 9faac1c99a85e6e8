"""Do the GAN's alarms tell ill runs from healthy ones? A confusion table over runs that are made healthy or ill.

    python benchmarks/gan_alarms.py [folder with mnist/] [2d|digits|mnist ...] [--seeds N] [--quick]

Runs of four kinds on a ring of 8 and a grid of 25 Gaussians, on the embedded 8x8 digits and on MNIST. What a run
became is judged without the alarms' own figures, from where its samples lie among the true modes (the mixture's
centres; for images the classes that another classifier sees, trained with another seed than the embedding):

- healthy: at the end every mode has a quarter of its fair share of the samples or more, and they are good: 40 % of
  points within 3 deviations of a centre, or a Fréchet distance below 15 in the other classifier's features;
- collapsed: at the end at most half of the modes have half of their fair share or more;
- vanished: the generator stands still and is bad: from the middle to the end hardly a sample changed its place, and
  few of them are good;
- unstable: samples of the same noise keep changing: 100 steps later 40 % of them or more belong to another mode, and
  they are not good at the end; or the run ended with a value that is not finite.

A run that did not become what its options are for is listed as unconfirmed and left out. An ill run counts as right
if its own alarm spoke (others may, too: a generator that leaps about covers little at any time), a healthy one if none
did. Thresholds were set on seeds 0 to 9; these are from 100 on. `wrong_2d`, `wrong_images`: shares of confirmed runs
that were judged wrong (targets: 0, and at most 0.05).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections import Counter
from functools import cache

import numpy as np
import torch
from common import data_folder, finish, say
from transformers import TrainerCallback

from hfgen.data import ImageDataArguments, ImageTransform, load_images
from hfgen.errors import BadInput
from hfgen.evaluation import classes, embed, frechet_distance, load_feature_model, near_centres, nearest
from hfgen.gan import GANArguments, GANTrainer, GANTrainingArguments, build_gan
from hfgen.gan.evaluation import to_unit

KINDS = {"healthy": None, "collapsed": "mode collapse", "vanished": "vanishing gradients", "unstable": "instability"}
FIRST_SEED = 100
SAMPLES = 1000
# Of the run: where samples of the same noise are looked at, and again 100 steps later.
LOOKS, LATER = (0.5, 0.65, 0.8), 100
DEVIATION = 0.1
# In the other classifier's features, whose total variance is 64: held-out images are at about 1 (250 digits: 4).
GOOD_FID, BAD_FID = 15.0, 30.0


class Points(torch.utils.data.Dataset):
    """A mixture of Gaussians of deviation 0.1 around `centres` (K, 2), 20,000 draws."""

    name, fingerprint = "points", None

    def __init__(self, centres: torch.Tensor):
        dice = torch.Generator().manual_seed(0)
        self.centres = centres
        index = torch.randint(len(centres), (20_000,), generator=dice)
        self.samples = centres[index] + DEVIATION * torch.randn(20_000, 2, generator=dice)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices) -> dict[str, torch.Tensor]:
        return {"samples": self.samples[torch.as_tensor(np.asarray(indices))]}


def ring() -> torch.Tensor:
    angles = torch.arange(8) * (math.pi / 4)
    return 2 * torch.stack([angles.cos(), angles.sin()], 1)


def grid() -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(-2.0, 3)] * 2)


@cache
def images(name: str, cache_dir: str) -> dict:
    where = "digits" if name == "digits" else str(data_folder("mnist"))
    return load_images(ImageDataArguments(dataset_name=where, cache_dir=cache_dir))


@cache
def judge(name: str, cache_dir: str):
    """Another classifier than the alarms' embedding, and the features of held-out images."""
    splits = images(name, cache_dir)
    model = load_feature_model("auto", splits["train"], cache_dir=cache_dir, seed=99)
    test = splits["test"].select(range(min(len(splits["test"]), 2000)))
    return model, embed(model, test)


@dataclasses.dataclass
class Case:
    """What is trained, and what for."""

    kind: str
    data: str
    name: str
    gan: dict
    training: dict = dataclasses.field(default_factory=dict)


class Looks(TrainerCallback):
    """Keeps samples of the same noise from certain steps."""

    def __init__(self, trainer: GANTrainer, steps: int):
        self.trainer, self.kept = trainer, {}
        self.at = {int(share * steps) + plus for share in LOOKS for plus in (0, LATER)}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.at:
            self.look()

    def look(self) -> None:
        noise = torch.Generator().manual_seed(4)
        self.kept[self.trainer.state.global_step] = self.trainer.sample(SAMPLES, noise).cpu()


def train(case: Case, seed: int, steps: int, cache_dir: str, folder: str) -> tuple[GANTrainer, Looks, bool]:
    """The trained run, its samples, and whether it ended on a value that is not finite."""
    torch.manual_seed(seed)
    gan_args = GANArguments(**{"architecture": "mlp", **case.gan})
    if case.data in ("ring", "grid"):
        dataset, size, channels, transform = Points(ring() if case.data == "ring" else grid()), None, 2, None
    else:
        dataset = images(case.data, cache_dir)["train"]
        size, channels, transform = dataset.image_size, 1, ImageTransform()
    settings = {
        "output_dir": folder,
        "seed": seed,
        "max_steps": steps,
        "per_device_train_batch_size": 64,
        "save_strategy": "no",
        "logging_steps": 10**6,
        "monitor_steps": 100,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = GANTrainingArguments(**settings | case.training)
    networks = build_gan(gan_args, size, channels)
    trainer = GANTrainer(*networks, args, gan_args, dataset, batch_transform=transform, cache_dir=cache_dir)
    looks = Looks(trainer, steps)
    trainer.add_callback(looks)
    trainer.say = lambda line: None
    trainer.save_model = lambda: None
    broke = False
    try:
        trainer.train()
    except BadInput as error:
        broke = "not finite" in str(error)
        if not broke:
            raise
    looks.look()
    return trainer, looks, broke


def where(case: Case, samples: torch.Tensor, cache_dir: str) -> tuple[torch.Tensor, int]:
    """The mode that each sample is of, and how many there are."""
    if case.data in ("ring", "grid"):
        centres = ring() if case.data == "ring" else grid()
        return nearest(samples, centres)[1][:, 0], len(centres)
    return classes(judge(case.data, cache_dir)[0], to_unit(samples)), 10


def quality(case: Case, samples: torch.Tensor, cache_dir: str) -> tuple[float, bool, bool]:
    """A figure, whether it is good, and whether it is bad: the share of points within 3 deviations of a centre, or the
    Fréchet distance to held-out images in the other classifier's features."""
    if case.data in ("ring", "grid"):
        centres = ring() if case.data == "ring" else grid()
        good = near_centres(samples, centres, DEVIATION)["good_samples"]
        return good, good > 0.4, good < 0.25
    model, reals = judge(case.data, cache_dir)
    distance = frechet_distance(reals, embed(model, to_unit(samples)))
    return distance, distance < GOOD_FID, distance > BAD_FID


def truth(case: Case, looks: Looks, broke: bool, steps: int, cache_dir: str) -> dict:
    """What the run turned out to be, by where its samples lie."""
    final = list(looks.kept.values())[-1]
    if broke or not torch.isfinite(final).all():
        return {"became": ["unstable"], "broke": True}
    modes, count = where(case, final, cache_dir)
    shares = torch.bincount(modes, minlength=count).double() / len(modes) * count
    figure, good, bad = quality(case, final, cache_dir)
    pairs = [(int(share * steps), int(share * steps) + LATER) for share in LOOKS]
    at = {step: where(case, samples, cache_dir)[0] for step, samples in looks.kept.items()}
    changed = [(at[a] != at[b]).double().mean().item() for a, b in pairs if b in at]
    middle = looks.kept[pairs[0][0]]
    moved = ((final - middle).square().mean() / data_variance(case.data, cache_dir)).sqrt().item()
    populated = int((shares >= 0.5).sum())
    figures = {
        "populated": populated,
        "least": round(shares.min().item(), 2),
        "quality": round(figure, 3),
        "changed": round(float(np.mean(changed)), 3),
        "moved": round(moved, 3),
    }
    became = []
    if figures["changed"] >= 0.4 and not good:
        became.append("unstable")
    if populated <= count // 2 and not (bad and moved < 0.1):
        became.append("collapsed")
    if bad and moved < 0.1:
        became.append("vanished")
    if good and shares.min() >= 0.25 and not became:
        became.append("healthy")
    return {"became": became, **figures}


@cache
def data_variance(data: str, cache_dir: str) -> float:
    """The mean variance of a point's coordinates, or of a pixel."""
    if data in ("ring", "grid"):
        samples = Points(ring() if data == "ring" else grid()).samples
    else:
        some = images(data, cache_dir)["train"].select(range(1000))
        samples = torch.from_numpy(np.ascontiguousarray(some.images)).float().flatten(1) / 127.5 - 1
    return samples.var(0).mean().item()


COSINE = {"lr_scheduler_type": "cosine"}
STEPS = {"2d": 1500, "digits": 1500, "mnist": 1000}
SEEDS = {"2d": 2, "digits": 2, "mnist": 1}
SLOW = {"learning_rate": 3e-3, **COSINE}


def points_cases() -> list[Case]:
    """Points: healthy runs hold the gradients; a discriminator that learns 60 times slower than the generator makes
    it run after one place; minimax against a discriminator that is far better gives no gradient; and much too long
    steps make both leap."""
    base = {"latent_dim": 16, "hidden_sizes": [128, 128]}
    strong = {"loss": "minimax", "discriminator_learning_rate": 5e-3}
    found = []
    for data in ("ring", "grid"):
        found += [
            Case("healthy", data, "relativistic", base, {"learning_rate": 2e-3, **COSINE}),
            Case("healthy", data, "two time scales", base | LATE, SLOW),
            Case("collapsed", data, "slow D", base | {"loss": "non_saturating", **SLOW_D}, SLOW),
            Case("collapsed", data, "slow D, hinge", base | {"loss": "hinge", **SLOW_D}, SLOW),
            Case("unstable", data, "learning rate", base | {"loss": "non_saturating"}, {"learning_rate": 3e-2}),
            Case("unstable", data, "momentum", base | {"loss": "non_saturating"}, MOMENTUM),
        ]
    # On the grid the first samples lie among the real ones, and no discriminator can be sure.
    for d_steps in (3, 5):
        options = base | strong | {"d_steps": d_steps}
        found.append(Case("vanished", "ring", f"minimax, {d_steps} D steps", options, {"learning_rate": 1e-4}))
    return found


def mnist_cases() -> list[Case]:
    """A fully connected generator does not become healthy on MNIST in so few steps: convolutions do."""
    convolutions = {"architecture": "dcgan", "latent_dim": 32, "block_out_channels": [48, 24]}
    healthy = Case("healthy", "mnist", "convolutions", convolutions, {"learning_rate": 1e-3, **COSINE})
    return [healthy] + [case for case in image_cases("mnist") if case.kind != "healthy"]


def image_cases(data: str) -> list[Case]:
    """Images: as points, with the parts that make the same illness there."""
    base = {"latent_dim": 32, "hidden_sizes": [256, 256]}
    strong = {"loss": "minimax", "d_steps": 3, "discriminator_learning_rate": 3e-3}
    return [
        Case("healthy", data, "relativistic", base, {"learning_rate": 1e-3, **COSINE}),
        Case("healthy", data, "two steps of D", base | {"d_steps": 2}, {"learning_rate": 1e-3, **COSINE}),
        Case("collapsed", data, "slow D", base | {"loss": "non_saturating", **STILL_D}, SLOW),
        Case("vanished", data, "minimax, strong D", base | strong, {"learning_rate": 1e-4}),
        Case("unstable", data, "learning rate", base | {"loss": "non_saturating"}, {"learning_rate": 3e-2}),
        Case("unstable", data, "momentum", base | {"loss": "non_saturating"}, MOMENTUM),
    ]


LATE = {"loss": "non_saturating", "discriminator_learning_rate": 1e-3}
SLOW_D, STILL_D = {"discriminator_learning_rate": 5e-5}, {"discriminator_learning_rate": 1e-5}
MOMENTUM = {"learning_rate": 1e-2, "adam_beta1": 0.9}


def cases() -> dict[str, list[Case]]:
    """By group, what is run with each seed."""
    return {"2d": points_cases(), "digits": image_cases("digits"), "mnist": mnist_cases()}


def run(case: Case, seed: int, steps: int, cache_dir: str) -> dict:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer, looks, broke = train(case, seed, steps, cache_dir, folder)
        found = truth(case, looks, broke, steps, cache_dir)
    heard = list(dict.fromkeys(entry["alarm"] for entry in trainer.alarms))
    confirmed = case.kind in found["became"]
    right = not heard if case.kind == "healthy" else KINDS[case.kind] in heard
    first = {name: next(e["step"] for e in trainer.alarms if e["alarm"] == name) for name in heard}
    say(
        f"{case.data} {case.kind} ({case.name}) seed {seed}: {'right' if right else 'WRONG'}"
        f"{'' if confirmed else ', unconfirmed'}; heard {first or 'nothing'}; {found}; "
        f"{time.perf_counter() - begin:.0f} s"
    )
    return {
        "kind": case.kind,
        "data": case.data,
        "name": case.name,
        "seed": seed,
        "confirmed": confirmed,
        "right": right,
        "heard": heard,
        "truth": found,
    }


def table(results: list[dict]) -> dict[str, dict[str, int]]:
    """By kind: how many runs, in how many of them each alarm spoke, and in how many none."""
    rows = {}
    for kind in KINDS:
        of_kind = [r for r in results if r["kind"] == kind]
        heard = Counter(alarm for r in of_kind for alarm in r["heard"] or ["silent"])
        rows[kind] = {"runs": len(of_kind), **heard, "wrong": sum(not r["right"] for r in of_kind)}
    return rows


def wrong(results: list[dict]) -> float:
    return sum(not r["right"] for r in results) / max(1, len(results))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*", help="folder with mnist/; 2d, digits, mnist")
    parser.add_argument("--seeds", type=int, default=0, help="seeds of each case; 0: 2 of points, 1 of images")
    parser.add_argument("--quick", action="store_true", help="a trial: one case of each kind and a third of the steps")
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    options = parser.parse_args()
    groups = [word for word in options.words if word in STEPS] or list(STEPS)
    if "mnist" in groups and data_folder("mnist") is None:
        groups.remove("mnist")
    results = []
    with tempfile.TemporaryDirectory() as cache_dir:
        for group in groups:
            steps, chosen = STEPS[group], cases()[group]
            if options.quick:
                steps, chosen = steps // 3, list({case.kind: case for case in chosen}.values())
            for number in range(options.seeds or SEEDS[group]):
                for case in chosen:
                    results.append(run(case, options.first_seed + number, steps, cache_dir))
    confirmed = [r for r in results if r["confirmed"]]
    points = [r for r in confirmed if r["data"] in ("ring", "grid")]
    pictures = [r for r in confirmed if r not in points]
    tables = {"2d": table(points), "images": table(pictures)}
    for name, rows in tables.items():
        for kind, row in rows.items():
            say(f"{name} {kind}: {row}")
    finish(
        wrong_2d=wrong(points),
        wrong_images=wrong(pictures),
        runs=len(confirmed),
        unconfirmed=[f"{r['data']} {r['kind']} ({r['name']}) seed {r['seed']}" for r in results if not r["confirmed"]],
        table=tables,
    )


if __name__ == "__main__":
    main()
