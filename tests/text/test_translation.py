"""Translation: what the loss counts, what BLEU and chrF are measured on, and every way to name the pairs."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
import torch
from datasets import Dataset, DatasetDict, Features, Translation
from text.recipe_runs import killed_at, same, train, weights
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

from hfgen.cli import run
from hfgen.data.stdlib import unicode_names
from hfgen.data.text import TextDataArguments
from hfgen.errors import BadInput
from hfgen.recipes import load_recipe
from hfgen.text.arguments import ModelArguments
from hfgen.text.pairs import Ragged, TokenPairs, decoder_inputs_of, length_grouped, load_pairs, make_pairs, shift_right
from hfgen.text.resume import EpochDataset
from hfgen.text.tokenizer import make_tokenizer
from hfgen.text.translation import (
    TranslationArguments,
    build_translator,
    evaluate_translator,
    generate_rows,
    loss_function,
    mean_loss,
    sequence_loss,
    set_languages,
    translate,
    translation_scores,
)

WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}
PAIRS = [{"en": f"{a} and {b}", "de": f"{WORDS[a]} und {WORDS[b]}"} for a in WORDS for b in WORDS]
TINY = {
    "t5": "{d_model: 32, d_kv: 16, d_ff: 64, num_layers: 1, num_heads: 2, dropout_rate: 0.1}",
    "bart": "{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}",
}
TINY["marian"] = TINY["m2m_100"] = TINY["bart"]
FLAGS = ["--model_type=t5", f"--config_overrides={TINY['t5']}", "--vocab_size=300", "--max_eval_samples=12"]
FLAGS += ["--max_target_length=16", "--max_source_length=32"]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs_file(tmp_path):
    return write(tmp_path / "pairs.jsonl", PAIRS)


def prepared(path, tmp_path, model_type="t5", **options):
    """(texts, tokenizer, model, pairs, translation arguments) of a file of pairs."""
    args = TranslationArguments(**({"source_column": "en", "target_column": "de"} | options))
    data = TextDataArguments(dataset_name=[str(path)], cache_dir=str(tmp_path / "cache"))
    texts = load_pairs(data, args, unicode_names)
    chosen = ModelArguments(model_type=model_type, config_overrides=TINY[model_type], vocab_size=300)
    tokenizer = make_tokenizer(chosen, "seq2seq", texts["train"], args.columns, data.cache_dir)
    torch.manual_seed(0)
    model = build_translator(chosen, tokenizer, args).eval()
    return texts, tokenizer, model, make_pairs(texts, tokenizer, args, data, model), args


# ---- scores


def test_bleu_and_chrf_are_sacrebleus():
    outputs = ["the cat sat on a mat today", "there is a dog", ""]
    references = ["the cat sat on the mat today", "there was a big dog", "nothing"]
    scores, signatures = translation_scores(outputs, references, TranslationArguments())
    assert scores["bleu"] == sacrebleu.corpus_bleu(outputs, [references]).score > 0
    assert scores["chrf"] == sacrebleu.corpus_chrf(outputs, [references]).score > 0
    assert "tok:13a" in signatures["bleu"] and f"version:{sacrebleu.__version__}" in signatures["bleu"]
    assert "nc:6|nw:0" in signatures["chrf"]


def test_bleu_splits_words_by_the_target_language():
    outputs, references = ["我喜欢黑猫和狗"], ["我喜欢黑猫和白狗"]
    plain, _ = translation_scores(outputs, references, TranslationArguments())
    chinese, signatures = translation_scores(outputs, references, TranslationArguments(target_lang="zh"))
    expected = sacrebleu.corpus_bleu(outputs, [references], tokenize="zh").score
    assert chinese["bleu"] == expected > plain["bleu"]
    assert "tok:zh" in signatures["bleu"]
    with pytest.raises(BadInput, match="--bleu_tokenize klingon: sacrebleu knows none, zh, 13a"):
        translation_scores(outputs, references, TranslationArguments(bleu_tokenize="klingon"))


def test_evaluation_is_of_every_row_in_its_place_against_the_text_as_written(pairs_file, tmp_path):
    texts, tokenizer, model, pairs, args = prepared(pairs_file, tmp_path, max_target_length=4)
    split, rows = texts["train"], pairs["train"]
    assert max(rows.targets.lengths) == 4 < len(tokenizer(text_target="drei und sechs")["input_ids"])
    outputs = generate_rows(model, tokenizer, rows, batch_size=5)
    alone = [translate(model, tokenizer, source, args)[0] for source in split["en"]]
    assert outputs == alone and len(set(outputs)) > 1
    texts.splits["test"], pairs["test"] = split, rows
    figures, shown = evaluate_translator(model, tokenizer, pairs, texts, args, batch_size=5)
    assert figures["bleu"] == sacrebleu.corpus_bleu(outputs, [split["de"]]).score
    assert figures["chrf"] == sacrebleu.corpus_chrf(outputs, [split["de"]]).score
    assert (figures["rows"], figures["split"]) == (len(split), "test") and len(split) == len(outputs)
    total = count = 0
    for row in range(len(rows)):
        batch = {name: value[None] for name, value in rows[row].items()}
        labels = batch["labels"]
        total += model(**batch).loss.item() * labels.numel()
        count += labels.numel()
    assert figures["loss"] == pytest.approx(total / count, rel=1e-5)
    expected = list(zip(split["en"], outputs, split["de"], strict=True))
    assert [tuple(row.values()) for row in (shown[0], shown[-1])] == [expected[0], expected[-1]]
    assert len(shown) == 10 and set(map(tuple, map(dict.values, shown))) <= set(expected)
    texts.splits = {"train": split}
    with pytest.raises(BadInput, match="no test or validation split to evaluate on"):
        evaluate_translator(model, tokenizer, pairs, texts, args)


# ---- what the loss sees


def test_the_decoder_sees_the_label_before():
    labels = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100]])
    expected = torch.tensor([[0, 5, 6, 7], [0, 8, 1, 2]])
    assert torch.equal(shift_right(labels, start=0, pad=2), expected)


@pytest.mark.parametrize("model_type", TINY)
def test_decoder_inputs_and_loss_of_each_architecture(model_type, pairs_file, tmp_path):
    _, tokenizer, model, pairs, _ = prepared(pairs_file, tmp_path, model_type)
    batch = pairs["train"].__getitems__([3, 0, 7])
    assert (batch["labels"] == -100).any() and (batch["attention_mask"] == 0).any()
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()
    expected = shift_right(batch["labels"], model.config.decoder_start_token_id, tokenizer.pad_token_id)
    assert torch.equal(batch["decoder_input_ids"], expected)
    assert (batch["decoder_input_ids"][:, 0] == tokenizer.bos_token_id).all()
    labels = batch.pop("labels")
    with_labels = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    ours = sequence_loss(model(**batch).logits, labels)
    assert ours.item() == pytest.approx(with_labels.loss.item(), rel=1e-5)


def test_batches_are_those_of_transformers_collator(pairs_file, tmp_path):
    texts, tokenizer, model, pairs, _ = prepared(pairs_file, tmp_path)
    rows = [4, 1, 9, 2]
    features = [
        tokenizer(texts["train"][i]["en"]) | {"labels": tokenizer(text_target=texts["train"][i]["de"])["input_ids"]}
        for i in rows
    ]
    expected = DataCollatorForSeq2Seq(tokenizer, model)([dict(f) for f in features])
    expected.pop("token_type_ids", None)
    batch = pairs["train"].__getitems__(rows)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_padding_never_contributes(model_type, pairs_file, tmp_path):
    _, tokenizer, model, pairs, _ = prepared(pairs_file, tmp_path, model_type)
    batch = pairs["train"].__getitems__([0, 5, 9])
    fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}
    longer = {name: torch.nn.functional.pad(batch[name], (0, 7), value=value) for name, value in fill.items()}
    longer["decoder_input_ids"] = decoder_inputs_of(model)(longer["labels"])
    losses, gradients = [], []
    for one in (batch, longer):
        labels = one.pop("labels")
        loss = loss_function(0.1)(model(**one), labels)
        model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert torch.allclose(*gradients, atol=1e-6)


def test_label_smoothing_by_hand():
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [9.0, 9.0, 9.0]]], requires_grad=True)
    labels = torch.tensor([[0, 2, -100]])
    total = [math.exp(2) + 2, math.e + 2]
    nll = [math.log(total[0]) - 2, math.log(total[1])]
    uniform = [math.log(total[0]) - 2 / 3, math.log(total[1]) - 1 / 3]
    expected = sum(0.9 * n + 0.1 * u for n, u in zip(nll, uniform, strict=True))
    assert sequence_loss(logits, labels, 0.1).item() == pytest.approx(expected / 2, rel=1e-6)
    assert sequence_loss(logits, labels, 0.1, count=8).item() == pytest.approx(expected / 8, rel=1e-6)
    outputs = SimpleNamespace(logits=logits)
    assert loss_function(0.1)(outputs, labels).item() == pytest.approx(expected / 2, rel=1e-6)
    with torch.no_grad():  # an evaluation's loss is not smoothed
        assert loss_function(0.1)(outputs, labels).item() == pytest.approx(sum(nll) / 2, rel=1e-6)
    assert (torch.autograd.grad(sequence_loss(logits, labels, 0.1), logits)[0][0, 2] == 0).all()


def test_accumulated_micro_batches_are_one_batch(pairs_file, tmp_path):
    flags = [*FLAGS, f"--dataset_name={pairs_file}", "--source_column=en", "--target_column=de", "--max_steps=2"]
    flags += [f"--cache_dir={tmp_path / 'cache'}", "--eval_strategy=no", "--optim=sgd", "--learning_rate=0.5"]
    flags += ["--group_by_length=false", "--label_smoothing_factor=0.1", "--logging_steps=1"]
    flags += [f"--config_overrides={TINY['t5'].replace('0.1}', '0.0}')}"]
    a = train("translation", tmp_path / "a", *flags, "--per_device_train_batch_size=8")
    split = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=4"]
    b = train("translation", tmp_path / "b", *flags, *split)
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5
    losses = [
        [e["loss"] for e in json.loads((d / "trainer_state.json").read_text())["log_history"] if "loss" in e]
        for d in (a, b)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] > 1


# ---- rows


def test_long_rows_are_counted_cut_and_still_end(tmp_path, capsys):
    rows = [{"en": "one " * n, "de": "eins " * n} for n in (1, 2, 3, 30, 40)] * 4
    _, tokenizer, _, pairs, _ = prepared(
        write(tmp_path / "long.jsonl", rows), tmp_path, max_source_length=12, max_target_length=60
    )
    said = capsys.readouterr().err
    counts = {purpose: int((pairs[purpose].sources.lengths == 12).sum()) for purpose in pairs}
    assert counts["train"] >= 5
    assert f"hfgen: {counts['train']} of 18 rows of the train split are longer than --max_source_length 12" in said
    assert "max_target_length" not in said
    assert max(pairs["train"].sources.lengths) == 12
    ends = pairs["train"].sources.tokens[pairs["train"].sources.offsets[1:] - 1]
    assert (ends == tokenizer.eos_token_id).all()


def test_rows_of_like_length_come_together_in_a_random_order():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    order = length_grouped(lengths, 16, np.random.default_rng(1))
    assert sorted(order) == list(range(1003))
    assert (order == length_grouped(lengths, 16, np.random.default_rng(1))).all()
    assert (order != length_grouped(lengths, 16, np.random.default_rng(2))).any()

    def padding(o):
        widths = [lengths[o[i : i + 16]].max() for i in range(0, 992, 16)]
        return sum(widths) * 16 / lengths[o[:992]].sum()

    assert padding(order) < 1.05 < 1.5 < padding(np.random.default_rng(3).permutation(1003))
    means = [lengths[order[i : i + 16]].mean() for i in range(0, 992, 16)]
    assert abs(np.corrcoef(means, np.arange(62))[0, 1]) < 0.3  # neither the short ones first nor the long ones


def test_the_epochs_order_is_the_datasets_own():
    ragged = Ragged(np.arange(2000, dtype=np.uint16), np.concatenate([[0], np.cumsum(np.arange(1, 41))]))
    pairs = TokenPairs(ragged, ragged, 0, lambda labels: labels, grouped=4)
    ordered = EpochDataset(pairs, seed=5)
    first = ordered.order.copy()
    assert sorted(first) == list(range(40))
    assert all(np.ptp(first[i : i + 4]) == 3 for i in range(0, 40, 4))
    ordered.set_epoch(1)
    assert (ordered.order != first).any()
    ordered.set_epoch(0)
    assert (ordered.order == first).all()
    batch = ordered.__getitems__([0, 1])
    assert batch["attention_mask"].sum(1).tolist() == [first[0] + 1, first[1] + 1]


@pytest.mark.parametrize("saved", ["jsonl", "hub"])
def test_a_translation_column_is_two_columns(saved, tmp_path):
    rows = [{"translation": pair, "id": i} for i, pair in enumerate(PAIRS)]
    if saved == "jsonl":
        path = write(tmp_path / "pairs.jsonl", rows)
    else:  # as the Hub's datasets have it
        features = Features({"translation": Translation(["de", "en"])})
        path = tmp_path / "saved"
        DatasetDict(train=Dataset.from_list([{"translation": p} for p in PAIRS], features=features)).save_to_disk(path)
    data = TextDataArguments(dataset_name=[str(path)], cache_dir=str(tmp_path / "cache"), validation_fraction=0)
    texts = load_pairs(data, TranslationArguments(source_lang="de", target_lang="en"), unicode_names)
    assert texts["train"].column_names == ["source", "target"]
    assert texts["train"][:] == {"source": [p["de"] for p in PAIRS], "target": [p["en"] for p in PAIRS]}
    for options, line in (
        ({}, "column translation has the languages de, en; --source_lang is not set"),
        ({"source_lang": "en"}, "--target_lang is not set"),
        ({"source_lang": "en", "target_lang": "fr"}, "--target_lang fr is not among them"),
    ):
        with pytest.raises(BadInput) as error:
            load_pairs(data, TranslationArguments(**options), unicode_names)
        if saved == "hub":
            assert line in str(error.value)
        assert len(str(error.value).splitlines()) == 1


BAD = {
    "missing column": ([{"en": "a", "fr": "b"}], "there is no column de, only en, fr"),
    "empty text": ([*PAIRS, {"en": "x", "de": " \t"}], "row 36: column de is empty; mend it, or leave such rows out"),
    "no text": ([{"en": "a", "de": None}, *PAIRS], "row 0: column de is empty"),
    "numbers": ([{"en": "a", "de": 1}] * 20, "column de holds int64, not text"),
    "lists": ([{"en": ["a"], "de": "b"}] * 20, "column en holds List, not text"),
    "nested": (
        [{"translation": {"en": "a", "de": "b"}}] * 20 + [{"translation": {"en": "a", "de": ""}}],
        "row 20: column translation has no text in de",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_line(case, tmp_path, capsys):
    rows, line = BAD[case]
    file = write(tmp_path / "bad.jsonl", rows)
    names = ["--source_lang=en", "--target_lang=de"]
    names += [] if case == "nested" else ["--source_column=en", "--target_column=de"]
    flags = [f"--dataset_name={file}", *names, *FLAGS, f"--cache_dir={tmp_path / 'cache'}"]
    assert run(["train", "translation", *flags, f"--output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert line in said[-1] and said[-1].startswith("hfgen: error: ")
    assert not (tmp_path / "run").exists()


def test_bytes_that_are_not_utf8_are_named(tmp_path, capsys):
    file = tmp_path / "pairs.csv"
    file.write_bytes(b"en,de\none,eins\nfive,f\xfcnf\n")
    flags = [f"--dataset_name={file}", "--source_column=en", "--target_column=de", f"--cache_dir={tmp_path / 'cache'}"]
    assert run(["train", "translation", *flags, f"--output_dir={tmp_path / 'run'}"]) == 2
    assert f"{file}, line 3 is not UTF-8 (byte 6: 0xfc)" in capsys.readouterr().err.splitlines()[-1]


def test_skipped_rows_are_left_out(tmp_path):
    rows = [{"translation": p} for p in PAIRS] + [{"translation": {"en": "a", "de": ""}}]
    data = TextDataArguments(
        dataset_name=[str(write(tmp_path / "p.jsonl", rows))], cache_dir=str(tmp_path), skip_bad_rows=True
    )
    texts = load_pairs(data, TranslationArguments(source_lang="en", target_lang="de"), unicode_names)
    assert texts.skipped == {"train": 1}
    assert len(texts["train"]) + len(texts["validation"]) == len(PAIRS)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_beams": 0}, "--num_beams 0: must be at least 1"),
        ({"max_source_length": 1}, "--max_source_length 1: must be at least 2"),
        ({"source_column": "a", "target_column": "a"}, "--source_column and --target_column are both a"),
    ],
)
def test_bad_options(options, line):
    with pytest.raises(BadInput, match=line):
        TranslationArguments(**options)


class Multilingual:
    """The tokenizer of M2M-100, as far as it is asked for languages."""

    src_lang, tgt_lang, unk_token_id = "en", None, 3

    def get_lang_id(self, language):
        return {"en": 7, "de": 8}[language]


def test_a_multilingual_tokenizer_is_told_its_languages():
    tokenizer = Multilingual()
    assert set_languages(tokenizer, TranslationArguments(source_lang="de", target_lang="en")) == 7
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("de", "en")
    with pytest.raises(BadInput, match="multilingual: set --target_lang, such as de"):
        set_languages(tokenizer, TranslationArguments(source_lang="en"))
    with pytest.raises(BadInput, match="--target_lang xx: the tokenizer has no such language"):
        set_languages(tokenizer, TranslationArguments(source_lang="en", target_lang="xx"))


def test_embedded_pairs():
    splits = unicode_names()
    rows = {split: list(zip(c["source"], c["target"], strict=True)) for split, c in splits.items()}
    assert {split: len(r) for split, r in rows.items()}.keys() == {"train", "validation", "test"}
    everything = [pair for split in rows.values() for pair in split]
    assert len(set(everything)) == len(everything) > 5000
    assert ("e\u0301", "latin small letter e with acute") in everything
    assert ("<circle> 7", "circled digit seven") in everything
    assert sum(target.startswith("hangul syllable") for _, target in everything) == 3000


# ---- the recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a few steps on pairs of a file, with label smoothing and beams."""
    folder = tmp_path_factory.mktemp("translation")
    file = write(folder / "pairs.jsonl", PAIRS)
    flags = [f"--dataset_name={file}", "--source_column=en", "--target_column=de", "--max_steps=60", *FLAGS]
    flags += ["--learning_rate=1e-2", "--per_device_train_batch_size=12", "--label_smoothing_factor=0.1"]
    flags += ["--num_beams=2", "--predict_with_generate=true", "--eval_strategy=steps", "--eval_steps=60"]
    flags += [f"--cache_dir={folder / 'cache'}", "--source_prefix=to German: ", "--validation_fraction=0.3"]
    return train("translation", folder / "run", *flags)


