"""The alarms' statistics by hand, and what they say of generators that are healthy or ill in a known way."""

import json
import math
from collections import deque
from types import SimpleNamespace

import pytest
import torch

from hfgen.gan.arguments import GANArguments
from hfgen.gan.losses import LOSSES
from hfgen.gan.monitors import Instability, ModeCollapse, Probe, VanishingGradients, gan_monitors
from hfgen.gan.monitors.collapse import collision_shares, sample_ratio
from hfgen.gan.monitors.instability import drift, packed, projected, spikes, unpacked

CENTRES = torch.tensor([[x, y] for x in (-4.0, 0, 4) for y in (-4.0, 0, 4)])
CALM = {"d_accuracy": 0.7, "g_logit_grad": 0.5, "g_grad_norm": 1.0, "d_grad_norm": 2.0, "logit_max": 3.0}


def grid(count: int, seed, modes: int = 9) -> torch.Tensor:
    """Nine clusters, or the first few of them."""
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    index = torch.randint(modes, (count,), generator=generator)
    return CENTRES[index] + 0.3 * torch.randn(count, 2, generator=generator)


class Run:
    """What the monitors see of a trainer whose generator draws from a known distribution.

    Args:
        make: (step, count, generator) -> samples (count, d).
        history: step -> a step's values.
    """

    def __init__(self, make=None, history=None, steps=400, every=20, **options):
        self.gan_args = GANArguments(architecture="mlp", **options)
        self.loss = LOSSES[self.gan_args.loss]
        self.args = SimpleNamespace(monitor_steps=every, seed=0, learning_rate=2e-4)
        self.state = SimpleNamespace(global_step=0, max_steps=steps)
        self.make = make or (lambda step, count, generator: grid(count, generator))
        self.values = history or (lambda step: {})
        self.history, self.alarms = deque(maxlen=every), []
        self.monitors = gan_monitors(self)

    def real_samples(self, count, seed):
        return grid(count, seed + 100)

    def sample(self, count, generator=None, noise=None):
        self.drawn = getattr(self, "drawn", 0) + 1
        return self.make(self.state.global_step, count, generator)

    def embed(self, samples):
        return samples

    def alarm(self, name, message, **values):
        assert "\n" not in message and all(math.isfinite(value) for value in values.values())
        json.dumps(values)
        self.alarms.append((name, self.state.global_step, message, values))

    def train(self, until=None):
        while self.state.global_step < (until or self.state.max_steps):
            self.state.global_step += 1
            self.history.append(CALM | self.values(self.state.global_step))
            for monitor in self.monitors:
                monitor.on_step_end(self.args, self.state, None)
        if until is None:
            for monitor in self.monitors:
                monitor.on_train_end(self.args, self.state, None)
        return self

    @property
    def heard(self) -> list[tuple[str, int]]:
        return [(name, step) for name, step, *_ in self.alarms]


# ---- statistics by hand ---------------------------------------------------------------------------------------------


def test_collisions_by_hand():
    points = torch.tensor([[0.0], [1], [3], [7]]).double()  # distances 1 2 3 4 6 7
    shares = collision_shares(points, (0.4, 0.0))
    assert shares == {3.0: pytest.approx(3 / 6), 1.0: pytest.approx(1 / 6)}
    assert sample_ratio({3.0: 3 / 6}, points * 0.5) == pytest.approx((3 / 6) / (5 / 6))
    assert sample_ratio({3.0: 3 / 6}, points * 10) == pytest.approx((3 / 6) / (1 / 6))  # at least one pair
    assert sample_ratio(shares, points * 0.0) == pytest.approx(1 / 6)
    # Equal data collide as often as they are equal: that is no collapse.
    assert collision_shares(torch.tensor([[0.0], [0], [0], [1]]), (0.01,)) == {0.0: pytest.approx(0.5)}


