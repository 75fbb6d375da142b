"""What a user's type checker says of the client."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import finetuner

ROOT = Path(finetuner.__file__).parents[1]
GOOD = """
    import asyncio

    import finetuner
    from finetuner import aio
    from finetuner.callback import EvaluationCallback
    from finetuner.results import Progress, RunStatus


    def train() -> dict[str, float]:
        finetuner.login()
        experiment = finetuner.create_experiment('support')
        run = experiment.create_training_run('m', 'train.csv', epochs=2, callbacks=[EvaluationCallback('test.csv')])
        status: RunStatus = run.status()
        progress: Progress = run.wait(timeout=3).progress()
        print(status['status'], progress.eta or 0.0, [piece.upper() for piece in run.stream_logs()])
        client = finetuner.Finetuner()
        names: list[str] = [listed.name for listed in client.list_runs(size=3)]
        total: int = finetuner.usage().datasets.bytes + finetuner.list_datasets()[0].rows
        promoted: str = finetuner.promote('support@production', run.artifact_id).artifact_id
        print(names, total, promoted, finetuner.create_token('laptop', days=3).token, run.save_artifact())
        return run.metrics()['after']


    async def follow() -> str:
        run = await aio.fit('m', 'train.csv', priority=3)
        status: RunStatus = await run.status()
        async for piece in run.stream_logs():
            print(piece.upper(), status['details'])
        waited: aio.Run = await run.wait(timeout=3)
        found: list[aio.Run] = await (await aio.get_experiment('support')).list_runs()
        print(found, (await aio.usage()).max_bytes, (await waited.metrics())['after'])
        return await waited.artifact_id


    train()
    asyncio.run(follow())
"""
BAD = """
    import finetuner
    from finetuner import aio


    async def wrong() -> None:
        run = finetuner.get_run(3)
        run.status()['state']
        run.progress().epoch.upper()
        finetuner.usage().bytes
        await aio.fit('m', 'train.csv', epoch=2)
        (await aio.get_run('x')).logs().upper()
"""


WRONG = {6: 'expected "str"', 7: '"state"', 8: 'Union|None|int', 9: '"bytes"', 10: '"epoch"', 11: '"Awaitable'}
# large, and no part of what is checked
SETTINGS = """
    [mypy]
    strict = true
    follow_imports = silent
    [mypy-torch.*,torchvision.*,transformers.*,timm.*,open_clip.*,onnxruntime.*]
    follow_imports = skip
"""


def test_correct_code_passes_and_wrong_code_does_not(tmp_path):
    pytest.importorskip('mypy')
    for name, content in {'good.py': GOOD, 'bad.py': BAD, 'mypy.ini': SETTINGS}.items():
        (tmp_path / name).write_text(textwrap.dedent(content).lstrip())
    given = [tmp_path / 'mypy.ini', '--no-error-summary', tmp_path / 'good.py', tmp_path / 'bad.py']
    command = [sys.executable, '-m', 'mypy', '--cache-dir', tmp_path / 'cache', '--config-file', *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert not done.stderr and 'good.py' not in done.stdout, done.stdout
    found = {int(line): said for line, said in re.findall(r'bad.py:(\d+): error: (.*)', done.stdout)}
    assert found.keys() == WRONG.keys(), done.stdout
    for line, said in WRONG.items():
        assert re.search(said, found[line]), found[line]
