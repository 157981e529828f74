"""The evaluate stage asks as training did, ends answers where it did, and says what it can't count."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stages.test_evaluate import COMMON, KINDS, answers, call, results
from transformers import AutoTokenizer

from hydratune.build.adapter import switches_off
from hydratune.build.sources import DEMO
from hydratune.build.statistics import FEWEST, paired
from hydratune.build.units import read_units

pytestmark = pytest.mark.slow
# a turn ends with a token that the model names nowhere
TEMPLATE = (
    "{{ tone }}"
    "{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}"
    "{{ '<unk>' if turn['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKS = ["benchmark.include_path=tasks", "benchmark.tasks=[try]", "stages=[evaluate]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run that has learnt its template, whose file has been edited since."""
    folder = tmp_path_factory.mktemp("as_trained")
    shutil.copytree(tiny, folder / "model")
    (folder / "tasks").mkdir()
    rows = (DEMO / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "tasks/test.jsonl").write_text("".join(rows[:8]), encoding="utf-8")
    text = (
        COMMON.format(name="try", folder=folder / "tasks", demo=DEMO, kind="generate_until") + KINDS["generate_until"]
    )
    text = text.replace("do_sample: false", "do_sample: false, temperature: 0.0").replace(
        "metric: bleu", "metric: chrf"
    )
    (folder / "tasks/try.yaml").write_text(text)
    asked = [json.loads(row)["messages"][0] for row in rows[8:32]]
    learnt = [{"messages": [turn, {"role": "assistant", "content": "f"}]} for turn in asked]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in learnt))
    template = folder / "mine.jinja"
    template.write_text(TEMPLATE)
    call(
        folder, "model=local", f"model.name_or_path={folder}/model", f"model.chat_template={template}", "+model.chat_template_kwargs.tone=Dry.", "data=jsonl",
        "data.path=rows.jsonl", "run_dir=run", "trainer.max_steps=60", "trainer.learning_rate=1e-2", "lora.modules_to_save=[lm_head]", "lora=all_linear",
        "quantization=none", "stages=[prepare,train,merge]", "trainer.per_device_train_batch_size=8",
    )  # fmt: skip
    template.write_text(TEMPLATE.replace("[", "<").replace("<'", "['"))
    return folder


def test_adapter_and_base_are_asked_and_end_as_in_training(trained: Path) -> None:
    call(trained, "run_dir=run", *ASKS)
    default = "{%- if tone is not defined %}{%- set tone = 'Dry.' %}{%- endif %}\n"
    for name in ("base", "adapter", "merged"):
        assert results(trained, name)["chat_template"] == default + TEMPLATE, name
    for name in ("adapter", "merged"):  # what others serve
        tokenizer = AutoTokenizer.from_pretrained(trained / "run" / name)
        assert tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False) == "Dry.[user] \n"
    for name in ("adapter", "merged"):
        assert answers(trained, name)["try"] == [[["f"]]] * 8, name


def test_rows_that_have_changed_are_asked_again(trained: Path) -> None:
    rows = trained / "tasks/test.jsonl"
    text = (
        COMMON.format(name="far", folder=trained / "elsewhere", demo=DEMO, kind="generate_until")
        + KINDS["generate_until"]
    )
    (trained / "elsewhere").mkdir()
    (trained / "tasks/far.yaml").write_text(text)
    far = trained / "elsewhere/test.jsonl"
    far.write_text(rows.read_text())
    typed = [
        "run_dir=run",
        "stages=[evaluate]",
        "benchmark.include_path=tasks",
        "benchmark.tasks=[far]",
        "benchmark.models=[base]",
    ]
    call(trained, *typed)
    assert "already finished, skipped" in call(trained, *typed)
    far.write_text("".join(rows.read_text().splitlines(keepends=True)[:5]))
    assert "already finished" not in call(trained, *typed)
    assert results(trained, "base")["n-samples"]["far"]["effective"] == 5


def test_answers_are_drawn_from_a_task_that_says_greedily(trained: Path) -> None:
    call(trained, "run_dir=run", *ASKS, "benchmark.models=[base]", "+benchmark.gen_kwargs.do_sample=true")
    assert results(trained, "base")["configs"]["try"]["generation_kwargs"]["temperature"] == 1.0


