"""YAML and flags: one parser for both, and an answer in one line for what it can't take."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from hfgen.config import parse_arguments
from hfgen.errors import BadInput, guarded


@dataclass
class Options:
    rate: float = field(default=0.1, metadata={"help": "A rate."})
    steps: int = field(default=3, metadata={"help": "Steps."})
    sizes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Sizes."})
    kind: Literal["a", "b"] = field(default="a", metadata={"help": "Kind."})
    active: bool = field(default=False, metadata={"help": "Switch."})
    passive: bool = field(default=True, metadata={"help": "Switch."})
    name: str | None = field(default=None, metadata={"help": "Name."})
    extra: dict | str | None = field(default=None, metadata={"help": "A mapping."})


def parse(*argv: str) -> tuple:
    return parse_arguments((Options,), list(argv), "vae")


def test_yaml_then_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("rate: 1e-3\nsizes: [4, 5]\nkind: b\nactive: true\npassive: false\nname: -x\nextra: {a: 1}\n")
    options, config = parse("--config", str(path), "--steps", "7", "--sizes", "9")
    assert config == str(path)
    assert options == Options(0.001, 7, [9], "b", True, False, "-x", "{a: 1}")
    assert parse()[0] == Options()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--stpes", "3"], r"unknown option --stpes \(did you mean --steps\?\)"),
        (["--step", "3"], r"unknown option --step \(did you mean --steps\?\)"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--active", "perhaps"], "perhaps"),
        (["--steps"], "expected one argument"),
        (["stray"], "'stray' stands where an option was expected"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["--config", "digit"], r"vae has the configs .*digits.*\(did you mean digits\?\)"),
    ],
)
def test_flags_that_fail(flags, line):
    with pytest.raises(BadInput, match=line):
        parse(*flags)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("stpes: 3\n", r"c.yaml: unknown option stpes \(did you mean steps\?\)"),
        ("config: other\n", "unknown option config"),
        ("steps: many\n", "invalid int value: 'many'"),
        ("steps:\n", "steps has no value; remove the line"),
        ("- 1\n", "must hold `option: value` lines"),
        ("a: [1\n", "not valid YAML"),
        (b"name: \xff\n", "can't be read"),
    ],
)
def test_yaml_that_fails(tmp_path, content, line):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=line):
        parse("--config", str(path))


def test_an_error_is_one_line_on_stderr_and_code_2(capsys, monkeypatch):
    def fail():
        raise BadInput("the thing is\n wrong: mend it")

    monkeypatch.setenv("RANK", "0")
    assert guarded(fail) == 2
    assert capsys.readouterr().err == "hfgen: error: the thing is wrong: mend it\n"
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    assert guarded(fail) == 2
    assert waited == [5], "rank 0 goes first; the launcher stops this one meanwhile"


def test_a_full_disk_anywhere_is_one_line(capsys, monkeypatch):
    import errno

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

    monkeypatch.delenv("RANK", raising=False)
    assert guarded(fail) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)
