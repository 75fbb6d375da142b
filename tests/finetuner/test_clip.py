"""CLIP models of transformers and open_clip: equal to their libraries, saved and loaded, one side at a time."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from finetuner.inference.backbones import load_encoder, load_encoders, save_encoders
from finetuner.inference.clip import (
    LogitScale,
    clip_logit_scale,
    is_clip,
    is_clip_encoder,
    load_clip,
    load_clip_encoder,
    save_clip,
    set_clip_logit_scale,
)
from finetuner.inference.clip_tokens import ClipTextPreprocessor, clean

TEXTS = ['a red apple', 'Granny Smith, tart &amp; green: ' + 'a very long text ' * 20, '', 'x']
TEXT_CONFIG = {'context_length': 16, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 2}
NASTY = [
    '',
    ' \t\n ',
    "it's the DOG'S, don't; I'LL we've he'd 'S'T'RE",
    'a.<start_of_text>b <END_OF_TEXT> <start_of_<start_of_text> <ſtart_of_text>',
    '&amp;amp; &lt;b&gt; &quot;caf\u00e9&quot; cafe\u0301',
    'sch\u00c3\u00b6n \u00fcber \u2018curly\u2019 \u201cdouble\u201d \u2026',
    "ΑΣ ΟΔΟΣ İstanbul ﬁ ﬀ ǅ ẞ ß K Å \u0345 a\u0345b ſ 'ſ",
    '日本語 テスト 한국어 ไทย हिन्दी العربية',
    '😀😀👨\u200d👩\u200d👧 0️⃣ \ufeffbom \u200bzero',
    '１２３ ½ ² 12345 1,000.50',
    '\x00\x01\x1c\x1f\x85\u2028\u3000end',
    'x' * 500 + ' y' * 200,
    '<|endoftext|> ___--__ snake_case',
]


def images(count=3, seed=0):
    chance = np.random.default_rng(seed)
    return [chance.integers(0, 256, (50 + 7 * number, 60, 3), dtype=np.uint8) for number in range(count)]


def embed(encoder, contents):
    inputs = encoder.preprocessor.collate(encoder.preprocessor.features(contents))
    with torch.no_grad():
        return encoder(**{name: torch.from_numpy(inputs[name]) for name in encoder.input_names})


def write_open_clip(directory, **config):
    directory.mkdir()
    config = {'embed_dim': 32, 'text_cfg': TEXT_CONFIG} | config
    (directory / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config, 'preprocess_cfg': {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f'local-dir:{directory}', pretrained_text=False)
    save_file(
        {name: weight.contiguous() for name, weight in model.state_dict().items()},
        directory / 'open_clip_model.safetensors',
    )
    return directory


def small_vit():
    return {'image_size': 32, 'layers': 2, 'width': 64, 'head_width': 32, 'patch_size': 8}


@pytest.fixture(scope='session')
def siglip(tmp_path_factory):
    """The directory of a transformers SiglipModel with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ['<pad>', '</s>', '<unk>', 'a', 'red', 'apple', 'x']
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, '<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single='$A </s>', special_tokens=[('</s>', 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', unk_token='<unk>'
    )
    sizes = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 48}
    config = transformers.SiglipConfig(
        text_config={**sizes, 'vocab_size': 7, 'max_position_embeddings': 8, 'projection_size': 32},
        vision_config={**sizes, 'image_size': 32, 'patch_size': 8},
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp('siglip') / 'model'
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0), model.logit_bias.fill_(-9.0)
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(params=['tiny_clip', 'tiny_open_clip'])
def clip_directory(request):
    return request.getfixturevalue(request.param)


# parity with the libraries


def test_embeddings_are_those_of_clip_model(tiny_clip):
    encoders = load_clip(tiny_clip)
    model = transformers.CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_clip)
    tokens = tokenizer(TEXTS, padding='max_length', max_length=16, truncation=True, return_tensors='pt')
    pixels = torch.from_numpy(
        encoders['clip-vision'].preprocessor.collate(encoders['clip-vision'].preprocessor.features(images()))['pixels']
    )
    processor = transformers.CLIPImageProcessor.from_pretrained(tiny_clip, do_resize=False, do_center_crop=False)
    with torch.no_grad():
        texts = model.get_text_features(**tokens).pooler_output
        pictures = model.get_image_features(
            processor(list(pixels.permute(0, 3, 1, 2)), return_tensors='pt')['pixel_values']
        )
    torch.testing.assert_close(embed(encoders['clip-text'], TEXTS), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(encoders['clip-vision'], images()), pictures.pooler_output, atol=1e-5, rtol=0)
    assert encoders['clip-text'].dim == encoders['clip-vision'].dim == 24


