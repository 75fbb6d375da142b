"""Make a virtual environment that has pip, also where Debian's python3-venv (ensurepip) is not installed.

python3.11 tools/make_venv.py .venv
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv
from pathlib import Path

PIP = 'pip-25.3-py3-none-any.whl'
INDEX = 'https://pypi.org/simple/pip/'
PIP_SHA256 = '9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd'


def fetch_pip(folder: Path) -> Path:
    """Download the pinned pip wheel. A wheel of pip runs as it is, so nothing needs to be installed to use it."""
    with urllib.request.urlopen(INDEX, timeout=60) as response:
        link = re.search(rf'href="([^"]*{re.escape(PIP)})', response.read().decode())
    if link is None:
        raise SystemExit(f'{INDEX} does not list {PIP}: install the package python3.11-venv instead')
    url = urllib.parse.urljoin(INDEX, link[1])
    with urllib.request.urlopen(url, timeout=60) as response:
        wheel: bytes = response.read()
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != PIP_SHA256:
        raise SystemExit(f'{url} has the sha256 {digest}, not {PIP_SHA256}: it was altered on the way')
    path = folder / PIP
    path.write_bytes(wheel)
    return path


def main(target: str) -> None:
    has_ensurepip = importlib.util.find_spec('ensurepip') is not None
    venv.create(target, with_pip=has_ensurepip, symlinks=True, clear=True)
    if not has_ensurepip:
        with tempfile.TemporaryDirectory() as folder:
            wheel = fetch_pip(Path(folder))
            subprocess.run([f'{target}/bin/python', f'{wheel}/pip', 'install', '--quiet', str(wheel)], check=True)


if __name__ == '__main__':
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(f'Python 3.11 is needed (Jina has no wheels for later ones), this is {sys.version.split()[0]}')
    main(sys.argv[1])
