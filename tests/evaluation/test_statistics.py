"""Each metric against its definition, written out, and against closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from hfgen.errors import BadInput
from hfgen.evaluation import (
    coverage,
    frechet_distance,
    joint_labels,
    kernel_distance,
    knn_radii,
    manifold_metrics,
    memorisation,
    mode_statistics,
    near_centres,
    nearest,
    pairwise_distances,
)


def normal(count: int, dimensions: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1 << 22, 50], ids=["at once", "in chunks"])
def chunked(request, monkeypatch):
    """Once all at a time, once a few rows at a time: the same figures."""
    monkeypatch.setattr("hfgen.evaluation.distances.CHUNK_NUMBERS", request.param)
    monkeypatch.setattr("hfgen.evaluation.kernel.CHUNK_NUMBERS", request.param)


# ---- distances ------------------------------------------------------------------------------------------------------


def test_distances_far_from_the_origin_are_exact():
    a, b = normal(20, seed=1).double() + 1e6, normal(30, seed=2).double() + 1e6
    expected = (a[:, None] - b[None]).square().sum(2).sqrt()
    torch.testing.assert_close(pairwise_distances(a, b), expected, rtol=1e-9, atol=1e-9)
    assert pairwise_distances(a, a).diagonal().max() < 1e-6


def test_nearest_neighbours_in_order(chunked):
    points, queries = normal(40), normal(15, seed=1)
    expected = (queries[:, None].double() - points[None].double()).norm(dim=2).sort(1)
    found = nearest(queries, points, 6)
    torch.testing.assert_close(found[0], expected.values[:, :6])
    assert torch.equal(found[1], expected.indices[:, :6])
    own = (points[:, None].double() - points[None].double()).norm(dim=2).sort(1)
    torch.testing.assert_close(knn_radii(points, 3), own.values[:, 3])
    twice = torch.cat([points, points[:1]])  # a copy counts as a neighbour, the vector itself does not
    radii, index = nearest(twice, twice, 1, same=True)
    assert radii[0, 0] < 1e-6 and index[0, 0] == 40 and index[40, 0] == 0 and radii[1:40].min() > 1e-3


def test_too_few_points_are_named():
    with pytest.raises(BadInput, match="5 nearest neighbours were asked for among 5 vectors"):
        knn_radii(normal(5), 5)


# ---- Fréchet --------------------------------------------------------------------------------------------------------


def with_moments(vectors: torch.Tensor, mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The vectors moved so that their empirical mean and covariance (factor @ factor.T) are exact."""
    vectors = vectors.double() - vectors.double().mean(0)
    whitened = vectors @ torch.linalg.inv(torch.linalg.cholesky(vectors.T.cov())).T
    return whitened @ factor.T + mean


def test_frechet_distance_of_gaussians_in_closed_form():
    """For covariances that commute it is |m1 - m2|^2 + sum of (s1 - s2)^2 over the common axes."""
    turn = torch.linalg.qr(normal(5, 5, seed=3).double()).Q
    s1, s2 = torch.tensor([1.0, 2, 3, 0.5, 0]).double(), torch.tensor([1.5, 2, 0, 1, 1e-4]).double()
    m1, m2 = normal(1, 5, 4).double()[0], normal(1, 5, 5).double()[0]
    a = with_moments(normal(400, 5, 1), m1, turn * s1)
    b = with_moments(normal(300, 5, 2), m2, turn * s2)
    expected = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(5 * 0.25, rel=1e-9)


@pytest.mark.parametrize("counts", [(300, 200), (12, 200), (12, 9)])
def test_frechet_distance_is_the_naive_one_also_with_fewer_vectors_than_dimensions(counts):
    a, b = normal(counts[0], 20, 1).double(), normal(counts[1], 20, 2).double() * 1.5 + 0.3
    ca, cb = np.cov(a.T.numpy()), np.cov(b.T.numpy())
    # The naive root fails on singular matrices by 1e-4 or so: its trace from the eigenvalues of the product.
    root = np.sqrt(np.clip(scipy.linalg.eigvals(ca @ cb).real, 0, None)).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(ca) + np.trace(cb) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    if min(counts) > 20:
        root = np.trace(scipy.linalg.sqrtm(ca @ cb)).real
        naive = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(ca) + np.trace(cb) - 2 * root
        assert frechet_distance(a, b) == pytest.approx(naive, rel=1e-9)


