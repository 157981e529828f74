"""The types of every configuration group. Values live in conf/, rules that span groups in rules.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydratune.config.option import DTYPES, option
from hydratune.config.stage_schema import BenchmarkConf, GenerateConf, MergeConf
from hydratune.formats import FORMATS


class ConfigError(Exception):
    """The user's mistake: one or several sentences, each with what to type. Exit status 2."""

    def __init__(self, sentences: str | Sequence[str]) -> None:
        self.sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        super().__init__("\n".join(self.sentences))


class MachineError(ConfigError):
    """What this machine lacks, and another may have; `elsewhere` holds the sentences that are true of any."""

    def __init__(self, elsewhere: list[str], here: list[str]) -> None:
        self.elsewhere = elsewhere
        super().__init__([*elsewhere, *here])


@dataclass(frozen=True)
class Broken:
    """A rule that a configuration breaks, and the keys or groups that it is about."""

    about: tuple[str, ...]
    sentence: str


class RunError(Exception):
    """A run that failed, or a run folder in the wrong state: one sentence. Exit status 1."""


@dataclass
class ModelConf:
    """Which pretrained model, and how it is loaded."""

    name_or_path: str | None = option(None, "hub id, or a folder")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    package: str | None = option(None, "installed Python package that holds gguf_file")
    gguf_file: str | None = option(None, "GGUF file in the folder, hub id or package; converted once into the cache")
    dtype: str = option("auto", "of the weights in memory; auto is settled where the job runs", choices=DTYPES)
    attn_implementation: str = option(
        "auto", "attention; auto: sdpa", choices=("auto", "eager", "sdpa", "flash_attention_2")
    )
    device_map: str | None = option(None, "accelerate's placement of the layers, such as auto; null: one device")
    chat_template: str | None = option(None, "one of ours by name, or a .jinja file; null: the tokenizer's own")
    chat_template_kwargs: dict[str, Any] = option({}, "its variables, such as enable_thinking: false; saved in it too")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")
    add_tokens: list[str] = option([], "special tokens that the tokenizer gets; an adapter trains their embeddings")
    extra: dict[str, Any] = option({}, "further arguments of from_pretrained")


@dataclass
class QuantizationConf:
    """bitsandbytes quantization of the frozen base (QLoRA, arXiv:2305.14314; LLM.int8(), arXiv:2208.07339)."""

    kind: str = option("none", "data type of the frozen base weights", choices=("none", "nf4", "fp4", "int8"))
    bnb_4bit_use_double_quant: bool = option(False, "quantize the quantization constants too")
    bnb_4bit_compute_dtype: str = option("auto", "of 4-bit layers' products", choices=DTYPES)
    bnb_4bit_quant_storage: str = option(
        "uint8", "type that the packed weights are stored as", choices=("uint8", "float32", "bfloat16", "float16")
    )
    llm_int8_threshold: float = option(6.0, "inputs above this magnitude are multiplied in 16 bits", least=0)
    llm_int8_skip_modules: list[str] | None = option(None, "modules that are not quantized; null: the head alone")
    extra: dict[str, Any] = option({}, "further arguments of transformers.BitsAndBytesConfig")


