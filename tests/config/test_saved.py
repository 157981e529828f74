"""A run's saved configuration as a base: what is taken from it, what is refused, and what it never does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydratune.config.load import config_hash, saved_form, to_config
from hydratune.config.schema import Config, DataConf, LoraConf, ModelConf
from hydratune.config.secrets import redacted_override

Refused = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, tiny: Path, rows: Path) -> Path:
    """The folder of a run that has been trained, as far as its receipts say."""
    config = Config(
        model=ModelConf(name_or_path=str(tiny)), data=DataConf(path=str(rows)), lora=LoraConf(kind="lora"), seed=7
    )
    return saved_run(tmp_path / "run", saved_form(config))


def saved_run(root: Path, plain: dict[str, Any]) -> Path:
    (root / "receipts").mkdir(parents=True)
    (root / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    for stage in ("prepare", "train"):
        receipt = {"stage": stage, "status": "done", "key": None, "metrics": {}, "inputs": {}, "outputs": {}}
        (root / "receipts" / f"{stage}.json").write_text(json.dumps(receipt))
    return root


def change(run: Path, key: str, value: Any) -> None:
    plain = yaml.safe_load((run / "config.yaml").read_text())
    *holders, name = key.split(".")
    node = plain
    for holder in holders:
        node = node[holder]
    node[name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def explained(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", "explain", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_run_starts_from_another(run: Path, environment: dict[str, str], tmp_path: Path) -> None:
    said = explained(tmp_path, environment, "seed", "lora", "run_dir", "--from", "run", "lora=attention", "lora.r=4")
    assert "seed = 7\n" in said and "from run/config.yaml:2\n" in said
    assert "lora.r = 4\n" in said and "  from lora.r=4\n  over run/config.yaml" not in said
    assert "lora.target_modules = [q_proj, k_proj, v_proj, o_proj]\n" in said
    assert "run_dir = runs/run-" in said  # a folder of its own


def test_what_is_typed_stands_over_the_saved_value(run: Path, environment: dict[str, str], tmp_path: Path) -> None:
    said = explained(tmp_path, environment, "lora.r", "--from=run", "lora.r=4")
    place = next(n for n, line in enumerate((run / "config.yaml").read_text().splitlines(), 1) if line == "  r: 16")
    assert f"  from lora.r=4\n  over run/config.yaml:{place}\n" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from"], "--from needs a run's folder: hydratune --from runs/RUN KEY=VALUE ..."),
        (["--from", "gone"], "gone holds no run: there is no gone/config.yaml."),
        (["--from", "run", "experiment=demo"], "experiment= and --from are two beginnings"),
        (["--from", "run", "-m", "seed=1,2"], "--from begins one run, and a sweep many"),
        (["--from", "run", "sweep=seeds"], "--from begins one run, and a sweep many"),
        (["--from", "run", "--cfg", "job"], "type hydratune explain KEY --from run"),
        (["--from", "run", "lora.r=0"], "lora.r=0: lora.r is a whole number above 0, found 0."),
        (
            ["run_dir=run", "seed=8"],
            "seed is 7 in run/config.yaml and 8 here: this run was trained with other settings",
        ),
        (["run_dir=run", "lora.rnak=8"], "lora.rnak=8: there is no key lora.rnak (did you mean lora.r?)."),
    ],
)
def test_what_is_refused(arguments: list[str], said: str, run: Path, refused: Refused) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize("how", ["run_dir=run", "--from=run"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "!!python/object/apply:os.system ['touch hostile']",
            "1: is not plain data: it has the tag !!python/object/apply",
        ),
        ("seed: !!python/name:os.system ''", "1: is not plain data: it has the tag !!python/name:os.system"),
        ("seed: 7\n_target_: os.system", "2: there is no key _target_."),
        ("lora: {_target_: os.system}", "1: there is no key lora._target_"),
        ("lora: {r: 8, rnak: 3}", "1: there is no key lora.rnak (did you mean lora.r?)."),
        ("lora: {r: many}", "1: lora.r is a whole number, found 'many'."),
        ("- lora", "1: holds no settings: write KEY: VALUE."),
        ("lora: {r: [}", "1: is not YAML of plain data: "),
    ],
)
def test_a_hostile_file(how: str, text: str, said: str, run: Path, refused: Refused, tmp_path: Path) -> None:
    (run / "config.yaml").write_text(text)
    assert f"hydratune: run/config.yaml:{said}" in refused(how)
    assert not (tmp_path / "hostile").exists()


def test_a_saved_file_is_text(run: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Nothing in it is resolved: neither the environment nor another key."""
    change(run, "name", "${oc.env:HOME}")
    change(run, "data.split", "${seed}")
    said = explained(tmp_path, environment, "name", "data.split", "run_dir=run")
    assert "name = ${oc.env:HOME}\n" in said and "data.split = ${seed}\n" in said


SOCKETS = {
    "data.formatter": "evil:formatter",
    "trainer.callbacks": ["evil:Callback"],
    "model.trust_remote_code": True,
    "model.extra": {"config": "x"},
    "benchmark.include_path": "tasks",  # whose files may say !function
}


