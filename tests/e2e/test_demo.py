"""The demo on the real model: it learns, what it leaves is plain, and shuffled labels teach nothing."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import hydratune

DEMO = Path(hydratune.__file__).parent / "demo"
pytestmark = pytest.mark.slow


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, HF_HUB_OFFLINE="1", HYDRATUNE_CACHE=str(folder / "cache"))
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    command(folder, "hydratune", "experiment=demo", "run_dir=run")
    return folder


def test_it_learns(demo: Path) -> None:
    rows = {row["model"]: row for row in json.loads((demo / "run/benchmark/comparison.json").read_text())}
    assert rows["base"]["n"] >= 100
    for name in ("adapter", "merged"):
        assert rows[name]["difference"] > 3 * rows[name]["difference_stderr"]
        assert rows[name]["verdict"] == "better"
    assert len((demo / "run/samples.jsonl").read_text().splitlines()) == 2
    assert len((demo / "run/train_log.jsonl").read_text().splitlines()) == 30


def test_the_merged_model_is_the_trained_one(demo: Path) -> None:
    assert json.loads((demo / "run/merge_report.json").read_text())["merge/kl"] < 1e-5


def test_a_second_run_skips_every_stage(demo: Path) -> None:
    said = command(demo, "hydratune", "experiment=demo", "run_dir=run").stdout
    for stage in ("prepare", "train", "merge", "evaluate", "generate"):
        assert f"{stage:9} done: already finished, skipped" in said


def test_plain_lm_eval_gives_the_tables_score(demo: Path) -> None:
    command(
        demo, "lm_eval", "--model", "hf", "--model_args", "pretrained=run/merged,dtype=float32", "--device", "cpu",
        "--tasks", "demo_category", "--include_path", str(DEMO), "--limit", "100", "--batch_size", "8",
        "--apply_chat_template", "--output_path", "plain",
    )  # fmt: skip
    (found,) = (demo / "plain").rglob("results_*.json")
    plain = json.loads(found.read_text())["results"]["demo_category"]["acc,none"]
    assert plain == json.loads((demo / "run/metrics.json").read_text())["merged/demo_category/acc"]


def test_shuffled_labels_teach_nothing(demo: Path) -> None:
    rows = [json.loads(line)["messages"] for line in (DEMO / "train.jsonl").read_text().splitlines()]
    answers = [row[-1] for row in rows]
    random.Random(0).shuffle(answers)
    lines = [json.dumps({"messages": [*row[:-1], answer]}) for row, answer in zip(rows, answers, strict=True)]
    (demo / "shuffled.jsonl").write_text("\n".join(lines) + "\n")
    command(
        demo, "hydratune", "experiment=demo", "run_dir=shuffled", "data.path=shuffled.jsonl",
        "stages=[prepare,train,evaluate]", "benchmark.models=[base,adapter]",
    )  # fmt: skip
    rows = {row["model"]: row for row in json.loads((demo / "shuffled/benchmark/comparison.json").read_text())}
    assert rows["adapter"]["n"] >= 100 and rows["adapter"]["verdict"] != "better"
