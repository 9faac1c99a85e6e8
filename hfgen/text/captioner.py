"""A vision encoder with a language decoder: a whole pretrained model, pretrained parts, or both from scratch."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import PIL.Image
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..config import nearest
from ..data import ImageDataArguments
from ..data.captions import CaptionedImages
from ..errors import BadInput
from .arguments import ModelArguments, TransferArguments, read_mapping
from .model import fit_vocabulary, quantization, usable_positions
from .tokenizer import make_tokenizer

# Captions that end before others of their batch are filled up by `generate` itself, and then complained of.
_FILLED_UP = "We strongly recommend passing in an `attention_mask`"
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: _FILLED_UP not in record.getMessage())


@dataclass
class CaptionModelArguments(ModelArguments):
    """Which vision encoder and which language decoder are trained: a whole pretrained model, pretrained parts, or both
    from scratch.

    Raises:
        BadInput: options that contradict each other, or a mapping that can't be read.
    """

    model_type: str | None = field(default=None, init=False)
    config_overrides: str | None = field(default=None, init=False)
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Go on from this whole model (a VisionEncoderDecoderModel): a folder or a Hub id."},
    )
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "A pretrained vision encoder (ViT, DeiT, Swin, DINOv2, CLIP, …)."}
    )
    decoder_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pretrained language decoder (GPT-2, BERT, …); its cross-attention is new, and learnt."},
    )
    encoder_type: str | None = field(
        default=None, metadata={"help": "From scratch: a vision architecture of transformers; vit if not given."}
    )
    decoder_type: str | None = field(
        default=None,
        metadata={"help": "From scratch: a text architecture that has cross-attention; gpt2 if not given."},
    )
    encoder_overrides: str | None = field(
        default=None, metadata={"help": "Options of the encoder's config: '{patch_size: 4, hidden_size: 128}'."}
    )
    decoder_overrides: str | None = field(
        default=None, metadata={"help": "Options of the decoder's config: '{n_embd: 128, n_layer: 2, n_head: 4}'."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in ("encoder", "decoder"):
            setattr(self, f"{part}_overrides", read_mapping(f"{part}_overrides", getattr(self, f"{part}_overrides")))
            given = [name for name in (f"{part}_name_or_path", f"{part}_type") if getattr(self, name) is not None]
            if self.model_name_or_path is not None and given:
                raise BadInput(f"--model_name_or_path and --{given[0]} exclude each other: leave one out")
            if len(given) == 2:
                raise BadInput(f"--{given[0]} and --{given[1]} exclude each other: leave one out")

    @property
    def pretrained_vision(self) -> str | None:
        """Where the encoder's weights come from, alone or as part of a whole model; None from scratch."""
        return self.model_name_or_path or self.encoder_name_or_path


@dataclass
class CaptioningArguments:
    """Which captions are learnt, and how they are generated.

    Raises:
        BadInput: a value out of its range.
    """

    _argument_group_name = "captioning"

    caption_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of captions, a string or a list of strings (of several one is drawn each time in "
            "training, all are references in evaluation); `text`, `caption` or `captions` if not given."
        },
    )
    max_caption_length: int = field(
        default=64,
        metadata={"help": "Tokens of a caption at most, trained on or generated; longer ones are counted and cut."},
    )
    num_beams: int = field(default=1, metadata={"help": "Beams of the search that generates; 1 is greedy."})

    def __post_init__(self) -> None:
        if self.max_caption_length < 2:
            raise BadInput(f"--max_caption_length {self.max_caption_length}: must be at least 2")
        if self.num_beams < 1:
            raise BadInput(f"--num_beams {self.num_beams}: must be at least 1")


def as_the_encoder(args: CaptionModelArguments, data: ImageDataArguments) -> ImageDataArguments:
    """The data's options, with the size and the channels of a pretrained encoder where none are given.

    Raises:
        BadInput: there is no such encoder.
    """
    if args.pretrained_vision is None:
        return data
    config = _read_config(args.pretrained_vision, args)
    vision = _vision(getattr(config, "encoder", config))
    size = _pair(getattr(vision, "image_size", None))
    return replace(
        data,
        resolution=data.resolution or (f"{size[0]}x{size[1]}" if size else None),
        channels=data.channels or getattr(vision, "num_channels", None),
    )


