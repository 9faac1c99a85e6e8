"""What the options exclude, each in one line that names it."""

import pytest
import torch
from gan.small import digits, make_trainer

from hfgen.errors import BadInput
from hfgen.gan import GANArguments, GANTrainingArguments, build_gan

REFUSED = [
    ({"latent_dim": 0}, "--latent_dim is 0; it must be at least 1"),
    ({"d_steps": 0}, "--d_steps is 0"),
    ({"dropout": 1.0}, "--dropout is 1.0"),
    ({"label_smoothing": 0.1}, "--label_smoothing: relativistic has no labels"),
    ({"loss": "wasserstein"}, "wasserstein needs --gradient_penalty one_centered, or --weight_clip"),
    ({"weight_clip": 0.1}, "--weight_clip belongs to --loss wasserstein, not relativistic"),
    ({"loss": "wasserstein", "weight_clip": 0.1, "spectral_norm": "both"}, "neither --gradient_penalty nor"),
    ({"gradient_penalty_weight": 1.0}, "--gradient_penalty_weight does nothing without --gradient_penalty"),
    ({"penalty_every": 4, "loss": "hinge"}, "--penalty_every does nothing without a gradient penalty"),
    ({"penalty_decay": 0.1, "loss": "hinge"}, "--penalty_decay does nothing without a gradient penalty"),
    ({"penalty_decay": 0.0}, "--penalty_decay is 0.0; it must be above 0 and at most 1"),
    ({"discriminator_batch_norm": True}, "a gradient penalty is of one sample at a time"),
    ({"instance_noise_steps": 5}, "does nothing without --instance_noise"),
    ({"consistency_weight": 1.0}, "does nothing without --consistency"),
    ({"augment_policy": ["colour"]}, "--augment_policy colour: known are none, color, translation, cutout, ada"),
    ({"augment_policy": ["ada", "color"]}, "none and ada stand alone"),
    ({"ada_target": 0.5}, "--ada_target does nothing without --augment_policy ada"),
    ({"architecture": "mlp", "block_out_channels": [8]}, "--block_out_channels does nothing with --architecture mlp"),
    ({"architecture": "dcgan", "layers_per_block": 2}, "--layers_per_block does nothing with --architecture dcgan"),
    ({"hidden_sizes": [8]}, "--hidden_sizes does nothing with --architecture resnet"),
    ({"packing": 2, "class_conditional": True}, "--packing judges samples of several classes together"),
    ({"generator_name_or_path": "x"}, "go together: give both"),
    (
        {"generator_name_or_path": "x", "discriminator_name_or_path": "y", "latent_dim": 3},
        "--latent_dim is part of the networks that --generator_name_or_path names",
    ),
    ({"r1_weight": -1.0}, "--r1_weight is -1.0"),
    ({"block_out_channels": []}, "--block_out_channels is \\[\\]; it must be one number at least"),
]


@pytest.mark.parametrize(("options", "line"), REFUSED)
def test_refused(options, line):
    with pytest.raises(BadInput, match=line):
        GANArguments(**options)


def test_the_penalties_of_the_default_loss():
    assert GANArguments().penalty_weights(images=True) == (5.0, 5.0)
    assert GANArguments().penalty_weights(images=False) == (0.1, 0.1)
    assert GANArguments(r1_weight=0.5, r2_weight=0).penalty_weights(images=True) == (0.5, 0)
    assert GANArguments(loss="hinge").penalty_weights(images=True) == (0.0, 0.0)


def test_training_defaults():
    args = GANTrainingArguments()
    assert (args.adam_beta1, args.adam_beta2, args.use_ema) == (0.0, 0.99, True)


