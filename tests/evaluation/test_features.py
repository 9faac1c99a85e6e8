"""Embeddings: trained once, named with every figure, and such that the metrics rank samples as a person would."""

import json

import numpy as np
import pytest
import torch

from hfgen.data import ImageDataArguments, ImageDataset, load_images
from hfgen.data.stacked import stacked
from hfgen.errors import BadInput
from hfgen.evaluation import (
    classes,
    embed,
    evaluate_samples,
    joint_labels,
    load_feature_model,
    nearest_training,
    neighbour_figure,
)


@pytest.fixture(scope="module")
def digits():
    return load_images(ImageDataArguments(dataset_name="digits"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def classifier(digits, cache):
    return load_feature_model("auto", digits["train"], cache_dir=cache)


@pytest.fixture(scope="module")
def contrastive(digits, cache):
    unlabelled = ImageDataset(digits["train"].images, name="digits")
    return load_feature_model("auto", unlabelled, cache_dir=cache)


def pixels(dataset) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(dataset.images)).float() / 255


def test_the_classifier_knows_the_digits(classifier, digits):
    assert classifier.num_classes == 10 and classifier.dim == 64 and classifier.accuracy > 0.95
    assert classifier.name == f"convnet trained on the 10 classes of digits (accuracy {classifier.accuracy:.3f})"
    seen = classes(classifier, digits["test"])
    assert (seen.numpy() == digits["test"].labels).mean() > 0.96
    assert torch.equal(seen, classes(classifier, pixels(digits["test"]), batch_size=7))


def test_it_is_trained_once_and_draws_nothing_from_the_global_generators(digits, cache, classifier, monkeypatch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    own = load_feature_model("auto", digits["train"], cache_dir=cache + "/other", seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in classifier.state_dict().items():
        assert torch.equal(own.state_dict()[name], value)
    monkeypatch.setattr("hfgen.evaluation.features.train_classifier", None)
    again = load_feature_model("auto", digits["train"], cache_dir=cache)
    assert torch.equal(embed(again, digits["test"]), embed(classifier, digits["test"]))
    with pytest.raises(TypeError):  # another dataset, another seed: trained anew
        load_feature_model("auto", digits["train"], cache_dir=cache, seed=1)
    with pytest.raises(TypeError):
        load_feature_model("auto", digits["validation"], cache_dir=cache)


def test_stacked_images_are_seen_channel_by_channel(digits, cache, classifier, contrastive):
    three = stacked(digits["train"])
    model = load_feature_model("auto", three, cache_dir=cache)
    assert model.name == f"{classifier.name}, in each of 3 channels"
    assert (model.num_classes, model.dim, three.num_labels) == (1000, 192, 1000)
    assert (classes(model, three).numpy() == three.labels).mean() > 0.9
    channels = [pixels(three)[:, k : k + 1] for k in range(3)]
    torch.testing.assert_close(embed(model, three), torch.cat([embed(classifier, c) for c in channels], 1))
    assert torch.equal(classes(model, three), joint_labels([classes(classifier, c) for c in channels], 10))
    unlabelled = stacked(ImageDataset(digits["train"].images, name="digits"))
    model = load_feature_model("auto", unlabelled, cache_dir=cache)
    assert (model.num_classes, model.name) == (0, f"{contrastive.name}, in each of 3 channels")


def test_features_do_not_depend_on_the_batch_and_carry_no_gradient(classifier, digits):
    images = pixels(digits["test"]).requires_grad_()
    together = classifier.train()(images)
    assert not together.requires_grad and not classifier.training and together.shape == (250, 64)
    torch.testing.assert_close(together[:3], classifier(images[:3]), rtol=1e-4, atol=1e-5)
    known = embed(classifier, digits["train"])
    assert known.mean(0).abs().max() < 0.1 and known.var(0).mean() == pytest.approx(1, abs=0.1)
    assert all(not p.requires_grad for p in classifier.parameters())


def test_without_labels_it_knows_what_belongs_together(contrastive, digits):
    """The nearest other image is of the same digit: in a random convnet's features for fewer of them."""
    assert contrastive.name == "convnet trained on digits without labels" and contrastive.num_classes == 0
    known = embed(contrastive, digits["train"])
    shift = torch.from_numpy(np.ascontiguousarray(digits["test"].images)).roll((1,), (3,))  # one pixel of eight
    truth = digits["test"].labels

    def right(features, queries):
        index = torch.cdist(queries, features).argmin(1)
        return (digits["train"].labels[index.numpy()] == truth).mean()

    learnt = right(known, embed(contrastive, shift))
    raw = right(pixels(digits["train"]).flatten(1), shift.float().flatten(1) / 255)
    assert learnt > 0.9 and learnt > raw + 0.05, (learnt, raw)
    with pytest.raises(BadInput, match="knows no classes"):
        contrastive.classify(shift)


def ranked(model, digits) -> list[dict]:
    """From good to bad: real images, slightly noisy ones, three classes only, one image, noise."""
    reals, others = pixels(digits["test"]), pixels(digits["validation"])
    dice = torch.Generator().manual_seed(0)
    noisy = (others + 0.15 * torch.randn(others.shape, generator=dice)).clamp(0, 1)
    three = pixels(digits["train"])[torch.from_numpy(digits["train"].labels < 3)][:250]
    one = others[:1].repeat(250, 1, 1, 1) + 0.01 * torch.randn(others.shape, generator=dice)
    noise = torch.rand(others.shape, generator=dice)
    return [evaluate_samples(images, reals, model) for images in (others, noisy, three, one.clamp(0, 1), noise)]


def test_metrics_rank_samples_in_the_classifiers_embedding(classifier, digits):
    good, noisy, three, one, noise = ranked(classifier, digits)
    assert good["fid"] < noisy["fid"] < min(three["fid"], one["fid"], noise["fid"])
    assert good["kid"] < 3 * good["kid_std"] and noise["kid"] > 5 * noise["kid_std"]
    assert good["precision"] > 0.85 and good["recall"] > 0.85 and good["coverage"] > 0.9
    assert 0.85 < good["density"] < 1.15
    assert three["precision"] > 0.8 and three["recall"] < 0.5 and three["coverage"] < 0.45
    assert one["coverage"] < 0.05 and noise["coverage"] < 0.4
    assert [f["modes_covered"] for f in (good, three, one)] == [10, 3, 1]
    assert good["mode_kl"] < 0.05 < 1.0 < three["mode_kl"] < one["mode_kl"]
    assert good["feature_model"] == classifier.name and good["num_samples"] == good["num_reals"] == 250


def test_metrics_rank_samples_in_the_embedding_without_labels(contrastive, digits):
    good, noisy, three, one, noise = ranked(contrastive, digits)
    assert good["fid"] < noisy["fid"] < min(three["fid"], one["fid"], noise["fid"])
    assert good["coverage"] > 0.9 and three["coverage"] < 0.45 and one["coverage"] < 0.05
    assert "modes_covered" not in good


def test_remembered_images_are_found_and_shown(classifier, digits):
    train = digits["train"]
    copies = pixels(train)[:100] + 0.01
    found = evaluate_samples(copies.clamp(0, 1), digits["test"], classifier, training=train)
    assert found["memorised"] > 0.98 and found["memorised_reals"] < 0.7 and found["num_training"] == 1297
    index = nearest_training(copies[:12].clamp(0, 1), train, classifier, k=3)
    assert (index[:, 0] == torch.arange(12)).float().mean() > 0.9
    picture = np.asarray(neighbour_figure(copies[:12], train, index))
    # 6 rows of two times (a sample and three neighbours), 8 pixels enlarged 6 times, 3 pixels between.
    assert picture.shape == (6 * 51 + 3, 8 * 51 + 3)
    first, nearest_one = picture[3:51, 3:51], picture[3:51, 54:102]
    assert np.abs(first.astype(int) - nearest_one.astype(int)).max() <= 4


def test_other_sizes_are_resized_and_other_channels_refused(classifier, digits):
    images = pixels(digits["test"])
    large = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear")
    assert (classes(classifier, large).numpy() == digits["test"].labels).mean() > 0.9
    with pytest.raises(BadInput, match=r"takes images \(B, 1, H, W\), not \(4, 3, 8, 8\)"):
        classifier(torch.zeros(4, 3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 64, 64), (3, 96, 128)])
def test_any_size_is_trained_on(shape, tmp_path, monkeypatch):
    monkeypatch.setattr("hfgen.evaluation.pretraining.CLASSIFIER_STEPS", (8, 8))
    dice = np.random.default_rng(0)
    bright = dice.integers(0, 2, 200)
    images = (dice.integers(0, 100, (200, *shape)) + 100 * bright[:, None, None, None]).astype(np.uint8)
    model = load_feature_model("auto", ImageDataset(images, bright), cache_dir=str(tmp_path))
    assert model.accuracy > 0.9 and model.num_classes == 2
    assert embed(model, ImageDataset(images[:5])).shape == (5, 64)


def test_what_can_be_wrong_is_said_in_one_line(digits, tmp_path, classifier, cache):
    with pytest.raises(BadInput, match="feature model auto is trained on the training data, and there is none"):
        load_feature_model("auto")
    with pytest.raises(BadInput, match="at least 32 images, dataset digits has 20"):
        load_feature_model("auto", digits["train"].select(range(20)), cache_dir=str(tmp_path))
    with pytest.raises(BadInput, match="feature model nowhere: there is no such folder"):
        load_feature_model("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty is no vision model of transformers"):
        load_feature_model(str(tmp_path / "empty"))
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="torch-fidelity|holds no weights of FID's"):
        load_feature_model(str(tmp_path / "weights.pth"))
    load_feature_model("auto", digits["validation"], cache_dir=str(tmp_path))
    (file,) = tmp_path.glob("hfgen/features/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"the feature model in .* is damaged .* delete that folder"):
        load_feature_model("auto", digits["validation"], cache_dir=str(tmp_path))


def test_a_transformers_model_from_its_folder(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4
    )
    config.num_labels = 5
    vit = ViTForImageClassification(config).eval()
    vit.save_pretrained(tmp_path / "vit")
    settings = {"size": {"height": 12, "width": 12}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    model = load_feature_model(str(tmp_path / "vit"))
    assert (model.name, model.dim, model.num_classes, model.channels) == ("vit", 16, 5, 3)
    images = torch.rand(4, 3, 12, 12)
    mean, std = (torch.tensor(settings[k]).view(1, 3, 1, 1) for k in ("image_mean", "image_std"))
    with torch.no_grad():
        torch.testing.assert_close(model.classify(images), vit((images - mean) / std).logits)
        hidden = vit.base_model((images - mean) / std).last_hidden_state
    torch.testing.assert_close(model(images), hidden.mean(1))
    grey = torch.rand(2, 1, 20, 20)
    torch.testing.assert_close(model(grey), model(grey.expand(-1, 3, -1, -1)))


def test_inception_from_a_file_of_weights(tmp_path):
    """The network of FID, with weights drawn here; only where torch-fidelity is installed."""
    torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)

    class Drawn(torch_fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, weights):
            return None

    torch.save({}, tmp_path / "empty.pth")
    weights = Drawn("x", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth")).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    model = load_feature_model(str(tmp_path / "weights.pth"))
    assert (model.name, model.dim, model.channels, model.num_classes) == ("Inception of FID", 2048, 3, 0)
    grey = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    features = model(grey)
    assert features.shape == (2, 2048) and torch.isfinite(features).all()
    expected = model.network.extractor((grey.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8))[0]
    torch.testing.assert_close(features, expected)
    with pytest.raises(BadInput, match="holds no weights of FID's"):
        load_feature_model(str(tmp_path / "empty.pth"))