def test_a_run_reports_what_it_generates(finished):
    facts = json.loads((finished / "run.json").read_text())
    log = json.loads((finished / "trainer_state.json").read_text())["log_history"]
    (evaluated,) = [entry for entry in log if "eval_chrf" in entry]
    assert list(facts["metrics"])[0] == "validation_chrf"
    assert evaluated["eval_chrf"] == pytest.approx(facts["metrics"]["validation_chrf"])
    assert evaluated["eval_bleu"] == pytest.approx(facts["metrics"]["validation_bleu"])
    assert facts["metrics"]["validation_chrf"] > 20
    # The trainer's is a mean of its batches' means; neither is smoothed.
    assert evaluated["eval_loss"] == pytest.approx(facts["metrics"]["validation_loss"], rel=0.05)
    assert "version:" in facts["metrics"]["validation_bleu_signature"]
    samples = json.loads((finished / "samples.json").read_text())
    assert all(row.keys() == {"source", "output", "reference"} for row in samples) and len(samples) == 10


def test_a_run_evaluates_generates_and_loads(finished, capsys):
    facts = json.loads((finished / "run.json").read_text())["metrics"]
    assert run(["evaluate", str(finished)]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(figures)[:3] == ["chrf", "bleu", "loss"] and figures["split"] == "validation"
    assert {f"validation_{name}": value for name, value in figures.items() if name != "split"} == facts
    sample = json.loads((finished / "samples.json").read_text())[0]
    assert run(["generate", str(finished), "--prompt", sample["source"]]) == 0
    (row,) = map(json.loads, (finished / "generated" / "samples.jsonl").read_text().splitlines())
    assert row == {"source": sample["source"], "output": sample["output"]}
    assert run(["generate", str(finished), "--prompt", "six and six", "--num_samples=3"]) == 0
    assert len((finished / "generated" / "samples.jsonl").read_text().splitlines()) == 3
    model = AutoModelForSeq2SeqLM.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (2, 17)
    made = model.generate(**tokenizer(f"to German: {sample['source']}", return_tensors="pt"))
    assert tokenizer.decode(made[0], skip_special_tokens=True).strip() == sample["output"]


def test_generate_says_what_is_missing(finished, capsys):
    for flags, line in (
        ([], "there is nothing to translate: pass --prompt"),
        (["--prompt", "one " * 60], "tokens, the model learned up to 32: shorten it"),
    ):
        assert run(["generate", str(finished), *flags]) == 2
        assert line in capsys.readouterr().err.splitlines()[-1]


def test_drawn_translations_repeat_by_seed(finished):
    generate = load_recipe("translation").generate
    made = {
        (seed, again): generate(
            finished, seed=seed, output=finished / f"{seed}{again}", prompt="six", num_samples=4, temperature=2.0
        )[0].read_text()
        for seed in (0, 1)
        for again in "ab"
    }
    assert made[0, "a"] == made[0, "b"] != made[1, "a"] == made[1, "b"]


def test_goes_on_from_a_pretrained_model_with_adapters(finished, pairs_file, tmp_path):
    flags = [f"--dataset_name={pairs_file}", "--source_column=en", "--target_column=de", "--max_steps=2", "--lora_r=2"]
    flags += [f"--cache_dir={tmp_path / 'cache'}", f"--model_name_or_path={finished}", "--eval_strategy=no"]
    folder = train("translation", tmp_path / "run", *flags)
    assert all("lora" in name for name in weights(folder))
    assert json.loads((folder / "run.json").read_text())["metrics"]["validation_chrf"] > 0


def test_lengths_beyond_the_models_positions(tmp_path, capsys):
    config = AutoConfig.for_model(
        "bart",
        vocab_size=300,
        max_position_embeddings=16,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "bart")
    _, tokenizer, _, _, _ = prepared(write(tmp_path / "pairs.jsonl", PAIRS), tmp_path)
    tokenizer.save_pretrained(tmp_path / "bart")
    args = TranslationArguments(max_source_length=17, max_target_length=8)
    with pytest.raises(BadInput, match="--max_source_length 17 is more than the model's 16 positions: lower it"):
        build_translator(ModelArguments(model_name_or_path=str(tmp_path / "bart")), tokenizer, args)


def test_killed_and_resumed_equals_uninterrupted(pairs_file, tmp_path, monkeypatch):
    flags = [*FLAGS, f"--dataset_name={pairs_file}", "--source_column=en", "--target_column=de", "--max_steps=14"]
    flags += ["--per_device_train_batch_size=8", "--save_steps=4", "--predict_with_generate=true"]
    flags += ["--label_smoothing_factor=0.1", "--eval_strategy=steps", "--eval_steps=5"]
    flags += [f"--cache_dir={tmp_path / 'cache'}", "--validation_fraction=0.2"]
    whole = train("translation", tmp_path / "whole", *flags)
    flags.append("--resume_from_checkpoint=true")
    killed = tmp_path / "killed"
    killed_at(monkeypatch, 6, "translation", killed, *flags)
    assert [p.name for p in killed.glob("checkpoint-*")] == ["checkpoint-4"]
    train("translation", killed, *flags)
    assert same(weights(whole), weights(killed))
    logs = [json.loads((d / "trainer_state.json").read_text())["log_history"] for d in (whole, killed)]
    scores = [[(e["step"], e["eval_loss"], e["eval_chrf"]) for e in log if "eval_chrf" in e] for log in logs]
    assert scores[0] == scores[1] and len(scores[0]) == 3


def test_the_mean_loss_weighs_tokens_not_batches(pairs_file, tmp_path):
    _, _, model, pairs, _ = prepared(pairs_file, tmp_path)
    assert mean_loss(model, pairs["train"], 1) == pytest.approx(mean_loss(model, pairs["train"], 7), rel=1e-5)
