"""The evaluate stage through the command line: lm-eval's own scores, each question asked once, nothing lost."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from lm_eval.utils import get_results_filenames, get_sample_results_filenames, make_table
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from warm import run_warm

from hydratune.build.content import folder_digest
from hydratune.build.sources import DEMO
from tests.conftest import chat_rows

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
DOCUMENTS = 12
# seven choices, an answer, a likelihood and a whole text of each document; the likelihood is that of a choice
QUESTIONS = DOCUMENTS * (7 + 1 + 1)
COMMON = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, train: {demo}/train.jsonl}}}}
test_split: test
fewshot_split: train
output_type: {kind}
"""
ASKED = "doc_to_text: \"{{messages[0]['content']}}\"\ndoc_to_target: \"{{messages[1]['content']}}\"\n"
KINDS = {
    "multiple_choice": ASKED + "doc_to_choice: [animal, body, food, location, person, plant, 'some kind of food']\n",
    "generate_until": ASKED
    + "generation_kwargs: {until: ['\\n', '.'], max_gen_toks: 12, do_sample: false}\n"
    + "metric_list: [{metric: exact_match}, {metric: bleu}]\n",
    "loglikelihood": ASKED + "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "loglikelihood_rolling": "doc_to_text: ''\ndoc_to_target: \"{{messages[0]['content']}}\"\n"
    + "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n",
}
PERPLEXITIES = ("word_perplexity", "byte_perplexity", "bits_per_byte", "perplexity")
NAMES = {kind: f"try_{kind}" for kind in KINDS}
ALL = ",".join(NAMES.values())


def environment(folder: Path, cache: str = "cache") -> dict[str, str]:
    return {
        **os.environ, "HYDRATUNE_CACHE": str(folder / cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "datasets"),
    }  # fmt: skip


def call(folder: Path, *arguments: str, cache: str = "cache", status: int = 0) -> str:
    done = run_warm(arguments, folder, environment(folder, cache))
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with four task files and a trained run, on a tokenizer that begins each text with BOS."""
    folder = tmp_path_factory.mktemp("evaluate")
    model = folder / "model"
    shutil.copytree(tiny, model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(model / "tokenizer.json"))
    tasks = folder / "tasks"
    tasks.mkdir()
    lines = (DEMO / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tasks / "test.jsonl").write_text("".join(lines[:DOCUMENTS]), encoding="utf-8")
    for kind, text in KINDS.items():
        (tasks / f"{kind}.yaml").write_text(COMMON.format(name=NAMES[kind], folder=tasks, demo=DEMO, kind=kind) + text)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows()))
    call(
        folder, "model=local", f"model.name_or_path={model}", "data=jsonl", "data.path=rows.jsonl", "run_dir=run",
        "trainer.max_steps=20", "trainer.learning_rate=2e-2", "lora=all_linear", "quantization=none",
        "stages=[prepare,train,merge]",
        "trainer.per_device_train_batch_size=8",
    )  # fmt: skip
    return folder


def evaluated(folder: Path, *settings: str, run: str = "run", cache: str = "cache") -> str:
    given = [f"run_dir={run}", "stages=[evaluate]", "benchmark.include_path=tasks", f"benchmark.tasks=[{ALL}]"]
    typed = {word.partition("=")[0] for word in settings}
    return call(folder, *(word for word in given if word.partition("=")[0] not in typed), *settings, cache=cache)


def copied(trained: Path, name: str) -> str:
    """Another run of the same model, adapter and merged model."""
    shutil.rmtree(trained / name, ignore_errors=True)
    shutil.copytree(trained / "run", trained / name, ignore=shutil.ignore_patterns("benchmark", "evaluate.json"))
    return name


def results(folder: Path, name: str, run: str = "run") -> dict[str, Any]:
    return dict(json.loads((folder / run / "benchmark" / f"{name}.json").read_text()))


def answers(folder: Path, name: str, run: str = "run") -> dict[str, list[Any]]:
    """Task -> what the model answered to each document."""
    found = {}
    for path in sorted((folder / run / "benchmark" / name).glob("samples_*.jsonl")):
        task = re.fullmatch(r"samples_(\w+)_\d.*", path.stem)
        assert task
        found[task[1]] = [json.loads(line)["resps"] for line in path.read_text().splitlines()]
    return found


def counts(said: str, name: str) -> tuple[int, int]:
    """How many questions a model was asked, and how many of them were answered before."""
    found = re.search(rf"  {name} +([\d,]+) questions, ([\d,]+) of them answered before", said)
    assert found, said
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


def scores(of: dict[str, Any]) -> dict[str, Any]:
    """Each score of lm-eval's results; standard errors but those that are drawn, of which it draws more."""
    drawn = ("perplexity_stderr", "bleu_stderr")
    return {
        f"{task}/{name}": value
        if isinstance(value, str) or not name.startswith(PERPLEXITIES)
        else pytest.approx(value, rel=1e-5)
        for task, metrics in of["results"].items()
        for name, value in metrics.items()
        if "," in name and not name.startswith(drawn)
    }


