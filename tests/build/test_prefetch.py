"""Fetching from a hub on this machine, what it refuses, and loading at the commits that were prefetched."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants, snapshot_download
from local_hub import Hub, serving, silent

from hydratune.build import hub as of_hub
from hydratune.build import pins, prefetch
from hydratune.build.hub import Need, is_cached, missing
from hydratune.build.pins import manifest, manifest_path, pinned, why_offline
from hydratune.build.source import gguf_path, snapshot
from hydratune.build.sources import open_source
from hydratune.config.schema import Config, ConfigError, ModelConf, RunError, SourceConf

MODEL, ROWS = Need("model", "org/tiny"), Need("dataset", "org/rows", asked="data.path")


def rows(count: int) -> bytes:
    return "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(count)).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the libraries of this process ask, with caches of the test's own."""
    with serving() as found:
        point_at(found.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr(datasets.load, "load_dataset_builder", datasets.load.load_dataset_builder)
        monkeypatch.setattr(of_hub, "FORBIDDEN", None)
        offline(False, monkeypatch)
        yield found


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)


def offline(yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", yes)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", yes)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", yes)


def fetch(need: Need, cache: Path) -> tuple[dict[str, Any], bool]:
    def write(need: Need, made: dict[str, Any]) -> None:
        manifest_path(need, cache).parent.mkdir(parents=True, exist_ok=True)
        manifest_path(need, cache).write_text(json.dumps(made))

    return prefetch.fetch(need, cache, write)


