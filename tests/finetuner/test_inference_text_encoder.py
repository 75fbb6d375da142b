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
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    OPTConfig,
    OPTModel,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from finetuner.inference.layers import pool
from finetuner.inference.pretrained import packaged_directory, resolve
from finetuner.inference.text_encoder import TextEncoder

TEXTS = ['where is my card', '', 'My card is LOST!', 'the ' * 300, 'Überraschung, 漢字 🙂', 'a']

SIZES = {
    'vocab_size': 50300,  # what the defaults for special tokens need
    'hidden_size': 8,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'intermediate_size': 8,
    'max_position_embeddings': 64,
}


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


@pytest.mark.parametrize('pooling', ['mean', 'cls'])
def test_a_projection_head_is_read_as_dense_layers(tiny_model, tmp_path, pooling):
    encoder = TextEncoder.load(tiny_model, pooling=pooling)
    assert (encoder.dim, encoder.backbone_dim) == (24, 24)
    torch.manual_seed(1)
    encoder.add_head(10)
    assert encoder.dim == 10
    expected = embed(encoder)
    assert expected.shape == (len(TEXTS), 10)
    encoder.save(tmp_path / 'model')
    assert [module.__class__.__name__ for module in SentenceTransformer(str(tmp_path / 'model'), device='cpu')] == [
        'Transformer',
        'Pooling',
        *['Dense'] * 3,
        'Normalize',
    ]
    np.testing.assert_allclose(embed_elsewhere(tmp_path / 'model'), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embed(TextEncoder.load(tmp_path / 'model')), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'kind', [BertForSequenceClassification, BertForTokenClassification, BertForMaskedLM, BertForPreTraining]
)
def test_a_model_for_another_task_loses_its_head(tiny_model, tmp_path, capfd, kind):
    plain = BertModel.from_pretrained(tiny_model)
    model = kind(plain.config)
    model.bert.load_state_dict(plain.state_dict(), strict=False)
    model.save_pretrained(tmp_path / 'model')
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / 'model')
    capfd.readouterr()
    encoder = TextEncoder.load(tmp_path / 'model')
    assert isinstance(encoder.backbone, BertModel)
    assert capfd.readouterr() == ('', '')
    expected = embed(TextEncoder(plain, AutoTokenizer.from_pretrained(tiny_model), max_length=encoder.max_length))
    np.testing.assert_allclose(embed(encoder), expected, rtol=0, atol=1e-6)
    assert json.loads((encoder.save(tmp_path / 'saved') / 'config.json').read_text())['architectures'] == ['BertModel']


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
    with pytest.raises(ValueError, match="unknown pooling 'median': it is one of mean, cls, max, lasttoken, gem"):
        TextEncoder.load(tiny_model, pooling='median')
    with pytest.raises(ValueError, match='max_length is 65: this model takes from 3 to 64 tokens'):
        TextEncoder.load(tiny_model, max_length=65)


def test_gem_of_values_above_eps_is_the_mean_for_one_and_the_maximum_for_large_powers():
    tokens = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    means, largest = pool(tokens, mask, 'mean'), pool(tokens, mask, 'max')
    torch.testing.assert_close(pool(tokens, mask, 'gem', {'p': 1.0, 'eps': 1e-6}), means)
    torch.testing.assert_close(pool(tokens, mask, 'gem', {'p': 1e5, 'eps': 1e-6}), largest, rtol=1e-4, atol=0)
    between = pool(tokens, mask, 'gem', {'p': 3.0, 'eps': 1e-6})
    torch.testing.assert_close(between[1], tokens[1, :2].pow(3).mean(0).pow(1 / 3))
    assert (between > means).all() and (between < largest).all()


def test_gem_raises_small_values_to_eps():
    tokens = torch.tensor([[[-4.0, 0.0], [-2.0, 2.0]]])
    pooled = pool(tokens, None, 'gem', {'p': 2.0, 'eps': 0.5})
    torch.testing.assert_close(pooled, torch.tensor([[0.5, (0.5 * (4 + 0.25)) ** 0.5]]))
    first = pool(tokens, None, 'gem', {'p': 1.0, 'eps': 0.5})  # so it is not the mean, -3 and 1
    torch.testing.assert_close(first, torch.tensor([[0.5, 1.25]]))


def test_gem_has_finite_gradients_for_large_powers():
    tokens = torch.tensor([[[1e-9, -1.0, 500.0], [1e-9, -2.0, 1.0]]], requires_grad=True)
    pool(tokens, torch.tensor([[1, 1]]), 'gem', {'p': 50.0, 'eps': 1e-6}).sum().backward()
    assert tokens.grad.isfinite().all()
    assert tokens.grad[0, 0, 2] == pytest.approx(0.5 ** (1 / 50))


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'max', 'lasttoken', 'gem'])
def test_without_padding_a_mask_makes_no_difference(pooling):
    tokens = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(3, 5, dtype=torch.int64)
    torch.testing.assert_close(pool(tokens, None, pooling), pool(tokens, ones, pooling))


