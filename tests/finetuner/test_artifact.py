"""Artifacts as their users meet them: packed, opened from a zip or a directory, cached, selected from."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from finetuner.artifact import ArtifactError, ModelInfo, open_artifact, pack
from finetuner.excepts import SelectModelRequired

INFO = ModelInfo(dim=3, max_length=16)


@pytest.fixture
def content(tmp_path):
    """A directory with the files of two models; what is in them does not matter here."""
    directory = tmp_path / 'content'
    for model in ('clip-text', 'clip-vision'):
        (directory / 'models' / model / '1_Pooling').mkdir(parents=True)
        (directory / 'models' / model / 'model.safetensors').write_bytes(model.encode() * 100)
        (directory / 'models' / model / '1_Pooling' / 'config.json').write_text('{}')
    (directory / 'notes.txt').write_text('not part of it')
    return directory


@pytest.fixture
def artifact(content, tmp_path):
    return pack_one(content, tmp_path / 'run.zip')


def pack_one(content, target, name='run', models=('clip-text',), **changes):
    arguments = {'config': {'epochs': 2, 'loss': 'ß'}, 'metrics': {'after': {'recall_at_k': 0.1}}} | changes
    return pack(content, target, name=name, models=dict.fromkeys(models, INFO), **arguments)


def files_of(path):
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


def test_the_zip_has_one_folder_with_everything_in_its_place(artifact):
    assert files_of(artifact) == [
        'run/config.yml',
        'run/metadata.yml',
        'run/metrics.yml',
        'run/models/clip-text/1_Pooling/config.json',
        'run/models/clip-text/model.safetensors',
    ]


def test_metadata_has_size_and_digest_of_every_other_file(artifact):
    with zipfile.ZipFile(artifact) as archive:
        metadata = yaml.safe_load(archive.read('run/metadata.yml'))
        assert metadata['format_version'] == 1
        assert {f'run/{path}' for path in metadata['files']} == set(archive.namelist()) - {'run/metadata.yml'}
        for path, file in metadata['files'].items():
            content = archive.read(f'run/{path}')
            assert file == {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}


def test_equal_content_gives_equal_bytes(content, tmp_path):
    first = pack_one(content, tmp_path / 'a.zip').read_bytes()
    for path in content.rglob('*'):
        os.utime(path, (0, 0))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    copied = shutil.copytree(content, tmp_path / 'elsewhere')
    assert pack_one(copied, tmp_path / 'b.zip').read_bytes() == first


def test_opening_gives_back_what_was_packed(artifact):
    opened = open_artifact(artifact)
    assert opened.name == 'run'
    assert opened.config == {'epochs': 2, 'loss': 'ß'}
    assert opened.metrics == {'after': {'recall_at_k': 0.1}}
    assert opened.models == {'clip-text': INFO}
    assert opened.metadata['models']['clip-text']['task'] == 'text-to-text'
    assert (opened.model_directory('clip-text') / 'model.safetensors').read_bytes() == b'clip-text' * 100


def test_a_directory_opens_like_its_zip(artifact, tmp_path):
    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(tmp_path / 'unzipped')
    for path in (tmp_path / 'unzipped', tmp_path / 'unzipped' / 'run'):
        opened = open_artifact(path)
        assert opened.directory == tmp_path / 'unzipped' / 'run'
        assert opened.metadata == open_artifact(artifact).metadata


def test_a_zip_that_another_tool_compressed_opens(artifact, tmp_path):
    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(tmp_path / 'unzipped')
    # with entries for folders, deflated
    again = shutil.make_archive(str(tmp_path / 'again'), 'zip', tmp_path / 'unzipped', 'run')
    assert 'run/models/' in files_of(again)
    assert open_artifact(again).metadata == open_artifact(artifact).metadata


def test_a_failed_pack_leaves_the_old_file_and_nothing_else(content, tmp_path):
    folder = tmp_path / 'out'
    target = pack_one(content, folder / 'run.zip')
    before = target.read_bytes()
    with pytest.raises(ArtifactError, match=r'config.yml cannot hold'):
        pack_one(content, target, config={'value': object()})
    (content / 'models' / 'clip-text' / 'link').symlink_to('/etc/passwd')
    with pytest.raises(ArtifactError, match='no links'):
        pack_one(content, target)
    with pytest.raises(ArtifactError, match=r'models/other with the files of the model'):
        pack_one(content, target, models=['other'])
    with pytest.raises(ArtifactError, match=r"'\.\./run' cannot be the name of a artifact|'../run' cannot be the name"):
        pack_one(content, target, name='../run')
    assert target.read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ['run.zip']


def test_one_model_needs_no_selection_and_ignores_one(artifact):
    opened = open_artifact(artifact)
    assert opened.select() == opened.select('clip-vision') == 'clip-text'


def test_several_models_need_a_selection_by_name(content, tmp_path):
    opened = open_artifact(pack_one(content, tmp_path / 'run.zip', models=('clip-text', 'clip-vision')))
    assert opened.select('clip-vision') == 'clip-vision'
    with pytest.raises(SelectModelRequired, match='select_model to one of clip-text, clip-vision'):
        opened.select()
    with pytest.raises(ValueError, match="no model 'clip-audio': it has clip-text, clip-vision"):
        opened.select('clip-audio')


CLIP = {
    'clip-text': ModelInfo(dim=24, max_length=77, task='text-to-image', preprocess_types=('text',)),
    'clip-vision': ModelInfo(dim=24, task='text-to-image', preprocess_types=('image',)),
}


@pytest.fixture
def clip_artifact(content, tmp_path):
    (content / 'models' / 'clip').mkdir()
    (content / 'models' / 'clip' / 'model.safetensors').write_bytes(b'of both')
    return pack(content, tmp_path / 'clip.zip', name='run', config={}, metrics={}, models=CLIP)


def test_the_weights_that_two_models_share_are_packed_once(clip_artifact):
    assert [path for path in files_of(clip_artifact) if 'safetensors' in path] == [
        'run/models/clip-text/model.safetensors',
        'run/models/clip-vision/model.safetensors',
        'run/models/clip/model.safetensors',
    ]
    opened = open_artifact(clip_artifact)
    assert set(opened.models) == {'clip-text', 'clip-vision'}
    assert (opened.model_directory('clip-vision').parent / 'clip' / 'model.safetensors').read_bytes() == b'of both'
    assert opened.metadata['files']['models/clip/model.safetensors']['size'] == 7


def test_altered_weights_that_two_models_share_are_refused(clip_artifact, tmp_path):
    with zipfile.ZipFile(clip_artifact) as archive:
        archive.extractall(tmp_path / 'unzipped')
    (tmp_path / 'unzipped' / 'run' / 'models' / 'clip' / 'model.safetensors').write_bytes(b'of none')
    with pytest.raises(ArtifactError, match='models/clip/model.safetensors is not the one that was packed'):
        open_artifact(tmp_path / 'unzipped')


def test_what_models_take_is_known_without_loading_them(clip_artifact, content, tmp_path):
    opened = open_artifact(clip_artifact)
    assert opened.models == CLIP
    assert {name: info.modality for name, info in opened.models.items()} == {
        'clip-text': 'text',
        'clip-vision': 'image',
    }
    assert opened.models['clip-vision'].max_length is None
    with pytest.raises(ArtifactError, match="no max_length of the model 'clip-text', which takes texts"):
        pack(content, tmp_path / 'x.zip', name='run', config={}, metrics={}, models={'clip-text': ModelInfo(dim=24)})


def test_zips_are_unpacked_once(artifact, tmp_path):
    first = open_artifact(artifact, cache=tmp_path / 'cache')
    marker = first.directory.stat().st_ino
    second = open_artifact(shutil.copy(artifact, tmp_path / 'copy.zip'), cache=tmp_path / 'cache')
    assert second.directory == first.directory
    assert second.directory.stat().st_ino == marker
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == [hashlib.sha256(artifact.read_bytes()).hexdigest()]


def test_the_cache_is_in_the_home_folder_by_default(artifact, tmp_path):
    assert open_artifact(artifact).directory.parent == tmp_path / 'home' / 'cache' / 'artifacts'


def test_a_home_that_opening_made_is_for_its_user_alone(artifact, tmp_path):
    open_artifact(artifact)
    assert stat.S_IMODE((tmp_path / 'home').stat().st_mode) == 0o700


def test_another_process_does_not_trust_an_altered_cache(artifact, tmp_path):
    weights = open_artifact(artifact, cache=tmp_path / 'cache').model_directory('clip-text') / 'model.safetensors'
    weights.write_bytes(b'x' * weights.stat().st_size)
    program = f"""
