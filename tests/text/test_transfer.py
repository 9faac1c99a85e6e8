"""What moves, when, how fast: exactly what was said."""

import pytest
import torch
from text.recipe_runs import same, train, weights
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hfgen.errors import BadInput
from hfgen.muon import Muon, orthogonalise
from hfgen.text.arguments import TextTrainingArguments, TransferArguments
from hfgen.text.transfer import GradualUnfreezing, freeze, layer_depths, make_text_optimizer, matching, with_adapters

TINY = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 2}"
FLAGS = ["--block_size=32", "--per_device_train_batch_size=4", "--max_train_samples=3", "--max_eval_samples=2"]
FLAGS += ["--eval_strategy=no", "--learning_rate=1e-2", "--weight_decay=0.1", "--save_strategy=no"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model to start from, and the cache's flag."""
    folder = tmp_path_factory.mktemp("base")
    flags = [*FLAGS, f"--config_overrides={TINY}", "--vocab_size=300", f"--cache_dir={folder / 'cache'}"]
    return train("pretrain_causal_lm", folder / "run", *flags, "--max_steps=2"), f"--cache_dir={folder / 'cache'}"


def tiny(layers: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def moved(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_frozen_parameters_stay_and_all_others_move(base, tmp_path):
    run, cache = base
    frozen = ["*embed_tokens*", "model.layers.0.*"]
    flags = [*FLAGS, cache, f"--model_name_or_path={run}", "--max_steps=2", "--freeze", *frozen]
    before, after = weights(run), weights(train("pretrain_causal_lm", tmp_path / "run", *flags))
    stays = {name for name in before if "embed_tokens" in name or name.startswith("model.layers.0.")}
    assert len(stays) > 5
    assert moved(before, after) == before.keys() - stays


def test_gradual_unfreezing_moves_exactly_what_it_says(base, tmp_path):
    run, cache = base
    before = weights(run)
    flags = [*FLAGS, cache, f"--model_name_or_path={run}", "--save_strategy=steps", "--save_steps=1"]
    flags += [
        "--save_total_limit=9",
        "--max_steps=5",
        "--unfreeze_at={2: ['*layers.2.*'], 4: ['*layers*', '*embed*']}",
    ]
    train("pretrain_causal_lm", tmp_path / "run", *flags)
    states = [before, *(weights(tmp_path / "run" / f"checkpoint-{step}") for step in range(1, 6))]
    for step in range(5):
        expected = {"lm_head.weight", "model.norm.weight"}
        if step >= 2:
            expected |= {name for name in before if "layers.2." in name}
            assert len(expected) > 5
        if step >= 4:
            expected = set(before)
        assert moved(states[step], states[step + 1]) == expected, f"step {step}"


def test_something_must_move_at_first():
    with pytest.raises(BadInput, match="nothing would move before step 2"):
        GradualUnfreezing(tiny(), {2: ["*layers*"], 4: ["*"]})


def test_the_rate_falls_by_the_factor_a_layer():
    model = tiny()
    depths = layer_depths(model)
    assert depths["lm_head.weight"] == depths["model.norm.weight"] == 0
    assert [depths[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [3, 2, 1]
    assert depths["model.embed_tokens.weight"] == 4
    args = TextTrainingArguments(output_dir="x", learning_rate=1.0, weight_decay=0.1)
    optimizer = make_text_optimizer(model, args, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(rates) == len(named)
    for name, parameter in named.items():
        assert rates[id(parameter)] == 0.5 ** depths[name]
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert id(named["model.layers.0.mlp.up_proj.weight"]) in decayed
    assert id(named["model.layers.0.input_layernorm.weight"]) not in decayed


def test_transformers_own_optimizer_is_kept_where_it_does():
    assert make_text_optimizer(tiny(), TextTrainingArguments(output_dir="x")) is None


def test_lora_moves_adapters_only_and_merging_changes_no_output(base, tmp_path):
    run, cache = base
    flags = [*FLAGS, cache, f"--model_name_or_path={run}", "--max_steps=3", "--lora_r=4"]
    adapted = train("pretrain_causal_lm", tmp_path / "adapters", *flags)
    merged = train("pretrain_causal_lm", tmp_path / "merged", *flags, "--merge_adapter=true")
    assert (adapted / "adapter_model.safetensors").exists()
    assert not (adapted / "model.safetensors").exists()
    assert all("lora" in name for name in weights(adapted))
    assert moved(weights(run), weights(merged)) == {
        n for n in weights(run) if n.endswith(("q_proj.weight", "v_proj.weight"))
    }
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (adapted, merged, run)]
    with torch.no_grad():
        a, b, c = (model(torch.arange(20)[None]).logits for model in models)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert (a - c).abs().max() > 1e-3


def test_only_adapters_get_gradients():
    model = with_adapters(tiny(), TransferArguments(lora_r=2), "CAUSAL_LM")
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving
    assert all("lora" in name for name in moving)


def test_new_embeddings_for_a_new_tokenizer(base, tmp_path):
    run, cache = base
    new = train(
        "pretrain_causal_lm",
        tmp_path / "new",
        *FLAGS,
        cache,
        f"--config_overrides={TINY}",
        "--vocab_size=400",
        "--max_steps=1",
    )
    flags = [*FLAGS, cache, f"--model_name_or_path={run}", f"--tokenizer_name={new}", "--max_steps=1"]
    with pytest.raises(BadInput, match=r"tokenizer has 400 tokens, but .* 300: pass --resize_embeddings true"):
        train("pretrain_causal_lm", tmp_path / "a", *flags)
    resized = train("pretrain_causal_lm", tmp_path / "b", *flags, "--resize_embeddings=true")
    assert AutoModelForCausalLM.from_pretrained(resized).get_input_embeddings().weight.shape[0] == 400


def test_weights_that_do_not_move_are_the_ones_loaded(base, tmp_path):
    run, cache = base
    flags = [*FLAGS, cache, f"--model_name_or_path={run}", "--max_steps=1", "--learning_rate=0"]
    assert same(weights(run), weights(train("pretrain_causal_lm", tmp_path / "run", *flags)))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"freeze": ["*layer.9*"]}, r"--freeze \*layer.9\* matches no parameter; they are called model.embed_tokens"),
        ({"freeze": ["*"]}, "leaves nothing to train"),
    ],
)
def test_patterns_that_do_not_fit(options, line):
    with pytest.raises(BadInput, match=line):
        freeze(tiny(), TransferArguments(**options))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"unfreeze_at": "[1, 2]"}, "--unfreeze_at"),
        ({"unfreeze_at": "{soon: ['*']}"}, "--unfreeze_at"),
        ({"layerwise_lr_decay": 0}, "--layerwise_lr_decay 0: must be above 0"),
        ({"lora_r": 4, "freeze": ["*"]}, "--lora_r freezes the model itself"),
        ({"merge_adapter": True}, "--merge_adapter true is for LoRA"),
        ({"load_in_4bit": True, "lora_r": 2, "merge_adapter": True}, "can't be merged into 4-bit"),
    ],
)
def test_options_that_contradict_each_other(options, line):
    with pytest.raises(BadInput, match=line):
        TransferArguments(**options)


