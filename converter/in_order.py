"""Work on several threads whose results are wanted in order, few of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

_Result = TypeVar("_Result")


def in_order(
    jobs: Iterable[Callable[[], _Result]], n_threads: int
) -> Generator[_Result, None, None]:
    """Run `jobs` on threads and yield their results in order.

    Closing the generator early waits for the few jobs that are under way.

    Parameters
    ----------
    jobs : iterable of callable
        Taken as threads become free, so that few results are held at once.
    n_threads : int
    """
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for job in jobs:
            # So many that no thread waits for the caller, nor for one that is held up.
            if len(pending) > 2 * n_threads:
                yield pending.popleft().result()
            pending.append(pool.submit(job))
        while pending:
            yield pending.popleft().result()
