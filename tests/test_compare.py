"""`hydratune compare` through the command line, on run folders that are written by hand."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.samples_on_disk import task, write_model, write_receipts

Command = Callable[..., subprocess.CompletedProcess[str]]
BASE = [1.0, 0.0] * 20
BETTER = [1.0] * 36 + [0.0] * 4


@pytest.fixture
def compared(hydratune: Command, tmp_path: Path) -> Callable[..., list[str]]:
    """The lines that `hydratune compare` prints; it writes nothing."""

    def call(*words: str) -> list[str]:
        before = sorted(tmp_path.rglob("*"))
        done = hydratune("compare", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(tmp_path.rglob("*")) == before
        return done.stdout.splitlines()

    return call


def test_two_runs(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    for run, scores in (("a", BASE), ("b", BETTER)):
        write_model(tmp_path / "runs" / run, "base", {"nouns": task([0.0] * 40)})
        write_model(tmp_path / "runs" / run, "merged", {"nouns": task(scores)})
    assert compared("runs/a", "runs/b/") == [
        "task   metric  model  documents  value ± stderr  difference [95% interval]  verdict",
        "nouns  acc     a      40         0.500 ± 0.080",
        "               b      40         0.900 ± 0.048   +0.400 [+0.225, +0.575]    better",
        "difference from a at 5% (McNemar test); one comparison",
        "models: a is merged of runs/a; b is merged of runs/b",
    ]
    lines = compared("runs/b", "runs/a:base", "runs/a")
    assert [line.split()[-1] for line in lines[2:4]] == ["worse", "worse"]
    assert lines[4] == "difference from b at 5% (McNemar test); 2 comparisons, corrected for that (Holm): 2 worse"
    assert lines[5] == "models: b is merged of runs/b; a:base is base of runs/a; a:merged is merged of runs/a"


def test_one_run_against_its_own_base(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    write_model(tmp_path / "run", "base", {"nouns": task(BASE)})
    write_model(tmp_path / "run", "adapter", {"nouns": task(BETTER)})
    lines = compared("run")
    assert lines[2].split()[:2] == ["adapter", "40"] and lines[2].endswith("better")
    write_model(tmp_path / "run", "merged", {"nouns": task(BASE[::-1])})
    lines = compared("run")
    assert lines[2].split()[:2] == ["merged", "40"] and lines[2].endswith("not distinguishable")
    assert re.fullmatch(
        r"not distinguishable: the smallest difference that these documents can show is 0\.4\d\d of acc \(power 80%\)",
        lines[4],
    )


def test_runs_of_one_name_are_told_apart(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    for sweep in ("x", "y"):
        write_model(tmp_path / sweep / "0", "merged", {"nouns": task(BASE)})
    assert [line.split()[0] for line in compared("x/0", "y/0")[1:3]] == ["nouns", "y/0"]


def test_tasks_that_not_all_have_are_named(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    write_model(tmp_path / "a", "merged", {"nouns": task(BASE), "verbs": task(BASE)})
    write_model(tmp_path / "b", "merged", {"adverbs": task(BASE), "nouns": task(BASE)})
    lines = compared("a", "b")
    assert lines[-1] == "left out, as not all have them: verbs, adverbs"
    assert not any(line.startswith("verbs") for line in lines)


def test_samplings_and_what_is_not_compared_are_told(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    for run, scores in (("a", BASE), ("b", BETTER)):
        for seed in (None, 1, 2):
            turned = scores if seed is None else scores[seed:] + scores[:seed]
            answers = [[str(score)] for score in turned]
            sums = task(turned, "exact_match", output_type="generate_until", answers=answers)
            write_model(tmp_path / run, "merged", {"sums": sums}, seed=seed)
        bleu = task([["x", "y"]] * 40, "bleu", "bleu", 12.5)
        sums = task(scores, "exact_match", output_type="generate_until", answers=[[str(score)] for score in scores])
        write_model(tmp_path / run, "merged", {"sums": sums, "translations": bleu})
    lines = compared("a", "b")
    assert (
        "sums exact_match, a: 3 samplings; between seeds ± 0.000, between documents ± 0.027; all answers the same for 0% "
        "of the documents, two answers for 33%"
    ) in lines
    assert "not compared: translations bleu (bleu takes more of a document than a number)" in lines
    assert any(line.endswith("not compared") for line in lines)


def test_many_tasks_stay_readable(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    names = [f"leaderboard_bbh_tracking_shuffled_objects_number_{k}" for k in range(57)]
    for run, scores in (("demo-0123abcd", BASE), ("demo-4567cdef", BETTER)):
        tasks = {name: task(scores, "exact_match", filter="strict-match") for name in names}
        write_model(tmp_path / run, "merged", tasks)
    lines = compared("demo-0123abcd", "demo-4567cdef")
    table = lines[: 1 + 2 * 57]
    assert max(map(len, table)) <= 142 and all(names[k][-4:] in table[1 + 2 * k] for k in range(57))
    assert lines[115].endswith("57 comparisons, corrected for that (Holm): 57 better")


def mistakes() -> list[Any]:
    chat = "{{ messages }}"
    return [
        pytest.param({}, {"data": "others"}, {}, "a:merged has other documents (40) than b:merged (40): evaluate both on the same data.", id="documents"),
        pytest.param({}, {"shots": 5}, {}, "benchmark.num_fewshot=0.", id="num_fewshot"),
        pytest.param({}, {}, {"chat_template": None}, "benchmark.apply_chat_template=true.", id="apply_chat_template"),
        pytest.param(
            {}, {}, {"system_instruction": "Be short."}, "benchmark.system_instruction=null.", id="system_instruction"
        ),
        pytest.param({"shots": 2}, {"shots": 2}, {"fewshot_as_multiturn": False, "chat_template": chat},
                     "benchmark.fewshot_as_multiturn=true.", id="fewshot_as_multiturn"),
        pytest.param({"shots": 2}, {"shots": 2, "prompts": "others"}, {"config": {"fewshot_seed": 7}},
                     "a:merged was asked with benchmark.seed=42, b:merged with 7: type hydratune run_dir=b 'stages=[evaluate]' "
                     "benchmark.seed=42.", id="seed"),
        pytest.param({}, {"version": 2}, {}, "a:merged had version 1 of the task, b:merged version 2: evaluate both with "
                     "the same lm-eval.", id="version"),
        pytest.param({}, {"config": {"doc_to_text": "Q: {{question}}"}}, {},
                     "a:merged and b:merged had the task with other prompts or scoring: evaluate both with the same task "
                     "file.", id="task"),
        pytest.param({"output_type": "generate_until"}, {"output_type": "generate_until"},
                     {"config": {"gen_kwargs": {"temperature": 0.5}}}, "benchmark.gen_kwargs=null.", id="gen_kwargs"),
        pytest.param({}, {"prompts": "of another day"}, {},
                     "a:merged and b:merged got other prompts under the same settings (code of the task has changed, or the "
                     "chat template writes the date): remove a/receipts/evaluate.json and b/receipts/evaluate.json, and type "
                     "hydratune run_dir=a 'stages=[evaluate]' and hydratune run_dir=b 'stages=[evaluate]' on one day.",
                     id="prompts"),
    ]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "settings", "said"), mistakes())
def test_other_questions_are_refused(
    first: dict[str, Any], second: dict[str, Any], settings: dict[str, Any], said: str, refused: Callable[..., str],
    tmp_path: Path,
) -> None:  # fmt: skip
    write_model(tmp_path / "a", "merged", {"nouns": task(BASE, **first)})
    write_model(tmp_path / "b", "merged", {"nouns": task(BASE, **second)}, **settings)
    (line,) = refused("compare", "a", "b").splitlines()
    assert line.startswith("hydratune: nouns: a:merged ") and line.endswith(said)


def test_what_decides_no_question_may_differ(compared: Callable[..., list[str]], tmp_path: Path) -> None:
    """Where the file lay, where functions lay in memory, the seed of examples that are the same, a limit beyond all."""
    for run, address, seed, limit in (("a", "0x7f12", 1, None), ("b", "0x55ab", 2, 500)):
        config = {"process_docs": f"<function prepare at {address}>"}
        one = task(BASE, shots=3, config=config)
        write_model(tmp_path / run, "merged", {"nouns": one}, config={"fewshot_seed": seed, "limit": limit})
    assert compared("a", "b")[2].endswith("not distinguishable")


@pytest.mark.parametrize(
    "other",
    [{"chat_template": "{{ messages | tojson }}"}, {"tokenizer_eos_token": ["<|im_end|>", "2"]}],
    ids=["template", "its tokens"],
)
def test_models_with_chat_templates_of_their_own_are_compared_and_that_is_said(
    other: dict[str, Any], compared: Callable[..., list[str]], tmp_path: Path
) -> None:
    write_model(tmp_path / "a", "merged", {"nouns": task(BASE)}, tokenizer_eos_token=["</s>", "2"])
    settings = {"tokenizer_eos_token": ["</s>", "2"]} | other
    write_model(tmp_path / "b", "merged", {"nouns": task(BETTER, prompts="of b")}, **settings)
    lines = compared("a", "b")
    assert lines[2].endswith("better")
    assert lines[-1] == "chat templates: each model was asked through its own, and a's is not that of b"
    # the same texts are the same prompts, whatever made them
    write_model(tmp_path / "b", "merged", {"nouns": task(BETTER)}, **settings)
    assert not any(line.startswith("chat templates") for line in compared("a", "b"))


def test_a_model_that_was_made_again_is_refused(
    refused: Callable[..., str], compared: Callable[..., list[str]], tmp_path: Path
) -> None:
    for run in ("a", "b"):
        for model, scores in (("base", BASE), ("adapter", BASE), ("merged", BETTER)):
            write_model(tmp_path / run, model, {"nouns": task(scores)})
    made, again = tmp_path / "b/receipts", "type hydratune run_dir=b 'stages=[evaluate]'"
    (made / "merge.json").write_text('{"stage": "merge", "status": "done", "seconds": 2}')
    assert refused("compare", "a", "b") == (
        f"hydratune: Stage merge of b was done again after merged was evaluated: {again}.\n"
    )
    compared("a:adapter", "b:adapter", "b:base")
    (made / "train.json").unlink()
    assert refused("compare", "b:adapter", "a").startswith("hydratune: Stage train of b was done again")
    assert compared("a:base", "b:base")[2].endswith("not distinguishable")
    write_receipts(tmp_path / "b", models=("base", "adapter"))
    assert refused("compare", "a", "b") == (
        "hydratune: The last evaluation of b left merged out, so its older results may be of another one: "
        f"{again} 'benchmark.models=[base,adapter,merged]'.\n"
    )
    unfinished = f"hydratune: The last evaluation of b did not end: {again}.\n"
    write_receipts(tmp_path / "b", status="skipped: benchmark=none")
    assert refused("compare", "a", "b") == unfinished
    (made / "evaluate.json").unlink()
    assert refused("compare", "a", "b:base") == unfinished


def test_refusals_say_what_to_type(refused: Callable[..., str], tmp_path: Path) -> None:
    for run, name, scores, limit in (
        ("a", "nouns", BASE, None),
        ("b", "nouns", BASE[:10], 10),
        ("c", "verbs", BASE, None),
    ):
        write_model(tmp_path / run, "merged", {name: task(scores)}, config={"limit": limit})
    (tmp_path / "new").mkdir()
    everything = "'stages=[evaluate]' 'benchmark.models=[base,adapter,merged]'"
    for words, said in {
        (): "compare takes folders of runs: hydratune compare RUN RUN ..., also RUN:base or RUN:adapter.",
        ("a", "gone"): "gone: there is no folder gone; type hydratune compare RUN RUN ..., with folders of runs.",
        ("a", "lora.r=4"): "lora.r=4: there is no folder lora.r=4; type hydratune compare RUN RUN ..., with folders of runs.",
        ("a", "new"): "new has no benchmark results: type hydratune run_dir=new 'stages=[evaluate]' benchmark=quick.",
        ("a",): f"a has results of merged alone: name another run, or type hydratune run_dir=a {everything}.",
        ("a:base", "b"): f"a:base: a has results of merged, none of base: type hydratune run_dir=a {everything}.",
        ("a", "./a"): "A model is named twice: name each run once, or as RUN:base, RUN:adapter, RUN:merged.",
        ("a", "b"): "nouns: a:merged was asked with benchmark.limit=null, b:merged with 10: type hydratune run_dir=b "
        "'stages=[evaluate]' benchmark.limit=null.",
        ("a", "c"): "There is no task in common (a:merged has nouns; c:merged has verbs): type hydratune run_dir=c "
        "'stages=[evaluate]' 'benchmark.tasks=[nouns]'.",
        ("a", "b", "-m"): "-m has no use here: type hydratune compare RUN RUN ...",
    }.items():  # fmt: skip
        assert refused("compare", *words) == f"hydratune: {said}\n"
    for file in (tmp_path / "a/benchmark/merged").glob("samples_*"):
        file.unlink()
    assert refused("compare", "a", "b") == (
        "hydratune: The samples of task nouns are missing in a/benchmark/merged: type hydratune run_dir=a "
        "'stages=[evaluate]'.\n"
    )
    (tmp_path / "a/benchmark/merged.json").write_text('{"half')
    assert refused("compare", "a", "b") == (
        "hydratune: a/benchmark/merged.json holds no results of lm-eval: type hydratune run_dir=a 'stages=[evaluate]'.\n"
    )


def test_a_folder_of_tasks_is_typed_again(refused: Callable[..., str], tmp_path: Path) -> None:
    """A saved file may not name it by itself, as files in it may name code."""
    for run, folder, limit in (("a", "tasks of a", None), ("b", "tasks of b", 10), ("c", None, None)):
        tasks = {"verbs" if run == "c" else "nouns": task(BASE[:limit])}
        write_model(tmp_path / run, "merged", tasks, config={"limit": limit})
        if folder:
            (tmp_path / run / "config.yaml").write_text(f"benchmark:\n  include_path: /x/{folder}\n")
    for words, typed in {
        ("a", "b"): "run_dir=b 'stages=[evaluate]' benchmark.limit=null 'benchmark.include_path=/x/tasks of b'",
        (
            "b",
        ): "run_dir=b 'stages=[evaluate]' 'benchmark.models=[base,adapter,merged]' 'benchmark.include_path=/x/tasks of b'",
        ("a", "c"): "run_dir=c 'stages=[evaluate]' 'benchmark.tasks=[nouns]' 'benchmark.include_path=/x/tasks of a'",
    }.items():
        assert refused("compare", *words).endswith(f"type hydratune {typed}.\n")
    write_receipts(tmp_path / "b", status="failed")
    assert refused("compare", "a", "b").endswith(
        "type hydratune run_dir=b 'stages=[evaluate]' 'benchmark.include_path=/x/tasks of b'.\n"
    )


def test_it_is_light(tmp_path: Path, environment: dict[str, str]) -> None:
    for run in ("a", "b"):
        write_model(tmp_path / run, "merged", {"nouns": task(BASE)})
    code = (
        "import sys; from hydratune.main import main\n"
        "sys.argv = ['hydratune', 'compare', 'a', 'b']\nmain()\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'lm_eval', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")
