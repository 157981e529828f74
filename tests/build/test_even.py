"""Several processes share the rows of an epoch: each row once, and as many batches for each process."""

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from hydratune.build.collate import IGNORED, Collator, Counted
from hydratune.build.even import Filled, fill_up

ROWS = [{"input_ids": [n, n], "labels": [n, n], "file": 0, "number": n} for n in range(1, 12)]


class Loader:
    """As accelerate prepares one."""

    def __init__(self, size: int, processes: int, rank: int) -> None:
        whole = BatchSampler(SequentialSampler(ROWS), size, drop_last=False)
        self.batch_sampler = BatchSamplerShard(whole, processes, rank)


@pytest.mark.parametrize(("size", "processes"), [(2, 2), (3, 3), (5, 2), (4, 4), (11, 2)])
def test_each_row_once(size: int, processes: int) -> None:
    filled = Filled(ROWS)
    shares = []
    for rank in range(processes):
        loader = Loader(size, processes, rank)
        fill_up(loader, size * processes)
        shares.append([[filled[index] for index in batch] for batch in loader.batch_sampler])
        assert len(shares[-1]) == len(loader.batch_sampler) == -(-len(ROWS) // (size * processes))
    steps = [[row for batch in step for row in batch if row["number"]] for step in zip(*shares, strict=True)]
    assert steps == [ROWS[at : at + size * processes] for at in range(0, len(ROWS), size * processes)]


@pytest.mark.parametrize("packed", [False, True])
def test_what_fills_up_teaches_nothing_and_is_no_row(packed: bool) -> None:
    rows = [{**row, "file": [0], "number": [row["number"]], "seq_lengths": [2]} if packed else row for row in ROWS]
    filled = Filled(rows)
    assert len(filled) == len(rows) and filled[3] == rows[3]
    batch = Counted(Collator(0, separate=packed))([filled[2], filled[len(rows)]])
    assert (batch["rows"], batch["supervised"]) == ([(0, 3)], 1)
    assert batch["labels"][1].eq(IGNORED).all()
