"""What importing the client costs, and what it does without."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ('torch', 'transformers', 'jina', 'sqlalchemy', 'pyarrow', 'pandas', 'docarray', 'onnxruntime')
WITHOUT_JINA = """
import sys

class NoJina:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'jina':
            raise ImportError(f'{name} is blocked')

sys.meta_path.insert(0, NoJina())
"""


def python(code):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout


def test_importing_finetuner_is_quick_and_light():
    timed = """
import time
start = time.perf_counter()
import finetuner
import sys
print(time.perf_counter() - start)
print(*sys.modules)
"""
    seconds, loaded = min((python(timed).splitlines() for _ in range(3)), key=lambda lines: float(lines[0]))
    assert not {*HEAVY, 'numpy'} & set(loaded.split())
    assert float(seconds) < 0.5


def test_public_names_are_there():
    import finetuner

    for name in finetuner.__all__:
        assert getattr(finetuner, name) is not None
    assert set(finetuner.__all__) <= set(dir(finetuner))
    with pytest.raises(AttributeError, match='no attribute'):
        finetuner.connect  # noqa: B018


def test_talking_to_a_service_needs_no_docarray(service):
    code = f"""
import finetuner, sys
assert finetuner.get_token()
finetuner.login()
print(*[name for name in {HEAVY} if name in sys.modules])
"""
    assert python(code).strip() == ''


def test_only_the_executors_need_jina():
    python(f"""{WITHOUT_JINA}
import importlib, pkgutil
import finetuner, registry, training
for package in (finetuner, registry, training):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        if not module.name.endswith('__main__') and '.migrations' not in module.name:
            importlib.import_module(module.name)
assert 'jina' not in sys.modules
""")
