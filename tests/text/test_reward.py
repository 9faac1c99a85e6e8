"""Reward models: pairs that are refused, what is dropped for its length, the figures, and a run that is cut short."""

import gzip
import json
import math

import pytest
import torch
from datasets import Dataset
from text.recipe_runs import killed_at, same, train, weights
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from hfgen.cli import run
from hfgen.data.text import TextDataArguments
from hfgen.errors import BadInput
from hfgen.recipes import load_recipe
from hfgen.text import ModelArguments, build_model
from hfgen.text.preferences import evaluate_pairs, preference_metrics, rewards_of, score, wilson_interval
from hfgen.text.reward import PairArguments, encode, encode_pairs, join, load_pairs, within
from hfgen.text.tokenizer import train_tokenizer

SIZES = (
    "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2}"
)
FLAGS = [
    f"--config_overrides={SIZES}",
    "--vocab_size=300",
    "--max_length=96",
    "--per_device_train_batch_size=4",
    "--max_train_samples=60",
    "--max_eval_samples=12",
    "--max_steps=14",
    "--learning_rate=3e-3",
    "--logging_steps=5",
    "--eval_strategy=steps",
    "--eval_steps=7",
    "--save_steps=4",
]
WORDS = "the number is a good one and this that it".split()
PAIRS = [
    {
        "prompt": f"Say {i}",
        "chosen": " ".join(WORDS[i % 5 : i % 5 + 2 + i % 4]),
        "rejected": " ".join(WORDS[i % 7 : i % 7 + 2 + i % 3][::-1]),
    }
    for i in range(40)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in PAIRS
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A finished run, not interrupted."""
    return train("reward", tmp_path_factory.mktemp("runs") / "whole", *FLAGS, cache)


@pytest.fixture(scope="module")
def characters():
    return train_tokenizer((text for row in PAIRS for text in row.values()), "char", 0, "chat")


def tiny(tokenizer, positions: int = 64) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
        initializer_range=0.5,
    )
    return LlamaForSequenceClassification(config).eval()


def written(folder, rows, name="pairs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(path, **options):
    return load_pairs(TextDataArguments(dataset_name=str(path), **options), PairArguments())


def test_figures_by_hand():
    chosen, rejected = torch.tensor([1.0, 2.0, 0.5, -1.0]), torch.tensor([0.0, 2.0, 1.0, -3.0])
    found = preference_metrics(chosen, rejected)
    assert next(iter(found)) == "accuracy"
    margins = [1.0, 0.0, -0.5, 2.0]
    sigmoids = [1 / (1 + math.exp(-m)) for m in margins]
    low, high = wilson_interval(2.5, 4)
    assert found == pytest.approx(
        {
            "accuracy": 0.625,
            "accuracy_low": low,
            "accuracy_high": high,
            "ties": 1,
            "margin": 0.625,
            "loss": -sum(map(math.log, sigmoids)) / 4,
            "brier": sum((1 - s) ** 2 for s in sigmoids) / 4,
            "pairs": 4,
        }
    )


def test_the_interval_is_wilsons():
    # R: prop.test(15, 20, correct = FALSE) and prop.test(0, 10, correct = FALSE).
    assert wilson_interval(15, 20) == pytest.approx((0.5312993, 0.8881383), abs=1e-6)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson_interval(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)


def test_prompts_and_responses_are_put_together():
    assert join("Say so", "yes") == "Say so\nyes"
    assert join("Say so ", "yes") == "Say so yes"
    assert join("Assistant:", " yes") == "Assistant: yes"
    assert join(None, "yes") == join("", "yes") == "yes"
    assert join(CHATS[0]["prompt"], CHATS[0]["chosen"]) == [*CHATS[0]["prompt"], *CHATS[0]["chosen"]]


def test_texts_are_encoded_as_trl_would(characters):
    from trl.data_utils import _tokenize

    (ids,) = encode(characters, ["Say 1"])
    assert ids == _tokenize(characters, "Say 1" + characters.eos_token)["input_ids"]
    assert encode(characters, ["Say 1" + characters.eos_token]) == [ids]
    chat = [*CHATS[1]["prompt"], *CHATS[1]["chosen"]]
    assert encode(characters, [chat]) == [_tokenize(characters, chat)["input_ids"]]
    of_bert = train_tokenizer(iter(["Say 1"]), "char", 0, "masked")  # has no end-of-sequence token: TRL fails on it
    assert encode(of_bert, ["Say 1"]) == [of_bert("Say 1")["input_ids"]]


def test_pairs_within_a_length_are_those_that_trl_keeps(characters):
    encoded = encode_pairs(Dataset.from_list(PAIRS), characters)
    assert encoded.column_names == ["chosen_ids", "rejected_ids"]
    longest = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in encoded]
    limit = sorted(longest)[20]
    assert 0 < sum(n > limit for n in longest) < 40
    assert len(within(encoded, limit)) == sum(n <= limit for n in longest)
    assert len(within(encoded, None)) == 40


def test_evaluation_by_hand(characters):
    model = tiny(characters)
    rows = Dataset.from_list(PAIRS)
    found = evaluate_pairs(model, characters, rows, batch_size=7, max_length=50)
    alone = {half: [score(model, characters, row["prompt"], row[half]) for row in PAIRS] for half in PAIRS[0]}
    assert found["pairs"] == 40 and found["dropped"] == 0
    assert found["margin"] == pytest.approx(
        sum(a - b for a, b in zip(alone["chosen"], alone["rejected"], strict=True)) / 40, abs=1e-5
    )
    wins = sum(a > b for a, b in zip(alone["chosen"], alone["rejected"], strict=True))
    assert 0 < wins < 40
    assert found["accuracy"] == wins / 40
    # Padding changes no reward.
    padded = rewards_of(model, encode(characters, ["Say 1\nthe number", "Say 1\nthe number is good"]))[0].item()
    assert padded == pytest.approx(score(model, characters, "Say 1", "the number"), abs=1e-5)
    shorter = evaluate_pairs(model, characters, rows, max_length=25)
    assert shorter["dropped"] > 0 and shorter["pairs"] + shorter["dropped"] == 40
    with pytest.raises(BadInput, match="no pair to evaluate has at most --max_length 3 tokens"):
        evaluate_pairs(model, characters, rows, max_length=3)
    with pytest.raises(BadInput, match="more than the model's 8 positions: set --max_length 8"):
        evaluate_pairs(tiny(characters, 8), characters, rows)
    with pytest.raises(BadInput, match="nothing to evaluate"):
        evaluate_pairs(model, characters, None)


def test_halves_that_the_tokenizer_can_not_tell_apart_are_ties():
    tokenizer = train_tokenizer(iter(["a b"]), "char", 0, "chat")
    rows = Dataset.from_list([{"chosen": "a é", "rejected": "a ü"}, {"chosen": "a a", "rejected": "b b"}])
    found = evaluate_pairs(tiny(tokenizer), tokenizer, rows)
    assert found["ties"] == 1
    assert found["accuracy"] in (0.25, 0.75)


def test_equal_halves_are_refused_or_left_out(tmp_path, capsys):
    rows = [dict(row) for row in PAIRS]
    rows[7]["rejected"] = rows[7]["chosen"]
    path = written(tmp_path, rows)
    with pytest.raises(BadInput, match=r"pairs.jsonl, split 'train', row 7: chosen and rejected are equal") as error:
        loaded(path)
    assert "\n" not in str(error.value) and "--skip_bad_rows true" in str(error.value)
    assert run(["train", "reward", *FLAGS, f"--dataset_name={path}", f"--output_dir={tmp_path / 'run'}"]) == 2
    assert "row 7: chosen and rejected are equal" in capsys.readouterr().err.splitlines()[-1]
    texts = loaded(path, skip_bad_rows=True)
    assert sum(len(split) for split in texts.splits.values()) == 39
    assert texts.skipped == {"train": 1}


def spoilt(rows, row, **change):
    rows = [dict(one) for one in rows]
    rows[row] |= change
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (spoilt(PAIRS, 3, chosen=" "), "row 3: column chosen is empty"),
        (spoilt(PAIRS, 3, rejected=None), "row 3: column rejected is empty"),
        ([{"prompt": "a", "chosen": "b"}] * 30, "there is no column rejected, only prompt, chosen"),
        (spoilt(CHATS, 5, chosen=[]), "row 5: column chosen is empty"),
        (
            spoilt(CHATS, 5, chosen=[{"role": "tool", "content": "x"}]),
            "row 5: the chat template can't render the roles user, tool: .*not tool",
        ),
        (
            spoilt(CHATS, 5, rejected=[{"role": "assistant", "content": ""}]),
            "row 5: column rejected has an empty message at 0",
        ),
        (
            [{"prompt": c["prompt"], "chosen": "a", "rejected": "b"} for c in CHATS],
            "row 0: of prompt, chosen, rejected",
        ),
        ([{"chosen": 1, "rejected": 2}] * 30, "row 0: column chosen must hold text or a list of messages"),
    ],
)
def test_bad_pairs_are_named(tmp_path, rows, message):
    with pytest.raises(BadInput, match=message) as error:
        loaded(written(tmp_path, rows))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_length=1"], "--max_length 1: must be at least 2"),
        (["--max_length=5"], "none of 60 pairs of the train split has at most --max_length 5 tokens"),
        (["--chat_template_path=chatml"], "--chat_template_path is for a tokenizer that is given"),
        (["--prompt_column=question"], "there is no column question"),
        (["--margin_column=by"], "there is no column by"),
        (["--lora_r=2"], "--lora_r adapts a pretrained model"),
        (["--validation_fraction=0", "--dataset_name=PAIRS"], "there is no validation split"),
        (["--model_type=bart_"], "--model_type bart_ is no architecture of transformers"),
    ],
)
def test_bad_options_are_one_line(tmp_path, cache, flags, message):
    path = written(tmp_path, PAIRS)
    flags = [flag.replace("PAIRS", str(path)) for flag in flags]
    with pytest.raises(BadInput, match=message) as error:
        train("reward", tmp_path / "run", *FLAGS, cache, *flags)
    assert "\n" not in str(error.value)


def test_what_is_dropped_for_its_length_is_said_and_recorded(tmp_path, cache, capsys):
    folder = train("reward", tmp_path / "run", *FLAGS, cache, "--max_length=48", "--max_steps=1")
    said = [line for line in capsys.readouterr().err.splitlines() if "longer than --max_length 48" in line]
    facts = json.loads((folder / "run.json").read_text())
    dropped = facts["dataset"]["dropped_for_length"]
    assert dropped.keys() <= {"train", "validation", "test"}
    assert 0 < dropped["train"] < 60
    assert said[0] == f"hfgen: {dropped['train']} of 60 pairs of the train split are longer than --max_length 48"
    assert len(said) == len(dropped)
    assert facts["metrics"]["test_dropped"] == dropped.get("test", 0)
    assert facts["metrics"]["test_pairs"] + facts["metrics"]["test_dropped"] == 12


@pytest.mark.parametrize("more", [[], ["--disable_dropout=false", "--gradient_accumulation_steps=2"]])
def test_cut_short_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, cache, finished, capsys, more):
    if more:
        more = [*more, f"--config_overrides={SIZES[:-1]}, attention_dropout: 0.2}}"]
        finished = train("reward", tmp_path / "whole", *FLAGS, cache, *more)
    flags = [*FLAGS, cache, *more, "--resume_from_checkpoint=true"]
    killed_at(monkeypatch, 6, "reward", tmp_path / "cut", *flags)
    killed_at(monkeypatch, 11, "reward", tmp_path / "cut", *flags)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    capsys.readouterr()
    # Where it is resumed is no part of what is trained on.
    newest = max((tmp_path / "cut").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    mended = train("reward", tmp_path / "cut", *flags[:-1], f"--resume_from_checkpoint={newest}")
    assert f"resuming {newest}" in (said := capsys.readouterr().err)
    assert "not bit-identical" not in said
    assert same(weights(finished), weights(mended))
    histories = [json.loads((d / "trainer_state.json").read_text())["log_history"] for d in (finished, mended)]
    a, b = ([(e["step"], e["eval_loss"]) for e in history if "eval_loss" in e] for history in histories)
    assert len(a) == 2
    assert a == b


def test_a_run_evaluates_to_what_it_recorded_and_loads_with_the_stock_class(finished, tmp_path, capsys):
    facts = json.loads((finished / "run.json").read_text())
    found = load_recipe("reward").evaluate(finished)
    split = found.pop("split")
    assert found == pytest.approx({k.removeprefix(f"{split}_"): v for k, v in facts["metrics"].items()}, rel=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(finished).eval()
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(finished)
    prompt, response = "What does len do?", "Return the number of items."
    ids = tokenizer(f"{prompt}\n{response}{tokenizer.eos_token}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.item()
    asked = ["generate", str(finished), "--prompt", prompt, "--response", response, "--output", str(tmp_path / "out")]
    assert run(asked) == 0
    assert f"reward: {wanted:.4f}" in capsys.readouterr().out
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert row == {"prompt": prompt, "response": response, "reward": f"{wanted:.4f}"}
    assert run(["generate", str(finished), "--prompt", prompt]) == 2
    assert "--response is empty" in capsys.readouterr().err
    samples = json.loads((finished / "samples.json").read_text())
    assert len(samples) == 3 and samples[0].keys() == {"prompt", "chosen", "rejected"}


def test_a_classifier_of_other_labels_keeps_all_but_its_head(tmp_path, characters):
    classifier = tiny(characters)
    config = LlamaConfig(**(classifier.config.to_dict() | {"num_labels": 3}))
    classifier = LlamaForSequenceClassification(config)
    classifier.save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path))
    model = build_model(args, AutoModelForSequenceClassification, characters, "llama", num_labels=1)
    assert model.score.weight.shape[0] == model.config.num_labels == 1
    body = classifier.model.state_dict()
    assert len(body) > 5
    assert all(torch.equal(value, body[name]) for name, value in model.model.state_dict().items())


def test_chats_margins_and_an_encoder_that_goes_on_from_a_model(tmp_path, cache, capsys):
    """Everything that the embedded pairs leave out: messages, TRL's margin, BERT, adapters, a gzipped file."""
    tokenizer = train_tokenizer(iter([json.dumps(row) for row in PAIRS]), "bpe", 300, "masked")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    base = tmp_path / "bert"
    BertModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    path = tmp_path / "pairs.jsonl.gz"
    rows = [{"text_a": row["chosen"], "text_b": row["rejected"], "by": 0.5} for row in PAIRS]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    flags = [flag for flag in FLAGS if not flag.startswith(("--config", "--vocab"))] + [cache, "--max_steps=2"]
    named = ["--chosen_column=text_a", "--rejected_column=text_b", "--margin_column=by", "--lora_r=2"]
    flags.append(f"--model_name_or_path={base}")
    run_dir = train("reward", tmp_path / "lora", *flags, f"--dataset_name={path}", *named)
    assert f"from_pretrained('{run_dir.name}', num_labels=1)" in (run_dir / "README.md").read_text()
    moved = weights(run_dir)
    assert any("lora" in name for name in moved) and any("classifier" in name for name in moved)
    assert load_recipe("reward").evaluate(run_dir)["pairs"] == 4
    chats = written(tmp_path, CHATS)
    with pytest.raises(BadInput, match="the tokenizer has no chat template: pass --chat_template_path"):
        train("reward", tmp_path / "no", *flags, f"--dataset_name={chats}")
    run_dir = train("reward", tmp_path / "chats", *FLAGS, cache, f"--dataset_name={chats}", "--max_steps=2")
    assert json.loads((run_dir / "run.json").read_text())["dataset"]["conversational"] is True
    model = AutoModelForSequenceClassification.from_pretrained(run_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    messages = [{"role": "user", "content": "Say 1"}, {"role": "assistant", "content": "no"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.item()
    capsys.readouterr()
    load_recipe("reward").generate(run_dir, output=tmp_path / "out", prompt="Say 1", response="no")
    assert f"reward: {wanted:.4f}" in capsys.readouterr().out
