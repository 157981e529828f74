"""What the tests share: a tiny random model, chat rows, and the command in a subprocess."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from warm import Place, Warm, place_in, run_warm, shared_warm

# Before torch is imported: the results of a test don't depend on how many cores there are or on what runs beside it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NOUNS = ["otter", "violin", "river", "bread", "teacher", "fern", "shoulder", "harbour"]


def chat_rows() -> list[dict[str, list[dict[str, str]]]]:
    """24 rows: one exchange, with a system message, or two exchanges."""
    rows = []
    for number in range(24):
        noun, other = NOUNS[number % 8], NOUNS[(number * 3 + 1) % 8]
        turns = [
            {"role": "user", "content": f"What is {noun} number {number}?"},
            {"role": "assistant", "content": f"The {noun} is not a {other}."},
        ]
        if number % 3 == 1:
            turns.insert(0, {"role": "system", "content": "Answer in one sentence."})
        if number % 3 == 2:
            turns += [
                {"role": "user", "content": f"And {other}?"},
                {"role": "assistant", "content": f"It is {number} times a {other}."},
            ]
        rows.append({"messages": turns})
    return rows


ROWS = "".join(json.dumps(row) + "\n" for row in chat_rows())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One for each core that has 4 GiB beside it, which the demo's run needs most of; 8 are kept busy."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), round(memory / 2**32), 8))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: what is left for the end is short, and no worker waits for another."""
    slow = Counter(item.path for item in items if any(item.get_closest_marker(name) for name in ("slow", "slurm")))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def process_as_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a command that ran in this process has set, such as that there is no network, is not the next test's.

    Neither are the places that it looked for modules in, nor a test's own modules, whose names others have too.
    """
    environment, places = dict(os.environ), list(sys.path)
    yield
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = places
    temporary = f"{tmp_path_factory.getbasetemp()}/"
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(temporary):
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a byte-level BPE tokenizer with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([turn["content"] for row in chat_rows() for turn in row["messages"]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A JSONL file of chat rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """For subprocesses: no network, one thread, a cache of the test's own."""
    return {
        **os.environ, "HYDRATUNE_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


@pytest.fixture
def hydratune(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, run in `tmp_path`."""

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hydratune", *args], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return call


@pytest.fixture
def warm(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `hydratune`, of a process that has its imports behind it."""

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        return run_warm(args, tmp_path, environment)

    return call


@pytest.fixture
def refused(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the command in this process, which spares each mistake the imports; returns what it said on stderr."""
    from hydratune.main import main

    def call(*args: str) -> str:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["hydratune", *args])
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capfd.readouterr().err
        assert stopped.value.code == 2, said
        assert "Traceback" not in said
        assert sorted(tmp_path.rglob("*")) == before, "a refused command wrote something"
        return said

    return call


@pytest.fixture(scope="session")
def forks() -> Warm:
    """The command in forked processes."""
    return shared_warm()


@pytest.fixture
def place(tmp_path: Path, forks: Warm, tiny: Path) -> Place:
    """A folder for sweeps."""
    return place_in(tmp_path, forks, tiny, ROWS)


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory, forks: Warm, tiny: Path) -> Place:
    """One for the sweep that several tests of a file look at."""
    return place_in(tmp_path_factory.mktemp("place"), forks, tiny, ROWS)
