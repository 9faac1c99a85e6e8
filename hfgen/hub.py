"""Model cards, and publishing a run on the Hub: safetensors, configs, card and pictures; no pickles, and no code but
that of a pipeline, which diffusers runs where a user trusts it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .errors import BadInput
from .runs import Run, check_run_dir, finite, read_run
from .tables import format_number, format_seconds

# What may be published. A pattern's `*` crosses folders.
ALLOW_PATTERNS = ["*.safetensors", "*.json", "*.md", "*.png", "*.txt", "*.jinja", "*.model"]
ALLOW_PATTERNS += ["pipeline.py", "generator/*.py"]
# What of that stays here: training state, caches, hidden and half-written files, what can be generated again.
IGNORE_PATTERNS = [
    "*checkpoint-*/*",
    ".*",
    "*/.*",
    "*.tmp*",
    "*__pycache__/*",
    "generated/*",
    "logs/*",
    "wandb/*",
    "mlruns/*",
    "trackio/*",
]

_TEMPLATE = """---
{metadata}
---

# {title}

Trained with hfgen, recipe `{recipe}`{on}{took}.

{usage}
## Training

```bash
{command}
```

{metrics}{alarms}{figures}"""


def _hub_dataset(run: Run) -> str | None:
    """The dataset's Hub id, if it is one: `owner/name` and no folder of this machine."""
    name = str(run.dataset.get("name", ""))
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)
    return name if is_id and not Path(name).exists() else None


def _plain(text: Any) -> str:
    """Text that Markdown takes as text, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(str(text).split()))


def render_model_card(
    run: Run,
    *,
    pipeline_class: str | None = None,
    usage: str | None = None,
    pipeline_tag: str | None = "unconditional-image-generation",
    license: str | None = None,
    model_id: str | None = None,
) -> str:
    """The card's Markdown, with YAML metadata; for the arguments see [`write_model_card`]."""
    from huggingface_hub import EvalResult, ModelCardData

    name = run.directory.absolute().name
    dataset = _hub_dataset(run)
    dataset_name = str(run.dataset.get("name", "")) or "unknown"
    numbers = {k: v for k, v in finite(run.metrics).items() if isinstance(v, int | float)}
    results = [
        EvalResult(
            task_type=pipeline_tag or "other",
            dataset_type=dataset or "other",
            dataset_name=dataset_name,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in numbers.items()
    ]
    data = ModelCardData(
        library_name="hfgen",
        license=license,
        pipeline_tag=pipeline_tag,
        tags=["hfgen", run.recipe],
        datasets=[dataset] if dataset else None,
        model_name=model_id or name,
        eval_results=results or None,
    )
    if pipeline_class:
        usage = f"from hfgen import {pipeline_class}\n\npipeline = {pipeline_class}.from_pretrained({{name!r}})"
    loading = f"## Use\n\n```python\n{usage.format(name=model_id or name)}\n```\n" if usage else ""
    rows = "".join(f"| {_plain(k)} | {_plain(format_number(v))} |\n" for k, v in run.metrics.items())
    alarms = "".join(
        f"- {_plain(a['alarm'])} at step {a.get('step')}: {_plain(a.get('message'))}\n" for a in run.alarms
    )
    figures = "".join(
        f"### {_plain(f['title'])}\n\n![{_plain(f['title'])}](figures/{f['file']})\n\n{_plain(f['caption'])}\n\n"
        for f in run.figures
    )
    return (
        _TEMPLATE.format(
            metadata=data.to_yaml().strip(),
            title=_plain((model_id or name).split("/")[-1]),
            recipe=run.recipe,
            on=f", on {_plain(dataset_name)}" if run.dataset.get("name") else "",
            took=f", in {format_seconds(run.seconds)}" if run.seconds else "",
            usage=loading,
            command=run.command,
            metrics=f"## Scores\n\n| metric | value |\n| --- | --- |\n{rows}\n" if rows else "",
            alarms=f"## Alarms\n\n{alarms}\n" if alarms else "",
            figures=figures,
        ).rstrip()
        + "\n"
    )


def write_model_card(
    run_dir: Path,
    *,
    pipeline_class: str | None = None,
    usage: str | None = None,
    pipeline_tag: str | None = "unconditional-image-generation",
    license: str | None = None,
    model_id: str | None = None,
) -> Path:
    """Writes README.md of a run folder from its run.json, trainer_state.json and figures.

    Args:
        run_dir: the run folder.
        pipeline_class: the exported class whose `from_pretrained` loads the folder; or
        usage: the code that loads it, with `{name!r}` for the folder or repository. Without both none is shown.
        pipeline_tag: the Hub's name of the task, or `None`.
        license: the Hub's identifier of the model's licence; it depends on the data, so none is assumed.
        model_id: `owner/name` on the Hub, where the card is for there.

    Returns:
        Path: README.md.

    Raises:
        BadInput: the folder is no finished run.
    """
    run = read_run(run_dir)
    text = render_model_card(
        run,
        pipeline_class=pipeline_class,
        usage=usage,
        pipeline_tag=pipeline_tag,
        license=license,
        model_id=model_id,
    )
    path = run.directory / "README.md"
    aside = path.with_name(".README.md.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def _name_in_card(card: Path, repo_id: str) -> None:
    """Makes the card's line that loads the model name the repository."""
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        named = re.sub(r"\.from_pretrained\('[^']*'", lambda _: f".from_pretrained({repo_id!r}", text)
        if named != text:
            card.write_text(named, encoding="utf-8")


def push_to_hub(run_dir: Path, repo_id: str | None = None, private: bool | None = None, api=None) -> str:
    """Creates a model repository and uploads a run folder without checkpoints, pickles and caches.

    The line of the card that loads the model is made to name the repository.

    Args:
        run_dir: the run folder.
        repo_id: `owner/name` or `name`; by default the folder's name.
        private: whether a new repository is private; `None` leaves it to the account's setting.
        api: a `huggingface_hub.HfApi`; by default one with the saved token.

    Returns:
        str: the repository's address.

    Raises:
        BadInput: no token, offline, refused by the Hub, or no finished run. Nothing is lost.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    run_dir = check_run_dir(run_dir)
    api = HfApi() if api is None else api
    repo_id = repo_id or run_dir.absolute().name
    again = f"{run_dir} is complete; publish it later with `hfgen push {run_dir} {repo_id}`"
    # Any failure of the connection is the parent of the Hub's own HTTP error.
    connection_error = HfHubHTTPError.__bases__[0]
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        _name_in_card(run_dir / "README.md", repo.repo_id)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=run_dir,
            repo_type="model",
            commit_message="Upload with hfgen",
            allow_patterns=ALLOW_PATTERNS,
            ignore_patterns=IGNORE_PATTERNS,
        )
    except HFValidationError as error:
        raise BadInput(f"{repo_id} is no name for a repository ({error}); {again}") from error
    except LocalTokenNotFoundError as error:
        raise BadInput(f"not logged in to the Hub: run `hf auth login` or set HF_TOKEN; {again}") from error
    except OfflineModeIsEnabled as error:
        raise BadInput(f"HF_HUB_OFFLINE forbids publishing: unset it; {again}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "run `hf auth login` with a token that may write" if status in (401, 403) else "try again"
        raise BadInput(f"the Hub answered {status}: {remedy}; {again}") from error
    except (connection_error, ConnectionError, TimeoutError) as error:
        raise BadInput(f"the Hub can't be reached ({type(error).__name__}): {again}") from error
    return str(repo)