def test_the_sample_ratio_is_the_share_of_the_support():
    """Of nine modes three are left: pairs within the reach of a mode are three times as frequent."""
    shares = collision_shares(grid(2000, 0).double(), (0.01, 0.1))
    assert sample_ratio(shares, grid(2000, 1).double()) == pytest.approx(1, abs=0.15)
    assert sample_ratio(shares, grid(2000, 1, modes=3).double()) == pytest.approx(1 / 3, abs=0.06)
    assert sample_ratio(shares, grid(2000, 1, modes=1).double()) == pytest.approx(1 / 9, abs=0.03)


def test_spikes_by_hand():
    assert spikes([1.0] * 17 + [10.1, 9.9, 50.0]) == pytest.approx(2 / 20)
    assert spikes([0.0] * 10) == 0
    assert math.isnan(spikes([1.0, math.nan])) and math.isnan(spikes([1.0, math.inf]))


def test_drift_by_hand():
    reals = torch.tensor([[0.0, 0], [2, 0], [0, 4], [2, 4]])  # variance 1 + 4
    before = torch.zeros(2, 2)
    after = torch.tensor([[3.0, 1], [0, 0]])
    assert drift(before, after, reals) == pytest.approx(math.sqrt(5 / 5))
    x, y = grid(4000, 1), grid(4000, 2)
    assert drift(x, y, grid(4000, 3)) == pytest.approx(math.sqrt(2), rel=0.03)  # nothing remains
    wide = torch.randn(500, 2048, generator=torch.Generator().manual_seed(0))
    other = torch.randn(500, 2048, generator=torch.Generator().manual_seed(1))
    assert projected(wide).shape == (500, 64) and projected(x) is x
    assert drift(projected(wide), projected(other), projected(wide)) == pytest.approx(math.sqrt(2), rel=0.05)


def test_what_the_checkpoint_keeps_is_exact():
    samples = grid(64, 0)
    assert torch.equal(unpacked(json.loads(json.dumps(packed(samples)))), samples)


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_silent(seed):
    def fresh(step, count, generator):
        return grid(count, seed * 1000 + 7) + 0.02 * torch.randn(count, 2, generator=generator) * math.sin(step)

    run = Run(fresh).train()
    assert run.alarms == []
    values = run.monitors[0].measure(run)
    assert values["coverage"] > 0.93 and 0.7 < values["sample_ratio"] < 1.3
    assert run.drawn == 400 // 20 + 1 - 1 + (1 if run.state.global_step % 20 else 0)  # one set a check for all three


def test_a_young_generator_may_be_anything_but_an_old_one_may_not():
    def blob_until_300(step, count, generator):
        return grid(count, 7) if step > 300 else 0.01 * torch.randn(count, 2, generator=generator)

    assert Run(blob_until_300, steps=2000).train().alarms == []
    assert ("mode collapse", 140) in Run(blob_until_300, steps=400).train().heard


@pytest.mark.parametrize("modes", [1, 3])
def test_collapse_is_named_with_values_and_remedy_after_three_hits(modes):
    run = Run(lambda step, count, generator: grid(count, 7, modes if step > 200 else 9)).train()
    assert run.heard == [("mode collapse", 260)]
    _, _, message, values = run.alarms[0]
    assert values["sample_ratio"] < 0.5 and values["coverage"] == pytest.approx(modes / 9, abs=0.06)
    assert f"{values['coverage']:.0%} of the real samples" in message
    assert message.endswith("with --minibatch_std true, or --packing 2")


