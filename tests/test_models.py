"""Each model option: its hub id, and on a tiny random model of its architecture the adapters, attention and template."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from hydra import compose, initialize_config_dir
from lm_eval import evaluator
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    SiglipVisionConfig,
)

from hydratune import preflight
from hydratune.build.hardware import Hardware
from hydratune.build.lora import build_lora
from hydratune.build.rendering import Renderer, Tokens
from hydratune.config.load import CONF_DIR, to_config
from hydratune.config.schema import Config, ConfigError
from hydratune.formats import Chat
from hydratune.run.layout import RunDir
from hydratune.stages import evaluate, generate, prepare, train

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def gemma3(**more: Any) -> PreTrainedConfig:
    text, vision = Gemma3TextConfig(**{**SMALL, **GEMMA, **more}), SiglipVisionConfig(**VISION)
    return Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4)


ARCHITECTURES = {
    "llama": lambda **more: LlamaConfig(**{**SMALL, **more}),
    "qwen3": lambda **more: Qwen3Config(**{**SMALL, "head_dim": 8, **more}),
    "mistral": lambda **more: MistralConfig(**{**SMALL, **more}),
    "gemma3_text": lambda **more: Gemma3TextConfig(**{**SMALL, **GEMMA, **more}),
    "gemma3": gemma3,
}
MODELS = {  # option -> hub id, architecture (the model_type in the hub's config.json)
    "tinyllama_1_1b": ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "llama"),
    "smollm2_135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "llama"),
    "smollm2_1_7b": ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama"),
    "llama3_2_1b": ("meta-llama/Llama-3.2-1B-Instruct", "llama"),
    "llama3_1_8b": ("meta-llama/Llama-3.1-8B-Instruct", "llama"),
    "qwen3_0_6b": ("Qwen/Qwen3-0.6B", "qwen3"),
    "qwen3_8b": ("Qwen/Qwen3-8B", "qwen3"),
    "mistral_7b": ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
    "gemma3_1b": ("google/gemma-3-1b-it", "gemma3_text"),
    "gemma3_4b": ("google/gemma-3-4b-it", "gemma3"),
}
ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
PRESETS = {  # option of lora -> what gets an adapter in each decoder layer
    "all_linear": ATTENTION + MLP, "all_linear_r64": ATTENTION + MLP, "attention": ATTENTION, "mlp": MLP,
    "rslora": ATTENTION + MLP, "dora": ATTENTION + MLP, "language_model": ATTENTION + MLP,
    "loraplus": ATTENTION + MLP, "pissa": ATTENTION + MLP,
}  # fmt: skip
CPU = Hardware(
    device="cpu", dtype="float32", compute_dtype="float32", precision="float32", optim="adamw_torch",
    attn_implementation="sdpa",
)  # fmt: skip


@cache
def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return to_config(compose("config", list(overrides)))


def built(architecture: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](), **more)


def adapted(architecture: str, preset: str) -> set[str]:
    """Names of the modules that `lora=preset` puts an adapter on."""
    model = get_peft_model(built(architecture), build_lora(composed(f"lora={preset}").lora))
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def decoder(architecture: str, parts: list[str]) -> set[str]:
    """Their full names in both layers."""
    root = "model.language_model" if architecture == "gemma3" else "model"
    return {f"{root}.layers.{layer}.{part}" for layer in (0, 1) for part in parts}


def test_every_option_is_here() -> None:
    assert {path.stem for path in (CONF_DIR / "model").glob("*.yaml")} == {"demo", "local", *MODELS}
    assert {path.stem for path in (CONF_DIR / "lora").glob("*.yaml")} == {"none", *PRESETS}


@pytest.mark.parametrize("option", MODELS)
def test_what_an_option_names(option: str) -> None:
    model, (hub_id, architecture) = composed(f"model={option}").model, MODELS[option]
    assert (model.name_or_path, model.package, model.gguf_file) == (hub_id, None, None)
    # the tokenizers of the tuned models bring their own; of TinyLlama it is the base checkpoint
    assert model.chat_template == ("tinyllama_chat" if option == "tinyllama_1_1b" else None)
    assert not model.trust_remote_code
    assert ARCHITECTURES[architecture]().model_type == architecture
    head = (CONF_DIR / "model" / f"{option}.yaml").read_text().partition("\n")[0]
    gated = hub_id.startswith(("meta-llama/", "google/"))
    assert ("gated" in head) == gated and ("Apache-2.0" in head) != gated


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_modules_with_an_adapter(architecture: str, preset: str) -> None:
    assert adapted(architecture, preset) == decoder(architecture, PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_modules_with_an_adapter_beside_a_vision_tower(preset: str) -> None:
    """Gemma 3 from 4B on loads with its image encoder, which rows of text never reach."""
    found, wanted = adapted("gemma3", preset), decoder("gemma3", PRESETS[preset])
    assert wanted <= found
    beside = {name for name in found - wanted if name.startswith("model.vision_tower.")}
    assert found == wanted | beside
    assert bool(beside) == (preset not in ("mlp", "language_model"))


def test_the_language_model_preset_is_what_the_option_tells_to_type() -> None:
    head = (CONF_DIR / "model/gemma3_4b.yaml").read_text().partition("\n")[0]
    assert head.endswith(": hydratune model=gemma3_4b lora=language_model")


def saved(architecture: str, tiny: Path, folder: Path) -> list[str]:
    """A tiny model with tokenizer in `folder`, and the overrides that choose it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = ARCHITECTURES[architecture](vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return ["model=local", f"model.name_or_path={folder}", "quantization=none"]


@pytest.mark.parametrize(
    ("preset", "reached"), [("all_linear", 9), ("attention", 3), ("mlp", 0), ("language_model", 0)]
)
def test_an_adapter_on_a_vision_tower_is_refused(preset: str, reached: int, tiny: Path, tmp_path: Path) -> None:
    config = composed(*saved("gemma3", tiny, tmp_path / "model"), f"lora={preset}", f"cache_dir={tmp_path}")
    if not reached:
        return preflight.check(config, ["train"])
    with pytest.raises(ConfigError) as refused:
        preflight.check(config, ["train"])
    (sentence,) = refused.value.sentences
    assert f" reaches {reached} modules that text never does, such as model.vision_tower." in sentence
    assert sentence.endswith(": set lora=language_model.")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sdpa_is_right_for_training(architecture: str) -> None:
    """`auto` takes sdpa. Earlier versions of transformers wanted eager for Gemma 3: now loss and gradients are the same."""
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[1, 8:] = 0
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}
    losses, gradients = [], []
    for attention in ("eager", "sdpa"):
        model = built(architecture, attn_implementation=attention).train()
        assert model.config.get_text_config()._attn_implementation == attention
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 0.1
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


