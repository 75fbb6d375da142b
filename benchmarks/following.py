"""How soon a service follows a promotion: `python benchmarks/following.py`.

A service serves an alias, which is promoted from one artifact to another and back, again and again, while nobody asks
for anything else than which one answers, and while several clients ask as fast as they can. Shown are the seconds from
the promotion until the first answer by the artifact that was promoted.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from serving import MODEL, make_texts
from traffic import over_grpc, running_service

import finetuner
from finetuner.documents import DocumentArray
from finetuner.inference.backbones import load_encoder
from registry import Registry
from registry.queue import Machine, Resources
from training.export import build_artifact

ALIAS = 'bench@production'
PATIENCE = 120.0


def main(
    promotions: Annotated[int, typer.Option(help='Of each setting.')] = 6,
    clients: Annotated[int, typer.Option(help='That ask as fast as they can.')] = 3,
    texts: Annotated[int, typer.Option(help='In each of their requests.')] = 64,
) -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, 'home')
        with Registry.open(home) as registry:
            account = registry.get_account().id
            artifacts = make_artifacts(registry, account, Path(folder))
            registry.promote(account, ALIAS, artifacts[0])
            token = registry.create_token(account, 'bench')
            with running_service(ALIAS, 0, FINETUNER_HOME=home, FINETUNER_TOKEN=token) as service:
                ask = over_grpc(service.grpc, 'text', return_artifact=True)
                table = Table('', 'median, s', 'fastest', 'slowest', title='From a promotion to its first answer')
                for name, count in (('idle', 0), (f'{clients} clients, {texts} texts each', clients)):
                    with asking(service.grpc, count, texts):
                        each = [
                            follow(registry, account, artifact, ask)
                            for artifact in track(
                                list(itertools.islice(itertools.cycle(reversed(artifacts)), promotions)), name
                            )
                        ]
                    table.add_row(
                        name, *(f'{seconds:.1f}' for seconds in (statistics.median(each), min(each), max(each)))
                    )
                console.print(table)


def make_artifacts(registry: Registry, account: str, folder: Path) -> list[str]:
    """The ids of the artifacts of two finished runs, of the same size and with other embeddings."""
    ids = []
    for number in range(2):
        encoder = load_encoder(MODEL)
        encoder.backbone.embeddings.word_embeddings.weight.data.mul_(1 + number)  # type: ignore[union-attr, operator]
        path = build_artifact(
            {'model': encoder}, name=f'run-{number}', config={}, metrics={}, target=folder / f'{number}.zip'
        )
        registry.create_run(account, 'default', f'run-{number}', {})
        run = registry.claim_run('bench', [Machine(Resources(slots=1), Resources(slots=1))])
        assert run is not None
        registry.finish_run(run.id, path, {}, {}, run.lease)
        ids.append(run.artifact_id)
    return ids


def follow(registry: Registry, account: str, artifact: str, ask: Callable[[Sequence[str]], DocumentArray]) -> float:
    """The seconds until a promotion is seen."""
    began = time.monotonic()
    registry.promote(account, ALIAS, artifact)
    while ask(['who'])[0].tags['finetuner_artifact'] != artifact:
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f'the promotion was not followed within {PATIENCE:.0f} s')
        time.sleep(0.1)
    return time.monotonic() - began


@contextmanager
def asking(port: int, clients: int, texts: int) -> Iterator[None]:
    batch = make_texts(texts)
    stop = threading.Event()

    def ask() -> None:
        with finetuner.EncodeClient(f'grpc://127.0.0.1:{port}') as client:
            while not stop.is_set():
                client.encode(batch, show_progress=False)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == '__main__':
    typer.run(main)
