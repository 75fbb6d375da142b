"""FinetunerExecutor where others put it: in a Flow in Python, behind Jina's own gateway, each request with a token."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetuner.documents import Document
from finetuner.excepts import AuthenticationError
from tests.integration.conftest import ROOT, clean_environment, free_ports

CONFIG = ROOT / 'config.yml'


def test_a_flow_in_python_serves_the_artifact_of_a_run(service, finished_run, run_python):
    printed = run_python(
        """
        import sys
        from finetuner import Document, DocumentArray
        from jina import Flow

        config, artifact, token = sys.argv[1:]
        options = {'artifact': artifact, 'token': token, 'is_onnx': True, 'logging_level': 'DEBUG'}
        f = Flow().add(uses=config, uses_with=options)
        with f:
            returned_docs = f.post(on='/encode', inputs=DocumentArray([Document(text='some text to encode')]))
            for doc in returned_docs:
                print(f'Text of the returned document: {doc.text}')
                print(f'Shape of the embedding: {doc.embedding.shape}')
            try:
                f.post(on='/nope', inputs=DocumentArray([Document(text='x')]))
            except Exception as error:
                print('refused:', str(error).replace('\\\\', ''))
        """,
        CONFIG,
        finished_run['artifact_id'],
        service.token,
        FINETUNER_HOME=service.folder / 'home',
    )
    assert 'Text of the returned document: some text to encode' in printed
    assert 'Shape of the embedding: (32,)' in printed
    assert 'with ONNXRuntimeInferenceEngine, 32 dimensions' in printed
    assert 'embedded 1 documents' in printed, 'logging_level sets the level'
    assert 'unknown endpoint: FinetunerExecutor has /encode' in printed
    assert service.token not in printed


@pytest.mark.slow
def test_a_start_that_cannot_succeed_fails_soon_and_says_why(service, finished_run, run_python):
    printed = run_python(
        """
        import sys, time
        from jina import Flow

        config, artifact, token = sys.argv[1:]
        for values in (
            {'artifact': artifact, 'token': 'not-the-token'},
            {'artifact': artifact},
            {'artifact': 'f' * 24, 'token': token},
            {'artifact': '/nowhere/model.zip'},
            {'logging_level': 'LOUD'},
        ):
            start = time.monotonic()
            try:
                with Flow().add(uses=config, uses_with=values):
                    print('it runs')
            except Exception as error:
                assert time.monotonic() - start < 45
                print('failed:', type(error).__name__)
        """,
        CONFIG,
        finished_run['artifact_id'],
        service.token,
        FINETUNER_HOME=service.folder / 'home',
    )
    assert printed.count('failed: RuntimeFailToStart') == 5
    assert 'it runs' not in printed
    artifact = finished_run['artifact_id']
    assert f'cannot serve {artifact}: The token is not known to this service' in printed
    assert f'cannot serve {artifact}: A token is needed' in printed
    assert 'There is no artifact' in printed
    assert "there is no artifact '/nowhere/model.zip'" in printed
    assert "logging_level is 'LOUD': choose DEBUG" in printed
    assert 'not-the-token' not in printed
    assert service.token not in printed


@pytest.mark.slow
def test_beside_other_executors_behind_jinas_own_gateway(service, finished_run, run_python):
    printed = run_python(
        """
        import sys
        from finetuner import Document, DocumentArray
        from jina import Executor, Flow, requests

        class Indexer(Executor):
            @requests(on=['/index', '/count'])
            def index(self, docs: DocumentArray, **kwargs) -> DocumentArray:
                for doc in docs:
                    doc.tags['indexed'] = doc.embedding is not None
                return docs

        flow = Flow().add(
            uses='executors.encoder.FinetunerExecutor',
            uses_with={'artifact': sys.argv[1], 'refuse_unknown': False},
            uses_requests={'/index': 'encode'},
        ).add(uses=Indexer)
        with flow:
            docs = DocumentArray([Document(text='x', chunks=[Document(text='y')])])
            for endpoint in ('/index', '/count'):
                print(endpoint, flow.post(endpoint, docs, parameters={'limit': 3})[0].tags)
        """,
        finished_run['artifact_id'],
        FINETUNER_HOME=service.folder / 'home',
        FINETUNER_CONFIG_DIR=service.folder / 'config',
    )
    assert "/index {'indexed': True}" in printed
    assert "/count {'indexed': False}" in printed


def test_the_flow_for_serving_needs_nothing_and_can_demand_tokens(start_service):
    service = start_service('encode.yml', FINETUNER_REQUIRE_TOKEN='true')
    assert 'no artifact is given: serving the pretrained model all-minilm-l6-v2' in service.log.read_text()
    assert service.call('/encode', [Document(text='x')]).embeddings.shape == (1, 384)
    for token, sentence in ((None, 'A token is needed'), ('wrong', 'not known')):
        with pytest.raises(AuthenticationError, match=sentence):
            service.call('/encode', [Document(text='x')], token=token)
        response = service.post('/encode', [{'text': 'x'}], token=token)
        assert response.status_code == 401
    assert service.post('/fit').json()['detail'] == "unknown endpoint '/fit': this service has /encode, /encode_texts"


@pytest.mark.parametrize('flow', ['serve.yml', pytest.param('encode.yml', marks=pytest.mark.slow)])
def test_a_model_that_cannot_be_served_is_told_without_stacks(tmp_path, flow):
    command = [Path(sys.executable).with_name('jina'), 'flow', '--uses', ROOT / 'flows' / flow]
    ports = dict(zip(('FINETUNER_PORT', 'FINETUNER_HTTP_PORT'), free_ports(2), strict=True))
    environment = clean_environment(FINETUNER_HOME=tmp_path, FINETUNER_ARTIFACT=tmp_path / 'no.zip', **ports)
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    printed = done.stdout + done.stderr
    assert f"there is no artifact '{tmp_path}/no.zip'" in printed
    assert 'Traceback' not in printed


@pytest.mark.slow
def test_a_flow_of_manifests_is_the_whole_service(start_service, tiny_model):
    service = start_service('manifests.yml', FINETUNER_ARTIFACT=tiny_model)
    service.ingest_fruits()
    assert service.fit(tiny_model, 'by-manifest')['status'] == 'CREATED'
    assert service.call('/encode', [Document(text='x')]).embeddings.shape == (1, 32)
    assert service.wait_for('by-manifest', 'FINISHED', 'FAILED')['status'] == 'FINISHED'