def lm_eval(trained: Path, name: str, tasks: str, include: Path, *options: str) -> Path:
    """The folder that lm-eval's own command writes, asking the base or adapter `name`."""
    out = trained / "theirs" / name
    shutil.rmtree(out, ignore_errors=True)
    peft = f",peft={trained / 'run/adapter'}" if name == "adapter" else ""
    command = [
        str(BIN / "lm_eval"), "--model", "hf", "--model_args", f"pretrained={trained / 'model'},dtype=float32{peft}",
        "--tasks", tasks, "--include_path", str(include), "--device", "cpu", "--seed", "1234", "--output_path", str(out),
        *options,
    ]  # fmt: skip
    quick = {**environment(trained), "DISABLE_MULTIPROC": "1"}
    # only what is in `include`: reading the 14,000 of its own takes longer than asking
    code = f"""
import sys
from functools import partial
from lm_eval import defaults, tasks
from lm_eval.__main__ import cli_evaluate
sys.argv = {command!r}
tasks.TaskManager = partial(tasks.TaskManager, include_defaults=False)
cli_evaluate()
"""
    done = subprocess.run([sys.executable, "-c", code], env=quick, capture_output=True, text=True, cwd=trained)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("few", [0, 2])
def test_scores_are_those_of_the_lm_eval_command(trained: Path, chat: bool, few: int) -> None:
    run = copied(trained, "compared")
    settings = (f"benchmark.apply_chat_template={chat}", f"benchmark.num_fewshot={few}", "benchmark.batch_size=3")
    evaluated(trained, *settings, "benchmark.models=[base,adapter]", run=run)
    for name in ("base", "adapter"):
        options = ["--num_fewshot", str(few), "--batch_size", "3", *(["--apply_chat_template"] if chat else [])]
        (theirs,) = lm_eval(trained, name, ALL, trained / "tasks", *options).rglob("results_*.json")
        ours, other = results(trained, name, run), json.loads(theirs.read_text())
        assert len(scores(ours)) >= 12
        assert scores(ours) == {key: getattr(value, "expected", value) for key, value in scores(other).items()}
        assert ours["n-shot"] == other["n-shot"] == dict.fromkeys(NAMES.values(), few)


def test_a_tasks_max_length_counts_prompt_and_answer(trained: Path) -> None:
    """Whatever the batches, as lm-eval's command has it where it asks one prompt at a time."""
    folder, name = trained / "tasks-whole", "try_whole"
    folder.mkdir()
    text = COMMON.format(name=name, folder=trained / "tasks", demo=DEMO, kind="generate_until") + ASKED
    options = "generation_kwargs: {until: ['never written'], max_gen_toks: 300, max_length: 230, do_sample: false}\n"
    (folder / "whole.yaml").write_text(text + options + "metric_list: [{metric: exact_match}]\n")
    run = copied(trained, "whole-length")
    settings = [f"benchmark.include_path={folder.name}", f"benchmark.tasks=[{name}]", "benchmark.models=[base]"]
    evaluated(trained, *settings, run=run)
    out = lm_eval(trained, "base", name, folder, "--batch_size", "1", "--apply_chat_template", "--log_samples")
    (theirs,) = out.rglob("samples_*.jsonl")
    samples = map(json.loads, theirs.read_text().splitlines())
    found = answers(trained, "base", run)[name]
    assert found == [one["resps"] for one in sorted(samples, key=lambda one: one["doc_id"])]
    assert len({len(one[0][0]) for one in found}) > 1, "a longer prompt leaves less for its answer"
    whole = (folder / "whole.yaml").read_text()
    for wrong in ("20", "600"):
        (folder / "whole.yaml").write_text(whole.replace("max_length: 230", f"max_length: {wrong}"))
        said = call(trained, f"run_dir={run}", "stages=[evaluate]", *settings, status=1)
        assert f"A task has max_length={wrong} for a prompt and its answer" in said and "Traceback" not in said


def test_settings_that_extra_changes_are_the_models_own(trained: Path) -> None:
    said = call(
        trained, "model=local", f"model.name_or_path={trained / 'model'}", "run_dir=short", "stages=[evaluate]",
        "benchmark.include_path=tasks", f"benchmark.tasks=[{NAMES['loglikelihood']}]", "benchmark.models=[base]",
        "+model.extra.max_position_embeddings=32",
    )  # fmt: skip
    assert re.search(r"\d+ prompts are longer than the 32 tokens that the model takes: cut", said), said
    assert results(trained, "base", "short")["max_length"] == 32