CHAT = [
    {"role": "user", "content": "What is fern?"},
    {"role": "assistant", "content": "A plant."},
    {"role": "user", "content": "And otter?"},
    {"role": "assistant", "content": "An animal."},
]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"  # trl's copies of what the models' tokenizers bring


@pytest.mark.parametrize(
    ("template", "loss", "supervised"),
    [
        ("llama3_2", "assistant", "A plant.<|eot_id|>An animal.<|eot_id|>"),
        ("llama3_1", "completion", "An animal.<|eot_id|>"),
        ("gemma3", "assistant", "A plant.<end_of_turn>\nAn animal.<end_of_turn>\n"),
        ("gemma3", "completion", "An animal.<end_of_turn>\n"),
        ("qwen3", "assistant", "A plant.<|im_end|>\nAn animal.<|im_end|>\n"),
        ("qwen3", "completion", "An animal.<|im_end|>\n"),
    ],
)
def test_the_models_own_template_supervises(template: str, loss: str, supervised: str, tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    (row,) = Renderer(tokenizer).tokens([Chat(CHAT, 3)], loss)
    assert isinstance(row, Tokens)
    assert tokenizer.decode([label for label in row.labels if label != -100]) == supervised
    begins_with_bos = template != "qwen3"
    assert row.ids.count(tokenizer.bos_token_id) == begins_with_bos == (row.ids[0] == tokenizer.bos_token_id)


@pytest.mark.parametrize("architecture", ["gemma3_text", "gemma3"])
def test_a_step_of_training(architecture: str, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """On text alone, through trl's trainer: every adapter gets a gradient."""
    config = composed(
        *saved(architecture, tiny, tmp_path / "model"), "lora=language_model", "data=jsonl", f"data.path={rows}",
        "trainer.max_steps=1", f"cache_dir={tmp_path}/cache",
    )  # fmt: skip
    run = RunDir(tmp_path / "run")
    prepare.run(config, run, CPU)
    trainer = train.build_trainer(config, run, CPU)
    trainer.train()
    learnt = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(learnt) == 2 * 7 * 2
    # B begins at zero, so one step moves it wherever a gradient arrived
    assert all(p.abs().max() > 0 for name, p in learnt.items() if "lora_B" in name)


def test_an_answer_ends_where_the_models_own_settings_say(tiny: Path) -> None:
    """Gemma's tokenizer names <eos>, and its answers end with <end_of_turn>, which its generation settings name."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    config = composed("generate.prompts=[What is fern?]", "generate.max_new_tokens=6")
    (long,) = generate._answers(config, model, tokenizer, config.generate.prompts)
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    (short,) = generate._answers(config, model, tokenizer, config.generate.prompts)
    assert short and long.startswith(short) and len(short) < len(long)


def test_the_length_for_lm_eval_is_the_language_models(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3's whole configuration has none, only the part that is for its language model."""
    asked = []

    def record(lm: Any, tasks: Any, **options: Any) -> dict[str, Any]:
        asked.append(lm.max_length)
        return {"results": {}, "samples": {}, "configs": {}}

    monkeypatch.setattr(evaluator, "evaluate", record)
    config = composed(
        *saved("gemma3", tiny, tmp_path / "model"), "benchmark=demo", "benchmark.models=[base]", f"cache_dir={tmp_path}"
    )
    evaluate.run(config, RunDir(tmp_path / "run"), CPU)
    assert asked == [ARCHITECTURES["gemma3"]().get_text_config().max_position_embeddings] and asked != [2048]
