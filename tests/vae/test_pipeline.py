"""What is saved loads with one `from_pretrained` and does the same, to the bit."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderKL
from vae.helpers import CONV, MLP, digits, make_trainer, random_images

from hfgen.data import ImageDataset
from hfgen.errors import BadInput
from hfgen.vae import AutoencoderMLP, VAEArguments, VAEPipeline, build_vae, save_figures

KINDS = {
    "mlp": {},
    "mlp with everything": {"batch_norm": True, "dropout": 0.2, "spectral_norm": True, "likelihood": "gaussian"},
    "mlp, learned sigma": {"likelihood": "gaussian", "sigma": "learned"},
    "conv": {"architecture": "conv", "likelihood": "discretized_logistic"},
    "conv, spectral norm": {"architecture": "conv", "spectral_norm": True, "likelihood": "gaussian", "sigma": "0.3"},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_round_trip(options, tmp_path):
    trainer = make_trainer(tmp_path, steps=5, **options)
    trainer.train()
    module = trainer.module.eval()
    images = digits().__getitems__(range(32))["pixel_values"]
    with torch.no_grad():
        posterior = module.vae.encode(images / 255 * 2 - 1).latent_dist
        output = module.vae.decode(posterior.mean).sample
        log_scale = module.log_scale

    pipeline = VAEPipeline.from_pretrained(tmp_path)
    assert type(pipeline.vae) is (AutoencoderKL if "architecture" in options else AutoencoderMLP)
    assert not pipeline.vae.training
    loaded = pipeline.encode(images)
    assert torch.equal(loaded.mean, posterior.mean) and torch.equal(loaded.logvar, posterior.logvar)
    with torch.no_grad():
        assert torch.equal(pipeline.vae.decode(posterior.mean).sample, output)
    assert torch.equal(pipeline.decode(posterior.mean), module.likelihood.mean(output))
    assert pipeline.config.likelihood == options.get("likelihood", "bernoulli")
    if options.get("sigma") == "learned" or "discretized_logistic" in options.values():
        assert pipeline.config.scale == log_scale.exp().item() != 1.0
    if options.get("sigma") == "0.3":
        assert pipeline.config.scale == pytest.approx(0.3)
    again = tmp_path / "again"
    pipeline.save_pretrained(again)
    for a, b in zip(pipeline.vae.parameters(), VAEPipeline.from_pretrained(again).vae.parameters(), strict=True):
        assert torch.equal(a, b)
    # Training goes on as if nothing had been written.
    assert trainer.module.vae.train()(torch.zeros(2, 1, 8, 8)).sample.requires_grad


def test_the_scaling_factor_is_one_over_the_deviation_of_the_latents(tmp_path):
    for options in ({"likelihood": "gaussian"}, {"architecture": "conv", "likelihood": "gaussian"}):
        folder = tmp_path / options.get("architecture", "mlp")
        trainer = make_trainer(folder, steps=60, training={"use_ema": True}, **options)
        trainer.train()
        pipeline = VAEPipeline.from_pretrained(folder)
        data = digits()
        posterior = pipeline.encode(data.__getitems__(range(len(data)))["pixel_values"])
        z = torch.stack([posterior.sample(seeded(i)) for i in range(20)])
        factor = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
        assert factor == pytest.approx(1 / z.std().item(), rel=0.01)
        assert factor != 1.0
        # The optimal sigma is the error over the training data, with the published (averaged) weights.
        y = data.__getitems__(range(len(data)))["pixel_values"] / 255 * 2 - 1
        with torch.no_grad():
            error = torch.stack([(pipeline.vae.decode(sample).sample - y).square().mean() for sample in z[:5]]).mean()
        assert pipeline.config.scale == pytest.approx(error.sqrt().item(), rel=0.01)


def test_conv_loads_with_the_stock_class(tmp_path):
    trainer = make_trainer(tmp_path, steps=2, **KINDS["conv, spectral norm"])
    trainer.train()
    vae, report = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae", output_loading_info=True)
    assert report["missing_keys"] == report["unexpected_keys"] == []
    stock = {name: value.shape for name, value in AutoencoderKL.from_config(vae.config).state_dict().items()}
    assert {name: value.shape for name, value in vae.state_dict().items()} == stock
    assert sorted(p.name for p in (tmp_path / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.slow
def test_a_bare_import_is_enough_to_load(tmp_path):
    VAEPipeline(build_vae(VAEArguments(**MLP), (8, 8), 1)).save_pretrained(tmp_path)
    code = f"from hfgen import VAEPipeline; print(type(VAEPipeline.from_pretrained({str(tmp_path)!r}).vae).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=sys.path[0] or None)
    assert result.stdout.strip() == "AutoencoderMLP", result.stderr


def test_loading_from_the_hub_takes_configs_and_safetensors(tmp_path, monkeypatch):
    source = VAEPipeline(build_vae(VAEArguments(**MLP), (8, 8), 1))
    source.save_pretrained(tmp_path)
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options, name=name) or str(tmp_path)
    )
    pipeline = VAEPipeline.from_pretrained("somebody/a-vae", revision="v1")
    assert torch.equal(pipeline(2, seeded(), output_type="pt").images, source(2, seeded(), output_type="pt").images)
    assert asked == {
        "name": "somebody/a-vae",
        "revision": "v1",
        "allow_patterns": ["model_index.json", "vae/*.json", "vae/*.safetensors"],
    }


@pytest.fixture
def colour():
    """A convolutional VAE of 8x12 colour images."""
    torch.manual_seed(0)
    vae = build_vae(VAEArguments(**CONV, likelihood="gaussian"), (8, 12), 3).eval()
    return VAEPipeline(vae, "gaussian", 0.5)


def test_the_same_seed_gives_the_same_images(colour):
    for pipeline in (colour, VAEPipeline(build_vae(VAEArguments(**MLP), (8, 8), 1))):
        first = pipeline(5, seeded(1), output_type="pt").images
        assert torch.equal(first, pipeline(5, seeded(1), output_type="pt").images)
        assert not torch.equal(first, pipeline(5, seeded(2), output_type="pt").images)
        assert first.min() >= 0 and first.max() <= 1


def test_samples_decode_unscaled_normal_latents(colour):
    colour.vae.register_to_config(scaling_factor=7.0)
    z = torch.randn((3, 2, 4, 6), generator=seeded(4))
    images = colour(3, seeded(4), temperature=0.5, output_type="pt").images
    with torch.no_grad():
        expected = (colour.vae.decode(0.5 * z).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected)
    frozen = colour(3, seeded(4), temperature=0.0, output_type="pt").images
    assert torch.equal(frozen[0], frozen[1])


def test_output_types(colour):
    pt = colour(2, seeded(), output_type="pt").images
    np_ = colour(2, seeded(), output_type="np").images
    pil = colour(2, seeded()).images
    (plain,) = colour(2, seeded(), return_dict=False)
    assert pt.shape == (2, 3, 8, 12) and np_.shape == (2, 8, 12, 3)
    assert np.array_equal(np_, pt.permute(0, 2, 3, 1).numpy())
    assert [image.size for image in pil] == [(12, 8)] * 2 and pil[0].mode == "RGB"
    assert np.array_equal(np.array(pil[1]), (np_[1] * 255).round().astype(np.uint8)) and pil == plain
    grey = VAEPipeline(build_vae(VAEArguments(**MLP), (8, 8), 1))(1).images[0]
    assert grey.mode == "L" and grey.size == (8, 8)
    with pytest.raises(BadInput, match="output_type 'jpeg' is none of pil, np, pt"):
        colour(1, output_type="jpeg")


def test_encoding_takes_bytes_floats_and_pil_images(colour):
    images = random_images(3, 3, 8, 12).__getitems__(range(3))["pixel_values"]
    pil = [PIL.Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    means = [colour.encode(given).mean for given in (images, images / 255, pil)]
    assert means[0].shape == (3, 2, 4, 6)
    assert torch.equal(means[0], means[1]) and torch.equal(means[0], means[2])


def test_reconstructions_come_from_the_posterior_mean(colour):
    images = random_images(3, 3, 8, 12).__getitems__(range(3))["pixel_values"]
    with torch.no_grad():
        expected = colour.vae(images / 255 * 2 - 1).sample / 2 + 0.5
    torch.testing.assert_close(colour.reconstruct(images, output_type="pt"), expected.clamp(0, 1))


def test_interpolation_starts_and_ends_at_the_reconstructions(colour):
    images = random_images(4, 3, 8, 12).__getitems__(range(4))["pixel_values"]
    steps = colour.interpolate(images[:2], images[2:], 5, output_type="pt").unflatten(0, (2, 5))
    rebuilt = colour.reconstruct(images, output_type="pt")
    torch.testing.assert_close(steps[:, 0], rebuilt[:2])
    torch.testing.assert_close(steps[:, -1], rebuilt[2:])
    latents = colour.encode(images).mean
    torch.testing.assert_close(steps[1, 2], colour.decode((latents[1:2] + latents[3:4]) / 2)[0])


def test_images_are_made_binary_as_in_training():
    vae = build_vae(VAEArguments(**MLP), (8, 8), 1)
    images = digits().__getitems__(range(4))["pixel_values"]
    grey = images.float() / 255
    seen = {mode: VAEPipeline(vae, binarization=mode).preprocess(images) for mode in ("none", "threshold", "dynamic")}
    assert torch.equal(seen["none"], grey)
    assert torch.equal(seen["threshold"], (grey > 0.5).float()) and torch.equal(seen["dynamic"], seen["threshold"])
    drawn = VAEPipeline(vae, binarization="dynamic").preprocess(images, seeded())
    assert torch.equal(drawn, (torch.rand(images.shape, generator=seeded()) < grey).float())


def test_a_scale_goes_with_its_likelihood():
    vae = build_vae(VAEArguments(**MLP), (8, 8), 1)
    with pytest.raises(BadInput, match="gaussian goes with a scale"):
        VAEPipeline(vae, "gaussian")
    with pytest.raises(BadInput, match="bernoulli goes without a scale"):
        VAEPipeline(vae, "bernoulli", 0.1)
    with pytest.raises(BadInput, match="'poisson' is none of bernoulli, gaussian, discretized_logistic"):
        VAEPipeline(vae, "poisson")


def test_training_starts_from_a_saved_vae(tmp_path):
    for options in ({"likelihood": "gaussian", "sigma": "learned"}, {"architecture": "conv"}):
        folder = tmp_path / options.get("architecture", "mlp")
        make_trainer(folder, steps=3, **options).train()
        saved = VAEPipeline.from_pretrained(folder)
        others = {name: value for name, value in options.items() if name != "architecture"}
        args = VAEArguments(model_name_or_path=str(folder), **others)
        vae = build_vae(args, (8, 8), 1)
        assert vae.training
        assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), saved.vae.parameters(), strict=True))
        alone = build_vae(VAEArguments(model_name_or_path=str(folder / "vae"), **others), (8, 8), 1)
        assert torch.equal(next(alone.parameters()), next(vae.parameters()))
        with pytest.raises(BadInput, match="takes images of 1 channels, these have 3: use --channels 1"):
            build_vae(args, (8, 8), 3)
    defaults = {name: getattr(VAEArguments(), name) for name in MLP}
    start = {"likelihood": "gaussian", "sigma": "learned", "model_name_or_path": str(tmp_path / "mlp")}
    more = make_trainer(tmp_path / "more", **defaults, **start)
    learned = VAEPipeline.from_pretrained(tmp_path / "mlp").config.scale
    assert more.module.log_scale.exp().item() == pytest.approx(learned, rel=1e-4)

    mlp, conv = str(tmp_path / "mlp"), str(tmp_path / "conv")
    for path, options, size, line in (
        (mlp, {}, (8, 8), "was trained with --likelihood gaussian, not bernoulli: use --likelihood gaussian"),
        (mlp, {"likelihood": "gaussian"}, (8, 9), "takes images of 8x8 pixels, these have 8x9: use --resolution 8x8"),
        (mlp, {"likelihood": "gaussian", "dropout": 0.1}, (8, 8), "--dropout 0.1"),
        (conv, {}, (8, 9), "images of 8x9 pixels: the blocks of .* --resolution 8x8 or 8x10"),
        (str(tmp_path), {}, (8, 8), "there is no VAE in this folder"),
    ):
        with pytest.raises(BadInput, match=line):
            build_vae(VAEArguments(model_name_or_path=path, **options), size, 1)
    dropped = build_vae(VAEArguments(model_name_or_path=conv, dropout=0.5), (8, 8), 1)
    assert {m.p for name, m in dropped.named_modules() if name.endswith(".dropout")} == {0.5}


def test_figures(tmp_path):
    torch.manual_seed(0)
    pipeline = VAEPipeline(build_vae(VAEArguments(**MLP), (8, 8), 1))
    save_figures(pipeline, digits("validation"), tmp_path)
    entries = json.loads((tmp_path / "figures" / "figures.json").read_text())
    assert [e["file"] for e in entries] == [
        "samples.png",
        "real.png",
        "reconstructions.png",
        "interpolations.png",
        "latents.png",
    ]
    sizes = [PIL.Image.open(tmp_path / "figures" / e["file"]).size for e in entries[:4]]
    assert sizes == [(402, 202), (402, 202), (402, 402), (402, 202)]  # 48 pixels a digit, 2 between, 8 a row
    few = ImageDataset(digits().images[:1])
    save_figures(pipeline, few, tmp_path / "few")
    assert len(json.loads((tmp_path / "few" / "figures" / "figures.json").read_text())) == 4


def test_under_bernoulli_the_perceptron_sees_unit_inputs():
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = {}
    for likelihood in ("bernoulli", "gaussian"):
        options = VAEArguments(latent_dim=2, hidden_sizes=[5], likelihood=likelihood)
        vae = build_vae(options, (4, 4), 1).eval()
        mean = vae.encode(x).latent_dist.mean.flatten(1)
        seen[likelihood] = [torch.equal(mean, vae.encoder(v.flatten(1))[:, :2]) for v in (x, 0.5 + 0.5 * x)]
    assert seen == {"bernoulli": [False, True], "gaussian": [True, False]}
