"""What is logged while an executor loads and serves is seen where its own lines are."""

import json
import logging

from jina.logging.logger import JinaLogger

from executors.encoder import FinetunerExecutor
from executors.log_records import log_as_jina_does

SERVED = {'name': 'encoder/rep-0'}


def test_the_log_of_an_encoder_says_which_engine_was_chosen_and_why(tiny_artifact, capsys):
    FinetunerExecutor(artifact=str(tiny_artifact), runtime_args=SERVED).close()
    said = ' '.join(capsys.readouterr().out.split())
    assert 'onnxruntime embeds' in said
    assert said.index('chose') < said.index('serving')


def test_a_level_is_that_of_all(tiny_artifact, capsys):
    FinetunerExecutor(artifact=str(tiny_artifact), logging_level='WARNING', runtime_args=SERVED).close()
    assert capsys.readouterr().out == ''


def test_what_no_server_runs_leaves_the_log_as_it_is(tiny_artifact):
    before = logging.getLogger('finetuner').handlers
    FinetunerExecutor(artifact=str(tiny_artifact)).close()
    assert logging.getLogger('finetuner').handlers == before


def test_as_json_a_line_is_an_object_with_all_that_is_said(monkeypatch, capsys):
    monkeypatch.setenv('JINA_LOG_CONFIG', 'json')
    log_as_jina_does(JinaLogger('an-executor'), 'an-executor/rep-0')
    logger = logging.getLogger('finetuner.inference.fastest')
    logger.info('chose %s of %d', 'one', 2)
    try:
        raise OSError('the disk is full')
    except OSError:
        logger.exception('it failed')
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first['msg'], first['levelname'], first['name']) == (
        'chose one of 2',
        'INFO',
        'finetuner.inference.fastest',
    )
    assert second['msg'].startswith('it failed\nTraceback')
    assert second['msg'].endswith('OSError: the disk is full')
