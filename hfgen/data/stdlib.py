"""Text that comes with Python: no download, a few hundred kilobytes of real English, the same on every machine of a
Python version.

Each function returns the columns of `train`, `validation` and `test`; the draw of the splits depends on nothing but
the rows.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
import sys
import unicodedata
import warnings
import zlib
from functools import cache

Columns = dict[str, list]

# Modules of plain functions and classes; none prints, opens a window or needs another system on import.
MODULES = """
abc argparse array ast asyncio base64 bisect builtins bz2 calendar cmath cmd code codecs collections collections.abc
colorsys compileall concurrent.futures configparser contextlib copy csv dataclasses datetime decimal difflib dis
email.message email.utils enum filecmp fileinput fnmatch fractions ftplib functools gettext glob gzip hashlib heapq
hmac html http.client http.cookies http.server imaplib importlib.util inspect io ipaddress itertools json keyword
linecache locale logging logging.handlers lzma mailbox math mimetypes multiprocessing.pool numbers operator optparse os
os.path pathlib pickle pickletools pkgutil platform plistlib poplib pprint profile pstats queue quopri random re
reprlib runpy sched secrets selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat
statistics string struct subprocess sys sysconfig tarfile tempfile textwrap threading time timeit token tokenize trace
traceback tracemalloc types typing unicodedata unittest unittest.mock urllib.parse urllib.request uuid warnings wave
weakref xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipapp zipfile zipimport zlib
""".split()


def split_rows(
    rows: list[dict], validation: float = 0.1, test: float = 0.1, key: str | None = None
) -> dict[str, Columns]:
    """Deals rows out to train, validation and test: by their number alone, or each by its text in the column `key`, so
    that a row which comes or goes moves no other."""
    if key is None:
        order = list(range(len(rows)))
        random.Random(0).shuffle(order)
        ends = [round(len(rows) * test), round(len(rows) * (test + validation)), len(rows)]
        dealt = {"test": order[: ends[0]], "validation": order[ends[0] : ends[1]], "train": order[ends[1] :]}
    else:
        dealt = {"test": [], "validation": [], "train": []}
        for i, row in enumerate(rows):
            draw = zlib.crc32(row[key].encode()) / 2**32
            dealt["test" if draw < test else "validation" if draw < test + validation else "train"].append(i)
    return {
        split: {column: [rows[i][column] for i in sorted(dealt[split])] for column in rows[0]}
        for split in ("train", "validation", "test")
    }


def topics() -> dict[str, Columns]:
    """`text`: Python's reference manual as `help()` shows it (`pydoc_data.topics`), 465 kB in some 80 articles."""
    from pydoc_data.topics import topics as articles

    return split_rows([{"text": text.strip() + "\n"} for _, text in sorted(articles.items())])


@cache
def docstrings() -> list[tuple[str, str]]:
    """(qualified name, first paragraph of its docstring) of some 3,000 functions, methods and classes."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module_name in MODULES:
            try:
                module = importlib.import_module(module_name)
            except ImportError:  # a Python built without it
                continue
            for name, member in _members(module, module_name):
                text = inspect.getdoc(member) if getattr(member, "__doc__", None) else None
                paragraph = " ".join((text or "").split("\n\n")[0].split())
                paragraph = re.sub(r"^[\w.]+\(.*?\)\s*(->|--)\s*[\w\[\], ]*\s*", "", paragraph)
                if 20 <= len(paragraph) <= 200 and paragraph not in seen and paragraph.isascii():
                    seen.add(paragraph)
                    found[name] = paragraph
    return sorted(found.items())


def _members(module, module_name: str):
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or not callable(member):
            continue
        if getattr(member, "__module__", None) not in (module_name, None, "builtins") and module_name != "os.path":
            continue
        if module_name == "sys" and name.endswith("hook"):  # command lines put their own there
            continue
        yield f"{module_name}.{name}", member
        if inspect.isclass(member):
            for inner, method in sorted(vars(member).items()):
                # Libraries add methods of their own: transformers does to logging.Logger.
                home = (getattr(method, "__module__", None) or module_name).partition(".")[0]
                if not inner.startswith("_") and callable(method) and home in sys.stdlib_module_names:
                    yield f"{module_name}.{name}.{inner}", method


def questions() -> dict[str, Columns]:
    """`prompt` and `completion`: what does a function do, answered by its docstring."""
    rows = [{"prompt": f"What does {name} do?", "completion": text} for name, text in docstrings()]
    return split_rows(rows, key="prompt")


def preferences() -> dict[str, Columns]:
    """`prompt`, `chosen` and `rejected`: the docstring as it was written, and its words in another order.

    The rejected half is made by this function, not found: it is synthetic.
    """
    rows = []
    for name, text in docstrings():
        words = text.split()
        if len(words) < 5:
            continue
        shuffled = list(words)
        dice = random.Random(name)
        while shuffled == words:
            dice.shuffle(shuffled)
        rows.append({"prompt": f"What does {name} do?", "chosen": text, "rejected": " ".join(shuffled)})
    return split_rows(rows, key="prompt")


def unicode_names() -> dict[str, Columns]:
    """`source` and `target`: characters taken apart, and their names (Unicode's own, lower case), 5,700 pairs.

    A character is taken apart as Unicode does it: canonically (an `e` and an acute: "latin small letter e with acute")
    or with a tag that says what is lost (`<circle> 7`: "circled digit seven"). Some 2,700 letters and signs of all
    scripts, and 3,000 of the 11,172 Korean syllables, whose names are spelled from their parts. Left out is what no
    name can be told from: ideographs, and the styles of mathematical letters.
    """
    rows, syllables = [], []
    for code in range(0x110000):
        name = unicodedata.name(chr(code), "").lower()
        apart = unicodedata.normalize("NFD", chr(code))
        tag, *parts = unicodedata.decomposition(chr(code)).split() or [""]
        if len(apart) == 1 and tag.startswith("<") and tag not in ("<font>", "<compat>", "<noBreak>"):
            apart = f"{tag} {''.join(chr(int(part, 16)) for part in parts)}"
        if len(apart) > 1 and name and not any(unicodedata.name(c, "").startswith(("CJK", "KANGXI")) for c in apart):
            kind = syllables if name.startswith("hangul syllable") else rows
            kind.append({"source": apart, "target": name})
    return split_rows(rows + random.Random(0).sample(syllables, 3000))
