"""Supervised fine-tuning: what is learned (token by token), who sees whom in a pack, adapters, resume, bad rows."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from text.recipe_runs import killed_at, same, train, weights
from transformers import AutoConfig, AutoModelForCausalLM

from hfgen import text
from hfgen.checkpoint import read_facts
from hfgen.cli import run
from hfgen.config import parse_arguments
from hfgen.data.stdlib import docstrings, questions
from hfgen.data.text import TextSplits
from hfgen.errors import BadInput
from hfgen.recipes import load_recipe
from hfgen.text import answers, sft
from hfgen.text.resume import EpochDataset
from hfgen.text.tokenizer import train_tokenizer

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TURN = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
PLAIN = [{"prompt": "ab", "completion": "cd"}, {"prompt": "abc", "completion": "defg"}]
CHATS = [{"prompt": [{"role": "user", "content": r["prompt"]}],
          "completion": [{"role": "assistant", "content": r["completion"]}]} for r in PLAIN]  # fmt: skip
WHOLE = [{"messages": [*TURN, {"role": "user", "content": "e"}, {"role": "assistant", "content": "fg"}]}]
EXPECTED = {  # the tokens of the first row; those that are learned in brackets
    "plain": (PLAIN, "a b [c] [d] [<|im_end|>]"),
    "chat": (
        CHATS,
        "<|im_start|> u s e r \n a b <|im_end|> \n <|im_start|> a s s i s t a n t \n [c] [d] [<|im_end|>] [\n]",
    ),
    "messages": (
        WHOLE,
        "<|im_start|> u s e r \n a b <|im_end|> \n <|im_start|> a s s i s t a n t \n [c] [d] [<|im_end|>] \n "
        "<|im_start|> u s e r \n e <|im_end|> \n <|im_start|> a s s i s t a n t \n [f] [g] [<|im_end|>] \n",
    ),
}


@pytest.fixture(scope="module")
def characters():
    """A chat tokenizer with a token for each character: what is learned can be written down by hand."""
    return train_tokenizer(iter(["abcdefghijklmnopqrstuvwxyz \n"]), "char", 0, "chat")


def tiny_model(tokenizer, model_type="llama", attention="sdpa", **sizes):
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ids, **(sizes or SIZES))
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def make_trainer(tmp_path, tokenizer, rows, model=None, held=None, **options):
    settings = {"eval_strategy": "no", "learning_rate": 1e-2, "max_steps": 3, "disable_tqdm": True}
    args = sft.SFTArguments(output_dir=str(tmp_path), **(settings | options))
    splits = {"train": Dataset.from_list(rows)} | ({"validation": Dataset.from_list(held)} if held else {})
    return sft.sft_trainer(model or tiny_model(tokenizer), tokenizer, args, TextSplits(splits, "rows"))


def marked(tokenizer, ids, labels) -> str:
    """Tokens, those with a label in brackets."""
    words = tokenizer.convert_ids_to_tokens(ids)
    assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))
    return " ".join(w if label == -100 else f"[{w}]" for w, label in zip(words, labels, strict=True))


def first_batch(trainer):
    """A batch as it reaches the model: reordered, without unused columns, collated."""
    trainer.train_dataset = EpochDataset(trainer.train_dataset, 0)
    trainer.args.train_sampling_strategy = "sequential"
    return next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize("kind", EXPECTED)
def test_only_the_answer_is_learned(tmp_path, characters, kind):
    rows, expected = EXPECTED[kind]
    trainer = make_trainer(tmp_path, characters, rows)
    batch = first_batch(trainer)
    order = trainer.train_dataset.order.tolist()
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]
    assert len(batch["input_ids"]) == len(rows)
    place = order.index(0)
    ids, labels, mask = (batch[name][place].tolist() for name in ("input_ids", "labels", "attention_mask"))
    length = sum(mask)
    assert mask == [1] * length + [0] * (len(mask) - length)
    assert marked(characters, ids[:length], labels[:length]) == expected
    assert set(ids[length:]) <= {characters.pad_token_id}
    assert set(labels[length:]) <= {-100}
    if len(rows) == 2:
        assert length < len(ids), "the shorter row is padded"


@pytest.mark.parametrize("kind", EXPECTED)
def test_evaluation_scores_what_trl_trains_up_to_the_end_of_the_answer(tmp_path, characters, kind):
    rows, _ = EXPECTED[kind]
    trainer = make_trainer(tmp_path, characters, rows)
    assert len(trainer.train_dataset) == len(rows)
    for row, prepared in zip(rows, trainer.train_dataset, strict=True):
        ids, labels = answers.encode(row, characters)
        assert ids == prepared["input_ids"]
        after_end = 1 if kind == "chat" else 0  # the template's line break: TRL learns it, here it does not count
        assert labels[: len(ids) - after_end] == prepared["labels"][: len(ids) - after_end]
        assert labels[-1] == (-100 if kind != "plain" else characters.eos_token_id)


def test_every_token_is_learned_on_request(tmp_path, characters):
    trainer = make_trainer(tmp_path, characters, PLAIN, completion_only_loss=False)
    assert [row["labels"] == row["input_ids"] for row in trainer.train_dataset] == [True, True]
    trainer = make_trainer(tmp_path, characters, WHOLE, assistant_only_loss=False)
    assert trainer.train_dataset[0]["labels"] == trainer.train_dataset[0]["input_ids"]


def by_hand(model, ids, labels) -> tuple[float, int, int]:
    """(nats, tokens, right ones): position t predicts token t + 1, wherever that has a label."""
    logits = model(input_ids=ids).logits[0].double()
    nats, count, right = 0.0, 0, 0
    for place in range(1, ids.shape[1]):
        if (label := labels[0, place].item()) != -100:
            nats -= logits[place - 1].log_softmax(-1)[label].item()
            right += int(logits[place - 1].argmax() == label)
            count += 1
    return nats, count, right


@torch.no_grad()
def test_loss_and_figures_are_the_shifted_cross_entropy(tmp_path, characters):
    trainer = make_trainer(tmp_path, characters, CHATS)
    model = trainer.model.eval()
    batch = first_batch(trainer)
    expected = [
        by_hand(model, ids[None, : mask.sum()], labels[None, : mask.sum()])
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
    ]
    assert sum(count for _, count, _ in expected) == 4 + 6
    loss = trainer.compute_loss(model, dict(batch)).item()
    assert loss == pytest.approx(sum(n for n, _, _ in expected) / 10, rel=1e-5)

    encoded = [[torch.tensor([part]) for part in answers.encode(row, characters)] for row in CHATS]
    nats, count, right = (sum(part) for part in zip(*(by_hand(model, *pair) for pair in encoded), strict=True))
    assert count == 3 + 5
    for batch_size in (1, 2):
        figures = answers.evaluate_answers(model, characters, Dataset.from_list(CHATS), batch_size)
        assert list(figures) == ["completion_loss", "perplexity", "token_accuracy", "completion_tokens"]
        assert figures["completion_loss"] == pytest.approx(nats / count, rel=1e-5)
        assert figures["perplexity"] == pytest.approx(torch.tensor(nats / count).exp().item(), rel=1e-4)
        assert figures["token_accuracy"] == right / count
        assert figures["completion_tokens"] == count


# ---- packing ----


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_packed_rows_do_not_see_each_other(tmp_path, characters, model_type, attention):
    sizes = SIZES if model_type == "llama" else {"n_embd": 16, "n_layer": 2, "n_head": 2}
    model = tiny_model(characters, model_type, attention, **sizes)
    trainer = make_trainer(tmp_path, characters, CHATS, model, packing=True, max_length=128)
    assert len(trainer.train_dataset) == 1
    batch = first_batch(trainer)
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape[0] == 1
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    assert sorted(lengths) == sorted(len(answers.encode(row, characters)[0]) for row in CHATS)
    model.eval()
    packed = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[0]
    begin = 0
    for length in lengths:
        part = slice(begin, begin + length)
        alone = model(input_ids=batch["input_ids"][:, part], use_cache=False).logits[0]
        torch.testing.assert_close(packed[part], alone, atol=1e-5, rtol=1e-4)
        assert batch["labels"][0, begin] == -100, "a row's first token is no answer to the row before"
        begin += length
    unpacked = make_trainer(tmp_path, characters, CHATS, model)
    apart = unpacked.compute_loss(model, dict(first_batch(unpacked))).item()
    assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}), ("opt", {"hidden_size": 16, "ffn_dim": 32,
      "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 16})],
)  # fmt: skip
def test_packing_is_refused_where_packed_rows_would_see_each_other(tmp_path, characters, model_type, sizes):
    model = tiny_model(characters, model_type, "eager", **sizes)
    with pytest.raises(BadInput, match=f"in {model_type} with eager attention, rows packed .* would see each other"):
        make_trainer(tmp_path, characters, CHATS, model, packing=True, max_length=128)
    make_trainer(tmp_path, characters, CHATS, model)


# ---- whole runs ----

SMALL = [
    "--config_overrides={hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "attention_dropout: 0.1}",
    "--vocab_size=300",
    "--max_length=96",
    "--max_train_samples=24",
    "--max_eval_samples=4",
    "--per_device_train_batch_size=4",
    "--learning_rate=1e-2",
    "--max_steps=8",
    "--logging_steps=3",
    "--eval_strategy=no",
    "--save_steps=3",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def base(tmp_path_factory, cache):
    """A run from scratch, from which others go on."""
    return train("sft", tmp_path_factory.mktemp("base") / "run", *SMALL, cache)


def on_from(base, *flags):
    """The flags of [`SMALL`] with the model's own replaced."""
    return [*SMALL[2:], f"--model_name_or_path={base}", *flags]


