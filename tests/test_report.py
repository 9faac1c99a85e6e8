"""Pictures, run folders and the gallery page."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hfgen.errors import BadInput
from hfgen.figures import image_grid, interleave_rows, latent_scatter, save_figure, write_images
from hfgen.report import curve_svg, loss_curves, write_gallery
from hfgen.runs import Run, finite, read_run, write_json
from hfgen.tables import format_number, format_seconds, format_table

ALARM = {"alarm": "posterior_collapse", "message": "0 of 16 units <active>", "step": 20, "active_units": 0}


def make_run(folder, recipe="vae", alarms=()):
    folder.mkdir(parents=True)
    history = [{"loss": 50.0 - s, "kl": 2.0, "learning_rate": 1e-3, "epoch": s / 10, "step": s} for s in (10, 20, 30)]
    history += [{"eval_loss": 49.5 - s, "eval_runtime": 0.1, "epoch": s / 10, "step": s} for s in (10, 30)]
    facts = {
        "recipe": recipe,
        "config": "digits",
        "command": f"hfgen train {recipe} --config digits --run_name 'a<b'",
        "seconds": 31.24,
        "versions": {"torch": "2.15.0"},
        "dataset": {"name": "digits"},
        "metrics": {"eval_loss": 19.5, "eval_elbo": -19.5},
    }
    write_json(folder / "run.json", facts)
    write_json(folder / "trainer_state.json", {"log_history": [*history, *alarms]})
    picture = Image.fromarray(np.full((4, 4), 7, np.uint8))
    save_figure(folder, "samples", picture, "Samples & more", "z ~ N(0, I)")
    return folder


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a test asks for."""

    VOID = ("meta", "img", "br", "wbr", "path", "use")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_grid_places_each_image():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 3), np.uint8)
    grid = np.asarray(image_grid(images, columns=2, scale=2, padding=1))
    assert grid.shape == (3 * (4 + 1) + 1, 2 * (6 + 1) + 1)
    assert (grid[1:5, 1:7] == 1).all()
    assert (grid[1:5, 8:14] == 2).all()
    assert (grid[6:10, 1:7] == 3).all()
    assert (grid[11:15, 1:7] == 5).all()
    assert (grid[11:15, 8:14] == 255).all(), "the last row's empty place is background"
    assert (grid[[0, 5, 10, 15]] == 255).all()


def test_grid_takes_channels_first_and_last():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    first, last = image_grid(images, scale=1), image_grid(images.transpose(0, 2, 3, 1), scale=1)
    assert first.mode == "RGB"
    assert np.array_equal(np.asarray(first), np.asarray(last))
    assert np.array_equal(np.asarray(first)[2:7, 2:8], images[0].transpose(1, 2, 0))


def test_small_images_are_enlarged():
    assert image_grid(np.zeros((1, 1, 8, 8), np.uint8), padding=0).size == (48, 48)
    assert image_grid(np.zeros((1, 1, 64, 64), np.uint8), padding=0).size == (64, 64)


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 8, 8), (4, 2, 8, 8)])
def test_grid_refuses_other_arrays(shape):
    with pytest.raises(ValueError):
        image_grid(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError):
        image_grid(np.zeros((1, 1, 8, 8), np.float32))


def test_rows_alternate():
    originals, copies = np.arange(6), np.arange(6) + 10
    assert interleave_rows(originals, copies, columns=3).tolist() == [0, 1, 2, 10, 11, 12, 3, 4, 5, 13, 14, 15]
    with pytest.raises(ValueError):
        interleave_rows(originals, copies, columns=4)


def test_scatter_colours_by_label():
    points = np.random.default_rng(0).normal(size=(30, 2))
    axes = latent_scatter(points, np.arange(30) % 3, ["a", "b", "c"]).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b", "c"]
    assert [len(c.get_offsets()) for c in axes.collections] == [10, 10, 10]
    assert np.allclose(axes.collections[1].get_offsets(), points[1::3])
    assert len(latent_scatter(points, np.arange(30)).axes) == 2, "many labels get a colour bar"
    with pytest.raises(ValueError):
        latent_scatter(points[:, :1])
    with pytest.raises(ValueError):
        latent_scatter(points, np.arange(5))


def test_saved_figures_keep_their_order(tmp_path):
    picture = image_grid(np.zeros((1, 1, 8, 8), np.uint8))
    save_figure(tmp_path, "b", picture, "B")
    save_figure(tmp_path, "a.png", latent_scatter(np.zeros((2, 2))), "A", "second")
    path = save_figure(tmp_path, "b", image_grid(np.zeros((1, 1, 9, 9), np.uint8)), "B again")
    entries = json.loads((tmp_path / "figures" / "figures.json").read_text())
    assert entries == [
        {"file": "b.png", "title": "B again", "caption": ""},
        {"file": "a.png", "title": "A", "caption": "second"},
    ]
    assert Image.open(path).size == (58, 58)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["a.png", "b.png", "figures.json"]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_generated_images_are_written_one_by_one_and_as_a_grid(tmp_path, mode):
    images = [Image.new(mode, (8, 6), 10 * i if mode == "L" else (10 * i, 0, 0)) for i in range(5)]
    paths = write_images(images, tmp_path / "a" / "b")
    assert [p.name for p in paths] == ["grid.png", "00000.png", "00001.png", "00002.png", "00003.png", "00004.png"]
    assert [np.asarray(Image.open(p)).tolist() for p in paths[1:]] == [np.asarray(i).tolist() for i in images]
    assert Image.open(paths[0]).mode == mode
    assert Image.open(paths[0]).size == (3 * 50 + 2, 2 * 38 + 2)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="name another --output"):
        write_images(images, tmp_path / "file")


