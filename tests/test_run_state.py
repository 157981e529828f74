"""A run directory tells the truth: what has changed is done again, what is at work is alone, what is shown is there."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from warm import run_warm

pytestmark = pytest.mark.slow
Run = subprocess.CompletedProcess[str]


class Place:
    """A folder with rows, a cache and runs in it."""

    def __init__(self, folder: Path, tiny: Path, rows: Path) -> None:
        self.folder = folder
        self.env = {
            **os.environ, "HYDRATUNE_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        shutil.copy(rows, folder / "rows.jsonl")
        self.typed = [
            "model=local", f"model.name_or_path={tiny}", "data=jsonl", "data.path=rows.jsonl", "quantization=none",
            "trainer.max_steps=3", "generate.prompts=[What is fern?]", "generate.max_new_tokens=3", "run_dir=run",
        ]  # fmt: skip

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hydratune", *arguments]

    def call(self, *arguments: str, status: int = 0, cwd: Path | None = None) -> Run:
        done = run_warm(arguments, cwd or self.folder, self.env)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def receipt(self, stage: str) -> Path:
        return self.folder / "run" / "receipts" / f"{stage}.json"

    def tell(self, stage: str) -> dict:
        return json.loads(self.receipt(stage).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Place:
    from tests.conftest import chat_rows

    folder = tmp_path_factory.mktemp("state")
    (folder / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows()))
    place = Place(folder, tiny, folder / "source.jsonl")
    place.call(*place.typed)
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path, tiny: Path) -> Place:
    """A copy of the finished run, and a cache of its own."""
    copy = Place(tmp_path, tiny, finished.folder / "source.jsonl")
    for name in ("run", "cache"):
        shutil.copytree(finished.folder / name, tmp_path / name)
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(saved.read_text().replace(str(finished.folder), str(tmp_path)))
    prepare = copy.tell("prepare")
    prepare["key"] = json.loads(json.dumps(prepare["key"]).replace(str(finished.folder), str(tmp_path)))
    before = finished.receipt("prepare").read_bytes()
    copy.receipt("prepare").write_text(json.dumps(prepare))
    _relink(copy, before)
    return copy


def _relink(place: Place, _before: bytes) -> None:
    """Receipts name the digests of those before them, and the copy's prepare has another path in it."""
    from hydratune.run.layout import RunDir
    from hydratune.run.receipt import digest

    run = RunDir(place.folder / "run")
    for stage in ("train", "merge", "evaluate", "generate"):
        told = place.tell(stage)
        told["inputs"] = {need: digest(run, need) for need in told["inputs"]}
        place.receipt(stage).write_text(json.dumps(told))


def stages_done(said: str) -> dict[str, str]:
    """Stage -> what was said of it last."""
    found = {}
    for line in said.splitlines():
        stage, _, words = line.partition(" ")
        if stage in ("prepare", "train", "merge", "evaluate", "generate"):
            found[stage] = words.strip()
    return found


def test_nothing_is_done_twice(place: Place) -> None:
    said = stages_done(place.call(*place.typed).stdout)
    assert {said[stage] for stage in ("prepare", "train", "merge", "generate")} == {"done: already finished, skipped"}


def test_what_follows_a_redone_stage_is_redone(place: Place) -> None:
    merged = place.folder / "run/merged/model.safetensors"
    before = merged.stat().st_mtime_ns
    place.receipt("train").unlink()
    shutil.rmtree(place.folder / "run/checkpoints")
    shutil.rmtree(place.folder / "run/adapter")
    said = stages_done(place.call("run_dir=run").stdout)
    assert said["prepare"] == "done: already finished, skipped"
    assert all(said[stage].startswith("done in") for stage in ("train", "merge", "generate"))
    assert merged.stat().st_mtime_ns != before


