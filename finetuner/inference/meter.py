"""What a server of a model tells of its work, to whoever counts it."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERED, FAILED, REFUSED, GIVEN_UP = 'answered', 'failed', 'refused', 'given_up'
HIT, SHARED, MISS = 'hit', 'shared', 'miss'


@dataclass(frozen=True)
class Batch:
    """One batch that the model has computed.

    :param items: in it, of all requests.
    :param requests: that they are of.
    :param used: tokens of texts, otherwise items.
    :param computed: the same with padding.
    :param room: the most that a batch has of what is `used`.
    """

    items: int
    requests: int
    used: int
    computed: int
    room: int


class Meter:
    """Counts nothing. Its methods are called from several threads."""

    def request(self, items: int, seconds: float, outcome: str) -> None:
        """A request has been answered, has failed, was refused as there was no room, or was given up by its caller."""

    def waited(self, seconds: float) -> None:
        """The first items of a request have been given to the model, so long after they came."""

    def batch(self, batch: Batch) -> None:
        """The model has computed a batch."""

    def looked_up(self, items: int, outcome: str) -> None:
        """So many items were in the cache, were computed for others just then, or were computed."""
