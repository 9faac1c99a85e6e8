"""English to German, from scratch, on real pairs: the message catalogues of Django and of what is built on it.

    python benchmarks/translation_django.py [--only_django] [further flags of the recipe, such as --max_steps 500]

Django alone has 750 German messages; ten packages on top of it have 18,000 more. All ship their translations, made
by people, as .mo files. They are installed, without what they need, into an environment of their own (160 MB); every
plain singular message that is translated and not fuzzy is a pair (msgfmt leaves the others out of a .mo file). Sources
that differ in case, punctuation or white space alone count as one, and no source is in two splits: 80 % train, 10 %
validation, 10 % test, by a hash of the source. The recipe `translation` then trains from scratch; the test split is
translated and scored once, by sacrebleu, against the messages as they are written. The validation split was for
choosing the settings.
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

from common import finish, say
from peer import venv

from hfgen.recipes import load_recipe
from hfgen.runs import read_json

PACKAGES = """
Django==5.2.19 django-allauth==65.21.1 django-cms==5.1.3 django-filer==3.6.0 django-oscar==4.2.1
djangorestframework==3.18.3 evap==2026.2.0 mayan-edms==4.12.2 pretix==2026.8.0 wagtail==8.0.1 weblate==5.14.3
""".split()
LANGUAGE = "de"
LONGEST = 40  # words; the few longer messages are paragraphs of help
MODEL = {
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 768,
    "num_layers": 3,
    "num_heads": 4,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-silu",
}
FLAGS = """
--model_type t5 --vocab_size 4000 --max_source_length 96 --max_target_length 96 --num_beams 4
--per_device_train_batch_size 32 --max_steps 4000 --learning_rate 1e-3 --warmup_steps 200 --lr_scheduler_type cosine
--label_smoothing_factor 0.1 --weight_decay 0.1 --float32_matmul_precision medium
--eval_strategy no --save_strategy no --logging_steps 200 --disable_tqdm true
"""


def messages(package: Path) -> list[tuple[str, str]]:
    """(English, German) of each plain singular message in a package's catalogues, white space evened out."""
    found = {}
    for file in sorted(package.glob("**/LC_MESSAGES/*.mo")):
        if file.parent.parent.name not in (LANGUAGE, f"{LANGUAGE}_{LANGUAGE.upper()}"):
            continue
        with open(file, "rb") as opened:
            catalogue = gettext.GNUTranslations(opened)._catalog
        for source, target in catalogue.items():
            # A plural is a tuple; the header's source is empty; a context stands before an EOT byte.
            if isinstance(source, str) and "\x04" not in source and source.strip() and target.strip():
                found[" ".join(source.split())] = " ".join(target.split())
    return [pair for pair in found.items() if max(len(text.split()) for text in pair) <= LONGEST]


def essence(source: str) -> str:
    """The same for sources that differ in case, punctuation or white space alone."""
    return re.sub(r"[\W_]+", "", source.casefold()) or source


def split_of(source: str) -> str:
    """train, validation or test: a function of the source's essence alone."""
    part = int.from_bytes(hashlib.sha256(essence(source).encode()).digest()[:4], "big") % 10
    return {8: "validation", 9: "test"}.get(part, "train")


def collect(only_django: bool) -> dict[str, list[dict[str, str]]]:
    """Rows of `en`, `de` and `package` by split; a pair that several packages have stands once."""
    python = venv("catalogues", ["--no-deps", *PACKAGES])
    if python is None:
        raise SystemExit("this benchmark needs the catalogues that these packages ship")
    command = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    seen: set[tuple[str, str]] = set()
    for package in sorted(folder for folder in site.iterdir() if folder.is_dir()):
        if only_django and package.name != "django":
            continue
        pairs = [pair for pair in messages(package) if pair not in seen]
        seen.update(pairs)
        if pairs:
            say(f"{package.name}: {len(pairs)} pairs")
        for source, target in pairs:
            rows[split_of(source)].append({"en": source, LANGUAGE: target, "package": package.name})
    sources = [{essence(row["en"]) for row in of} for of in rows.values()]
    assert all(sources) and sum(map(len, sources)) == len(set().union(*sources)), "a source is in two splits"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only_django", action="store_true", help="leave the other packages' catalogues out")
    options, further = parser.parse_known_args()
    rows = collect(options.only_django)
    pairs = sum(map(len, rows.values()))
    say(f"English to {LANGUAGE}: {', '.join(f'{len(of)} {split}' for split, of in rows.items())} pairs")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, of in rows.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        flags = [*FLAGS.split(), "--config_overrides", json.dumps(MODEL), "--dataset_name", f"{folder}/*.jsonl"]
        flags += ["--source_column", "en", "--target_column", LANGUAGE, "--target_lang", LANGUAGE]
        flags += ["--output_dir", f"{folder}/run", "--cache_dir", f"{folder}/cache", *further]
        begin = time.perf_counter()
        load_recipe("translation").main(flags)
        seconds = time.perf_counter() - begin
        facts = read_json(folder / "run" / "run.json", {})
        samples = read_json(folder / "run" / "samples.json", [])
    say(f"training took {facts['seconds']:.0f} s; with tokenising and the test {seconds:.0f} s")
    for sample in samples:
        print("\n".join(f"{name:9} {text}" for name, text in sample.items()), end="\n\n")
    metrics = facts["metrics"]
    finish(
        bleu=metrics["test_bleu"],
        chrf=metrics["test_chrf"],
        pairs=pairs,
        seconds=seconds,
        test_rows=metrics["test_rows"],
        test_loss=metrics["test_loss"],
        signature=metrics["test_bleu_signature"],
    )


if __name__ == "__main__":
    main()
