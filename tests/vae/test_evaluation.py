"""Bounds against a model whose likelihood is known, and the other measures against their definitions."""

import math

import numpy as np
import pytest
import torch
from vae.helpers import MLP, digits, linear_vae

import hfgen.vae.evaluation as evaluation
from hfgen.data import ImageDataset
from hfgen.vae import VAEArguments, VAEPipeline, build_vae, evaluate_vae
from hfgen.vae.evaluation import StreamedLogMeanExp, active_units, importance_weighted_bound, mutual_information


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_pipeline(exact_posterior):
    """The model, images drawn from it (not cut to [0, 1]: they are numbers like others here), and log p(y)."""
    vae, p = linear_vae(0.6, exact_posterior)
    torch.manual_seed(1)
    y = p.sample((100,))
    images = ((y + 1) / 2).float().view(-1, 1, 3, 4)
    return VAEPipeline(vae, "gaussian", 0.6), images, p.log_prob(y)


def test_with_the_true_posterior_every_weight_is_the_likelihood():
    pipeline, images, log_p = linear_pipeline(exact_posterior=True)
    bound = importance_weighted_bound(pipeline, images, 1, seeded())
    torch.testing.assert_close(bound, log_p, rtol=0, atol=1e-4)


def test_the_bound_rises_to_the_likelihood_from_below():
    pipeline, images, log_p = linear_pipeline(exact_posterior=False)
    samples = (1, 2, 5, 20, 100, 1000)
    bounds = [importance_weighted_bound(pipeline, images, k, seeded(k)).mean().item() for k in samples]
    gaps = [log_p.mean().item() - bound for bound in bounds]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.5 and 0 < gaps[-2] < 0.05 and abs(gaps[-1]) < 0.005


def test_one_sample_is_the_elbo_in_expectation():
    torch.manual_seed(0)
    vae = build_vae(VAEArguments(**MLP), (8, 8), 1).eval()
    pipeline = VAEPipeline(vae, binarization="threshold")
    data = ImageDataset(digits().images[:1].repeat(4000, 0))
    images = pipeline.preprocess(data.__getitems__(range(len(data)))["pixel_values"])
    weights = importance_weighted_bound(pipeline, images, 1, seeded())
    result = evaluate_vae(pipeline, data, seed=1)
    error = weights.std().item() / math.sqrt(len(weights))
    assert error < 0.05
    assert weights.mean().item() == pytest.approx(result["elbo"], abs=5 * error)


def test_the_bound_does_not_fall_with_more_samples():
    torch.manual_seed(0)
    vae = build_vae(VAEArguments(**MLP), (8, 8), 1).eval()
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(8)  # the latents matter
    pipeline = VAEPipeline(vae, binarization="threshold")
    images = pipeline.preprocess(digits().__getitems__(range(400))["pixel_values"])
    bounds = [importance_weighted_bound(pipeline, images, k, seeded(k)).mean().item() for k in (1, 3, 10, 30, 100)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0] + 0.1


def test_streamed_log_mean_exp():
    values = 50 * torch.randn(103, 7, generator=seeded()) - 900
    values[:, 0] = -5000.0
    for sizes in ([103], [1] * 103, [100, 3], [3, 50, 50]):
        stream = StreamedLogMeanExp()
        for chunk in values.split(sizes):
            stream.update(chunk)
        expected = torch.logsumexp(values.double(), 0) - math.log(103)
        torch.testing.assert_close(stream.result(), expected)


@pytest.mark.parametrize("numbers", [12, 12 * 7, 12 * 250])
def test_the_bound_is_the_same_whatever_the_chunks(numbers, monkeypatch):
    """Chunks of one row, of a part of the samples, of several images."""
    pipeline, images, log_p = linear_pipeline(exact_posterior=True)
    monkeypatch.setattr(evaluation, "CHUNK_NUMBERS", numbers)
    decoded = []
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda z: decoded.append(z.shape[0]) or decode(z))
    bound = importance_weighted_bound(pipeline, images[:30], 50, seeded())
    torch.testing.assert_close(bound, log_p[:30], rtol=0, atol=1e-4)
    assert max(decoded) <= numbers // 12 and sum(decoded) == 30 * 50


