"""A stream of requests is read as fast as there is room, and leaves nothing behind when its client goes."""

import asyncio

import pytest

from executors.pacing import Pacing
from executors.rate import Room


class Request:
    def __init__(self, size: int):
        self.buffer = b'x' * size


@pytest.fixture
def run():
    """Runs a coroutine function on two requests of 50 bytes in a stream that stays open."""

    async def requests():
        yield Request(50)
        yield Request(50)
        await asyncio.sleep(60)

    async def admit(request):
        pass

    def run(test, at_once, room):
        pacing = Pacing(at_once, room, admit)

        async def limited():
            paced = pacing.pace(requests())
            async with asyncio.timeout(10):
                await test(pacing, paced)
            await paced.aclose()

        asyncio.run(limited())

    return run


async def second_that_waits(paced) -> asyncio.Task:
    """The second request of a stream, once it is seen that the first keeps it waiting."""
    await anext(paced)
    following = asyncio.create_task(anext(paced))
    await asyncio.sleep(0.2)
    assert not following.done()
    return following


def test_the_next_request_waits_for_an_answer(run):
    async def test(pacing, paced):
        following = await second_that_waits(paced)
        pacing.answered()
        await following

    run(test, 1, Room(1000))


def test_the_next_request_waits_for_room(run):
    room = Room(99)

    async def test(pacing, paced):
        following = await second_that_waits(paced)
        pacing.answered()
        await following
        assert room.held == 50

    run(test, 10, room)


@pytest.mark.parametrize('at_once', [1, 10])
def test_who_goes_while_a_request_waits_leaves_nothing(run, at_once):
    room = Room(99)

    async def test(pacing, paced):
        following = await second_that_waits(paced)
        pacing.end()
        with pytest.raises(StopAsyncIteration):
            await following
        assert room.held == 0

    run(test, at_once, room)
