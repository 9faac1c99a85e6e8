"""The step, the metrics and what a run publishes."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from vae.helpers import digits, make_trainer, monitor_of, random_images

from hfgen.vae import VAEPipeline, VAETrainer, evaluate_vae
from hfgen.vae.likelihoods import LIKELIHOODS
from hfgen.vae.losses import free_bits_kl, gaussian_kl_per_dimension, iwae_bound, log_importance_weights

ARCHITECTURES = {"mlp": {}, "conv": {"architecture": "conv"}}
GAUSSIANS = {
    f"gaussian {sigma}": {"likelihood": "gaussian", "sigma": sigma} for sigma in ("optimal", "learned", "0.5")
}
OBSERVED = GAUSSIANS | {
    "bernoulli": {"likelihood": "bernoulli"},
    "bernoulli dynamic": {"likelihood": "bernoulli", "binarization": "dynamic"},
    "discretized logistic": {"likelihood": "discretized_logistic"},
}


def losses(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("observed", OBSERVED)
def test_thirty_steps_lower_the_loss_and_move_every_parameter(architecture, observed, tmp_path):
    trainer = make_trainer(tmp_path, steps=30, **ARCHITECTURES[architecture], **OBSERVED[observed])
    before = {name: p.detach().clone() for name, p in trainer.module.named_parameters()}
    trainer.train()
    curve = losses(trainer)
    assert len(curve) == 3 and curve[2] < curve[1] < curve[0]
    assert len(before) > 10
    for name, p in trainer.module.named_parameters():
        # A key's bias adds the same to all of a query's scores: the softmax, and so the loss, does not depend on it.
        if not name.endswith("to_k.bias"):
            assert not torch.equal(p, before[name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("option", ["dropout", "batch_norm", "spectral_norm", "iwae"])
def test_options_train_too(architecture, option, tmp_path):
    if (architecture, option) == ("conv", "batch_norm"):
        return
    options = {
        "dropout": {"dropout": 0.2},
        "iwae": {"objective": "iwae", "num_importance_samples": 3},
    }.get(option, {option: True})
    trainer = make_trainer(tmp_path, steps=30, likelihood="gaussian", **ARCHITECTURES[architecture], **options)
    trainer.train()
    curve = losses(trainer)
    assert curve[2] < curve[1] < curve[0]


class Injected(VAETrainer):
    """Noise from a fixed table."""

    def draw_noise(self, kind, shape):
        generator = torch.Generator().manual_seed(len(kind))
        return (torch.rand if kind == "uniform" else torch.randn)(shape, generator=generator)


def a_batch(trainer, count=16):
    return trainer.prepare_batch(digits().__getitems__(range(count)), None)


def by_hand(trainer, batch):
    """The decoder's output and the posterior, from the VAE alone, with the injected noise."""
    images, samples = batch["pixel_values"], trainer.vae_args.num_importance_samples
    if trainer.vae_args.binarization == "dynamic":
        images = (trainer.draw_noise("uniform", images.shape) < images).float()
    posterior = trainer.module.vae.encode(2 * images - 1).latent_dist
    noise = trainer.draw_noise("normal", (samples, *posterior.mean.shape))
    z = posterior.mean + posterior.std * noise
    output = torch.stack([trainer.module.vae.decode(one).sample for one in z])
    return images, posterior, noise, z, output


@pytest.mark.parametrize("observed", OBSERVED)
def test_the_logged_parts_are_the_elbo_whatever_the_loss_weighs(observed, tmp_path):
    trainer = make_trainer(tmp_path, trainer=Injected, beta=3.0, kl_warmup_steps=10, **OBSERVED[observed])
    trainer.state.global_step = 4
    batch = a_batch(trainer)
    out = trainer.compute_loss(batch)
    images, posterior, _, _, output = by_hand(trainer, batch)
    likelihood = LIKELIHOODS[trainer.vae_args.likelihood]
    log_scale = out[likelihood.scale].log() if likelihood.scale else None
    reconstruction = likelihood.nll(output[0], images, log_scale).mean()
    kl = posterior.kl().mean()
    torch.testing.assert_close(out["reconstruction"], reconstruction)
    torch.testing.assert_close(out["kl"], kl)
    torch.testing.assert_close(out["elbo"], -reconstruction - kl)
    torch.testing.assert_close(out["loss"], reconstruction + 3.0 * 0.4 * kl)
    assert out["kl_weight"].item() == pytest.approx(1.2)
    if observed in ("bernoulli dynamic", "discretized logistic"):
        assert out["bits_per_dim"].item() == pytest.approx((reconstruction + kl).item() / 64 / math.log(2))
    else:
        assert "bits_per_dim" not in out
    if observed == "gaussian optimal":
        assert out["sigma"].item() == pytest.approx((2 * images - 1 - output[0]).square().mean().sqrt().item())
    if observed == "gaussian 0.5":
        assert out["sigma"].item() == pytest.approx(0.5)


