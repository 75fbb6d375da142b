"""Embeddings by the service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetuner.client.session import current_session
from finetuner.excepts import FinetunerServerError

if TYPE_CHECKING:
    import numpy as np

TEXTS_PER_REQUEST = 256


def encode_remotely(texts: Sequence[str]) -> np.ndarray:
    """Have the service encode texts with the artifact that it serves.

    :return: [texts, dimensions], float32.
    :raises FinetunerServerError: the service serves no artifact, or cannot be reached.
    """
    import numpy as np
    from docarray.proto import DocListProto
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from finetuner.console import make_progress
    from finetuner.documents import Document, DocumentArray

    session = current_session()
    embeddings = []
    with make_progress(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task('Encoding', total=len(texts))
        for start in range(0, len(texts), TEXTS_PER_REQUEST):
            documents = DocumentArray([Document(text=text) for text in texts[start : start + TEXTS_PER_REQUEST]])
            answer = session.request_bytes('/encode', documents.to_protobuf().SerializeToString())
            encoded = DocumentArray.from_protobuf(DocListProto.FromString(answer))
            if len(encoded) != len(documents):
                raise FinetunerServerError(f'{session.host} answered {len(documents)} texts with {len(encoded)}')
            embeddings.append(np.asarray(encoded.embeddings, dtype=np.float32))
            progress.advance(task, len(documents))
    return np.concatenate(embeddings)
