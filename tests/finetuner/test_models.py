"""The table of pretrained models: names, dimensions and options."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import save_file

import finetuner
import finetuner.console
from finetuner.cli import app
from finetuner.inference.backbones import load_encoders
from finetuner.inference.pretrained import HUB_IDS
from finetuner.model import get_header, get_row, list_model_classes
from finetuner.models import BACKBONES, OPTIONS, TASKS, check_options, find_backbone, task_of


@pytest.fixture
def printed(monkeypatch):
    """What the wide terminal of a user shows."""
    text = io.StringIO()
    monkeypatch.setattr(finetuner.console, 'console', Console(file=text, width=200))
    return text


@pytest.mark.parametrize(
    ('name', 'task', 'dim', 'source'),
    [
        ('all-minilm-l6-v2', 'text-to-text', 384, 'sentence-transformers/all-MiniLM-L6-v2'),
        ('jina-embedding-t-en-v1', 'text-to-text', 312, 'jinaai/jina-embedding-t-en-v1'),
        ('jinaai/jina-embedding-s-en-v1', 'text-to-text', 512, 'jinaai/jina-embedding-s-en-v1'),
        ('jina-embedding-b-en-v1', 'text-to-text', 768, 'jinaai/jina-embedding-b-en-v1'),
        ('jina-embedding-l-en-v1', 'text-to-text', 1024, 'jinaai/jina-embedding-l-en-v1'),
        ('BERT-base-EN', 'text-to-text', 768, 'google-bert/bert-base-cased'),
        ('bert-base-cased', 'text-to-text', 768, 'google-bert/bert-base-cased'),
        ('bert-base-multi', 'text-to-text', 768, 'google-bert/bert-base-multilingual-cased'),
        ('distiluse-base-multi', 'text-to-text', 512, 'sentence-transformers/distiluse-base-multilingual-cased-v2'),
        ('sbert-base-en', 'text-to-text', 768, 'sentence-transformers/msmarco-distilbert-base-v3'),
        ('sentence-transformers/msmarco-distilbert-base-v3', 'text-to-text', 768, None),
        ('efficientnet-base', 'image-to-image', 1792, 'efficientnet_b4'),
        ('efficientnet_b4', 'image-to-image', 1792, 'efficientnet_b4'),
        ('efficientnet-large', 'image-to-image', 2560, 'efficientnet_b7'),
        ('efficientnet_b7', 'image-to-image', 2560, 'efficientnet_b7'),
        ('efficientnet_b0', 'image-to-image', 1280, 'efficientnet_b0'),
        ('resnet-base', 'image-to-image', 2048, 'resnet50'),
        ('resnet50', 'image-to-image', 2048, 'resnet50'),
        ('resnet152', 'image-to-image', 2048, 'resnet152'),
        ('clip-base-en', 'text-to-image', 512, 'openai/clip-vit-base-patch32'),
        ('clip-large-en', 'text-to-image', 768, 'openai/clip-vit-large-patch14'),
        ('openai/clip-vit-large-patch14', 'text-to-image', 768, None),
        ('clip-base-multi', 'text-to-image', 512, 'xlm-roberta-base-ViT-B-32::laion5b_s13b_b90k'),
        ('ViT-B-32::openai', 'text-to-image', 512, 'ViT-B-32::openai'),
        ('ViT-L-14-336::openai', 'text-to-image', 768, 'ViT-L-14-336::openai'),
        ('pointnet-base', 'mesh-to-mesh', 512, None),
        ('PointNet++', 'mesh-to-mesh', 512, None),
        ('mlp', 'any', None, None),
    ],
)
def test_documented_names_old_and_new(name, task, dim, source):
    backbone = find_backbone(name)
    assert (backbone.task, backbone.output_dim) == (task, dim)
    assert source in (None, backbone.source)
    assert task_of(name) == task


def test_no_name_means_two_models():
    names = [name.lower() for backbone in BACKBONES for name in (backbone.name, *backbone.aliases)]
    assert len(names) == len(set(names))
    assert all(backbone.task in TASKS and backbone.library in OPTIONS for backbone in BACKBONES)


def test_open_clip_has_the_weights_and_widths_of_the_table():
    import open_clip

    for backbone in BACKBONES:
        if backbone.library == 'open_clip':
            architecture, _, tag = backbone.source.partition('::')
            assert tag in open_clip.list_pretrained_tags_by_model(architecture), backbone.name
            assert open_clip.get_model_config(architecture)['embed_dim'] == backbone.output_dim


def test_torchvision_has_the_models_and_widths_of_the_table():
    import torch
    import torchvision

    for backbone in BACKBONES:
        if backbone.library == 'torchvision':
            with torch.device('meta'):
                model = torchvision.models.get_model(backbone.source, weights=None)
            head = model.fc if hasattr(model, 'fc') else model.classifier[-1]
            assert head.in_features == backbone.output_dim


def test_task_of_names_beyond_the_table():
    assert task_of('EVA02-B-16::merged2b_s8b_b131k') == 'text-to-image'
    assert task_of('timm/resnet18.a1_in1k') == 'image-to-image'
    assert task_of('someone/something') is None
    assert find_backbone('someone/something') is None


def test_short_names_of_the_hub_come_from_the_table():
    assert HUB_IDS['bert-base-en'] == HUB_IDS['bert-base-cased'] == 'google-bert/bert-base-cased'
    assert HUB_IDS['clip-large-en'] == 'openai/clip-vit-large-patch14'
    assert 'resnet-base' not in HUB_IDS


def test_list_models():
    names = finetuner.list_models()
    assert names == list(dict.fromkeys(names))
    assert {'all-minilm-l6-v2', 'bert-base-en', 'resnet-base', 'clip-base-en', 'pointnet-base'} <= set(names)
    assert 'mlp' not in names


def test_list_model_options():
    options = finetuner.list_model_options()
    assert set(options) == {*finetuner.list_models(), 'mlp'}
    assert {'name': 'input_size', 'type': 'int', 'required': True, 'default': None} in options['mlp']
    assert {'name': 'activation', 'type': 'str | None', 'required': False, 'default': None} in options['mlp']
    assert {'pooling', 'pooler', 'pooling_options', 'pooler_options'} <= {
        item['name'] for item in options['resnet-base']
    }


def test_no_option_is_listed_twice():
    for options in finetuner.list_model_options().values():
        names = [option['name'] for option in options]
        assert names == list(dict.fromkeys(names))
    assert {option['name'] for option in finetuner.list_model_options()['clip-base-en']} == {
        *('pretrained', 'augment', 'normalize', 'collate_options')
    }


GIVEN: dict[str, dict[str, Any]] = {
    'transformers': {'pooling': 'gem', 'pooling_options': {'p': 2}, 'collate_options': {'max_length': 8}},
    'torchvision': {'pooling': 'gem', 'pooling_options': {'p': 2}, 'preprocess_options': {'size': 64}},
    'timm': {'pooling': 'gem', 'pooling_options': {'p': 2}, 'preprocess_options': {'size': 64}},
    'open_clip': {'normalize': True, 'collate_options': {'max_length': 77}},
    'transformers-clip': {
        'pretrained': False,
        'normalize': True,
        'augment': True,
        'collate_options': {'max_length': 8},
    },
    'pointnet': {
        'point_cloud_size': 64,
        'width': 0.125,
        'augment': True,
        'up_axis': 'z',
        'preprocess_options': {'up_axis': 'z'},
    },
    'mlp': {'input_size': 6, 'hidden_sizes': [5, 4], 'bias': False, 'activation': 'tanh', 'l2': True},
}


@pytest.mark.parametrize('library', OPTIONS)
def test_every_listed_option_is_taken_by_its_loader(library, tiny_model, tiny_clip, tmp_path):
    """Each on its own, so that none hides another; `weights` is a file of the model's own weights."""
    given = {'pretrained': False, 'augment': True} | GIVEN[library]
    source: Any = {
        'transformers': tiny_model,
        'torchvision': 'squeezenet1_1',
        'timm': 'timm/test_vit',
        'transformers-clip': tiny_clip,
        'pointnet': 'pointnet-base',
    }.get(library, library)
    required = {option.name: given[option.name] for option in OPTIONS[library] if option.required}
    if library == 'open_clip':
        source = tiny_architecture(tmp_path)
    if any(option.name == 'weights' for option in OPTIONS[library]):
        required, given['weights'] = {'pretrained': False}, str(saved_weights(source, tmp_path / 'weights.safetensors'))
    for option in OPTIONS[library]:
        for name in filter(None, (option.name, option.alias)):
            assert load_encoders(source, options={**required, name: given[option.name]}), name


