"""Linux control groups: where the limits of a container or a service are written.

Knows where groups lie, not what their limits mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["own_control_groups", "read_text"]

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def own_control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the directory of each group that this process is in, from the inmost out.

    Parameters
    ----------
    controller : str
        Whose groups, as version 1 keeps them apart: `cpu`, `memory`.

    Yields
    ------
    directory : Path
    is_version_2 : bool
    """
    for line in (read_text(_OWN) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        is_version_2 = controllers == ""
        if not is_version_2 and controller not in controllers.split(","):
            continue
        root = _ROOT if is_version_2 else _ROOT / controller
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            yield directory, is_version_2
            if directory == root:
                break


def read_text(path: Path) -> str | None:
    """Return what a file of the kernel says; None where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
