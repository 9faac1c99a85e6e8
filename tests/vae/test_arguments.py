"""What does not fit together is refused in one line that names the remedy."""

import pytest
import torch
from diffusers import AutoencoderKL
from vae.helpers import CONV

from hfgen.errors import BadInput
from hfgen.vae import AutoencoderMLP, VAEArguments, build_vae


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"latent_dim": 0}, "--latent_dim is 0; it must be at least 1"),
        ({"beta": -1.0}, "--beta is -1.0; it must be at least 0"),
        ({"dropout": 1.0}, "--dropout is 1.0"),
        ({"hidden_sizes": [32, 0]}, "--hidden_sizes"),
        ({"architecture": "conv", "block_out_channels": []}, "--block_out_channels"),
        ({"architecture": "conv", "batch_norm": True}, "--batch_norm: AutoencoderKL normalises by groups.*mlp"),
        ({"architecture": "conv", "latent_dim": 3}, "--latent_dim does nothing with --architecture conv"),
        ({"latent_channels": 3}, "--latent_channels does nothing with --architecture mlp.*--architecture conv"),
        ({"batch_norm": True, "hidden_sizes": []}, "--batch_norm acts on hidden layers"),
        ({"dropout": 0.1, "hidden_sizes": []}, "--dropout acts on hidden layers"),
        ({"sigma": "0.1"}, "--sigma does nothing with --likelihood bernoulli"),
        ({"sigma": "0.1", "likelihood": "discretized_logistic"}, "--sigma does nothing"),
        ({"sigma": "0", "likelihood": "gaussian"}, "--sigma is 0; it must be optimal, learned, or a number above 0"),
        ({"sigma": "best", "likelihood": "gaussian"}, "--sigma is best"),
        ({"binarization": "dynamic", "likelihood": "gaussian"}, "--binarization dynamic goes with .*bernoulli"),
        ({"objective": "iwae"}, "--num_importance_samples is 1; it must be at least 2"),
        ({"num_importance_samples": 5}, "--num_importance_samples does nothing with --objective elbo"),
        ({"objective": "iwae", "num_importance_samples": 5, "free_bits": 0.1}, "--free_bits weighs the KL"),
        ({"objective": "iwae", "num_importance_samples": 5, "beta": 2.0}, "--beta weighs the KL"),
        ({"objective": "iwae", "num_importance_samples": 5, "kl_warmup_steps": 2}, "--kl_warmup_steps weighs"),
        ({"beta": 0.0, "kl_warmup_steps": 10}, "--kl_warmup_steps does nothing with --beta 0"),
        ({"beta": 0.0, "free_bits": 0.1}, "--free_bits does nothing with --beta 0"),
        ({"model_name_or_path": "x", "hidden_sizes": [3]}, "--hidden_sizes is part of the VAE"),
        ({"model_name_or_path": "x", "spectral_norm": True}, "--spectral_norm is part of the VAE"),
    ],
)
def test_bad_options(options, line):
    with pytest.raises(BadInput, match=line) as error:
        VAEArguments(**options)
    assert "\n" not in str(error.value)


def test_how_the_scale_is_had():
    assert VAEArguments().scale is None
    assert VAEArguments(likelihood="gaussian").scale == "optimal"
    assert VAEArguments(likelihood="gaussian", sigma="learned").scale == "learned"
    assert VAEArguments(likelihood="gaussian", sigma="0.25").scale == 0.25
    assert VAEArguments(likelihood="discretized_logistic").scale == "learned"


@pytest.mark.parametrize(
    ("options", "size", "line"),
    [
        ({"block_out_channels": [8, 8, 8]}, (30, 40), "30x40 pixels.*3 blocks.*--resolution 28x40 or 32x40"),
        ({"block_out_channels": [8, 8, 8]}, (3, 3), "--resolution 4x4$"),
        ({"block_out_channels": [8, 12], "norm_num_groups": 8}, (8, 8), "8 does not divide 12 .*a divisor of 4"),
    ],
)
def test_images_and_groups_that_do_not_fit(options, size, line):
    with pytest.raises(BadInput, match=line) as error:
        build_vae(VAEArguments(architecture="conv", **options), size, 1)
    assert "\n" not in str(error.value)


def test_mlp_is_what_was_asked_for():
    args = VAEArguments(latent_dim=5, hidden_sizes=[32, 16], activation="tanh", batch_norm=True, dropout=0.25)
    vae = build_vae(args, (6, 10), 3)
    assert type(vae) is AutoencoderMLP
    kinds = [type(layer).__name__ for layer in vae.encoder]
    assert kinds == ["Linear", "BatchNorm1d", "Tanh", "Dropout"] * 2 + ["Linear"]
    widths = [layer.weight.shape for layer in (*vae.encoder, *vae.decoder) if hasattr(layer, "in_features")]
    assert [tuple(w) for w in widths] == [(32, 180), (16, 32), (10, 16), (16, 5), (32, 16), (180, 32)]
    assert vae.encoder[3].p == 0.25
    assert vae.config.sample_size == [6, 10]


def test_conv_is_what_was_asked_for():
    args = VAEArguments(**CONV, dropout=0.25, layers_per_block=2, mid_block_add_attention=False)
    vae = build_vae(args, (8, 12), 3)
    assert type(vae) is AutoencoderKL
    config = vae.config
    assert (list(config.block_out_channels), config.latent_channels, config.layers_per_block) == ([8, 16], 2, 2)
    assert (config.in_channels, config.out_channels, config.norm_num_groups) == (3, 3, 4)
    assert config.sample_size == [8, 12] and not any("attentions.0" in name for name, _ in vae.named_parameters())
    rates = {module.p for name, module in vae.named_modules() if name.endswith(".dropout")}
    assert rates == {0.25}


def test_spectral_norm_bounds_every_layer_but_the_outputs():
    torch.manual_seed(0)
    for options in ({"hidden_sizes": [32, 16]}, CONV):
        vae = build_vae(VAEArguments(spectral_norm=True, **options), (8, 8), 1)
        kinds = ("Linear", "Conv2d", "ParametrizedLinear", "ParametrizedConv2d")
        layers = [m for m in vae.modules() if type(m).__name__ in kinds]
        free = [m for m in layers if type(m).__name__ in ("Linear", "Conv2d")]
        assert len(free) == (4 if options is CONV else 2)
        assert len(layers) > len(free)
        for layer in set(layers) - set(free):
            for _ in range(300):  # a power iteration a forward pass
                weight = layer.weight
            largest = float(weight.detach().flatten(1).svd().S[0])
            assert largest == pytest.approx(1.0, abs=1e-2)