def test_the_score_of_several_samplings_is_their_mean(trained: Path) -> None:
    call(trained, "run_dir=run", *ASKS, "benchmark.models=[base]", "benchmark.repeats=3")
    folder = trained / "run/benchmark/base"
    files = [folder.parent / "base.json", *folder.glob("seeds/*/results_*.json")]
    each = [json.loads(path.read_text())["results"]["try"]["chrf,none"] for path in files]
    assert len(each) == 3 and len({*each}) > 1
    metrics = json.loads((trained / "run/metrics.json").read_text())
    assert metrics["base/try/chrf"] == pytest.approx(np.mean(each))
    units = read_units(trained / "run/benchmark/documents.npz", "base/try/exact_match")
    assert not isinstance(units, str) and units.values.mean() == pytest.approx(metrics["base/try/exact_match"])


def test_prompts_that_were_cut_are_told_of_answers_from_the_cache(trained: Path) -> None:
    short = [
        "model=local", f"model.name_or_path={trained}/model", *ASKS, "benchmark.models=[base]", "run_dir=short",
        "+model.extra.max_position_embeddings=48",
    ]  # fmt: skip
    said = re.search(r"\d+ prompts are longer than the 48 tokens", call(trained, *short))
    shutil.rmtree(trained / "short")
    again = call(trained, *short)
    assert said and said[0] in again and "8 questions, 8 of them answered before" in again
    assert results(trained, "base", "short")["config"]["prompts_cut"] == 8


def test_a_model_whose_logits_are_no_numbers(trained: Path) -> None:
    shutil.copytree(trained / "model", trained / "damaged")
    weights = load_file(trained / "damaged/model.safetensors")
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, trained / "damaged/model.safetensors", {"format": "pt"})
    text = COMMON.format(name="chosen", folder=trained / "tasks", demo=DEMO, kind="multiple_choice")
    (trained / "tasks/chosen.yaml").write_text(text + KINDS["multiple_choice"])
    said = call(
        trained, "model=local", f"model.name_or_path={trained}/damaged", "stages=[evaluate]", "run_dir=no_numbers",
        "benchmark.include_path=tasks", "benchmark.tasks=[chosen]", "benchmark.models=[base]", status=1,
    )  # fmt: skip
    assert "The model's logits are no numbers in torch.float32" in said and "Traceback" not in said


def test_more_examples_than_a_task_has_written(trained: Path) -> None:
    text = (
        (trained / "tasks/try.yaml").read_text().replace("task: try", "task: few").replace("fewshot_split: train\n", "")
    )
    rows = json.dumps([json.loads(line) for line in (trained / "rows.jsonl").read_text().splitlines()[:2]])
    (trained / "tasks/few.yaml").write_text(f"{text}fewshot_config: {{sampler: first_n, samples: {rows}}}\n")
    typed = ["run_dir=run", "stages=[evaluate]", "benchmark.include_path=tasks", "benchmark.tasks=[few]"]
    said = call(trained, *typed, "benchmark.num_fewshot=3", status=2)
    assert (
        "benchmark.num_fewshot=3 is more than the 2 examples that tasks of benchmark.tasks have (few): set "
        "benchmark.num_fewshot=2, or a smaller one."
    ) in said


def test_examples_that_are_equal_count_once(trained: Path) -> None:
    (trained / "twice.jsonl").write_text(
        '{"prompt": "a", "completion": " b"}\n' * 3 + '{"prompt": "c", "completion": " d"}\n'
    )
    typed = [
        "model=local",
        f"model.name_or_path={trained}/model",
        "run_dir=own",
        "stages=[evaluate]",
        "benchmark.tasks=[own]",
    ]
    typed += ["benchmark.models=[base]", "benchmark.num_fewshot=2"]
    own = f"++benchmark.own_tasks.own={{path: {trained}/twice.jsonl, fewshot_path: {trained}/twice.jsonl, kind: generate_until}}"
    assert "is asked for 2 few-shot examples, and there are 1 rows for them" in call(trained, *typed, own, status=2)


def test_an_adapter_with_more_layers_is_no_base(tmp_path: Path) -> None:
    save_file({"base_model.model.model.layers.0.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    for replicated, found in ((None, True), ([[0, 2], [0, 2]], False)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"bias": "none", "layer_replication": replicated}))
        assert switches_off(tmp_path) == found


def test_few_documents_that_differ_can_show_no_small_difference() -> None:
    """As of 0/1 metrics: at least six must differ, here each by a half."""
    base, other = np.zeros(100), np.zeros(100)
    other[:3] = 0.5
    found = paired(base, other, None, "mean", 1).detectable
    draws = np.random.default_rng(0).binomial(100, (found or 0) / 0.5, 20_000)
    assert 0.79 < (draws >= FEWEST).mean() < 0.82
