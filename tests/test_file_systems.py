"""Locks: a file system whose locks other machines don't see is named, and one that has none is refused."""

import errno
import fcntl
from pathlib import Path

import pytest

from hydratune.config.schema import RunError
from hydratune.run import file_systems
from hydratune.run.layout import RunDir, alone_in

HEAD = "proc /proc proc rw 0 0\n/dev/sda1 / ext4 rw 0 0\n"


@pytest.mark.parametrize(
    ("mount", "why"),
    [
        ("nfs4 rw,vers=4.2,local_lock=none", None),
        ("nfs4 rw,vers=4.2,local_lock=all", "nfs4 with local_lock=all"),
        ("nfs rw,vers=3,nolock", "nfs with nolock"),
        ("lustre rw,flock", None),
        ("lustre rw,localflock", "lustre with localflock"),
        ("", None),
        ("beegfs rw,cfgFile=/nowhere", None),
        ("ext4 rw,local_lock=all", None),
    ],
)
def test_what_the_mount_says(mount: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, place = tmp_path / "mounts", tmp_path / "my runs"
    monkeypatch.setattr(file_systems, "MOUNTS", mounts)
    escaped = str(place).replace(" ", r"\040")
    mounts.write_text(f"{HEAD}server:/x {escaped} {mount} 0 0\n")
    for folder in (place, place / "not/yet"):
        assert file_systems.unshared_locks(folder) == (why and f"{place} is a {why}")
    assert file_systems.unshared_locks(tmp_path / "my runs of late") is None
    assert file_systems.unshared_locks(tmp_path) is None


@pytest.mark.parametrize(
    ("line", "shares"), [("tuneUseGlobalFileLocks = true", True), ("tuneUseGlobalFileLocks=false", False), ("", False)]
)
def test_beegfs_says_it_in_a_file(line: str, shares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client.conf").write_text(f"# tuneUseGlobalFileLocks=true\n{line}\n")
    (tmp_path / "mounts").write_text(f"{HEAD}none {tmp_path} beegfs rw,cfgFile={tmp_path}/client.conf 0 0\n")
    monkeypatch.setattr(file_systems, "MOUNTS", tmp_path / "mounts")
    said = file_systems.unshared_locks(tmp_path / "runs")
    assert said == (None if shares else f"{tmp_path} is a beegfs with tuneUseGlobalFileLocks=false")


def test_without_flock_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with (
        pytest.raises(RunError, match=r"can't be locked \(Function not implemented\): its file system must take flock"),
        alone_in(RunDir(tmp_path)),
    ):
        pytest.fail("entered")