def test_embeddings_are_those_of_siglip(siglip):
    encoders = load_clip(siglip)
    model = transformers.SiglipModel.from_pretrained(siglip).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(siglip)
    ids = tokenizer(TEXTS, padding='max_length', max_length=8, truncation=True, return_tensors='pt').input_ids
    pixels = encoders['clip-vision'].preprocessor.collate(encoders['clip-vision'].preprocessor.features(images()))
    scaled = (torch.from_numpy(pixels['pixels']).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        texts, pictures = model.get_text_features(ids), model.get_image_features(scaled)
    torch.testing.assert_close(embed(encoders['clip-text'], TEXTS), texts.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(encoders['clip-vision'], images()), pictures.pooler_output, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='max_length is 4: this model takes from 8 to 8 tokens'):
        load_clip(siglip, max_length=4)


@pytest.mark.parametrize(
    'config',
    [
        {'vision_cfg': small_vit()},
        {'vision_cfg': small_vit() | {'pool_type': 'avg', 'no_ln_pre': True}, 'quick_gelu': True},
        {'vision_cfg': {'image_size': 64, 'layers': [1, 1, 1, 1], 'width': 8, 'head_width': 32}},
        {
            'vision_cfg': {'image_size': 64, 'timm_model_name': 'resnet18', 'timm_pool': 'avg'},
            'text_cfg': TEXT_CONFIG | {'no_causal_mask': True, 'proj_bias': True, 'pool_type': 'last'},
            'custom_text': True,
            'init_logit_bias': -10,
        },
    ],
    ids=['vit', 'vit-avg', 'resnet', 'siglip'],
)
def test_embeddings_are_those_of_open_clip(tmp_path, config):
    directory = write_open_clip(tmp_path / 'model', **config)
    encoders = load_clip(directory)
    model, _, transform = open_clip.create_model_and_transforms(f'local-dir:{directory}')
    tokenizer = open_clip.get_tokenizer(f'local-dir:{directory}')
    encoders['clip-vision'].layer_groups()  # splits models of timm into a chain
    with torch.no_grad():
        texts = model.eval().encode_text(tokenizer(TEXTS))
        pictures = model.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images()]))
    torch.testing.assert_close(embed(encoders['clip-text'], TEXTS), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(encoders['clip-vision'], images()), pictures, atol=1e-5, rtol=0)


@pytest.mark.parametrize('pooler', ['mean_pooler', 'cls_pooler'])
def test_a_text_tower_of_transformers_in_open_clip(tmp_path, tiny_model, pooler):
    text = {
        'hf_model_name': str(tiny_model),
        'hf_tokenizer_name': str(tiny_model),
        'hf_pooler_type': pooler,
        'hf_model_pretrained': False,
        'context_length': 16,
    }
    directory = write_open_clip(tmp_path / 'model', vision_cfg=small_vit(), text_cfg=text)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
    encoders = load_clip(directory)
    model = open_clip.create_model(f'local-dir:{directory}').eval()
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer(f'local-dir:{directory}')(TEXTS))
    torch.testing.assert_close(embed(encoders['clip-text'], TEXTS), texts, atol=1e-5, rtol=0)
    assert len(encoders['clip-text'].layer_groups()) >= 4  # embeddings, two layers, projection
    check_groups(encoders['clip-text'])
    # what is saved needs no look at the place that the tower's configuration came from
    save_clip(encoders, tmp_path / 'saved')
    content = json.loads((tmp_path / 'saved' / 'clip' / 'open_clip_config.json').read_text())
    content['model_cfg']['text_cfg']['hf_model_name'] = 'not/there'
    (tmp_path / 'saved' / 'clip' / 'open_clip_config.json').write_text(json.dumps(content))
    again = load_clip_encoder(tmp_path / 'saved' / 'clip-text')
    torch.testing.assert_close(embed(again, TEXTS), texts, atol=1e-5, rtol=0)