@pytest.mark.parametrize("variant", ["plain", "packed", "lora"])
def test_cut_short_twice_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, capsys, cache, base, variant):
    flags = {
        "plain": [*SMALL, "--optim=muon"],
        "packed": [*SMALL, "--packing=true", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=2"],
        "lora": on_from(base, "--lora_r=2", "--lora_dropout=0.2"),
    }[variant] + [cache]
    whole = train("sft", tmp_path / "whole", *flags)
    flags.append("--resume_from_checkpoint=true")
    for step in (4, 7):
        killed_at(monkeypatch, step, "sft", tmp_path / "cut", *flags)
    mended = train("sft", tmp_path / "cut", *flags)
    assert same(weights(whole), weights(mended))
    first, second = (read_facts(folder / "checkpoint-6") for folder in (whole, mended))
    assert first["dataset"]
    assert first == second
    assert "not bit-identical" not in capsys.readouterr().err


def test_lora_moves_adapters_alone_and_merges_into_the_same_model(tmp_path, cache, base, characters):
    model, tokenizer = text.load_folder(base, AutoModelForCausalLM)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transfer = text.TransferArguments(lora_r=2, lora_alpha=32)
    model = text.with_adapters(model, transfer, "CAUSAL_LM")
    started = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(tmp_path / "a", tokenizer, CHATS, model, save_strategy="no")
    text.train_text(trainer, transfer)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, started[name])}
    adapters = {name for name in started if "lora_" in name}
    assert len(adapters) == 4  # A and B of the query's and the value's projection
    assert moved == adapters
    kept = {n.removeprefix("base_model.model.").replace(".base_layer", ""): v for n, v in model.state_dict().items()}
    assert same({n: v for n, v in kept.items() if "lora_" not in n}, before)
    assert sorted(load_file(tmp_path / "a" / "adapter_model.safetensors")) == sorted(
        name.replace(".default", "") for name in adapters
    )
    assert not (tmp_path / "a" / "model.safetensors").exists()

    for folder, flags in (("beside", []), ("merged", ["--merge_adapter=true"])):
        train("sft", tmp_path / folder, *on_from(base, "--lora_r=2", "--lora_alpha=32", cache, *flags))
    assert (tmp_path / "beside" / "adapter_config.json").exists()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    ids = torch.arange(5, 25)[None]
    models = [text.load_folder(tmp_path / d, AutoModelForCausalLM)[0] for d in ("beside", "merged")]
    models.append(text.load_folder(base, AutoModelForCausalLM)[0])
    with torch.no_grad():
        beside, merged, untouched = (m(input_ids=ids).logits for m in models)
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-3)
    assert (beside - untouched).abs().max() > 0.01
    metrics = [json.loads((tmp_path / d / "run.json").read_text())["metrics"] for d in ("beside", "merged")]
    assert metrics[0]["test_completion_loss"] == pytest.approx(metrics[1]["test_completion_loss"], rel=1e-4)


