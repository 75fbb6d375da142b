"""The commands of docs/rest.md, as they stand there."""

import re
import subprocess

from tests.integration.conftest import ROOT

PRELUDE = """
set -euo pipefail
curl() { echo; command curl --silent --show-error --fail-with-body --max-time 200 "$@"; }
"""


def test_the_commands_of_the_documentation_work(service, tiny_model, tmp_path):
    blocks = re.findall(r'^```sh\n(.*?)^```', (ROOT / 'docs' / 'rest.md').read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    script = PRELUDE + '\n'.join(blocks)
    for written, here in (
        ('http://localhost:51001', f'http://127.0.0.1:{service.http_port}'),
        ("$(python -c 'import finetuner; print(finetuner.get_token())')", service.token),
        ('all-minilm-l6-v2', str(tiny_model)),
    ):
        assert written in script
        script = script.replace(written, here)
    done = subprocess.run(['bash', '-c', script], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert '"after"' in done.stdout
    assert 'etag: "' in done.stdout.lower()
