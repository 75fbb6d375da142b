"""The description of the REST API: complete, valid, and true whatever is sent."""

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import requests
from schemathesis.specs.openapi.definitions import OPENAPI_31

CHECKS = (
    'not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,'
    'response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,'
    'allow_header_conformance,ignored_auth'
)
# a stream of a run that waits does not end, and what ends all runs leaves nothing to look at
EXCLUDED = r'logstream$'


@pytest.fixture(scope='module')
def schema(service):
    return requests.get(f'http://127.0.0.1:{service.http_port}/openapi.json', timeout=60).json()


def operations(schema):
    return [(method, path, operation) for path, item in schema['paths'].items() for method, operation in item.items()]


def test_it_is_openapi(schema):
    jsonschema.Draft202012Validator(OPENAPI_31).validate(schema)
    assert schema['openapi'].startswith('3.1')
    assert "'#/$defs" not in str(schema), 'a reference that leads nowhere'


def test_every_operation_has_a_name_of_its_own_and_all_its_answers(schema):
    found = operations(schema)
    names = [operation['operationId'] for _, _, operation in found]
    assert len(set(names)) == len(names) > 40
    for method, path, operation in found:
        if path == '/':  # Jina's own
            continue
        responses = operation['responses']
        assert {'400', '422', '429', '500', '503'} <= set(responses), (method, path)
        for code, response in responses.items():
            if code >= '400':
                form = 'OpenAIError' if path.startswith('/v1/') else 'Error'
                assert response['content']['application/json']['schema'] == {'$ref': f'#/components/schemas/{form}'}
        if path.startswith('/api/v1') and path != '/api/v1/ping':
            assert operation['security'] == [{'bearer': []}], (method, path)
            assert '401' in responses
        for parameter in operation.get('parameters', []):
            shape = parameter['schema']
            if shape.get('type') == 'integer':
                assert 'minimum' in shape and 'maximum' in shape, (path, parameter)
            if parameter['in'] == 'path' and shape.get('type') == 'string':
                assert 'pattern' in shape, (path, parameter)
    assert schema['components']['securitySchemes']['bearer']['scheme'] == 'bearer'


def test_the_parameters_of_an_endpoint_are_told_with_their_bounds(schema):
    content = schema['paths']['/logs']['post']['requestBody']['content']
    assert set(content) == {'application/json', 'application/x-protobuf'}
    parameters = content['application/json']['schema']['properties']['parameters']
    assert {'run_name', 'run_id', 'experiment_name', 'offset'} <= parameters['properties'].keys()
    assert 'token' not in parameters['properties'], 'it is a header'
    assert (parameters['properties']['offset']['minimum'], parameters['additionalProperties']) == (0, False)
    query = {entry['name']: entry for entry in schema['paths']['/logstream']['get']['parameters']}
    assert 'run_name' in query and 'token' not in query


def fuzz(service, *options: str, timeout: float) -> None:
    """Send what the description allows and what it does not, and hold every answer against it."""
    command = [
        Path(sys.executable).with_name('schemathesis'),
        'run',
        f'http://127.0.0.1:{service.http_port}/openapi.json',
        *('--header', f'Authorization: Bearer {service.token}'),
        *('--checks', CHECKS, '--exclude-path-regex', EXCLUDED, '--exclude-path', '/'),
        *('--seed', '1', '--no-color', '--request-timeout', '60', '--continue-on-failure', '--warnings', 'off'),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=service.folder)
    assert done.returncode == 0, done.stdout[-15_000:] + done.stderr[-2000:]
    assert service.token not in service.log.read_text()


def test_answers_are_what_the_description_says(service):
    fuzz(service, '--phases', 'examples,coverage', '--max-time', '12', timeout=200)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_answers_are_what_the_description_says_at_length(start_service, tiny_model):
    service = start_service('finetuner.yml', FINETUNER_ARTIFACT=tiny_model)  # its own: it revokes its first token
    service.ingest_fruits()
    fuzz(service, '--phases', 'examples,coverage,fuzzing,stateful', '--max-examples', '60', timeout=1400)
