"""Every loss against values worked out by hand, or against the definition in double precision."""

import math

import pytest
import torch

from hfgen.vae.likelihoods import LIKELIHOODS, binarize
from hfgen.vae.losses import (
    bernoulli_nll,
    bits_per_dim,
    discretized_logistic_nll,
    free_bits_kl,
    gaussian_kl,
    gaussian_kl_per_dimension,
    gaussian_nll,
    iwae_bound,
    kl_weight,
    log_importance_weights,
    optimal_log_sigma,
    squared_error,
)

LN2 = math.log(2)


def image(*values):
    """(1, 1, 1, n)."""
    return torch.tensor(values).view(1, 1, 1, -1)


def test_gaussian_kl_by_hand():
    # 0.5 (m^2 + v - 1 - log v): (m=1, v=1) -> 0.5; (m=0, v=4) -> 0.5 (3 - log 4); (0, 1) -> 0.
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    logvar = torch.tensor([[0.0, math.log(4)], [0.0, 0.0]])
    expected = torch.tensor([[0.5, 1.5 - LN2], [0.0, 0.0]])
    torch.testing.assert_close(gaussian_kl_per_dimension(mean, logvar), expected)
    torch.testing.assert_close(gaussian_kl(mean[:, :, None, None], logvar[:, :, None, None]), expected.sum(1))


def test_gaussian_kl_is_the_distributions():
    mean, logvar = torch.randn(5, 7), torch.randn(5, 7)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    p = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(gaussian_kl(mean, logvar), torch.distributions.kl_divergence(q, p).sum(1))


def test_bernoulli_by_hand():
    # Probabilities 1/2 and 3/4, pixels 1 and 0: log 2 + log 4.
    nll = bernoulli_nll(image(0.0, math.log(3)), image(1.0, 0.0))
    torch.testing.assert_close(nll, torch.tensor([3 * LN2]))


def test_bernoulli_sums_over_pixels_and_keeps_the_leading_dimensions():
    logits, images = torch.randn(4, 3, 2, 5, 6), torch.rand(3, 2, 5, 6).round()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.double(), images.double().expand(logits.shape), reduction="none"
    )
    torch.testing.assert_close(bernoulli_nll(logits, images), expected.sum((-3, -2, -1)).float(), rtol=1e-5, atol=1e-5)


def test_bernoulli_is_stable_far_out():
    torch.testing.assert_close(bernoulli_nll(image(200.0, -300.0), image(0.0, 1.0)), torch.tensor([500.0]))
    torch.testing.assert_close(bernoulli_nll(image(200.0, -300.0), image(1.0, 0.0)), torch.tensor([0.0]))


def test_gaussian_by_hand():
    # Pixel 1 is y = 1; mean 0.5, sigma 2: (0.5 / 2)^2 / 2 + log 2 + log(2 pi) / 2. Pixel 0.5 is y = 0 = its mean.
    nll = gaussian_nll(image(0.5, 0.0), image(1.0, 0.5), torch.tensor(LN2))
    torch.testing.assert_close(nll, torch.tensor([0.03125 + 2 * LN2 + math.log(2 * math.pi)]))


def test_gaussian_is_the_density_of_y():
    mean, images, log_sigma = torch.randn(3, 2, 4, 4), torch.rand(3, 2, 4, 4), torch.tensor(-0.7)
    density = torch.distributions.Normal(mean, log_sigma.exp()).log_prob(2 * images - 1)
    torch.testing.assert_close(gaussian_nll(mean, images, log_sigma), -density.sum((1, 2, 3)))


def test_optimal_sigma_is_the_root_of_the_error_and_the_best_there_is():
    mean, images = torch.tensor([[[[0.5]]], [[[0.0]]]]), torch.tensor([[[[1.0]]], [[[0.0]]]])  # errors 0.5 and -1
    mse = squared_error(mean, images)
    assert mse.item() == pytest.approx((0.25 + 1) / 2)
    log_sigma = optimal_log_sigma(mse, -6.0)
    assert log_sigma.exp().item() == pytest.approx(math.sqrt(0.625))
    best = gaussian_nll(mean, images, log_sigma).sum()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert gaussian_nll(mean, images, log_sigma + math.log(factor)).sum() > best


def test_optimal_sigma_may_be_detached_and_has_a_floor():
    images = torch.rand(6, 1, 3, 3)
    mean = torch.randn(6, 1, 3, 3, requires_grad=True)
    mse = squared_error(mean, images)
    (through,) = torch.autograd.grad(gaussian_nll(mean, images, optimal_log_sigma(mse, -6.0)).sum(), mean)
    fixed = optimal_log_sigma(mse.detach(), -6.0)
    (detached,) = torch.autograd.grad(gaussian_nll(mean, images, fixed).sum(), mean)
    torch.testing.assert_close(through, detached)
    assert optimal_log_sigma(torch.zeros(()), -6.0).item() == -6.0


LEVELS = torch.arange(256).div(255).view(256, 1, 1, 1)


@pytest.mark.parametrize("mean", [0.0, 0.3, -1.0, 1.7, -40.0])
@pytest.mark.parametrize("log_scale", [-7.0, -4.0, 0.0, 3.0])
def test_the_masses_of_the_256_levels_sum_to_one(mean, log_scale):
    means = torch.full((256, 1, 1, 1), mean, dtype=torch.float64)
    nll = discretized_logistic_nll(means, LEVELS.double(), torch.tensor(log_scale, dtype=torch.float64))
    assert nll.shape == (256,)
    assert torch.exp(-nll).sum().item() == pytest.approx(1.0, abs=1e-9)


