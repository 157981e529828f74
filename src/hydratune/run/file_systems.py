"""Whose locks a folder's file system keeps: that one process alone is at work in a run directory rests on them."""

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
# of network file systems, the mount options with which a lock is seen on its own machine alone
UNSHARED = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock"),
    "nfs4": ("local_lock=all", "local_lock=flock"),
    "lustre": ("localflock",),
    "cifs": ("nobrl",),
}
BEEGFS_SHARES = "tuneUseGlobalFileLocks"  # of its client's configuration; false where that says nothing


def unshared_locks(folder: Path) -> str | None:
    """Why other machines don't see the locks of processes in the folder, which may have yet to be made; None where they do.

    None, too, where the system doesn't tell.
    """
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return None
    place, kind, options = "", "", ""
    for _, escaped, one, said, *_ in (line.split(" ") for line in lines if line.count(" ") > 3):
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), escaped)
        inside = os.path.commonpath([point, folder.resolve()]) == point
        if inside and len(point) >= len(place):
            place, kind, options = point, one, said
    words = options.split(",")
    if kind == "beegfs":
        why = _beegfs(words)
    else:
        why = next((option for option in UNSHARED.get(kind, ()) if option in words), None)
    return f"{place} is a {kind} with {why}" if why else None


def _beegfs(options: list[str]) -> str | None:
    path = next((word.partition("=")[2] for word in options if word.startswith("cfgFile=")), "")
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    said = re.search(rf"^\s*{BEEGFS_SHARES}\s*=\s*(\w+)", text, re.MULTILINE)
    return None if said and said[1].lower() in ("true", "1", "yes", "on") else f"{BEEGFS_SHARES}=false"
