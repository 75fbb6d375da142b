"""Which GPUs this machine has, without the weight of torch."""

from __future__ import annotations

import os
import shutil
import subprocess

VARIABLE = 'FINETUNER_GPUS'


def find_gpus() -> tuple[str, ...]:
    """The ids of the GPUs that runs may use, as CUDA_VISIBLE_DEVICES takes them: those of that variable, or all of the
    machine; of these the first `FINETUNER_GPUS`, if that is set.

    :raises ValueError: it is no number.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    found = [name.strip() for name in visible.split(',')] if visible is not None else _installed()
    found = [name for name in found if name and name != '-1']
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return tuple(found)
    if not wanted.isdigit():
        raise ValueError(f'{VARIABLE} is {wanted!r}: give the number of GPUs that runs may use')
    # more than are seen: the operator knows better than nvidia-smi, which may not be installed
    return tuple([*found, *map(str, range(len(found), int(wanted)))][: int(wanted)])


def _installed() -> list[str]:
    if shutil.which('nvidia-smi') is None:
        return []
    command = ['nvidia-smi', '--query-gpu=index', '--format=csv,noheader']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split() if done.returncode == 0 else []
