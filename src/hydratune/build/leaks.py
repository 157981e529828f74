"""Test documents and validation rows that the training rows hold."""

import json
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase
from xxhash import xxh3_128

from hydratune.build.cache import build_once
from hydratune.build.overlap import Documents
from hydratune.build.own_rows import own_documents
from hydratune.build.store import Prepared
from hydratune.config.schema import BenchmarkConf, Config

SHOWN = 3  # documents that a sentence names
METHOD = 1  # raise it when another document counts as found


def leaks(config: Config, prepared: Prepared, tokenizer: PreTrainedTokenizerBase, cache: Path) -> list[str]:
    """A sentence for the validation rows and for each benchmark task whose documents are in the training rows.

    Found once and kept in the cache, for all jobs of a sweep.
    """
    b = config.benchmark
    own = own_documents(b)
    what = [METHOD, prepared.folder.name, b.tasks, _tasks_digest(b), own, version("lm-eval")]
    key = xxh3_128(json.dumps(what).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        said = [*_of_validation(prepared), *(_of_benchmark(b, own, prepared, tokenizer) if b.tasks else [])]
        folder.mkdir()
        (folder / "found.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")

    folder = build_once(cache / "leaks" / key, build)
    try:
        return [str(sentence) for sentence in json.loads((folder / "found.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # damaged
        shutil.rmtree(folder)
        return leaks(config, prepared, tokenizer, cache)


def _tasks_digest(conf: BenchmarkConf) -> list[str]:
    """Of the user's own task files, and the rows beside them."""
    folder = Path(conf.include_path) if conf.include_path not in (None, "demo") else None
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder and folder.is_dir() else []
    return [f"{path.name} {xxh3_128(path.read_bytes()).hexdigest()}" for path in files]


def _of_validation(prepared: Prepared) -> Iterator[str]:
    if prepared.validation is not None:
        rows = prepared.validation
        documents = Documents([_asked(row) for row in rows])
        names = [f"{prepared.report['validation']['sources'][row['file']]}, row {row['number']}" for row in rows]
        yield from _sentence("validation rows", documents, names, prepared)


def _asked(row: dict[str, Any]) -> list[int]:
    """The row up to its first supervised token, so that a prompt is found whose answer differs; all of it, where the
    whole text is supervised."""
    first = next((n for n, label in enumerate(row["labels"]) if label != -100), 0)
    return list(row["input_ids"][:first] if first > 1 else row["input_ids"])


def _of_benchmark(
    conf: BenchmarkConf, own: dict[str, list[str] | str], prepared: Prepared, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    from hydratune.build.benchmark import test_documents

    for task, texts in {**test_documents(conf), **own}.items():
        if isinstance(texts, str):
            yield f"Whether training rows hold documents of {task} is not known: {texts}."
        else:
            documents = Documents(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
            yield from _sentence(
                f"test documents of {task}", documents, [f"document {n}" for n in range(len(texts))], prepared
            )


def _sentence(what: str, documents: Documents, names: Sequence[str], prepared: Prepared) -> Iterator[str]:
    places: list[np.ndarray] = []
    found = documents.find(_chunks(prepared, places))
    if found:
        place, files = np.concatenate(places), prepared.report["training"]["sources"]
        said = [
            f"{names[one.document]} in {files[place[one.rows[0]][0]]}, row {place[one.rows[0]][1]}"
            for one in found[:SHOWN]
        ]
        more = ", …" if len(found) > len(said) else ""
        yield (
            f"{len(found)} of {documents.judged} {what} are in the {len(place)} training rows, by 10-grams of tokens "
            f"({'; '.join(said)}{more})."
        )


def _chunks(prepared: Prepared, places: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and offsets of the rows that are trained on; `places` gets the file and number of each."""
    order, first = prepared.folder / "order.npy", 0
    kept = np.load(order) if order.exists() else None
    with pa.memory_map(str(prepared.folder / "training.arrow")) as mapped:
        for batch in pa.ipc.open_stream(mapped):
            if kept is not None:
                mask = np.isin(np.arange(first, first + batch.num_rows), kept)
                first += batch.num_rows
                batch = batch.filter(pa.array(mask))
            ids = batch.column("input_ids")
            places.append(np.column_stack([batch.column("file").to_numpy(), batch.column("number").to_numpy()]))
            yield ids.values.to_numpy(), ids.offsets.to_numpy()