@dataclass
class LoraConf:
    """Low-rank adapters (arXiv:2106.09685); names are peft.LoraConfig's."""

    kind: str = option("none", "none trains every weight", choices=("none", "lora"))
    r: int = option(16, "rank of the adapter", above=0)
    lora_alpha: int = option(32, "the adapter is scaled by lora_alpha / r", above=0)
    lora_dropout: float = option(0.0, "on the adapter's input", unit="probability", least=0, below=1)
    target_modules: Any = option("all-linear", "all-linear, a list of module names, or a regular expression")
    bias: str = option("none", "which biases are trained too", choices=("none", "all", "lora_only"))
    use_rslora: bool = option(False, "scale by lora_alpha / sqrt(r) (arXiv:2312.03732)")
    use_dora: bool = option(False, "train magnitude and direction apart (arXiv:2402.09353)")
    init_lora_weights: Any = option(True, "true, or a method's name such as gaussian")
    loraplus_lr_ratio: float | None = option(
        None, "LoRA+: learning rate of B over that of A (arXiv:2402.12354); null: the same", above=0
    )
    trainable_token_indices: list[int] | None = option(
        None,
        "tokens whose embeddings are trained too; null: those of model.add_tokens, in the head too",
        unit="token ids",
    )
    modules_to_save: list[str] | None = option(None, "modules that are trained whole and saved with the adapter")
    layers_to_transform: list[int] | None = option(None, "numbers of the layers that get an adapter; null: all")
    rank_pattern: dict[str, Any] = option({}, "module name or regular expression -> its rank")
    alpha_pattern: dict[str, Any] = option({}, "module name or regular expression -> its lora_alpha")
    extra: dict[str, Any] = option({}, "further arguments of peft.LoraConfig")


@dataclass
class SourceConf:
    """Rows from one place, and which of them."""

    path: str | None = option(None, 'file, folder, glob or hub id of rows, or "demo"')
    name: str | None = option(None, "configuration of a dataset on the hub")
    revision: str | None = option(None, "branch, tag or commit of a dataset on the hub")
    split: str = option("train", "of a hub id or a saved dataset; of a folder, how the files' names begin")
    format: str = option("auto", "how a row is written; auto: told by its columns", choices=("auto", *FORMATS))
    columns: dict[str, Any] = option({}, "name that the format has for a column -> its name in the rows")
    max_rows: int | None = option(None, "rows to take, after shuffling; null: all", unit="rows", above=0)
    shuffle_seed: int | None = option(None, "shuffle the rows once with this seed; null: as they stand", least=0)


@dataclass
class DataConf(SourceConf):
    """Rows, and which of their tokens are supervised."""

    mix: list[Any] = option([], "several sources: a list of {path, weight, and what else differs from the keys above}")
    formatter: str | None = option(None, "module:function of yours that turns a row into one of a known format")
    validation_path: str | None = option(None, "rows that are never trained on, a path as above")
    validation_split: str | None = option(None, "split of those rows; without validation_path, of path")
    validation_share: float | None = option(None, "share of the rows held out instead", above=0, below=1)
    loss: str = option(
        "assistant",
        "supervised tokens: every assistant turn, the last, the completion after the prompt, or all",
        choices=("assistant", "last", "completion", "all"),
    )
    on_long_row: str = option("cut", "a row above trainer.max_length", choices=("cut", "skip", "error"))
    on_bad_row: str = option("error", "a row that can't be trained on", choices=("error", "skip"))
    max_bad_share: float = option(0.01, "share of bad rows above which skip is an error", least=0, below=1)
    packing: bool = option(False, "several rows in one of trainer.max_length (best fit), none seeing another")
    padding_free: bool | None = option(
        None, "the rows of a batch in one line without padding, none seeing another; null: wherever that is exact"
    )