def test_code_in_subfolders_decides_what_a_model_answers(tmp_path: Path) -> None:
    model, found = tmp_path / "model", set()
    for name in ("modeling.py", "layers/attention.py", "norms/attention.py"):
        for text in ("one", "two"):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text(text)
            found.add(folder_digest(model, tmp_path / "cache"))
    assert len(found) == 6


def test_base_and_adapter_in_one_load_answer_as_each_alone(trained: Path) -> None:
    run = copied(trained, "together")
    evaluated(trained, run=run, cache="together-cache")
    for name in ("base", "adapter"):
        alone = copied(trained, f"alone-{name}")
        evaluated(trained, f"benchmark.models=[{name}]", run=alone, cache=f"alone-{name}-cache")
        assert answers(trained, name, alone) == answers(trained, name, run)
    assert answers(trained, "base", run) != answers(trained, "adapter", run)


def test_no_question_is_asked_twice(trained: Path) -> None:
    first = evaluated(trained, run=copied(trained, "first"), cache="once")
    asked = {name: counts(first, name) for name in ("base", "adapter", "merged")}
    assert asked["base"] == (QUESTIONS, 0)
    again = evaluated(trained, run=copied(trained, "second"), cache="once")
    assert all(counts(again, name) == (count, count) for name, (count, _) in asked.items())
    assert answers(trained, "base", "second") == answers(trained, "base", "first")
    assert results(trained, "merged", "second")["results"] == results(trained, "merged", "first")["results"]
    # of a model with other weights nothing is known
    other = copied(trained, "other")
    adapter = trained / other / "adapter/adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-3] ^= 1
    adapter.write_bytes(content)
    said = evaluated(trained, "benchmark.models=[base,adapter]", run=other, cache="once")
    assert counts(said, "base") == (QUESTIONS, QUESTIONS) and counts(said, "adapter") == (QUESTIONS, 0)


def test_a_higher_limit_asks_only_what_is_new(trained: Path) -> None:
    run, task = copied(trained, "limits"), f"benchmark.tasks=[{NAMES['multiple_choice']}]"
    settings = (task, "benchmark.models=[base]")
    assert counts(evaluated(trained, *settings, "benchmark.limit=4", run=run, cache="limits"), "base") == (28, 0)
    assert counts(evaluated(trained, *settings, "benchmark.limit=9", run=run, cache="limits"), "base") == (63, 28)
    assert results(trained, "base", run)["n-samples"][NAMES["multiple_choice"]]["effective"] == 9


KILLED_AFTER_FIVE = """
import os, signal
from hydratune.build.answers import Answers
from hydratune.main import main
add, added = Answers.add, []
def counted(self, found):
    add(self, found)
    added.extend(found)
    if len(added) >= 5:
        os.kill(os.getpid(), signal.SIGKILL)
Answers.add = counted
main()
"""


def test_an_evaluation_that_was_killed_goes_on(trained: Path) -> None:
    """And ends with the same answers to the last bit."""
    whole, cut = copied(trained, "whole"), copied(trained, "cut")
    settings = ["benchmark.models=[base,adapter]", "benchmark.batch_size=1"]
    evaluated(trained, *settings, run=whole, cache="whole-cache")
    command = [
        sys.executable, "-c", KILLED_AFTER_FIVE, f"run_dir={cut}", "stages=[evaluate]", "benchmark.include_path=tasks",
        f"benchmark.tasks=[{ALL}]", *settings,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=trained, env=environment(trained, "cut-cache"), stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (trained / cut / "benchmark/base.json").exists()
    for path in (trained / "cut-cache" / "answers").rglob("*.jsonl"):  # a kill may cut a line as it is written
        path.write_bytes(path.read_bytes() + b'["0123')
    asked, before = counts(evaluated(trained, *settings, run=cut, cache="cut-cache"), "base")
    assert 5 <= before < asked
    for name in ("base", "adapter"):
        assert answers(trained, name, cut) == answers(trained, name, whole)


def test_two_runs_at_once_share_the_work(trained: Path) -> None:
    runs = [copied(trained, "one"), copied(trained, "two")]
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "hydratune", f"run_dir={run}", "stages=[evaluate]", "benchmark.include_path=tasks",
                f"benchmark.tasks=[{ALL}]", "benchmark.models=[base]", "benchmark.batch_size=1",
            ],
            cwd=trained, env=environment(trained, "both-cache"), stdout=subprocess.PIPE, text=True,
        )
        for run in runs
    ]  # fmt: skip
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    (asked, before), (also, rest) = (counts(one, "base") for one in said)
    assert asked == also == QUESTIONS
    assert before + rest == asked, "a question was asked by both, or by none"
    assert answers(trained, "base", "one") == answers(trained, "base", "two")


