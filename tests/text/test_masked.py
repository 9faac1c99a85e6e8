"""Masked language models: what is hidden and how often, the loss on it, pseudo-perplexity, and a run that is cut."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from text.recipe_runs import killed_at, same, train, weights
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from hfgen.data.text import TextDataArguments, TextSplits
from hfgen.errors import BadInput
from hfgen.recipes import load_recipe
from hfgen.text import TextTrainingArguments
from hfgen.text.masked import (
    MaskedAccuracy,
    MaskedBlocks,
    MaskedLMArguments,
    Masking,
    evaluate_masked,
    fill_masks,
    masked_blocks,
    masked_loss,
    masked_trainer,
    pseudo_perplexity,
    word_tables,
)
from hfgen.text.tokenizer import train_tokenizer
from hfgen.text.tokens import TokenBlocks, TokenCorpus

TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "def walk(self, depth): return self._nodes[depth]\n"] * 20
FLAGS = [
    "--model_type=bert",
    "--config_overrides={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}",
    "--vocab_size=300",
    "--block_size=32",
    "--per_device_train_batch_size=4",
    "--max_train_samples=3",
    "--max_eval_samples=2",
    "--max_steps=14",
    "--learning_rate=1e-2",
    "--logging_steps=5",
    "--eval_strategy=steps",
    "--eval_steps=7",
    "--save_steps=4",
    "--pseudo_perplexity_blocks=1",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(TEXTS), "bpe", 400, "masked")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"--cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A finished run, not interrupted."""
    return train("pretrain_masked_lm", tmp_path_factory.mktemp("runs") / "whole", *FLAGS, cache)


def tiny_bert(size: int, positions: int = 16) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
    return BertForMaskedLM(config).eval()


def random_batch(tokenizer, rows: int, length: int) -> torch.Tensor:
    """Ordinary tokens between CLS and SEP."""
    ids = torch.randint(len(tokenizer.all_special_ids), len(tokenizer), (rows, length))
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    return ids


def corpus(tokens) -> TokenCorpus:
    return TokenCorpus(np.asarray(tokens, np.uint16), np.zeros(1, np.int64), 2 * len(tokens), "fingerprint")


def test_rates_and_what_becomes_of_the_chosen(tokenizer):
    torch.manual_seed(0)
    ids = random_batch(tokenizer, 400, 128)
    batch = Masking(tokenizer)({"input_ids": ids})
    chosen = batch["labels"] != -100
    ordinary = torch.ones_like(chosen)
    ordinary[:, [0, -1]] = False
    assert chosen[ordinary].float().mean().item() == pytest.approx(0.15, abs=0.005)  # 0.0016 is its deviation
    hidden, before = batch["input_ids"][chosen], ids[chosen]
    masked = hidden == tokenizer.mask_token_id
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.02)
    # A random token is the old one once in as many times as there are tokens.
    replaced = (hidden != before) & ~masked
    assert replaced.float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert (hidden == before).float().mean().item() == pytest.approx(0.1, abs=0.015)
    assert torch.equal(batch["labels"][chosen], before)
    assert (batch["labels"][~chosen] == -100).all()
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert len(hidden[replaced].unique()) > 100
    assert not torch.isin(hidden[replaced], torch.tensor(tokenizer.all_special_ids)).any()


def test_other_probabilities(tokenizer):
    torch.manual_seed(0)
    batch = Masking(tokenizer, 0.4)({"input_ids": random_batch(tokenizer, 300, 128)})
    assert (batch["labels"] != -100).sum().item() / (300 * 126) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("whole_words", [False, True])
def test_specials_are_never_masked_and_every_row_has_something_to_predict(tokenizer, whole_words):
    torch.manual_seed(0)
    special = torch.tensor(tokenizer.all_special_ids)
    assert len(special) == 4
    ids = random_batch(tokenizer, 600, 12)
    ids[:, 3:9] = special[torch.randint(4, (600, 6))]
    batch = Masking(tokenizer, 0.05, whole_words)({"input_ids": ids})
    chosen = batch["labels"] != -100
    assert not torch.isin(ids[chosen], special).any()
    assert chosen.any(1).all()
    of_specials = Masking(tokenizer)({"input_ids": special.repeat(2, 1)})
    assert (of_specials["labels"] == -100).all()


def test_same_draws_as_transformers_make_the_same_choice(tokenizer):
    """Where a row has many tokens, no row is without one: choosing is then transformers' own."""
    from transformers import DataCollatorForLanguageModeling

    torch.manual_seed(0)
    ids = random_batch(tokenizer, 50, 128)
    theirs = DataCollatorForLanguageModeling(tokenizer)([{"input_ids": row} for row in ids])
    ours = Masking(tokenizer)({"input_ids": ids})
    shares = [(b["labels"] != -100).float().mean().item() for b in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=0.01)
    for batch in (ours, theirs):
        restored = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
        assert torch.equal(restored, ids)


