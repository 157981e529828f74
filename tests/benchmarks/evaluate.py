"""Base and adapter on a multiple-choice and a generative task, beside two runs of lm_eval's command line."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from hydratune.build.sources import DEMO
from tests.benchmarks.measure import BIN, Sample, in_turn, prepared, rows, run

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{messages[0]['content']}}}}"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_target: "{{messages[1]['content']}}"
doc_to_choice: [animal, body, food, location, person, plant]
"""
TEXT = """\
output_type: generate_until
doc_to_target: "{{messages[1]['content']}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 64, do_sample: false}
metric_list: [{metric: exact_match, ignore_case: true, ignore_punctuation: true}]
"""
KINDS = {"choice": (CHOICE, 100), "text": (TEXT, 30)}  # task, its documents
MODELS = ("base", "adapter")
IMPORTS = "import hydratune.preflight, hydratune.stages.evaluate"
QUANTITIES = ["wall", "cpu", "anon"]


def table(work: Path) -> list[str]:
    """Rows of the table, and whether the scores are the same to the last digit."""
    tasks = work / "tasks"
    tasks.mkdir()
    lines = (DEMO / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for name, (kind, documents) in KINDS.items():
        held_out = tasks / f"{name}.jsonl"
        held_out.write_text("".join(lines[:documents]), encoding="utf-8")
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, rows=held_out) + kind)
    folder, cache = work / "evaluated", work / "cache"
    settings = [
        "quantization=none",
        "trainer.max_steps=8",
        "lora=all_linear",
        "trainer.learning_rate=1e-3",
        f"cache_dir={cache}",
    ]
    command, model = prepared(folder, *settings)
    run([*command, f"run_dir={folder}", "stages=[train]"], work)
    asked = [*command, f"run_dir={folder}", "stages=[evaluate]", f"benchmark.tasks=[{','.join(KINDS)}]"]
    asked += [f"benchmark.include_path={tasks}", "benchmark.models=[base,adapter]"]

    def ours(size: str) -> Sample:
        _forget(folder)
        shutil.rmtree(cache / "answers", ignore_errors=True)
        return run([*asked, f"benchmark.batch_size={size}"], work)

    other = _sum(_lm_eval(work, tasks, model, None), _lm_eval(work, tasks, model, folder / "adapter"))
    found, notes = [], []
    for size in ("8", "auto"):  # lm_eval's auto is for GPUs: on a CPU it would try 64 texts of the model's whole length
        pairs = [(ours(size), other)]
        what = f"base and adapter, 100 + 30 documents, batch_size={size}"
        found += [*rows(what, "`lm_eval`, twice, batch_size 8", pairs, QUANTITIES), _requests(what, pairs)]
        notes += [f"evaluate, batch_size={size}: scores of {name} {_apart(work, folder, name)}." for name in MODELS]

    def again(_: int) -> Sample:
        _forget(folder)
        return run(asked, work)

    pairs = in_turn(again, lambda _: run([sys.executable, "-c", IMPORTS], work), 3)
    return found + rows("the same once more, from the cache", "the imports alone", pairs, ["wall", "cpu"]) + notes


def _forget(folder: Path) -> None:
    shutil.rmtree(folder / "benchmark", ignore_errors=True)
    (folder / "receipts" / "evaluate.json").unlink(missing_ok=True)


def _lm_eval(work: Path, tasks: Path, model: str, adapter: Path | None) -> Sample:
    out = work / ("lm_eval-adapter" if adapter else "lm_eval-base")
    shutil.rmtree(out, ignore_errors=True)
    arguments = f"pretrained={model},dtype=float32,max_length=8192" + (f",peft={adapter}" if adapter else "")
    command = [str(BIN / "lm_eval"), "--model", "hf", "--model_args", arguments, "--tasks", ",".join(KINDS)]
    command += ["--include_path", str(tasks), "--apply_chat_template", "--batch_size", "8", "--device", "cpu"]
    return run([*command, "--seed", "1234", "--output_path", str(out), "--log_samples"], work)


def _sum(one: Sample, two: Sample) -> Sample:
    return Sample(one.wall + two.wall, one.cpu + two.cpu, max(one.anon, two.anon), float("nan"))


def _requests(what: str, pairs: list[tuple[Sample, Sample]]) -> str:
    """Requests of both models a CPU second, start-up and all."""
    count = 2 * (6 * KINDS["choice"][1] + KINDS["text"][1])
    (ours, other), *_ = pairs
    speeds = f"{count / ours.cpu:.1f} | {count / other.cpu:.1f} | {other.cpu / ours.cpu:.2f}"
    return f"| {what} | `lm_eval`, twice, batch_size 8 | requests a CPU s (more is better) | {speeds} | 1 |"


def _scores(results: Path) -> dict[str, Any]:
    found = json.loads(results.read_text(encoding="utf-8"))["results"]
    return {
        f"{task}/{name}": value for task, metrics in found.items() for name, value in metrics.items() if "," in name
    }


def _apart(work: Path, folder: Path, name: str) -> str:
    (theirs,) = (work / f"lm_eval-{name}").rglob("results_*.json")
    ours, other = _scores(folder / "benchmark" / f"{name}.json"), _scores(theirs)
    different = {key: (value, other.get(key)) for key, value in ours.items() if value != other.get(key)}
    return f"differ: {different}" if different else f"are lm_eval's to the last digit ({ours})"