def test_discretized_logistic_by_hand():
    sigmoid = torch.sigmoid
    # Level 128 is y = 1/255, its bin [0, 2/255]; level 0's bin ends at y = -254/255, level 255's begins at 254/255.
    edges = torch.tensor([2 / 255, -254 / 255, 254 / 255], dtype=torch.float64) / 0.5
    masses = torch.stack([sigmoid(edges[0]) - 0.5, sigmoid(edges[1]), 1 - sigmoid(edges[2])])
    images = torch.tensor([128 / 255, 0.0, 1.0]).view(3, 1, 1, 1)
    nll = discretized_logistic_nll(torch.zeros(3, 1, 1, 1), images, torch.tensor(math.log(0.5)))
    torch.testing.assert_close(nll, -masses.log().float())
    assert nll.tolist() == pytest.approx([5.541, 2.121, 2.121], abs=1e-3)


def test_discretized_logistic_in_the_far_tail_has_a_value_and_a_gradient():
    mean = torch.full((2, 1, 1, 1), 5.0, requires_grad=True)
    nll = discretized_logistic_nll(mean, torch.tensor([0.0, 0.5]).view(2, 1, 1, 1), torch.tensor(-7.0))
    # -log sigmoid(a) = -a there: a = (y + 1/255 - mean) e^7; inside, log(1 - e^-delta) adds, delta = 2/255 e^7.
    delta = 2 / 255 * math.exp(7)
    y = round(0.5 * 255) * 2 / 255 - 1
    expected = [(6 - 1 / 255) * math.exp(7), (5 - y - 1 / 255) * math.exp(7) - math.log(-math.expm1(-delta))]
    assert nll.tolist() == pytest.approx(expected, rel=1e-5)
    nll.sum().backward()
    assert mean.grad.flatten().tolist() == pytest.approx([math.exp(7)] * 2, rel=1e-4)


def test_discretized_logistic_takes_the_nearest_level():
    mean, log_scale = torch.zeros(1, 1, 1, 1), torch.tensor(-3.0)
    between = discretized_logistic_nll(mean, image(100.3 / 255), log_scale)
    assert between == discretized_logistic_nll(mean, image(100 / 255), log_scale)
    assert between != discretized_logistic_nll(mean, image(101 / 255), log_scale)


def test_free_bits_by_hand():
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)  # means 0.2 and 3
    loss = free_bits_kl(kl, 0.5)
    assert loss.item() == pytest.approx(0.5 + 3.0)
    loss.backward()
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))


def test_free_bits_are_decided_by_the_whole_batch():
    kl = torch.tensor([[0.1, 2.0]])
    assert free_bits_kl(kl, 0.5, batch_mean=torch.tensor([0.7, 0.2])).item() == pytest.approx(0.1 + 0.5)


def test_iwae_bound_by_hand():
    log_weights = torch.tensor([[1.0, 2.0], [3.0, 2.0]]).log()  # (K=2, B=2); mean weights 2 and 2
    torch.testing.assert_close(iwae_bound(log_weights), torch.tensor([2.0, 2.0]).log())
    torch.testing.assert_close(iwae_bound(log_weights[:1]), log_weights[0])
    assert iwae_bound(torch.full((4, 1), -5000.0)).item() == -5000.0


def test_log_importance_weights_are_the_densities():
    mean, logvar = torch.randn(3, 5, 1, 1), torch.randn(3, 5, 1, 1)
    noise, nll = torch.randn(4, 3, 5, 1, 1), torch.rand(4, 3)
    std = (0.5 * logvar).exp()
    z = mean + std * noise
    normal = torch.distributions.Normal
    expected = normal(0.0, 1.0).log_prob(z) - normal(mean, std).log_prob(z)
    weights = log_importance_weights(nll, noise, z, logvar)
    torch.testing.assert_close(weights, expected.flatten(2).sum(2) - nll)


def test_kl_weight():
    assert [kl_weight(step, 4.0, 10) for step in (0, 5, 10, 20)] == [0.0, 2.0, 4.0, 4.0]
    assert kl_weight(0, 0.5, 0) == 0.5


def test_bits_per_dim():
    assert bits_per_dim(-784 * LN2, 784) == pytest.approx(1.0)


def test_expected_images_and_where_bits_are_defined():
    output = torch.tensor([-3.0, 0.0, 0.5, 3.0])
    torch.testing.assert_close(LIKELIHOODS["bernoulli"].mean(output), torch.sigmoid(output))
    for name in ("gaussian", "discretized_logistic"):
        torch.testing.assert_close(LIKELIHOODS[name].mean(output), torch.tensor([0.0, 0.5, 0.75, 1.0]))
    defined = {
        (name, mode): likelihood.has_bits_per_dim(mode)
        for name, likelihood in LIKELIHOODS.items()
        for mode in ("none", "dynamic")
    }
    assert [key for key, value in defined.items() if value] == [
        ("bernoulli", "dynamic"),
        ("discretized_logistic", "none"),
        ("discretized_logistic", "dynamic"),
    ]


def test_binarization():
    images = torch.tensor([0.0, 0.4, 0.5, 0.6, 1.0])
    assert binarize(images, "none") is images
    assert binarize(images, "threshold").tolist() == [0, 0, 0, 1, 1]
    assert binarize(images, "dynamic", torch.tensor([0.0, 0.39, 0.6, 0.6, 0.999])).tolist() == [0, 1, 0, 0, 1]
    uniform = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(0))
    drawn = binarize(images.expand(20_000, 5), "dynamic", uniform).mean(0)
    torch.testing.assert_close(drawn, images, rtol=0, atol=0.015)
