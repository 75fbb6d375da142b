"""The image encoder: the features of torchvision and timm, saved so that both open them again."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from finetuner.inference.augmentation import augment_images
from finetuner.inference.backbones import find_library, load_encoder, load_encoders
from finetuner.inference.image_encoder import ImageEncoder

TORCHVISION = ['resnet18', 'squeezenet1_1', 'mobilenet_v3_small', 'regnet_x_400mf', 'shufflenet_v2_x0_5']
TIMM = ['test_resnet', 'test_vit', 'test_vit2', 'test_convnext', 'test_efficientnet', 'mobilenetv3_small_050']
SMALL = {'preprocess_options': {'size': 64}}


def load(name, **options):
    """A model of small images with weights at random, and statistics as if it had seen some."""
    torch.manual_seed(0)
    fixed = 'vit' in name or 'swin' in name
    encoder = ImageEncoder.load(name, pretrained=False, **({} if fixed else SMALL), **options)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return encoder


def images(encoder, count=3):
    height, width = encoder.preprocessor.settings.size
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def normalized(encoder, pixels):
    """As the libraries want them, float [B, 3, H, W]."""
    settings = encoder.preprocessor.settings
    scaled = (pixels.float() / 255 - torch.tensor(settings.mean)) / torch.tensor(settings.std)
    return scaled.permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def embed(encoder, pixels=None):
    return encoder(pixels=images(encoder) if pixels is None else pixels).numpy()


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class SaveFirst:
    """What goes into a module of another library."""

    def __init__(self, module):
        module.register_forward_pre_hook(lambda module, inputs: setattr(self, 'value', inputs[0]))


@pytest.mark.parametrize('name', TORCHVISION)
def test_the_features_are_those_of_torchvision(name, tmp_path):
    encoder = load(name)
    encoder.save(tmp_path)
    model = torchvision.models.get_model(name, weights=None).eval()
    model.load_state_dict(load_file(tmp_path / 'model.safetensors'), strict=True)
    classifier = model.fc if hasattr(model, 'fc') else model.classifier
    before = SaveFirst(classifier)
    with torch.no_grad():
        model(normalized(encoder, images(encoder)))
        features = before.value
        expected = features.mean((2, 3)) if features.ndim == 4 else features
    assert encoder.dim == expected.shape[1]
    assert_close(embed(encoder), expected.numpy())
    assert_close(embed(ImageEncoder.load(tmp_path)), expected.numpy())


@pytest.mark.parametrize(
    ('name', 'dim'), [('resnet50', 2048), ('squeezenet1_1', 512), ('efficientnet_b0', 1280), ('resnet18', 512)]
)
def test_dimensions_without_the_classifier(name, dim):
    with torch.device('meta'):
        from finetuner.inference.torchvision_models import TorchvisionBackbone

        assert TorchvisionBackbone.load(name, pretrained=False).dim == dim


@pytest.mark.parametrize('name', TIMM)
@pytest.mark.parametrize('pooling', [None, 'max'])
def test_the_features_are_those_of_timm(name, pooling, tmp_path):
    encoder = load(name, pooling=pooling)
    expected = embed(encoder)
    encoder.save(tmp_path)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    with torch.no_grad():
        assert_close(model(normalized(encoder, images(encoder))).numpy(), expected)
    assert_close(embed(ImageEncoder.load(tmp_path)), expected)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 230, 3), np.uint8))
    pixels = torch.from_numpy(np.stack(encoder.preprocessor.features([np.asarray(picture)])))
    assert_close(normalized(encoder, pixels)[0], transform(picture))


def test_timms_own_directories(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet', num_classes=7).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert find_library(tmp_path) == ('timm', tmp_path)
    encoder = load_encoder(tmp_path)
    pixels = images(encoder)
    model.reset_classifier(0)
    with torch.no_grad():
        assert_close(embed(encoder, pixels), model(normalized(encoder, pixels)).numpy())


@pytest.mark.parametrize('name', ['squeezenet1_1', 'resnet18', 'test_resnet', 'test_convnext'])
def test_pooling_of_maps(name):
    pixels = images(load(name))
    by = {pooling: embed(load(name, pooling=pooling), pixels) for pooling in ('mean', 'max')}
    gem = {p: embed(load(name, pooling='gem', pooling_options={'p': p}), pixels) for p in (1, 3, 200)}
    if name in ('squeezenet1_1', 'resnet18'):  # their features are not negative
        assert_close(gem[1], by['mean'])
        np.testing.assert_allclose(gem[200], by['max'], rtol=0.03, atol=1e-3)
        assert (gem[3] >= gem[1] - 1e-6).all()
    assert abs(gem[3] - gem[1]).max() > 1e-4
    assert abs(by['mean'] - by['max']).max() > 1e-4


def test_pooling_of_tokens():
    pixels = images(load('test_vit'))
    found = {pooling: embed(load('test_vit', pooling=pooling), pixels) for pooling in ('cls', 'mean', 'max', 'gem')}
    assert_close(embed(load('test_vit'), pixels), found['cls'])
    assert len({row.tobytes() for row in found.values()}) == 4
    model = load('test_vit').backbone
    with torch.no_grad():
        tokens = model.forward_features(normalized(load('test_vit'), pixels))
    assert_close(found['mean'], model.fc_norm(tokens[:, model.num_prefix_tokens :].mean(1)).detach().numpy())


@pytest.mark.parametrize('name', ['squeezenet1_1', 'test_resnet', 'test_vit'])
def test_gem_survives_saving(name, tmp_path):
    encoder = load(name, pooling='gem', pooling_options={'p': 2})
    encoder.save(tmp_path)
    again = ImageEncoder.load(tmp_path)
    assert (again.pooling, again.pooling_options['p']) == ('gem', 2)
    assert_close(embed(again), embed(encoder))


@pytest.mark.parametrize(('name', 'pooling'), [('resnet18', 'cls'), ('test_resnet', 'cls'), ('test_vit', 'lasttoken')])
def test_poolings_that_a_model_cannot_do(name, pooling):
    with pytest.raises(ValueError, match=f"cannot be pooled by '{pooling}': it is one of mean, max, gem"):
        load(name, pooling=pooling)


def test_a_pooling_of_timms_own():
    encoder = load('deit_tiny_distilled_patch16_224')
    assert encoder.pooling == 'own'
    with pytest.raises(ValueError, match="cannot be pooled by 'max': it is one of own"):
        load('deit_tiny_distilled_patch16_224', pooling='max')


@pytest.mark.parametrize(
    ('name', 'least'),
    [('resnet18', 9), ('squeezenet1_1', 9), ('test_vit', 7), ('test_efficientnet', 5), ('test_convnext', 5)]
    + [('swin_tiny_patch4_window7_224', 12), ('levit_128s', 1)],
)
def test_layer_groups_are_a_chain_that_holds_every_weight(name, least):
    encoder = load(name)
    before = embed(encoder)
    groups = encoder.layer_groups()
    assert len(groups) >= least
    held = [id(parameter) for group in groups for parameter in group.parameters()]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in encoder.backbone.parameters()}
    seen = []
    hooks = [
        group.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
        for group in groups
    ]
    np.testing.assert_array_equal(embed(encoder), before)
    for hook in hooks:
        hook.remove()
    assert [module for module, _, _ in seen] == groups
    assert all(after[1] is before[2] for before, after in zip(seen, seen[1:], strict=False))


def test_a_frozen_batch_norm_stays_frozen():
    encoder = load('resnet18').train()
    first, *others = encoder.layer_groups()
    for group in (first, *others[:3]):
        group.requires_grad_(False)
        group.eval()
    before = {name: tensor.clone() for name, tensor in encoder.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([weight for weight in encoder.parameters() if weight.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(pixels=images(encoder)).square().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in encoder.backbone.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition('.')[0] for name in changed} == {'layer2', 'layer3', 'layer4'}
    assert 'layer4.1.bn2.running_mean' in changed


def test_modules_that_were_replaced_are_used():
    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.more = inner, nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            return self.inner(inputs) * (1 + self.more)

    encoder = load('resnet18')
    before = embed(encoder)
    encoder.layer_groups()
    encoder.backbone.conv1 = Doubled(encoder.backbone.conv1)
    assert abs(embed(encoder) - before).max() > 1e-3
    assert any(parameter is encoder.backbone.conv1.more for parameter in encoder.layer_groups()[0].parameters())


def test_the_head_and_the_norm_are_saved(tmp_path):
    encoder = load('test_resnet')
    encoder.add_head(5)
    encoder.normalize = True
    encoder.eval().save(tmp_path)
    again = ImageEncoder.load(tmp_path)
    assert (again.dim, again.normalize, len(again.head)) == (5, True, 3)
    assert_close(embed(again), embed(encoder))
    assert_close(np.linalg.norm(embed(again), axis=1), 1)
    content = json.loads((tmp_path / 'encoder.json').read_text())
    assert (content['library'], content['architecture'], content['modality']) == ('timm', 'test_resnet', 'image')
    load('test_resnet').save(tmp_path)
    assert not (tmp_path / 'head.safetensors').exists()


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(3)
    model = torchvision.models.squeezenet1_1().eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pt')
    save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    torch.save(
        {'state_dict': {f'module.{key}': value for key, value in model.state_dict().items()}}, tmp_path / 'x.pth'
    )
    for file in ('weights.pt', 'weights.safetensors', 'x.pth'):
        encoder = load_encoder('squeezenet1_1', options={'weights': str(tmp_path / file), **SMALL})
        pixels = images(encoder)
        with torch.no_grad():
            expected = model.features(normalized(encoder, pixels)).mean((2, 3)).numpy()
        assert_close(embed(encoder, pixels), expected)
    encoder.save(tmp_path / 'saved')
    kept = load_file(tmp_path / 'saved' / 'model.safetensors')
    assert torch.equal(kept['classifier.1.weight'], model.classifier[1].weight)


def test_weights_with_another_classifier(tmp_path):
    save_file(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path / 'a.safetensors')
    assert load_encoder('resnet18', options={'weights': str(tmp_path / 'a.safetensors')}).dim == 512
    for classes in (0, 3):
        torch.manual_seed(classes)
        model = timm.create_model('test_resnet', num_classes=classes).eval()
        save_file(model.state_dict(), tmp_path / 'b.safetensors')
        encoder = load_encoder('timm/test_resnet', options={'weights': str(tmp_path / 'b.safetensors')})
        model.reset_classifier(0)
        pixels = images(encoder)
        with torch.no_grad():
            assert_close(embed(encoder, pixels), model(normalized(encoder, pixels)).numpy())


@pytest.mark.parametrize('name', ['resnet18', 'test_resnet'])
def test_weights_that_do_not_fit(name, tmp_path):
    state = torchvision.models.squeezenet1_1().state_dict()
    save_file(state, tmp_path / 'other.safetensors')
    (tmp_path / 'text.pt').write_text('no weights')
    torch.save(nn.Linear(1, 1), tmp_path / 'code.pt')
    save_file(dict(list(load(name).backbone.state_dict().items())[:-3]), tmp_path / 'part.safetensors')
    for file, match in [
        ('other.safetensors', 'squeeze|conv1'),
        ('part.safetensors', 'has no|Missing'),
        ('text.pt', 'cannot be read as weights'),
        ('code.pt', 'cannot be read as weights'),
        ('nowhere.pt', 'does not exist'),
    ]:
        with pytest.raises(ValueError, match=match):
            load_encoder(name, options={'weights': str(tmp_path / file)})


def test_weights_are_never_random_unless_asked_for(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError('no network')

    monkeypatch.setattr('torch.hub.download_url_to_file', refuse)
    monkeypatch.setattr('torch.hub.load_state_dict_from_url', refuse)
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', refuse)
    monkeypatch.setattr('timm.models._hub.hf_hub_download', refuse)
    for name in ('squeezenet1_0', 'timm/test_vit', 'test_resnet.r160_in1k'):
        with pytest.raises(ValueError, match=r"no network.*model_options=\{'weights'"):
            load_encoder(name)
        assert load_encoder(name, options={'pretrained': False}).dim


def test_weights_by_the_names_of_torchvision(monkeypatch):
    asked = []
    state = torchvision.models.resnet50().state_dict()
    monkeypatch.setattr(
        'torchvision.models._api.load_state_dict_from_url',
        lambda url, *, weights_only, **options: asked.append(url) or (state if weights_only is True else None),
    )
    assert load_encoder('resnet-base').preprocessor.settings.resize_size == (256, 256)
    assert load_encoder('resnet50', options={'weights': 'IMAGENET1K_V2'}).preprocessor.settings.resize_size == (
        232,
        232,
    )
    assert [url.rpartition('/')[2] for url in asked] == ['resnet50-0676ba61.pth', 'resnet50-11ad3fa6.pth']


def test_names(tmp_path):
    assert find_library('resnet-base') == ('torchvision', 'resnet50')
    assert find_library('efficientnet_b0')[0] == 'torchvision'
    assert find_library('timm/resnet18')[0] == find_library('vit_tiny_patch16_224')[0] == 'timm'
    assert find_library('bert-base-en')[0] == find_library('all-minilm-l6-v2')[0] == 'transformers'
    assert find_library('ViT-B-32::openai')[0] == 'open_clip'
    with pytest.raises(ValueError, match='holds no model'):
        find_library(tmp_path)
    for name in ('googlenet', 'mnasnet0_5'):
        with pytest.raises(ValueError, match='use .*timm'):
            load_encoder(name, options={'pretrained': False})


def test_a_repository_of_the_hub_is_known_by_its_files(monkeypatch, tmp_path):
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    files = {
        'org/image': {'config.json': {'architecture': 'test_resnet'}},
        'org/text': {'config.json': {'model_type': 'bert'}},
        'org/clip': {'config.json': {'model_type': 'clip'}},
        'org/open': {'open_clip_config.json': {}},
    }

    def fetch(repository, name):
        if repository not in files:
            raise LocalEntryNotFoundError('no network')
        if name not in files[repository]:
            raise RemoteEntryNotFoundError.__new__(RemoteEntryNotFoundError)
        (tmp_path / name).write_text(json.dumps(files[repository][name]))
        return str(tmp_path / name)

    monkeypatch.setattr('huggingface_hub.hf_hub_download', fetch)
    assert find_library('org/image') == ('timm', 'hf-hub:org/image')
    assert find_library('org/text') == ('transformers', 'org/text')
    assert find_library('org/clip')[0] == 'transformers-clip'
    assert find_library('org/open')[0] == 'open_clip'
    assert find_library('org/unknown') == ('transformers', 'org/unknown')


def test_the_size_of_images_can_be_changed(tmp_path):
    encoder = ImageEncoder.load('squeezenet1_1', pretrained=False, preprocess_options={'size': 96})
    settings = encoder.preprocessor.settings
    assert (settings.size, settings.resize_size) == ((96, 96), (109, 109))
    vit = ImageEncoder.load('vit_tiny_patch16_224', pretrained=False, preprocess_options={'size': 64})
    assert embed(vit).shape == (3, 192)
    vit.save(tmp_path)
    assert_close(embed(ImageEncoder.load(tmp_path)), embed(vit))
    grey = ImageEncoder.load(
        'squeezenet1_1', pretrained=False, preprocess_options={'mean': [0.5] * 3, 'std': [0.25] * 3, 'size': 64}
    )
    pixels = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    with torch.no_grad():
        expected = grey.backbone.features(torch.full((1, 3, 64, 64), 2.0)).mean((2, 3))
    assert_close(embed(grey, pixels), expected.numpy())


def test_random_weights_of_a_directory_are_refused(tmp_path):
    load('squeezenet1_1').save(tmp_path / 'model')
    assert load_encoder(tmp_path / 'model', options={'pretrained': True}).dim == 512
    with pytest.raises(ValueError, match='is a directory with weights: for random ones, name the model instead'):
        load_encoder(tmp_path / 'model', options={'pretrained': False})


def test_options_that_make_no_sense():
    with pytest.raises(ValueError, match="'depth' is not an option of this model"):
        load_encoder('resnet18', options={'depth': 3})
    with pytest.raises(ValueError, match='max_length is 16: it is for models that take texts'):
        load_encoder('resnet18', options={'pretrained': False}, max_length=16)
    with pytest.raises(ValueError, match='unknown settings of images colour'):
        load_encoder('resnet18', options={'pretrained': False, 'preprocess_options': {'colour': 1}})


def test_images_are_augmented_in_training_only():
    encoder = load_encoder('squeezenet1_1', options={'pretrained': False, 'augment': True, **SMALL})
    plain = load_encoder('squeezenet1_1', options={'pretrained': False, **SMALL})
    pixels = images(encoder)
    np.testing.assert_array_equal(embed(encoder, pixels), embed(encoder, pixels))
    np.testing.assert_array_equal(embed(plain.train(), pixels), embed(plain, pixels))
    encoder.train()
    torch.manual_seed(1)
    first = embed(encoder, pixels)
    assert abs(first - embed(encoder, pixels)).max() > 1e-4
    torch.manual_seed(1)
    np.testing.assert_array_equal(embed(encoder, pixels), first)


def test_augmented_images_are_parts_of_the_image_and_some_are_mirrored():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).expand(200, 1, 32, 32)
    across, down = augment_images(ramp), augment_images(ramp.transpose(2, 3))
    assert across.shape == ramp.shape
    slopes = (across[:, 0, 16, 24] - across[:, 0, 16, 8]) * 2  # 1 for the whole image, less for a part
    mirrored = (slopes < 0).float().mean()
    assert 0.35 < mirrored < 0.65
    assert ((slopes.abs() > 0.55) & (slopes.abs() < 1.05)).all()
    assert slopes.abs().std() > 0.05
    assert (down[:, 0, 24, 16] > down[:, 0, 8, 16]).all(), 'upside down'
    assert across.min() >= 0
    assert across.max() <= 1


def test_loading_a_folder_of_models(tmp_path):
    load('test_resnet').save(tmp_path / 'models' / 'model')
    assert list(load_encoders(tmp_path / 'models')) == ['model']


@pytest.mark.slow
def test_texts_need_neither_torchvision_nor_timm_nor_pillow(tiny_model):
    program = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torchvision', 'timm', 'open_clip', 'trimesh', 'PIL'):
            raise ModuleNotFoundError(f'{{name}} is blocked', name=name)
sys.meta_path.insert(0, Blocker())
from finetuner.inference import build_model
print(build_model({str(tiny_model)!r}, device='cpu').encode_texts(['where is my card']).shape)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '(1, 24)'
