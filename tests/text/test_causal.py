"""Blocks of packed documents: who sees whom, what is predicted from what, and what the figures mean."""

import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from text.recipe_runs import killed_at, same, train, weights
from transformers import AutoModelForCausalLM

from hfgen.cli import run
from hfgen.errors import BadInput
from hfgen.text.arguments import ModelArguments
from hfgen.text.causal import evaluate_causal, language_metrics
from hfgen.text.model import build_model
from hfgen.text.tokenizer import train_tokenizer
from hfgen.text.tokens import TokenBlocks, TokenCorpus, tokenize_corpus

SMALL = {
    "llama": "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}",
    "qwen3": "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, head_dim: 16, "
    "num_key_value_heads: 2}",
    "gpt2": "{n_embd: 32, n_layer: 2, n_head: 2}",
}


def characters(text: str = "abcdefgh"):
    return train_tokenizer(iter([text]), "char", 0, "causal")


def corpus_of(documents: list[str], tokenizer, tmp_path) -> TokenCorpus:
    return tokenize_corpus(Dataset.from_dict({"text": documents}), tokenizer, cache_dir=str(tmp_path))


def small(tokenizer, model_type: str = "llama", **settings):
    torch.manual_seed(0)
    args = ModelArguments(model_type=model_type, config_overrides=SMALL[model_type])
    return build_model(args, AutoModelForCausalLM, tokenizer, "llama", **settings).eval()


# ---- the corpus


def test_documents_stand_one_after_the_other_each_with_its_end(tmp_path):
    tokenizer = characters()
    corpus = corpus_of(["abc", "de"], tokenizer, tmp_path)
    end = tokenizer.eos_token_id
    assert corpus.tokens.tolist() == [*tokenizer.convert_tokens_to_ids(list("abc")), end] + [
        *tokenizer.convert_tokens_to_ids(list("de")),
        end,
    ]
    assert corpus.starts.tolist() == [0, 4]
    assert (corpus.characters, corpus.characters_per_token) == (5, 5 / 7)
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.dtype == np.uint16


def test_the_cache_is_made_once_for_a_text_and_a_tokenizer(tmp_path, monkeypatch):
    tokenizer = characters()
    corpus_of(["abc", "de"], tokenizer, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenised again"))
        corpus_of(["abc", "de"], tokenizer, tmp_path)
    before = len(list((tmp_path / "hfgen" / "tokens").glob("*/tokens.bin")))
    corpus_of(["abc", "df"], tokenizer, tmp_path)
    corpus_of(["abc", "de"], characters("abcdefghi"), tmp_path)
    assert len(list((tmp_path / "hfgen" / "tokens").glob("*/tokens.bin"))) == before + 2 == 3


def test_blocks_are_consecutive_and_positions_begin_anew(tmp_path):
    tokenizer = characters()
    corpus = corpus_of(["abc", "defg", "abcdefgh"], tokenizer, tmp_path)  # 4 + 5 + 9 tokens
    blocks = TokenBlocks(corpus, 6)
    assert len(blocks) == 3
    batch = blocks.__getitems__([0, 1, 2])
    assert torch.equal(batch["input_ids"].flatten(), torch.from_numpy(corpus.tokens.astype(np.int64)))
    assert batch["labels"] is batch["input_ids"]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert "position_ids" not in blocks.__getitems__([2])
    assert "position_ids" not in TokenBlocks(corpus, 6, isolate=False).__getitems__([0])


def test_too_short_a_text_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="the train split has 4 tokens, fewer than one block of 6: lower --block_size"):
        TokenBlocks(corpus_of(["abc"], characters(), tmp_path), 6)


# ---- the model


@pytest.mark.parametrize("model_type", SMALL)
def test_packed_documents_do_not_see_each_other(tmp_path, model_type):
    tokenizer = characters()
    model = small(tokenizer, model_type)
    blocks = TokenBlocks(corpus_of(["abc", "defg", "abcdefgh"], tokenizer, tmp_path), 9)
    batch = blocks.__getitems__([0])
    other = batch["input_ids"].clone()
    other[0, :4] = torch.tensor(tokenizer.convert_tokens_to_ids(list("hgfe")))
    with torch.no_grad():
        both, positions = (batch["input_ids"], other), batch["position_ids"]
        isolated = [model(input_ids=ids, position_ids=positions, use_cache=False).logits for ids in both]
        joined = [model(input_ids=ids, use_cache=False).logits for ids in both]
        alone = model(input_ids=batch["input_ids"][:, 4:]).logits
    assert torch.equal(isolated[0][0, 4:], isolated[1][0, 4:])
    assert (joined[0][0, 4:] - joined[1][0, 4:]).abs().max() > 1e-4
    torch.testing.assert_close(isolated[0][0, 4:], alone[0], rtol=1e-4, atol=1e-5)


def test_each_token_is_predicted_from_those_before_it(tmp_path):
    tokenizer = characters()
    model = small(tokenizer)
    batch = TokenBlocks(corpus_of(["abcdefgh"], tokenizer, tmp_path), 9).__getitems__([0])
    with torch.no_grad():
        out = model(**batch)
        by_hand = -out.logits.log_softmax(-1)[0, :-1].gather(1, batch["input_ids"][0, 1:, None]).mean()
        changed = batch["input_ids"].clone()
        changed[0, 5] = batch["input_ids"][0, 0]
        later = model(input_ids=changed).logits
    torch.testing.assert_close(out.loss, by_hand)
    assert torch.equal(later[0, :5], out.logits[0, :5]), "causal attention"
    assert not torch.equal(later[0, 5:], out.logits[0, 5:])