def tiny_architecture(directory) -> str:
    """An architecture of open_clip that tests can pay for."""
    open_clip = pytest.importorskip('open_clip')
    config = {
        'embed_dim': 8,
        'vision_cfg': {'image_size': 32, 'layers': 1, 'width': 16, 'head_width': 8, 'patch_size': 16},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 16, 'heads': 2, 'layers': 1},
    }
    (directory / 'tiny-listed.json').write_text(json.dumps(config))
    open_clip.add_model_config(directory / 'tiny-listed.json')
    return 'tiny-listed::'


def saved_weights(source, path):
    encoder = next(iter(load_encoders(source, options={'pretrained': False}).values()))
    model = encoder.whole.model if hasattr(encoder, 'whole') else encoder._source.model
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize('task', [None, *TASKS[:-1]])
def test_describe_models(printed, task):
    finetuner.describe_models(task)
    text = printed.getvalue()
    assert text.splitlines()[0].strip() == ('Finetuner backbones' + (f': {task}' if task else ''))
    assert all(column in text for column in ('name', 'task', 'output_dim', 'architecture', 'description'))
    for backbone in BACKBONES:
        shown = backbone.listed and task in (None, backbone.task)
        assert (f' {backbone.name} ' in text) == shown, backbone.name


def test_describe_models_on_a_narrow_terminal(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(finetuner.console, 'console', Console(file=text, width=80))
    finetuner.describe_models()
    rows = [[cell.strip() for cell in line.split('│')[1:-1]] for line in text.getvalue().splitlines() if '│' in line]
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())
    listed = {backbone.name: backbone for backbone in BACKBONES if backbone.listed}
    assert [name for name, *_ in rows if name] == list(listed)
    words = {word for backbone in listed.values() for word in backbone.description.split()}
    for name, task, dim, description in rows:
        assert not name or (task, dim) == (listed[name].task, str(listed[name].output_dim))
        assert all(word in words for word in description.split())


