"""One step by hand, who moves when, exact accumulation, and every option that changes the step."""

import copy
import json

import pytest
import torch
from accelerate.utils import DistributedType
from gan.small import SharedNoise, digits, logged, make_trainer

from hfgen.errors import BadInput
from hfgen.gan import GANArguments, GANTrainer, GANTrainingArguments, build_gan
from hfgen.gan.losses import LOSSES
from hfgen.gan.penalties import input_gradients, zero_centered

LOSS_OPTIONS = {name: {"loss": name} for name in LOSSES} | {"wasserstein": {"loss": "wasserstein", "weight_clip": 0.1}}


def begin(trainer):
    """As `train` does before its first step."""
    trainer._prepare_schedule()
    return trainer


def batches(trainer, count=1, size=16):
    made = [digits().__getitems__(range(i * size, (i + 1) * size)) for i in range(count)]
    return [trainer.prepare_batch(batch, None) for batch in made]


def parameters(network):
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def moved(network, before):
    assert before
    return {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("architecture", ["mlp", "dcgan", "resnet"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_each_phase_moves_every_parameter_of_its_network_and_none_of_the_other(
    loss, architecture, conditional, tmp_path
):
    options = LOSS_OPTIONS[loss] | {"architecture": architecture, "class_conditional": conditional}
    trainer = begin(make_trainer(tmp_path, training={"learning_rate": 1e-2}, **options))
    g, d = trainer.generator_network, trainer.discriminator_network
    for step in range(3):  # residual branches begin at zero, and their first layers stand still until they don't
        pairs = [trainer.batch_samples(batch) for batch in batches(trainer)]
        trainer.state.global_step = step
        before = parameters(g), parameters(d)
        trainer._discriminator_step(pairs)
        assert not moved(g, before[0])
        after_d = moved(d, before[1])
        before = parameters(g), parameters(d)
        trainer._generator_step(pairs)
        assert not moved(d, before[1])
        after_g = moved(g, before[0])
    # A constant added to all logits changes nothing that compares pairs, nor the hinges before any is reached.
    constant = {"discriminator.head.linear.bias"} if trainer.loss.boundary is None or loss == "hinge" else set()
    assert after_d >= before[1].keys() - constant
    assert after_g == before[0].keys()
    assert all(p.requires_grad for p in d.parameters())
    assert all(p.grad is None for network in (g, d) for p in network.parameters())


def test_a_step_by_hand(tmp_path):
    """Relativistic loss with R1 and R2, plain gradient descent, the same draws."""
    training = {"optim": "sgd", "learning_rate": 0.05}
    trainer = begin(make_trainer(tmp_path, trainer=SharedNoise, training=training, r1_weight=0.3, r2_weight=0.2))
    (batch,) = batches(trainer)
    g, d = (copy.deepcopy(n) for n in (trainer.generator_network, trainer.discriminator_network.discriminator))
    out = trainer.training_step([batch])
    real = (2 * batch["pixel_values"] - 1).requires_grad_()
    latents = trainer.draw_noise("latents", (16, 6))
    fake = g(latents).detach().requires_grad_()
    r, f = d(real), d(fake)
    gradients = input_gradients([r, f], [real, fake])
    d_loss = torch.nn.functional.softplus(f - r).mean()
    r1, r2 = map(zero_centered, gradients)
    (d_loss + 0.3 * r1 + 0.2 * r2).backward()
    norm = torch.cat([p.grad.flatten() for p in d.parameters()]).norm()
    with torch.no_grad():
        for p in d.parameters():
            p -= 0.05 * p.grad
    torch.testing.assert_close(parameters(trainer.discriminator_network.discriminator), parameters(d))
    expected = {"d_loss": d_loss, "r1": r1, "r2": r2, "d_grad_norm": norm, "d_accuracy": (r > f).float().mean()}
    expected["logit_max"] = torch.cat([r, f]).abs().max()
    fake_logits, real_logits = d(g(latents)), d(real).detach()
    g_loss = torch.nn.functional.softplus(real_logits - fake_logits).mean()
    slopes = torch.sigmoid(real_logits - fake_logits)  # minus the derivative of softplus(real - fake) by fake
    expected |= {"g_loss": g_loss, "g_logit_grad": slopes.mean(), "loss": d_loss + g_loss}
    grads = torch.autograd.grad(g_loss, list(g.parameters()))
    expected["g_grad_norm"] = torch.cat([grad.flatten() for grad in grads]).norm()
    for name, value in expected.items():
        torch.testing.assert_close(out[name], value.detach(), msg=lambda m, name=name: f"{name}: {m}")
    assert out.keys() == expected.keys()
    with torch.no_grad():
        for p, grad in zip(g.parameters(), grads, strict=True):
            p -= 0.05 * grad
    torch.testing.assert_close(parameters(trainer.generator_network), parameters(g))
    step = trainer.history[-1]
    assert step.keys() == {"d_accuracy", "g_logit_grad", "g_grad_norm", "d_grad_norm", "logit_max"}
    assert step == pytest.approx({name: out[name].item() for name in step})


ACCUMULATED = {
    "default": {},
    "conditional, WGAN-GP": {
        "class_conditional": True,
        "loss": "wasserstein",
        "gradient_penalty": "one_centered",
        "instance_noise": 0.1,
    },
    "two D steps, resnet": {"d_steps": 2, "architecture": "resnet", "loss": "hinge", "r1_weight": 0.5},
    "packs": {"packing": 2},
}


@pytest.mark.parametrize("case", ACCUMULATED)
def test_accumulating_equals_one_large_batch(case, tmp_path):
    ends = []
    for name, size, accumulation in (("large", 16, 1), ("small", 4, 4)):
        training = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
            "max_grad_norm": 1.0,
            "optim": "sgd",
            "learning_rate": 0.1,
        }
        trainer = make_trainer(tmp_path / name, trainer=SharedNoise, training=training, **ACCUMULATED[case])
        trainer.train()
        ends.append((parameters(trainer.generator_network), parameters(trainer.discriminator_network), trainer))
    start = make_trainer(tmp_path / "start", **ACCUMULATED[case])
    for k, network in enumerate((start.generator_network, start.discriminator_network)):
        assert len(moved(network, ends[0][k])) >= len(ends[0][k]) - 1
        for name, value in ends[0][k].items():
            torch.testing.assert_close(ends[1][k][name], value, rtol=1e-4, atol=1e-5, msg=name)
    for metric in ("d_loss", "g_loss", "d_accuracy", "logit_max", "g_logit_grad", "g_grad_norm", "d_grad_norm"):
        a, b = (logged(end[2], metric) for end in ends)
        assert len(a) == 6 and a == pytest.approx(b, rel=1e-3, abs=1e-5), metric


OPTIONS = {
    "CR": {"consistency": "real"},
    "bCR, packs": {"consistency": "both", "packing": 2},
    "DiffAugment": {"augment_policy": ["color", "translation", "cutout"]},
    "ADA": {"augment_policy": ["ada"]},
    "zero-centred between": {"loss": "non_saturating", "gradient_penalty": "zero_centered", "label_smoothing": 0.1},
    "spectral norm of both": {"loss": "hinge", "spectral_norm": "both"},
    "batch norm": {"loss": "hinge", "discriminator_batch_norm": True, "generator_batch_norm": True},
    "minibatch std, dropout": {"minibatch_std": True, "dropout": 0.2},
    "everything": {
        "class_conditional": True,
        "consistency": "both",
        "augment_policy": ["ada"],
        "instance_noise": 0.2,
        "minibatch_std": True,
        "gradient_penalty": "one_centered",
        "d_steps": 2,
        "penalty_every": 2,
    },
}


@pytest.mark.parametrize("architecture", ["mlp", "dcgan", "resnet"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_train_and_publish(architecture, option, tmp_path):
    trainer = make_trainer(tmp_path, architecture=architecture, **OPTIONS[option])
    before = parameters(trainer.generator_network)
    trainer.train()
    assert len(logged(trainer, "loss")) == 6
    assert len(moved(trainer.generator_network, before)) >= len(before) - 1
    assert (tmp_path / "generator" / "config.json").exists() and (tmp_path / "discriminator" / "config.json").exists()


def test_lazy_penalties_come_now_and_then_with_their_weight(tmp_path):
    trainer = make_trainer(tmp_path, r1_weight=0.5, r2_weight=0.0, penalty_every=3)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "r1" in entry] == [1, 4]
    totals = []
    for every in (1, 3):
        trainer = make_trainer(tmp_path, trainer=SharedNoise, r1_weight=0.5, r2_weight=0.0, penalty_every=every)
        real, labels = trainer.batch_samples(batches(trainer)[0])
        values = trainer._discriminator_loss(real, labels)
        totals.append((values["total"] - values["d_loss"]).item() / values["r1"].item())
    assert totals == pytest.approx([0.5, 1.5], rel=1e-5)


def test_penalties_fall_geometrically(tmp_path):
    trainer = make_trainer(tmp_path, trainer=SharedNoise, r1_weight=0.5, r2_weight=0.0, penalty_decay=0.01)
    trainer.state.max_steps = 10
    weights = []
    for step in (0, 5, 10):
        trainer.state.global_step = step
        values = trainer._discriminator_loss(*trainer.batch_samples(batches(trainer)[0]))
        weights.append((values["total"] - values["d_loss"]).item() / values["r1"].item())
    assert weights == pytest.approx([0.5, 0.05, 0.005], rel=1e-3)


def test_consistency_compares_each_sample_with_its_shifted_self(tmp_path):
    trainer = make_trainer(tmp_path, trainer=SharedNoise, consistency="both", consistency_weight=3.0, r1_weight=0)
    trainer.gan_args.r2_weight = 0.0
    real, labels = trainer.batch_samples(batches(trainer)[0])
    shifted = []
    original = trainer._shifted
    trainer._shifted = lambda samples: shifted.append((samples, original(samples))) or shifted[-1][1]
    values = trainer._discriminator_loss(real, labels)
    d = trainer.discriminator_network.discriminator
    assert len(shifted) == 2 and torch.equal(shifted[0][0], real)
    assert not torch.equal(shifted[0][0], shifted[0][1])
    expected = sum((d(a) - d(b)).square().mean() for a, b in shifted)
    torch.testing.assert_close(values["consistency"], expected.detach())
    torch.testing.assert_close(values["total"] - values["d_loss"], 3 * expected)


def test_instance_noise_falls_to_zero(tmp_path):
    trainer = begin(make_trainer(tmp_path, instance_noise=0.8, instance_noise_steps=4))
    deviations = []
    for step in range(6):
        trainer.state.global_step = step
        deviations.append(trainer._noise_deviation())
    assert deviations == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])
    trainer.state.global_step = 1
    trainer.generator.manual_seed(0)
    zeros = torch.zeros(64, 1, 8, 8)
    assert trainer._seen(zeros).std().item() == pytest.approx(0.6, rel=0.05)
    trainer.state.global_step = 4
    assert trainer._seen(zeros) is zeros


def test_weights_are_clipped(tmp_path):
    trainer = make_trainer(tmp_path, loss="wasserstein", weight_clip=0.02)
    trainer.train()
    largest = max(p.abs().max().item() for p in trainer.discriminator_network.parameters())
    assert largest == pytest.approx(0.02)
    assert max(p.abs().max().item() for p in trainer.generator_network.parameters()) > 0.1


def test_ada_rises_with_a_certain_discriminator_and_falls_with_a_guessing_one(tmp_path):
    trainer = begin(make_trainer(tmp_path, augment_policy=["ada"], loss="non_saturating"))
    assert trainer.ada.value == 0
    for sign, step in ((1, 3), (1, 7), (-1, 11)):
        trainer.state.global_step = step - 1
        before = trainer.ada.value
        trainer._signs.add(torch.tensor(16.0 * sign), 16)
        trainer._adapt()
        assert trainer.ada.value == before, "it adjusts every fourth step"
        trainer.state.global_step = step
        trainer._adapt()
        assert (trainer.ada.value - before) * sign == pytest.approx(16 / trainer.ada.ramp_images)
    assert trainer._signs.count == 0
    real, fake = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, -3.0, 0.0])
    assert trainer._certainty(real, fake).item() == 1
    trainer.loss = LOSSES["relativistic"]
    assert trainer._certainty(real, fake).item() == 1 and trainer._certainty(real, real).item() == 0