# ---- run folders ----------------------------------------------------------------------------------------------------


def test_run_is_read(tmp_path):
    folder = make_run(tmp_path / "vae", alarms=[ALARM])
    write_json(folder / "evaluation.json", {"test_elbo": -20.0, "eval_elbo": -18.0})
    run = read_run(folder)
    assert list(run.metrics.items()) == [("test_elbo", -20.0), ("eval_elbo", -18.0), ("eval_loss", 19.5)]
    assert run.alarms == [ALARM]
    assert run.config == "digits"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda d: None, "there is no such folder"),
        (lambda d: d.mkdir(), "is not a run folder"),
        (lambda d: (d / "checkpoint-5").mkdir(parents=True), "--resume_from_checkpoint true"),
        (lambda d: (d.mkdir(), (d / "run.json").write_text("{")), "damaged"),
        (lambda d: (d.mkdir(), (d / "run.json").write_text("{}")), "names no recipe"),
    ],
)
def test_other_folders_are_refused(tmp_path, make, says):
    make(tmp_path / "x")
    with pytest.raises(BadInput, match=says):
        read_run(tmp_path / "x")


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5]}
    assert finite((1, float("-inf"))) == [1, None]
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_failed_write_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


# ---- the page -------------------------------------------------------------------------------------------------------


def test_curves_of_a_log():
    history = [
        {"kl": 1.0, "loss": 3.0, "epoch": 0.1, "step": 1},
        {"eval_loss": 2.5, "eval_runtime": 1.0, "step": 1},
        {"alarm": "collapse", "step": 1, "kl": 99.0},
        {"kl": 2.0, "loss": float("nan"), "step": 2},
        {"eval_loss": 2.0, "eval_runtime": 1.0, "step": 2},
        {"kl": 1.5, "loss": 2.0, "step": 3},
        {"train_loss": 1.0, "train_runtime": 5.0, "test_elbo": -3.0, "step": 3},
    ]
    curves = loss_curves(history)
    assert list(curves) == ["loss", "kl"]
    assert curves["loss"] == {"train": [(1, 3.0), (3, 2.0)], "eval": [(1, 2.5), (2, 2.0)]}
    assert curves["kl"] == {"train": [(1, 1.0), (2, 2.0), (3, 1.5)]}


def test_curve_takes_the_page_colours():
    svg = curve_svg({"train": [(1, 3.0), (2, 2.0)], "eval": [(1, 3.1), (2, 2.2)]}, "salt")
    assert svg.startswith("<svg viewBox=")
    assert "var(--train)" in svg
    assert "var(--eval)" in svg
    assert "currentColor" in svg
    assert "#0102" not in svg
    assert "<metadata" not in svg
    assert svg == curve_svg({"train": [(1, 3.0), (2, 2.0)], "eval": [(1, 3.1), (2, 2.2)]}, "salt")


def test_gallery(tmp_path):
    good = make_run(tmp_path / "vae")
    bad = make_run(tmp_path / "gan", "gan", [ALARM])
    failed = Run(tmp_path / "ppo", "ppo", "stdlib", "hfgen train ppo", 2.0, error="no <data>")
    page = write_gallery(tmp_path, [good, bad, failed])
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)

    assert len(parsed.ids) == len(set(parsed.ids)) > 3
    links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    assert links == ["#run-0", "#run-1", "#run-2"]
    assert {link[1:] for link in links} <= set(parsed.ids)
    assert not re.search(r"https?:|//\w|<script|@import|url\((?!#)", text), "nothing comes from outside"
    sources = [attributes["src"] for tag, attributes in parsed.tags if tag == "img"]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert [tag for tag, _ in parsed.tags].count("svg") == 2 * 3  # loss, kl, learning_rate of two runs

    assert "hfgen train vae --config digits --run_name 'a<b'" in parsed.text, "the command, unchanged by escaping"
    assert "0 of 16 units <active>" in parsed.text
    assert "Samples & more" in parsed.text
    assert parsed.text.count("no alarm") == 2, "in the table and in the run's own part"
    assert "failed: no <data>" in parsed.text
    assert "31 s" in parsed.text

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"] == pytest.approx(64.5)
    assert [run["run_dir"] for run in summary["runs"]] == ["vae", "gan", "ppo"]
    assert summary["runs"][0] == {
        "recipe": "vae",
        "config": "digits",
        "command": "hfgen train vae --config digits --run_name 'a<b'",
        "seconds": 31.24,
        "metrics": {"eval_loss": 19.5, "eval_elbo": -19.5},
        "alarms": [],
        "run_dir": "vae",
    }
    assert summary["runs"][1]["alarms"] == [ALARM]
    assert summary["runs"][2]["error"] == "no <data>"


def test_gallery_leaves_out_a_missing_picture(tmp_path):
    folder = make_run(tmp_path / "vae")
    (folder / "figures" / "samples.png").unlink()
    assert "<img" not in write_gallery(tmp_path, [folder]).read_text()


def test_numbers_as_people_read_them():
    assert [format_number(v) for v in (3, 8.0, 0.123456, -20.1234, 12345.67, 1e-5, float("nan"), None, "x", True)] == [
        "3", "8", "0.1235", "-20.12", "12345.7", "1e-05", "nan", "none", "x", "True",
    ]  # fmt: skip
    assert [format_seconds(s) for s in (0.44, 31.2, 59.7, 250, 7500)] == [
        "0.4 s", "31 s", "1 min 0 s", "4 min 10 s", "2 h 5 min",
    ]  # fmt: skip
    assert format_table([("a", "bcd"), ("efg", "h")], indent=" ") == " a    bcd\n efg  h"
