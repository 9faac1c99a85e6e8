"""The command line, the launcher and the demo; recipes are stand-ins of a few lines, so that nothing is trained."""

import ast
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from processes import environment

import hfgen
from hfgen import cli, demo, launcher, recipes
from hfgen.errors import BadInput

ROOT = Path(__file__).parent.parent

RECIPE = '''
"""Launch: hfgen train NAME.

A NAME of squares.
"""
import json
from pathlib import Path
from hfgen.errors import BadInput

def main(argv=None):
    print("argv:", *argv)
    if "--explode" in argv:
        raise RuntimeError("broken\\nrecipe")
    if "--wrong" in argv:
        raise BadInput("--wrong is\\nwrong")
    if "--output_dir" in argv:
        run_dir = Path(argv[argv.index("--output_dir") + 1])
        run_dir.mkdir(parents=True)
        facts = {"recipe": "NAME", "config": argv[1], "command": "hfgen train NAME", "seconds": 1.5,
                 "metrics": {"eval_loss": 2.0}}
        (run_dir / "run.json").write_text(json.dumps(facts))

def generate(run_dir, *, num_images, seed, output, temperature=1.0):
    output.mkdir()
    paths = [output / f"{i}.txt" for i in range(num_images)]
    for path in paths:
        path.write_text(f"{seed} {temperature}")
    return paths

def evaluate(run_dir, *, num_samples=10, split="test"):
    return {"test_elbo": -20.125, "samples": num_samples, "bad": float("nan"), "on": split}
'''


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A recipes folder with two stand-ins, `alpha` and `beta`."""
    folder = tmp_path / "recipes"
    for name, config in (("alpha", "digits"), ("beta", "stdlib")):
        (folder / "configs" / name).mkdir(parents=True)
        (folder / f"{name}.py").write_text(RECIPE.replace("NAME", name).replace("Launch: ", ""))
        header = f"# Command: hfgen train {name}\n# Time: 3 s on\n#   2 cores\n# Score: 1.5 nats\nlearning_rate: 1\n"
        (folder / "configs" / name / f"{config}.yaml").write_text(header)
    (folder / "configs" / "alpha" / "cats.yaml").write_text("# Score: 9\n\ndataset_name: me/cats\n# Time: late\n")
    (folder / "_shared.py").write_text("")
    monkeypatch.setattr(recipes, "recipes_dir", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def last_line(text):
    return text.rstrip("\n").rpartition("\n")[2]


# ---- starting up ----------------------------------------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_a_command_needs_it():
    code = (
        "import sys, hfgen, hfgen.cli, hfgen.recipes\n"
        "hfgen.recipes.list_recipes()\n"
        "assert hfgen.cli.run(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'datasets', 'accelerate', 'matplotlib', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    took = []
    for _ in range(2):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment(), stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - begin)
    assert min(took) < 1


def test_every_export_can_be_imported():
    assert len(hfgen.__all__) > 10
    for name in hfgen.__all__:
        assert getattr(hfgen, name) is not None
        assert name in dir(hfgen)
    with pytest.raises(AttributeError, match="no attribute 'Traner'"):
        getattr(hfgen, "Traner")  # noqa: B009


@pytest.mark.parametrize("module", ["hfgen.data", "hfgen.vae"])
def test_exports_agree_with_the_packages(module):
    public = importlib.import_module(module).__all__
    exported = {name for name, home in hfgen._EXPORTS.items() if home == module}
    assert exported
    assert exported <= set(public)
    # Classes that a user instantiates or subclasses belong to the top level.
    endings = ("Trainer", "Pipeline", "Arguments", "Dataset")
    assert {name for name in public if name.endswith(endings) or name.startswith("Autoencoder")} <= exported


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"hfgen {hfgen.__version__}\n"


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["bogus"], "bogus"),
        (["train", "alhpa"], "unknown recipe alhpa (did you mean alpha?)"),
        (["train", "--seed", "3", "alpha"], "hfgen train RECIPE [options]"),
        (["train", "alpha", "--wrong"], "--wrong is wrong"),
        (["train", "alpha", "--num_processes", "x"], "--num_processes"),
        (["train", "alpha", "--accelerate_config", "two_cpus"], "did you mean two_cpu?"),
        (["train", "alpha", "--accelerate_config", "mine.yaml"], "there is no such file"),
        (["generate"], "RUN_DIR"),
        (["generate", "nowhere"], "nowhere: there is no such folder"),
        (["generate", ".", "--seed", "x"], "--seed"),
        (["evaluate", "recipes"], "is not a run folder"),
        (["push", "nowhere"], "there is no such folder"),
        (["demo", "--only", "alpa"], "did you mean alpha?"),
    ],
)
def test_bad_input_is_one_line(book, capsys, argv, says):
    assert cli.run(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hfgen: error: ")
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_debug_shows_the_traceback(book, capsys, monkeypatch):
    monkeypatch.setenv("HFGEN_DEBUG", "1")
    assert cli.run(["train", "alpha", "--wrong"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert last_line(error) == "hfgen: error: --wrong is wrong"


def test_train_hands_every_flag_on_in_this_process(book, capsys):
    flags = ["--config", "digits", "--seed=3", "--ratio", "-0.5", "--names", "a", "b", "--flag"]
    assert cli.run(["train", "alpha", *flags, "--num_processes", "1"]) == 0
    assert last_line(capsys.readouterr().out) == "argv: " + " ".join(flags)
    assert cli.run(["train", "alpha", "--help"]) == 0
    assert last_line(capsys.readouterr().out) == "argv: --help"
    assert cli.run(["train", "--help"]) == 0
    assert "--accelerate_config" in capsys.readouterr().out


def test_train_with_several_processes_calls_the_launcher(book, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(launcher, "launch", lambda *call: calls.append(call) or 7)
    assert cli.run(["train", "alpha", "--num_processes", "2", "--seed", "3"]) == 7
    assert cli.run(["train", "alpha", "--seed", "3", "--accelerate_config", "ddp"]) == 7
    assert calls == [
        (book / "alpha.py", ["--seed", "3"], 2, None),
        (book / "alpha.py", ["--seed", "3"], None, "ddp"),
    ]


def test_recipes_table(book, capsys):
    assert cli.run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "alpha  A alpha of squares."
    assert lines[1].split() == ["config", "dataset", "time", "score"]
    assert re.split(r"  +", lines[2].strip()) == ["digits", "digits", "3 s on 2 cores", "1.5 nats"]
    assert re.split(r"  +", lines[3].strip()) == ["cats", "me/cats", "9"]
    assert lines[5].startswith("beta  ")


def test_generate(book, tmp_path, capsys):
    cli.run(["train", "alpha", "--config", "digits", "--output_dir", "run"])
    assert cli.run(["generate", "run", "--num_images", "3", "--seed", "5", "--temperature", "0.5"]) == 0
    assert last_line(capsys.readouterr().out) == f"3 files in {Path('run/generated')}"
    assert (tmp_path / "run" / "generated" / "2.txt").read_text() == "5 0.5"
    assert cli.run(["generate", "run", "--output", "there", "--tempeature", "1"]) == 2
    assert "(did you mean --temperature?)" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()


def test_evaluate(book, tmp_path, capsys):
    cli.run(["train", "alpha", "--config", "digits", "--output_dir", "run"])
    capsys.readouterr()
    assert cli.run(["evaluate", "run", "--num_samples=50", "--json", "scores.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    metrics = {"test_elbo": -20.125, "samples": 50, "bad": None, "on": "test"}
    assert lines[0].split() == ["test_elbo", "-20.12"]
    assert json.loads(lines[-1]) == metrics
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == metrics
    assert json.loads((tmp_path / "scores.json").read_text()) == metrics
    assert cli.run(["evaluate", "run", "--json", "no/where.json"]) == 2
    assert cli.run(["evaluate", "run", "--num_samples"]) == 2
    assert "needs a value" in capsys.readouterr().err


# ---- the demo -------------------------------------------------------------------------------------------------------


def test_demo(book, tmp_path, capsys):
    assert cli.run(["demo", "--output", "out"]) == 0
    out = capsys.readouterr().out
    assert "argv: --config digits --output_dir out/alpha" in out
    assert "argv: --config stdlib --output_dir out/beta" in out
    table = out.splitlines()[-5:]
    assert table[1].split() == ["alpha", "digits", "1.5", "s", "test_elbo", "-20.12", "no", "alarm"]
    assert last_line(out).endswith(f"the page: {Path('out/index.html')}")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [r["recipe"] for r in summary["runs"]] == ["alpha", "beta"]
    assert summary["runs"][0]["metrics"]["test_elbo"] == -20.125

    # Again, one of them: it is replaced, the other stays on the page.
    (tmp_path / "out" / "alpha" / "old").touch()
    (tmp_path / "out" / "beta" / "old").touch()
    assert cli.run(["demo", "--output", "out", "--only", "alpha"]) == 0
    assert not (tmp_path / "out" / "alpha" / "old").exists()
    assert (tmp_path / "out" / "beta" / "old").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sorted(r["recipe"] for r in summary["runs"]) == ["alpha", "beta"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "alpha: digits" in page
    assert "beta: stdlib" in page


def test_demo_touches_no_other_folder(book, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    assert cli.run(["demo", "--output", "mine"]) == 2
    assert "no demo's folder" in capsys.readouterr().err
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    assert cli.run(["demo", "--output", "mine/thesis.tex"]) == 2

    # In a demo's own folder, what the demo did not write stays.
    assert cli.run(["demo", "--output", "out", "--only", "alpha"]) == 0
    (tmp_path / "out" / "beta").mkdir()
    assert cli.run(["demo", "--output", "out"]) == 2
    assert "no demo wrote it" in capsys.readouterr().err
    # A summary that names a folder outside gets nothing removed.
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    summary["runs"].append({"recipe": "alpha", "config": "digits", "run_dir": "../mine"})
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    assert cli.run(["demo", "--output", "out", "--only", "alpha"]) == 0
    assert (mine / "thesis.tex").exists()


def test_demo_goes_on_after_a_failure(book, tmp_path, capsys):
    broken = (book / "alpha.py").read_text().replace('if "--explode" in argv', "if True")
    (book / "alpha.py").write_text(broken)
    assert cli.run(["demo", "--output", "out"]) == 1
    captured = capsys.readouterr()
    assert "hfgen: error: alpha: RuntimeError: broken recipe" in captured.err
    assert "failed: RuntimeError: broken recipe" in captured.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [r.get("error") for r in summary["runs"]] == ["RuntimeError: broken recipe", None]
    assert "RuntimeError: broken recipe" in (tmp_path / "out" / "index.html").read_text()


def test_demo_that_was_stopped_can_be_repeated(book, tmp_path, monkeypatch):
    def stop(recipe, run_dir):
        run_dir.mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "_run", stop)
        assert cli.run(["demo", "--output", "out"]) == 130
    assert cli.run(["demo", "--output", "out"]) == 0
    assert (tmp_path / "out" / "index.html").is_file()


# ---- the real recipes and configs -----------------------------------------------------------------------------------


def test_every_recipe_has_an_embedded_config_and_headers():
    found = recipes.list_recipes()
    assert "vae" in [r.name for r in found]
    for recipe in found:
        assert recipe.embedded, f"{recipe.name} has no config for embedded data"
        assert recipe.description
        for config in recipe.configs:
            assert config.command.startswith(f"hfgen train {recipe.name} --config "), config
            assert config.time, config
            assert config.score, config


CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
NAMES = {"one_cpu", "two_cpu", "one_gpu", "ddp", "fsdp2", "zero2", "zero3", "multi_node"}


def test_all_accelerate_configs_are_there():
    assert {path.stem for path in CONFIGS} == NAMES
    assert launcher.accelerate_configs_dir() == ROOT / "accelerate_configs"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_config_is_read_as_written(path):
    from accelerate.commands.config import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.num_processes == written["num_processes"]
    assert config.distributed_type.value == written["distributed_type"]
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for prefix, options in (("", config.deepspeed_config), ("", config.fsdp_config)):
        assert {prefix + option for option in options} <= set(known), "the launcher would ignore an unknown option"
    command = header_command(path)
    assert f"accelerate_configs/{path.name}" in command
    assert "recipes/vae.py --config digits" in command


def header_command(path):
    """The command in a config's comment."""
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    command = comments[[("accelerate launch" in line) for line in comments].index(True) :]
    return f"{command[0][:-1]} {command[1]}" if command[0].endswith("\\") else command[0]