def test_a_coverage_that_still_grows_is_that_of_a_generator_that_learns():
    def one_more_mode_every(steps):
        return lambda step, count, generator: grid(count, 7, min(4, 1 + step // steps))

    learning, stuck = Run(one_more_mode_every(80), steps=250), Run(one_more_mode_every(10**6), steps=250)
    learning.monitors[0].patience = stuck.monitors[0].patience = 5
    assert learning.train().heard == [] and stuck.train().heard == [("mode collapse", 160)]
    late = Run(one_more_mode_every(80), steps=600)  # four of nine are all it learns, from step 240 on
    late.monitors[0].patience = 5
    assert late.train().heard == [("mode collapse", 340)]


def test_the_remedy_of_collapse_is_one_that_was_not_tried():
    def of(**options):
        return Run(lambda step, count, generator: grid(count, 7, 1), **options).train().alarms[0][2]

    assert "use --loss relativistic" in of(loss="hinge")
    assert "--r1_weight 1" in of(r1_weight=0.0, r2_weight=0.0)
    assert "lower --learning_rate" in of(packing=2)


def test_few_modes_of_another_width_are_a_collapse_too():
    """A mode that is wider than the real ones hides the near-duplicates, not that all are in one place."""
    wide = Run(lambda step, count, generator: CENTRES[0] + 0.8 * torch.randn(count, 2, generator=generator)).train()
    assert wide.heard[0] == ("mode collapse", 140)


def test_scattered_samples_are_bad_but_no_collapse():
    run = Run(lambda step, count, generator: 14 * torch.rand(count, 2, generator=generator) - 7).train()
    assert run.monitors[0].measure(run)["coverage"] < 0.9 and run.alarms == []


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"d_accuracy": 1.0, "g_logit_grad": 0.01}, "its loss changes by 0.01 for each unit of a logit"),
        ({"d_accuracy": 0.99, "g_grad_norm": 0.015}, "its gradient's norm is 0.015, 1.5% of the peak"),
    ],
)
def test_vanishing_gradients_are_named(values, expected):
    run = Run(history=lambda step: values if step > 200 else {}, loss="minimax").train()
    assert [name for name, _ in run.heard] == ["vanishing gradients"] and 240 <= run.heard[0][1] <= 280
    assert expected in run.alarms[0][2] and run.alarms[0][2].endswith(
        "use --loss non_saturating, or relativistic with its penalties"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"d_accuracy": 1.0},  # sure, but the generator learns
        {"d_accuracy": 0.97, "g_logit_grad": 0.001, "g_grad_norm": 1e-6},
        {"d_accuracy": 1.0, "g_grad_norm": 0.03, "g_logit_grad": 0.03},
    ],
)
def test_half_of_it_is_no_vanishing(values):
    assert Run(history=lambda step: values if step > 200 else {}).train().alarms == []


def test_one_high_gradient_does_not_make_the_peak():
    run = Run(history=lambda step: {"d_accuracy": 1.0, "g_grad_norm": 1e4 if step == 5 else 1.0}).train()
    assert run.alarms == [] and run.monitors[1].peak == 1.0


@pytest.mark.parametrize(
    "name, change, expected",
    [
        ("logits", {"logit_max": 150.0}, "a logit reached 150"),
        ("norms", {"d_grad_norm": 100.0}, "20% of the gradients were spikes of 10 times the median"),
    ],
)
def test_blown_up_values_are_instability(name, change, expected):
    run = Run(history=lambda step: change if step > 200 and step % 5 == 0 else {}, loss="hinge").train()
    assert run.heard == [("instability", 260)] and expected in run.alarms[0][2]
    assert run.alarms[0][2].endswith("--r1_weight 1 --r2_weight 1, or lower --learning_rate")


def test_logits_that_mean_only_differences_may_be_large():
    large = {"logit_max": 1e4}
    assert Run(history=lambda step: large, loss="relativistic").train().alarms == []
    assert Run(history=lambda step: large, loss="wasserstein", weight_clip=0.1).train().alarms == []


def test_samples_that_become_others_are_instability():
    run = Run(lambda step, count, generator: grid(count, step)).train()
    assert run.heard == [("instability", 140)]
    message, values = run.alarms[0][2:]
    assert "within 20 steps samples of the same noise moved 1.4 times the real standard deviation" in message
    assert message.endswith("lower --learning_rate (it is 0.0002)")
    assert values["drift"] == pytest.approx(math.sqrt(2), rel=0.15)


def test_the_way_is_that_of_at_most_100_steps():
    """A generator that wanders: far in 400 steps, not far in 100."""

    def wander(step, count, generator):
        angle = torch.tensor(step * math.pi / 2 / 400)
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        return grid(count, 7) @ turn

    run = Run(wander, steps=2400, every=400).train()
    values = run.monitors[2].measure(run)
    assert [n for n in run.heard if n[0] == "instability"] == []
    # Turned by 22.5 degrees: 2 sin(11.25 degrees) times the distance from the centre.
    assert run.monitors[2].before and 0.3 < values["drift"] < 0.45


