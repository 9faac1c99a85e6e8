"""Text from every kind of place, and what is said of text that can't be used."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from hfgen.data.stdlib import docstrings, preferences, questions, split_rows, topics, unicode_names
from hfgen.data.text import TextDataArguments, load_text
from hfgen.errors import BadInput

ROWS = [{"text": f"text number {i}"} for i in range(50)]


def load(name, columns=("text",), check=None, **options):
    names = name if isinstance(name, list) else [str(name)]
    return load_text(TextDataArguments(dataset_name=names, **options), columns, topics, check)


def complaint(*args, **options) -> str:
    with pytest.raises(BadInput) as error:
        load(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_texts(splits) -> list[str]:
    return sorted(text for split in splits.splits.values() for text in split["text"])


def test_every_kind_of_file_holds_the_same_rows(tmp_path):
    data, wanted = Dataset.from_list(ROWS), sorted(row["text"] for row in ROWS)
    data.to_parquet(tmp_path / "a.parquet")
    data.to_csv(tmp_path / "a.csv")
    jsonl(tmp_path / "a.jsonl", ROWS)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "lines.txt").write_text("\n".join(wanted))
    (tmp_path / "folder").mkdir()
    for index, text in enumerate(wanted):
        (tmp_path / "folder" / f"{index}.txt").write_text(text)
    for name in ("a.parquet", "a.csv", "a.jsonl", "b.jsonl.gz", "saved", "folder"):
        found = load(tmp_path / name)
        assert all_texts(found) == wanted, name
        assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 45, "validation": 5}
    assert all_texts(load(tmp_path / "lines.txt", sample_by="line")) == wanted


def test_splits_are_found_or_held_out(tmp_path):
    splits = DatasetDict({name: Dataset.from_list(ROWS) for name in ("train", "valid", "test")})
    splits.save_to_disk(tmp_path / "three")
    assert set(load(tmp_path / "three").splits) == {"train", "validation", "test"}
    jsonl(tmp_path / "rows.jsonl", ROWS)
    assert set(load(tmp_path / "rows.jsonl", validation_fraction=0).splits) == {"train"}
    found = load(tmp_path / "rows.jsonl", max_train_samples=7, max_eval_samples=3)
    assert (len(found["train"]), len(found["validation"]), found.held_out) == (7, 3, "validation")


def test_of_one_long_text_the_end_is_held_out(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "book.txt").write_text(text)
    found = load(tmp_path / "book.txt")
    assert (found["train"]["text"][0], found["validation"]["text"][0]) == (text[:900], text[900:])


def test_mixtures(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(100)])
    jsonl(tmp_path / "b.jsonl", [{"text": f"b{i}"} for i in range(100)])
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    plain = load(names)
    assert len(plain["train"]) == 180
    assert len(plain["validation"]) == 20
    weighted = load(names, dataset_weights=[9.0, 1.0], stopping_strategy="first_exhausted")["train"]["text"]
    share = sum(text.startswith("a") for text in weighted) / len(weighted)
    assert 0.8 < share < 0.99
    assert "can't be mixed" in complaint([*names, str(jsonl(tmp_path / "c.jsonl", [{"text": 1}] * 30))])


def test_bad_rows_are_named_or_left_out(tmp_path, capsys):
    rows = [*ROWS[:3], {"text": "  "}, *ROWS[3:], {"text": None}]
    name = jsonl(tmp_path / "rows.jsonl", rows)
    line = complaint(name)
    assert f"dataset {name}, split 'train', row 3: column text is empty" in line
    assert "--skip_bad_rows true" in line
    found = load(name, skip_bad_rows=True)
    assert found.skipped == {"train": 2}
    assert all_texts(found) == sorted(row["text"] for row in ROWS)
    assert "2 rows of the train split were left out" in capsys.readouterr().err


def test_a_recipes_own_check_counts_too(tmp_path):
    import numpy as np

    name = jsonl(tmp_path / "rows.jsonl", ROWS)
    line = complaint(name, check=lambda split: np.array([text != "text number 7" for text in split["text"]]))
    assert "row 7: it can't be used" in line
    assert "text number 7" in line


def test_what_is_not_utf_8_is_named_by_file_and_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes("erste Zeile\nzweite Zeile mit ü\n".encode("latin-1"))
    line = complaint(tmp_path / "latin.txt")
    assert f"{tmp_path / 'latin.txt'}, line 2 is not UTF-8 (byte 17: 0xfc); convert it" in line
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
    assert f"{tmp_path / 'rows.jsonl'}, line 2 is not JSON" in complaint(tmp_path / "rows.jsonl")


def test_other_complaints(tmp_path):
    name = jsonl(tmp_path / "rows.jsonl", [{"body": "x"}] * 30)
    assert "there is no column text, only body" in complaint(name)
    assert complaint("./nowhere.txt").startswith("dataset ./nowhere.txt: there is no such file or folder")
    assert "has the splits train" in complaint(jsonl(tmp_path / "b.jsonl", ROWS), train_split="training")
    assert "--streaming true is for pretrain_causal_lm" in complaint("stdlib", streaming=True)
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in complaint(tmp_path / "empty.jsonl")
    for options, line in (
        ({"validation_fraction": 1.0}, "--validation_fraction 1.0"),
        ({"max_train_samples": 0}, "--max_train_samples 0: must be at least 1"),
        ({"dataset_weights": [1.0, 2.0]}, "--dataset_weights 1.0 2.0: give one number above 0 for each of the 1"),
    ):
        assert line in complaint("stdlib", **options)


# ---- the text that comes with Python


def test_the_embedded_texts_are_what_they_say():
    assert sum(len(text) for split in topics().values() for text in split["text"]) > 300_000
    assert len(docstrings()) > 1500
    asked = questions()
    assert all(set(split) == {"prompt", "completion"} for split in asked.values())
    assert not set(asked["train"]["completion"]) & set(asked["test"]["completion"])
    for split in preferences().values():
        for chosen, rejected in zip(split["chosen"], split["rejected"], strict=True):
            assert chosen != rejected
            assert sorted(chosen.split()) == sorted(rejected.split())
    names = unicode_names()
    assert all(set(split) == {"source", "target"} for split in names.values())
    assert sum(map(len, (split["source"] for split in names.values()))) > 3_000


def test_splits_are_disjoint_and_whole():
    dealt = split_rows([{"a": i} for i in range(100)])
    assert [len(dealt[split]["a"]) for split in ("train", "validation", "test")] == [80, 10, 10]
    assert sorted(sum((columns["a"] for columns in dealt.values()), [])) == list(range(100))
