"""Publishing a generator with the code that runs it, and loading it without executing any of that."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType

import torch

from ..errors import BadInput
from . import portable
from .build import CLASSES, load_network


class GANPipeline(portable.GANPipeline):
    __doc__ = portable.GANPipeline.__doc__

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> GANPipeline:
        """Loads a published folder or Hub repository with the classes that are installed; its own code is not run.

        Args:
            pretrained_model_name_or_path: the folder or Hub id.
            kwargs: `torch_dtype`, and for the Hub `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`.

        Raises:
            BadInput: there is no generator, or one of a class that is not installed.
        """
        name = str(pretrained_model_name_or_path)
        dtype = kwargs.pop("torch_dtype", None)
        folder = name if Path(name).is_dir() else cls.download(name, **kwargs)
        config = cls.load_config(folder)
        network = load_network(folder, "generator", "the pipeline").eval()
        network = network if dtype is None else network.to(dtype=dtype)
        pipeline = cls(network, label_names=config.get("label_names"))
        pipeline.register_to_config(_name_or_path=name)
        return pipeline

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetches a Hub repository's configs and safetensors, and no code."""
        from huggingface_hub import snapshot_download

        known = ("cache_dir", "force_download", "local_files_only", "revision", "token")
        options = {name: kwargs[name] for name in known if kwargs.get(name)}
        patterns = [cls.config_name, "generator/*.json", "generator/*.safetensors"]
        return snapshot_download(pretrained_model_name, allow_patterns=patterns, **options)

    def labels(self, class_labels, batch_size: int) -> torch.Tensor | None:
        try:
            return super().labels(class_labels, batch_size)
        except ValueError as error:
            raise BadInput(str(error)) from None

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Writes the generator, and where it is one of hfgen's the code that it and the pipeline need, so that
        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads it where hfgen is not installed."""
        super().save_pretrained(save_directory, **kwargs)
        if type(self.generator).__name__ not in CLASSES:
            return
        folder = Path(save_directory)
        module = inspect.getmodule(type(self.generator))
        short = module.__name__.rpartition(".")[2]
        (folder / "generator" / f"{short}.py").write_text(standalone_source(module), encoding="utf-8")
        (folder / "pipeline.py").write_text(standalone_source(portable), encoding="utf-8")
        index = folder / self.config_name
        config = json.loads(index.read_text(encoding="utf-8"))
        config["_class_name"] = ["pipeline", "GANPipeline"]
        config["generator"] = [short, type(self.generator).__name__]
        index.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def standalone_source(module: ModuleType) -> str:
    """A module's source with its siblings' in place of the imports from them: one file that stands alone."""
    parts, seen = [], set()

    def add(current: ModuleType) -> None:
        source = inspect.getsource(current)
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                sibling = f"{current.__name__.rpartition('.')[0]}.{node.module}"
                if sibling not in seen:
                    seen.add(sibling)
                    add(importlib.import_module(sibling))
            if isinstance(node, ast.ImportFrom) and (node.level == 1 or node.module == "__future__"):
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
        parts.append("\n".join(lines))

    add(module)
    return "from __future__ import annotations\n\n" + "\n\n\n".join(parts).rstrip() + "\n"