def test_describe_models_of_an_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'text-to-mesh': it is one of text-to-text, "):
        finetuner.describe_models('text-to-mesh')


def test_command_line(capsys):
    with pytest.raises(SystemExit, match='0'):
        app(['models', '--task', 'mesh-to-mesh'])
    shown = capsys.readouterr()
    assert 'pointnet-base' in shown.out
    assert 'bert-base-en' not in shown.out
    assert 'finetuner fit' in shown.err


def test_names_of_older_code():
    assert finetuner.model.get_header is get_header
    assert get_row(list_model_classes()['resnet-base'])[:4] == ('resnet-base', 'image-to-image', '2048', 'cnn')


def test_options_of_a_part_do_what_they_say(tiny_model):
    encoder = load_encoders(tiny_model, options={'collate_options': {'max_length': 8}})['model']
    assert encoder.max_length == 8
    assert load_encoders(tiny_model, options={'pooler_options': {'p': 2}})['model'].pooling == 'gem'
    options = {'preprocess_options': {'point_cloud_size': 64, 'up_axis': 'z'}, 'width': 0.125}
    assert load_encoders('pointnet-base', options=options)['model'].preprocessor.point_cloud_size == 64
    with pytest.raises(ValueError, match="'padding' is not one of the collate_options of this .*: it has max_length"):
        load_encoders(tiny_model, options={'collate_options': {'padding': True}})
    with pytest.raises(ValueError, match="'up_axis' is given twice, and in preprocess_options"):
        check_options('pointnet', {'up_axis': 'z', 'preprocess_options': {'up_axis': 'y'}})


def test_a_name_is_no_folder_by_chance(tmp_path, monkeypatch):
    (tmp_path / 'mlp').mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_encoders('mlp', options={'input_size': 4, 'hidden_sizes': [2]})['model'].dim == 2


@pytest.mark.parametrize('name', ['hf-hub:/etc', 'hf-hub:~/x', 'hf-hub:../x', 'hf-hub:a/b/c', '../x'])
def test_a_hub_id_is_no_path(name):
    with pytest.raises(ValueError, match='is no id of a repository|is neither a model directory'):
        load_encoders(name)


def test_check_options():
    assert check_options('torchvision', {'pooler': 'GeM', 'pooler_options': {'p': 3}}) == {
        'pooling': 'GeM',
        'pooling_options': {'p': 3},
    }
    assert check_options('transformers', None) == {}
    with pytest.raises(ValueError, match="'poling' is not an option of this model: it has collate_options, pooler, "):
        check_options('transformers', {'poling': 'mean'})
    with pytest.raises(ValueError, match="'pooling' is given twice"):
        check_options('timm', {'pooler': 'GeM', 'pooling': 'mean'})
    with pytest.raises(ValueError, match="'hidden_sizes' is missing"):
        check_options('mlp', {'input_size': 3})