# ---- several processes ----------------------------------------------------------------------------------------------


def test_two_cpu_starts_two_processes_by_its_own_command(tmp_path):
    """The command in the file, as a user copies it, runs one job of world size 2."""
    script = tmp_path / "world.py"
    script.write_text(
        "import torch\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator()\n"
        "total = accelerator.reduce(torch.ones(1)).item()\n"
        "if accelerator.is_main_process: print('world', accelerator.num_processes, total, flush=True)\n"
        "accelerator.end_training()\n"
    )
    command = header_command(ROOT / "accelerate_configs" / "two_cpu.yaml")
    command = command.replace("recipes/vae.py --config digits", str(script))
    command = command.replace("accelerate launch", f"{sys.executable} -m accelerate.commands.launch")
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"world .*", done.stdout) == ["world 2 2.0"]


@pytest.fixture
def launch(tmp_path, environ, capfd):
    """Runs a script in two processes; returns the exit code, stdout and stderr."""
    for name in ("HFGEN_DEBUG", "ACCELERATE_USE_CPU"):
        environ.pop(name, None)

    def run(code, *flags, num_processes=2, accelerate_config=None):
        script = tmp_path / "worker.py"
        script.write_text("import os, sys, time\nrank = int(os.environ['RANK'])\n" + textwrap.dedent(code))
        capfd.readouterr()
        result = launcher.launch(script, list(flags), num_processes, accelerate_config)
        return result, *capfd.readouterr()

    return run


