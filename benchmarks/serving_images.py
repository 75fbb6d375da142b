"""Images per second and latency of serving the vision tower of a CLIP: `python benchmarks/serving_images.py`.

Every row embeds the same JPEG files, decoding and resizing included, with a ViT-B/32 of random weights, in one run:

* floor: the arithmetic of the model on its patches, at the rate of a matrix product in fp32 that is measured there;
* transformers: its pipeline `image-feature-extraction`, in batches of 32;
* open_clip: its preprocessing and `encode_image`, in batches of 32, with a model of its own of the same shape;
* in process: `finetuner.encode` with torch, in bf16, and with the ONNX model of an artifact;
* gRPC: documents with blobs through `/encode`.

The files are noise of low frequency, 640 x 480 and 1920 x 1080, as many of each. The rows take turns; the medians of
the rounds count.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from PIL import Image
from rich.console import Console
from traffic import Embed, Row, flops_per_second, over_grpc, peak_memory, running_service, show, work

from finetuner.inference import InferenceEngine, load_engine

THEIRS = 'transformers'
BATCH = 32
SIDE, PATCH, WIDTH, INNER, LAYERS, DIM = 224, 32, 768, 3072, 12, 512
SIZES = ((640, 480), (1920, 1080))
# images in a request, clients at the same time, images of a round
SETTINGS = ((1, 1, 16), (1, 8, 32), (64, 1, 64))


def make_files(count: int) -> list[bytes]:
    chooser = np.random.default_rng(0)
    files = []
    for number in range(count):
        noise = Image.fromarray(chooser.integers(0, 256, (24, 32, 3), np.uint8))
        file = io.BytesIO()
        noise.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC).save(file, 'JPEG', quality=90)
        files.append(file.getvalue())
    return files


def make_model(folder: Path) -> Path:
    """A CLIP of transformers, its text tower of the least size."""
    import torch
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f'{letter}</w>' for letter in letters), 're', '<|startoftext|>', '<|endoftext|>']
    text = {'hidden_size': 64, 'num_hidden_layers': 1, 'num_attention_heads': 1, 'intermediate_size': 64}
    text |= {'vocab_size': len(pieces), 'bos_token_id': len(pieces) - 2, 'eos_token_id': len(pieces) - 1}
    vision = {'hidden_size': WIDTH, 'num_hidden_layers': LAYERS, 'num_attention_heads': 12, 'intermediate_size': INNER}
    vision |= {'image_size': SIDE, 'patch_size': PATCH}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[('r', 'e')])
    images = CLIPImageProcessor(size={'shortest_edge': SIDE}, crop_size={'height': SIDE, 'width': SIDE})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def floor_rate() -> float:
    """Images per second if nothing but the products of matrices took time."""
    tokens = (SIDE // PATCH) ** 2 + 1
    flops = LAYERS * (2 * (4 * WIDTH**2 + 2 * WIDTH * INNER) * tokens + 4 * WIDTH * tokens**2)
    return flops_per_second(BATCH * tokens, WIDTH, INNER) / flops


def with_transformers(model: Path) -> Embed:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, pipeline

    vision = CLIPVisionModelWithProjection.from_pretrained(model)
    processor = CLIPImageProcessor.from_pretrained(model)
    extract: Any = pipeline('image-feature-extraction', model=vision, image_processor=processor, device='cpu')

    def embed(files: Sequence[bytes]) -> object:
        return extract([Image.open(io.BytesIO(file)) for file in files], batch_size=BATCH)

    return embed


def with_open_clip() -> Embed:
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms('ViT-B-32', pretrained=None)
    model.eval()

    def embed(files: Sequence[bytes]) -> object:
        found = []
        for start in range(0, len(files), BATCH):
            images = [preprocess(Image.open(io.BytesIO(file))) for file in files[start : start + BATCH]]
            with torch.inference_mode():
                found.append(model.encode_image(torch.stack(images), normalize=True))
        return torch.cat(found)

    return embed


def in_process(engine: InferenceEngine) -> Embed:
    return lambda files: engine.encode_contents(files)


def main(
    rounds: Annotated[int, typer.Option(help='Turns that each row has.')] = 5,
    threads: Annotated[int, typer.Option(help='Threads that compute, of every row; 0 is one for each core.')] = 0,
) -> None:
    import torch

    from finetuner.inference.backbones import load_encoder
    from training.export import export

    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    files = make_files(max(images for _, _, images in SETTINGS))
    console = Console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = make_model(folder / 'clip')
        options = {'select_model': 'clip-vision', 'is_onnx': False}
        engine = load_engine(model, **options)  # type: ignore[arg-type]
        exported = export(load_encoder(model, select='clip-vision'), folder / 'exported' / 'clip-vision')
        service = stack.enter_context(running_service(model, count, FINETUNER_SELECT_MODEL='clip-vision'))
        ways: dict[str, Embed] = {
            THEIRS: with_transformers(model),
            'open_clip': with_open_clip(),
            'in process': in_process(engine),
            'in process, bf16': in_process(load_engine(model, precision='bf16', **options)),  # type: ignore[arg-type]
            'in process, ONNX': in_process(load_engine(exported, is_onnx=True, intra_op_num_threads=count)),
            'gRPC': over_grpc(service.grpc, 'blob'),
        }
        watched = [psutil.Process(), service.process, *service.process.children(recursive=True)]
        for embed in ways.values():  # whatever is done once is done
            embed(files[:2])
        floor = floor_rate()
        for size, together, images in SETTINGS:
            batches = [files[first : first + size] for first in range(0, images, size)]
            rows = [Row(name, embed) for name, embed in ways.items()]
            for _ in range(rounds):
                for row in rows:
                    work(row, batches, together, watched)
            title = f'{size} images in a request, {together} clients'
            show(console, title, rows, floor, THEIRS, 'images')
        console.print(f'service: start {service.start:.1f} s, peak memory {peak_memory(service.process):.0f} MiB')


if __name__ == '__main__':
    typer.run(main)
