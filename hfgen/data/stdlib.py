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
import unicodedata
import warnings
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


def split_rows(rows: list[dict], validation: float = 0.1, test: float = 0.1) -> dict[str, Columns]:
    """Deals rows out to train, validation and test; a function of their number alone."""
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    ends = [round(len(rows) * test), round(len(rows) * (test + validation)), len(rows)]
    dealt = {"test": order[: ends[0]], "validation": order[ends[0] : ends[1]], "train": order[ends[1] :]}
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
        yield f"{module_name}.{name}", member
        if inspect.isclass(member):
            for inner, method in sorted(vars(member).items()):
                if not inner.startswith("_") and callable(method):
                    yield f"{module_name}.{name}.{inner}", method


def questions() -> dict[str, Columns]:
    """`prompt` and `completion`: what does a function do, answered by its docstring."""
    rows = [{"prompt": f"What does {name} do?", "completion": text} for name, text in docstrings()]
    return split_rows(rows)


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
    return split_rows(rows)


def unicode_names() -> dict[str, Columns]:
    """`source` and `target`: composed characters taken apart, and their English names (Unicode's own, lower case).

    Some 1,300 letters with accents and 11,172 Korean syllables: `e` and an acute -> "latin small letter e with acute".
    """
    rows = []
    for code in range(0x110000):
        character = chr(code)
        apart = unicodedata.normalize("NFD", character)
        if len(apart) > 1 and (name := unicodedata.name(character, "")):
            rows.append({"source": apart, "target": name.lower()})
    return split_rows(rows)
