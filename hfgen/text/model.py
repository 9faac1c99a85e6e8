"""Builds a text model: pretrained, or an architecture of transformers from scratch, fitted to its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config import nearest
from ..errors import BadInput
from .arguments import ModelArguments, TransferArguments

# Where no architecture is named: transformers' own default of a Llama has 7 billion weights.
SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}


def build_config(
    args: ModelArguments, tokenizer: PreTrainedTokenizerBase, default: str, **settings: Any
) -> PreTrainedConfig:
    """The config of a model from scratch.

    Args:
        args: `model_type` and `config_overrides`.
        tokenizer: gives the vocabulary's size and the special tokens.
        default: the architecture where `args` names none.
        settings: further options, which `config_overrides` overrides; those that the architecture has not are left
            out. An architecture that `args` does not name is `SMALL`.

    Raises:
        BadInput: unknown architecture or option, or sizes that do not fit each other.
    """
    model_type = args.model_type or default
    try:
        plain = AutoConfig.for_model(model_type)
    except ValueError:
        hint = nearest(model_type, _architectures())
        raise BadInput(f"--model_type {model_type} is no architecture of transformers{hint}") from None
    known = {*plain.to_dict(), *getattr(plain, "attribute_map", {}), "num_labels"}
    for name in args.config_overrides:
        if name not in known:
            raise BadInput(f"--config_overrides: {model_type} has no option {name}{nearest(name, sorted(known))}")
    ids = {role: getattr(tokenizer, role) for role in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if args.model_type is None:
        settings = SMALL | settings
    settings = {name: value for name, value in settings.items() if name in known}
    try:
        return AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **(ids | settings | args.config_overrides))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise BadInput(f"--config_overrides {args.config_overrides}: {' '.join(str(error).split())}") from error


def _architectures() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return list(CONFIG_MAPPING_NAMES)


def build_model(
    args: ModelArguments,
    auto_class,
    tokenizer: PreTrainedTokenizerBase,
    default: str,
    transfer: TransferArguments | None = None,
    **settings: Any,
) -> PreTrainedModel:
    """A model of an `Auto*` class, from a checkpoint or from scratch, whose vocabulary is the tokenizer's.

    Args:
        args: see [`ModelArguments`].
        auto_class: such as `AutoModelForCausalLM`.
        tokenizer: the tokenizer that it is used with.
        default: the architecture from scratch where `args` names none.
        transfer: `resize_embeddings` and `load_in_4bit`.
        settings: of the config, from scratch (see [`build_config`]).

    Raises:
        BadInput: no such checkpoint, an architecture without such a head, a vocabulary that does not fit.
    """
    transfer = transfer or TransferArguments()
    dtype = getattr(torch, args.dtype)
    if args.model_name_or_path is None:
        if transfer.load_in_4bit:
            raise BadInput("--load_in_4bit true is for a pretrained model: set --model_name_or_path")
        config = build_config(args, tokenizer, default, **settings)
        try:
            return auto_class.from_config(config, dtype=dtype, attn_implementation=args.attn_implementation)
        except (ValueError, ImportError) as error:
            raise BadInput(f"--model_type {config.model_type}: {' '.join(str(error).split())[:300]}") from error
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": args.attn_implementation}
    if transfer.load_in_4bit:
        options["quantization_config"] = quantization()
    name = args.model_name_or_path
    try:
        config = AutoConfig.from_pretrained(name, revision=args.model_revision)
        known = {*config.to_dict(), *getattr(config, "attribute_map", {}), "num_labels"}
        for option in args.config_overrides:
            if option not in known:
                raise BadInput(f"--config_overrides: {name} has no option {option}{nearest(option, sorted(known))}")
        if _new_head(config, settings):
            options["ignore_mismatched_sizes"] = True  # of the same config otherwise: only the head can differ
        model = auto_class.from_pretrained(
            name, revision=args.model_revision, **(options | settings_of(settings, known) | args.config_overrides)
        )
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BadInput(f"--model_name_or_path {name} can't be loaded: {' '.join(str(error).split())[:300]}") from error
    fit_vocabulary(model, tokenizer, transfer.resize_embeddings)
    return model


def _new_head(config, settings: dict[str, Any]) -> bool:
    """Whether a checkpoint is a classifier of other labels than the recipe's, whose head can't be kept."""
    heads = [name for name in config.architectures or [] if name.endswith("ForSequenceClassification")]
    return bool(heads) and settings.get("num_labels", config.num_labels) != config.num_labels


def usable_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that a model takes, in tokens; None where nothing limits it.

    RoBERTa's table of positions begins after its padding's index.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


def settings_of(settings: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """Of a recipe's settings those that a pretrained model takes: not its sizes, which are fixed."""
    return {name: value for name, value in settings.items() if name in known and name in ("num_labels",)}


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, resize: bool) -> None:
    """Gives the model a row for each token: with `resize` as many as there are, else none may be missing.

    New rows start at the mean of the old ones (Hewitt 2021, https://nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Raises:
        BadInput: the tokenizer has more tokens than the model has rows.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if resize and rows != len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    elif len(tokenizer) > rows:
        raise BadInput(
            f"the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {rows}: pass "
            "--resize_embeddings true, or the model's own tokenizer"
        )


def quantization():
    """4-bit weights (QLoRA, Dettmers et al. 2023).

    Raises:
        BadInput: there is no CUDA GPU, or bitsandbytes is not installed.
    """
    import importlib.util

    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise BadInput("--load_in_4bit true needs a CUDA GPU: leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("--load_in_4bit true needs bitsandbytes: `pip install bitsandbytes`")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
