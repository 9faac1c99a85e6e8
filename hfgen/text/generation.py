"""Text from a trained model, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..errors import BadInput
from ..seeding import mix, seed_globals


@torch.no_grad()
def continue_texts(
    model,
    tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> list[str]:
    """What a causal model writes after each prompt (after the beginning of a text where a prompt is empty).

    Args:
        model, tokenizer: the model, in evaluation mode.
        prompts: texts, or rendered chats.
        max_new_tokens: at most.
        temperature: 0 takes the likeliest token each time.
        top_k: draw among so many of the likeliest.
        seed: of the draws; each prompt's are its own.
    """
    outputs = []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    limit = getattr(model.config, "max_position_embeddings", None)
    for index, prompt in enumerate(prompts):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        ids = ids or [start]
        room = max_new_tokens if limit is None else max(1, min(max_new_tokens, limit - len(ids)))
        inputs = torch.tensor([ids], device=model.device)
        seed_globals(mix(seed, index), model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {}
        made = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=room,
            pad_token_id=tokenizer.pad_token_id,
            **({"do_sample": False} | sampling),
        )
        outputs.append(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
    return outputs


def write_samples(rows: list[dict[str, str]], output: Path) -> list[Path]:
    """Prints rows of text and writes them to samples.jsonl in `output`.

    Raises:
        BadInput: the folder can't be written to.
    """
    for row in rows:
        print("\n".join(f"{name}: {value}" for name, value in row.items() if value), end="\n\n")
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "samples.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{output} can't be written to ({error.strerror or error}); name another --output") from error
    return [path]