def test_matching_crosses_dots():
    assert len(matching(tiny(), ["*layers.1.*"], "freeze")) == 9


# ---- Muon


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (3, 5, 7)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix, steps=7))
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalise(matrix, steps=7)
    assert (made * (left @ right)).sum() / (made.norm() * (left @ right).norm()) > 0.97


def test_muons_other_parameters_are_adamws():
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    a, b = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = Muon([{"params": [a], "weight_decay": 0.1}], lr=0.1, adam_lr=0.01, betas=(0.9, 0.99))
    theirs = torch.optim.AdamW([b], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(5):
        for parameter in (a, b):
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_muons_first_update_by_hand():
    start = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    matrix = torch.nn.Parameter(start.clone())
    matrix.grad = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    momentum = 0.05 * matrix.grad
    nesterov = 0.05 * matrix.grad + 0.95 * momentum
    expected = start * (1 - 0.02 * 0.1) - 0.02 * 2**0.5 * orthogonalise(nesterov)
    Muon([{"params": [matrix], "use_muon": True, "weight_decay": 0.1}], lr=0.02, momentum=0.95).step()
    torch.testing.assert_close(matrix.detach(), expected)


def test_muon_is_for_matrices_between_the_layers():
    model = tiny()
    args = TextTrainingArguments(output_dir="x", optim="muon", learning_rate=0.02)
    optimizer = make_text_optimizer(model, args)
    by_muon = {id(p) for g in optimizer.param_groups if g["use_muon"] for p in g["params"]}
    named = dict(model.named_parameters())
    assert id(named["model.layers.0.self_attn.q_proj.weight"]) in by_muon
    assert id(named["model.embed_tokens.weight"]) not in by_muon
    assert id(named["lm_head.weight"]) not in by_muon
    assert id(named["model.norm.weight"]) not in by_muon
