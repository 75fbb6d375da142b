"""The dashboard for Grafana: what it asks for is what an encoder tells."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from executors.metrics import PREFIX, EncoderMetrics
from finetuner.inference.meter import ANSWERED, MISS, Batch

FILE = Path(__file__).parents[2] / 'docs' / 'grafana' / 'finetuner.json'
OF_PROMETHEUS = {'job', 'instance'}
"""Labels that it gives to all that it scrapes."""


@pytest.fixture(scope='module')
def dashboard():
    return json.loads(FILE.read_text())


@pytest.fixture(scope='module')
def panels(dashboard):
    return [panel for panel in dashboard['panels'] if panel['type'] != 'row']


@pytest.fixture(scope='module')
def queries(panels):
    return [target['expr'] for panel in panels for target in panel['targets']]


@pytest.fixture(scope='module')
def told():
    """The labels of all that an encoder tells at `/metrics`, by name."""
    metrics = EncoderMetrics()
    metrics.watch(lambda: (1, 0, 'artifact'))
    metrics.request(2, 0.5, ANSWERED)
    metrics.waited(0.1)
    metrics.batch(Batch(items=2, requests=1, used=10, computed=12, room=4096))
    metrics.looked_up(2, MISS)
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_every_metric_that_it_asks_for_is_told(queries, told):
    asked = set(re.findall(rf'{PREFIX}_\w+', FILE.read_text()))
    assert asked and asked <= set(told)
    for query in queries:
        bare = re.sub(r'\{[^{}]*\}|\[[^\[\]]*\]|by \([^()]*\)', '', query)
        others = {name for name in re.findall(r'[a-z]\w+', bare) if not name.startswith(PREFIX)}
        assert others <= {'sum', 'count', 'rate', 'histogram_quantile', 'or', 'vector'}


def test_every_metric_that_is_told_is_shown(queries, told):
    shown = {re.sub('_(bucket|sum|count)$', '', name) for name in re.findall(rf'{PREFIX}_\w+', ' '.join(queries))}
    assert shown == {re.sub('_(bucket|sum|count)$', '', name) for name in told if not name.endswith('_created')}


def test_labels_are_those_of_the_metrics(panels, told):
    for panel in panels:
        for target in panel['targets']:
            query = target['expr']
            found = re.findall(rf'({PREFIX}_\w+)\{{([^}}]*)\}}', query)
            assert len(found) == query.count(PREFIX)  # each is narrowed down to what is chosen
            for name, matchers in found:
                assert 'job=~"$job", instance=~"$instance"' in matchers
                assert set(re.findall(r'(\w+)[=!]', matchers)) <= told[name] | OF_PROMETHEUS
            groups = {label for labels in re.findall(r'by \(([^)]*)\)', query) for label in labels.split(', ')}
            assert groups <= set().union(*(told[name] for name, _ in found)) | OF_PROMETHEUS
            assert set(re.findall(r'\{\{(\w+)\}\}', target['legendFormat'])) <= groups


def test_counters_are_asked_for_as_rates(queries):
    for query in queries:
        for name in re.findall(rf'{PREFIX}_\w+(?:_total|_bucket|_sum|_count)\b', query):
            assert re.search(rf'rate\({name}\{{[^}}]*\}}\[\$__rate_interval\]\)', query)


def test_outcomes_are_counted_from_nought():
    """Prometheus sees no rise from nothing to one, only one from 0 to 1."""
    first = generate_latest(EncoderMetrics().registry).decode()
    for outcome in ('answered', 'failed', 'refused', 'given_up'):
        assert f'{PREFIX}_requests_total{{outcome="{outcome}"}} 0.0' in first


def test_grafana_can_read_it(dashboard, panels):
    assert dashboard['uid'] and dashboard['title'] and dashboard['schemaVersion'] >= 36
    assert 'id' not in dashboard and '__inputs' not in dashboard
    ids = [panel['id'] for panel in dashboard['panels']]
    assert len(set(ids)) == len(ids)
    variables = {variable['name'] for variable in dashboard['templating']['list']}
    used = set(re.findall(r'\$\{?([a-z]\w*)', FILE.read_text()))
    assert used == variables == {'datasource', 'job', 'instance'}
    for panel in panels:
        assert panel['title'] and panel['description'] and panel['targets']
        assert panel['datasource'] == {'type': 'prometheus', 'uid': '${datasource}'}
        letters = [target['refId'] for target in panel['targets']]
        assert letters == list('ABCDEFGH'[: len(letters)])
        for target in panel['targets']:
            for opening, closing in ('()', '[]', '{}'):
                assert target['expr'].count(opening) == target['expr'].count(closing)


def test_panels_lie_side_by_side(dashboard):
    places = [panel['gridPos'] for panel in dashboard['panels']]
    assert all(place['x'] + place['w'] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one['x'] + one['w'] <= other['x'] or other['x'] + other['w'] <= one['x']
        assert beside or one['y'] + one['h'] <= other['y'] or other['y'] + other['h'] <= one['y']
