"""What a caller did wrong is not logged, and what the service did is."""

import logging

import pytest

from executors.refusals import leave_out_refusals
from finetuner import excepts
from finetuner.inference.batcher import DEADLINE_PASSED


@pytest.mark.parametrize(
    ('error', 'is_logged'),
    [
        (excepts.DataError('documents[0] has no text'), False),
        (excepts.AuthenticationError('A token is needed'), False),
        (excepts.NotFoundError('There is no run'), False),
        (TimeoutError(DEADLINE_PASSED), False),
        (TimeoutError('the database'), True),
        (excepts.EngineError('the GPU is gone'), True),
        (excepts.UnavailableError('The database cannot be reached'), True),
        (ValueError('shapes differ'), True),
        (KeyError('id'), True),
    ],
)
def test_refusals(caplog, error, is_logged):
    logger = logging.getLogger('refusing/rep-0/server')
    leave_out_refusals('refusing/rep-0')
    try:
        raise error
    except Exception:
        logger.error('it failed', exc_info=True)
    logger.error('what has no stack')
    assert [record.message for record in caplog.records] == ['it failed'] * is_logged + ['what has no stack']
