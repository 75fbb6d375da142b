"""What an iteration learns from and is measured by: a batch of clicks, dealt out into three parts."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetuner.excepts import DataError
from registry import Registry
from registry.shards import write_shard
from training.clicks.examples import Judged, judge, training_documents
from training.clicks.split import split_sessions
from training.losses import objective_shape
from training.methods.method import Method

logger = logging.getLogger(__name__)

SHARD, DIGEST, ITEMS = 'clicks.arrow', 'clicks.sha256', 'items'


@dataclass(frozen=True, eq=False)
class Material:
    """No query is in two parts.

    :param shard: the file of the training data.
    :param validation: sessions by which trainings are compared.
    :param test: sessions that are looked at once, to judge the best of them: nothing was chosen by these.
    :param items: contents by object id.
    :param shared_items: the share of the items of `test` that the other sessions show, too.
    """

    shard: Path
    validation: Judged
    test: Judged
    items: Mapping[str, str | Path]
    shared_items: float

    @cached_property
    def digest(self) -> str:
        """Of all that a training learns from, and is compared by: the sha256, hexadecimal."""
        digest = hashlib.sha256((self.shard.parent / DIGEST).read_bytes())
        for entry in self.validation.sessions:
            digest.update('\0'.join([entry.session_id, entry.query, *entry.items]).encode())
            digest.update(entry.clicks.tobytes() + entry.positions.tobytes())
            for content in map(self.items.__getitem__, entry.items):
                digest.update(content.encode() if isinstance(content, str) else content.read_bytes())
        return digest.hexdigest()


def gather(registry: Registry, account_id: str, batch_id: str, method: Method, seed: int, folder: Path) -> Material:
    """Read a batch of clicks. The same sessions and the same seed give the same.

    :param folder: where training data and images are put. If the data are not those that are there from before,
        `trials` in it, which learn from them, are removed.
    :raises DataError: there is too little to learn from or to measure by; the message says of what.
    """
    options = method.clicks
    sessions = registry.clicks.all_batch_sessions(account_id, batch_id)
    feedback = method.feedback(sessions)
    if not feedback:
        raise DataError(f'the batch {batch_id} has no session with a query and results')
    if not any(entry.clicks.any() for entry in feedback):
        kinds = ', and are they of the types that clicks.events of the method names' if options.events else ''
        several = f'none of the {len(feedback)} sessions of the batch has a click'
        found = several if len(feedback) > 1 else 'the only session of the batch has no click'
        raise DataError(f'{found}: nothing can be learned from that; do the events arrive{kinds}?')
    loaded = method.load_items(registry.clicks.all_batch_sessions(account_id, batch_id), folder / ITEMS)
    held_out = split_sessions(feedback, options.test_share, seed)
    inner = split_sessions(held_out.train, options.test_share, seed + 1)
    train = judge(inner.train, options, loaded.contents)
    validation = judge(inner.test, options, loaded.contents, train.propensities)
    test = judge(held_out.test, options, loaded.contents, train.propensities)
    for part, what in ((validation, 'to compare trainings by'), (test, 'to judge the result by')):
        if not any(entry.clicks.any() for entry in part.sessions):
            raise DataError(
                f'{len(feedback)} sessions are too few: none of the {len(part.sessions)} that are held out {what} has '
                'a click'
            )
    shape = objective_shape(method.loss, method.loss_options)
    info = write_shard(training_documents(train, options, loaded.contents, shape, seed), folder / SHARD)
    digest = folder / DIGEST
    if digest.exists() and digest.read_text() != info.content_digest:  # a user's sessions were deleted meanwhile
        shutil.rmtree(folder / 'trials', ignore_errors=True)
    digest.write_text(info.content_digest)
    logger.info(
        '%d sessions: %d to learn from (%d %s), %d to compare trainings by, %d to judge the result by',
        len(feedback),
        len(train.sessions),
        info.rows,
        info.shape,
        len(validation.sessions),
        len(test.sessions),
    )
    return Material(folder / SHARD, validation, test, loaded.contents, held_out.shared_items)
