"""The infinity server, the peer of benchmarks/serving.py. `make .venv-infinity/.installed` makes its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from servers import answers, free_port, running

ENVIRONMENT = Path(__file__).parents[1] / '.venv-infinity' / 'bin'

# what its optimum engine does with a model of the hub; with one in a folder, it does not get that far
_FUSE = """
import sys
from optimum.onnxruntime import ORTModelForFeatureExtraction, ORTOptimizer
from optimum.onnxruntime.configuration import OptimizationConfig
model = ORTModelForFeatureExtraction.from_pretrained(sys.argv[1])
options = OptimizationConfig(optimization_level=99, optimize_with_onnxruntime_only=False, optimize_for_gpu=False)
ORTOptimizer.from_pretrained(model).optimize(save_dir=sys.argv[1], optimization_config=options)
"""


@dataclass(frozen=True)
class Server:
    """
    :param start: seconds until it was ready.
    """

    process: psutil.Process
    url: str
    start: float


def is_installed() -> bool:
    return (ENVIRONMENT / 'infinity_emb').is_file()


def fused_model(model: Path, folder: Path) -> Path:
    """The model as optimum exports it and fuses its operators, a folder with `model_optimized.onnx`."""
    target = folder / 'fused'
    export = [ENVIRONMENT / 'optimum-cli', 'export', 'onnx', '--task', 'feature-extraction']
    for command in (
        [*export, '--library', 'transformers', '--model', model, target],
        [ENVIRONMENT / 'python', '-c', _FUSE, target],
    ):
        done = subprocess.run(command, env=_variables(1), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f'optimum failed:\n{done.stderr[-2000:]}')
    return target


@contextmanager
def running_infinity(model: Path, engine: str, name: str, threads: int, dtype: str = 'float32') -> Iterator[Server]:
    """
    :param engine: 'torch' or 'optimum'.
    :param name: what requests call the model.
    :param dtype: what torch computes in, 'float32' or 'bfloat16'.
    """
    port = free_port()
    options = {'model-id': model, 'served-model-name': name, 'engine': engine, 'device': 'cpu', 'dtype': dtype}
    options |= {'host': '127.0.0.1', 'port': port}
    command = [str(ENVIRONMENT / 'infinity_emb'), 'v2', '--no-bettertransformer', '--no-compile']
    command += [word for key, value in options.items() for word in (f'--{key}', str(value))]
    url = f'http://127.0.0.1:{port}'
    with running(command, _variables(threads), lambda: answers(f'{url}/health')) as (process, start):
        yield Server(process, url, start)


def _variables(threads: int) -> dict[str, str]:
    own = {'OMP_NUM_THREADS': str(threads), 'HF_HUB_OFFLINE': '1', 'DO_NOT_TRACK': '1'}
    return {**os.environ, **own, 'INFINITY_ANONYMOUS_USAGE_STATS': '0', 'PYTHONWARNINGS': 'ignore'}
