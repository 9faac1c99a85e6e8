"""How good captions are, and pictures of it: scores against references, rows and figures for the gallery."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..figures import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .captioning import CaptionBatches

# Of a figure: characters a line and lines of a caption; widths of a cell and its picture and the height of a line in
# inches; colours.
CAPTION_WIDTH, CAPTION_LINES = 30, 4
CELL, PICTURE, LINE = 2.3, 1.9, 0.16
GREEN, RED, GREY = "#1a7f37", "#c62828", "#57606a"


def matches(outputs: list[str], references: list[list[str]]) -> np.ndarray:
    """bool (N,): which captions are one of their picture's references, but for white space."""
    plain = [{" ".join(reference.split()) for reference in several} for several in references]
    return np.array([" ".join(out.split()) in several for out, several in zip(outputs, plain, strict=True)], bool)


def caption_scores(outputs: list[str], references: list[list[str]], signatures: bool = False) -> dict[str, Any]:
    """Exact match, chrF (Popović 2015) and BLEU (Papineni et al. 2002), the latter by sacrebleu (Post 2018).

    Args:
        outputs: a caption of each picture.
        references: one or more of each picture; as many as there are count for chrF and BLEU.
        signatures: with sacrebleu's, which say how they were computed.

    Returns:
        dict: `exact_match`, the share of captions that equal one of their references; `chrf` and `bleu`, 0 to 100.
    """
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    streams = [[several[i] if i < len(several) else None for several in references] for i in range(most)]
    scores: dict[str, Any] = {"exact_match": float(matches(outputs, references).mean())}
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU())):
        scores[name] = metric.corpus_score(outputs, streams).score
        if signatures:
            scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def spread(count: int, chosen: int) -> np.ndarray:
    """Row numbers, evenly spread over all of them."""
    return np.linspace(0, count - 1, min(count, chosen)).round().astype(int)


def some_rows(batches: CaptionBatches, outputs: list[str], count: int = 8) -> list[dict[str, str]]:
    """`image` (its row), `output` and the references of a few pictures."""
    references = batches.captioned.references
    return [
        {"image": f"row {row}", "output": outputs[row], "references": "\n".join(references[row])}
        for row in spread(len(outputs), count).tolist()
    ]


def caption_figure(
    images: np.ndarray, outputs: list[str], references: list[list[str]] | None = None, columns: int = 4
) -> Figure:
    """Pictures with what the model says of them: in green what equals a reference, else in red, above a reference.

    Args:
        images: uint8 (N, C, H, W).
        outputs, references: of each; without references captions are grey.
        columns: pictures a row.
    """
    from matplotlib.figure import Figure

    right = [True] * len(images) if references is None else matches(outputs, references)
    texts = []  # of each picture: (lines, colour) one below the other
    for index, good in enumerate(right):
        colour = GREY if references is None else GREEN if good else RED
        below = [] if good else [(references[index][0], GREY)]
        texts.append([(_wrapped(caption), colour) for caption, colour in [(outputs[index], colour), *below]])
    columns = min(columns, len(images))
    cells = [range(begin, min(begin + columns, len(images))) for begin in range(0, len(images), columns)]
    tall = PICTURE * images.shape[2] / images.shape[3]
    # In inches, from the top: a row is as high as its picture and the longest of its texts.
    heights = [tall + LINE * max(sum(len(lines) for lines, _ in texts[i]) for i in row) + 0.25 for row in cells]
    size = (CELL * columns, sum(heights) + 0.1)
    figure = Figure(figsize=size, dpi=120)
    top = size[1] - 0.1
    for row, height in zip(cells, heights, strict=True):
        for column, index in enumerate(row):
            left = CELL * column + (CELL - PICTURE) / 2
            axes = figure.add_axes((left / size[0], (top - tall) / size[1], PICTURE / size[0], tall / size[1]))
            axes.axis("off")
            picture = images[index].transpose(1, 2, 0)
            axes.imshow(picture.squeeze(2) if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255)
            middle, below = CELL * (column + 0.5), top - tall - 0.05
            for lines, colour in texts[index]:
                style = {"ha": "center", "va": "top", "fontsize": 9, "linespacing": 1.2, "parse_math": False}
                figure.text(middle / size[0], below / size[1], "\n".join(lines), color=colour, **style)
                below -= LINE * len(lines) + 0.03
        top -= height
    return figure


def _wrapped(caption: str) -> list[str]:
    return textwrap.wrap(caption, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …") or ["(nothing)"]


def save_figures(run_dir: str | Path, batches: CaptionBatches, outputs: list[str]) -> list[Path]:
    """Draws held-out pictures with their captions, and some whose captions equal no reference, into figures/.

    Args:
        run_dir: the run folder.
        batches: the held-out split.
        outputs: a caption of each of its pictures.

    Returns:
        list[Path]: the PNG files.
    """
    images, references = batches.captioned.images.images, batches.captioned.references
    right = matches(outputs, references)
    wrong = np.flatnonzero(~right)

    def figure(rows: np.ndarray) -> Figure:
        return caption_figure(
            np.asarray(images[rows]), [outputs[row] for row in rows], [references[row] for row in rows]
        )

    paths = [
        save_figure(
            Path(run_dir),
            "captions",
            figure(spread(len(outputs), 12)),
            "Captioned",
            f"Held-out pictures and the captions written for them; {right.mean():.1%} of {len(right)} captions equal "
            "one of their picture's references (green).",
        )
    ]
    if len(wrong):
        paths.append(
            save_figure(
                Path(run_dir),
                "mistakes",
                figure(wrong[spread(len(wrong), 8)]),
                "Captions that equal no reference",
                f"Some of {len(wrong)}: in red what was written, in grey the first of the references.",
            )
        )
    return paths