def test_free_bits_loss(tmp_path):
    trainer = make_trainer(tmp_path, trainer=Injected, free_bits=0.02, beta=2.0)
    batch = a_batch(trainer)
    out = trainer.compute_loss(batch)
    _, posterior, *_ = by_hand(trainer, batch)
    free = free_bits_kl(gaussian_kl_per_dimension(posterior.mean, posterior.logvar), 0.02)
    assert free > out["kl"]
    torch.testing.assert_close(out["loss"], out["reconstruction"] + 2.0 * free)


def test_iwae_loss(tmp_path):
    trainer = make_trainer(tmp_path, trainer=Injected, objective="iwae", num_importance_samples=7)
    batch = a_batch(trainer)
    out = trainer.compute_loss(batch)
    images, posterior, noise, z, output = by_hand(trainer, batch)
    nll = LIKELIHOODS["bernoulli"].nll(output, images, None)
    assert nll.shape == (7, 16)
    bound = iwae_bound(log_importance_weights(nll, noise, z, posterior.logvar)).mean()
    torch.testing.assert_close(out["loss"], -bound)
    torch.testing.assert_close(out["iw_bound"], bound)
    torch.testing.assert_close(out["elbo"], -(nll.mean() + posterior.kl().mean()))
    assert out["iw_bound"] > out["elbo"]


def test_noise_comes_from_the_steps_generator_alone(tmp_path):
    trainer = make_trainer(tmp_path, binarization="dynamic")
    batch = a_batch(trainer)
    results = []
    for seed, elsewhere in ((1, 0), (1, 5), (2, 0)):
        trainer.generator.manual_seed(seed)
        torch.manual_seed(elsewhere)
        results.append(trainer.compute_loss(batch)["loss"].item())
    assert results[0] == results[1] != results[2]


def test_evaluation_has_the_full_weight_and_counts_active_units(tmp_path):
    trainer = make_trainer(tmp_path, steps=100, likelihood="gaussian", kl_warmup_steps=10**6, beta=2.0)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_reconstruction"] + 2 * metrics["eval_kl"], rel=1e-6)
    data = digits("validation")
    images = data.__getitems__(range(len(data)))["pixel_values"] / 255
    with torch.no_grad():
        mean = trainer.module.vae.eval().encode(2 * images - 1).latent_dist.mean.flatten(1)
    expected = (mean.var(0, correction=0) > 0.01).sum().item()
    assert metrics["eval_active_units"] == expected > 0
    assert metrics == trainer.evaluate() | {"eval_runtime": metrics["eval_runtime"]}
    # The scale is the one that training found, not one fitted to the batch at hand.
    assert metrics["eval_sigma"] == pytest.approx(trainer.module.running_mse.sqrt().item())


def test_the_published_model_scores_as_the_trainer_does(tmp_path):
    training = {"use_ema": True, "per_device_eval_batch_size": 64}
    trainer = make_trainer(
        tmp_path, steps=60, likelihood="discretized_logistic", training=training, eval_importance_samples=20
    )
    trainer.train()
    inside = trainer.evaluate()
    test = trainer.test(digits("validation"))
    options = {"num_importance_samples": 20, "seed": 0, "batch_size": 64}
    outside = evaluate_vae(VAEPipeline.from_pretrained(tmp_path), digits("validation"), **options)
    assert test == {f"test_{name}": value for name, value in outside.items()}
    assert outside["kl"] == pytest.approx(inside["eval_kl"], rel=1e-5)
    assert outside["reconstruction"] == pytest.approx(inside["eval_reconstruction"], rel=0.01)  # other noise
    assert outside["active_units"] == inside["eval_active_units"]
    assert outside["iw_bound"] > outside["elbo"]