def test_a_value_that_is_not_finite_is_told_at_once():
    run = Run(history=lambda step: {"g_grad_norm": math.nan} if step == 215 else {}).train()
    assert run.heard == [("instability", 220)] and "a value is not finite" in run.alarms[0][2]
    assert "drift" in run.alarms[0][3] and "spikes" not in run.alarms[0][3]
    ill = Run(lambda step, count, generator: grid(count, 7) * (math.nan if step >= 220 else 1)).train()
    assert ill.heard == [("instability", 220)]


def test_a_run_that_ends_on_a_check_counts_it_once():
    def ill_from(step_of_illness):
        return lambda step, count, generator: grid(count, 7, 1 if step >= step_of_illness else 9)

    assert Run(ill_from(400), steps=400).train().heard == []
    assert Run(ill_from(380), steps=400).train().heard == [("mode collapse", 400)]
    assert Run(ill_from(395), steps=410).train().heard == [("mode collapse", 410)]


def test_a_resumed_run_speaks_when_the_other_would():
    def make(step, count, generator):
        return grid(count, step if step > 200 else 7, 9)

    def history(step):
        return {"d_accuracy": 1.0, "g_grad_norm": 0.01 if step > 210 else 1.0}

    whole = Run(make, history).train()
    assert len(whole.alarms) == 2
    for stop in (220, 230, 240, 300):
        first = Run(make, history).train(until=stop)
        second = Run(make, history)
        second.state.global_step = stop
        second.history.extend(first.history)
        for before, after in zip(first.monitors, second.monitors, strict=True):
            for name, value in json.loads(json.dumps(before.state()))["attributes"].items():
                setattr(after, name, value)
        second.train()
        assert [alarm[:3] for alarm in first.alarms + second.alarms] == [alarm[:3] for alarm in whole.alarms]


class Pictures(Run):
    """Its samples have the shape of images, and an embedding that is told."""

    def real_samples(self, count, seed):
        return super().real_samples(count, seed).view(-1, 2, 1, 1)

    def sample(self, count, generator=None, noise=None):
        return super().sample(count, generator, noise).view(-1, 2, 1, 1)

    def embed(self, samples):
        assert samples.ndim == 4
        return samples.flatten(1)


def test_in_features_many_samples_in_one_place_are_none_if_no_two_are_the_same():
    """Wider than a real mode, and all around one of them."""

    def wide(step, count, generator):
        return CENTRES[0] + 0.8 * torch.randn(count, 2, generator=generator)

    assert Pictures(wide).train().alarms == [] and Run(wide).train().heard[0][0] == "mode collapse"


@pytest.mark.parametrize("modes, heard", [(1, True), (2, True), (4, False)])
def test_in_features_only_a_stronger_likeness_is_a_collapse(modes, heard):
    def make(step, count, generator):
        return grid(count, 7, modes)

    assert (Pictures(make).train().heard == [("mode collapse", 140)]) is heard
    assert Run(make).train().heard == [("mode collapse", 140)]


@pytest.mark.parametrize("share, heard", [(0.9, True), (0.35, False)])
def test_in_features_only_a_longer_way_is_instability(share, heard):
    """A share of the samples is drawn anew at each check: a drift of (2 share)^(1/2)."""

    def make(step, count, generator):
        return torch.where(torch.arange(count)[:, None] % 100 < 100 * share, grid(count, step), grid(count, 7))

    assert (Pictures(make).train().heard == [("instability", 140)]) is heard
    assert Run(make).train().heard == [("instability", 140)]


def test_each_class_watches_alone_too():
    run = Run(lambda step, count, generator: grid(count, 7, 1))
    run.monitors = [ModeCollapse(run), VanishingGradients(run), Instability(run, patience=1)]
    run.train()
    assert run.heard == [("mode collapse", 140)]
    assert isinstance(run.monitors[0].probe, Probe) and run.monitors[0].probe is not run.monitors[2].probe
