"""The loop: accumulation, schedules, evaluation, best model, callbacks, alarms, and every way to be told 'no'."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from processes import environment, run
from toy import ToyData, ToyModel, ToyTrainer, build, same, weights
from transformers.trainer_callback import TrainerCallback, TrainerState

from hfgen.arguments import TrainingArguments
from hfgen.ema import EMA
from hfgen.errors import BadInput
from hfgen.monitor import Monitor
from hfgen.sampling import StepSampler
from hfgen.seeding import mix, seed_step


def arguments(tmp_path, **options) -> TrainingArguments:
    defaults = {"per_device_train_batch_size": 8, "max_steps": 12, "logging_steps": 3, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(tmp_path / "run"), **(defaults | options))


def history(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


# ---- order of samples and random draws


def test_an_epoch_is_a_permutation_cut_among_ranks_and_micro_batches():
    whole = np.concatenate(list(StepSampler(23, 12, seed=7, drop_last=False)))
    assert sorted(set(whole.tolist())) == list(range(23))
    assert len(whole) == 24
    assert whole[-1] == whole[0], "the last step is filled up from the epoch's start"
    parts = [list(StepSampler(23, 3, accumulation=2, seed=7, rank=r, world_size=2, drop_last=False)) for r in range(2)]
    woven = np.concatenate([parts[r][m] for m in range(4) for r in range(2)])
    assert woven.tolist() == whole.tolist()
    assert len(list(StepSampler(23, 12, seed=7))) == 1
    later = StepSampler(23, 3, accumulation=2, seed=7)
    later.set_position(0, 2)
    full = list(StepSampler(23, 3, accumulation=2, seed=7))
    assert [b.tolist() for b in later] == [b.tolist() for b in full[4:]]
    assert len(later) == 2
    other = StepSampler(23, 12, seed=7)
    other.set_position(1)
    assert next(iter(other)).tolist() != whole[:12].tolist()


def test_draws_are_a_function_of_seed_step_and_rank():
    generator = torch.Generator()

    def draw(*where):
        seed_step(generator, *where)
        return [torch.rand(1, generator=generator).item(), torch.rand(1).item(), np.random.rand()]

    first = draw(3, 100, 0)
    draw(3, 101, 0)
    assert draw(3, 100, 0) == first
    everything = [draw(s, t, r) for s in (3, 4) for t in (100, 101) for r in (0, 1)]
    assert len({x for draws in everything for x in draws}) == 24, "no two places share a draw"
    assert len({mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}) == 8000


# ---- accumulation and schedules


def test_accumulating_four_micro_batches_equals_one_batch_of_four_times_the_size(tmp_path):
    runs = {}
    for name, batch, accumulation in (("one", 32, 1), ("four", 8, 4)):
        args = arguments(
            tmp_path / name,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=5,
            max_steps=-1,
            lr_scheduler_type="cosine",
            warmup_steps=3,
            logging_steps=1,
            max_grad_norm=0.5,
            use_ema=True,
        )
        runs[name] = build(args, dropout=0.0)
        runs[name].train()
    one, four = runs["one"], runs["four"]
    assert one.state.global_step == four.state.global_step == 15
    rates = history(one, "learning_rate")
    assert rates == history(four, "learning_rate")
    assert rates[-1] == 0.0, "a cosine to 0 ends at 0"
    assert max(rates) == pytest.approx(1e-3)
    for (name, a), b in zip(one.model.state_dict().items(), four.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    for a, b in zip(one.ema.shadow, four.ema.shadow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history(one, "loss"), history(four, "loss"), rtol=1e-5)
    np.testing.assert_allclose(history(one, "grad_norm"), history(four, "grad_norm"), rtol=1e-4)


def test_weight_decay_leaves_biases_alone(tmp_path):
    trainer = build(arguments(tmp_path, weight_decay=0.1))
    decays = {g["weight_decay"]: {p.ndim for p in g["params"]} for g in trainer.optimizer.param_groups}
    assert decays == {0.1: {2}, 0.0: {1}}


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_optimizers_by_transformers_names(tmp_path, optim):
    trainer = build(arguments(tmp_path, optim=optim, learning_rate=0.01))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert all(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


# ---- EMA


def test_ema_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, 0.9)
    for value in (1.0, 2.0):
        torch.nn.init.constant_(model.weight, value)
        ema.step()
    first = 0 + (1 - 2 / 11) * 1.0
    assert ema.shadow[0].item() == pytest.approx(first + (1 - 3 / 12) * (2.0 - first))
    with ema.applied():
        assert model.weight.item() == pytest.approx(ema.shadow[0].item())
    assert model.weight.item() == 2.0


def test_the_moving_average_is_published_beside_the_raw_weights(tmp_path):
    trainer = build(arguments(tmp_path, use_ema=True, ema_decay=0.5, save_steps=6))
    trainer.train()
    published = weights(tmp_path / "run")
    raw = trainer.model.state_dict()
    assert not same(published, raw)
    names = [n for n, _ in trainer.model.named_parameters()]
    assert same(published, dict(zip(names, trainer.ema.shadow, strict=True)))
    from safetensors.torch import load_file

    beside = load_file(tmp_path / "run" / "checkpoint-12" / "training_state" / "model.safetensors")
    assert same(beside, raw)


# ---- evaluation, best model, limits


def test_evaluation_covers_every_sample_once_and_repeats(tmp_path):
    seen = []

    class Seeing(ToyTrainer):
        def evaluation_step(self, batch):
            seen.extend(batch["index"].tolist())
            return {"first": batch["index"].float().mean(), **super().evaluation_step(batch)}

    trainer = build(arguments(tmp_path, per_device_eval_batch_size=7), trainer=Seeing)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert seen == list(range(20)) * 2
    assert first["eval_first"] == pytest.approx(np.mean(range(20)))
    assert first["eval_loss"] == second["eval_loss"]
    assert trainer.model.training


class Worsening(ToyTrainer):
    """Its evaluations are best at step 6."""

    def evaluation_step(self, batch):
        return {"loss": torch.tensor(abs(self.state.global_step - 6.0))}


def test_the_best_model_is_checkpointed_and_published(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="no", save_total_limit=1)
    args.load_best_model_at_end = True
    trainer = build(args, trainer=Worsening)
    trainer.train()
    assert trainer.state.best_global_step == 6
    assert trainer.state.best_metric == 0.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "run" / "checkpoint-6"))


def test_early_stopping(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, early_stopping_patience=2, max_steps=100)
    trainer = build(args, trainer=Worsening)
    trainer.train()
    assert trainer.state.global_step == 10


def test_save_total_limit_keeps_the_newest(tmp_path):
    build(arguments(tmp_path, save_steps=3, save_total_limit=2, eval_strategy="no")).train()
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]
    assert not list((tmp_path / "run").rglob(".*partial"))


def test_an_unknown_metric_names_those_there_are(tmp_path):
    args = arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model="fid", eval_strategy="steps")
    with pytest.raises(BadInput, match=r"fid is not measured; there are loss, error"):
        build(args).train()


# ---- callbacks, logs, trackers


def test_callbacks_hear_transformers_events_in_order(tmp_path):
    heard = []

    class Listening(TrainerCallback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                heard.append(name)
            return super().__getattribute__(name)

    args = arguments(tmp_path, max_steps=2, logging_steps=2, save_steps=2, eval_strategy="no", max_grad_norm=1.0)
    build(args, callbacks=[Listening()]).train()
    step = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
    begin = ["on_init_end", "on_train_begin", "on_epoch_begin"]
    assert heard == [*begin, *step, *step, "on_log", "on_save", "on_epoch_end", "on_train_end"]


def test_trainer_state_loads_as_transformers_own(tmp_path):
    build(arguments(tmp_path, eval_strategy="steps", learning_rate=0.01)).train()
    state = TrainerState.load_from_json(str(tmp_path / "run" / "trainer_state.json"))
    assert state.global_step == 12
    assert [e["step"] for e in state.log_history if "loss" in e] == [3, 6, 9, 12]
    losses = [e["eval_loss"] for e in state.log_history if "eval_loss" in e]
    assert losses[-1] < losses[0]


def test_a_stream_goes_through_epochs_until_max_steps(tmp_path):
    trainer = build(arguments(tmp_path, max_steps=12), stream=True)  # 40 samples: 5 steps an epoch
    trainer.train()
    assert trainer.state.global_step == 12
    assert trainer._stream_position == (2, 2)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = build(arguments(tmp_path, report_to=["tensorboard"], project="toy"))
    trainer.train()
    accumulator = EventAccumulator(str(tmp_path / "run" / "toy"))
    accumulator.Reload()
    assert [e.value for e in accumulator.Scalars("loss")] == pytest.approx(history(trainer, "loss"), rel=1e-6)
    assert [e.step for e in accumulator.Scalars("loss")] == [3, 6, 9, 12]


def test_trackio_offline(tmp_path):
    pytest.importorskip("trackio")
    where = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    flags = ["--per_device_train_batch_size=8", "--max_steps=12", "--logging_steps=3", "--report_to=trackio"]
    run(1, *flags, f"--output_dir={tmp_path / 'run'}", "--project=toy", "--run_name=first", **where)
    script = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as s;"
        "print(json.dumps([s.get_metric_values('toy', 'first', 'loss'), s.get_run_config('toy', 'first')]))"
    )
    read = subprocess.run([sys.executable, "-c", script], env=environment() | where, capture_output=True, text=True)
    values, config = json.loads(read.stdout.splitlines()[-1])
    saved = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [v["value"] for v in values] == pytest.approx([e["loss"] for e in saved["log_history"] if "loss" in e])
    assert [v["step"] for v in values] == [3, 6, 9, 12]
    assert config["per_device_train_batch_size"] == 8


# ---- alarms


class Always(Monitor):
    name = "test alarm"
    ill = True

    def check(self, trainer):
        return ("the value is 3: do that", {"value": 3.0}) if self.ill else None


def test_an_alarm_speaks_once_after_three_hits_and_again_after_a_recovery(tmp_path, capsys):
    trainer = build(arguments(tmp_path, monitor_steps=2, max_steps=24, eval_strategy="no"))
    monitor = Always(trainer)
    trainer.add_callback(monitor)
    trainer.add_callback(Recovering(monitor))
    trainer.train()
    assert [e["step"] for e in trainer.alarms] == [6, 20]
    assert trainer.alarms[0] | {"epoch": 0} == {
        "alarm": "test alarm", "message": "the value is 3: do that", "value": 3.0, "epoch": 0, "step": 6,
    }  # fmt: skip
    assert "hfgen: alarm at step 6: test alarm: the value is 3: do that" in capsys.readouterr().err
    saved = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert saved["log_history"].count(trainer.alarms[0]) == 1
    assert saved["stateful_callbacks"]["Always"]["attributes"] == {"hits": 5, "spoke": True}


class Recovering(TrainerCallback):
    def __init__(self, monitor):
        self.monitor = monitor

    def on_step_end(self, args, state, control, **kwargs):
        self.monitor.ill = state.global_step != 13


def test_stop_on_alarm(tmp_path):
    trainer = build(arguments(tmp_path, monitor_steps=1, max_steps=24, stop_on_alarm=True))
    trainer.add_callback(Always(trainer))
    trainer.train()
    assert trainer.state.global_step == 3
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


@pytest.mark.parametrize(("steps", "alarms"), [(12, [12]), (20, [20]), (10, [])])
def test_a_run_too_short_for_three_hits_is_told_at_its_end(steps, alarms, tmp_path):
    """Two checks must say so, and a check of the last step is one check."""
    trainer = build(arguments(tmp_path, monitor_steps=10, max_steps=steps))
    trainer.add_callback(Always(trainer))
    trainer.train()
    assert [alarm["step"] for alarm in trainer.alarms] == alarms


# ---- bad input


def test_a_used_output_dir_is_refused(tmp_path):
    build(arguments(tmp_path, save_steps=6)).train()
    with pytest.raises(BadInput, match=r"already holds checkpoint-12: continue it with --resume_from_checkpoint true"):
        build(arguments(tmp_path)).train()
    trainer = build(arguments(tmp_path, max_steps=15))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 15


@pytest.mark.parametrize("at", [1, 8])
def test_a_loss_that_is_nan_names_the_step_and_keeps_the_checkpoint(tmp_path, at):
    trainer = build(arguments(tmp_path, save_steps=5))
    trainer.nan_at = at
    kept = "no checkpoint was written before" if at == 1 else "checkpoint-5 is kept"
    with pytest.raises(BadInput, match=rf"not finite at step {at} \(loss nan, error .*{kept}.*--learning_rate"):
        trainer.train()
    state = tmp_path / "run" / "checkpoint-5"
    assert state.is_dir() == (at == 8)
    if at == 8:
        assert all(torch.isfinite(w).all() for w in weights(state).values())


def test_a_checkpoint_of_another_trainer_or_model_is_refused(tmp_path):
    build(arguments(tmp_path, save_steps=6)).train()

    class OtherTrainer(ToyTrainer):
        pass

    with pytest.raises(BadInput, match="was written by ToyTrainer, this is OtherTrainer"):
        build(arguments(tmp_path), trainer=OtherTrainer).train(resume_from_checkpoint=True)
    wider = ToyTrainer(torch.nn.Linear(8, 9), arguments(tmp_path), ToyData(), ToyData())
    with pytest.raises(BadInput, match=r"checkpoint-12 can't be resumed with these options"):
        wider.train(resume_from_checkpoint=True)
    with pytest.raises(BadInput, match=r"is not a checkpoint of hfgen; .* holds checkpoint-6, checkpoint-12"):
        build(arguments(tmp_path)).train(resume_from_checkpoint=str(tmp_path))
    damaged = tmp_path / "run" / "checkpoint-12" / "training_state" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"checkpoint-12 can't be resumed"):
        build(arguments(tmp_path)).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; it must be at least 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"logging_steps": 2.5}, "whole number"),
        ({"lr_scheduler_type": "cosinus"}, r"did you mean cosine\?"),
        ({"lr_scheduler_kwargs": "3"}, "must be a mapping"),
        ({"report_to": ["tensorbord"]}, r"did you mean tensorboard\?"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"load_best_model_at_end": True, "eval_strategy": "no"}, "need evaluations"),
        ({"num_train_epochs": 0.0, "max_steps": -1}, "num_train_epochs is 0.0"),
    ],
)
def test_options_out_of_range(tmp_path, options, line):
    with pytest.raises(BadInput, match=line):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"optim": "adamw_toch"}, r"did you mean adamw_torch\?"),
        ({"fp16": True}, "needs a GPU"),
        ({"per_device_train_batch_size": 100}, "96 samples, but one optimizer step takes 100"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "does not fit cosine"),
    ],
)
def test_options_that_can_not_run(tmp_path, options, line):
    with pytest.raises(BadInput, match=line):
        build(arguments(tmp_path, **options)).train()


def test_data_that_can_not_be_trained_on(tmp_path):
    with pytest.raises(BadInput, match="no known length: set --max_steps"):
        build(arguments(tmp_path, max_steps=-1), stream=True).train()
    with pytest.raises(BadInput, match="fewer samples than one optimizer step"):
        build(arguments(tmp_path, per_device_train_batch_size=64), stream=True).train()
    with pytest.raises(BadInput, match="nothing to evaluate on"):
        ToyTrainer(ToyModel(), arguments(tmp_path), ToyData()).train()
