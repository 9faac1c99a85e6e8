"""Tokenizers: a given one, or a new one trained on the training split, once, and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..data.built_once import built_once, cache_root
from ..errors import BadInput, speaks
from .arguments import ModelArguments

# ChatML, with a generation prompt and, for TRL's assistant-only loss, the assistant's words marked.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('the chat template has the roles system, user and assistant, not ' + message.role) }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Specials:
    """A kind of model's special tokens, and the pattern in which a tokenizer puts them around a text."""

    roles: dict[str, str]
    pattern: str | None = None
    extra: tuple[str, ...] = ()
    chat_template: str | None = None
    names: dict[str, str] = field(default_factory=dict)


SPECIALS: dict[str, Specials] = {
    "causal": Specials({"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "pad_token": "<|pad|>"}),
    "chat": Specials(
        {"eos_token": "<|im_end|>", "pad_token": "<|pad|>"}, extra=("<|im_start|>",), chat_template=CHAT_TEMPLATE
    ),
    "masked": Specials(
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"},
        pattern="[CLS] $A [SEP]",
    ),
    "seq2seq": Specials({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, pattern="$A </s>"),
}


def make_tokenizer(
    args: ModelArguments,
    kind: str,
    train: Dataset | None,
    columns: tuple[str, ...] = ("text",),
    cache_dir: str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer that `args` names, the pretrained model's, or a new one.

    Args:
        args: see [`ModelArguments`].
        kind: a key of `SPECIALS`.
        train: the training split, whose `columns` of text a new tokenizer is trained on; None for a stream.
        cache_dir: folder for prepared data.

    Raises:
        BadInput: there is no such tokenizer, or it lacks what this kind of model needs.
    """
    name = args.tokenizer_name or args.model_name_or_path
    if name is None:
        if train is None:
            raise BadInput(
                "a stream needs a given tokenizer: set --tokenizer_name, such as a run folder of this recipe"
            )
        key = hashlib.sha256(
            repr((1, args.tokenizer_type, args.vocab_size, sorted(asdict(SPECIALS[kind]).items()), columns)).encode()
            + train._fingerprint.encode()
        ).hexdigest()[:32]

        def build(folder: Path) -> None:
            tokenizer = train_tokenizer(texts(train, columns), args.tokenizer_type, args.vocab_size, kind)
            tokenizer.save_pretrained(folder)

        name = str(built_once(cache_root(cache_dir) / "tokenizers", key, build))
    tokenizer = load_tokenizer(name, args.model_revision if name == args.model_name_or_path else None)
    if kind == "masked" and tokenizer.mask_token is None:
        raise BadInput(f"tokenizer {name} has no mask token: masked language models need one")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BadInput(f"tokenizer {name} has neither a padding nor an end-of-sequence token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the Hub.

    Raises:
        BadInput: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise BadInput(f"tokenizer {name} can't be loaded: {str(error).splitlines()[0]}") from error


def texts(dataset: Dataset, columns: tuple[str, ...]) -> Iterator[str]:
    """Every text of some columns; a list of messages is the texts of its contents."""
    for batch in dataset.select_columns(list(columns)).iter(1000):
        for column in columns:
            for value in batch[column]:
                if isinstance(value, str):
                    yield value
                else:
                    yield from (message["content"] for message in value)


def train_tokenizer(texts: Iterator[str], tokenizer_type: str, vocab_size: int, kind: str) -> PreTrainedTokenizerFast:
    """A new tokenizer.

    Args:
        texts: what it is trained on.
        tokenizer_type: `bpe`, byte-level (any text can be encoded; Radford et al. 2019), or `char`, a token for each
            character of `texts`, with `<unk>` for others.
        vocab_size: of BPE, special tokens included, at most.
        kind: a key of `SPECIALS`.
    """
    specials = SPECIALS[kind]
    names = [*dict.fromkeys([*specials.roles.values(), *specials.extra])]
    if tokenizer_type == "char":
        unknown = "<unk>"
        characters = sorted({character for text in texts for character in text})
        vocabulary = {token: i for i, token in enumerate([*names, unknown, *characters])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens([*names, unknown])
        roles = specials.roles | {"unk_token": unknown}
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC() if kind == "masked" else None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocab_size, 256 + len(names)),
            special_tokens=names,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=speaks() and sys.stderr.isatty(),  # elsewhere its bars are blank lines
        )
        tokenizer.train_from_iterator(texts, trainer)
        roles = dict(specials.roles)
    if specials.pattern:
        ids = [(name, tokenizer.token_to_id(name)) for name in names if name in specials.pattern]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=specials.pattern, pair=_pair(specials.pattern), special_tokens=ids
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)
    if specials.extra:
        wrapped.add_special_tokens({"extra_special_tokens": list(specials.extra)})
    wrapped.chat_template = specials.chat_template
    return wrapped


def _pair(pattern: str) -> str:
    """Two texts: the second follows with what stands after the first."""
    after = pattern.partition("$A")[2]
    return f"{pattern} $B:1{after.replace(']', ']:1') if '[' in after else after + ':1'}"


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a tokenizer does to a text, as a short string."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((type(tokenizer).__name__ + content).encode()).hexdigest()[:16]
