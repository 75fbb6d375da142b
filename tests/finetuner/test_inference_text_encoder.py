"""The text encoder against sentence-transformers: what either writes, the other loads to the same embeddings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertModel, RobertaConfig, RobertaModel, T5Config, T5EncoderModel, T5Model

from finetuner.inference.layers import pool
from finetuner.inference.pretrained import packaged_directory, resolve
from finetuner.inference.text_encoder import TextEncoder

TEXTS = ['where is my card', '', 'My card is LOST!', 'the ' * 300, 'Überraschung, 漢字 🙂', 'a']


def embed(encoder, texts=TEXTS):
    with torch.no_grad():
        return encoder(**encoder.tokenizer(texts, padding=True, truncation=True, return_tensors='pt')).numpy()


def embed_elsewhere(directory, texts=TEXTS):
    model = SentenceTransformer(str(directory), device='cpu')
    return model.encode(texts, batch_size=len(texts), show_progress_bar=False)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def directory(tiny_model, tmp_path):
    """A copy of the tiny model that may be changed."""
    return shutil.copytree(tiny_model, tmp_path / 'model')


def test_packaged_minilm_equals_sentence_transformers(tmp_path):
    encoder = TextEncoder.load('all-minilm-l6-v2')
    assert (encoder.dim, encoder.max_length, encoder.pooling, encoder.normalize) == (384, 256, 'mean', True)
    embeddings = embed(encoder)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, embed_elsewhere(resolve('all-minilm-l6-v2')), rtol=0, atol=1e-5)
    np.testing.assert_allclose(embeddings, embed_elsewhere(encoder.save(tmp_path / 'saved')), rtol=0, atol=1e-5)


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'max', 'lasttoken'])
@pytest.mark.parametrize('normalize', [False, True])
def test_loads_what_sentence_transformers_wrote_and_the_other_way_round(tiny_model, tmp_path, pooling, normalize):
    transformer = Transformer(str(tiny_model))
    transformer.max_seq_length = 20
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling), *[Normalize()] * normalize]
    SentenceTransformer(modules=modules, device='cpu').save(str(tmp_path / 'theirs'))
    # ours of an earlier format: the length is not in the module's file any more
    encoder = TextEncoder.load(tmp_path / 'theirs')
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == (pooling, normalize, 20)
    expected = embed_elsewhere(tmp_path / 'theirs')
    np.testing.assert_allclose(embed(encoder), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embed_elsewhere(encoder.save(tmp_path / 'ours')), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embed(TextEncoder.load(tmp_path / 'ours')), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('activation', [torch.nn.Tanh(), torch.nn.Identity()])
def test_dense_layers_after_pooling(tiny_model, tmp_path, activation):
    torch.manual_seed(1)
    transformer = Transformer(str(tiny_model))
    modules = [
        transformer,
        Pooling(24),
        Dense(24, 12, activation_function=activation),
        Dense(12, 7, bias=False),
        Normalize(),
    ]
    SentenceTransformer(modules=modules, device='cpu').save(str(tmp_path / 'theirs'))
    encoder = TextEncoder.load(tmp_path / 'theirs')
    assert encoder.dim == 7
    expected = embed_elsewhere(tmp_path / 'theirs')
    np.testing.assert_allclose(embed(encoder), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embed_elsewhere(encoder.save(tmp_path / 'ours')), expected, rtol=0, atol=1e-5)


def test_lower_case_is_applied_before_a_cased_tokenizer(directory):
    tokenizer = json.loads((directory / 'tokenizer.json').read_text())
    tokenizer['normalizer'] = None
    (directory / 'tokenizer.json').write_text(json.dumps(tokenizer))
    cased = embed(TextEncoder.load(directory), ['My Card', 'my card'])
    edit_json(directory / 'sentence_bert_config.json', do_lower_case=True)
    lowered = embed(TextEncoder.load(directory), ['My Card', 'my card'])
    assert abs(cased[0] - cased[1]).max() > 1e-3
    np.testing.assert_array_equal(lowered[0], lowered[1])
    np.testing.assert_allclose(lowered, embed_elsewhere(directory, ['My Card', 'my card']), rtol=0, atol=1e-5)


def test_a_plain_transformers_directory_gets_mean_pooling_and_the_longest_length(tiny_model, tmp_path):
    BertModel.from_pretrained(tiny_model).save_pretrained(tmp_path / 'plain')
    AutoTokenizer.from_pretrained(tiny_model, model_max_length=int(1e30)).save_pretrained(tmp_path / 'plain')
    encoder = TextEncoder.load(tmp_path / 'plain')
    assert (encoder.pooling, encoder.normalize, encoder.max_length) == ('mean', False, 64)
    np.testing.assert_allclose(embed(encoder), embed_elsewhere(tmp_path / 'plain'), rtol=0, atol=1e-5)


def test_positions_that_start_after_the_padding_id_are_not_overrun(tiny_model, tmp_path):
    config = RobertaConfig(
        vocab_size=200,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path / 'model')
    AutoTokenizer.from_pretrained(tiny_model, model_max_length=34).save_pretrained(tmp_path / 'model')
    encoder = TextEncoder.load(tmp_path / 'model')
    assert encoder.max_length == 32
    assert np.isfinite(embed(encoder)).all()
    with pytest.raises(ValueError, match='max_length is 33: this model takes from 3 to 32 tokens'):
        TextEncoder.load(tmp_path / 'model', max_length=33)


def test_of_an_encoder_decoder_the_encoder_is_used(tiny_model, tmp_path):
    config = T5Config(vocab_size=200, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5Model(config).save_pretrained(tmp_path / 'model')
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / 'model')
    encoder = TextEncoder.load(tmp_path / 'model')
    assert isinstance(encoder.backbone, T5EncoderModel)
    assert embed(encoder).shape == (len(TEXTS), 8)


def test_pooling_and_length_can_be_overridden(tiny_model):
    encoder = TextEncoder.load(tiny_model, pooling='cls', max_length=8)
    assert (encoder.pooling, encoder.max_length) == ('cls', 8)
    assert encoder.tokenizer('the ' * 100, truncation=True)['input_ids'].__len__() == 8
    with pytest.raises(ValueError, match="unknown pooling 'median': it is one of mean, cls, max, lasttoken"):
        TextEncoder.load(tiny_model, pooling='median')
    with pytest.raises(ValueError, match='max_length is 65: this model takes from 3 to 64 tokens'):
        TextEncoder.load(tiny_model, max_length=65)


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'max', 'lasttoken'])
def test_pooling_ignores_padding_on_either_side(pooling):
    tokens = torch.tensor([[[1.0, -4.0], [2.0, -3.0], [4.0, -7.0]]])
    expected = {'mean': [7 / 3, -14 / 3], 'cls': [1, -4], 'max': [4, -3], 'lasttoken': [4, -7]}[pooling]
    noise = torch.full((1, 2, 2), 99.0)
    for parts, mask in (([tokens], [1, 1, 1]), ([tokens, noise], [1, 1, 1, 0, 0]), ([noise, tokens], [0, 0, 1, 1, 1])):
        pooled = pool(torch.cat(parts, 1), torch.tensor([mask]), pooling)
        torch.testing.assert_close(pooled, torch.tensor([expected], dtype=torch.float32))


def test_gradients_reach_every_weight_but_the_unused_head(tiny_model):
    encoder = TextEncoder.load(tiny_model).train()
    batch = encoder.tokenizer(TEXTS, padding=True, truncation=True, return_tensors='pt')
    encoder(**batch).pow(2).mul(torch.arange(24)).sum().backward()
    without = {name for name, weight in encoder.named_parameters() if weight.requires_grad and weight.grad is None}
    assert without == set()
    frozen = {name for name, weight in encoder.named_parameters() if not weight.requires_grad}
    assert frozen == {'backbone.pooler.dense.weight', 'backbone.pooler.dense.bias'}


def test_half_precision_weights_are_loaded_in_full(directory):
    BertModel.from_pretrained(directory).half().save_pretrained(directory)
    encoder = TextEncoder.load(directory)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert embed(encoder).dtype == np.float32


def test_saving_twice_gives_the_same_bytes_whatever_was_encoded_in_between(tiny_model, tmp_path):
    encoder = TextEncoder.load(tiny_model)
    embed(encoder)
    encoder.save(tmp_path / 'first')
    encoder.tokenizer('x', padding='max_length', max_length=11, truncation=True)
    encoder.save(tmp_path / 'second')
    for path in (tmp_path / 'first').rglob('*'):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / 'second' / path.relative_to(tmp_path / 'first')).read_bytes()


def test_prompts_survive_but_a_default_one_is_refused(directory, tmp_path):
    edit_json(directory / 'config_sentence_transformers.json', prompts={'query': 'query: '})
    TextEncoder.load(directory).save(tmp_path / 'saved')
    assert SentenceTransformer(str(tmp_path / 'saved')).prompts['query'] == 'query: '
    edit_json(directory / 'config_sentence_transformers.json', default_prompt_name='query')
    with pytest.raises(ValueError, match="puts the prompt 'query' before every text"):
        TextEncoder.load(directory)


def test_weights_that_could_run_code_are_refused(directory):
    torch.save(load_file(directory / 'model.safetensors'), directory / 'pytorch_model.bin')
    (directory / 'model.safetensors').unlink()
    with pytest.raises(ValueError, match=r'no weights in safetensors format \(pytorch_model.bin is pickled'):
        TextEncoder.load(directory)


def test_modules_that_are_not_known_are_refused(directory):
    modules = json.loads((directory / 'modules.json').read_text())
    modules.insert(1, {'idx': 9, 'name': '9', 'path': '9_LSTM', 'type': 'sentence_transformers.models.LSTM'})
    (directory / 'modules.json').write_text(json.dumps(modules))
    with pytest.raises(ValueError, match='lists the modules Transformer, LSTM, Pooling, Normalize: supported are'):
        TextEncoder.load(directory)


def test_poolings_that_are_not_known_are_refused(directory):
    edit_json(directory / '1_Pooling' / 'config.json', pooling_mode_max_tokens=True)
    with pytest.raises(ValueError, match=r'asks for the pooling max \+ mean: supported is one of'):
        TextEncoder.load(directory)


def test_directories_without_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match='holds no model'):
        TextEncoder.load(tmp_path)
    with pytest.raises(ValueError, match='does not exist'):
        TextEncoder.load(tmp_path / 'nothing')


def test_short_names_and_hub_ids():
    assert resolve('all-minilm-l6-v2') == resolve('sentence-transformers/all-MiniLM-L6-v2') == packaged_directory()
    assert resolve('sbert-base-en') == 'sentence-transformers/msmarco-distilbert-base-v3'
    assert resolve('org/any-model') == 'org/any-model'
    for name in ('', '/no/such/directory', './model', 'a/b/c'):
        with pytest.raises(ValueError, match='neither a model directory, nor a hub id, nor one of the short names'):
            resolve(name)


def test_a_model_that_cannot_be_fetched_is_named():
    with pytest.raises(ValueError, match="'org/any-model' is neither a directory here nor could it be fetched"):
        TextEncoder.load('org/any-model')


@pytest.mark.parametrize('known', [True, False])
def test_code_of_a_model_is_never_run(directory, known):
    code = f"open({str(directory / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    (directory / 'evil.py').write_text(code)
    kind = {} if known else {'model_type': 'evil'}
    edit_json(directory / 'config.json', auto_map={'AutoConfig': 'evil.Config', 'AutoModel': 'evil.Model'}, **kind)
    edit_json(directory / 'tokenizer_config.json', auto_map={'AutoTokenizer': ['evil.Config', 'evil.Config']})
    load = f'from finetuner.inference.text_encoder import TextEncoder; TextEncoder.load({str(directory)!r})'
    done = subprocess.run([sys.executable, '-c', load], input='y\n' * 5, capture_output=True, text=True)
    assert not (directory / 'ran').exists()
    if known:  # the library's own classes will do
        assert done.returncode == 0, done.stderr
    else:
        assert 'needs code of its own' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize('path', ['/etc', '../other', '1_Pooling/../../other'])
def test_modules_outside_the_model_are_refused(tiny_model, tmp_path, path):
    TextEncoder.load(tiny_model).save(tmp_path / 'model')
    shutil.copytree(tmp_path / 'model' / '1_Pooling', tmp_path / 'other')
    modules = json.loads((tmp_path / 'model' / 'modules.json').read_text())
    modules[1]['path'] = path
    (tmp_path / 'model' / 'modules.json').write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"modules.json names the path '{path}', which leads out of the model"):
        TextEncoder.load(tmp_path / 'model')