@dataclass
class TrainerConf:
    """Names are transformers.TrainingArguments' and trl.SFTConfig's own."""

    kind: str = option("sft", "training method", choices=("sft",))
    max_length: int = option(512, "longer rows are cut", unit="tokens", above=0)
    max_steps: int = option(-1, "length of training; -1: num_train_epochs decides", unit="optimizer steps", least=-1)
    num_train_epochs: float = option(1.0, "passes over the rows, where max_steps is -1", unit="epochs", above=0)
    per_device_train_batch_size: int = option(2, "rows a device takes at once", unit="rows", above=0)
    per_device_eval_batch_size: int = option(8, "validation rows a device takes at once", unit="rows", above=0)
    eval_steps: int | None = option(
        None, "distance of the validation losses; null: one at the end", unit="optimizer steps", above=0
    )
    gradient_accumulation_steps: int = option(1, "batches an optimizer step sums up", unit="batches", above=0)
    learning_rate: float = option(2e-4, "peak of the schedule", above=0)
    lr_scheduler_type: str = option("cosine", "shape of the schedule, one of transformers.SchedulerType")
    warmup_steps: float = option(0, "rise to learning_rate; below 1 a share of all", unit="optimizer steps", least=0)
    weight_decay: float = option(0.0, "of the optimizer", least=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0: never", least=0)
    optim: str = option("auto", "auto: paged_adamw_32bit for a quantized model on CUDA, else adamw_torch")
    precision: str = option("auto", "autocast of the products (bf16 and fp16 of transformers)", choices=DTYPES)
    lean_loss: bool = option(
        True, "the head on supervised tokens alone, where that is proven equal; false: trl's own loss"
    )
    torch_compile: bool = option(False, "compile the model with torch.compile, which takes minutes once")
    fsdp: bool = option(False, "FSDP2: the weights in shards over the processes; needs CUDA")
    load_best_model_at_end: bool = option(False, "end with the weights of the lowest validation loss, not the last")
    early_stopping_patience: int | None = option(
        None, "validation losses in a row without a lower one, after which training ends; null: never", above=0
    )
    gradient_checkpointing: bool = option(False, "compute activations again instead of keeping them")
    logging_steps: int = option(1, "distance of the lines in train_log.jsonl", unit="optimizer steps", above=0)
    save_steps: int = option(500, "distance of the checkpoints", unit="optimizer steps", above=0)
    save_total_limit: int = option(2, "checkpoints that are kept", above=0)
    callbacks: list[str] = option([], "module:Class of yours, each a transformers.TrainerCallback")
    extra: dict[str, Any] = option({}, "further arguments of trl.SFTConfig")


@dataclass
class TrackingConf:
    """Where the training log goes besides train_log.jsonl."""

    kind: str = option("off", "tracker", choices=("off", "wandb"))
    project: str = option("hydratune", "project in the tracker")
    mode: str = option("online", "offline: files for wandb sync", choices=("online", "offline"))


@dataclass
class SweepConf:
    """What a sweep does with its jobs; no key of a single run."""

    zip: list[Any] = option([], "swept keys whose values go in step, [lora.r,lora.lora_alpha], or a list of such lists")
    seeds: int | None = option(
        None, "runs of each setting, with the seeds from `seed` on; null: one, or those that are swept", above=0
    )
    reuse: bool = option(False, "take over what another sweep or run beside this one has done with the same settings")
    direction: str = option(
        "auto", "which way `objective` is better; auto: told by its name", choices=("auto", "minimize", "maximize")
    )


STAGES = ("prepare", "train", "merge", "evaluate", "generate")


@dataclass
class Config:
    """One run, whole."""

    name: str = option("run", "in the run directory's name and in the tracker")
    seed: int = option(42, "of initialisation, order, dropout and sampling", least=0, below=2**32)
    run_dir: str | None = option(None, "folder of the run; null: runs/<name>-<8 digits of the settings' hash>")
    cache_dir: str | None = option(
        None, "token caches and converted models; null: $HYDRATUNE_CACHE, else ~/.cache/hydratune"
    )
    objective: str | None = option(
        None,
        "the metric of metrics.json that a sweep looks at; null: the validation loss, without one the training loss",
    )
    trust: bool = option(False, "import Python code that a saved run's configuration names")
    stages: list[str] = option(list(STAGES), "what to do, in this order; []: check everything, start nothing")
    model: ModelConf = field(default_factory=ModelConf)
    quantization: QuantizationConf = field(default_factory=QuantizationConf)
    lora: LoraConf = field(default_factory=LoraConf)
    data: DataConf = field(default_factory=DataConf)
    trainer: TrainerConf = field(default_factory=TrainerConf)
    merge: MergeConf = field(default_factory=MergeConf)
    benchmark: BenchmarkConf = field(default_factory=BenchmarkConf)
    generate: GenerateConf = field(default_factory=GenerateConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)
    sweep: SweepConf = field(default_factory=SweepConf)
