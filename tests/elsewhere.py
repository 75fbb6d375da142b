"""Models of this program where it is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = """
import sys, zipfile, json
sys.modules['finetuner'] = sys.modules['training'] = sys.modules['registry'] = None
with zipfile.ZipFile(sys.argv[1]) as file:
    file.extractall('.')
from pathlib import Path
from sentence_transformers import SentenceTransformer
[folder] = Path('.').glob('*/models/model')
print(json.dumps(SentenceTransformer(str(folder), device='cpu').encode(sys.argv[2:]).tolist()))
"""


def encode_elsewhere(artifact: Path, texts: Sequence[str], folder: Path) -> list[list[float]]:
    """What sentence-transformers makes of texts, in a process that cannot import this program.

    :param folder: to unpack the artifact in.
    """
    done = subprocess.run(
        [sys.executable, '-I', '-c', SCRIPT, str(artifact), *texts],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'HF_HUB_OFFLINE': '1'},
    )
    return json.loads(done.stdout.splitlines()[-1])
