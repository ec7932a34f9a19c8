"""The fuzzing suite: a short form of it, and that it counts each kind of outcome."""

import mmap
import os
import time
from pathlib import Path

import pytest
from fuzz import pool
from fuzz.cases import ACCEPTED, FAILURES, RIGHT, Case, Target, WrongError
from fuzz.pool import run_all
from fuzz.run import jobs
from fuzz.targets import TARGETS

from pinmem_core.errors import DataError


@pytest.mark.slow
def test_no_damaged_input_is_taken_wrongly_or_ends_in_a_traceback():
    failed = [
        f"{result.target.name} {result.index}: {result.outcome}: {result.detail}"
        for result in run_all(jobs(TARGETS, 300), seed=0, workers=2)
        if result.outcome in FAILURES
    ]
    assert not failed, "\n".join(failed)


def _refuse(*_: object) -> str:
    raise DataError("the file is damaged.")


def _wrong(*_: object) -> str:
    raise WrongError("another value")


def _crash(*_: object) -> str:
    raise KeyError("x")


def _die(*_: object) -> str:
    os._exit(1)


def _sleep(*_: object) -> str:
    time.sleep(30)
    return ACCEPTED


def _fill(*_: object) -> str:
    """Map pages of its own: an allocation may take freed memory, which is no increase."""
    with mmap.mmap(-1, 100 << 20) as pages:
        pages[:: mmap.PAGESIZE] = bytes(len(pages) // mmap.PAGESIZE)
    return RIGHT


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda *_: RIGHT, "right"),
        (lambda *_: ACCEPTED, "accepted"),
        (_refuse, "clean error"),
        (_wrong, "wrong"),
        (_crash, "internal error"),
        (_die, "internal error"),
        pytest.param(_sleep, "hang", marks=pytest.mark.slow),
        (_fill, "memory"),
    ],
)
def test_every_outcome_is_counted_as_what_it_is(monkeypatch, read, outcome):
    monkeypatch.setattr(pool, "LONGEST", 0.3)
    monkeypatch.setattr(pool, "MOST_MEMORY", 50 << 20)
    target = Target("x", lambda rng: Case({"a": rng.randbytes(3)}), read)
    results = [*run_all([(target, 0), (target, 1)], seed=0, workers=1)]
    assert [result.outcome for result in results] == [outcome] * 2


def test_an_intact_input_that_is_refused_is_wrong(tmp_path: Path):
    target = Target("x", lambda rng: Case({}, intact=True), _refuse)
    assert pool.run_one(target, 0, 0, tmp_path / "input")[0] == "wrong"


def test_inputs_are_the_same_each_time_and_every_format_gets_its_share():
    few = jobs(TARGETS, 500)
    assert few == jobs(TARGETS, 500)
    assert {target.name for target, _ in few} == {target.name for target in TARGETS}