def words_of(tokenizer, text: str) -> list[list[str]]:
    begins, ends = word_tables(tokenizer)
    words: list[list[str]] = []
    previous = None
    for index in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if previous is None or begins[index] or ends[previous]:
            words.append([])
        words[-1].append(tokenizer.convert_ids_to_tokens(index))
        previous = index
    return words


def test_words_of_a_byte_level_tokenizer(tokenizer):
    words = words_of(tokenizer, "def walker(self):\n    café_1.quickly")
    assert max(map(len, words)) > 1
    joined = [tokenizer.convert_tokens_to_string(word) for word in words]
    assert "".join(joined) == "def walker(self):\n    café_1.quickly"
    assert [word.strip() for word in joined if word.strip()] == [
        "def",
        "walker",
        "(",
        "self",
        "):",
        "café_1",
        ".",
        "quickly",
    ]


def test_words_of_wordpiece_and_of_characters():
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "un", "##like", "##ly", "the", "."]
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    wordpiece = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **roles)
    assert words_of(wordpiece, "the unlikely.") == [["the"], ["un", "##like", "##ly"], ["."]]
    characters = train_tokenizer(iter(TEXTS), "char", 0, "masked")
    assert ["".join(word) for word in words_of(characters, "the lazy dog.")] == ["the", " ", "lazy", " ", "dog", "."]


def test_whole_words_are_masked_whole(tokenizer):
    ids = torch.tensor([tokenizer("".join(TEXTS) * 4)["input_ids"]] * 8)
    masking = Masking(tokenizer, 0.3, whole_words=True)
    torch.manual_seed(0)
    chosen = masking({"input_ids": ids})["labels"] != -100
    begins, ends = word_tables(tokenizer)
    first = begins[ids]
    first[:, 1:] |= ends[ids[:, :-1]]
    word = first.long().cumsum(1)
    sizes, split = [], 0
    for row, words in zip(chosen, word, strict=True):
        for number in words.unique():
            part = row[words == number]
            sizes.append(len(part))
            split += 0 < part.sum() < len(part)
    assert sum(size > 1 for size in sizes) > 500
    assert split == 0
    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.03)
    # Token by token, words of several tokens are mostly masked in part.
    torch.manual_seed(0)
    chosen = Masking(tokenizer, 0.3)({"input_ids": ids})["labels"] != -100
    parts = [row[words == n] for row, words in zip(chosen[:1], word[:1], strict=True) for n in words.unique()]
    assert any(0 < part.sum() < len(part) for part in parts)


def test_held_out_masks_are_always_the_same_and_training_masks_are_not(tokenizer):
    tokens = torch.randint(4, 300, (14 * 40,)).numpy()
    blocks = TokenBlocks(corpus(tokens), 16, isolate=False, around=(0, 1))
    fixed, free = (MaskedBlocks(blocks, Masking(tokenizer), seed) for seed in (0, None))
    assert len(fixed) == 40
    together = fixed.__getitems__(range(40))
    torch.rand(1)
    apart = [fixed.__getitems__([i]) for i in range(40)]
    for name in ("input_ids", "labels"):
        assert torch.equal(together[name], torch.cat([batch[name] for batch in apart]))
    assert len({tuple((row != -100).tolist()) for row in together["labels"]}) > 30, "each block has masks of its own"
    assert not torch.equal(free.__getitems__(range(40))["labels"], free.__getitems__(range(40))["labels"])
    torch.manual_seed(5)
    once = free.__getitems__(range(40))["labels"]
    torch.manual_seed(5)
    assert torch.equal(once, free.__getitems__(range(40))["labels"])


def test_the_loss_by_hand_and_as_a_share_of_the_step(tokenizer):
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, 4, -100], [0, -100, 2]])
    logs = logits.log_softmax(-1)
    wanted = -(logs[0, 1, 4] + logs[1, 0, 0] + logs[1, 2, 2])
    assert masked_loss({"logits": logits}, labels).item() == pytest.approx(wanted.item() / 3, rel=1e-6)
    assert masked_loss({"logits": logits}, labels, 12).item() == pytest.approx(wanted.item() / 12, rel=1e-6)
    smooth = masked_loss({"logits": logits}, labels, label_smoothing=0.2).item()
    uniform = -(logs[0, 1] + logs[1, 0] + logs[1, 2]).mean()
    assert smooth == pytest.approx((0.8 * wanted + 0.2 * uniform).item() / 3, rel=1e-5)
    counts = MaskedAccuracy.count(torch.nn.functional.one_hot(labels.clamp(min=0), 5).float(), labels)
    assert counts.tolist() == [[1, 1], [2, 2]]


