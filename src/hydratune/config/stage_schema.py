"""The types of the settings of stages that come after training; part of schema.py."""

from dataclasses import dataclass
from typing import Any

from hydratune.config.option import DTYPES, option


@dataclass
class MergeConf:
    """Which base the adapter is merged onto, and how the result is stored and proven."""

    base: str = option(
        "auto",
        "auto: dequantized where the adapter was trained on quantized weights, else original; measure: the lower KL",
        choices=("auto", "dequantized", "original", "measure"),
    )
    method: str = option(
        "stream", "stream: tensor by tensor; peft: the whole model in memory", choices=("stream", "peft")
    )
    dtype: str = option("auto", "of merged/; auto: the base checkpoint's own", choices=DTYPES)
    verify: bool = option(True, "compare the merged model with the one that was trained")
    # of the model with its weights rounded as the folder's, the merged one may never differ by more than 1e-4
    tolerance: float | None = option(
        None, "greatest mean KL divergence; null: 1e-4 for a float32 folder, else 2e-2", unit="nats", above=0
    )


@dataclass
class BenchmarkConf:
    """lm-eval tasks, run on base, adapter and merged model. Names are lm-eval's own."""

    tasks: list[str] = option([], "names of lm-eval tasks or groups, or of own_tasks")
    include_path: str | None = option(None, 'folder of task YAML files, or "demo"')
    own_tasks: dict[str, Any] = option({}, "tasks over your own rows: name -> {kind, path, and what the kind takes}")
    limit: int | None = option(None, "documents of each task; null: all", unit="documents", above=0)
    num_fewshot: int | None = option(None, "examples in the prompt; null: the task's own number", least=0)
    fewshot_as_multiturn: bool = option(True, "in a chat, each example is an exchange of its own")
    apply_chat_template: bool = option(True, "ask through the chat template, as in training")
    system_instruction: str | None = option(None, "text before each prompt; in a chat, the system message")
    gen_kwargs: dict[str, Any] = option({}, "of generative tasks, in place of the task's own, such as temperature")
    repeats: int = option(1, "samples of each generative task, with seeds of their own", above=0)
    seed: int = option(
        1234, "of few-shot examples and draws; not the run's, so that runs compare", least=0, below=2**32
    )
    batch_size: Any = option("auto", "requests at once; auto: as many as the memory holds")
    models: list[str] = option(["base", "adapter", "merged"], "which models are evaluated")
    confirm_run_unsafe_code: bool = option(False, "run tasks that execute what the model writes")


@dataclass
class GenerateConf:
    """Prompts for the tuned model."""

    prompts: list[str] = option([], "questions to the models")
    file: str | None = option(None, "further prompts, one a line, or .jsonl with a key prompt; -: standard input")
    models: list[str] = option(["base", "merged"], "which models answer: base, adapter, merged")
    batch_size: int = option(8, "prompts at once", unit="prompts", above=0)
    stream: bool = option(False, "show each token as it comes, one prompt at a time")
    apply_chat_template: bool = option(True, "ask through the chat template, as in training")
    max_new_tokens: int = option(64, "length of an answer", unit="tokens", above=0)
    do_sample: bool = option(False, "draw tokens; false: the likeliest each time")
    temperature: float = option(1.0, "divides the logits before drawing", above=0)
    top_k: int = option(50, "draw from this many likeliest tokens; 0: from all", unit="tokens", least=0)
    top_p: float = option(1.0, "draw from the likeliest tokens of this mass", unit="probability", above=0, most=1)