def test_real_and_generated_samples_are_augmented_in_both_phases(tmp_path, monkeypatch):
    seen = []
    trainer = begin(make_trainer(tmp_path, augment_policy=["translation"]))
    monkeypatch.setattr(
        "hfgen.gan.trainer.augment", lambda x, policy, p, generator: seen.append((policy, p, x.requires_grad)) or x
    )
    trainer.training_step(batches(trainer))
    assert seen == [(("translation",), 1.0, grad) for grad in (False, False, True, False)]


def test_d_steps_take_fresh_samples(tmp_path):
    trainer = make_trainer(tmp_path, d_steps=3, training={"max_steps": 2, "gradient_accumulation_steps": 2})
    seen, generated = [], []
    original, original_g = trainer._discriminator_loss, trainer._generator_loss
    trainer._discriminator_loss = lambda real, labels: seen.append(real) or original(real, labels)
    trainer._generator_loss = lambda real, labels: generated.append(real) or original_g(real, labels)
    trainer.train()
    assert len(seen) == 12 and len(generated) == 4
    assert len({tuple(row.tolist()) for real in seen for row in real.flatten(1)}) > 0.98 * 12 * 16
    assert torch.equal(generated[0], seen[4]) and torch.equal(generated[3], seen[11])
    assert trainer._step_size == 16 * 6