def _read_config(name: str, args: CaptionModelArguments) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(
            name, revision=args.model_revision if name == args.model_name_or_path else None
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"{name} can't be loaded: {' '.join(str(error).split())[:300]}") from error


def _vision(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of a model with two towers (CLIP, SigLIP) the one that sees."""
    return getattr(config, "vision_config", config)


def _pair(size: int | tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    """(height, width) of a config's `image_size` or `patch_size`."""
    return size if size is None else (size, size) if isinstance(size, int) else tuple(size)


def part_config(part: str, args: CaptionModelArguments, default: str, **settings: Any) -> PreTrainedConfig:
    """The config of the encoder or the decoder: a pretrained one's, or of an architecture from scratch.

    Args:
        part: `encoder` or `decoder`.
        args: its name or type, and the overrides.
        default: the architecture where none is named.
        settings: further options from scratch, those that it has; the overrides come last.

    Raises:
        BadInput: no such model or architecture, no such option, or sizes that do not fit each other.
    """
    name, overrides = getattr(args, f"{part}_name_or_path"), getattr(args, f"{part}_overrides")
    if name is not None:
        config = _read_config(name, args)
        return override(_vision(config) if part == "encoder" else config, part, overrides)
    model_type = getattr(args, f"{part}_type") or default
    try:
        plain = AutoConfig.for_model(model_type)
    except ValueError:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        hint = nearest(model_type, list(CONFIG_MAPPING_NAMES))
        raise BadInput(f"--{part}_type {model_type} is no architecture of transformers{hint}") from None
    known = _options(plain)
    _require_known(part, model_type, overrides, known)
    settings = {option: value for option, value in settings.items() if option in known}
    try:
        return AutoConfig.for_model(model_type, **(settings | overrides))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise BadInput(f"--{part}_overrides {overrides}: {' '.join(str(error).split())}") from error


def override(config: PreTrainedConfig, part: str, overrides: dict[str, Any]) -> PreTrainedConfig:
    """Sets options (dropout, say) of a pretrained part's config.

    Raises:
        BadInput: it has no such option, or not of this kind.
    """
    _require_known(part, config.model_type, overrides, _options(config))
    for option, value in overrides.items():
        try:
            setattr(config, option, value)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise BadInput(f"--{part}_overrides {overrides}: {' '.join(str(error).split())}") from error
    return config


def _options(config: PreTrainedConfig) -> set[str]:
    return {*config.to_dict(), *getattr(config, "attribute_map", {})}


def _require_known(part: str, model: str, overrides: dict[str, Any], known: set[str]) -> None:
    for option in overrides:
        if option not in known:
            raise BadInput(f"--{part}_overrides: {model} has no option {option}{nearest(option, sorted(known))}")


@dataclass(frozen=True)
class Ends:
    """The special tokens of a caption: what its decoder starts with, what ends it, what fills up a batch."""

    start: int
    end: int
    pad: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Ends:
        """Raises BadInput where the tokenizer can't end a text."""
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise BadInput("the tokenizer has no end-of-sequence token: name another with --tokenizer_name")
        starts = (tokenizer.bos_token_id, tokenizer.cls_token_id, end)
        return cls(next(token for token in starts if token is not None), end, tokenizer.pad_token_id)


def caption_tokenizer(
    args: CaptionModelArguments, train: CaptionedImages, cache_dir: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, the pretrained model's or decoder's, or a new one of the training captions.

    Raises:
        BadInput: there is no such tokenizer.
    """
    named = replace(args, tokenizer_name=args.tokenizer_name or args.decoder_name_or_path)
    return make_tokenizer(named, "seq2seq", train.texts, ("text",), cache_dir)


def build_captioner(
    args: CaptionModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    images,
    captioning: CaptioningArguments,
    transfer: TransferArguments | None = None,
) -> VisionEncoderDecoderModel:
    """An encoder that sees and a decoder that writes, with cross-attention, and its generation settings.

    Args:
        args: see [`CaptionModelArguments`].
        tokenizer: of the captions.
        images: the training images: `image_size` and `num_channels`.
        captioning: the length of captions, and how they are searched for.
        transfer: `resize_embeddings`, `load_in_4bit` and `lora_r`.

    Raises:
        BadInput: no such model; parts that can't be joined; pictures that the encoder can't take.
    """
    transfer = transfer or TransferArguments()
    if transfer.lora_r and args.model_name_or_path is None:
        raise BadInput(
            "--lora_r adapts a whole pretrained model: set --model_name_or_path; the cross-attention between parts is "
            "new and has to be learnt in full"
        )
    ends = Ends.of(tokenizer)
    options: dict[str, Any] = {"dtype": getattr(torch, args.dtype), "attn_implementation": args.attn_implementation}
    if args.model_name_or_path is not None:
        model = _whole(args, options, transfer.load_in_4bit)
    else:
        model = _joined(args, tokenizer, images, captioning, options)
    fit_vocabulary(model.decoder, tokenizer, transfer.resize_embeddings)
    positions = usable_positions(model.decoder)
    if positions is not None and captioning.max_caption_length > positions:
        raise BadInput(
            f"--max_caption_length {captioning.max_caption_length} is more than the decoder's {positions} positions: "
            "lower it"
        )
    check_encoder(model.encoder, images)
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    if args.model_name_or_path is None or start is None or start >= len(tokenizer):
        start = ends.start
    ids = {"decoder_start_token_id": start, "eos_token_id": ends.end, "pad_token_id": ends.pad}
    for name, value in (ids | {"bos_token_id": tokenizer.bos_token_id}).items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    model.generation_config.max_length = captioning.max_caption_length + 1  # with the decoder's first token
    model.generation_config.num_beams = captioning.num_beams
    # Its forward hands on what it does not know to the encoder, and its loss takes no count of tokens.
    model.accepts_loss_kwargs = False
    # Weights that are saved once, under another name: none is missing from a checkpoint.
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model._keys_to_ignore_on_save = sorted(every - {name for name, _ in model.named_parameters()}) or None
    return model


def _whole(args: CaptionModelArguments, options: dict[str, Any], load_in_4bit: bool) -> VisionEncoderDecoderModel:
    name = args.model_name_or_path
    config = _read_config(name, args)
    if config.model_type != "vision-encoder-decoder":
        raise BadInput(
            f"--model_name_or_path {name} is a {config.model_type}, no VisionEncoderDecoderModel; name parts with "
            "--encoder_name_or_path and --decoder_name_or_path"
        )
    for part in ("encoder", "decoder"):
        override(getattr(config, part), part, getattr(args, f"{part}_overrides"))
    if load_in_4bit:
        options = options | {"quantization_config": quantization()}
    try:
        return VisionEncoderDecoderModel.from_pretrained(name, revision=args.model_revision, config=config, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BadInput(f"--model_name_or_path {name} can't be loaded: {' '.join(str(error).split())[:300]}") from error


def _joined(
    args: CaptionModelArguments, tokenizer, images, captioning: CaptioningArguments, options: dict[str, Any]
) -> VisionEncoderDecoderModel:
    height, width = images.image_size
    vision = part_config(
        "encoder",
        args,
        "vit",
        image_size=height if height == width else (height, width),
        num_channels=images.num_channels,
    )
    ends = Ends.of(tokenizer)
    # RoBERTa's positions begin after its padding's index.
    positions = captioning.max_caption_length + ends.pad + 1
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends.end, "pad_token_id": ends.pad}
    language = part_config(
        "decoder", args, "gpt2", vocab_size=len(tokenizer), max_position_embeddings=positions, **ids
    )
    for role in ("is_decoder", "add_cross_attention"):
        setattr(language, role, True)
    # Asked of the classes: a model of billions should not be built to find that it can't see.
    if getattr(_class_of(vision, MODEL_MAPPING), "main_input_name", None) != "pixel_values":
        raise BadInput(
            f"the encoder {_called('encoder', args, vision)} takes no pictures; take vit, deit, swin, dinov2"
        )
    forward = getattr(_class_of(language, MODEL_FOR_CAUSAL_LM_MAPPING), "forward", _joined)
    if "encoder_hidden_states" not in inspect.signature(forward).parameters:
        raise BadInput(
            f"the decoder {_called('decoder', args, language)} has no cross-attention to see with; take gpt2, bert, "
            "roberta, electra, bart"
        )
    encoder = _build("encoder", args, AutoModel, vision, options)
    decoder = _build("decoder", args, AutoModelForCausalLM, language, options)
    try:
        return VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    except (ValueError, AttributeError) as error:
        raise BadInput(f"these parts can't be joined: {' '.join(str(error).split())[:300]}") from error


def _class_of(config: PreTrainedConfig, mapping) -> type | None:
    """transformers' class of a model for a task, if it has one."""
    found = mapping[type(config)] if type(config) in mapping else None
    return found[0] if isinstance(found, tuple | list) else found


def _called(part: str, args: CaptionModelArguments, config: PreTrainedConfig) -> str:
    return getattr(args, f"{part}_name_or_path") or config.model_type


def _build(part: str, args: CaptionModelArguments, auto_class, config: PreTrainedConfig, options: dict[str, Any]):
    name = getattr(args, f"{part}_name_or_path")
    try:
        if name is not None:
            return auto_class.from_pretrained(name, config=config, **options)
        return auto_class.from_config(config, **options)
    except (OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
        option = f"--{part}_name_or_path {name}" if name else f"--{part}_type {config.model_type}"
        size = getattr(config, "image_size", None)
        square = "; it may want square pictures: set --resolution" if isinstance(size, tuple | list) else ""
        raise BadInput(f"{option}: {' '.join(str(error).split())[:300]}{square}") from error


@torch.no_grad()
def check_encoder(encoder, images) -> None:
    """Shows the encoder one black picture.

    Raises:
        BadInput: its patches do not divide the picture, it takes another size or other channels, or what it sees is
            no sequence.
    """
    height, width = images.image_size
    patch = _pair(getattr(encoder.config, "patch_size", None))
    if patch is not None and (height % patch[0] or width % patch[1]):
        raise BadInput(
            f"pictures of {height}x{width} (height x width) can't be cut into patches of {patch[0]}x{patch[1]}: "
            "choose another --resolution, or, from scratch, --encoder_overrides '{patch_size: …}'"
        )
    black = torch.zeros(1, images.num_channels, height, width, dtype=encoder.dtype, device=encoder.device)
    was_training = encoder.training
    try:
        seen = encoder.eval()(pixel_values=black)[0]
    except (ValueError, RuntimeError, TypeError) as error:
        wanted = _pair(getattr(encoder.config, "image_size", None))
        takes = f"; it takes {wanted[0]}x{wanted[1]}: set --resolution and --channels" if wanted else ""
        raise BadInput(
            f"the encoder can't take pictures of {images.num_channels} x {height}x{width} "
            f"({' '.join(str(error).split())[:200]}){takes}"
        ) from error
    finally:
        encoder.train(was_training)
    if seen.ndim != 3:
        raise BadInput(
            f"the encoder {encoder.config.model_type} sees no sequence but {tuple(seen.shape)}; take vit, deit, swin, "
            "dinov2"
        )


def make_image_processor(args: CaptionModelArguments, images, resize_mode: str):
    """The image processor that does to a picture what training did, to be saved beside the model.

    Values are scaled to [-1, 1], or as a pretrained encoder's own image processor says. transformers has no word for
    `pad`, nor for `crop` to another shape than a square: then it resizes nothing, and a picture of another size is an
    error instead of another picture.

    Args:
        args: names a pretrained encoder.
        images: the training images.
        resize_mode: `crop`, `pad` or `stretch`.
    """
    channels, (height, width) = images.num_channels, images.image_size
    mean = std = [0.5] * channels
    if args.pretrained_vision is not None:
        try:
            own = AutoImageProcessor.from_pretrained(args.pretrained_vision)
            mean, std = list(own.image_mean), list(own.image_std)
        except (OSError, ValueError, TypeError, AttributeError):
            pass  # it has none: a model trained elsewhere, without
    if len(mean) != channels:
        mean = std = [0.5] * channels
    options = {
        "image_mean": mean,
        "image_std": std,
        "resample": PIL.Image.Resampling.BICUBIC,
        "do_convert_rgb": channels == 3,
    }
    size = {"height": height, "width": width}
    if resize_mode == "crop" and height == width:
        return CLIPImageProcessorPil(size={"shortest_edge": height}, crop_size=size, **options)
    return ViTImageProcessorPil(size=size, do_resize=resize_mode == "stretch", **options)
