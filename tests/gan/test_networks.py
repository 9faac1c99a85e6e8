"""Shapes, classes, packing, spectral norm, and a round trip of every network through `from_pretrained`."""

import pytest
import torch
from torch import nn

from hfgen.gan.module import GroupDiscriminator
from hfgen.gan.networks import DISCRIMINATORS, GENERATORS
from hfgen.gan.networks.layers import BatchNorm, MinibatchStd, packed
from hfgen.spectral import add_spectral_norm, plain_state_dict

SIZES = {
    "mlp": {"hidden_sizes": [32, 16]},
    "dcgan": {"block_out_channels": [16, 8]},
    "resnet": {"block_out_channels": [16, 8, 8]},
}
IMAGE = {"sample_size": [8, 12]}
VARIANTS = {
    "plain": ({}, {}),
    "batch norm": ({"batch_norm": True}, {"batch_norm": True}),
    "conditional": ({"num_classes": 5}, {"num_classes": 5}),
    "conditional batch norm": ({"num_classes": 5, "batch_norm": True}, {"num_classes": 5, "minibatch_std": True}),
    "dropout, minibatch std": ({}, {"dropout": 0.3, "minibatch_std": True}),
    "packed": ({}, {"packing": 2}),
}


def build(architecture, variant):
    torch.manual_seed(0)
    g, d = VARIANTS[variant]
    generator = GENERATORS[architecture](**IMAGE, out_channels=3, latent_dim=7, **SIZES[architecture], **g)
    discriminator = DISCRIMINATORS[architecture](**IMAGE, in_channels=3, **SIZES[architecture], **d)
    labels = torch.arange(4) if "num_classes" in g else None
    return generator, discriminator, torch.randn(4, 7), labels


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", GENERATORS)
def test_shapes_gradients_and_round_trip(architecture, variant, tmp_path):
    generator, discriminator, latents, labels = build(architecture, variant)
    samples = generator(latents, labels)
    assert samples.shape == (4, 3, 8, 12) and samples.abs().max() <= 1
    logits = discriminator(samples, labels)
    assert logits.shape == (2 if variant == "packed" else 4,)
    logits.square().sum().backward()
    for network in (generator, discriminator):
        parameters = dict(network.named_parameters())
        assert len(parameters) > 3
        assert all(p.grad is not None for p in parameters.values())
    for network, inputs in ((generator.eval(), latents), (discriminator.eval(), samples.detach())):
        folder = tmp_path / type(network).__name__
        network.save_pretrained(folder)
        loaded = type(network).from_pretrained(folder)
        state = loaded.state_dict()
        assert state.keys() == network.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(loaded(inputs, labels), network(inputs, labels))


@pytest.mark.parametrize("architecture", GENERATORS)
def test_classes_matter_and_are_asked_for(architecture):
    generator, discriminator, latents, labels = build(architecture, "conditional")
    samples = generator(latents, labels)
    assert not torch.equal(samples, generator(latents, labels.flip(0)))
    assert not torch.equal(discriminator(samples, labels), discriminator(samples, labels.flip(0)))
    for network, inputs in ((generator, latents), (discriminator, samples)):
        with pytest.raises(ValueError, match="give class_labels, from 0 to 4"):
            network(inputs)
    generator, discriminator, latents, _ = build(architecture, "plain")
    for network, inputs in ((generator, latents), (discriminator, samples)):
        with pytest.raises(ValueError, match="knows no classes"):
            network(inputs, labels)


def test_vectors():
    samples = GENERATORS["mlp"](latent_dim=3, out_channels=2)(torch.randn(5, 3))
    assert samples.shape == (5, 2)
    assert DISCRIMINATORS["mlp"](in_channels=2)(samples).shape == (5,)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
def test_any_power_of_two(resolution):
    blocks = [8] * (resolution.bit_length() - 3)  # down to 4x4
    for architecture, channels in (("dcgan", blocks), ("resnet", [8, *blocks])):
        size = {"sample_size": resolution, "block_out_channels": channels}
        generator = GENERATORS[architecture](**size, out_channels=1, latent_dim=4)
        images = generator(torch.randn(2, 4))
        assert images.shape == (2, 1, resolution, resolution)
        assert DISCRIMINATORS[architecture](**size, in_channels=1)(images).shape == (2,)


