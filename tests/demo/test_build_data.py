"""The shipped rows are those that the script beside them makes of WordNet, and no test noun is asked in training."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hydratune

DEMO = Path(hydratune.__file__).parent / "demo"
WORDNET = Path("/usr/share/wordnet/data.noun")  # of Debian's wordnet-base, which CI installs
NOUN = re.compile(r'the noun "(.+?)" \(')


@pytest.mark.skipif(not WORDNET.is_file() and "CI" not in os.environ, reason="apt-get install wordnet-base")
def test_the_rows_are_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DEMO / "build_data.py"), "--out", str(tmp_path)], check=True, timeout=120)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def nouns(name: str) -> set[str]:
    rows = [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]
    return {NOUN.search(row["messages"][0]["content"])[1].casefold() for row in rows}  # type: ignore[index]


def test_no_test_noun_is_asked_in_training() -> None:
    trained, tested = nouns("train.jsonl"), nouns("test.jsonl")
    assert (len(trained), len(tested)) == (5604, 300)
    assert not trained & tested