def test_active_units():
    mean = torch.zeros(4, 3)
    mean[:, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    mean[:, 1] = 5 + 0.09 * mean[:, 0]  # variance 0.0081
    mean[:, 2] = 5 + 0.11 * mean[:, 0]  # variance 0.0121
    assert active_units(mean) == 2


def test_mutual_information_of_a_gaussian_channel():
    """x ~ N(0, 1), z|x ~ N(r x, 1 - r^2): q(z) is the prior, and I = -log(1 - r^2) / 2 for each of two dimensions."""
    x, noise = torch.randn(4000, 2, generator=seeded(0)), torch.randn(4000, 2, generator=seeded(1))
    r = torch.tensor([0.9, 0.5])
    variance = 1 - r.square()
    z = r * x + variance.sqrt() * noise
    estimate = mutual_information(z, r * x, variance.log().expand(4000, 2))
    assert estimate == pytest.approx((-0.5 * variance.log()).sum().item(), abs=0.05)


def test_mutual_information_at_its_ends():
    far = torch.arange(50.0)[:, None] * 100
    assert mutual_information(far, far, torch.zeros(50, 1)) == pytest.approx(math.log(50))
    z = torch.randn(50, 3, generator=seeded())
    assert mutual_information(z, torch.zeros(50, 3), torch.zeros(50, 3)) == pytest.approx(0.0, abs=1e-9)


def test_every_measure_by_its_definition():
    """On the linear model with a whole dataset of bytes."""
    vae, _ = linear_vae(0.6, exact_posterior=False)
    pipeline = VAEPipeline(vae, "gaussian", 0.6)
    images = np.random.default_rng(0).integers(0, 256, (37, 1, 3, 4), dtype=np.uint8)
    result = evaluate_vae(pipeline, ImageDataset(images), num_importance_samples=200, batch_size=10)
    x = torch.from_numpy(images).double().flatten(1) / 255
    y = 2 * x - 1
    encoder, decoder = vae.encoder[0], vae.decoder[0]
    with torch.no_grad():
        mean, logvar = (y.float() @ encoder.weight.T + encoder.bias).double().chunk(2, 1)
        rebuilt = (mean.float() @ decoder.weight.T + decoder.bias).double()
        spread = (decoder.weight.double().square().sum(0) * logvar.exp()).sum(1)  # E |W s noise|^2
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean().item()
    constant = 12 * (math.log(0.6) + 0.5 * math.log(2 * math.pi))
    error = ((y - rebuilt).square().sum(1) + spread).mean().item() / (2 * 0.6**2) + constant
    assert result["kl"] == pytest.approx(kl, rel=1e-5)
    assert result["reconstruction"] == pytest.approx(error, rel=0.15)  # one posterior sample an image
    assert result["elbo"] == pytest.approx(-result["kl"] - result["reconstruction"])
    assert result["iw_bound"] > result["elbo"]
    expected = (x - (rebuilt / 2 + 0.5).clamp(0, 1)).square().mean().item()
    assert result["reconstruction_mse"] == pytest.approx(expected, rel=1e-5)
    assert result["data_mean_mse"] == pytest.approx(x.var(0, correction=0).mean().item(), rel=1e-6)
    assert result["active_units"] == active_units(mean) and result["latent_dimensions"] == 3
    assert 0 < result["mutual_information"] <= math.log(37)
    assert (result["scale"], result["binarization"], result["num_images"]) == (0.6, "none", 37)
    assert result["num_importance_samples"] == 200
    assert not [name for name in result if "bits" in name]  # a density has none
    assert next(iter(result)) == "elbo"


def test_bits_per_dim_where_they_are_defined():
    torch.manual_seed(0)
    vae = build_vae(VAEArguments(**MLP), (8, 8), 1)
    data = ImageDataset(digits().images[:50])
    for likelihood, scale, mode, defined in (
        ("bernoulli", None, "none", False),
        ("bernoulli", None, "dynamic", True),
        ("discretized_logistic", 0.2, "none", True),
    ):
        pipeline = VAEPipeline(vae, likelihood, scale, mode)
        result = evaluate_vae(pipeline, data, num_importance_samples=5)
        assert ("bits_per_dim" in result, "iw_bits_per_dim" in result) == (defined, defined)
        assert result["binarization"] == mode
        if defined:
            assert result["bits_per_dim"] == pytest.approx(-result["elbo"] / 64 / math.log(2))
            assert result["iw_bits_per_dim"] == pytest.approx(-result["iw_bound"] / 64 / math.log(2))
        assert result == evaluate_vae(pipeline, data, num_importance_samples=5)  # a function of the seed
        assert mode == "none" or result["elbo"] != evaluate_vae(pipeline, data, seed=1)["elbo"]
