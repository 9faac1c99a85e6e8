"""The alarm is silent on healthy runs and speaks on collapsed ones (its thresholds were set on seeds 0 to 2)."""

import json

import pytest
import torch
from transformers import TrainerCallback
from vae.helpers import make_trainer, monitor_of

SILENT = {
    "bernoulli": {},
    "dynamic": {"binarization": "dynamic", "kl_warmup_steps": 100},
    "optimal sigma": {"likelihood": "gaussian"},
    "learned sigma": {"likelihood": "gaussian", "sigma": "learned", "spectral_norm": True},
    "logistic": {"likelihood": "discretized_logistic", "dropout": 0.1},
    "free bits": {"free_bits": 0.1},
    "iwae": {"objective": "iwae", "num_importance_samples": 5},
    "autoencoder": {"beta": 0.0},
    "many latents": {"likelihood": "gaussian", "latent_dim": 64},
    "conv": {"architecture": "conv", "likelihood": "gaussian"},
}
COLLAPSED = {
    "beta 100": ({"beta": 100.0}, "lower --beta (it is 100)"),
    "beta 100, gaussian": ({"beta": 100.0, "likelihood": "gaussian"}, "lower --beta (it is 100)"),
    # A squared error averaged over 64 pixels, and a KL summed over latents, is the Gaussian with sigma^2 = 32.
    "mean squared error": ({"likelihood": "gaussian", "sigma": "5.66"}, "--sigma optimal"),
    "conv, wide sigma": ({"likelihood": "gaussian", "sigma": "5.66", "architecture": "conv"}, "--sigma optimal"),
    "zeroed encoder": ({"likelihood": "gaussian"}, "--kl_warmup_steps 100"),
    "deaf decoder": ({"likelihood": "discretized_logistic"}, "--free_bits 0.1"),
}


class Looker(TrainerCallback):
    """Measures every few steps."""

    def __init__(self, looks, trainer, steps):
        self.looks, self.trainer, self.steps = looks, trainer, steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.looks.append(monitor_of(self.trainer).measure(self.trainer))
            assert self.trainer.model.training


def train(folder, name, options, seed, steps=400):
    training = {"monitor_steps": 50, "learning_rate": 2e-3}
    trainer = make_trainer(folder, steps=steps, seed=seed, training=training, **options)
    vae = trainer.module.vae
    if name == "zeroed encoder":
        for p in vae.encoder.parameters():
            p.data.zero_()
            p.requires_grad_(False)
    if name == "deaf decoder":
        vae.decoder[0].weight.data.zero_()
        vae.decoder[0].weight.requires_grad_(False)
    trainer.train()
    return trainer


def cases(names):
    """Seed 7 of each, and as slow tests two more seeds and what is convolutional."""
    return [
        pytest.param(name, seed, marks=pytest.mark.slow if seed > 7 or "conv" in name else ())
        for name in names
        for seed in (7, 8, 9)
    ]


@pytest.mark.parametrize(("name", "seed"), cases(SILENT))
def test_healthy_runs_are_silent(name, seed, tmp_path):
    trainer = train(tmp_path, name, SILENT[name], seed, steps=600)
    assert trainer.alarms == []
    values = monitor_of(trainer).measure(trainer)
    assert values["active_units"] > 0 and values["error_ratio"] < 0.85


@pytest.mark.parametrize(("name", "seed"), cases(COLLAPSED))
def test_collapsed_runs_are_named_with_a_remedy(name, seed, tmp_path):
    options, remedy = COLLAPSED[name]
    trainer = train(tmp_path, name, options, seed)
    (alarm,) = trainer.alarms
    assert alarm["alarm"] == "posterior collapse"
    assert remedy in alarm["message"] and "\n" not in alarm["message"]
    assert 200 <= alarm["step"] < 400
    assert alarm["active_units"] == 0 or alarm["error_ratio"] >= 0.97
    assert f"{alarm['active_units']:.0f} of {alarm['latent_dimensions']:.0f} latents are active" in alarm["message"]
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert alarm in log


def test_it_waits_for_the_kl_to_have_its_weight_and_speaks_at_the_end(tmp_path):
    options = {"beta": 100.0, "kl_warmup_steps": 280}
    trainer = train(tmp_path, "", options, seed=7, steps=350)
    assert [alarm["step"] for alarm in trainer.alarms] == [350]
    early = train(tmp_path / "early", "", options, seed=7, steps=200)
    assert early.alarms == []


def test_the_measures_by_their_definitions(tmp_path):
    trainer = train(tmp_path, "", {"likelihood": "gaussian"}, seed=7, steps=100)
    monitor = monitor_of(trainer)
    values = monitor.measure(trainer)
    images = monitor._images(trainer)
    assert images.shape == (256, 1, 8, 8)
    vae = trainer.module.vae.eval()
    with torch.no_grad():
        posterior = vae.encode(2 * images - 1).latent_dist
        rebuilt = (vae.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1)
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).flatten(1).mean(0)
    ratio = (rebuilt - images).square().mean() / (images - images.mean(0)).square().mean()
    assert values["kl"] == pytest.approx(kl.sum().item(), rel=1e-5)
    assert values["max_kl_per_dimension"] == pytest.approx(kl.max().item(), rel=1e-5)
    assert values["error_ratio"] == pytest.approx(ratio.item(), rel=1e-5)
    assert values["active_units"] == (posterior.mean.flatten(1).var(0) > 0.01).sum().item()


def test_looking_changes_nothing(tmp_path):
    """The weights are the same to the bit however often the alarm looks, with everything that could remember it."""
    options = {"likelihood": "gaussian", "spectral_norm": True, "batch_norm": True, "dropout": 0.1}
    states = []
    for steps in (1, 100):
        trainer = make_trainer(tmp_path / str(steps), steps=12, seed=7, **options)
        looks = []
        trainer.add_callback(Looker(looks, trainer, steps))
        trainer.train()
        assert len(looks) == 12 // steps
        states.append(trainer.module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
