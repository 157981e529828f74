"""Preparing chat rows, cold and from the cache, beside SFTTrainer's own preparation of the same rows."""

import json
import os
import sys
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.measure import HYDRATUNE, Sample, in_turn, prepared, rows, run

ROWS, FEW = 100_000, 10_000
REPETITIONS = 3
PLAIN = """\
import sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

folder, data = sys.argv[1:]
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(folder),
    args=SFTConfig(
        output_dir="out", use_cpu=True, bf16=False, report_to="none", max_length=160, completion_only_loss=True
    ),
    train_dataset=Dataset.from_json(data),
    processing_class=AutoTokenizer.from_pretrained(folder),
)
print(len(trainer.train_dataset), "rows")
"""


def table(work: Path) -> list[str]:
    """Rows of the table."""
    from hydratune.build.sources import DEMO

    _, source = prepared(work / "converted")
    folder = work / "model"  # the real tokenizer, and a model of no size, since both load one that they don't use
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **small)).save_pretrained(folder)
    shipped = [json.loads(line)["messages"] for line in (DEMO / "train.jsonl").read_text().splitlines()]
    for count in (ROWS, FEW):
        with (work / f"{count}.jsonl").open("w") as file:
            for number in range(count):
                question, answer = shipped[number % len(shipped)]
                asked = {**question, "content": f"{number}. {question['content']}"}  # no two rows are the same
                file.write(json.dumps({"prompt": [asked], "completion": [answer]}) + "\n")
    (work / "plain.py").write_text(PLAIN)

    def ours(name: str, count: int) -> Sample:
        os.environ["HYDRATUNE_CACHE"] = str(work / "cache" / name)
        settings = ["model=local", f"model.name_or_path={folder}", f"data.path={work / f'{count}.jsonl'}"]
        return run([HYDRATUNE, "data", "1", *settings, "trainer.max_length=160"], work)

    def plain(name: str, count: int) -> Sample:
        os.environ["HF_DATASETS_CACHE"] = str(work / "datasets" / name)
        return run([sys.executable, "plain.py", str(folder), str(work / f"{count}.jsonl")], work)

    kept = os.environ["HYDRATUNE_CACHE"]
    cold = in_turn(lambda n: ours(f"{ROWS}-{n}", ROWS), lambda n: plain(f"{ROWS}-{n}", ROWS), REPETITIONS)
    warm = in_turn(lambda n: ours(f"{ROWS}-{n}", ROWS), lambda n: plain(f"{ROWS}-{n}", ROWS), REPETITIONS)
    few = in_turn(lambda n: ours(f"{FEW}-{n}", FEW), lambda n: plain(f"{FEW}-{n}", FEW), REPETITIONS)
    os.environ["HYDRATUNE_CACHE"] = kept
    quantities = ["wall", "cpu", "anon"]
    speeds = [
        (ROWS - FEW) / (min(pair[which].wall for pair in cold) - min(pair[which].wall for pair in few))
        for which in (0, 1)
    ]
    return [
        *rows(f"{ROWS} rows, cold, in all", "SFTTrainer", cold, quantities),
        *rows(f"{ROWS} rows, from the cache", "SFTTrainer, from its cache", warm, quantities),
        *rows(f"{FEW} rows, cold, in all", "SFTTrainer", few, quantities),
        f"data: {speeds[0]:.0f} rows/s beside {speeds[1]:.0f} ({speeds[0] / speeds[1]:.2f} times as many), by the "
        f"difference of {ROWS} and {FEW} rows, which leaves the start-up out; one process each.",
    ]