WORLD = """
keys = ('WORLD_SIZE', 'ACCELERATE_USE_CPU', 'OMP_NUM_THREADS')
if rank == 0: print(*(os.environ[key] for key in keys), *sys.argv[1:])
else: print('rank 1 must be silent'); print('here too', file=sys.stderr)
"""


def test_launch_starts_two_cpu_processes(launch, environ):
    environ.pop("OMP_NUM_THREADS", None)
    before = signal.getsignal(signal.SIGTERM)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert launch(WORLD, "--lr", "1e-3", "--use_cpu", "true") == (
        0,
        f"2 true {threads} --lr 1e-3 --use_cpu true\n",
        "",
    )
    assert signal.getsignal(signal.SIGTERM) is before
    environ["OMP_NUM_THREADS"] = "3"
    assert launch(WORLD, num_processes=None, accelerate_config="two_cpu") == (0, "2 true 3\n", "")


def test_error_line_of_rank_0_is_the_last_on_the_screen(launch):
    code = """
    if rank == 0: print('hfgen: error: it is wrong', file=sys.stderr)
    sys.exit(2)
    """
    assert launch(code, "--use_cpu") == (2, "", "hfgen: error: it is wrong\n")


def test_failure_of_another_rank_is_shown(launch):
    code = """
    if rank == 1:
        print('hfgen: error: only here', file=sys.stderr)
        sys.exit(2)
    time.sleep(60)
    """
    assert launch(code, "--use_cpu") == (2, "", "hfgen: error: only here\n")


