"""Asking whether all executors answer."""

import asyncio
from types import SimpleNamespace

import pytest

from executors import probes


@pytest.fixture
def asked():
    return []


def make_check(asked, code=0, seconds=0.01):
    async def ask():
        asked.append(code)
        await asyncio.sleep(seconds)
        return SimpleNamespace(code=code, description='trainer' if code else '')

    return probes.Check(ask)


def test_the_executors_are_asked_once_for_all_who_want_to_know(asked, monkeypatch):
    monkeypatch.setattr(probes, 'FRESH', 0.2)

    async def run():
        check = make_check(asked)
        assert await asyncio.gather(*(check() for _ in range(100))) == [(0, '')] * 100
        await check()
        assert len(asked) == 1
        await asyncio.sleep(0.25)
        await check()
        assert len(asked) == 2

    asyncio.run(run())


def test_who_goes_away_leaves_the_others_their_answer(asked):
    async def run():
        check = make_check(asked, code=1, seconds=0.1)
        first, second = asyncio.create_task(check()), asyncio.create_task(check())
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == (1, 'trainer')

    asyncio.run(run())
    assert len(asked) == 1


def test_an_executor_that_hangs_is_not_awaited_for_ever(asked, monkeypatch):
    monkeypatch.setattr(probes, 'PATIENCE', 0.05)
    code, description = asyncio.run(make_check(asked, seconds=60)())
    assert (code, description) == (1, 'not every executor answers within 0.05 seconds')
