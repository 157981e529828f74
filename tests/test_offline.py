"""hydratune prefetch against a hub on this machine, then whole runs in processes for which any connection is forbidden."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import chat_rows
from local_hub import Hub, serving, silent

QUIZ = """
task: quiz
dataset_path: org/quiz
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""
# a process that finds this on its path is ended by its first look at a network
NO_NETWORK = """
import os, socket, sys

def forbidden(*asked, **more):
    print("NETWORK", asked, file=sys.stderr, flush=True)
    os._exit(99)

connect = socket.socket.connect
socket.socket.connect = lambda self, address: connect(self, address) if self.family == socket.AF_UNIX else forbidden(address)
socket.socket.connect_ex = socket.getaddrinfo = socket.gethostbyname = forbidden
"""
Call = Callable[..., subprocess.CompletedProcess[str]]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


QUESTIONS = [{"question": f"Is it {n}?", "choices": ["yes", "no"], "answer": n % 2} for n in range(6)]


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    with serving() as found:
        found.model("org/tiny", tiny)
        found.dataset("org/chats", {"README.md": b"chats", "train.jsonl": jsonl(chat_rows())})
        found.dataset("org/quiz", {"test.jsonl": jsonl(QUESTIONS)})
        yield found


@pytest.fixture
def call(hub: Hub, tmp_path: Path, environment: dict[str, str]) -> Call:
    """The command with the hub; offline=True: with a name for it that leads nowhere, and connections forbidden."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "quiz.yaml").write_text(QUIZ)
    (tmp_path / "forbidden").mkdir()
    (tmp_path / "forbidden" / "sitecustomize.py").write_text(NO_NETWORK)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)

    def called(*words: str, offline: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://hub.invalid" if offline else hub.endpoint}
        if offline:
            own["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "forbidden"), environment.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "hydratune", *words]
        env = {**environment, **own, **more}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return called


RUN = [
    "model=local", "model.name_or_path=org/tiny", "data=jsonl", "data.path=org/chats", "quantization=none",
    "trainer.max_steps=1", "benchmark.tasks=[quiz]", "benchmark.include_path=tasks",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_without_any_network_after_prefetch(call: Call, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    """At the commits that were prefetched, though main has moved, here and there; also a sweep."""
    before = {name: repository.main for name, repository in hub.repositories.items()}
    done = call("prefetch", *RUN)
    assert done.returncode == 0, done.stderr
    for line in ["model org/tiny …", "dataset org/chats of data.path …", "dataset org/quiz of task quiz …"]:
        assert line in done.stdout.splitlines()
    assert done.stdout.count("  fetched: commit ") == 3
    assert "These settings now need no network" in done.stdout
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "cache" / "prefetched").iterdir()]
    assert {f"{one['kind']}s/{one['id']}": one["commit"] for one in manifests} == before
    assert not (tmp_path / "runs").exists()
    hub.asked.clear()
    again = call("prefetch", *RUN)
    assert again.stdout.count("  was here: commit ") == 3
    assert " 0 B of them fetched now" in again.stdout
    assert not [path for path in hub.asked if path.endswith((".safetensors", ".jsonl"))]

    hub.dataset("org/chats", {"train.jsonl": jsonl(chat_rows()[:2])})
    hub.dataset("org/quiz", {"test.jsonl": jsonl(QUESTIONS[:2])})
    moved = "from datasets import load_dataset; load_dataset('org/chats'); load_dataset('org/quiz')"
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", moved], env=env, check=True, capture_output=True)
    (tmp_path / "hf" / "hub" / "models--org--tiny" / "refs" / "main").write_text("0" * 40)

    done = call(*RUN, "run_dir=run", offline=True)
    assert done.returncode == 0, done.stderr
    assert "prefetched: all 3 models and datasets that are needed here, so the hub is not asked" in done.stdout
    assert "24 rows" in done.stdout
    comparison = json.loads((tmp_path / "run" / "benchmark" / "comparison.json").read_text())
    assert {row["n"] for row in comparison} == {6}
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert not [commit for commit in before.values() if commit in saved]
    (identity,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-1/identity.json")
    assert before["models/org/tiny"] in identity.read_text()

    swept = call("-m", *RUN, "lora.r=4,8", "stages=[prepare,train]", offline=True)
    assert swept.returncode == 0, swept.stderr

    other = call(*RUN, "run_dir=other", "model.revision=v2", offline=True, HF_HUB_OFFLINE="1")
    assert other.returncode == 2
    assert "The model org/tiny at revision v2 is neither here nor in" in other.stderr


def test_without_prefetch_what_is_missing_is_one_sentence(call: Call, tmp_path: Path) -> None:
    done = call(*RUN, "run_dir=run", offline=True, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout.strip()) == (2, "")
    assert done.stderr.splitlines() == [
        f"hydratune: The model org/tiny, the dataset org/chats of data.path and the dataset org/quiz of task quiz are "
        f"neither here nor in {tmp_path / 'hf'}, and the hub can't be reached (HF_HUB_OFFLINE is set): type hydratune "
        "prefetch model=local model.name_or_path=org/tiny data=jsonl data.path=org/chats quantization=none "
        "trainer.max_steps=1 'benchmark.tasks=[quiz]' benchmark.include_path=tasks run_dir=run where there is a network."
    ]
    assert not (tmp_path / "run").exists()
    assert call(*RUN, offline=True).returncode == 99, (
        "without the flag the hub is looked for, and this test would see it"
    )


def test_a_hub_out_of_reach_is_found_out_once(call: Call) -> None:
    """A port of this machine where nobody listens, for the flags are not set."""
    done = call(*RUN, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "and the hub can't be reached: type hydratune prefetch model=local" in done.stderr


@pytest.mark.slow
def test_what_a_stage_does_not_load_is_not_asked_for(call: Call, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    """prepare reads no weights; the merged model alone reads nothing of the base."""
    done = call("prefetch", *RUN, "stages=[prepare]")
    assert done.returncode == 0, done.stderr
    assert not [path for path in hub.asked if path.endswith(".safetensors")]
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    prepared = call(*RUN, "run_dir=run", "stages=[prepare]", offline=True)
    assert prepared.returncode == 0, prepared.stderr
    trained = call(*RUN, "run_dir=run", "stages=[train]", offline=True, HF_HUB_OFFLINE="1")
    assert trained.returncode == 2
    assert trained.stderr.startswith("hydratune: The model org/tiny is neither here nor in ")
    assert len(trained.stderr.splitlines()) == 1

    local = [word if not word.startswith("model.name") else f"model.name_or_path={tiny}" for word in RUN]
    assert call("prefetch", *local).returncode == 0
    done = call(*local, "run_dir=merged", "lora=none", "stages=[prepare,train]", offline=True)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "merged" / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny), "org/gone"))
    only = ["run_dir=merged", "stages=[evaluate]", "benchmark.tasks=[quiz]", "benchmark.include_path=tasks"]
    done = call(*only, "benchmark.models=[merged]", offline=True)
    assert done.returncode == 0, done.stderr
    done = call(*only, "benchmark.models=[base]", offline=True, HF_HUB_OFFLINE="1")
    assert "The model org/gone is neither here nor in" in done.stderr


@pytest.mark.slow
def test_a_hub_that_never_answers_is_asked_once_for_all_jobs_of_a_sweep(call: Call, tmp_path: Path) -> None:
    assert call("prefetch", *RUN, "stages=[prepare]").returncode == 0
    for path in (tmp_path / "cache" / "prefetched").iterdir():
        path.unlink()
    (tmp_path / "hf" / ".agent_harnesses.json").unlink(missing_ok=True)  # of which huggingface_hub asks the hub too
    with silent() as (endpoint, connections):
        done = call("-m", *RUN, "stages=[prepare]", "data.shuffle_seed=1,2,3", HF_ENDPOINT=endpoint)
        assert done.returncode == 0, done.stderr
        assert len(connections) <= 2, "the harnesses, and the question"
    assert done.stdout.count("the hub can't be reached: all that is needed here is in its cache") == 1


def test_a_file_at_a_url_is_looked_for_before_anything_starts(call: Call, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    run = ["model=local", f"model.name_or_path={tiny}", *RUN[4:], "run_dir=run"]
    quiz = tmp_path / "tasks" / "quiz.yaml"

    def at(address: str) -> None:
        quiz.write_text(QUIZ.replace("org/quiz", f"json\ndataset_kwargs: {{data_files: {{test: '{address}'}}}}"))

    at("http://127.0.0.1:9/quiz.jsonl")
    done = call(*run, "data=demo")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hydratune: The json files of task quiz is neither here nor in ")
    assert "and 127.0.0.1:9 can't be reached: type hydratune prefetch" in line
    hub.files["/quiz.jsonl"] = jsonl(QUESTIONS)
    at(f"simplecache::{hub.endpoint}/quiz.jsonl")
    of_rows, of_task = call(*run, "data=jsonl", "data.path=https://host.invalid/a.jsonl").stderr.splitlines()
    assert of_rows.startswith("hydratune: data.path=https://host.invalid/a.jsonl is a URL, and rows are in files here")
    assert f"and datasets reads nothing through simplecache: write {hub.endpoint}/quiz.jsonl, of which" in of_task
    at(f"{hub.endpoint}/quiz.jsonl")
    done = call(*run, "data=demo", "stages=[]")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_the_hub_does_not_know_is_one_sentence_before_the_training(call: Call, hub: Hub) -> None:
    del hub.repositories["datasets/org/quiz"]
    done = call(*RUN)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "hydratune: The dataset org/quiz of task quiz is neither a folder here nor on the hub: correct"
    )


def test_a_run_that_needs_nothing_of_the_hub(call: Call, tiny: Path, rows: Path) -> None:
    done = call(
        "prefetch", "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", offline=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Nothing of this run is on the hub: there is nothing to fetch.\n"


def test_refusals(refused: Callable[..., str]) -> None:
    here = ["model=local", "model.name_or_path=org/tiny", "data=demo"]
    assert "HF_HUB_OFFLINE is set, and prefetch asks the hub" in refused("prefetch", *here)
    assert "prefetch takes one run's settings: leave -m and sweep= out" in refused(
        "prefetch", "-m", *here, "lora.r=4,8"
    )
    assert "hydratune prefetch takes the KEY=VALUE of a run, found 'org/tiny'" in refused("prefetch", "org/tiny")
    assert "lora.rnak" in refused("prefetch", *here, "lora.rnak=3")


def test_what_is_wrong_here_is_said_beside_what_is_not_here(refused: Callable[..., str]) -> None:
    said = refused(
        "model=local", "model.name_or_path=org/tiny", "data=jsonl", "data.path=gone.jsonl", "stages=[prepare]"
    )
    mine, of_hub = said.splitlines()
    assert mine == "hydratune: data.path=gone.jsonl: there is no such file."
    assert of_hub.startswith("hydratune: The model org/tiny is neither here nor in ")