def test_two_learning_rates_follow_the_schedule(tmp_path):
    training = {"learning_rate": 0.1, "lr_scheduler_type": "linear", "max_steps": 4}
    trainer = make_trainer(tmp_path, discriminator_learning_rate=0.4, training=training)
    rates = []
    trainer._history.append = lambda *_: rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])
    trainer.train()
    assert sum(rates, []) == pytest.approx([0.1, 0.4, 0.075, 0.3, 0.05, 0.2, 0.025, 0.1])


def test_the_average_is_of_the_generator_alone(tmp_path):
    trainer = make_trainer(tmp_path, training={"ema_decay": 0.5})
    trainer.train()
    assert trainer.ema.weights == list(trainer.generator_network.parameters())
    raw, d = parameters(trainer.generator_network), parameters(trainer.discriminator_network)
    with trainer.published_weights():
        assert len(moved(trainer.generator_network, raw)) == len(raw)
        assert not moved(trainer.discriminator_network, d)
    assert not moved(trainer.generator_network, raw)


def test_noise_comes_from_the_steps_generator_alone(tmp_path):
    results = []
    for seed, elsewhere in ((1, 0), (1, 5), (2, 0)):
        trainer = begin(make_trainer(tmp_path, instance_noise=0.1, gradient_penalty="zero_centered"))
        trainer.generator.manual_seed(seed)
        torch.manual_seed(elsewhere)
        results.append(trainer.training_step(batches(trainer))["loss"].item())
    assert results[0] == results[1] != results[2]


