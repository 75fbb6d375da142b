"""FinetunerExecutor follows an alias: what is promoted answers soon, and no request is lost or mixed on the way."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from executors import following
from executors.artifacts import Found
from executors.encoder import ARTIFACT_TAG, FinetunerExecutor
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactError, ArtifactNotFoundError
from finetuner.inference import load_engine
from finetuner.inference.server import ModelServer
from finetuner.inference.text_encoder import TextEncoder
from registry import Registry
from registry.queue import Machine, Resources
from training.export import build_artifact

ALIAS = 'support@production'
EVERYTHING = Machine(Resources(slots=1), Resources(slots=1))
TEXTS = ['where is my card', 'refund', 'a third text that is longer than the others']


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(following, 'INTERVAL', 0.05)


@pytest.fixture(scope='module')
def zips(tiny_model, tmp_path_factory):
    """Three artifacts whose embeddings differ."""
    folder = tmp_path_factory.mktemp('zips')
    paths = []
    for number in range(3):
        encoder = TextEncoder.load(tiny_model)
        encoder.backbone.embeddings.word_embeddings.weight.data.mul_(1 + number)
        paths.append(
            build_artifact(
                {'model': encoder}, name=f'run-{number}', config={}, metrics={}, target=folder / f'{number}.zip'
            )
        )
    return paths


@pytest.fixture
def registry():
    with Registry.open() as registry:
        yield registry


@pytest.fixture
def account(registry):
    return registry.get_account().id


@pytest.fixture
def artifacts(registry, account, zips):
    """The ids of the artifacts of three finished runs."""
    ids = []
    for number, path in enumerate(zips):
        registry.create_run(account, 'default', f'run-{number}', {})
        run = registry.claim_run('test', [EVERYTHING])
        registry.finish_run(run.id, path, {}, {}, run.lease)
        ids.append(run.artifact_id)
    return ids


@pytest.fixture
def start(registry):
    started = []

    def make(artifact, **options):
        started.append(FinetunerExecutor(artifact, **options))
        return started[-1]

    yield make
    for executor in started:
        executor.close()


def ask(executor):
    documents = DocumentArray([Document(text=text) for text in TEXTS])
    return asyncio.run(executor.encode(docs=documents, parameters={'return_artifact': True}))


def who_answers(executor):
    (artifact_id,) = {document.tags[ARTIFACT_TAG] for document in ask(executor)}
    return artifact_id


def wait_for(executor, artifact_id, seconds=30):
    deadline = time.monotonic() + seconds
    while who_answers(executor) != artifact_id:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_promotion_is_followed_and_rolled_back(registry, account, artifacts, start):
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS)
    assert who_answers(executor) == artifacts[0]
    registry.promote(account, ALIAS, artifacts[1])
    wait_for(executor, artifacts[1])
    registry.roll_back(account, ALIAS)
    wait_for(executor, artifacts[0])


def test_what_is_cached_of_one_artifact_never_answers_for_another(registry, account, artifacts, zips, start):
    expected = [load_engine(path).encode_texts(TEXTS) for path in zips[:2]]
    assert not np.allclose(*expected, atol=1e-3)
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS, cache_bytes=1 << 20)
    for number in (0, 1, 0):
        registry.promote(account, ALIAS, artifacts[number])
        wait_for(executor, artifacts[number])
        for _ in range(2):
            np.testing.assert_allclose([answer.embedding for answer in ask(executor)], expected[number], atol=1e-5)
    lookups = executor._metrics.registry.get_sample_value
    assert lookups('finetuner_encode_cache_lookups_total', {'outcome': 'miss'}) == 2 * len(TEXTS)


def test_every_request_is_answered_by_one_model_while_they_change(registry, account, artifacts, zips, start):
    expected = {
        artifact_id: np.stack(load_engine(path).encode(DocumentArray([Document(text=t) for t in TEXTS])).embeddings)
        for artifact_id, path in zip(artifacts[:2], zips[:2], strict=True)
    }
    assert not np.allclose(*expected.values(), atol=1e-3)
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS)
    answers, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            answers.append(ask(executor))

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    for artifact_id in (artifacts[1], artifacts[0], artifacts[1]):
        registry.promote(account, ALIAS, artifact_id)
        wait_for(executor, artifact_id)
    stop.set()
    for thread in threads:
        thread.join()
    seen = set()
    for answer in answers:
        (artifact_id,) = {document.tags[ARTIFACT_TAG] for document in answer}
        seen.add(artifact_id)
        np.testing.assert_allclose(np.stack(answer.embeddings), expected[artifact_id], atol=1e-5)
    assert seen == set(artifacts[:2])


def test_an_artifact_that_cannot_be_loaded_is_not_switched_to(registry, account, artifacts, start):
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS)
    broken = registry.artifact_file(registry.get_artifact(account, artifacts[1]))
    broken.chmod(0o640)
    broken.write_bytes(broken.read_bytes()[:-100])
    registry.promote(account, ALIAS, artifacts[1])
    time.sleep(1)
    assert who_answers(executor) == artifacts[0]
    registry.promote(account, ALIAS, artifacts[2])
    wait_for(executor, artifacts[2], seconds=10)  # not only when the broken one would be tried again


def test_an_alias_that_names_nothing_yet_is_waited_for(registry, account, artifacts, start):
    executor = start(ALIAS)
    with pytest.raises(ArtifactNotFoundError, match='nothing is promoted as support@production yet: finetuner promote'):
        ask(executor)
    registry.promote(account, ALIAS, artifacts[0])
    deadline = time.monotonic() + 30
    while executor.served is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert who_answers(executor) == artifacts[0]


def test_a_run_is_served_by_its_name_and_stays(registry, account, artifacts, start):
    executor = start('default/run-1')
    assert who_answers(executor) == artifacts[1]
    assert executor._follower is None


def test_a_run_that_is_not_there_is_told_beside_the_hub_that_has_no_such_model(artifacts):
    with pytest.raises(ArtifactError, match="As a run: There is no run 'nix' .* As a model of a hub: "):
        FinetunerExecutor('default/nix')


def test_a_token_that_is_wrong_is_told_beside_the_hub_that_has_no_such_model(artifacts):
    with pytest.raises(ArtifactError, match='As a run: .*token.* As a model of a hub: '):
        FinetunerExecutor('default/run-1', token='wrong')


def test_a_model_that_cannot_be_warmed_up_leaves_no_thread(registry, account, artifacts, start, monkeypatch):
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS)
    before = [thread for thread in threading.enumerate() if thread.name == 'model']

    def fail(self):
        raise MemoryError('there is no room for another model')

    monkeypatch.setattr(ModelServer, 'warm_up', fail)
    with pytest.raises(MemoryError):
        executor._load(Found(registry.artifact_file(registry.find_artifact(account, artifacts[1])), artifacts[1]))
    assert [thread for thread in threading.enumerate() if thread.name == 'model'] == before


def test_a_model_whose_place_was_taken_leaves_the_memory(registry, account, artifacts, start):
    """It takes as much as the one that answers, and the next promotion may be weeks away."""
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS)
    before = weakref.ref(executor.served.models.of_texts().engine)
    registry.promote(account, ALIAS, artifacts[1])
    wait_for(executor, artifacts[1])
    deadline = time.monotonic() + 10
    while before() is not None:
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.05)


def test_a_request_that_is_longer_than_a_promotion_is_answered(registry, account, artifacts, start, monkeypatch):
    registry.promote(account, ALIAS, artifacts[0])
    executor = start(ALIAS)
    engine = executor.served.models.of_texts().engine
    at_work, embed_parts = threading.Event(), engine.embed_parts

    def embed_slowly(features, batch_size):
        at_work.set()
        time.sleep(3)
        return embed_parts(features, batch_size)

    monkeypatch.setattr(engine, 'embed_parts', embed_slowly)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(who_answers, executor)
        assert at_work.wait(10)
        registry.promote(account, ALIAS, artifacts[1])
        wait_for(executor, artifacts[1])
        registry.roll_back(account, ALIAS)
        wait_for(executor, artifacts[0])
        assert long.result(30) == artifacts[0]
