"""The main job, end to end: ingest → fit → serve, on the support-desk questions beside this file. `make demo` runs it.

State goes to the folder `.demo`, so that the commands printed at the end have something to work on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from jina import Flow
from rich.console import Console
from rich.table import Table

import finetuner
from finetuner import Document, DocumentArray, Run
from finetuner.callback import EvaluationCallback
from finetuner.excepts import FinetunerServerError

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / '.demo'


TRAIN = ROOT / 'examples' / 'support' / 'train.csv'
TEST = ROOT / 'examples' / 'support' / 'test.csv'
PORTS = 51000, 51001, 51010, 51011
console = Console(width=min(Console().width, 120) if sys.stdout.isatty() else 110, highlight=False)


def free_port(preferred: int) -> int:
    """The preferred port, or any free one if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('localhost', preferred))
        except OSError:
            probe.bind(('localhost', 0))
        return int(probe.getsockname()[1])


@contextmanager
def service(port: int, http_port: int) -> Iterator[None]:
    """`finetuner serve` as a child process: ingestion, training and serving behind one gRPC and one HTTP port."""
    finetuner_command = str(Path(sys.executable).with_name('finetuner'))
    command = [finetuner_command, 'serve', '--port', str(port), '--http-port', str(http_port)]
    with (STATE / 'service.log').open('w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=STATE)
    try:
        wait_for(process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(process: subprocess.Popen[bytes], seconds: float = 180) -> None:
    """Log in as soon as the service answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return finetuner.login()
        except (FinetunerServerError, PermissionError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f'The service did not start: {error}; {STATE}/service.log says more') from error
            time.sleep(0.5)


def fine_tune() -> Run:
    run = finetuner.fit(
        model='all-minilm-l6-v2',
        train_data=str(TRAIN),
        loss='MultiSimilarityLoss',
        epochs=6,
        batch_size=64,
        learning_rate=5e-5,
        device='cpu',
        callbacks=[
            EvaluationCallback(query_data=str(TEST), index_data=str(TRAIN), limit=20, gather_examples=True),
        ],
    )
    if console.is_terminal:
        run.wait()  # a progress bar
    else:
        for line in run.stream_logs():
            console.print(line.rstrip(), markup=False, soft_wrap=True)
    return run


def show_metrics(metrics: dict[str, dict[str, float]]) -> None:
    table = Table('metric (k = 20)', title='Held-out questions against the training questions')
    for column in ('before', 'after', 'change'):
        table.add_column(column, justify='right')
    for name, before in metrics['before'].items():
        after = metrics['after'][name]
        table.add_row(name, f'{before:.3f}', f'{after:.3f}', f'{after - before:+.3f}')
    console.print(table)


def require_gain(metrics: dict[str, dict[str, float]], at_least: float = 0.05) -> None:
    gain = metrics['after']['average_precision'] - metrics['before']['average_precision']
    if gain < at_least:
        raise SystemExit(f'average_precision rose by {gain:.3f} only: {at_least} is what this data and model can do')


def show_examples(examples: dict[str, dict[str, list[str]]], queries: int = 5, matches: int = 3) -> None:
    """The queries whose matches changed most come first: they are what fine-tuning is for."""
    before, after = examples['before'], examples['after']
    changed = sorted(before, key=lambda query: len(set(before[query][:matches]) & set(after[query][:matches])))
    table = Table('question', 'best matches before', 'best matches after', title='What changed', show_lines=True)
    for query in changed[:queries]:
        table.add_row(
            query,
            '\n'.join(f'• {m}' for m in before[query][:matches]),
            '\n'.join(f'• {m}' for m in after[query][:matches]),
        )
    console.print(table)


def serve_and_encode(run: Run, port: int, http_port: int) -> None:
    """The page "Use FinetunerExecutor inside a Jina Flow", and the same request over HTTP."""
    warnings.filterwarnings('ignore', category=UserWarning)  # of Jina's HTTP gateway, about pydantic
    text = 'some text to encode'
    flow = Flow(protocol=['grpc', 'http'], port=[port, http_port], host='127.0.0.1').add(
        uses=str(ROOT / 'config.yml'),
        host='127.0.0.1',
        uses_with={'artifact': run.artifact_id, 'token': finetuner.get_token()},
    )
    with flow as f:
        docs = f.post(on='/encode', inputs=DocumentArray([Document(text=text)]))
        for doc in docs:
            console.print(f'gRPC  /encode  {doc.text!r} → embedding of shape {doc.embedding.shape}')
        answer = requests.post(f'http://localhost:{http_port}/encode', json={'data': [{'text': text}]}, timeout=60)
        answer.raise_for_status()
        embedding = np.array(answer.json()['data'][0]['embedding'], dtype=np.float32)
        difference = np.abs(embedding - docs[0].embedding).max()
        console.print(
            f'HTTP  /encode  {text!r} → {len(embedding)} numbers, at most {difference:.1e} from those over gRPC'
        )


def main() -> None:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the service is stopped too
    STATE.mkdir(exist_ok=True)
    grpc_port, http_port, *serving_ports = map(free_port, PORTS)
    os.environ |= {
        'FINETUNER_HOME': str(STATE / 'home'),
        'FINETUNER_CONFIG_DIR': str(STATE / 'config'),
        'FINETUNER_HOST': f'grpc://localhost:{grpc_port}',
        'JINA_LOG_LEVEL': 'ERROR',
    }
    console.rule('1  Start flows/finetuner.yml')
    with service(grpc_port, http_port):
        console.print(f'gRPC on {grpc_port}, HTTP on {http_port}, state in {STATE}')
        console.rule('2  Ingest examples/support and fine-tune all-MiniLM-L6-v2')
        run = fine_tune()
        console.rule('3  Is it better?')
        metrics = run.metrics()
        show_metrics(metrics)
        require_gain(metrics)
        show_examples(run.example_results())
        console.rule('4  Serve the artifact and encode')
        path = run.save_artifact(str(STATE / 'artifacts'))
        serve_and_encode(run, *serving_ports)
    console.rule(f'Done in {time.monotonic() - started:.0f} s')
    console.print(
        f"""The artifact is {path}. To go on:

  source .venv/bin/activate
  export FINETUNER_HOME={STATE}/home FINETUNER_CONFIG_DIR={STATE}/config
  finetuner serve {run.artifact_id}       # serve this model
  finetuner serve                               # or everything, then in another shell:
  finetuner runs
  finetuner logs {run.name}
  finetuner fit YOUR.csv                        # two columns: text,label""",
        soft_wrap=True,
    )


if __name__ == '__main__':
    main()