@pytest.mark.parametrize("key", SOCKETS)
@pytest.mark.parametrize("how", [["run_dir=run"], ["--from=run"]], ids=["reopened", "from"])
def test_a_saved_file_imports_nothing(key: str, how: list[str], run: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\nformatter = Callback = list\n"
    )
    change(run, key, SOCKETS[key])
    said = refused(*how)
    assert "can make hydratune run code of its choice" in said and "trust=true" in said
    assert not (tmp_path / "imported").exists()


def test_trusted_code_is_imported(run: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    change(run, "data.formatter", "mine:formatter")
    done = subprocess.run(
        [sys.executable, "-m", "hydratune", "run_dir=run", "trust=true", "stages=[]"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and (tmp_path / "imported").exists()
    assert "data.formatter=mine:formatter: the module mine has no formatter." in done.stderr


def test_a_folder_called_as_one_of_our_names_is_not_taken_for_it(
    environment: dict[str, str], tmp_path: Path, tiny: Path
) -> None:
    for name in ("demo", "tinyllama_chat", "mine"):
        (tmp_path / name).mkdir()
    said = explained(
        tmp_path, environment, "data.path", "model.chat_template", "benchmark.include_path", "model.name_or_path",
        "benchmark=demo", "model=local", "model.name_or_path=mine", "model.chat_template=tinyllama_chat",
    )  # fmt: skip
    assert "data.path = demo\n" in said and "benchmark.include_path = demo\n" in said
    assert "model.chat_template = tinyllama_chat\n" in said
    assert f"model.name_or_path = {tmp_path}/mine\n" in said


def test_secrets_are_not_saved() -> None:
    config = Config(model=ModelConf(extra={"token": "hf_abc", "use_auth_token": "x", "variant": "fp16"}))
    config.data.path = "https://me:password@host/rows.jsonl"
    config.generate.prompts = ["hf_" + "a1" * 15]
    plain = saved_form(config)
    assert plain["model"]["extra"] == {"token": "***", "use_auth_token": "***", "variant": "fp16"}
    assert plain["data"]["path"] == "https://***@host/rows.jsonl"
    assert plain["generate"]["prompts"] == ["***"]
    config.data.path = "https://host/rows.jsonl?token=abc&page=2"
    assert saved_form(config)["data"]["path"] == "https://host/rows.jsonl?token=***&page=2"
    assert redacted_override("++model.extra={token: abc, variant: fp16}") == "++model.extra={token: ***, variant: fp16}"
    assert redacted_override("+model.extra.token=abc") == "+model.extra.token=***"
    assert redacted_override("data.path=rows.jsonl") == "data.path=rows.jsonl"


def test_a_secret_changes_no_run_directory() -> None:
    one, other = (Config(model=ModelConf(name_or_path="a/b", extra={"token": token})) for token in ("x", "y"))
    assert config_hash(one) == config_hash(other) != config_hash(Config(model=ModelConf(name_or_path="a/b")))


def test_a_secret_is_typed_again(run: Path, refused: Refused) -> None:
    change(run, "model.extra", {"token": "***"})
    assert "model.extra.token is not saved with a run, because it is secret: type it again." in refused("run_dir=run")
    assert "model.extra.token is not saved" in refused("--from", "run")


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD"])
def test_the_environments_secrets_are_not_read(
    name: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "s3cret")
    for reference in (f"${{oc.env:{name}}}", f"${{oc.env:{name},x}}"):
        said = refused(f"name={reference}")
        assert f"would save a secret with the run: leave it out, the libraries read {name} themselves." in said
        assert "s3cret" not in said


def test_the_environment_is_read_for_the_rest(environment: dict[str, str], tmp_path: Path) -> None:
    said = explained(tmp_path, {**environment, "SCRATCH": "/scratch"}, "cache_dir", "cache_dir=${oc.env:SCRATCH}/x")
    assert "cache_dir = /scratch/x\n" in said


@pytest.mark.slow
def test_what_a_run_saves(tiny: Path, rows: Path, hydratune, tmp_path: Path) -> None:
    done = hydratune(
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "run_dir=run", "stages=[prepare]", "+model.extra.token=hf_secret", "generate.prompts=['a ${b} c']",
    )  # fmt: skip
    assert done.returncode == 2  # an interpolation to nothing
    assert done.stderr == "hydratune: generate.prompts=['a ${b} c']: ${b}: there is no key b.\n"
    done = hydratune(
        "model=local", f"model.name_or_path={tiny}", "data=jsonl", f"data.path={rows}", "quantization=none",
        "run_dir=run", "stages=[prepare]", "+model.extra.token=hf_secret", "generate.prompts=['a \\${b} c']",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]
    plain = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert plain["generate"]["prompts"] == ["a ${b} c"]
    assert to_config(plain).generate.prompts == ["a ${b} c"]
    typed = yaml.safe_load((tmp_path / "run/.hydra/overrides.yaml").read_text())
    assert "+model.extra.token=***" in typed and f"data.path={rows}" in typed
    assert os.environ.get("HF_TOKEN") is None or os.environ["HF_TOKEN"] not in str(plain)