def test_a_size_that_can_not_be_halved_is_named():
    with pytest.raises(ValueError, match="2 blocks need sides that 4 divides, not 10x12"):
        GENERATORS["dcgan"](sample_size=[10, 12], block_out_channels=[8, 8])


def test_projection_is_the_inner_product_of_miyato_and_koyama():
    discriminator = DISCRIMINATORS["mlp"](in_channels=2, hidden_sizes=[6], num_classes=3)
    x, labels = torch.randn(4, 2), torch.tensor([0, 2, 1, 2])
    features = discriminator.features(x)
    expected = discriminator.head.linear(features)[:, 0]
    embedding = discriminator.head.embedding.weight
    expected = expected + torch.stack([embedding[y] @ f for f, y in zip(features, labels, strict=True)])
    torch.testing.assert_close(discriminator(x, labels), expected)


def test_conditional_batch_norm_scales_by_class():
    norm = BatchNorm(2, 3, 2)
    with torch.no_grad():
        norm.gain.weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 3.0], [0.0, 0.0]]))
        norm.bias.weight.copy_(torch.tensor([[0.0, 0.0], [0.5, -0.5], [7.0, 8.0]]))
    x = torch.randn(3, 2, 4, 4)
    out = norm(x, torch.tensor([0, 1, 2]))
    plain = nn.BatchNorm2d(2, affine=False)(x)
    torch.testing.assert_close(out[0], plain[0])
    torch.testing.assert_close(out[1, 1], 3 * plain[1, 1] - 0.5)
    assert (out[2, 0] == 7).all() and (out[2, 1] == 8).all()


def test_minibatch_std_sees_that_samples_are_alike():
    layer = MinibatchStd(4)
    alike, different = torch.ones(8, 5), torch.randn(8, 5)
    assert layer(alike).shape == (8, 6)
    assert layer(alike)[:, 5].max() < 1e-3
    groups = different.view(4, 2, 5)
    expected = groups.std(0, correction=0).mean(1)
    torch.testing.assert_close(layer(different)[:, 5], expected.repeat(4), rtol=1e-4, atol=1e-4)
    assert layer(torch.randn(6, 3, 2, 2)).shape == (6, 4, 2, 2), "6 samples make groups of 3"


def test_packs_are_neighbours():
    x = torch.arange(8.0).view(4, 2, 1, 1)
    assert packed(x, 2)[:, :, 0, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("architecture", GENERATORS)
def test_spectral_norm_bounds_the_largest_singular_value_and_folds(architecture, tmp_path):
    _, discriminator, _, labels = build(architecture, "conditional")
    x = torch.randn(4, 3, 8, 12)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(5)
    add_spectral_norm(discriminator)
    for _ in range(50):
        discriminator(x, labels)
    discriminator.eval()
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    layers = [layer for layer in discriminator.modules() if isinstance(layer, kinds)]
    assert len(layers) >= 4
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
    plain = type(discriminator).from_config(discriminator.config)
    plain.load_state_dict(plain_state_dict(discriminator))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x, labels), discriminator(x, labels))


def test_transposed_convolutions_too():
    generator = GENERATORS["dcgan"](sample_size=8, block_out_channels=[8], out_channels=1, latent_dim=4)
    add_spectral_norm(generator)
    for _ in range(50):
        generator(torch.randn(2, 4))
    weight = generator.eval().layers[0].weight.transpose(0, 1)  # torch normalises over the output channels
    assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("variant", ["plain", "packed", "dropout, minibatch std", "batch norm"])
def test_groups_are_judged_as_if_alone(variant):
    _, discriminator, _, _ = build("resnet", variant)
    for layer in discriminator.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.p = 0.0
    groups = [torch.randn(4, 3, 8, 12), 3 + torch.randn(4, 3, 8, 12), torch.randn(4, 3, 8, 12)]
    together = GroupDiscriminator(discriminator)
    assert together.group_by_group == (variant in ("dropout, minibatch std", "batch norm"))
    for logits, group in zip(together(groups), groups, strict=True):
        torch.testing.assert_close(logits, discriminator(group), rtol=1e-4, atol=1e-5)