# tokens


def test_token_ids_are_those_of_the_simple_tokenizer(tiny_open_clip, tmp_path):
    theirs = open_clip.tokenizer.SimpleTokenizer()
    chance = random.Random(0)
    symbols = [chr(chance.choice([chance.randrange(32, 0x250), chance.randrange(0xD7FF)])) for _ in range(600)]
    mixed = [''.join(chance.choices([*symbols, ' ', "'", 's', 't'], k=30)) for _ in range(300)]
    known = [text for text in mixed if all(_in_unicode_14(symbol) for symbol in text)]
    assert len(known) > 100
    text = load_clip(tiny_open_clip)['clip-text']
    text.save(tmp_path / 'clip-text')
    for ours in (text.preprocessor, ClipTextPreprocessor.load(tmp_path / 'clip-text')):
        for nasty, row in zip([*NASTY, *known], ours.features([*NASTY, *known]), strict=True):
            expected = theirs(nasty, context_length=16)[0].numpy()
            assert row.dtype == np.int32
            assert list(np.pad(row, (0, 16 - len(row)))) == list(expected), nasty


def _in_unicode_14(symbol):
    import unicodedata

    return unicodedata.category(symbol) not in ('Cn', 'Cs', 'Co')


def test_cleaning_is_that_of_open_clip():
    for text in NASTY:
        for kind in ('lower', 'whitespace', 'canonicalize'):
            assert clean(text, kind) == open_clip.tokenizer.get_clean_fn(kind)(text)
        assert clean(text, 'none') == text


def test_batches_are_as_long_as_their_longest_text(clip_directory):
    text = load_clip(clip_directory)['clip-text']
    short = text.preprocessor.collate(text.preprocessor.features(['x', 'red red']))
    assert short['input_ids'].shape[1] < 8
    # padding changes nothing
    alone, together = embed(text, ['x']), embed(text, ['x', TEXTS[1]])
    torch.testing.assert_close(alone[0], together[0], atol=1e-6, rtol=0)
    assert text.preprocessor.collate([])['input_ids'].shape == (0, 1)


def test_max_length_cuts_texts(clip_directory):
    text = load_clip(clip_directory, max_length=5)['clip-text']
    assert text.max_length == 5
    assert [len(row) for row in text.preprocessor.features(TEXTS)] == [5, 5, 2, 3]
    assert text.preprocessor.digest != load_clip(clip_directory)['clip-text'].preprocessor.digest
    with pytest.raises(ValueError, match='max_length is 17: this model takes from 3 to 16 tokens'):
        load_clip(clip_directory, max_length=17)


# the two encoders


def check_groups(encoder):
    grouped = [id(weight) for group in encoder.layer_groups() for weight in group.parameters()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(weight) for name, weight in encoder.named_parameters() if not name.startswith('head.')}


def test_layer_groups_hold_all_of_a_tower_and_nothing_of_the_other(clip_directory):
    encoders = load_clip(clip_directory)
    whole = encoders['clip-text'].whole.model
    for encoder in encoders.values():
        check_groups(encoder)
        assert len(encoder.layer_groups()) == 4
    weights = [id(weight) for encoder in encoders.values() for weight in encoder.parameters()]
    assert len(weights) == len(set(weights))
    assert {id(weight) for weight in whole.parameters()} - set(weights) == {id(whole.logit_scale)}


def test_layer_groups_are_called_one_after_the_other(clip_directory):
    for name, encoder in load_clip(clip_directory).items():
        calls = []

        def note(group, inputs, output, calls=calls):
            calls.append((group, inputs[0], output))

        groups = encoder.layer_groups()
        for group in groups:
            group.register_forward_hook(note)
        embed(encoder, TEXTS if name == 'clip-text' else images())
        assert [group for group, _, _ in calls] == groups
        for (_, _, output), (_, given, _) in zip(calls, calls[1:], strict=False):
            assert given is output


