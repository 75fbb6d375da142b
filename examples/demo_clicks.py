"""Learning from clicks, end to end: `make demo-clicks` runs it.

A shop that there is not has users who click by what they want, which no text says; by where a result stands; and by
chance. Their sessions go in through REST, a task is posted, and the model that comes out is served. It is measured by
the hidden wants, on queries that nobody has searched for. Two more iterations follow on new clicks, and last a control:
clicks at random, from which nothing may be promoted. `--sessions` and `--iterations` make it shorter or longer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import requests
import yaml
from rich.console import Console
from rich.table import Table

from examples.clicks.shop import SIMILAR, Query, Shop
from examples.clicks.users import Behaviour, visits
from examples.demo import free_port
from finetuner.inference import load_engine
from training.clicks.ranking import ndcg, reciprocal_rank
from training.clicks.significance import Comparison, Interval, compare

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / '.demo-clicks'
MODEL = 'all-minilm-l6-v2'
METHOD: dict[str, Any] = {
    'name': 'shop',
    'model': MODEL,
    'items': {'loader': 'inline', 'fields': ['text']},
    # more than the default: a thousand sessions are few, and the verdict needs many of them
    'clicks': {'test_share': 0.4},
    'loss': 'MultipleNegativeRankingLoss',
    'fit': {'epochs': 6, 'batch_size': 64, 'freeze': 3, 'device': 'cpu'},
    # one training in each iteration, for the time that it takes: the middle of the space. More search it
    'search': {'evaluations': 1, 'space': {'learning_rate': {'low': 1e-4, 'high': 6e-4, 'log': True}}},
}
ALIAS = 'shop@production'
SESSIONS, ITERATIONS = 1000, 3
CATALOGUE_AT_ONCE = 256
console = Console(width=min(Console().width, 120) if sys.stdout.isatty() else 110, highlight=False)

Embed = Callable[[Sequence[str]], np.ndarray]


class Service:
    """`finetuner serve` with the method of the shop, and calls of its REST API."""

    def __init__(self, port: int, http_port: int):
        self.url = f'http://127.0.0.1:{http_port}'
        self._ports = str(port), str(http_port)
        self.session = requests.Session()

    @contextmanager
    def running(self) -> Iterator[Service]:
        shutil.rmtree(STATE, ignore_errors=True)
        (STATE / 'methods').mkdir(parents=True)
        (STATE / 'methods' / 'shop.yml').write_text(yaml.safe_dump(METHOD))
        own = {
            'FINETUNER_HOME': str(STATE / 'home'),
            'FINETUNER_CONFIG_DIR': str(STATE / 'config'),
            'FINETUNER_METHODS': str(STATE / 'methods'),
            'FINETUNER_ARTIFACT': ALIAS,
        }
        port, http_port = self._ports
        command = [Path(sys.executable).with_name('finetuner'), 'serve', '--port', port, '--http-port', http_port]
        with (STATE / 'service.log').open('w') as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=STATE, env={**os.environ, **own}
            )
        try:
            self._wait_for(process)
            yield self
        finally:
            process.terminate()
            process.wait(timeout=60)

    def _wait_for(self, process: subprocess.Popen[bytes], seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f'The service did not start; {STATE}/service.log says why')
            try:
                if self.session.get(f'{self.url}/dry_run', timeout=5).ok:
                    break
            except requests.RequestException:
                pass
            time.sleep(0.5)
        token = json.loads((STATE / 'config' / 'credentials.json').read_text())['token']
        self.session.headers['Authorization'] = f'Bearer {token}'

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.session.request(method, f'{self.url}/api/v1{path}', json=body, timeout=120)
        if not answer.ok:
            raise SystemExit(f'{method} {path}: {answer.json()["detail"]}')
        return answer.json()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """What is served makes of texts, float32 [N, D]."""
        found = []
        for start in range(0, len(texts), CATALOGUE_AT_ONCE):
            body = {'data': [{'text': text} for text in texts[start : start + CATALOGUE_AT_ONCE]]}
            answer = self.session.post(f'{self.url}/encode', json=body, timeout=120)
            answer.raise_for_status()
            found += [document['embedding'] for document in answer.json()['data']]
        return np.array(found, np.float32)


def scorer(shop: Shop, embed: Embed) -> Callable[[Query], np.ndarray]:
    """A search by cosines over the whole catalogue."""
    catalogue = embed([product.title for product in shop.products])
    texts = [query.text for query in shop.queries]
    scores = dict(zip(texts, embed(texts) @ catalogue.T, strict=True))
    return lambda query: scores[query.text]


def measure(shop: Shop, search: Callable[[Query], np.ndarray], queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """nDCG@10 and reciprocal rank of every query, by what is wanted and not by what was clicked."""
    wanted = [np.where(shop.relevance(query) >= SIMILAR, shop.relevance(query), 0.0) for query in queries]
    return {
        'nDCG@10': np.array([ndcg(search(query), gains) for query, gains in zip(queries, wanted, strict=True)]),
        'MRR': np.array([reciprocal_rank(search(query), gains) for query, gains in zip(queries, wanted, strict=True)]),
    }


def post_visits(service: Service, shop: Shop, count: int, search: Callable[[Query], np.ndarray], **options: Any) -> int:
    """Send what users do in so many sessions; the number of their clicks."""
    clicks = 0
    for visit in visits(shop, count, search, **options):
        service.call('POST', '/clickstream/session', visit.session)
        if visit.events:
            events = {'session_id': visit.session['session_id'], 'events': visit.events}
            service.call('POST', '/clickstream/session/events', events)
        if visit.is_irrelevant:
            body = {'session_id': visit.session['session_id']}
            service.call('POST', '/clickstream/session/irrelevant', body)
        clicks += len(visit.events)
    return clicks


def carry_out(service: Service) -> dict[str, Any]:
    """Post a task and wait for its end."""
    task = service.call('POST', '/fine-tuning/task', {'fine_tuning_method': METHOD['name']})
    while task['status'] in ('pending', 'processing'):
        time.sleep(1)
        task = service.call('GET', f'/fine-tuning/task/{task["id"]}')
    if task['status'] != 'done':
        raise SystemExit(f'The task ended as {task["status"]}: {task.get("error")}')
    return dict(task)


def follow(service: Service, artifact_url: str, seconds: float = 60) -> None:
    """Wait until what was promoted is what is served."""
    wanted, deadline = artifact_url.rpartition('/')[2], time.monotonic() + seconds
    while time.monotonic() < deadline:
        body = {'data': [{'text': 'x'}], 'parameters': {'return_artifact': True}}
        answer = service.session.post(f'{service.url}/encode', json=body, timeout=60)
        if answer.ok and answer.json()['data'][0]['tags'].get('finetuner_artifact') == wanted:
            return
        time.sleep(0.5)
    raise SystemExit(f'The encoder did not follow {ALIAS} within {seconds:g} seconds')


def show(title: str, found: dict[str, Comparison]) -> None:
    table = Table('fresh queries, by hidden wants', title=title)
    for column in ('before', 'after', 'difference', 'p'):
        table.add_column(column, justify='right')
    for name, comparison in found.items():
        cells = [_interval(part) for part in (comparison.before, comparison.after, comparison.difference)]
        table.add_row(name, *cells, f'{comparison.p_value:.4f}')
    console.print(table)


def _interval(found: Interval) -> str:
    return f'{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]'


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m examples.demo_clicks', description='A shop learns from clicks.')
    parser.add_argument(
        '--sessions', type=whole_number, default=SESSIONS, help='of each iteration; default %(default)s'
    )
    parser.add_argument('--iterations', type=whole_number, default=ITERATIONS, help='default %(default)s')
    return parser.parse_args()


def whole_number(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f'{number} is not above 0')
    return number


def main() -> None:
    options = read_options()
    begun = time.monotonic()
    shop = Shop()
    order = np.random.default_rng(0).permutation(len(shop.queries))
    fresh = [shop.queries[number] for number in order[: len(order) // 4]]
    searched = [shop.queries[number] for number in order[len(order) // 4 :]]
    console.print(
        f'{len(shop.products)} products, {len(searched)} queries that users search for, and {len(fresh)} fresh ones '
        'that nobody does'
    )
    search = scorer(shop, load_engine(MODEL).encode_texts)
    original = measure(shop, search, fresh)
    first: dict[str, Comparison] = {}
    promoted: list[bool] = []
    with Service(free_port(51000), free_port(51001)).running() as service:
        for number in range(1, options.iterations + 1):
            clicks = post_visits(service, shop, options.sessions, search, queries=searched, seed=number)
            console.print(f'Iteration {number}: {options.sessions} sessions with {clicks} clicks; one POST …/task')
            task = carry_out(service)
            promoted.append(task['promoted'])
            console.print(f'  {task["details"]}', soft_wrap=True)
            if task['promoted']:
                follow(service, task['best_model_url'])
                search = scorer(shop, service.encode)
            now = measure(shop, search, fresh)
            found = {name: compare(original[name], now[name]) for name in original}
            first = first or found
            show(f'Iteration {number}, against the model as it came', found)
        behaviour = Behaviour(at_random=True)
        post_visits(service, shop, options.sessions, search, queries=searched, seed=99, behaviour=behaviour)
        console.print(f'Control: {options.sessions} sessions whose clicks are at random')
        control = carry_out(service)
        console.print(f'  {control["details"]}', soft_wrap=True)
    console.print(f'{time.monotonic() - begun:.0f} seconds in all')
    if not promoted[0]:
        raise SystemExit('The first iteration promoted nothing')
    if not first['nDCG@10'].is_better:
        raise SystemExit('The first iteration did not make the model better beyond noise')
    if control['promoted']:
        raise SystemExit('A model was promoted that learned from clicks at random')


if __name__ == '__main__':
    main()