from finetuner.artifact import open_artifact
opened = open_artifact({str(artifact)!r}, cache={str(tmp_path / 'cache')!r})
print((opened.model_directory('clip-text') / 'model.safetensors').read_bytes() == b'clip-text' * 100)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'True'
    assert len(list((tmp_path / 'cache').iterdir())) == 1


def test_many_can_open_at_once(artifact, tmp_path):
    def threads(count):
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: open_artifact(artifact, cache=tmp_path / 'threads'), range(count)))

    assert len({opened.directory for opened in threads(8)}) == 1

    program = f"""
import sys
from finetuner.artifact import open_artifact
sys.stdin.read()
print(open_artifact({str(artifact)!r}, cache={str(tmp_path / 'processes')!r}).directory)
"""
    command = [sys.executable, '-c', program]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        process.stdin.close()  # the start signal
    outputs = [process.stdout.read() for process in processes]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(list((tmp_path / 'processes').iterdir())) == 1


def test_old_leftovers_in_the_cache_are_removed(artifact, tmp_path):
    cache = tmp_path / 'cache'
    for name in ('.unpacking-old', '.damaged-old', '.unpacking-new'):
        (cache / name / 'run').mkdir(parents=True)
        if name.endswith('old'):
            os.utime(cache / name, (0, 0))
    opened = open_artifact(artifact, cache)
    assert {path.name for path in cache.iterdir()} == {'.unpacking-new', opened.directory.name}