def test_networks_fit_the_data_or_say_what_would():
    build_gan(GANArguments(block_out_channels=[8, 8, 8]), (28, 28), 1)
    with pytest.raises(BadInput, match="images of 28x28 .* 1/8; use fewer channels, or --resolution 24 or 32"):
        build_gan(GANArguments(architecture="dcgan", block_out_channels=[8, 8, 8]), (28, 28), 1)
    with pytest.raises(BadInput, match="--architecture resnet makes images: use --architecture mlp"):
        build_gan(GANArguments(), None, 2)
    with pytest.raises(BadInput, match="--class_conditional needs labels"):
        build_gan(GANArguments(class_conditional=True), (8, 8), 1, None)


@pytest.mark.parametrize(
    ("architecture", "size", "channels"),
    [
        ("resnet", (28, 28), [128, 64, 32]),
        ("resnet", (64, 64), [256, 256, 128, 64, 32]),
        ("resnet", (64, 96), [256, 256, 128, 64, 32]),
        ("resnet", (15, 15), [32]),
        ("dcgan", (28, 28), [64, 32]),
        ("dcgan", (8, 8), [32]),
    ],
)
def test_networks_reach_down_to_few_pixels_by_default(architecture, size, channels):
    generator, discriminator = build_gan(GANArguments(architecture=architecture), size, 3)
    assert generator.config.block_out_channels == discriminator.config.block_out_channels == channels
    assert generator.base[0] == channels[0] and max(generator.base[1:]) <= 16
    assert generator(torch.randn(2, 64)).shape == (2, 3, *size)


@pytest.mark.parametrize(("size", "remedy"), [((225, 225), "224 or 256"), ((100, 50), "48 or 64 or 96 or 112")])
def test_sizes_that_cannot_be_halved_are_refused(size, remedy):
    line = rf"images of {size[0]}x{size[1]} pixels halve to .* and no further: use --resolution {remedy}, or name"
    with pytest.raises(BadInput, match=line):
        build_gan(GANArguments(), size, 3)


def test_options_reach_the_networks():
    args = GANArguments(minibatch_std=True, dropout=0.25, spectral_norm="both", architecture="dcgan", packing=2)
    generator, discriminator = build_gan(args, (32, 32), 3, 10)
    config = discriminator.config
    assert (config.minibatch_std, config.dropout, config.packing, config.num_classes) == (True, 0.25, 2, None)
    assert generator.config.batch_norm and not config.batch_norm
    parametrized = [n for n, _ in generator.named_parameters() if "parametrizations" in n]
    assert parametrized and not any(n.startswith(f"layers.{len(generator.layers) - 1}") for n in parametrized)
    assert any("parametrizations" in n for n, _ in discriminator.named_parameters())
    generator, discriminator = build_gan(GANArguments(class_conditional=True), (32, 32), 3, 10)
    assert generator.config.num_classes == discriminator.config.num_classes == 10
    assert not generator.config.batch_norm


def test_training_goes_on_from_published_networks(tmp_path):
    first = make_trainer(tmp_path / "first", architecture="resnet", spectral_norm="discriminator", loss="hinge")
    first.train()
    names = {f"{kind}_name_or_path": str(tmp_path / "first") for kind in ("generator", "discriminator")}
    generator, discriminator = build_gan(GANArguments(**names), (8, 8), 1)
    with first.published_weights():
        published = {name: p.clone() for name, p in first.generator_network.named_parameters()}
    assert all((p == published[name]).all() for name, p in generator.named_parameters())
    assert generator.training and discriminator.training
    alone = {f"{kind}_name_or_path": str(tmp_path / "first" / kind) for kind in ("generator", "discriminator")}
    assert type(build_gan(GANArguments(**alone), (8, 8), 1)[1]) is type(discriminator)
    for options, size, channels, line in (
        (names, (8, 8), 3, "is for 1 channels, this data has 3"),
        (names, (16, 16), 1, "images of 8x8 pixels, these have 16x16: use --resolution 8x8"),
        (names | {"class_conditional": True}, (8, 8), 1, "knows no classes, this run 10"),
        (dict.fromkeys(names, str(tmp_path)), (8, 8), 1, "there is no generator in this folder"),
    ):
        with pytest.raises(BadInput, match=line):
            build_gan(GANArguments(**options), size, channels, digits().num_labels)
