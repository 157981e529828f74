"""A sweep is checked whole before its first job starts; then each job is a run of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from warm import Place


@pytest.fixture
def base(tiny: Path, rows: Path) -> list[str]:
    return [
        "-m", "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "trainer.max_steps=2", "hydra.sweep.dir=sweep",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["lora.r=8,many"], ["hydratune: lora.r=8,many: lora.r is a whole number, found 'many'."]),
        (["lora.rnak=8,16"], ["hydratune: lora.rnak=8,16: there is no key lora.rnak (did you mean lora.r?)."]),
        (
            ["lora=attention,non"],
            ["hydratune: lora=attention,non: lora has no option 'non' (did you mean none?): it has "],
        ),
        (
            ["lora=all_linear,none", "lora.r=4,16"],
            ["hydratune: job 2 (lora=none lora.r=4): lora.r=4 has no effect with lora=none."],
        ),
        (
            ["trainer.max_steps=0,5", "seed=1,2", "generate.top_p=0.5"],
            [
                "hydratune: job 0 (trainer.max_steps=0 seed=1) and 1 more of 4: trainer.max_steps is above 0, or -1 for",
                "hydratune: every job: generate.top_p=0.5 has no effect with generate.do_sample=false.",
            ],
        ),
        (
            ["run_dir=x", "seed=1,2"],
            ["hydratune: run_dir=x: run_dir is one folder for all jobs: leave it out, or set hydra.sweep.dir."],
        ),
        (
            ["stages=[train],[prepare,train]"],
            ["hydratune: job 0 (stages=[train]): train needs prepare: set stages=[prepare,train]."],
        ),
        (
            ["seed=interval(1,2)"],
            ["hydratune: seed=interval(1,2): a grid takes values one by one: set seed=VALUE,VALUE."],
        ),
    ],
)
def test_mistakes_of_the_configuration(typed: list[str], said: list[str], base: list[str], refused) -> None:
    text = refused(*base, *typed)
    assert all(line in text for line in said), text


def test_a_secret_can_not_reach_the_jobs(base: list[str], refused: Callable[..., str]) -> None:
    said = refused(*base, "seed=1,2", "+model.extra.token=hf_mine")
    assert "every job: a secret can't reach the jobs of a sweep: leave it to the environment" in said
    assert "hf_mine" not in said


@pytest.mark.slow
def test_a_mapping_is_merged_as_in_a_single_run(place: Place) -> None:
    (place.folder / "conf/experiment").mkdir(parents=True)
    (place.folder / "conf/experiment/x.yaml").write_text(
        "# @package _global_\n# x: hydratune experiment=x\ntrainer:\n  extra:\n    adam_beta2: 0.95\n"
    )
    done = place.call(
        "-m", "hydra.sweep.dir=sweep", "--config-dir", "conf", "experiment=x", "++trainer.extra={adam_beta1:0.8}",
        "seed=1,2", "stages=[prepare]",
    )  # fmt: skip
    assert done.returncode == 0, done.said
    for number in (0, 1):
        config = yaml.safe_load((place.folder / f"sweep/{number}/config.yaml").read_text())
        assert config["trainer"]["extra"] == {"adam_beta1": 0.8, "adam_beta2": 0.95}


def test_mistakes_that_the_libraries_know(base: list[str], refused: Callable[..., str]) -> None:
    text = refused(*base, "lora.target_modules=[q_proj],[q_prj]", "seed=1,2", "data.path=gone.jsonl")
    assert "job 2 (lora.target_modules=[q_prj] seed=1) and 1 more of 4: lora.target_modules names 'q_prj'" in text
    assert "every job: data.path=gone.jsonl: there is no such file." in text


@pytest.mark.slow
def test_a_dry_run(place: Place) -> None:
    before = sorted(place.folder.rglob("*"))
    done = place.call("-m", "hydra.sweep.dir=sweep", "lora.r=4,8", "trainer.learning_rate=1e-3,1e-4", "stages=[]")
    assert done.returncode == 0, done.said
    assert done.stdout.splitlines() == [
        "job  settings                               run directory",
        "0    lora.r=4 trainer.learning_rate=0.001   sweep/0",
        "1    lora.r=4 trainer.learning_rate=0.0001  sweep/1",
        "2    lora.r=8 trainer.learning_rate=0.001   sweep/2",
        "3    lora.r=8 trainer.learning_rate=0.0001  sweep/3",
        "each job: the cores of this machine, 1 at a time",
        "4 jobs checked: nothing stands in the way, and stages=[] starts nothing",
    ]
    assert sorted(place.folder.rglob("*")) == before


@pytest.mark.slow
def test_a_job_is_a_run_of_its_own(place: Place) -> None:
    typed = ["-m", "hydra.sweep.dir=sweep", "data.validation_share=0.2,0.3", "lora.r=4"]
    done = place.call(*typed)
    assert done.returncode == 0, done.said
    config = yaml.safe_load((place.folder / "sweep/1/config.yaml").read_text())
    assert (config["data"]["validation_share"], config["lora"]["r"], config["run_dir"]) == (0.3, 4, "sweep/1")
    assert json.loads((place.folder / "sweep/1/adapter/adapter_config.json").read_text())["r"] == 4
    words = yaml.safe_load((place.folder / "sweep/1/.hydra/overrides.yaml").read_text())
    assert "lora.r=4" in words and "data.validation_share=0.3" in words
    more = place.call(*typed, "stages=[prepare,train,merge,generate]", "generate.prompts=[hello]")
    assert more.returncode == 0, more.said
    assert more.stdout.count("train     done: already finished, skipped") == 2
    assert (place.folder / "sweep/1/samples.jsonl").is_file()  # what may change on a run reaches a job that is there
    words = ["run_dir=sweep/1", "stages=[prepare,train]", "trust=true"]
    single = place.warm.call(*words, folder=place.folder, HYDRATUNE_CACHE=str(place.folder / "cache"))
    assert single.returncode == 0 and "train     done: already finished, skipped" in single.stdout, single.said


@pytest.mark.slow
def test_a_job_sees_the_libraries_and_not_the_working_directory(
    base: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "datasets.py").write_text("raise RuntimeError('shadowed')")
    typed = [*base[:-1], "hydra.sweep.dir='my sweep (1)'", "name='a,b'", "seed=1", "stages=[prepare]"]
    from_a_shell = [str(Path(sys.executable).with_name("hydratune")), *typed, "hydra.launcher.start_method=spawn"]
    done = subprocess.run(from_a_shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "my sweep (1)/0/receipts/prepare.json").is_file()
