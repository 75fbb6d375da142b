"""A small model that knows the words of the shop and nothing else, to try all of it in seconds."""

from __future__ import annotations

from pathlib import Path

from examples.clicks.shop import Shop


def write_shop_model(shop: Shop, folder: Path) -> Path:
    """Write the directory of a BERT of one layer, 32 dimensions and random weights, whose tokens are the words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from finetuner.inference.text_encoder import TextEncoder

    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', ',']
    texts = [*shop.titles.values(), *(query.text for query in shop.queries)]
    words = sorted({word for text in texts for word in text.replace(',', ' ').split()})
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(special + words)}, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
    names = ('pad_token', 'unk_token', 'cls_token', 'sep_token', 'mask_token')
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, special, strict=False)))
    torch.manual_seed(0)
    size = {'hidden_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 64}
    config = BertConfig(vocab_size=len(special) + len(words), max_position_embeddings=32, **size)
    return TextEncoder(BertModel(config), fast, normalize=True, max_length=16).save(folder)
