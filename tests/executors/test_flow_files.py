"""The Flow files are read by Jina as they are meant, with and without environment variables."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from jina import Flow

FLOWS = Path(__file__).parents[2] / 'flows'
NAMES = ['encode.yml', 'serve.yml', 'train.yml', 'finetuner.yml', 'manifests.yml', 'search.yml']


def test_ports_have_defaults(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith('FINETUNER_')}
    script = 'import sys; from jina import Flow; [print(f.port, f.host) for f in map(Flow.load_config, sys.argv[1:])]'
    command = [sys.executable, '-W', 'ignore', '-c', script, *(str(FLOWS / name) for name in NAMES)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['[51000, 51001] 127.0.0.1'] * len(NAMES), 'nobody else reaches it'


@pytest.mark.parametrize('name', NAMES)
def test_ports_follow_the_environment_each_time(name, monkeypatch):
    monkeypatch.setenv('FINETUNER_LISTEN', '0.0.0.0')
    for port in (52000, 53000):
        monkeypatch.setenv('FINETUNER_PORT', str(port))
        monkeypatch.setenv('FINETUNER_HTTP_PORT', str(port + 1))
        flow = Flow.load_config(str(FLOWS / name))
        assert flow.port == [port, port + 1]
        assert flow.host == '0.0.0.0'
        assert [protocol.name for protocol in flow.protocol] == ['GRPC', 'HTTP']


@pytest.mark.parametrize(
    ('name', 'executors'),
    [
        ('encode.yml', ['encoder']),
        ('serve.yml', []),
        ('train.yml', ['dataset', 'trainer']),
        ('finetuner.yml', ['dataset', 'clicks', 'trainer', 'encoder']),
        ('manifests.yml', ['dataset', 'clicks', 'trainer', 'encoder']),
        ('search.yml', ['clicks', 'trainer', 'search']),
    ],
)
def test_executors(name, executors):
    flow = Flow.load_config(str(FLOWS / name)).build()
    nodes = [node for node, _ in flow if node != 'gateway']
    assert nodes == executors
    if 'trainer' in nodes:
        assert flow['gateway'].args.retries == 0, 'the gateway sends /fit once'
    assert all(flow[name].args.host in ('127.0.0.1', ['127.0.0.1']) for name in executors)
    alone = {'grpc.http2.max_ping_strikes': 0, 'grpc.so_reuseport': 0}
    no_pings = {'grpc.keepalive_time_ms': 7200000}
    patience = {'grpc.keepalive_time_ms': 30000, 'grpc.keepalive_timeout_ms': 20000}
    for name in ['gateway', *executors]:
        assert flow[name].args.grpc_server_options == {**alone, **no_pings}
        assert flow[name].args.grpc_channel_options == (patience if executors else None)
    assert os.environ['JINA_OPTOUT_TELEMETRY'] == '1'


@pytest.mark.parametrize('name', NAMES)
def test_a_port_is_never_shared_with_another_service(name):
    """Jina looks whether a port is free, and binds it once the executor is made: another may have it by then."""
    gateway = Flow.load_config(str(FLOWS / name)).build()['gateway']
    options = list(gateway.args.grpc_server_options.items())

    async def serve_twice() -> None:
        first, second = grpc.aio.server(options=options), grpc.aio.server(options=options)
        port = first.add_insecure_port('127.0.0.1:0')
        await first.start()
        with pytest.raises(RuntimeError, match='Failed to bind'):
            second.add_insecure_port(f'127.0.0.1:{port}')
        await first.stop(None)

    asyncio.run(serve_twice())
