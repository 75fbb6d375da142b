"""Reading the Dockerfiles, and doing what they do to the code, without a Docker engine."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def stages(name: str) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, the last of which is the image."""
    text = re.sub(r'\\\n\s*', ' ', (ROOT / name).read_text())
    found: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        kind, _, value = line.strip().partition(' ')
        if kind == 'FROM':
            found.append([])
        if kind and not line.startswith('#'):
            found[-1].append((kind, value.strip()))
    return found


def values(name: str, instruction: str, stage: int = -1) -> list[str]:
    return [value for kind, value in stages(name)[stage] if kind == instruction]


def variables(name: str) -> dict[str, str]:
    """The environment of the image."""
    return dict(pair.split('=', 1) for value in values(name, 'ENV') for pair in shlex.split(value))


def copied(name: str) -> set[str]:
    """What is copied from the build context, by all stages."""
    found = [value for stage in range(len(stages(name))) for value in values(name, 'COPY', stage)]
    return {source for value in found if not value.startswith('--from=') for source in value.split()[:-1]}


def install_code(name: str, folder: Path) -> Path:
    """Do what the stage that installs the code does, and return the folder with what it installed."""
    build, target = folder / 'build', folder / 'installed'
    build.mkdir()
    for value in values(name, 'COPY', 1):
        *sources, where = value.split()
        for source in sources:
            copy(ROOT / source, build / where / source if where == './' else build / where)
    (run,) = values(name, 'RUN', 1)
    program, *arguments = shlex.split(run.replace('/opt/finetuner', str(target)))
    assert program == '/opt/venv/bin/pip'
    command = [sys.executable, '-m', 'pip', *arguments, '--quiet', '--disable-pip-version-check']
    subprocess.run(command, cwd=build, check=True)
    return target


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
    else:
        shutil.copy(source, target)