def test_gem_is_saved_for_us_and_refused_elsewhere(tiny_model, tmp_path):
    encoder = TextEncoder.load(tiny_model, pooling='GeM', pooling_options={'p': 4})
    assert (encoder.pooling, encoder.pooling_options) == ('gem', {'p': 4.0, 'eps': 1e-6})
    saved = TextEncoder.load(encoder.save(tmp_path / 'model'))
    assert (saved.pooling, saved.pooling_options) == ('gem', {'p': 4.0, 'eps': 1e-6})
    np.testing.assert_array_equal(embed(saved), embed(encoder))
    assert abs(embed(saved) - embed(TextEncoder.load(tmp_path / 'model', pooling_options={'p': 1}))).max() > 1e-3
    assert TextEncoder.load(tmp_path / 'model', pooling='mean').pooling_options == {}
    with pytest.raises(ValueError, match="Invalid pooling mode: 'gem'"):
        SentenceTransformer(str(tmp_path / 'model'), device='cpu')


@pytest.mark.parametrize(
    ('pooling', 'options', 'message'),
    [
        ('mean', {'p': 3}, 'unknown pooling_options p of mean pooling: it takes none'),
        ('gem', {'q': 3}, 'unknown pooling_options q of gem pooling: it takes p and eps'),
        ('gem', {'p': 0}, 'the pooling option p is 0: it must be a positive number'),
        ('gem', {'eps': 'small'}, "the pooling option eps is 'small': it must be a positive number"),
    ],
)
def test_pooling_options_are_checked(tiny_model, pooling, options, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder.load(tiny_model, pooling=pooling, pooling_options=options)


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


def names_of(groups, backbone):
    """The groups by the modules that they are or consist of."""
    names = {id(module): name for name, module in backbone.named_modules()}
    return [names.get(id(group)) or [names[id(part)] for part in group] for group in groups]


@pytest.mark.parametrize(
    ('backbone', 'first', 'last'),
    [
        (BertModel(BertConfig(**SIZES)), 'embeddings', 'encoder.layer.2'),
        (
            DistilBertModel(DistilBertConfig(dim=8, hidden_dim=8, n_layers=3, n_heads=2)),
            'embeddings',
            'transformer.layer.2',
        ),
        (
            MPNetModel(MPNetConfig(**SIZES)),
            [
                'embeddings.word_embeddings',
                'embeddings.position_embeddings',
                'embeddings.LayerNorm',
                'encoder.relative_attention_bias',
            ],
            'encoder.layer.2',
        ),
        (ModernBertModel(ModernBertConfig(**SIZES)), 'embeddings', ['layers.2', 'final_norm']),
        (Qwen3Model(Qwen3Config(**SIZES, head_dim=4, num_key_value_heads=2)), 'embed_tokens', ['layers.2', 'norm']),
        (GPT2Model(GPT2Config(n_embd=8, n_layer=3, n_head=2)), ['wte', 'wpe'], ['h.2', 'ln_f']),
        (
            T5EncoderModel(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=3, num_heads=2)),
            'shared',
            ['encoder.block.2', 'encoder.final_layer_norm'],
        ),
        # the last projection is made before the layers, and called after them
        (
            OPTModel(
                OPTConfig(hidden_size=8, word_embed_proj_dim=4, num_hidden_layers=3, num_attention_heads=2, ffn_dim=8)
            ),
            ['decoder.embed_tokens', 'decoder.embed_positions', 'decoder.project_in'],
            ['decoder.layers.2', 'decoder.project_out', 'decoder.final_layer_norm'],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else '',
)
def test_layer_groups_hold_each_weight_once_from_input_to_output(tiny_model, backbone, first, last):
    encoder = TextEncoder(backbone, AutoTokenizer.from_pretrained(tiny_model))
    groups = encoder.layer_groups()
    assert len(groups) == 4
    names = names_of(groups, backbone)
    assert (names[0], names[-1]) == (first, last)
    grouped = [id(weight) for group in groups for weight in group.parameters()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(weight) for weight in backbone.parameters() if weight.requires_grad}


def test_the_preprocessor_makes_the_inputs_of_the_model(tiny_model):
    encoder = TextEncoder.load(tiny_model)
    preprocessor = encoder.preprocessor
    assert preprocessor.modality == encoder.modality == 'text'
    rows = preprocessor.features(TEXTS)
    assert {row.dtype for row in rows} == {np.dtype(np.int32)}
    assert [len(row) for row in rows[1:4]] == [2, 7, 32]
    inputs = preprocessor.collate(rows)
    assert inputs.keys() >= set(encoder.input_names)
    with torch.no_grad():
        found = encoder(**{name: torch.from_numpy(inputs[name]) for name in encoder.input_names}).numpy()
    np.testing.assert_allclose(found, embed(encoder), rtol=0, atol=1e-6)


def test_a_digest_stands_for_all_settings_of_a_preprocessor(tiny_model, directory):
    digest = TextEncoder.load(tiny_model).preprocessor.digest
    assert TextEncoder.load(tiny_model).preprocessor.digest == digest
    assert TextEncoder.load(tiny_model, max_length=31).preprocessor.digest != digest
    tokenizer = json.loads((directory / 'tokenizer.json').read_text())
    tokenizer['normalizer']['lowercase'] = False
    (directory / 'tokenizer.json').write_text(json.dumps(tokenizer))
    assert TextEncoder.load(directory).preprocessor.digest != digest


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
