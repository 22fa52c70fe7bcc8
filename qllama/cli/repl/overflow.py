"""What happens when a conversation no longer fits the context window.

Owns the policies and how much each takes away. `Chat` says it; nothing goes silently.

- `shift`: the oldest whole turns are forgotten, as many as leave a quarter of the window
  free; the system message stays. In the middle of an answer the same, then it goes on.
- `truncate`: as `shift` for a question, and a question that alone is too long loses its
  beginning; an answer ends where the window is full.
- `error`: nothing is taken away: the question is refused, an answer ends.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["DEFAULT_POLICY", "POLICIES", "first_that_fits", "tokens_to_keep"]

POLICIES = ("shift", "truncate", "error")
DEFAULT_POLICY = "shift"


def tokens_to_keep(n_ctx: int) -> int:
    """Return how many tokens of a window of `n_ctx` what is kept may take: three quarters.

    Fewer would forget more than is needed; with more, the next turn would have to forget
    again, and read all that is kept again.
    """
    return 3 * n_ctx // 4


def first_that_fits(n_steps: int, n_tokens_after: Callable[[int], int], limit: int) -> int:
    """Return after how few steps of taking something away no more than `limit` tokens are left.

    Parameters
    ----------
    n_steps : int
        That can be taken at most: the result where none is enough.
    n_tokens_after : callable
        Given a count of steps, returns the tokens left; fewer, the more steps.
    limit : int
    """
    low, high = 0, n_steps
    while low < high:
        middle = (low + high) // 2
        if n_tokens_after(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return low