def test_results_of_a_model_that_was_merged_again_are_not_compared(trained: Path) -> None:
    run = copied(trained, "merged-again")
    evaluated(trained, f"benchmark.tasks=[{NAMES['loglikelihood']}]", run=run)
    assert f"merged is merged of {run}" in call(trained, "compare", run)
    call(trained, f"run_dir={run}", "stages=[merge]", "merge.dtype=bfloat16", "trust=true")
    said = call(trained, "compare", run, status=2)
    again = f"hydratune run_dir={run} 'stages=[evaluate]' benchmark.include_path={trained / 'tasks'}"
    assert said == f"hydratune: Stage merge of {run} was done again after merged was evaluated: type {again}.\n"
    call(trained, *shlex.split(again)[1:])
    assert f"merged is merged of {run}" in call(trained, "compare", run)


def test_several_samplings(trained: Path) -> None:
    run, task = copied(trained, "seeds"), NAMES["generate_until"]
    settings = (
        f"benchmark.tasks=[{task},{NAMES['multiple_choice']}]",
        "benchmark.models=[base]",
        "benchmark.repeats=3",
    )
    evaluated(trained, *settings, run=run, cache="seeds-cache")
    folder = trained / run / "benchmark/base"
    each = [answers(trained, "base", run)[task]]
    for number in (1, 2):
        (path,) = (folder / f"seeds/{number}").glob("samples_*.jsonl")
        assert task in path.name
        each.append([json.loads(line)["resps"] for line in path.read_text().splitlines()])
        (found,) = (folder / f"seeds/{number}").glob("results_*.json")
        assert json.loads(found.read_text())["config"]["gen_kwargs"] == {"do_sample": True, "temperature": 1.0}
    assert each[0] != each[1] != each[2] != each[0]
    again = copied(trained, "seeds-again")
    evaluated(trained, *settings, run=again, cache="seeds-other-cache")
    assert answers(trained, "base", again)[task] == each[0], "the same seed draws the same"
    other = copied(trained, "seeds-other")
    evaluated(trained, *settings, "+benchmark.gen_kwargs.temperature=0.5", run=other, cache="seeds-cache")
    assert answers(trained, "base", other)[task] != each[0]


def test_what_is_written_is_read_by_lm_evals_own_tools(trained: Path) -> None:
    run = copied(trained, "read")
    evaluated(trained, "benchmark.models=[base]", run=run)
    files = [str(path) for path in (trained / run / "benchmark/base").iterdir()]
    (found,) = get_results_filenames(files)
    assert json.loads(Path(found).read_text()) == results(trained, "base", run)
    assert NAMES["multiple_choice"] in make_table(json.loads(Path(found).read_text()))
    samples = get_sample_results_filenames(files)
    assert len(samples) == len(KINDS)
    for path in samples:
        assert len(load_dataset("json", data_files=path, cache_dir=str(trained / "read"), split="train")) == DOCUMENTS
    written = results(trained, "base", run)["config"]
    assert written["prompt_as_trained"] is True and written["fewshot_seed"] == 1234


def test_a_prompt_with_two_bos_is_refused(trained: Path) -> None:
    run = copied(trained, "doubled")
    for place in (trained / "model/chat_template.jinja", trained / run / "adapter/chat_template.jinja"):
        before = place.read_text()
        place.write_text("{{ bos_token }}{{ bos_token }}" + before)
    said = call(
        trained, f"run_dir={run}", "stages=[evaluate]", "benchmark.include_path=tasks", f"benchmark.tasks=[{ALL}]",
        "benchmark.models=[base]", status=1,
    )  # fmt: skip
    (trained / "model/chat_template.jinja").write_text(before)
    assert "Prompts of this evaluation begin with two <s>" in said and "Traceback" not in said


def test_a_template_that_refuses_the_system_message(trained: Path) -> None:
    run = copied(trained, "no-system")
    template = trained / run / "adapter/chat_template.jinja"
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    template.write_text(refuses + template.read_text())
    said = call(
        trained, f"run_dir={run}", "stages=[evaluate]", "benchmark.include_path=tasks", f"benchmark.tasks=[{ALL}]",
        "benchmark.models=[base]", "benchmark.system_instruction=Be brief.", status=1,
    )  # fmt: skip
    assert "The chat template refuses a prompt of this task (system, user, …): no system here." in said
    assert "Traceback" not in said