def test_accumulated_steps_have_the_gradient_of_one_large_batch(tokenizer, tmp_path):
    """transformers' own loss of BERT would make both too large by the number of batches a step."""
    tokens = torch.randint(4, len(tokenizer), (14 * 8,), generator=torch.Generator().manual_seed(1)).numpy()
    blocks = MaskedBlocks(TokenBlocks(corpus(tokens), 16, isolate=False, around=(0, 1)), Masking(tokenizer, 0.3), 0)
    counts = [(blocks.__getitems__([i])["labels"] != -100).sum().item() for i in range(8)]
    assert len(set(counts)) > 2, "batches with more to predict weigh more"
    logs = []
    for size, steps in ((8, 1), (2, 4)):
        args = TextTrainingArguments(
            output_dir=str(tmp_path / f"{size}"),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            logging_steps=1,
            max_grad_norm=1e9,
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        model = tiny_bert(len(tokenizer))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = masked_trainer(model, tokenizer, args, {"train": blocks})
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "grad_norm"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-4)


def test_pseudo_perplexity_by_hand(tokenizer):
    size = len(tokenizer)
    model = tiny_bert(size)
    tokens = torch.randint(4, size, (3 * 6,), generator=torch.Generator().manual_seed(1)).numpy()
    tokens[2] = tokenizer.sep_token_id  # between two documents: not scored
    blocks = TokenBlocks(corpus(tokens), 8, isolate=False, around=(tokenizer.cls_token_id, tokenizer.sep_token_id))
    masking = Masking(tokenizer)
    nats = []
    with torch.no_grad():
        for index in (0, 2):  # of three blocks the two that are chosen
            ids = blocks[index]["input_ids"]
            for place in range(1, 7):
                if ids[place] not in tokenizer.all_special_ids:
                    hidden = ids.clone()
                    hidden[place] = tokenizer.mask_token_id
                    logs = model(input_ids=hidden[None]).logits[0, place].log_softmax(-1)
                    nats.append(-logs[ids[place]].item())
    assert len(nats) == 11
    assert pseudo_perplexity(model, blocks, masking, 2, batch_size=4) == pytest.approx(
        math.exp(sum(nats) / len(nats)), rel=1e-4
    )
    everything = pseudo_perplexity(model, blocks, masking, 99)
    assert everything == pytest.approx(pseudo_perplexity(model, blocks, masking, 3, batch_size=2), rel=1e-5)


def test_evaluation_by_hand(tokenizer):
    model = tiny_bert(len(tokenizer))
    tokens = torch.randint(4, len(tokenizer), (14 * 9,), generator=torch.Generator().manual_seed(1)).numpy()
    blocks = MaskedBlocks(TokenBlocks(corpus(tokens), 16, isolate=False, around=(0, 1)), Masking(tokenizer), 0)
    batch = blocks.__getitems__(range(9))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    chosen = batch["labels"] != -100
    loss = torch.nn.functional.cross_entropy(logits[chosen], batch["labels"][chosen]).item()
    right = (logits.argmax(-1) == batch["labels"])[chosen].float().mean().item()
    found = evaluate_masked(model, blocks, batch_size=4, pseudo_perplexity_blocks=0)
    assert next(iter(found)) == "masked_accuracy"
    assert found == pytest.approx({"masked_accuracy": right, "loss": loss, "masked_tokens": chosen.sum().item()})


