"""hydratune generate: prompts from the command line, a file and standard input; batches, streams, ends of answers."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from transformers import AutoTokenizer
from warm import run_warm

from hydratune.build.endings import ends_of, stop_token

pytestmark = pytest.mark.slow


def call(folder: Path, *arguments: str, typed: str | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ, "HYDRATUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = run_warm(arguments, folder, env, typed or "")
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    from tests.conftest import chat_rows

    folder = tmp_path_factory.mktemp("generate")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows()))
    call(
        folder, "model=local", f"model.name_or_path={tiny}", "data=jsonl", "data.path=rows.jsonl", "run_dir=run",
        "quantization=nf4", "trainer.max_steps=30", "trainer.learning_rate=2e-2", "stages=[prepare,train,merge]",
        "trainer.per_device_train_batch_size=8", "merge.dtype=float32",
    )  # fmt: skip
    return folder


def samples(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "run/samples.jsonl").read_text().splitlines()]


def test_prompts_as_words(trained: Path) -> None:
    odd = 'What\'s \\ {x: [1,2]} or ${seed} = "it"?'
    done = call(trained, "generate", "run_dir=run", "What is fern?", odd, "generate.max_new_tokens=5")
    rows = samples(trained)
    assert [row["prompt"] for row in rows] == ["What is fern?", odd]
    assert list(rows[0]) == ["prompt", "base", "merged"]
    assert f"  What is fern?\n    base:   {rows[0]['base']}" in done.stdout
    again = call(trained, "generate", "run_dir=run", "What is fern?", odd, "generate.max_new_tokens=5")
    assert "already finished, skipped" in again.stdout and rows[1]["merged"] in again.stdout


def test_adapter_and_merged_say_the_same(trained: Path) -> None:
    call(
        trained, "generate", "run_dir=run", "What is otter number 3?", "What is fern?", "And river?",
        "generate.models=[base,adapter,merged]", "generate.max_new_tokens=12",
    )  # fmt: skip
    rows = samples(trained)
    assert all(row["adapter"] == row["merged"] for row in rows)
    assert any(row["base"] != row["merged"] for row in rows)


def test_batches_change_no_answer(trained: Path) -> None:
    prompts = ["What is fern?", "And?", "What is otter number 3, and what is a violin to a teacher in a harbour?"]
    typed = "\n".join(prompts) + "\n"
    found = []
    for size in (1, 3):
        call(
            trained, "generate", "run_dir=run", f"generate.batch_size={size}", "generate.max_new_tokens=8", typed=typed
        )
        found.append(samples(trained))
    assert found[0] == found[1] and [row["prompt"] for row in found[0]] == prompts


def test_a_file_and_a_stream(trained: Path) -> None:
    (trained / "prompts.jsonl").write_text('{"prompt": "What is fern?"}\n\n{"prompt": "two\\nlines?"}\n')
    done = call(
        trained, "generate", "run_dir=run", "generate.file=prompts.jsonl", "generate.stream=true",
        "generate.models=[merged]", "generate.max_new_tokens=6",
    )  # fmt: skip
    rows = samples(trained)
    assert [row["prompt"] for row in rows] == ["What is fern?", "two\nlines?"]
    assert rows[0]["merged"] in done.stdout


def test_an_answer_ends_where_training_ended_it(trained: Path) -> None:
    """The end of a turn was supervised, so a well-trained model stops by itself."""
    call(trained, "generate", "run_dir=run", "What is otter number 0?", "generate.max_new_tokens=60")
    (row,) = samples(trained)
    assert "</s>" not in row["merged"]


def moved(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run whose base is gone."""
    run = shutil.copytree(trained / "run", tmp_path / "run")
    text = (run / "config.yaml").read_text()
    base = yaml.safe_load(text)["model"]["name_or_path"]
    (run / "config.yaml").write_text(text.replace(base, str(tmp_path / "gone")))
    return run


def test_the_merged_model_needs_no_base(trained: Path, tmp_path: Path) -> None:
    moved(trained, tmp_path)
    asked = ["generate", "run_dir=run", "What is fern?", "generate.max_new_tokens=5"]
    call(trained, *asked)
    call(tmp_path, *asked, "generate.models=[merged]")
    assert samples(tmp_path)[0]["merged"] == samples(trained)[0]["merged"]
    assert (
        "gone" in call(tmp_path, *asked, "generate.models=[base]", status=2).stderr
    )  # the control: of the base there is nothing to ask


def test_without_prompts_the_configurations_are_asked(trained: Path, tmp_path: Path) -> None:
    """Schedulers start commands with an empty standard input."""
    run = moved(trained, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["generate"] |= {"prompts": ["What is fern?"], "models": ["merged"], "max_new_tokens": 5}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    call(tmp_path, "generate", "run_dir=run")
    assert [row["prompt"] for row in samples(tmp_path)] == ["What is fern?"]
    call(tmp_path, "generate", "run_dir=run", typed="And river?\n")
    assert [row["prompt"] for row in samples(tmp_path)] == ["And river?"]


def test_the_likeliest_token_whatever_the_model_prefers(trained: Path, tmp_path: Path) -> None:
    """do_sample=false: a penalty in the model's generation_config.json changes no answer."""
    run = moved(trained, tmp_path)
    path = run / "merged/generation_config.json"
    own = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3, "do_sample": True, "temperature": 9.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    asked = ["generate", "run_dir=run", "What is otter number 3?", "What is fern?", "generate.max_new_tokens=20"]
    call(trained, *asked)
    call(tmp_path, *asked, "generate.models=[merged]")
    assert [row["merged"] for row in samples(tmp_path)] == [row["merged"] for row in samples(trained)]


def test_an_answer_ends_where_the_template_ends_a_turn(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    assert ends_of(model, stop_token(tokenizer)) == [2]
    tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "unk_token")
    assert ends_of(model, stop_token(tokenizer), 5) == [0, 2, 5]
    tokenizer.chat_template = None
    assert ends_of(model, stop_token(tokenizer)) == [2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate.file=gone.txt"], "generate.file=gone.txt: there is no such file."),
        (["generate.file=empty.txt"], "empty.txt holds no prompt."),
        (["generate.file=bad.jsonl"], "bad.jsonl, line 2 must be an object with a text under prompt"),
        (
            ["hello", "generate.models=[bse]"],
            "generate.models takes base, adapter, merged, found 'bse' (did you mean base?)",
        ),
        (["hello", "generate.batch_size=0"], "generate.batch_size is a whole number above 0, found 0"),
        (["hello", "generate.top_p=0.5"], "generate.top_p=0.5 has no effect with generate.do_sample=false"),
        (["generate.prompts=[]"], "nothing to do: generate.prompts is empty, and generate.file names none"),
        (["generate.file=-"], "generate.file=- holds no prompt."),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, trained: Path) -> None:
    (trained / "empty.txt").write_text("\n\n")
    (trained / "bad.jsonl").write_text('{"prompt": "x"}\n{"question": "y"}\n')
    before = (trained / "run/samples.jsonl").read_bytes() if (trained / "run/samples.jsonl").is_file() else b""
    done = call(trained, "generate", "run_dir=run", *arguments, status=2)
    assert said in done.stderr and "Traceback" not in done.stderr
    if before:
        assert (trained / "run/samples.jsonl").read_bytes() == before
