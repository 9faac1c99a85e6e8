"""Penalties of discriminators whose gradients are known."""

import pytest
import torch

from hfgen.gan.penalties import consistency, input_gradients, interpolate, one_centered, zero_centered

POINTS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]])


def quadratic(x):
    """Its gradient at x is x * (2, 6)."""
    return x[:, 0] ** 2 + 3 * x[:, 1] ** 2


def test_gradients_of_each_sample():
    a, b = POINTS.clone().requires_grad_(), (2 * POINTS).requires_grad_()
    gradients = input_gradients([quadratic(a), quadratic(b)], [a, b])
    expected = POINTS * torch.tensor([2.0, 6.0])
    torch.testing.assert_close(gradients[0], expected)
    torch.testing.assert_close(gradients[1], 2 * expected)
    assert gradients[0].requires_grad, "the penalty needs a second backward"


def test_images_and_packs_are_flattened():
    images = torch.randn(6, 2, 3, 4, requires_grad=True)
    weight = torch.randn(48)
    logits = images.reshape(3, 48) @ weight
    (gradient,) = input_gradients([logits], [images])
    torch.testing.assert_close(gradient, weight.expand(3, 48))


def test_values():
    x = POINTS.clone().requires_grad_()
    (gradient,) = input_gradients([quadratic(x)], [x])
    squares = [4 + 144, 4 + 9, 324]
    assert zero_centered(gradient).item() == pytest.approx(0.5 * sum(squares) / 3)
    assert one_centered(gradient).item() == pytest.approx(sum((s**0.5 - 1) ** 2 for s in squares) / 3, rel=1e-5)


def test_a_second_backward_reaches_the_weights():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    x = POINTS.clone().requires_grad_()
    (gradient,) = input_gradients([x @ weight], [x])
    zero_centered(gradient).backward()  # ||w||^2 / 2
    torch.testing.assert_close(weight.grad, torch.tensor([3.0, 4.0]))
    weight.grad = None
    (gradient,) = input_gradients([x @ weight], [x])
    one_centered(gradient).backward()  # (||w|| - 1)^2: 2 * (5 - 1) * w / 5
    torch.testing.assert_close(weight.grad, torch.tensor([4.8, 6.4]))


def test_a_gradient_of_zero_has_a_finite_slope():
    weight = torch.zeros(2, requires_grad=True)
    x = POINTS.clone().requires_grad_()
    (gradient,) = input_gradients([x @ weight], [x])
    one_centered(gradient).backward()
    assert torch.isfinite(weight.grad).all()


def test_interpolation():
    real, fake = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    between = interpolate(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert [image.unique().tolist() for image in between] == [[0.0], [0.25], [1.0]]


def test_consistency():
    assert consistency(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.5])).item() == pytest.approx((4 + 0.25) / 2)
