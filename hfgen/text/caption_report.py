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

# Of a figure: characters a line and lines of a caption, and its colours.
CAPTION_WIDTH, CAPTION_LINES = 28, 4
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
    colours = [GREY if references is None else GREEN if good else RED for good in right]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[2:]
    figure = Figure(figsize=(2.2 * columns, (1.8 * height / width + 0.8) * rows), dpi=120, layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for index, (axes, image) in enumerate(zip(figure.axes, images, strict=False)):
        axes.imshow(image.transpose(1, 2, 0) if len(image) == 3 else image[0], cmap="gray", vmin=0, vmax=255)
        captions = [(outputs[index], colours[index])]
        if not right[index]:
            captions.append((references[index][0], GREY))
        below = 4.0
        for caption, colour in captions:
            lines = textwrap.wrap(caption, CAPTION_WIDTH)[:CAPTION_LINES] or ["(nothing)"]
            axes.annotate(
                "\n".join(lines),
                xy=(0.5, 0),
                xycoords="axes fraction",
                xytext=(0, -below),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=9,
                linespacing=1.15,
                color=colour,
            )
            below += 12.0 * len(lines) + 2
    return figure


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
