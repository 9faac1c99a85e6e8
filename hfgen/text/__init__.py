"""Text models on transformers' and TRL's trainers: data, tokenizers, exact resume, transfer learning, evaluation."""

from ..data.text import TextDataArguments, TextSplits, load_text
from ..lifecycle import begin_run, saved_arguments
from .arguments import ModelArguments, Seq2SeqArguments, TextDefaults, TextTrainingArguments, TransferArguments
from .fit import describe, finish_text_run, load_folder, load_published, train_text, trainer_options
from .generation import continue_texts, write_samples
from .model import build_model
from .tokenizer import make_tokenizer
from .transfer import lora_config, with_adapters

# What every text recipe takes, besides its own options and its trainer's.
ARGUMENTS = (ModelArguments, TransferArguments, TextDataArguments)

__all__ = [
    "ARGUMENTS",
    "ModelArguments",
    "Seq2SeqArguments",
    "TextDataArguments",
    "TextDefaults",
    "TextSplits",
    "TextTrainingArguments",
    "TransferArguments",
    "begin_run",
    "build_model",
    "continue_texts",
    "describe",
    "finish_text_run",
    "load_folder",
    "load_published",
    "load_text",
    "lora_config",
    "make_tokenizer",
    "saved_arguments",
    "train_text",
    "trainer_options",
    "with_adapters",
    "write_samples",
]
