"""Which rows go into which batch. Both samplers are seeded: the same seed and epoch give the same batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np

from finetuner.excepts import DataError

if TYPE_CHECKING:
    from training.config import FitConfig
    from training.data import Examples

logger = logging.getLogger(__name__)


class Sampler(Protocol):
    @property
    def largest(self) -> int:
        """How many rows a batch may have."""
        ...

    def __len__(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        ...

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        """The batches of one epoch: int64 row numbers, each array one batch."""
        ...


class RandomSampler:
    """Every row once per epoch, in random order. The last batch may be smaller, but a single row that would be left for
    it joins the batch before: alone, it has nothing to be compared with."""

    def __init__(self, rows: int, batch_size: int, seed: int = 0):
        self.rows, self.batch_size, self.seed = rows, batch_size, seed

    @property
    def largest(self) -> int:
        starts = self._starts()
        return self.rows - starts[-1] if len(starts) == 1 else max(self.batch_size, self.rows - starts[-1])

    def __len__(self) -> int:
        return len(self._starts())

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        starts = self._starts()
        for start, end in zip(starts, [*starts[1:], self.rows], strict=True):
            yield order[start:end]

    def _starts(self) -> range:
        starts = range(0, self.rows, self.batch_size)
        return starts[:-1] if len(starts) > 1 and self.rows % self.batch_size == 1 else starts


class ClassSampler:
    """Batches of `batch_size // num_items_per_class` classes with `num_items_per_class` rows of each.

    Every row is seen about once per epoch: a class whose size is no multiple of `num_items_per_class` has its last
    group filled up with rows drawn again, and a class that is smaller than that comes with all its rows. A class is met
    once in a batch, except in the last batches of an epoch when few classes are left. A batch has at least two classes:
    where only one is left, a group of another is drawn again, in place of one of its groups if the batch is full, which
    then waits for another epoch.

    A batch has no more than `batch_size` rows, except where these are too few for two classes of `least` rows.

    Where the numbers do not fit, the nearest that do are used, and the log says so: `items_per_class` and
    `classes_per_batch` are what is used.

    :param labels: class number of every row, integers 0..C-1, shape [N].
    :param least: the fewest rows of a class: 1 if a row is a pair, which has a positive in itself.
    :param name: what messages call the data.
    :raises DataError: there are fewer than two classes, so that nothing can be told apart, or none has two rows where
        `least` asks for two, so that nothing belongs together.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        num_items_per_class: int = 4,
        seed: int = 0,
        least: int = 2,
        name: str = 'the training data',
    ):
        self.labels, self.seed = labels, seed
        self.sizes = np.bincount(labels)
        classes = int((self.sizes > 0).sum())
        if classes < 2:
            raise DataError(f'{name} has {classes} class: at least 2 are needed to tell items apart')
        if self.sizes.max() < least:
            raise DataError(f'no two items of {name} have the same label: nothing is known to belong together')
        self.items_per_class = max(least, min(num_items_per_class, batch_size // 2, int(self.sizes.max())))
        self.classes_per_batch = max(2, batch_size // self.items_per_class)
        if self.classes_per_batch > classes:
            self.classes_per_batch = classes
            self.items_per_class = max(least, batch_size // classes)
        if self.items_per_class != num_items_per_class or self.items_per_class * self.classes_per_batch != batch_size:
            logger.warning(
                'batch_size=%d with num_items_per_class=%d does not work out for %d classes: '
                'batches have %d classes with %d items each',
                batch_size,
                num_items_per_class,
                classes,
                self.classes_per_batch,
                self.items_per_class,
            )
        small = int(((self.sizes > 0) & (self.sizes < self.items_per_class)).sum())
        if small:
            logger.warning('%d of %d classes have fewer than %d items', small, classes, self.items_per_class)
        self.groups = int(np.ceil(self.sizes / self.items_per_class).sum())

    @property
    def largest(self) -> int:
        return self.items_per_class * self.classes_per_batch

    def __len__(self) -> int:
        return -(-self.groups // self.classes_per_batch)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        groups = self._groups(rng)
        labels = self.labels[[group[0] for group in groups]]
        stream = iter(rng.permutation(len(groups)))
        waiting: dict[int, list[np.ndarray]] = {}  # groups that met their own class in a batch, by class
        while True:
            batch = {label: waiting[label].pop() for label in list(islice(waiting, self.classes_per_batch))}
            waiting = {label: rest for label, rest in waiting.items() if rest}
            while len(batch) < self.classes_per_batch:
                if (number := next(stream, None)) is None:
                    break
                label = int(labels[number])
                if label in batch:
                    waiting.setdefault(label, []).append(groups[number])
                else:
                    batch[label] = groups[number]
            if not batch:
                return
            parts = list(batch.values())
            while len(parts) < self.classes_per_batch and waiting:  # few classes are left: take more of each
                label = next(iter(waiting))
                parts.append(waiting[label].pop())
                if not waiting[label]:
                    del waiting[label]
            if len(batch) == 1:  # no negatives: add a group of some other class
                del parts[self.classes_per_batch - 1 :]
                parts.append(groups[rng.choice(np.flatnonzero(labels != next(iter(batch))))])
            yield np.concatenate(parts)

    def _groups(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Every class shuffled and cut into groups of `items_per_class`, the last one filled up from its own class."""
        order = rng.permutation(len(self.labels))
        order = order[np.argsort(self.labels[order], kind='stable')]
        groups, size = [], self.items_per_class
        for rows in np.split(order, np.cumsum(self.sizes)[:-1]):
            missing = -len(rows) % size
            if len(rows) > size and missing:
                rows = np.concatenate([rows, rng.choice(rows[: len(rows) // size * size], missing, replace=False)])
            groups += [rows[start : start + size] for start in range(0, len(rows), size)]
        return groups


class Subset:
    """A sampler over some rows only."""

    def __init__(self, sampler: Sampler, rows: np.ndarray):
        self.sampler, self.rows = sampler, rows

    @property
    def largest(self) -> int:
        return self.sampler.largest

    def __len__(self) -> int:
        return len(self.sampler)

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        return (self.rows[batch] for batch in self.sampler.batches(epoch))


def make_sampler(config: FitConfig, rows: np.ndarray, examples: Examples, batch_size: int) -> Sampler:
    """The sampler that the config names: 'class', 'random', or 'auto', which is 'class' if the loss needs several items
    of a class in a batch.

    :param rows: of the examples, those that are trained on, int64 [M].
    :raises ValueError: 'class' is asked for and there are no labels, or there is one class only.
    """
    if config.sampler == 'random' or (config.sampler == 'auto' and not config.needs_classes):
        return Subset(RandomSampler(len(rows), batch_size, config.seed), rows)
    if examples.labels is None:
        raise ValueError(f"sampler 'class' needs labels, and {examples.name} has none: use 'random'")
    columns = len(examples.columns)  # all items of an example are of its class
    per_class = max(1, config.num_items_per_class // columns)
    numbers = np.unique(examples.labels[rows], return_inverse=True)[1]
    least, name = 2 if columns == 1 else 1, f'the data set {examples.name!r}'
    return Subset(ClassSampler(numbers, batch_size, per_class, config.seed, least, name), rows)