def test_adapters_of_a_model_from_scratch_are_refused(tmp_path, characters):
    model = text.with_adapters(tiny_model(characters), text.TransferArguments(lora_r=2), "CAUSAL_LM")
    with pytest.raises(BadInput, match="set --model_name_or_path"):
        make_trainer(tmp_path, characters, PLAIN, model)
    with pytest.raises(BadInput, match="adapters can't carry new ones"):
        text.TransferArguments(lora_r=2, resize_embeddings=True)


def test_generate_and_evaluate_what_was_published(base, capsys, tmp_path):
    model, tokenizer = text.load_folder(base, AutoModelForCausalLM)
    assert (
        run(["generate", str(base), "--prompt", "What does os.getcwd do?", "--num_samples", "2", "--seed", "3"]) == 0
    )
    rows = [json.loads(line) for line in (base / "generated" / "samples.jsonl").read_text().splitlines()]
    asked = "<|im_start|>user\nWhat does os.getcwd do?<|im_end|>\n<|im_start|>assistant\n"
    expected = text.continue_texts(model, tokenizer, [asked] * 2, seed=3)
    assert rows == [{"prompt": "What does os.getcwd do?", "answer": one.strip()} for one in expected]
    capsys.readouterr()
    assert run(["evaluate", str(base), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert next(iter(figures)) == "completion_loss"
    recorded = json.loads((base / "run.json").read_text())["metrics"]
    for name in ("completion_loss", "token_accuracy", "completion_tokens"):
        assert figures[name] == pytest.approx(recorded[f"test_{name}"], rel=1e-5)
    samples = json.loads((base / "samples.json").read_text())
    assert [list(sample) for sample in samples] == [["prompt", "answer", "reference"]] * 4
    assert all(sample["prompt"].startswith("What does ") and sample["reference"] for sample in samples)


def test_plain_prompts_are_given_as_they_were_learned(characters):
    assert answers.render_prompt(characters, "ab", chat=False) == "ab"
    bos = train_tokenizer(iter(["abc"]), "char", 0, "seq2seq")  # puts </s> after a text, none before it
    assert answers.render_prompt(bos, "ab", chat=False) == "ab"
    first = SimpleNamespace(bos_token="<s>", bos_token_id=1)
    tokenizer = type("T", (), {**vars(first), "__call__": lambda self, text: {"input_ids": [1, 5, 6]}})()
    assert answers.render_prompt(tokenizer, "ab", chat=False) == "<s>ab"
    assert answers.render_prompt(tokenizer, "<s>ab", chat=False) == "<s>ab"


def test_the_embedded_questions_do_not_depend_on_who_asks(monkeypatch):
    """Libraries patch the standard library: a row more would have dealt test rows to train."""
    before = {split: set(rows["prompt"]) for split, rows in questions().items()}
    assert [len(rows) > 200 for rows in before.values()] == [True] * 3
    assert hasattr(logging.Logger, "warning_advice"), "transformers adds it"
    assert not any(
        "warning_advice" in prompt or " sys.excepthook " in prompt for rows in before.values() for prompt in rows
    )
    fewer = [pair for pair in docstrings() if "path" not in pair[0]]
    monkeypatch.setattr("hfgen.data.stdlib.docstrings", lambda: fewer)
    after = {split: set(rows["prompt"]) for split, rows in questions().items()}
    assert all(after[split] < before[split] for split in before)


# ---- options ----


def test_defaults_run_on_a_cpu(tmp_path):
    args = sft.SFTArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.bf16, args.fp16, args.gradient_checkpointing, args.activation_checkpointing) == (False,) * 4
    assert (args.report_to, args.packing, args.completion_only_loss) == ([], False, None)


@pytest.mark.parametrize("option", ["pad_token", "dataset_text_field", "model_init_kwargs", "truncation_mode"])
def test_options_that_would_do_nothing_do_not_exist(option):
    with pytest.raises(BadInput, match=f"unknown option --{option}"):
        parse_arguments(load_recipe("sft").GROUPS, [f"--{option}=x"], "sft")


def test_a_chat_template_is_given_to_a_tokenizer_without_one(tmp_path, capsys):
    plain = train_tokenizer(iter(["abc"]), "char", 0, "causal")
    plain.save_pretrained(tmp_path / "tokenizer")
    arguments = text.ModelArguments(tokenizer_name=str(tmp_path / "tokenizer"))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}")

    def given(source, lora_r=0):
        args = sft.SFTArguments(output_dir=str(tmp_path / "run"), chat_template_path=source)
        return args, sft.given_tokenizer(arguments, args, text.TransferArguments(lora_r=lora_r))

    args, tokenizer = given(str(tmp_path / "t.jinja"))
    assert tokenizer.apply_chat_template(TURN, tokenize=False) == "user: abassistant: cd"
    assert not sft.learns_assistant_alone(args, tokenizer, ["messages"])
    assert "the loss is on every token" in capsys.readouterr().out
    args.assistant_only_loss = True
    with pytest.raises(BadInput, match="does not mark the assistant's words"):
        sft.learns_assistant_alone(args, tokenizer, ["messages"])
    args, tokenizer = given("chatml")
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) == len(plain) + 2
    assert tokenizer("<|im_start|>")["input_ids"] == [len(plain)]
    assert sft.learns_assistant_alone(args, tokenizer, ["messages"])
    tokenizer.save_pretrained(tmp_path / "other")
    assert given(str(tmp_path / "other"))[1].chat_template == tokenizer.chat_template
    with pytest.raises(BadInput, match="has no chat template"):
        given(str(tmp_path / "tokenizer"))
    with pytest.raises(BadInput, match=r"adds <\|im_start\|>, <\|im_end\|>, whose embeddings --lora_r does not train"):
        given("chatml", lora_r=4)