def test_a_stage_whose_files_are_gone_is_redone(place: Place) -> None:
    shutil.rmtree(place.folder / "run/merged")
    refused = place.call("run_dir=run", "stages=[generate]", status=2)
    assert refused.stderr == "hydratune: generate needs merge: set stages=[merge,generate].\n"
    said = stages_done(place.call("run_dir=run").stdout)
    assert said["train"] == "done: already finished, skipped"
    assert said["merge"].startswith("done in") and said["generate"].startswith("done in")
    assert (place.folder / "run/merged/model.safetensors").is_file()


def test_a_receipt_that_is_no_receipt_counts_as_none(place: Place) -> None:
    place.receipt("generate").write_text('{"stage": "gen')
    said = stages_done(place.call("run_dir=run").stdout)
    assert said["merge"] == "done: already finished, skipped" and said["generate"].startswith("done in")


def test_a_stage_that_is_stopped_has_no_receipt(place: Place) -> None:
    process = subprocess.Popen(
        place.command("run_dir=run", "generate.prompts=[And river?]", "stages=[generate]"),
        cwd=place.folder, env=place.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.startswith("generate"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not place.receipt("generate").exists()


def test_rows_that_change_after_prepare_change_no_training(place: Place) -> None:
    shutil.rmtree(place.folder / "run/checkpoints")
    adapter = load_file(place.folder / "run/adapter/adapter_model.safetensors")
    place.receipt("train").unlink()
    rows = place.folder / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:3]))
    place.call("run_dir=run", "stages=[train]")
    again = load_file(place.folder / "run/adapter/adapter_model.safetensors")
    assert all((again[name] == tensor).all() for name, tensor in adapter.items())
    assert place.tell("prepare")["metrics"]["prepare/rows"] == 24
    # and where the cache has lost the tokens too, it is said instead of trained on
    shutil.rmtree(place.folder / "cache/tokens")
    shutil.rmtree(place.folder / "run/checkpoints")
    place.receipt("train").unlink()
    said = place.call("run_dir=run", "stages=[train]", status=1).stderr
    assert "rows.jsonl is not what it was when this run prepared its tokens" in said and "Traceback" not in said


def test_a_run_is_opened_from_another_folder(place: Place) -> None:
    (place.folder / "elsewhere").mkdir()
    place.receipt("prepare").unlink()
    shutil.rmtree(place.folder / "cache")
    said = place.call("run_dir=../run", "stages=[prepare,train]", cwd=place.folder / "elsewhere").stdout
    assert stages_done(said)["prepare"].startswith("done in")


def test_two_processes_never_share_a_run_directory(place: Place) -> None:
    typed = [*place.typed[:-1], "run_dir=shared", "trainer.max_steps=5000", "stages=[prepare,train]"]
    first = subprocess.Popen(place.command(*typed), cwd=place.folder, env=place.env, stdout=subprocess.DEVNULL)
    log = place.folder / "shared/train_log.jsonl"
    deadline = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    said = place.call(*typed, status=1).stderr
    assert f"process {first.pid}) is at work in" in said and "Traceback" not in said
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 75
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_the_bar_on_a_terminal(place: Place) -> None:
    """Each state overwrites the one before, none is wider than the terminal, and what follows has a line of its own."""
    ours, theirs = pty.openpty()
    typed = [
        *place.typed[:-1], "run_dir=bar", "trainer.max_steps=7", "trainer.logging_steps=2", "stages=[prepare,train]"
    ]  # fmt: skip
    process = subprocess.Popen(
        place.command(*typed), cwd=place.folder, env={**place.env, "COLUMNS": "60"}, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's word for the end
            break
        if not chunk:
            break
        said += chunk
    assert process.wait(timeout=60) == 0
    text = said.decode()
    states = [state for state in text.split("\r\x1b[2K")[1:]]
    assert len(states) == 3  # steps 2, 4 and 6
    assert all(len(state.splitlines()[0]) < 60 for state in states)
    assert "step 6/7" in states[-1].splitlines()[0]
    assert states[-1].splitlines()[1].startswith("train     done in")
    assert "Warning" not in text