def test_training_one_tower_leaves_the_other_as_it_is_and_both_are_saved(clip_directory, tmp_path):
    encoders = load_clip(clip_directory)
    frozen = {name: weight.clone() for name, weight in encoders['clip-vision'].named_parameters()}
    before = embed(encoders['clip-text'], TEXTS)
    optimizer = torch.optim.SGD(encoders['clip-text'].parameters(), lr=0.1)
    text = encoders['clip-text'].train()
    inputs = text.preprocessor.collate(text.preprocessor.features(TEXTS))
    text(**{name: torch.from_numpy(inputs[name]) for name in text.input_names}).square().sum().backward()
    assert all(weight.grad is not None for weight in text.parameters())
    optimizer.step()
    for name, weight in encoders['clip-vision'].named_parameters():
        assert torch.equal(weight, frozen[name])
    after = embed(text.eval(), TEXTS)
    assert (after - before).abs().max() > 1e-3
    save_clip(encoders, tmp_path)
    torch.testing.assert_close(embed(load_clip(tmp_path / 'clip')['clip-text'], TEXTS), after, atol=1e-6, rtol=0)


def test_adapters_merge_into_what_is_saved(clip_directory, tmp_path):
    from training.lora import LoRAOptions, add_adapters, merge_adapters

    encoders = load_clip(clip_directory)
    for encoder in encoders.values():
        add_adapters(encoder, LoRAOptions())
        with torch.no_grad():
            for name, weight in encoder.named_parameters():
                if 'lora_B' in name:
                    weight.normal_(std=0.1)
    tuned = embed(encoders['clip-text'], TEXTS), embed(encoders['clip-vision'], images())
    for encoder in encoders.values():
        merge_adapters(encoder)
    save_clip(encoders, tmp_path)
    again = load_clip(tmp_path)
    torch.testing.assert_close(embed(again['clip-text'], TEXTS), tuned[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(again['clip-vision'], images()), tuned[1], atol=1e-5, rtol=0)
    assert (tuned[0] - embed(load_clip(clip_directory)['clip-text'], TEXTS)).abs().max() > 1e-3


def test_augment_changes_images_in_training_only(clip_directory):
    torch.manual_seed(0)
    plain, augmented = (load_clip(clip_directory, {'augment': on})['clip-vision'] for on in (False, True))
    expected = embed(plain, images())
    torch.testing.assert_close(embed(augmented, images()), expected)
    assert (embed(augmented.train(), images()) - expected).abs().max() > 1e-3
    torch.testing.assert_close(embed(plain.train(), images()), expected)


def test_embeddings_have_length_one_if_asked(clip_directory, tmp_path):
    plain, unit = load_clip(clip_directory), load_clip(clip_directory, {'normalize': True})
    for name, contents in (('clip-text', TEXTS), ('clip-vision', images())):
        expected = torch.nn.functional.normalize(embed(plain[name], contents), dim=-1)
        torch.testing.assert_close(embed(unit[name], contents), expected)
    save_clip(unit, tmp_path)
    assert load_clip_encoder(tmp_path / 'clip-text').normalize


def test_the_scale_of_logits_is_read_and_saved(siglip, tiny_clip, tmp_path):
    encoders = load_clip(siglip)
    assert clip_logit_scale(encoders) == LogitScale(2.0, -9.0)
    set_clip_logit_scale(encoders, LogitScale(1.5, -3.0))
    save_clip(encoders, tmp_path)
    assert clip_logit_scale(load_clip(tmp_path)) == LogitScale(1.5, -3.0)
    encoders = load_clip(tiny_clip)
    assert clip_logit_scale(encoders).logarithm == pytest.approx(2.6592)
    set_clip_logit_scale(encoders, LogitScale(4.0, -3.0))
    assert clip_logit_scale(encoders) == LogitScale(4.0)
    with pytest.raises(ValueError, match='the encoders clip-text are not the two of a CLIP model'):
        clip_logit_scale({'clip-text': encoders['clip-text']})


# saving and loading


def test_a_saved_transformers_model_opens_in_transformers(tiny_clip, tmp_path):
    encoders = load_clip(tiny_clip)
    save_encoders(encoders, tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path / 'clip').eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / 'clip')
    inputs = processor(text=TEXTS, padding=True, truncation=True, max_length=16, return_tensors='pt')
    with torch.no_grad():
        found = model.get_text_features(**inputs).pooler_output
    torch.testing.assert_close(embed(encoders['clip-text'], TEXTS), found, atol=1e-5, rtol=0)
    assert processor.image_processor.crop_size == {'height': 32, 'width': 32}