# ---- bad rows ----


def write(tmp_path, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def load(tmp_path, rows, chat_args=None, tokenizer=None, **options):
    data = text.TextDataArguments(
        dataset_name=[str(write(tmp_path, rows))], cache_dir=str(tmp_path / "cache"), validation_fraction=0, **options
    )
    return sft.load_chats(data, chat_args or sft.ChatArguments(), tokenizer)


def says(role, content):
    return {"role": role, "content": content}


GOOD = {"messages": TURN}
BAD = {
    "missing column": (
        [{"prompt": "a", "answer": "b"}],
        "no column completion and no column messages, only prompt, a",
    ),
    "empty completion": ([*PLAIN, {"prompt": "a", "completion": " "}], "row 2: column completion is empty"),
    "no prompt": ([*PLAIN, {"prompt": None, "completion": "b"}], "row 2: column prompt is empty"),
    "no messages": ([GOOD, {"messages": []}], "row 1: column messages is empty"),
    "unknown role": (
        [GOOD, GOOD, {"messages": [says("robot", "a"), says("assistant", "b")]}],
        "row 2: the chat template can't render the roles robot, assistant: .* not robot",
    ),
    "empty message": (
        [GOOD, {"messages": [says("user", "a"), says("assistant", "")]}],
        "row 1: column messages has an empty message at 1",
    ),
    "no assistant": ([GOOD, {"messages": [says("user", "a")]}], "row 1: no message is the assistant's, only of user"),
    "no role": (
        [GOOD, {"messages": [{"content": "a"}, says("assistant", "b")]}],
        "row 1: column messages has a message without role at 0, only content",
    ),
    "parts": (
        [GOOD, {"messages": [says("user", [{"type": "text", "text": "a"}])]}],
        "whose content is a list: it must",
    ),
    "text": ([{"messages": "hello"}], "row 0: column messages must hold a list of messages {role, content}, not text"),
    "text among messages": ([GOOD, {"messages": "hello"}], "row 1: column messages must hold a list of messages"),
    "messages among text": (
        [PLAIN[0], CHATS[0]],
        "row 1: prompt and completion hold lists of .*, the rows before text",
    ),
    "list of texts": (
        [{"messages": ["hello"]}],
        "row 0: column messages must hold messages .* but the one at 0 is text",
    ),
    "from and value": (
        [{"messages": [{"from": "user", "value": "a"}]}],
        "a message without role at 0, only from, val",
    ),
    "numbers": ([{"prompt": 1, "completion": 2}], "column prompt must hold text or .*, not the number 1"),
    "two kinds": ([{"prompt": "a", "completion": TURN[1:]}], "of prompt, completion some are text"),
    "empty system prompt of a good row, then a bad one": (
        [{"messages": [says("system", ""), *TURN]}, {"messages": [says("user", " "), TURN[1]]}],
        r"row 1: column messages has an empty message at 0 \(of user\)",
    ),
    "role in a prompt": (
        [CHATS[0], {"prompt": [says("tool", "x")], "completion": TURN[1:]}],
        "row 1: the chat template can't render the roles tool, assistant",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(tmp_path, name):
    rows, expected = BAD[name]
    with pytest.raises(BadInput, match=expected) as caught:
        load(tmp_path, rows)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_left_out_on_request(tmp_path, capsys):
    rows = [GOOD, BAD["unknown role"][0][2], GOOD, BAD["empty message"][0][1], BAD["no assistant"][0][1]]
    texts = load(tmp_path, rows, skip_bad_rows=True)
    assert texts["train"].to_list() == [GOOD, GOOD]
    assert texts.skipped == {"train": 3}
    assert "3 rows of the train split were left out" in capsys.readouterr().err


def test_a_bad_row_ends_the_command_in_one_line(tmp_path, capsys):
    file = write(tmp_path, BAD["unknown role"][0])
    flags = [f"--dataset_name={file}", f"--output_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    assert run(["train", "sft", *flags]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith(
        f"hfgen: error: dataset {file}, split 'train', row 2: the chat template can't render"
    )
    assert not (tmp_path / "run").exists()


def test_an_order_of_roles_that_the_template_refuses_is_found(tmp_path, characters):
    tokenizer = train_tokenizer(iter(["abc"]), "char", 0, "chat")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    rows = [{"messages": TURN * 2}, {"messages": [TURN[1], TURN[0]]}]
    with pytest.raises(BadInput, match="row 1: the chat template can't render .*: roles must alternate"):
        load(tmp_path, rows, tokenizer=tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="no chat template: pass --chat_template_path"):
        load(tmp_path, rows, tokenizer=tokenizer)


def test_columns_of_other_names_and_plain_text(tmp_path):
    rows = [{"question": "ab", "answer": "cd", "more": 1}]
    names = {"prompt_column": "question", "completion_column": "answer"}
    assert load(tmp_path, rows, sft.ChatArguments(**names))["train"].to_list() == CHATS[:1]
    assert load(tmp_path, rows, sft.ChatArguments(chat=False, **names))["train"].to_list() == PLAIN[:1]
    both = [{"prompt": "ab", "completion": "cd", "messages": TURN}, {"prompt": "ab", "messages": TURN}]
    assert load(tmp_path, both[:1], sft.ChatArguments(chat=False))["train"].column_names == ["prompt", "completion"]
    assert load(tmp_path, both[1:])["train"].column_names == ["messages"]


def test_rows_that_are_cut_or_leave_nothing_are_said(tmp_path, characters, capsys):
    long = [*PLAIN, {"prompt": "a" * 10, "completion": "b"}, {"prompt": "a", "completion": "b" * 20}]
    trainer = make_trainer(tmp_path, characters, long, max_length=8)
    assert len(trainer.train_dataset) == 3
    said = capsys.readouterr().err
    assert "1 of 4 train rows were left out: their prompts alone fill --max_length 8" in said
    assert "2 of 4 train rows reach --max_length 8" in said
    with pytest.raises(BadInput, match="no row of the train split has an answer within --max_length 4"):
        make_trainer(tmp_path, characters, long[2:3], max_length=4)
    with pytest.raises(BadInput, match="21 tokens, more than the model's 16 positions: set --max_length 16"):
        model = tiny_model(characters, **SIZES, max_position_embeddings=16)
        make_trainer(tmp_path, characters, [{"prompt": "a", "completion": "b" * 19}], model)
    with pytest.raises(BadInput, match="no validation split"):
        make_trainer(tmp_path, characters, PLAIN, eval_strategy="epoch")
    with pytest.raises(BadInput, match="neither a test nor a validation split"):
        answers.evaluate_answers(trainer.model, characters, None)