def test_frechet_distance_refuses_what_has_no_covariance():
    with pytest.raises(BadInput, match="needs at least 2 generated samples, there are 1"):
        frechet_distance(normal(5), normal(1))
    with pytest.raises(BadInput, match="features of real samples are not finite"):
        frechet_distance(normal(5) * math.nan, normal(5))


# ---- kernel ---------------------------------------------------------------------------------------------------------


def naive_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    def k(a, b):
        return (a.double() @ b.double() / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return (within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)).item()


def test_kernel_distance_and_its_jackknife_are_the_naive_ones(chunked):
    x, y = normal(9, seed=1), normal(7, seed=2) + 0.5
    estimate, deviation = kernel_distance(x, y)
    assert estimate == pytest.approx(naive_mmd(x, y), rel=1e-9)
    without = [naive_mmd(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(9)]
    other = [naive_mmd(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(7)]
    variance = sum((len(w) - 1) / len(w) * np.square(np.array(w) - np.mean(w)).sum() for w in (without, other))
    assert deviation == pytest.approx(variance**0.5, rel=1e-9)


def test_kernel_distance_is_unbiased_and_knows_its_deviation():
    same = [kernel_distance(normal(60, seed=2 * i), normal(80, seed=2 * i + 1)) for i in range(300)]
    values, deviations = np.array(same).T
    assert abs(values.mean()) < 3 * values.std() / 300**0.5 and values.min() < 0
    assert values.std() < np.median(deviations) < 2 * values.std()
    shifted = [kernel_distance(normal(60, seed=2 * i), normal(80, seed=2 * i + 1) + 1) for i in range(300)]
    values, deviations = np.array(shifted).T
    # E k for Gaussians around a and b, unit variance: E (x.y / d + 1)^3 by a large sample.
    truth = np.mean([kernel_distance(normal(3000, seed=900 + i), normal(3000, seed=950 + i) + 1)[0] for i in range(9)])
    assert values.mean() == pytest.approx(truth, rel=0.05)
    assert np.median(deviations) == pytest.approx(values.std(), rel=0.25)


# ---- manifold -------------------------------------------------------------------------------------------------------


def naive_manifold(real: torch.Tensor, fake: torch.Tensor, k: int) -> dict[str, float]:
    def radius(points, i):
        return sorted((points[i] - other).norm().item() for j, other in enumerate(points) if j != i)[k - 1]

    balls = [radius(real, i) for i in range(len(real))]
    fake_balls = [radius(fake, i) for i in range(len(fake))]
    inside = [[(f - r).norm().item() <= ball for r, ball in zip(real, balls, strict=True)] for f in fake]
    recalled = [any((f - r).norm() <= b for f, b in zip(fake, fake_balls, strict=True)) for r in real]
    return {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean(recalled),
        "density": np.sum(inside) / (k * len(fake)),
        "coverage": np.mean(np.array(inside).any(0)),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifold_metrics_are_the_naive_ones(chunked, k):
    real, fake = normal(50, 3, 1).double(), normal(40, 3, 2).double() * 0.7 + 0.4
    found = manifold_metrics(real, fake, k=k, coverage_k=k)
    assert found == pytest.approx(naive_manifold(real, fake, k))
    assert 0 < found["recall"] < 1 and (k > 1 or found["precision"] < 1)
    assert coverage(real, fake, knn_radii(real, k)) == found["coverage"]
    other = manifold_metrics(real, fake, k=2, coverage_k=k)  # each k is of its own two
    expected = {
        **naive_manifold(real, fake, k),
        **{n: naive_manifold(real, fake, 2)[n] for n in ("precision", "recall")},
    }
    assert other == pytest.approx(expected)


def test_manifold_metrics_of_the_same_distribution():
    found = manifold_metrics(normal(2000, seed=1), normal(2000, seed=2))
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)
    assert found["density"] == pytest.approx(1, abs=0.05)
    assert found["precision"] == pytest.approx(found["recall"], abs=0.02) and found["precision"] > 0.85
    same = manifold_metrics(normal(50), normal(50))
    assert same["precision"] == same["recall"] == same["coverage"] == 1


def test_collapse_and_noise_fall_on_different_sides():
    real = normal(500)
    one_point = normal(1, seed=9) * 0.3 + 1e-3 * normal(500, seed=10)
    found = manifold_metrics(real, one_point)
    assert found["precision"] > 0.99 and found["recall"] < 0.02
    wide = manifold_metrics(real, normal(500, seed=11) * 5)
    assert wide["precision"] < 0.2 and wide["recall"] > 0.9


# ---- modes ----------------------------------------------------------------------------------------------------------


def test_modes_and_divergence_by_hand():
    found = mode_statistics(torch.tensor([0, 0, 0, 1]), 4)
    expected = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.25)
    assert found == {"modes_covered": 2, "num_modes": 4, "mode_kl": pytest.approx(expected)}
    same = mode_statistics(torch.tensor([0, 0, 0, 1]), 4, torch.tensor([30.0, 10, 0, 0]))
    assert same["mode_kl"] == pytest.approx(0, abs=1e-12)
    assert mode_statistics(torch.tensor([0, 1]), 2, torch.tensor([1.0, 0]))["mode_kl"] == math.inf
    for bad in (torch.tensor([4]), torch.tensor([-1]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(BadInput, match=r"each in 0..3"):
            mode_statistics(bad, 4)
    with pytest.raises(BadInput, match="shares of 4 modes are wanted"):
        mode_statistics(torch.tensor([0]), 4, torch.ones(3))


def test_three_digits_are_a_thousand_modes_and_26000_draws_give_the_published_divergence():
    assert joint_labels([torch.tensor([1, 0]), torch.tensor([2, 0]), torch.tensor([3, 9])], 10).tolist() == [123, 9]
    digits = torch.randint(0, 10, (3, 26_000), generator=torch.Generator().manual_seed(0))
    found = mode_statistics(joint_labels(list(digits), 10), 1000)
    assert found["modes_covered"] == 1000 and found["mode_kl"] == pytest.approx(999 / 52_000, rel=0.1)


def test_samples_near_known_centres():
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    samples = torch.tensor([[0.0, 0.29], [0.0, 0.31], [10, 0], [10.2, 0], [5, 5]])
    found = near_centres(samples, centres, 0.1)
    expected = 1 / 3 * math.log(1) + 2 / 3 * math.log(2)
    assert found == {
        "modes_covered": 2,
        "num_modes": 3,
        "good_samples": 0.6,
        "mode_kl": pytest.approx(expected),
    }
    nothing = near_centres(samples + 50, centres, 0.1)
    assert nothing["modes_covered"] == 0 and nothing["good_samples"] == 0 and math.isnan(nothing["mode_kl"])


# ---- memorisation ---------------------------------------------------------------------------------------------------


def test_memorisation_by_hand():
    training = torch.tensor([[0.0], [1], [10], [11.5]])
    # Nearest: 0 (0.9 < 1: remembered), 1 (2 > 1), 10 (1.4 < 1.5), 11.5 (3 > 1.5).
    samples = torch.tensor([[-0.9], [3.0], [8.6], [14.5]])
    assert memorisation(samples, training) == 0.5
    assert memorisation(training, training) == 1


def test_memorisation_of_copies_and_of_fresh_draws(chunked):
    training = normal(400, 8)
    copies = training[torch.randint(0, 400, (300,), generator=torch.Generator().manual_seed(1))]
    assert memorisation(copies + 1e-3 * normal(300, 8, 2), training) == 1
    assert 0.2 < memorisation(normal(300, 8, 3), training) < 0.6