def test_blocks_stand_between_cls_and_sep_and_documents_are_separated(tokenizer, tmp_path):
    texts = TextSplits(
        {"train": Dataset.from_dict({"text": TEXTS}), "validation": Dataset.from_dict({"text": TEXTS[:1]})}, "t"
    )
    args, data = MaskedLMArguments(block_size=16), TextDataArguments(cache_dir=str(tmp_path))
    blocks = masked_blocks(texts, tokenizer, args, data, tiny_bert(len(tokenizer)))
    ids = blocks["train"].blocks.__getitems__(range(5))["input_ids"]
    assert ids.shape == (5, 16)
    assert set(ids[:, 0].tolist()) == {tokenizer.cls_token_id}
    assert set(ids[:, -1].tolist()) == {tokenizer.sep_token_id}
    first = [*tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    joined = ids[:, 1:-1].flatten().tolist()
    assert joined[: len(first)] == first
    assert len(blocks["validation"]) == 1  # shorter than a block, or one
    with pytest.raises(
        BadInput, match=r"--block_size 17 is more than the model's 16 positions.*max_position_embeddings: 17"
    ):
        masked_blocks(texts, tokenizer, MaskedLMArguments(block_size=17), data, tiny_bert(len(tokenizer)))


def test_what_a_mask_is_filled_with(tokenizer):
    model = tiny_bert(len(tokenizer))
    rows = fill_masks(model, tokenizer, "The [MASK] fox [MASK].", top_k=3)
    assert len(rows) == 2
    ids = tokenizer("The[MASK] fox[MASK].", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        shares = model(input_ids=ids).logits[0, ids[0].tolist().index(tokenizer.mask_token_id)].softmax(-1)
    best = shares.argmax().item()
    word = tokenizer.decode([best])
    assert rows[0]["predictions"].startswith(f"{word.strip() or repr(word)} ({shares[best].item():.0%}), ")
    assert rows[0]["predictions"].count("%)") == 3
    assert rows[0]["text"] == f"The{word} fox [MASK]."
    assert rows[0]["prompt"] == "The [MASK] fox [MASK]."
    with pytest.raises(BadInput, match="has no mask to fill"):
        fill_masks(model, tokenizer, "The fox")
    with pytest.raises(BadInput, match="16 positions: shorten it"):
        fill_masks(model, tokenizer, "[MASK] fox" * 16)


@pytest.mark.parametrize("more", [[], ["--whole_word_masking=true", "--gradient_accumulation_steps=2"]])
def test_cut_short_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, cache, finished, more):
    whole = train("pretrain_masked_lm", tmp_path / "whole", *FLAGS, cache, *more) if more else finished
    flags = [*FLAGS, cache, *more, "--resume_from_checkpoint=true"]
    killed_at(monkeypatch, 6, "pretrain_masked_lm", tmp_path / "cut", *flags)
    killed_at(monkeypatch, 11, "pretrain_masked_lm", tmp_path / "cut", *flags)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    mended = train("pretrain_masked_lm", tmp_path / "cut", *flags)
    assert same(weights(whole), weights(mended))
    histories = [json.loads((d / "trainer_state.json").read_text())["log_history"] for d in (whole, mended)]
    for metric in ("eval_loss", "eval_masked_accuracy"):
        a, b = ([(e["step"], e[metric]) for e in history if metric in e] for history in histories)
        assert len(a) == 2
        assert a == b


def test_a_run_evaluates_to_what_it_recorded_and_loads_with_the_stock_class(finished):
    facts = json.loads((finished / "run.json").read_text())
    found = load_recipe("pretrain_masked_lm").evaluate(finished)
    split = found.pop("split")
    assert found == pytest.approx({k.removeprefix(f"{split}_"): v for k, v in facts["metrics"].items()}, rel=1e-5)
    assert {"masked_accuracy", "loss", "pseudo_perplexity", "masked_tokens"} == found.keys()
    assert type(AutoModelForMaskedLM.from_pretrained(finished)).__name__ == "BertForMaskedLM"
    samples = json.loads((finished / "samples.json").read_text())
    assert samples and all("[MASK]" in row["text"] and "%" in row["predictions"] and row["truth"] for row in samples)


def test_on_from_a_model_with_adapters_and_another_architecture(tmp_path, cache, finished):
    flags = [f for f in FLAGS if not f.startswith(("--model_type", "--config", "--vocab"))] + [cache, "--max_steps=2"]
    adapted = train("pretrain_masked_lm", tmp_path / "lora", *flags, f"--model_name_or_path={finished}", "--lora_r=2")
    assert all("lora" in name for name in weights(adapted))
    assert "masked_accuracy" in load_recipe("pretrain_masked_lm").evaluate(adapted)
    modern = (
        "{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, local_attention: 8}"
    )
    flags += ["--model_type=modernbert", f"--config_overrides={modern}", "--vocab_size=300"]
    train("pretrain_masked_lm", tmp_path / "modern", *flags)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "modern")
    assert model.config.model_type == "modernbert"
    assert model.config.pad_token_id < model.config.vocab_size == 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mlm_probability=0"], "--mlm_probability 0.0: must be above 0"),
        (["--block_size=3"], "--block_size 3: must be at least 4"),
        (["--pseudo_perplexity_blocks=-1"], "--pseudo_perplexity_blocks -1: must be at least 0"),
        (["--text_column=body"], "there is no column body, only text"),
        (["--validation_fraction=0", "--dataset_name=TEXT"], "there is no validation split to evaluate on"),
        (["--model_type=roberta"], "more than the model's 29 positions.*max_position_embeddings: 35"),
        (["--lora_r=2"], "--lora_r adapts a pretrained model"),
    ],
)
def test_bad_options_are_one_line(tmp_path, cache, flags, message):
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    flags = [flag.replace("TEXT", str(tmp_path / "a.txt")) for flag in flags]
    with pytest.raises(BadInput, match=message) as error:
        train("pretrain_masked_lm", tmp_path / "run", *FLAGS, cache, *flags)
    assert "\n" not in str(error.value)
