"""The text model: a transformers backbone, pooling, a head of dense layers, if any, and perhaps normalization.

It reads and writes the directories of sentence-transformers, so that either can load what the other wrote.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from tokenizers import Tokenizer, normalizers
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from finetuner.inference.encoder import Encoder
from finetuner.inference.layer_groups import layer_groups
from finetuner.inference.layers import Dense, pool
from finetuner.inference.layout import GEM_FILE, Layout, check_pooling, find_weights, read_layout, write_json
from finetuner.inference.packing import OFFSET_POSITIONS, PackedBackbone
from finetuner.inference.preprocessing import Modality
from finetuner.inference.pretrained import fetch, resolve
from finetuner.inference.streams import Stream, pool_stream
from finetuner.inference.tokenization import TextTokenizer

_DEFAULT_LENGTH = 512  # where neither the directory nor the backbone has a limit


class TextEncoder(Encoder):
    """Token ids in, embeddings out.

    :param backbone: a transformers encoder or decoder without a head.
    :param tokenizer: its fast tokenizer; its `model_max_length` is set to `max_length`.
    :param pooling: `mean`, `cls`, `max`, `lasttoken` or `gem`.
    :param pooling_options: of GeM `p` and `eps`.
    :param normalize: scale embeddings to L2 norm 1.
    :param max_length: the longest input in tokens, special ones included; None is the longest the backbone can take.
    :param head: layers between pooling and normalization.
    :param prompts: named prefixes, kept for those who load the saved model elsewhere; none is ever added here.
    :raises ValueError: an unknown pooling, a slow tokenizer, or a length that the backbone cannot take.
    """

    modality: ClassVar[Modality] = 'text'

    def __init__(
        self,
        backbone: transformers.PreTrainedModel,
        tokenizer: Any,
        *,
        pooling: str = 'mean',
        pooling_options: Mapping[str, float] | None = None,
        normalize: bool = False,
        max_length: int | None = None,
        head: list[Dense] | None = None,
        prompts: dict[str, str] | None = None,
    ):
        super().__init__(head, normalize)
        self.pooling, self.pooling_options = check_pooling(pooling, pooling_options)
        if not tokenizer.is_fast:
            raise ValueError(f'{type(tokenizer).__name__} has no fast version (tokenizer.json), which is needed')
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.prompts = prompts or {}
        self.max_length = _check_length(max_length, backbone, tokenizer)
        tokenizer.model_max_length = self.max_length
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._packed: PackedBackbone | None = None
        self._takes_types = 'token_type_ids' in inspect.signature(backbone.forward).parameters
        # the head for next-sentence prediction: kept so that the directory is complete, never trained or used
        if isinstance(pooler := getattr(backbone, 'pooler', None), nn.Module):
            pooler.requires_grad_(False)

    @classmethod
    def load(
        cls,
        directory_or_name: str | Path,
        pooling: str | None = None,
        pooling_options: Mapping[str, float] | None = None,
        max_length: int | None = None,
    ) -> TextEncoder:
        """Read a sentence-transformers or transformers directory, a short name or a hub id; weights become float32.

        A model for classification or for predicting words loses its head.

        :param pooling: overrides the directory's; without either it is `mean`.
        :param pooling_options: override the directory's.
        :param max_length: overrides the directory's.
        :raises ValueError: the model is not to be found, unsafe (pickled weights) or not supported.
        """
        location = resolve(directory_or_name)
        directory = location if isinstance(location, Path) else fetch(location)
        layout = read_layout(directory)
        try:
            with quiet():
                backbone = _load_backbone(layout.transformer)
                tokenizer = _load_tokenizer(layout)
        except ValueError as error:
            if 'trust_remote_code' not in str(error):
                raise
            raise ValueError(
                f'{layout.transformer} needs code of its own (auto_map), which is never run: '
                'use a model of an architecture that transformers has'
            ) from error
        if layout.max_length is not None:
            tokenizer.model_max_length = layout.max_length
        return cls(
            backbone,
            tokenizer,
            pooling=pooling or layout.pooling,
            pooling_options=layout.pooling_options if pooling is None and pooling_options is None else pooling_options,
            normalize=layout.normalize,
            max_length=max_length,
            head=[Dense.load(path) for path in layout.dense],
            prompts=layout.prompts,
        ).eval()

    @property
    def backbone_dim(self) -> int:
        return int(self.backbone.config.hidden_size)

    @cached_property
    def preprocessor(self) -> TextTokenizer:
        # a copy: the encoder's own is changed by every call
        tokenizer = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        return TextTokenizer(tokenizer, self.max_length, self.tokenizer.pad_token_id or 0)

    @property
    def input_names(self) -> list[str]:
        """The arguments of `forward` that the tokenizer fills and the backbone reads, in order."""
        types = self._takes_types and 'token_type_ids' in self.tokenizer.model_input_names
        return ['input_ids', 'attention_mask', *['token_type_ids'] * types]

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Embed tokenized texts.

        :param input_ids: int64 [B, T].
        :param attention_mask: int64 [B, T], 1 for a token and 0 for padding.
        :param token_type_ids: int64 [B, T], ignored by backbones that have none; None is all zeros.
        :return: float32 [B, dim].
        """
        return self.finish(self.pooled(input_ids, attention_mask, token_type_ids))

    def pooled(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        types = {'token_type_ids': token_type_ids} if self._takes_types and token_type_ids is not None else {}
        tokens = self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types)
        return pool(tokens.last_hidden_state.float(), attention_mask, self.pooling, self.pooling_options)

    def layer_groups(self) -> list[nn.Module]:
        return layer_groups(self.backbone)

    @property
    def can_pack(self) -> bool:
        """Whether :meth:`packed` gives what :meth:`forward` does. Is found out by trying, at the first use."""
        try:
            return self._packer.can_pack
        except ValueError:
            return False

    @property
    def can_split(self) -> bool:
        """Whether :meth:`packed_hidden` and :meth:`packed_from` give together what :meth:`packed` does."""
        return self.can_pack and self._packer.can_split

    def packed(self, tokens: Tensor, lengths: Tensor, multiple: int = 1) -> Tensor:
        """Embed texts without computing any padding.

        With dropout the embeddings have the same distribution as those of :meth:`forward`, without it they are equal.

        :param tokens: the token ids of all texts, one text after the other, int64 [N].
        :param lengths: how many tokens each text has, at least one, int64 [B], on the CPU or not.
        :param multiple: compute so many tokens, or a multiple of it, even if the texts have fewer.
        :return: float32 [B, dim].
        """
        stream = Stream(lengths, tokens.device, multiple=multiple)
        return self._finish_stream(self._packer.run(stream.sort(tokens), stream), stream)

    def packed_hidden(self, tokens: Tensor, lengths: Tensor, stop: int) -> Tensor:
        """What the first layer groups give, float [N, D]; the tokens are in the order of the arguments.

        :param stop: how many layer groups, from 1 to all.
        """
        stream = Stream(lengths, tokens.device, stop=stop)
        return stream.unsort(self._packer.run(stream.sort(tokens), stream))

    def packed_from(self, hidden: Tensor, lengths: Tensor, start: int) -> Tensor:
        """Embed texts from the hidden states that :meth:`packed_hidden` has given, float32 [B, dim].

        :param hidden: float [N, D].
        :param start: how many layer groups that was.
        """
        stream = Stream(lengths, hidden.device, start=start)
        stream.hidden = hidden = stream.sort(hidden)
        if start < self._packer.groups:
            hidden = self._packer.run(hidden.new_zeros(len(hidden), dtype=torch.int64), stream)
        return self._finish_stream(hidden, stream)

    def _finish_stream(self, hidden: Tensor, stream: Stream) -> Tensor:
        return self.finish(stream.unsort_texts(pool_stream(hidden.float(), stream, self.pooling, self.pooling_options)))

    @property
    def _packer(self) -> PackedBackbone:
        if self._packed is None or self._packed.backbone is not self.backbone:
            self._packed = PackedBackbone(self.backbone)
        return self._packed

    def save(self, directory: str | Path) -> Path:
        """Write a directory that sentence-transformers loads to the same embeddings.

        :param directory: is made if it is not there; files of the same names in it are replaced.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # the file remembers the last call's padding and length: make it say the model's, whatever came before
        backend = self.tokenizer.backend_tokenizer
        backend.enable_truncation(self.max_length)
        backend.enable_padding(pad_id=self.tokenizer.pad_token_id, pad_token=self.tokenizer.pad_token)
        with quiet():
            self.backbone.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
        modules = [('Transformer', ''), ('Pooling', '1_Pooling')]
        for number, layer in enumerate(self.head, start=len(modules)):
            assert isinstance(layer, Dense)
            layer.save(directory / f'{number}_Dense')
            modules.append(('Dense', f'{number}_Dense'))
        if self.normalize:
            modules.append(('Normalize', f'{len(modules)}_Normalize'))
        write_json(
            directory / 'modules.json',
            [
                {'idx': index, 'name': str(index), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
                for index, (kind, path) in enumerate(modules)
            ],
        )
        write_json(directory / 'sentence_bert_config.json', {'max_seq_length': self.max_length, 'do_lower_case': False})
        write_json(directory / 'config_sentence_transformers.json', {'prompts': self.prompts})
        self._save_pooling(directory / '1_Pooling')
        return directory

    def _save_pooling(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        config: dict[str, Any] = {'word_embedding_dimension': self.backbone_dim}
        if self.pooling == 'gem':  # sentence-transformers has none, and says so when it reads the name
            write_json(directory / 'config.json', config | {'pooling_mode': self.pooling})
            write_json(directory / GEM_FILE, self.pooling_options)
            return
        flags = {'mean': 'mean_tokens', 'cls': 'cls_token', 'max': 'max_tokens', 'lasttoken': 'lasttoken'}
        modes = {f'pooling_mode_{flag}': name == self.pooling for name, flag in flags.items()}
        write_json(directory / 'config.json', config | modes)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and reports of its own while it reads and writes files."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _load_backbone(directory: Path) -> transformers.PreTrainedModel:
    find_weights(directory)
    config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
    # of an encoder-decoder like T5, this is the encoder alone
    auto = transformers.AutoModelForTextEncoding if config.is_encoder_decoder else transformers.AutoModel
    return auto.from_pretrained(
        directory, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )


def _load_tokenizer(layout: Layout) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(layout.transformer, trust_remote_code=False)
    if layout.do_lower_case and tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        own = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer


def _longest_input(backbone: transformers.PreTrainedModel) -> int | None:
    """How many tokens the table of positions has room for; None where there is no such table."""
    positions = getattr(backbone.config, 'max_position_embeddings', None)
    if positions is not None and backbone.config.model_type in OFFSET_POSITIONS:
        positions -= (backbone.config.pad_token_id or 0) + 1
    return positions


def _check_length(length: int | None, backbone: transformers.PreTrainedModel, tokenizer: Any) -> int:
    longest = _longest_input(backbone)
    if length is None:
        return int(min(tokenizer.model_max_length, longest or _DEFAULT_LENGTH))
    least = tokenizer.num_special_tokens_to_add() + 1
    if not least <= length <= (longest or length):
        raise ValueError(
            f'max_length is {length}: this model takes from {least} to {longest or "any number of"} tokens'
        )
    return length
