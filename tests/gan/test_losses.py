"""Each loss against numbers worked out by hand, and what the papers say of the gradients."""

import math

import pytest
import torch

from hfgen.gan.losses import LOSSES, discriminator_accuracy

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.0, 1.0, -3.0])


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


R, F = REAL.tolist(), FAKE.tolist()
BCE = -mean(log_sigmoid(r) for r in R) - mean(log_sigmoid(-f) for f in F)
BY_HAND = {
    "minimax": (BCE, mean(log_sigmoid(-f) for f in F)),
    "non_saturating": (BCE, -mean(log_sigmoid(f) for f in F)),
    "wasserstein": (-2 / 3 - 0.5, 2 / 3),
    "hinge": (mean([0, 2, 0.5]) + mean([1, 2, 0]), 2 / 3),
    "least_squares": (0.5 * (mean([1, 4, 0.25]) + mean([0, 1, 9])), 0.5 * mean([1, 0, 16])),
    "relativistic": (
        -mean(log_sigmoid(r - f) for r, f in zip(R, F, strict=True)),
        -mean(log_sigmoid(f - r) for r, f in zip(R, F, strict=True)),
    ),
}


def test_every_loss_is_worked_out():
    assert BY_HAND.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
def test_values(name):
    loss, (d, g) = LOSSES[name], BY_HAND[name]
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(d, abs=1e-6)
    assert loss.generator(REAL, FAKE).item() == pytest.approx(g, abs=1e-6)
    if not loss.paired:
        assert torch.equal(loss.generator(None, FAKE), loss.generator(REAL, FAKE))


@pytest.mark.parametrize("name", LOSSES)
def test_the_discriminator_parts_the_samples_and_the_generator_moves_its_own_up(name):
    loss = LOSSES[name]
    real = torch.tensor([0.9, -1.0, 0.5], requires_grad=True)
    fake = torch.tensor([0.3, 0.8, -0.5], requires_grad=True)
    loss.discriminator(real, fake).backward()
    assert real.grad.sum() < 0 < fake.grad.sum()
    fake = torch.tensor([-1.0, 0.2, 0.7], requires_grad=True)
    loss.generator(REAL, fake).backward()
    assert (fake.grad < 0).all()


def test_one_sided_smoothing_moves_the_target_of_real_samples_only():
    bce = LOSSES["non_saturating"].discriminator
    # With s, the best logit of a real sample is log((1 - s) / s), not infinity.
    real = torch.full((4,), math.log(0.9 / 0.1), requires_grad=True)
    fake = torch.zeros(4, requires_grad=True)
    bce(real, fake, smoothing=0.1).backward()
    assert real.grad.abs().max() < 1e-7
    expected = torch.zeros(4, requires_grad=True)
    bce(REAL, expected).backward()
    assert torch.equal(fake.grad, expected.grad)
    assert {name for name, loss in LOSSES.items() if loss.smooths_labels} == {"minimax", "non_saturating"}


def test_minimax_saturates_where_the_non_saturating_loss_does_not():
    """Goodfellow et al. 2014, section 3: where D rejects a fake, dL/dlogit is -D(G(z)) -> 0, against D(G(z)) - 1."""
    slopes = {}
    for name in ("minimax", "non_saturating"):
        logit = torch.tensor([-8.0], requires_grad=True)
        LOSSES[name].generator(None, logit).backward()
        slopes[name] = logit.grad.item()
    rejected = 1 / (1 + math.exp(8))
    assert slopes["minimax"] == pytest.approx(-rejected, rel=1e-4)
    assert slopes["non_saturating"] == pytest.approx(rejected - 1, rel=1e-4)


def test_large_logits_stay_finite():
    for loss in LOSSES.values():
        for sign in (1, -1):
            real, fake = torch.tensor([300.0 * sign]), torch.tensor([-300.0 * sign])
            assert torch.isfinite(loss.discriminator(real, fake)) and torch.isfinite(loss.generator(real, fake))


def test_accuracy():
    half_right = (REAL, FAKE)  # real: 2 of 3 above 0; fake: 1 of 3 below
    assert discriminator_accuracy(LOSSES["hinge"], *half_right).item() == pytest.approx(0.5)
    # The boundary of the targets 0 and 1: real 1 of 3 above 0.5; fake 2 of 3 below.
    assert discriminator_accuracy(LOSSES["least_squares"], *half_right).item() == pytest.approx(0.5)
    assert discriminator_accuracy(LOSSES["relativistic"], *half_right).item() == pytest.approx(2 / 3)
    assert discriminator_accuracy(LOSSES["wasserstein"], *half_right).item() == pytest.approx(2 / 3)