def test_bad_input_is_said_once_whichever_rank_meets_it_first(launch):
    code = """
    from hfgen.errors import BadInput, guarded
    def main():
        time.sleep(0.7 * (rank == SLOW))
        raise BadInput('it is wrong')
    sys.exit(guarded(main))
    """
    for slow in ("0", "1"):
        assert launch(code.replace("SLOW", slow), "--use_cpu") == (2, "", "hfgen: error: it is wrong\n")


def test_silent_and_killed_processes_are_named(launch):
    code = """
    if rank == 1: sys.exit(3)
    time.sleep(60)
    """
    assert launch(code, "--use_cpu") == (3, "", "hfgen: error: process 1 ended with exit code 3\n")
    code = """
    if rank == 0: os.kill(os.getpid(), 9)
    time.sleep(60)
    """
    result, _, error = launch(code, "--use_cpu")
    assert (result, error) == (137, "hfgen: error: process 0 was ended by SIGKILL (out of memory?)\n")


def test_launcher_refuses_more_processes_than_devices(monkeypatch, environ):
    import torch

    environ.pop("ACCELERATE_USE_CPU", None)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="this machine has 1 device.*--use_cpu true"):
        launcher.launch(Path("x.py"), [], 2)


def test_config_that_is_none_is_refused(tmp_path, environ):
    open_config = tmp_path / "open.yaml"
    open_config.write_text("distributed_type: MULTI_GPU\n")
    with pytest.raises(BadInput, match="pass --num_processes"):
        launcher.launch(Path("x.py"), [], None, str(open_config))
    open_config.write_text("distributed_type: MULTI_GPU\nnum_proceses: 2\n")
    with pytest.raises(BadInput, match="can't be read.*num_proceses"):
        launcher.launch(Path("x.py"), [], None, str(open_config))


