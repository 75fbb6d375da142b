"""The packed forward against the padded one: the same embeddings and gradients, of every kind of transformer."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from finetuner.inference.layer_groups import find_layers
from finetuner.inference.packing import PackedBackbone
from finetuner.inference.streams import Stream, _attend_nested, attend, pool_segments, pool_stream
from finetuner.inference.text_encoder import TextEncoder

LENGTHS = torch.tensor([7, 3, 7, 20, 1, 12, 3, 2])
TOLERANCE = 1e-5  # of embeddings and of gradients, both of about 1

SIZES = {
    'vocab_size': 200,
    'hidden_size': 16,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'intermediate_size': 24,
    'max_position_embeddings': 100,
    'pad_token_id': 0,
    'bos_token_id': 2,
    'eos_token_id': 3,
    'initializer_range': 0.3,  # wide, so that what a token attends to matters
}
GPT_SIZES = {'vocab_size': 200, 'n_embd': 16, 'n_layer': 3, 'n_head': 2, 'n_positions': 100, 'initializer_range': 0.3}
T5_SIZES = {'vocab_size': 200, 'd_model': 16, 'd_kv': 8, 'd_ff': 24, 'num_layers': 3, 'num_heads': 2}
DISTIL_SIZES = {
    'vocab_size': 200,
    'dim': 16,
    'hidden_dim': 24,
    'n_layers': 3,
    'n_heads': 2,
    'max_position_embeddings': 100,
    'initializer_range': 0.3,
}
PACKABLE = {
    'bert': lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    'distilbert': lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL_SIZES)),
    'roberta': lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES | {'pad_token_id': 1})),
    'mpnet': lambda: transformers.MPNetModel(transformers.MPNetConfig(**SIZES | {'pad_token_id': 1})),
    'albert': lambda: transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=8)),
    # windows shorter than the longest text
    'modernbert': lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**SIZES, local_attention=8, cls_token_id=2, sep_token_id=3)
    ),
    'qwen3': lambda: transformers.Qwen3Model(transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8)),
    'mistral': lambda: transformers.MistralModel(
        transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=5)
    ),
    'gpt2': lambda: transformers.GPT2Model(transformers.GPT2Config(**GPT_SIZES, bos_token_id=2, eos_token_id=3)),
    't5': lambda: transformers.T5EncoderModel(transformers.T5Config(**T5_SIZES)),
}


@pytest.fixture
def make_encoder(tiny_model):
    def make(kind='bert', dropout=0.0, **options):
        torch.manual_seed(0)
        backbone = PACKABLE[kind]()
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        return TextEncoder(backbone, AutoTokenizer.from_pretrained(tiny_model), **options).eval()

    return make


@pytest.fixture(scope='module')
def tokens():
    # no padding ids: some architectures count positions by them
    return torch.randint(2, 140, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(1))


def embed_padded(encoder, tokens):
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]
    ids = torch.ones(mask.shape, dtype=torch.int64).masked_scatter(mask, tokens)
    return encoder(ids, mask.long())


def gradients_of(encoder, embeddings):
    """Of a loss to which every coordinate of every embedding counts differently."""
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    generator = torch.Generator().manual_seed(2)
    loss = (embeddings * torch.rand(embeddings.shape, generator=generator)).sum() / len(embeddings)
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize('kind', PACKABLE)
def test_packed_texts_get_the_embeddings_and_gradients_of_padded_ones(make_encoder, tokens, kind):
    encoder = make_encoder(kind, normalize=True)
    assert encoder.can_pack
    packed, padded = encoder.packed(tokens, LENGTHS), embed_padded(encoder, tokens)
    assert packed.dtype == torch.float32
    assert_same(packed, padded)
    assert_same(gradients_of(encoder, packed), gradients_of(encoder, padded))


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'max', 'lasttoken', 'gem'])
@pytest.mark.parametrize('kind', ['bert', 'qwen3'])
def test_every_pooling_and_a_head(make_encoder, tokens, kind, pooling):
    encoder = make_encoder(kind, pooling=pooling)
    encoder.add_head(5)
    packed, padded = encoder.packed(tokens, LENGTHS), embed_padded(encoder, tokens)
    assert packed.shape == (len(LENGTHS), 5)
    assert_same(packed, padded)
    assert_same(gradients_of(encoder, packed), gradients_of(encoder, padded))


def test_an_embedding_does_not_depend_on_the_other_texts(make_encoder, tokens):
    encoder = make_encoder()
    together = encoder.packed(tokens, LENGTHS)
    for text, embedding in zip(tokens.split(LENGTHS.tolist()), together, strict=True):
        assert_same(encoder.packed(text, torch.tensor([len(text)]))[0], embedding)


def test_no_padding_is_computed(make_encoder, tokens):
    encoder = make_encoder()
    assert encoder.can_pack
    shapes = []
    encoder.backbone.encoder.layer[1].intermediate.register_forward_hook(
        lambda _, inputs, __: shapes.append(inputs[0].shape)
    )
    encoder.packed(tokens, LENGTHS)
    assert shapes == [(1, len(tokens), 16)]


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize('kind', PACKABLE)
def test_tokens_of_no_text_that_fill_up_a_stream_change_nothing(make_encoder, tokens, kind):
    encoder = make_encoder(kind)
    assert encoder.can_pack
    computed = []
    for layer in find_layers(encoder.backbone):
        layer.register_forward_hook(lambda _, __, output: computed.append(first(output).shape[-2]))
    filled = encoder.packed(tokens, LENGTHS, multiple=64)
    assert set(computed) == {-(-len(tokens) // 64) * 64} != {len(tokens)}
    computed.clear()
    plain = encoder.packed(tokens, LENGTHS)
    assert set(computed) == {len(tokens)}
    assert_same(filled, plain)


def test_dropout_has_the_same_distribution(make_encoder, tokens):
    encoder = make_encoder(dropout=0.3).train()
    assert encoder.can_pack
    assert all(module.training for module in encoder.modules())  # the trial leaves no trace
    torch.manual_seed(3)
    with torch.no_grad():
        packed = torch.stack([encoder.packed(tokens, LENGTHS) for _ in range(120)])
        padded = torch.stack([embed_padded(encoder, tokens) for _ in range(120)])
    assert packed.std(0).min() > 0.05
    error = ((packed.var(0) + padded.var(0)) / 120).sqrt()
    assert ((packed.mean(0) - padded.mean(0)).abs() / error).max() < 5
    assert float(packed.std(0).mean()) == pytest.approx(float(padded.std(0).mean()), rel=0.1)


@pytest.mark.parametrize('kind', PACKABLE)
def test_a_forward_can_stop_and_go_on_at_every_layer_group(make_encoder, tokens, kind):
    encoder = make_encoder(kind)
    assert encoder.can_split
    expected = encoder.packed(tokens, LENGTHS)
    for group in range(1, len(encoder.layer_groups()) + 1):
        hidden = encoder.packed_hidden(tokens, LENGTHS, group)
        assert hidden.shape == (len(tokens), 16)
        assert_same(encoder.packed_from(hidden, LENGTHS, group), expected)


def test_hidden_states_are_in_the_order_of_the_texts_given(make_encoder, tokens):
    encoder = make_encoder()
    together = encoder.packed_hidden(tokens, LENGTHS, 2)
    for text, hidden in zip(tokens.split(LENGTHS.tolist()), together.split(LENGTHS.tolist()), strict=True):
        assert_same(encoder.packed_hidden(text, torch.tensor([len(text)]), 2), hidden)


def test_gradients_of_the_later_layers_from_cached_hidden_states(make_encoder, tokens):
    encoder = make_encoder(normalize=True)
    for group in encoder.layer_groups()[:2]:
        group.requires_grad_(False)
    expected = gradients_of(encoder, embed_padded(encoder, tokens))
    with torch.no_grad():
        hidden = encoder.packed_hidden(tokens, LENGTHS, 2)
    assert_same(gradients_of(encoder, encoder.packed_from(hidden, LENGTHS, 2)), expected)


def test_what_cannot_be_packed_is_recognised(tiny_model):
    config = transformers.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=['c2p', 'p2c'])
    encoder = TextEncoder(transformers.DebertaV2Model(config), AutoTokenizer.from_pretrained(tiny_model))
    assert not encoder.can_pack
    assert not encoder.can_split


@pytest.mark.parametrize('implementation', ['sdpa', 'eager'])
def test_the_backbone_stays_as_it_was(make_encoder, tokens, tmp_path, implementation):
    encoder = make_encoder()
    encoder.backbone.set_attn_implementation(implementation)
    attributes = {module: set(vars(module)) for module in encoder.modules()}
    before = embed_padded(encoder, tokens)
    encoder.save(tmp_path / 'before')
    encoder.packed(tokens, LENGTHS)
    with pytest.raises(IndexError):
        encoder.packed(tokens + 1000, LENGTHS)
    assert encoder.backbone.config._attn_implementation == implementation
    assert {module: set(vars(module)) for module in encoder.modules()} == attributes
    assert torch.equal(embed_padded(encoder, tokens), before)
    encoder.save(tmp_path / 'after')
    for path in (tmp_path / 'before').rglob('*.*'):
        assert path.read_bytes() == (tmp_path / 'after' / path.relative_to(tmp_path / 'before')).read_bytes()


def test_a_padded_forward_in_another_thread_is_not_disturbed(make_encoder, tokens):
    encoder = make_encoder()
    expected, found = embed_padded(encoder, tokens), []

    def interrupt(*_):
        if not found:
            found.append(None)
            thread = Thread(target=lambda: found.append(embed_padded(encoder, tokens)))
            thread.start()
            thread.join()

    assert encoder.can_pack
    handle = encoder.backbone.encoder.layer[1].register_forward_pre_hook(interrupt)
    packed = encoder.packed(tokens, LENGTHS)
    handle.remove()
    assert_same(found[1], expected)
    assert_same(packed, expected)


def test_a_copy_runs_its_own_weights(make_encoder, tokens):
    encoder = make_encoder()
    before = encoder.packed(tokens, LENGTHS)
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        twin.backbone.embeddings.word_embeddings.weight.mul_(2)
    assert torch.equal(encoder.packed(tokens, LENGTHS), before)
    assert_same(twin.packed(tokens, LENGTHS), embed_padded(twin, tokens))


def test_the_trial_draws_no_random_numbers(make_encoder):
    encoder = make_encoder(dropout=0.3).train()
    state = torch.get_rng_state()
    assert encoder.can_pack
    assert encoder.can_split
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match='Linear has no list of layers'):
        PackedBackbone(torch.nn.Linear(2, 2))


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'max', 'lasttoken', 'gem'])
def test_pooling_by_segments_equals_pooling_by_groups(pooling):
    stream, options = Stream(LENGTHS), {'p': 3.0, 'eps': 1e-6}
    hidden = torch.randn(int(LENGTHS.sum()), 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = [function(hidden, stream, pooling, options) for function in (pool_stream, pool_segments)]
    assert_same(results[1], results[0])
    first, second = (torch.autograd.grad(result.pow(2).sum(), hidden)[0] for result in results)
    assert_same(second, first)


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors')
def test_attention_by_jagged_tensors_equals_attention_by_groups():
    stream = Stream(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, int(LENGTHS.sum()), 8, generator=generator) for heads in (4, 2, 2))
    states = [part[0].transpose(0, 1).contiguous() for part in (query, key, value)]
    assert_same(_attend_nested(stream, states, 0.0, 0.3, False), attend(stream, query, key, value, scale=0.3))