def test_a_saved_open_clip_model_opens_in_open_clip(tiny_open_clip, tmp_path):
    encoders = load_clip(f'local-dir:{tiny_open_clip}')
    save_encoders(encoders, tmp_path)
    model, _, transform = open_clip.create_model_and_transforms(f'local-dir:{tmp_path / "clip"}')
    tokenizer = open_clip.get_tokenizer(f'local-dir:{tmp_path / "clip"}')
    with torch.no_grad():
        texts = model.eval().encode_text(tokenizer(TEXTS))
        pictures = model.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images()]))
    torch.testing.assert_close(embed(encoders['clip-text'], TEXTS), texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(embed(encoders['clip-vision'], images()), pictures, atol=1e-5, rtol=0)


def test_the_common_loader_opens_them(clip_directory, tmp_path):
    from finetuner.excepts import SelectModelRequired

    encoders = load_encoders(f'local-dir:{clip_directory}', max_length=7)
    assert set(encoders) == {'clip-text', 'clip-vision'}
    save_encoders(encoders, tmp_path)
    again = load_encoders(tmp_path)
    for name, contents in (('clip-text', TEXTS), ('clip-vision', images())):
        expected = embed(encoders[name], contents)
        assert torch.equal(embed(again[name], contents), expected)
        assert torch.equal(embed(load_encoder(tmp_path / name), contents), expected)
        assert torch.equal(embed(load_encoder(tmp_path, select=name), contents), expected)
    with pytest.raises(SelectModelRequired, match='set select_model to one of clip-text, clip-vision'):
        load_encoder(clip_directory)


def test_each_side_opens_alone_with_its_head(clip_directory, tmp_path):
    encoders = load_clip(clip_directory, max_length=6)
    for encoder in encoders.values():
        encoder.add_head(10)
    save_clip(encoders, tmp_path)
    assert not any(path.suffix == '.safetensors' for path in (tmp_path / 'clip-text').iterdir() if path.stem != 'head')
    together = load_clip(tmp_path)
    for name, contents in (('clip-text', TEXTS), ('clip-vision', images())):
        assert is_clip_encoder(tmp_path / name)
        alone = load_clip_encoder(tmp_path / name)
        assert alone.dim == 10
        assert alone.preprocessor.digest == encoders[name].preprocessor.digest
        for again in (alone, together[name]):
            torch.testing.assert_close(embed(again, contents), embed(encoders[name], contents), atol=1e-6, rtol=0)
        with pytest.raises(ValueError, match=f'{name} was loaded alone: to save it, load both sides'):
            alone.save(tmp_path / 'again' / name)


def test_one_side_saves_the_model_of_both_beside_it(clip_directory, tmp_path):
    encoders = load_clip(clip_directory)
    encoders['clip-vision'].save(tmp_path / 'clip-vision')
    alone = load_clip_encoder(tmp_path / 'clip-vision')
    assert torch.equal(embed(alone, images()), embed(encoders['clip-vision'], images()))
    assert not (tmp_path / 'clip-text').exists()


def test_encoders_of_two_models_are_not_saved_as_one(clip_directory, tmp_path):
    one, other = load_clip(clip_directory), load_clip(clip_directory)
    with pytest.raises(ValueError, match='not of one model'):
        save_clip({'clip-text': one['clip-text'], 'clip-vision': other['clip-vision']}, tmp_path)


def test_a_model_alone_is_saved_as_model(tiny_model, tmp_path):
    from finetuner.inference.text_encoder import TextEncoder

    save_encoders({'model': TextEncoder.load(tiny_model)}, tmp_path)
    assert TextEncoder.load(tmp_path / 'model').dim == 24


def test_an_architecture_of_open_clip_with_a_file_of_weights(tiny_open_clip, tmp_path, monkeypatch):
    config = json.loads((tiny_open_clip / 'open_clip_config.json').read_text())['model_cfg']
    (tmp_path / 'tiny-test.json').write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, '_MODEL_CONFIG_PATHS', list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path / 'tiny-test.json')
    expected = embed(load_clip(tiny_open_clip)['clip-text'], TEXTS)
    weights = tiny_open_clip / 'open_clip_model.safetensors'
    by_name = load_clip(f'tiny-test::{weights}')
    assert torch.equal(embed(by_name['clip-text'], TEXTS), expected)
    assert torch.equal(embed(load_clip('tiny-test::tag', {'weights': weights})['clip-text'], TEXTS), expected)
    at_random = load_clip('tiny-test::tag', {'pretrained': False})
    assert not torch.allclose(embed(at_random['clip-text'], TEXTS), expected)
    save_clip(by_name, tmp_path / 'saved')
    assert torch.equal(embed(load_clip(tmp_path / 'saved')['clip-text'], TEXTS), expected)
    with pytest.raises(ValueError, match="open_clip cannot open tiny-test::nowhere: .*'?nowhere"):
        load_clip('tiny-test::nowhere')
    with pytest.raises(ValueError, match='names no weights'):
        load_clip('tiny-test::')
    with pytest.raises(ValueError, match="open_clip has no architecture 'No-Such'"):
        load_clip('No-Such::tag')


