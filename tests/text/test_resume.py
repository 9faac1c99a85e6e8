"""Kill -9 at any moment, run the same command again, and the weights are those of the run that nobody killed."""

import json
import random

import numpy as np
import pytest
import torch
from text.recipe_runs import killed_at, same, train, weights

from hfgen.errors import BadInput
from hfgen.text.resume import EpochDataset, EpochStream, ExactResume

TINY = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, attention_dropout: 0.1}"
FLAGS = [
    f"--config_overrides={TINY}",
    "--vocab_size=300",
    "--block_size=32",
    "--per_device_train_batch_size=4",
    "--max_train_samples=3",
    "--max_eval_samples=2",
    "--max_steps=40",
    "--learning_rate=1e-2",
    "--lr_scheduler_type=cosine",
    "--warmup_steps=5",
    "--logging_steps=7",
    "--eval_strategy=steps",
    "--eval_steps=13",
    "--save_steps=6",
]
VARIANTS = {
    "plain": [],
    "muon": ["--optim=muon"],
    "accumulation": ["--gradient_accumulation_steps=3", "--max_steps=20"],
    "epochs": ["--per_device_train_batch_size=64", "--max_steps=25"],
    "gradual unfreezing": ["--unfreeze_at={10: ['*layers.1*'], 20: ['*layers.0*']}"],
    "best model": ["--load_best_model_at_end=true", "--save_steps=13", "--early_stopping_patience=5"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_cut_short_twice_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, cache, variant):
    flags = [*FLAGS, cache, *VARIANTS[variant]]
    whole = train("pretrain_causal_lm", tmp_path / "whole", *flags)
    flags.append("--resume_from_checkpoint=true")
    for step in (8, 15):
        killed_at(monkeypatch, step, "pretrain_causal_lm", tmp_path / "cut", *flags)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    mended = train("pretrain_causal_lm", tmp_path / "cut", *flags)
    assert same(weights(whole), weights(mended))
    histories = [json.loads((d / "trainer_state.json").read_text())["log_history"] for d in (whole, mended)]
    for metric in ("loss", "eval_loss"):
        a, b = ([(e["step"], e[metric]) for e in history if metric in e] for history in histories)
        assert len(a) >= 1
        assert a[-1] == b[-1] if metric == "eval_loss" else a[-1][0] == b[-1][0]


def test_a_run_that_had_ended_but_for_its_last_save_is_not_trained_further(tmp_path, cache):
    whole = train("pretrain_causal_lm", tmp_path / "run", *FLAGS, cache)
    before = weights(whole)
    (whole / "model.safetensors").unlink()
    train("pretrain_causal_lm", whole, *FLAGS, cache, "--resume_from_checkpoint=true")
    assert same(before, weights(whole))


def test_a_half_written_checkpoint_is_not_resumed(tmp_path, monkeypatch, cache):
    flags = [*FLAGS, cache]
    whole = train("pretrain_causal_lm", tmp_path / "whole", *flags)
    killed_at(monkeypatch, 14, "pretrain_causal_lm", tmp_path / "cut", *flags)
    assert (tmp_path / "cut" / "checkpoint-12").is_dir()
    (tmp_path / "cut" / "checkpoint-12" / "training_state" / "hfgen_state.json").unlink()
    (tmp_path / "cut" / "checkpoint-12" / "model.safetensors").write_bytes(b"half")
    train("pretrain_causal_lm", tmp_path / "cut", *flags, "--resume_from_checkpoint=true")
    assert same(weights(whole), weights(tmp_path / "cut"))


def test_old_checkpoints_are_removed_once_the_new_one_is_whole(tmp_path, cache):
    run = train("pretrain_causal_lm", tmp_path / "run", *FLAGS, cache, "--save_total_limit=1")
    assert [p.name for p in run.glob("checkpoint-*")] == ["checkpoint-40"]
    assert not list(run.rglob("training_args.bin"))


def test_a_loss_that_is_not_finite_stops_in_one_line(tmp_path, cache):
    with pytest.raises(BadInput, match=r"not finite at step \d+; .*--learning_rate") as error:
        train("pretrain_causal_lm", tmp_path / "run", *FLAGS, cache, "--learning_rate=1e20", "--max_grad_norm=0")
    assert "\n" not in str(error.value)


def test_another_model_than_the_checkpoints_is_one_line(tmp_path, monkeypatch, cache):
    killed_at(monkeypatch, 8, "pretrain_causal_lm", tmp_path / "run", *FLAGS, cache)
    flags = [f for f in FLAGS if "overrides" not in f] + [f"--config_overrides={TINY.replace('32', '48')}", cache]
    with pytest.raises(BadInput, match=r"checkpoint-6 can't be resumed with these options") as error:
        train("pretrain_causal_lm", tmp_path / "run", *flags, "--resume_from_checkpoint=true")
    assert "\n" not in str(error.value)


def test_used_folders_are_refused(tmp_path, monkeypatch, cache):
    killed_at(monkeypatch, 8, "pretrain_causal_lm", tmp_path / "run", *FLAGS, cache)
    with pytest.raises(BadInput, match="already holds checkpoint-6"):
        train("pretrain_causal_lm", tmp_path / "run", *FLAGS, cache)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index


def test_the_order_and_the_draws_are_functions_of_seed_epoch_and_position():
    def look(epoch, positions, seed=1):
        data = EpochDataset(Numbers(), seed)
        data.set_epoch(epoch)
        return data.__getitems__(positions), torch.rand(3).tolist(), np.random.rand(), random.random()

    assert look(3, [2, 3]) == look(3, [2, 3])
    assert look(3, [2, 3])[1:] != look(3, [4, 3])[1:]
    assert look(3, [2, 3])[1:] != look(4, [2, 3])[1:]
    assert look(3, [2, 3])[1:] != look(3, [2, 3], seed=2)[1:]
    whole, _, _, _ = look(0, list(range(10)))
    assert sorted(whole) == list(range(10))
    assert whole != list(range(10))
    assert look(1, list(range(10)))[0] != whole


def test_a_streams_draws_are_functions_of_seed_epoch_and_position():
    def draws(epoch):
        stream = EpochStream(list("abcd"), 1)
        stream.set_epoch(epoch)
        return [(sample, torch.rand(1).item()) for sample in stream]

    assert [sample for sample, _ in draws(0)] == list("abcd")
    assert draws(0) == draws(0)
    assert {value for _, value in draws(0)}.isdisjoint({value for _, value in draws(1)})


def test_a_step_is_seeded_by_its_number_and_rank():
    def draw(step, rank):
        args = type("Args", (), {"seed": 1, "process_index": rank, "device": torch.device("cpu")})
        state = type("State", (), {"global_step": step})
        ExactResume.on_step_begin(object.__new__(ExactResume), args, state, None)
        return torch.rand(1).item()

    assert draw(5, 0) == draw(5, 0)
    assert len({draw(5, 0), draw(6, 0), draw(5, 1)}) == 3
