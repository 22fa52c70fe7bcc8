"""How attention is cut into tasks: everything once, evenly, within the memory there is."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from qllama.kernels.kv_layout import CHUNK
from qllama.model.attention_plan import MAX_QUERIES, TASK, AttentionPlan


def plan(**changes):
    base = {
        "n_kv_heads": 3,
        "repeats": 3,
        "sliding_window": None,
        "capacity": 16 * CHUNK,
        "n_threads": 2,
    }
    return AttentionPlan(**(base | changes))


def batch(*runs):
    """Positions and slots of runs (first position, tokens), one slot each."""
    positions = [p for first, n in runs for p in range(first, first + n)]
    return positions, [slot for slot, (_, n) in enumerate(runs) for _ in range(n)]


def fields(task):
    return dict(zip(TASK, task, strict=True))


run = st.tuples(st.integers(0, 15 * CHUNK), st.integers(1, 60))
plans = st.builds(
    plan,
    n_kv_heads=st.integers(1, 8),
    repeats=st.integers(1, 64),
    sliding_window=st.sampled_from([None, 1, 300, 5000]),
    n_threads=st.integers(1, 16),
)


@given(plans, st.lists(run, min_size=1, max_size=12))
def test_tasks_take_every_token_and_every_chunk_it_sees_once(made, runs):
    positions, slots = batch(*runs)
    tasks = [fields(task) for task in made.tasks(positions, slots)]
    done = np.zeros((len(positions), made.capacity // CHUNK), int)
    for task in tasks:
        tokens = slice(task["first_token"], task["first_token"] + task["n_tokens"])
        assert len(set(slots[tokens])) == 1
        assert task["n_tokens"] * made.repeats <= made.max_queries
        chunks = slice(None) if task["chunk"] < 0 else task["chunk"]
        done[tokens, chunks] += 1
    for token, position in enumerate(positions):
        window = made.sliding_window or position + 1
        seen = range(max(position + 1 - window, 0) // CHUNK, position // CHUNK + 1)
        assert set(done[token, list(seen)]) == {1}


@given(plans, st.lists(run, min_size=1, max_size=12))
def test_tasks_split_ones_have_partials_and_counters_of_their_own(made, runs):
    positions, slots = batch(*runs)
    used, counters, blocks = set(), set(), {}
    for task in map(fields, made.tasks(positions, slots)):
        if task["chunk"] >= 0:
            blocks.setdefault(task["first_token"], []).append(task)
    for parts in blocks.values():
        first = parts[0]
        chunks = range(first["first_chunk"], first["first_chunk"] + first["n_chunks"])
        assert [part["chunk"] for part in parts] == list(chunks)
        n_rows = len(parts) * first["n_tokens"] * made.n_kv_heads * made.repeats
        rows = set(range(first["partial"], first["partial"] + n_rows))
        mine = set(range(first["arrivals"], first["arrivals"] + made.n_kv_heads))
        assert not used & rows
        assert not counters & mine
        used |= rows
        counters |= mine
    assert max(used, default=-1) < made.max_partials
    assert max(counters, default=-1) < made.max_arrivals


@pytest.mark.parametrize(("heads", "split"), [(1, True), (3, True), (8, False)])
def test_tasks_long_sequence_alone_is_split_unless_its_heads_are_enough(heads, split):
    tasks = [fields(task) for task in plan(n_kv_heads=heads).tasks(*batch((8 * CHUNK, 1)))]
    assert [task["chunk"] for task in tasks] == (list(range(9)) if split else [-1])


def test_tasks_only_the_sequence_that_is_longer_than_the_others_is_split():
    runs = [(5, 1)] * 7 + [(12 * CHUNK, 1)] + [(5, 1)] * 7
    tasks = [fields(task) for task in plan(n_threads=4).tasks(*batch(*runs))]
    assert {task["first_token"] for task in tasks if task["chunk"] >= 0} == {7}


def test_tasks_equal_sequences_are_not_split():
    tasks = plan().tasks(*batch(*[(4 * CHUNK, 1)] * 32))
    assert all(fields(task)["chunk"] < 0 for task in tasks)


def test_tasks_of_a_prompt_take_many_queries_and_the_longest_come_first():
    tasks = [fields(task) for task in plan().tasks(*batch((0, 3 * CHUNK)))]
    assert max(task["n_tokens"] for task in tasks) * 3 == MAX_QUERIES
    assert tasks[0]["first_token"] > tasks[-1]["first_token"]


def test_tasks_without_room_for_partials_are_not_split():
    made = plan(n_kv_heads=1, repeats=1, n_threads=16)
    assert made.max_partials == 8 * 16
    # Four tokens of 16 chunks take half the room.
    tasks = [fields(task) for task in made.tasks(*batch(*[(15 * CHUNK, 4)] * 3))]
    assert sorted(task["chunk"] for task in tasks) == sorted([-1, *range(16), *range(16)])
