"""What is published loads in one line, also where hfgen is not installed, and makes the same images for a seed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gan.small import make_trainer
from PIL import Image

from hfgen.errors import BadInput
from hfgen.gan import GANPipeline, GeneratorDCGAN, GeneratorResNet, evaluate_gan, save_figures
from hfgen.gan.evaluation import draw_images
from hfgen.gan.pipeline import standalone_source


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def conditional():
    torch.manual_seed(0)
    network = GeneratorResNet([8, 12], 3, latent_dim=5, block_out_channels=[8, 8], num_classes=3, batch_norm=True)
    return GANPipeline(network.eval(), label_names=["ant", "bee", "cat"])


KINDS = {
    "mlp": {"architecture": "mlp", "class_conditional": True},
    "dcgan": {"architecture": "dcgan"},
    "resnet": {"architecture": "resnet", "loss": "hinge", "spectral_norm": "both", "class_conditional": True},
}


@pytest.mark.parametrize("kind", [k if k == "resnet" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_a_run_publishes_its_average_and_the_code_that_runs_it(kind, tmp_path):
    trainer = make_trainer(tmp_path / "run", **KINDS[kind])
    trainer.train()
    with trainer.published_weights(), torch.no_grad():
        latents = torch.randn((4, 6), generator=seeded(3))
        labels = torch.arange(4) if trainer.num_classes else None
        expected = (trainer.generator_network(latents, labels) / 2 + 0.5).clamp(0, 1)
    pipeline = GANPipeline.from_pretrained(tmp_path / "run")
    assert type(pipeline.generator) is type(trainer.generator_network)
    ours = pipeline(4, generator=seeded(3), output_type="pt").images
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    pipeline.save_pretrained(tmp_path / "again")
    # diffusers alone, hfgen not to be found: no hfgen on the path, and its name taken by a module that refuses.
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "hfgen.py").write_text("raise ImportError('hfgen is not installed')")
    for folder in ("run", "again"):
        code = (
            "import sys, torch, numpy as np\nfrom diffusers import DiffusionPipeline\n"
            f"p = DiffusionPipeline.from_pretrained({str(tmp_path / folder)!r}, trust_remote_code=True)\n"
            "images = p(4, generator=torch.Generator().manual_seed(3), output_type='pt').images\n"
            "assert 'hfgen' not in sys.modules\n"
            f"np.save({str(tmp_path / 'images.npy')!r}, images.numpy())"
        )
        environment = {
            "PYTHONPATH": str(tmp_path / "blocked"),
            "HF_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
        }
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
        np.testing.assert_allclose(np.load(tmp_path / "images.npy"), ours.numpy(), atol=1e-5)


def test_diffusers_asks_for_trust_first(conditional, tmp_path):
    from diffusers import DiffusionPipeline

    conditional.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "generator").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "resnet.py",
    ]


def test_published_code_stands_alone():
    from hfgen.gan import portable
    from hfgen.gan.networks import dcgan, mlp, resnet

    for module in (portable, dcgan, mlp, resnet):
        source = standalone_source(module)
        assert "hfgen" not in source.replace("where hfgen", "").replace("hfgen's", "")
        assert "from ." not in source
        namespace = {"__name__": "alone"}
        exec(compile(source, "alone.py", "exec"), namespace)
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert own and set(own) <= namespace.keys()


def test_loading_from_the_hub_takes_no_code(conditional, tmp_path, monkeypatch):
    conditional.save_pretrained(tmp_path)
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options, name=name) or str(tmp_path)
    )
    pipeline = GANPipeline.from_pretrained("somebody/a-gan", revision="v1")
    a, b = (p(2, generator=seeded(), output_type="pt").images for p in (pipeline, conditional))
    torch.testing.assert_close(a, b)
    assert asked == {
        "name": "somebody/a-gan",
        "revision": "v1",
        "allow_patterns": ["model_index.json", "generator/*.json", "generator/*.safetensors"],
    }


def test_the_same_seed_gives_the_same_images(conditional):
    first = conditional(5, generator=seeded(1), output_type="pt").images
    assert first.shape == (5, 3, 8, 12) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, conditional(5, generator=seeded(1), output_type="pt").images)
    assert not torch.equal(first, conditional(5, generator=seeded(2), output_type="pt").images)
    latents = torch.randn((5, 5), generator=seeded(1))
    assert torch.equal(first, conditional(5, latents=latents, output_type="pt").images)


def test_truncation_scales_the_latents(conditional):
    a = conditional(3, 1, generator=seeded(), truncation=0.5, output_type="pt").images
    b = conditional(3, 1, latents=0.5 * torch.randn((3, 5), generator=seeded()), output_type="pt").images
    assert torch.equal(a, b)
    same = conditional(3, 1, truncation=0.0, output_type="pt").images
    torch.testing.assert_close(same[0], same[1])


def test_classes_by_number_name_and_default(conditional):
    by = {}
    for name, labels in (("numbers", [0, 2]), ("names", ["ant", "cat"]), ("tensor", torch.tensor([0, 2]))):
        by[name] = conditional(2, labels, generator=seeded(), output_type="pt").images
    assert torch.equal(by["numbers"], by["names"]) and torch.equal(by["numbers"], by["tensor"])
    assert conditional.labels(None, 5).tolist() == [0, 1, 2, 0, 1]
    assert conditional.labels("bee", 3).tolist() == conditional.labels("1", 3).tolist() == [1, 1, 1]
    for labels, line in (
        ("dog", "no class 'dog'; known are ant, bee, cat"),
        (3, "no class 3"),
        ([0], "1 of them for 2"),
    ):
        with pytest.raises(BadInput, match=line):
            conditional(2, labels)
    plain = GANPipeline(GeneratorDCGAN(8, 1, latent_dim=3, block_out_channels=[8]).eval())
    with pytest.raises(BadInput, match="knows no classes"):
        plain(1, 0)


def test_output_types(conditional):
    pt = conditional(2, generator=seeded(), output_type="pt").images
    array = conditional(2, generator=seeded(), output_type="np").images
    pil = conditional(2, generator=seeded()).images
    (plain,) = conditional(2, generator=seeded(), return_dict=False)
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert pil == plain and pil[0].size == (12, 8) and pil[0].mode == "RGB"
    assert np.array_equal(np.array(pil[1]), (array[1] * 255).round().astype(np.uint8))
    with pytest.raises(ValueError, match="output_type 'jpeg' is none of pil, np, pt"):
        conditional(1, output_type="jpeg")


def test_no_generator_no_pipeline(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(BadInput, match="there is no generator in this folder"):
        GANPipeline.from_pretrained(tmp_path)


def test_drawn_images_have_the_classes_of_the_data(conditional):
    seen = []
    original = conditional.labels
    conditional.labels = lambda labels, count: seen.append(labels) or original(labels, count)
    images = draw_images(conditional, 700, labels=np.array([0, 0, 0, 2]), batch_size=300)
    assert images.shape == (700, 3, 8, 12) and images.dtype == torch.uint8
    counts = torch.bincount(torch.cat(seen), minlength=3)
    assert counts[1] == 0 and counts[0] / 700 == pytest.approx(0.75, abs=0.06)
    assert torch.equal(images[:5], draw_images(conditional, 700, labels=np.array([0, 0, 0, 2]), batch_size=300)[:5])


def test_figures_and_scores_of_a_run(tmp_path):
    from hfgen.evaluation import FeatureModel

    torch.manual_seed(1)
    features = FeatureModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8)), "a projection", 8, 1)
    trainer = make_trainer(tmp_path, class_conditional=True, training={"max_steps": 16})
    trainer.train()
    pipeline = GANPipeline.from_pretrained(tmp_path)
    paths = save_figures(pipeline, trainer.train_dataset, tmp_path, features)
    assert [path.name for path in paths] == ["samples.png", "real.png", "progress.png", "neighbours.png"]
    listed = json.loads((tmp_path / "figures" / "figures.json").read_text())
    assert "2, 4, 6, 8, 10, 12, 14, 16" in listed[2]["caption"] and "a projection" in listed[3]["caption"]
    assert Image.open(paths[0]).size[0] == Image.open(paths[1]).size[0]
    figures = evaluate_gan(pipeline, trainer.train_dataset, features, num_samples=200, training=trainer.train_dataset)
    assert figures["num_samples"] == figures["num_reals"] == 200 and figures["feature_model"] == "a projection"
    assert figures["fid"] > 0 and 0 <= figures["coverage"] <= 1