def test_pickled_code_in_weights_is_not_run(tiny_open_clip, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    directory = tmp_path / 'model'
    directory.mkdir()
    (directory / 'open_clip_config.json').write_text((tiny_open_clip / 'open_clip_config.json').read_text())
    (directory / 'open_clip_pytorch_model.bin').write_bytes(pickle.dumps(Evil(), 2))
    with pytest.raises(ValueError, match='pickled with more than weights'):
        load_clip(directory)
    assert not (tmp_path / 'ran').exists()


def test_what_cannot_be_loaded_is_refused(tiny_model, tiny_clip, tiny_open_clip, tmp_path):
    with pytest.raises(ValueError, match='holds no CLIP model'):
        load_clip(tiny_model)
    with pytest.raises(ValueError, match='does not exist'):
        load_clip('local-dir:nowhere')
    with pytest.raises(ValueError, match='could it be fetched from the hub'):
        load_clip('no-such-org/no-such-model')
    with pytest.raises(ValueError, match="'pooling' is not an option of a CLIP model"):
        load_clip(tiny_clip, {'pooling': 'mean'})
    with pytest.raises(ValueError, match='weights: a file can be given for'):
        load_clip(tiny_clip, {'weights': 'file'})
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'open_clip_config.json').write_text((tiny_open_clip / 'open_clip_config.json').read_text())
    with pytest.raises(ValueError, match='has no weights'):
        load_clip(tmp_path / 'empty')
    (tmp_path / 'coca').mkdir()
    config = json.loads((tiny_open_clip / 'open_clip_config.json').read_text())
    config['model_cfg']['vision_cfg']['attentional_pool'] = True
    (tmp_path / 'coca' / 'open_clip_config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='attentional pooling'):
        load_clip(tmp_path / 'coca', {'pretrained': False})


def test_names_and_directories_of_clip_models_are_known(tiny_clip, tiny_open_clip, tiny_model, tmp_path):
    save_clip(load_clip(tiny_clip), tmp_path)
    assert all(is_clip(name) for name in (tiny_clip, tiny_open_clip, tmp_path, 'clip-base-en', 'ViT-B-32::openai'))
    assert is_clip(f'local-dir:{tiny_open_clip}')
    assert not any(is_clip(name) for name in (tiny_model, 'bert-base-en', 'resnet50', tmp_path / 'clip-text'))
    assert not is_clip_encoder(tiny_model)


def test_clip_large_has_768_dimensions():
    from finetuner.models import find_backbone

    assert find_backbone('clip-large-en').output_dim == 768
    config = open_clip.get_model_config('ViT-L-14')
    assert config['embed_dim'] == 768


def test_texts_are_tokenized_without_torch(tiny_open_clip, tmp_path):
    save_clip(load_clip(tiny_open_clip), tmp_path)
    program = f"""
import sys
from pathlib import Path
from finetuner.inference.clip_tokens import ClipTextPreprocessor
print(ClipTextPreprocessor.load(Path({str(tmp_path / 'clip-text')!r})).features(['a red apple'])[0].tolist())
assert not {{'torch', 'transformers', 'open_clip'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [49406, 320, 736, 3055, 49407]