def test_what_asks_for_the_cpu(environ):
    environ.pop("ACCELERATE_USE_CPU", None)
    assert launcher.asks_for_cpu(["--use_cpu"])
    assert launcher.asks_for_cpu(["--use_cpu", "--seed", "1"])
    assert launcher.asks_for_cpu(["--use_cpu=true"])
    assert not launcher.asks_for_cpu(["--use_cpu", "false"])
    assert not launcher.asks_for_cpu(["--use_cpu=False", "--seed", "1"])
    assert not launcher.asks_for_cpu(["--seed", "1"])
    environ["ACCELERATE_USE_CPU"] = "true"
    assert launcher.asks_for_cpu([])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_workers_which_can_save(tmp_path, number):
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys, time
        folder, rank = sys.argv[1], os.environ["RANK"]
        def save(number, frame):
            time.sleep(0.5)
            open(f"{folder}/saved-{rank}", "w").write(str(number))
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        signal.signal(signal.SIGINT, save)
        open(f"{folder}/ready-{rank}", "w").close()
        time.sleep(60)
        """)
    )
    code = f"from hfgen.launcher import launch; from pathlib import Path; import sys\n\
sys.exit(launch(Path({str(script)!r}), [{str(tmp_path)!r}, '--use_cpu'], 2))"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error == ""
    assert sorted((p.name, p.read_text()) for p in tmp_path.glob("saved-*")) == [
        ("saved-0", str(int(number))),
        ("saved-1", str(int(number))),
    ]


def test_one_process_config_becomes_the_recipe_itself(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\n"
        "print(os.getpid(), os.environ['ACCELERATE_USE_CPU'], 'WORLD_SIZE' in os.environ, *sys.argv[1:])\n"
        "sys.exit(5)\n"
    )
    code = f"from hfgen.launcher import launch; from pathlib import Path\n\
launch(Path({str(script)!r}), ['--seed', '1'], None, 'one_cpu')"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    assert out == f"{process.pid} True False --seed 1\n"
    assert process.returncode == 5


# ---- packaging ------------------------------------------------------------------------------------------------------


def test_readme_has_the_commands_that_ci_runs():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert [b for b in blocks if re.search(r"^pytest\b", b, flags=re.MULTILINE)] == [
        'pip install -e ".[test]"\npytest\n'
    ]


def test_no_recipe_is_longer_than_a_screen_or_two():
    paths = sorted((ROOT / "recipes").glob("*.py"))
    assert paths
    for path in paths:
        assert len(path.read_text().splitlines()) <= 80, path.name
        names = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert {"main", "generate", "evaluate"} <= names


@pytest.mark.slow
def test_wheel_carries_recipes_and_configs(tmp_path):
    """Built, installed elsewhere and used without the clone. Needs the network, for the build's own environment."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("hfgen-*.whl")
    target = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(target)}
    code = (
        "import hfgen, sys; from hfgen import launcher; from hfgen.cli import run\n"
        f"assert hfgen.__file__.startswith({str(target)!r}), hfgen.__file__\n"
        "print(launcher.find_accelerate_config('fsdp2'), launcher.find_accelerate_config('fsdp2').is_file())\n"
        "sys.exit(run(['recipes']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{target}/hfgen/_accelerate_configs/fsdp2.yaml True" in done.stdout
    assert "digits" in done.stdout
    assert sorted(p.name for p in target.iterdir() if not p.name.endswith(".dist-info")) == ["bin", "hfgen"]
