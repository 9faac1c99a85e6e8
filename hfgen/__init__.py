"""Train any generative model the Hugging Face way.

Names are imported when first used, so that `import hfgen` and the command line answer at once.
"""

import importlib

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS = {
    "AugmentationArguments": "hfgen.data",
    "AutoencoderMLP": "hfgen.vae",
    "BadInput": "hfgen.errors",
    "GANArguments": "hfgen.gan",
    "GANPipeline": "hfgen.gan",
    "GANTrainer": "hfgen.gan",
    "GANTrainingArguments": "hfgen.gan",
    "ImageDataArguments": "hfgen.data",
    "ImageDataset": "hfgen.data",
    "ImageTransform": "hfgen.data",
    "Monitor": "hfgen.monitor",
    "StreamingImages": "hfgen.data",
    "Trainer": "hfgen.trainer",
    "TrainingArguments": "hfgen.arguments",
    "VAEArguments": "hfgen.vae",
    "VAEPipeline": "hfgen.vae",
    "VAETrainer": "hfgen.vae",
    "build_gan": "hfgen.gan",
    "build_vae": "hfgen.vae",
    "load_images": "hfgen.data",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hfgen' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