def test_a_model_is_fetched_once_with_the_files_that_are_loaded(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    commit = hub.model("org/tiny", tiny)
    files = hub.repositories["models/org/tiny"].commits[commit]
    files |= {"consolidated.safetensors": b"the same again", "pytorch_model.bin": b"a pickle", "README.md": b"read me"}
    made, was_there = fetch(MODEL, tmp_path)
    assert not was_there
    assert made["commit"] == commit
    assert made["files"] == {path.name: path.stat().st_size for path in sorted(tiny.iterdir())}
    assert made["bytes"] == sum(made["files"].values())
    assert manifest(MODEL, tmp_path) == made
    assert is_cached(MODEL)
    hub.asked.clear()
    assert fetch(MODEL, tmp_path) == (made, True)
    assert not [path for path in hub.asked if "/resolve/" in path]
    assert {path.name for path in snapshot("org/tiny", commit).iterdir()} == made["files"].keys()


def test_a_gguf_file_is_fetched_alone(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    commit = hub.model("org/tiny", tiny)
    hub.repositories["models/org/tiny"].commits[commit] |= {"q4.gguf": b"four bits", "q8.gguf": b"eight bits"}
    made, _ = fetch(Need("model", "org/tiny", file="q4.gguf"), tmp_path)
    assert made["files"] == {"q4.gguf": 9}
    with pytest.raises(
        ConfigError, match=r"gguf_file=q5.gguf is not in org/tiny on the hub, which has q4.gguf, q8.gguf"
    ):
        fetch(Need("model", "org/tiny", file="q5.gguf"), tmp_path)


def test_a_dataset_is_loaded_at_its_commit_whatever_was_prepared_later(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.dataset("org/rows", {"train.jsonl": rows(3), "test.jsonl": rows(1)})
    made, _ = fetch(ROWS, tmp_path)
    assert made["commit"] == commit
    later = hub.dataset("org/rows", {"train.jsonl": rows(5), "test.jsonl": rows(1)})
    assert len(datasets.load_dataset("org/rows", split="train", revision=later)) == 5
    offline(True, monkeypatch)
    assert len(datasets.load_dataset("org/rows", split="train")) == 5, "the library takes the last one"
    pinned(Config(), tmp_path)
    found = datasets.load_dataset("org/rows", split="train")
    assert len(found) == 3
    assert open_source(SourceConf(path="org/rows")).revision == commit
    assert len(datasets.load_dataset("org/rows", split="train", revision=later)) == 5, "another revision is not pinned"


def test_a_revision_that_is_not_here_is_missing(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.dataset("org/rows", {"train.jsonl": rows(3)})
    second = hub.dataset("org/rows", {"train.jsonl": rows(5)})
    for commit in (first, second):
        datasets.load_dataset("org/rows", revision=commit)
    assert is_cached(Need("dataset", "org/rows", second))
    assert not is_cached(Need("dataset", "org/rows", first)), "the library would take the other one"
    assert not is_cached(Need("dataset", "org/rows", "v2"))
    offline(True, monkeypatch)
    with pytest.raises(ConfigError, match=f"data.revision={first} of data.path=org/rows .* holds is {second}"):
        open_source(SourceConf(path="org/rows", revision=first))


def test_the_rows_are_the_same_to_the_token_cache_as_those_of_a_run_with_a_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.dataset("org/rows", {"train.jsonl": rows(3)})
    with_network = datasets.load_dataset("org/rows", split="train")
    fetch(ROWS, tmp_path)
    offline(True, monkeypatch)
    pinned(Config(), tmp_path)
    assert datasets.load_dataset("org/rows", split="train")._fingerprint == with_network._fingerprint


CONFIGURED = b"---\nconfigs:\n- config_name: a\n  data_files: a.jsonl\n- config_name: b\n  data_files: b.jsonl\n---\ntwo of them\n"


def test_configurations_and_files_of_a_dataset_are_things_of_their_own(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.dataset("org/rows", {"README.md": CONFIGURED, "a.jsonl": rows(2), "b.jsonl": rows(4)})
    with pytest.raises(
        ConfigError, match=r"has several configurations, and none is named: set data.name to one of .*'a', 'b'"
    ):
        fetch(ROWS, tmp_path)
    b = Need("dataset", "org/rows", name="b")
    files = {"data_files": {"test": "hf://datasets/org/rows/a.jsonl"}}
    a = Need("dataset", "json", options=json.dumps(files))
    fetch(b, tmp_path)
    fetch(a, tmp_path)
    offline(True, monkeypatch)
    pinned(Config(), tmp_path)
    assert len(datasets.load_dataset("org/rows", "b", split="train")) == 4
    assert len(datasets.load_dataset("json", **files, split="test")) == 2
    assert is_cached(b)
    assert not is_cached(Need("dataset", "org/rows", name="a"))


def test_a_model_is_loaded_at_its_commit_when_main_has_moved(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    first = hub.model("org/tiny", tiny)
    fetch(MODEL, tmp_path)
    second = hub.model("org/tiny", tiny)
    assert second != first
    snapshot_download("org/tiny")
    assert (tmp_path / "hub" / "models--org--tiny" / "refs" / "main").read_text() == second
    config = Config(model=ModelConf(name_or_path="org/tiny"))
    assert pinned(config, tmp_path).model.revision == first
    assert config.model.revision is None
    other = Config(model=ModelConf(name_or_path="org/tiny", revision="v2"))
    assert pinned(other, tmp_path) is other


@pytest.mark.parametrize(
    ("need", "sentence"),
    [
        (Need("model", "org/none"), "The model org/none is neither a folder here nor on the hub"),
        (Need("dataset", "org/none", asked="data.path"), "The dataset org/none of data.path is neither a folder here"),
        (
            Need("model", "org/tiny", "v9"),
            "The model org/tiny at revision v9 can't be had: the hub has org/tiny, but not",
        ),
        (Need("dataset", "org/rows", "v9"), "The dataset org/rows at revision v9 can't be had"),
        (Need("model", "org/gated"), "is gated: accept its terms at http://127.0.0.1:.*/org/gated, .* or set HF_TOKEN"),
        (Need("dataset", "org/gated"), "is gated: accept its terms at http://127.0.0.1:.*/datasets/org/gated, "),
        (Need("model", "org/pickle"), "The model org/pickle holds no .safetensors file"),
        (
            Need("model", "org/forbidden"),
            r"The model org/forbidden can't be had: 127.0.0.1:\d+ answers 403 Forbidden \(Your IP is blocked\): set HF_TOKEN",
        ),
        (Need("model", "org/disabled"), "The model org/disabled can't be had: the hub has disabled org/disabled."),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: Hub, tiny: Path, tmp_path: Path, need: Need, sentence: str) -> None:
    hub.model("org/tiny", tiny)
    hub.dataset("org/rows", {"train.jsonl": rows(1)})
    for kind in ("models", "datasets"):
        hub.dataset("org/gated", {"a.jsonl": rows(1)})
        hub.repositories[f"{kind}/org/gated"] = hub.repositories["datasets/org/gated"]
    hub.repositories["datasets/org/gated"].gated = True
    for name, why in {"forbidden": "Your IP is blocked", "disabled": "Access to this resource is disabled."}.items():
        hub.model(f"org/{name}", tiny)
        hub.repositories[f"models/org/{name}"].forbidden = why
    hub.dataset("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    hub.repositories["models/org/pickle"] = hub.repositories["datasets/org/pickle"]
    with pytest.raises(ConfigError, match=sentence):
        fetch(need, tmp_path)
    assert not (tmp_path / "prefetched").exists()
    if "pickle" not in need.id:  # a run says the same of it, before it begins
        with pytest.raises(ConfigError, match=sentence):
            why_offline([need], tmp_path)


def test_a_hub_that_does_not_answer_ends_the_fetching_but_not_what_came_before(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny", tiny)
    fetch(MODEL, tmp_path)
    point_at("http://127.0.0.1:9", monkeypatch)
    for need in (MODEL, ROWS):
        with pytest.raises(RunError, match=rf"{need.id}.* can't be fetched: http://127.0.0.1:9 can't be reached"):
            fetch(need, tmp_path)
    assert manifest(MODEL, tmp_path)


def test_a_disk_without_room_is_said_before_anything_comes(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny", tiny)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000}))
    with pytest.raises(
        RunError, match=r"no room for the model org/tiny in .*189 kB are to come, and 100 kB are free.* set HF_HOME"
    ):
        fetch(MODEL, tmp_path)
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_a_disk_that_fills_up_is_one_sentence(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny", tiny)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prefetch, "snapshot_download", full)
    with pytest.raises(RunError, match=r"no room for the model org/tiny in .* \(the disk is full\)"):
        fetch(MODEL, tmp_path)


def test_of_what_is_here_the_hub_is_asked_only_whether_it_answers(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny", tiny)
    hub.dataset("org/rows", {"README.md": CONFIGURED, "a.jsonl": rows(2), "b.jsonl": rows(4)})
    some = [Need("dataset", "org/rows", name=name, asked=f"task {name}") for name in ("a", "b")]
    hub.asked.clear()
    assert why_offline(some, tmp_path) is None
    assert hub.asked == ["/api/datasets/org/rows"], "once for a repository, not for each task"
    for name in ("a", "b"):
        datasets.load_dataset("org/rows", name)
    snapshot_download("org/tiny")
    hub.asked.clear()
    assert why_offline([MODEL, *some], tmp_path) is None
    assert hub.asked == ["/api/models/org/tiny"]
    point_at("http://127.0.0.1:9", monkeypatch)
    assert why_offline([MODEL, *some], tmp_path) == "the hub can't be reached: all that is needed here is in its cache"
    offline(True, monkeypatch)
    hub.asked.clear()
    point_at(hub.endpoint, monkeypatch)
    assert why_offline([MODEL, *some], tmp_path) is None
    assert hub.asked == []


def test_weights_that_are_not_whole_are_missing(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny", tiny)
    snapshot_download("org/tiny", allow_patterns=["*.json"])
    point_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr("sys.argv", ["hydratune", "experiment=mine", "run_dir=a b"])
    with pytest.raises(ConfigError) as refused:
        why_offline([MODEL, ROWS], tmp_path)
    assert refused.value.sentences == [
        f"The model org/tiny and the dataset org/rows of data.path are neither here nor in {constants.HF_HOME}, and the hub "
        "can't be reached: type hydratune prefetch experiment=mine 'run_dir=a b' where there is a network."
    ]


def test_deleted_files_are_named(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.model("org/tiny", tiny)
    made, _ = fetch(MODEL, tmp_path)
    assert "prefetched" in (why_offline([MODEL], tmp_path) or "")
    gone = tmp_path / "hub" / made["folder"] / "model.safetensors"
    gone.unlink()
    with pytest.raises(
        ConfigError, match=rf"The model org/tiny, prefetched at {made['commit']}, lacks model.safetensors in"
    ):
        why_offline([MODEL], tmp_path)
    fetch(MODEL, tmp_path)
    assert gone.is_file()
    assert "prefetched" in (why_offline([MODEL], tmp_path) or "")


def test_a_hub_that_never_answers_is_waited_for_once(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("org/tiny", tiny)
    snapshot_download("org/tiny")
    monkeypatch.setattr(pins, "PATIENCE", 1.0)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None)  # which it asks the hub for, 3 s long
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none.json"))
    with silent() as (endpoint, taken):
        point_at(endpoint, monkeypatch)
        assert "the hub can't be reached" in (why_offline([MODEL], tmp_path) or "")
        others = [Need("dataset", f"org/{name}") for name in "abc"]
        with pytest.raises(ConfigError, match="The dataset org/a, the dataset org/b and the dataset org/c are neither"):
            why_offline([MODEL, *others], tmp_path)
        assert len(taken) <= 2, "one for each call, and not for each of what it needs"


def test_without_weights_less_is_needed(hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.model("org/tiny", tiny)
    light = Need("model", "org/tiny", weights=False)
    made, _ = fetch(light, tmp_path)
    assert "tokenizer.json" in made["files"] and "model.safetensors" not in made["files"]
    assert is_cached(light) and not is_cached(MODEL)
    assert manifest(light, tmp_path) and manifest(MODEL, tmp_path) is None
    assert pinned(Config(model=ModelConf(name_or_path="org/tiny")), tmp_path).model.revision == commit
    whole, _ = fetch(MODEL, tmp_path)
    assert fetch(light, tmp_path)[0] == whole, "what is there stays"
    (tmp_path / "hub" / whole["folder"] / "model.safetensors").unlink()
    assert "prefetched" in (why_offline([light], tmp_path) or "")
    with pytest.raises(ConfigError, match=r"lacks model.safetensors"):
        why_offline([MODEL], tmp_path)


def test_the_runs_own_token_is_shown(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    commit = hub.model("org/tiny", tiny)
    hub.repositories["models/org/tiny"].commits[commit]["q4.gguf"] = b"four bits"
    hub.repositories["models/org/tiny"].token = "hf_secret"
    conf = ModelConf(name_or_path="org/tiny", gguf_file="q4.gguf", extra={"token": "hf_secret"})
    with pytest.raises(ConfigError, match="is neither a folder here nor on the hub"):
        snapshot("org/tiny", None)
    assert gguf_path(conf).read_bytes() == b"four bits"
    assert (snapshot("org/tiny", None, "hf_secret") / "model.safetensors").is_file()


def test_files_of_another_host(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["/rows/test.jsonl"] = rows(2)

    def need(address: str) -> Need:
        return Need("dataset", "json", options=json.dumps({"data_files": {"test": address}}), asked="task quiz")

    there, gone = (need(f"{hub.endpoint}/rows/{name}.jsonl") for name in ("test", "gone"))
    archive = need("zip://test.jsonl::http://127.0.0.1:9/rows.zip")
    point_at("http://127.0.0.1:9", monkeypatch)
    assert why_offline([there], tmp_path) is None, "its own host is asked, and not the hub"
    with pytest.raises(ConfigError) as refused:
        why_offline([gone, archive], tmp_path)
    nobody, no_file = refused.value.sentences
    assert nobody.startswith("The json files of task quiz is neither here nor in ")
    assert ", and 127.0.0.1:9 can't be reached: type hydratune prefetch " in nobody
    assert no_file == f"The json files of task quiz can't be had: there is no file at {hub.endpoint}/rows/gone.jsonl."
    fetch(there, tmp_path)
    hub.files.clear()
    assert "prefetched" in (why_offline([there], tmp_path) or "")


def test_what_was_prefetched_in_part_leaves_the_rest_to_the_hub(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    hub.model("org/tiny", tiny)
    hub.dataset("org/rows", {"train.jsonl": rows(2)})
    fetch(MODEL, tmp_path)
    assert why_offline([MODEL, ROWS], tmp_path) is None


def test_the_users_own_flags_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(False, monkeypatch)
    for flag in pins.FLAGS:
        monkeypatch.delenv(flag, raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "no")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "")
    evaluate = type("evaluate.config", (), {"HF_EVALUATE_OFFLINE": False})
    monkeypatch.setitem(sys.modules, "evaluate.config", evaluate)
    assert pins.go_offline() == ["HF_DATASETS_OFFLINE=0", "HF_EVALUATE_OFFLINE=no"]
    assert constants.is_offline_mode()
    assert not datasets.config.HF_HUB_OFFLINE
    assert not evaluate.HF_EVALUATE_OFFLINE
    assert [os.environ[flag] for flag in pins.FLAGS] == ["1", "0", "1", "no"]
    monkeypatch.delenv("HF_EVALUATE_OFFLINE")
    assert pins.go_offline() == ["HF_DATASETS_OFFLINE=0"]
    assert evaluate.HF_EVALUATE_OFFLINE
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set, and prefetch asks the hub"):
        prefetch.refuse_offline()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    with pytest.raises(ConfigError, match="HF_EVALUATE_OFFLINE is set, and prefetch asks the hub"):
        prefetch.refuse_offline()


def test_a_sweep_is_told_to_prefetch_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["hydratune", "--multirun", "lora.r=8,16"])
    assert "type hydratune prefetch with the settings of a job where" in missing([MODEL])