def test_samples_for_the_monitors_leave_training_as_it_was(tmp_path):
    trainer = begin(make_trainer(tmp_path, class_conditional=True, generator_batch_norm=True))
    before = copy.deepcopy(trainer.generator_network.state_dict())
    state = trainer.generator.get_state()
    samples = trainer.sample(300, torch.Generator().manual_seed(3))
    assert samples.shape == (300, 1, 8, 8) and samples.abs().max() <= 1 and not samples.requires_grad
    assert torch.equal(samples, trainer.sample(300, torch.Generator().manual_seed(3)))
    noise = torch.randn(20, 6)
    assert torch.equal(trainer.sample(20, noise=noise), trainer.sample(20, noise=noise))
    assert trainer.generator_network.training and torch.equal(state, trainer.generator.get_state())
    after = trainer.generator_network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    labels = trainer.sample_labels(20_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(torch.from_numpy(digits().labels)) / len(digits())
    torch.testing.assert_close(torch.bincount(labels) / 20_000, shares, atol=0.02, rtol=0)


def test_real_samples_are_a_fixed_choice_in_the_networks_range(tmp_path):
    trainer = make_trainer(tmp_path)
    real = trainer.real_samples(50, seed=4)
    assert torch.equal(real, trainer.real_samples(50, seed=4)) and not torch.equal(
        real, trainer.real_samples(50, seed=5)
    )
    assert real.min() == -1 and real.max() == 1 and real.shape == (50, 1, 8, 8)
    pool = {tuple(row) for row in torch.from_numpy(digits().images).flatten(1).tolist()}
    assert all(tuple(row) in pool for row in ((real.flatten(1) + 1) * 127.5).round().int().tolist())
    assert len(trainer.real_samples(10**6, 0)) == len(digits())


def test_history_keeps_the_last_monitor_steps(tmp_path):
    trainer = make_trainer(tmp_path, training={"monitor_steps": 4})
    trainer.train()
    assert len(trainer.history) == 4
    assert [step["logit_max"] for step in trainer.history] == pytest.approx(logged(trainer, "logit_max")[-4:])


def test_evaluation_names_its_metrics(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 33}
    trainer = make_trainer(tmp_path, packing=2, training=options, evaluation=digits("validation"))
    from hfgen.evaluation import FeatureModel

    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
    trainer.__dict__["feature_model"] = FeatureModel(network, "a random projection", 16, 1)
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_fid" in entry]
    assert [entry["step"] for entry in found] == [3, 6]
    assert {"eval_kid", "eval_precision", "eval_recall", "eval_density", "eval_coverage", "eval_d_accuracy"} <= found[
        0
    ].keys()
    assert found[0]["eval_num_samples"] == found[0]["eval_num_reals"] == len(digits("validation"))
    again = trainer.evaluate()
    assert {k: v for k, v in again.items() if "runtime" not in k} == {
        k: v for k, v in found[1].items() if k.startswith("eval") and "runtime" not in k
    }


class Ring:
    fingerprint = "ring"

    def __len__(self):
        return 256

    def __getitems__(self, indices):
        angle = torch.as_tensor(indices).float()
        return {"samples": torch.stack([angle.cos(), angle.sin()], 1)}


def ring_trainer(output_dir, **options):
    gan_args = GANArguments(architecture="mlp", hidden_sizes=[16], latent_dim=2, **options)
    args = GANTrainingArguments(output_dir=str(output_dir), max_steps=4, save_strategy="no", use_cpu=True)
    return GANTrainer(*build_gan(gan_args, None, 2), args, gan_args, Ring(), Ring())


@pytest.mark.parametrize(
    ("option", "value"), [("augment_policy", ["ada"]), ("augment_policy", ["color"]), ("consistency", "real")]
)
def test_options_for_images_are_refused_for_vectors(tmp_path, option, value):
    with pytest.raises(BadInput, match=f"--{option} is for images, and these samples are vectors: leave it out"):
        ring_trainer(tmp_path, **{option: value}).train()


def test_vectors_train_too(tmp_path):
    trainer = ring_trainer(tmp_path)
    trainer.train()
    assert trainer.sample(5, torch.Generator()).shape == (5, 2)
    assert torch.equal(trainer.embed(trainer.real_samples(7)), trainer.real_samples(7))
    assert {"eval_fid", "eval_d_loss"} <= trainer.evaluate().keys()
    assert json.loads((tmp_path / "generator" / "config.json").read_text())["sample_size"] is None


def test_what_can_not_be_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="16 does not fill packs of 3"):
        make_trainer(tmp_path, packing=3)
    with pytest.raises(BadInput, match="5 samples are held out, and the scores take at least 6"):
        make_trainer(tmp_path, evaluation=digits().select(range(5)))
    with pytest.raises(BadInput, match="underflow in float16"):
        make_trainer(tmp_path, training={"fp16": True})
    for kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
        monkeypatch.setattr("accelerate.Accelerator.distributed_type", kind)
        with pytest.raises(BadInput, match=f"{kind.value} holds one model, and a GAN has two: launch with .*ddp.yaml"):
            make_trainer(tmp_path)


def test_a_nan_of_either_network_stops_the_run(tmp_path):
    for which in ("_discriminator_loss", "_generator_loss"):
        trainer = make_trainer(tmp_path / which)
        original = getattr(trainer, which)

        def sick(real, labels, trainer=trainer, original=original, which=which):
            found = original(real, labels)
            if trainer.state.global_step < 2:
                return found
            if which == "_generator_loss":
                return found[0] * float("nan"), found[1]
            return {name: value * float("nan") for name, value in found.items()}

        setattr(trainer, which, sick)
        with pytest.raises(BadInput, match="not finite at step 3 .*_loss nan"):
            trainer.train()
