"""What is measured, one test a row, named as llama-bench names it; and how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["BenchSettings", "Test", "grid"]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How a run measures.

    Parameters
    ----------
    n_threads : sequence of int
        Every test is run with each of them.
    repetitions : int
        Timed runs of each test.
    n_batch : int or None
        Tokens evaluated together; None is the engine's default, or more where a test
        generates more sequences.
    kv_type : str
        What keys and values are held in: `f16` or `q8`.
    use_mmap : bool
        Map the models' files instead of reading them.
    """

    n_threads: Sequence[int]
    repetitions: int
    n_batch: int | None = None
    kv_type: str = "f16"
    use_mmap: bool = True


@dataclass(frozen=True, slots=True)
class Test:
    """A prompt to read, tokens to generate, or the one after the other.

    Parameters
    ----------
    n_prompt : int
        Tokens of the prompt; 0 for none.
    n_gen : int
        Tokens generated one by one, each sequence; 0 for none.
    depth : int
        Tokens that each sequence holds before the test.
    n_parallel : int
        Sequences that are decoded together.
    """

    n_prompt: int
    n_gen: int
    depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """As `pp512`, `tg128 @ d2048`, `tg128 x8`, `pp512+tg128`."""
        parts = [("pp", self.n_prompt), ("tg", self.n_gen)]
        name = "+".join(f"{kind}{n}" for kind, n in parts if n)
        if self.n_parallel > 1:
            name += f" x{self.n_parallel}"
        return f"{name} @ d{self.depth}" if self.depth else name

    @property
    def n_ctx(self) -> int:
        """Positions that a sequence comes to hold."""
        return self.depth + self.n_prompt + self.n_gen

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated, of all sequences together: what tokens a second count."""
        return self.n_parallel * (self.n_prompt + self.n_gen)


def grid(
    prompts: Iterable[int],
    gens: Iterable[int],
    pairs: Iterable[tuple[int, int]] = (),
    depths: Sequence[int] = (0,),
    parallel: Sequence[int] = (1,),
) -> list[Test]:
    """List the tests of all combinations, depth after depth.

    Parameters
    ----------
    prompts, gens : iterable of int
        Lengths of prompts to read, and of answers to generate; zeros are left out.
    pairs : iterable of (int, int)
        A prompt and the answer after it, timed together.
    depths : sequence of int
    parallel : sequence of int
        Sequences decoded together, of tests that only generate.
    """
    prompts, gens, pairs = list(prompts), list(gens), list(pairs)
    tests = []
    for depth in depths:
        tests += [Test(n, 0, depth) for n in prompts if n]
        tests += [Test(0, n, depth, many) for n in gens if n for many in parallel]
        tests += [Test(*pair, depth) for pair in pairs]
    return tests