def test_an_untrained_model_knows_nothing(tmp_path):
    tokenizer = characters()
    corpus = corpus_of(["abcdefgh" * 40], tokenizer, tmp_path)
    found = evaluate_causal(small(tokenizer), TokenBlocks(corpus, 32))
    assert found["loss"] == pytest.approx(math.log(len(tokenizer)), abs=0.3)
    assert found["tokens"] == len(corpus.tokens) // 32 * 31


def test_figures_by_hand():
    corpus = TokenCorpus(np.zeros(50, np.uint16), np.zeros(1, np.int64), characters=200, fingerprint="")
    found = language_metrics(2.0, corpus)
    assert found["perplexity"] == pytest.approx(math.e**2)
    assert found["bits_per_character"] == pytest.approx(2.0 * 50 / 200 / math.log(2))


# ---- the recipe

FLAGS = [f"--config_overrides={SMALL['llama']}", "--vocab_size=300", "--block_size=32", "--max_steps=6"]
FLAGS += ["--per_device_train_batch_size=4", "--save_steps=3", "--eval_strategy=steps", "--eval_steps=3"]


def folder_of(tmp_path, **files: str):
    folder = tmp_path / "texts"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_own_text_files_character_tokens_and_the_end_of_the_text_held_out(tmp_path, capsys):
    folder = folder_of(tmp_path, story="".join(f"line {i}: the quick brown fox\n" for i in range(200)))
    flags = [*FLAGS, f"--cache_dir={tmp_path / 'cache'}", "--tokenizer_type=char", f"--dataset_name={folder}"]
    train("pretrain_causal_lm", tmp_path / "run", *flags)
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["split"] == "validation"
    assert found == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert run(["generate", str(tmp_path / "run"), "--prompt", "line 1:", "--num_samples", "2"]) == 0
    first = (tmp_path / "run" / "generated" / "samples.jsonl").read_text()
    assert len(first.splitlines()) == 2
    assert run(["generate", str(tmp_path / "run"), "--prompt", "line 1:", "--num_samples", "2"]) == 0
    assert (tmp_path / "run" / "generated" / "samples.jsonl").read_text() == first


def test_streams_are_mixed_and_resume_exactly(tmp_path, monkeypatch):
    base = train("pretrain_causal_lm", tmp_path / "base", *FLAGS, f"--cache_dir={tmp_path / 'cache'}")
    for name in ("a", "b"):
        rows = [{"text": f"{name} {i} " * 9} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*FLAGS, f"--cache_dir={tmp_path / 'cache'}", "--streaming=true", f"--tokenizer_name={base}"]
    flags += ["--dataset_name", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--dataset_weights", "3", "1"]
    flags += ["--max_steps=40", "--shuffle_buffer_size=16", "--max_eval_samples=4", "--save_steps=8"]
    whole = train("pretrain_causal_lm", tmp_path / "whole", *flags)
    flags.append("--resume_from_checkpoint=true")
    for step in (11, 30):
        killed_at(monkeypatch, step, "pretrain_causal_lm", tmp_path / "cut", *flags)
    assert same(weights(whole), weights(train("pretrain_causal_lm", tmp_path / "cut", *flags)))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model_type=lama"], r"--model_type lama is no architecture of transformers \(did you mean llama\?\)"),
        (["--config_overrides={hiden_size: 8}"], r"llama has no option hiden_size \(did you mean hidden_size\?\)"),
        (["--config_overrides={hidden_size: big}"], "--config_overrides {'hidden_size': 'big'}: .*hidden_size"),
        (["--config_overrides=nonsense"], "--config_overrides 'nonsense' is no mapping"),
        (["--model_type=t5", "--config_overrides={}"], "--model_type t5: Unrecognized configuration class"),
        (["--model_name_or_path=./nowhere"], "tokenizer ./nowhere can't be loaded"),
        (["--block_size=1000000"], r"has \d+ tokens, fewer than one block of 1000000: lower --block_size"),
        (["--text_column=body"], "there is no column body, only text"),
        (["--optim=muonn"], r"--optim muonn is not known \(did you mean muon\?\)"),
        (["--bf16=maybe"], "bf16"),
        (["--streaming=true"], "dataset stdlib comes with Python"),
        (["--num_train_epoch=1"], r"unknown option --num_train_epoch \(did you mean --num_train_epochs\?\)"),
        (["--load_in_4bit=true", "--lora_r=2"], "for a pretrained model"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, flags, line):
    code = run(["train", "pretrain_causal_lm", *FLAGS, *flags, f"--output_dir={tmp_path / 'run'}"])
    assert code == 2
    last = re.split(r"[\r\n]", capsys.readouterr().err.rstrip("\n"))[-1]
    assert last.startswith("hfgen: error: ")
    assert re.search(line, last)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_described_is_a_small_one():
    model = build_model(ModelArguments(), AutoModelForCausalLM, characters(), "llama")
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 1e7
