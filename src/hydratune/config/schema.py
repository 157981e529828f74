"""The types of every configuration group. Values live in conf/, rules that span groups in rules.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class ConfigError(Exception):
    """The user's mistake: one or several sentences, each with what to type. Exit status 2."""

    def __init__(self, sentences: str | Sequence[str]) -> None:
        self.sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        super().__init__("\n".join(self.sentences))


class RunError(Exception):
    """A run that failed, or a run folder in the wrong state: one sentence. Exit status 1."""


def choice(default: str, *others: str) -> Any:
    """A string field that takes `default` or one of `others`; rules.py checks it."""
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass
class ModelConf:
    """Which pretrained model, and how it is loaded."""

    name_or_path: str | None = None  # hub id or folder
    revision: str | None = None
    package: str | None = None  # installed Python package that holds gguf_file
    gguf_file: str | None = None  # converted once into the cache
    dtype: str = choice("auto", "float32", "bfloat16", "float16")
    attn_implementation: str = choice("auto", "eager", "sdpa", "flash_attention_2")
    device_map: str | None = None
    chat_template: str | None = None  # one of ours by name, or a .jinja file; null: the tokenizer's own
    trust_remote_code: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # further from_pretrained arguments


@dataclass
class QuantizationConf:
    """bitsandbytes quantization of the frozen base (QLoRA, arXiv:2305.14314)."""

    kind: str = choice("none", "nf4", "fp4", "int8")
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str = choice("auto", "float32", "bfloat16", "float16")


@dataclass
class LoraConf:
    """Low-rank adapters (arXiv:2106.09685); names are peft.LoraConfig's."""

    kind: str = choice("none", "lora")
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0  # probability
    target_modules: Any = "all-linear"  # "all-linear" or a list of module names
    bias: str = choice("none", "all", "lora_only")
    use_rslora: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # further peft.LoraConfig arguments


@dataclass
class DataConf:
    """Rows of chat messages, and which of their tokens are supervised."""

    path: str | None = None  # JSON or JSONL file, folder of them, hub id, or "demo"
    split: str = "train"  # of a hub id; of a folder, the file's name without its ending
    column: str = "messages"
    loss: str = choice("assistant", "completion", "all")
    max_rows: int | None = None
    shuffle_seed: int | None = None


@dataclass
class TrainerConf:
    """Names are transformers.TrainingArguments' and trl.SFTConfig's own."""

    kind: str = choice("sft")
    max_length: int = 512  # tokens
    max_steps: int = -1  # optimizer steps; -1: num_train_epochs decides
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 2  # rows
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "auto"  # auto: paged_adamw_32bit for a quantized model on CUDA, else adamw_torch
    precision: str = choice("auto", "float32", "bfloat16", "float16")  # autocast
    gradient_checkpointing: bool = False
    logging_steps: int = 1
    save_steps: int = 500
    save_total_limit: int = 2
    extra: dict[str, Any] = field(default_factory=dict)  # further SFTConfig arguments


@dataclass
class MergeConf:
    """Which base the adapter is merged onto, and how the result is stored and proven."""

    base: str = choice("auto", "dequantized", "original")
    dtype: str = choice("auto", "float32", "bfloat16", "float16")  # auto: the base checkpoint's own
    verify: bool = True
    # greatest mean KL divergence in nats, adapter model against merged folder, both computed in float32;
    # null: 1e-3 for a float32 folder, 2e-2 for a 16-bit one, whose rounding alone gives about 5e-3
    tolerance: float | None = None


@dataclass
class BenchmarkConf:
    """lm-eval tasks, run on base, adapter and merged model."""

    tasks: list[str] = field(default_factory=list)
    include_path: str | None = None  # folder of task YAML files, or "demo"
    limit: int | None = None  # documents a task; null: all
    num_fewshot: int | None = None
    apply_chat_template: bool = True
    batch_size: int = 8
    models: list[str] = field(default_factory=lambda: ["base", "adapter", "merged"])


@dataclass
class GenerateConf:
    """Prompts for the tuned model."""

    prompts: list[str] = field(default_factory=list)
    apply_chat_template: bool = True
    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class TrackingConf:
    """Where the training log goes besides train_log.jsonl."""

    kind: str = choice("off", "wandb")
    project: str = "hydratune"
    mode: str = choice("online", "offline")


STAGES = ("prepare", "train", "merge", "evaluate", "generate")


@dataclass
class Config:
    """One run, whole."""

    name: str = "run"
    seed: int = 42
    run_dir: str | None = None  # null: runs/<name>-<8 hex digits of the config hash>
    cache_dir: str | None = None  # null: $HYDRATUNE_CACHE, else ~/.cache/hydratune
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    model: ModelConf = field(default_factory=ModelConf)
    quantization: QuantizationConf = field(default_factory=QuantizationConf)
    lora: LoraConf = field(default_factory=LoraConf)
    data: DataConf = field(default_factory=DataConf)
    trainer: TrainerConf = field(default_factory=TrainerConf)
    merge: MergeConf = field(default_factory=MergeConf)
    benchmark: BenchmarkConf = field(default_factory=BenchmarkConf)
    generate: GenerateConf = field(default_factory=GenerateConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)