def test_the_running_error_follows_and_is_saved(tmp_path):
    trainer = make_trainer(tmp_path, likelihood="gaussian")
    module = trainer.module
    for mse in (4.0, 2.0):
        module.update_mse(torch.tensor(mse))
    assert module.running_mse.item() == pytest.approx(3.0)
    for _ in range(200):
        module.update_mse(torch.tensor(0.25))
    assert module.log_scale.exp().item() == pytest.approx(0.5, rel=1e-3)
    assert {"running_mse", "mse_updates"} <= set(module.state_dict())


def test_a_learned_scale_starts_at_one_and_follows_the_error(tmp_path):
    trainer = make_trainer(tmp_path, steps=150, likelihood="gaussian", sigma="learned")
    assert trainer.module.log_scale.item() == pytest.approx(0.0, abs=1e-5)
    trainer.train()
    sigma, error = losses(trainer, "sigma")[-1], trainer.evaluate()
    assert 0.1 < sigma < 0.65
    assert error["eval_sigma"] == pytest.approx(sigma, rel=0.05)


def test_colour_images_that_are_not_square(tmp_path):
    data = random_images(96, 3, 8, 12)
    for name, options in {"conv": {"architecture": "conv"}, "mlp": {}}.items():
        trainer = make_trainer(tmp_path / name, steps=20, train=data, likelihood="gaussian", **options)
        trainer.train()
        curve = losses(trainer)
        assert curve[1] < curve[0]
        pipeline = VAEPipeline.from_pretrained(tmp_path / name)
        assert pipeline(2).images[0].size == (12, 8)
        assert pipeline.reconstruct(data.__getitems__([0])["pixel_values"], output_type="pt").shape == (1, 3, 8, 12)


def test_a_stream_trains_and_is_measured(tmp_path):
    class Stream:
        name, fingerprint, image_size, num_channels = "digits", "stream", (8, 8), 1

        def micro_batches(self, *, seed, epoch, skip, batch_size, rank, world_size):
            for begin in range(skip, len(digits()) - batch_size + 1, batch_size):
                yield digits().__getitems__(range(begin, begin + batch_size))

    trainer = make_trainer(tmp_path, steps=20, train=Stream(), training={"monitor_steps": 5})
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert VAEPipeline.from_pretrained(tmp_path).vae.config.scaling_factor != 1.0
    assert monitor_of(trainer).measure(trainer)["latent_dimensions"] == 8


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    """Optimal sigma, spectral norm, dropout, the moving average: all have state beside the weights."""
    options = {"likelihood": "gaussian", "spectral_norm": True, "dropout": 0.1}
    training = {"use_ema": True, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 5, "monitor_steps": 2}
    make_trainer(tmp_path / "whole", steps=12, training=training, **options).train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / "parts" / "checkpoint-5")
    resumed = make_trainer(
        tmp_path / "parts", steps=12, training=training | {"resume_from_checkpoint": "true"}, **options
    )
    resumed.train()
    assert resumed.state.log_history[0]["step"] == 10  # the log of step 10 is its first: it did begin at 5
    a, b = (load_file(tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors") for name in ("whole", "parts"))
    assert a and all(torch.equal(a[name], b[name]) for name in a)
    scales = [json.loads((tmp_path / name / "model_index.json").read_text())["scale"] for name in ("whole", "parts")]
    assert scales[0] == scales[1]


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    """With what is shared over the whole batch: the optimal sigma, and which dimensions are free."""
    script = Path(__file__).with_name("helpers.py")
    path = os.pathsep.join([str(script.parents[2]), str(script.parents[1])])
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for processes, size in ((1, 128), (2, 64)):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launcher, str(script), str(tmp_path / str(processes)), str(size)]
        environment = kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr[-3000:]
    a, b = (load_file(tmp_path / n / "vae" / "diffusion_pytorch_model.safetensors") for n in ("1", "2"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)
    logs = [json.loads((tmp_path / n / "trainer_state.json").read_text())["log_history"] for n in ("1", "2")]
    for metric in ("loss", "sigma", "kl"):
        series = [[entry[metric] for entry in log if metric in entry and "alarm" not in entry] for log in logs]
        assert len(series[0]) == 6 and series[0] == pytest.approx(series[1], rel=1e-4)
