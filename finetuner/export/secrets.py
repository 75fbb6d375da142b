"""The secrets of a deployment: which must be made, and making them where that is asked for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from finetuner.export.parts import Deployment

DATABASE_URL = 'postgresql+psycopg://finetuner:{password}@{host}:5432/finetuner'
OF_POSTGRES = {'postgres-password', 'database-url'}
MEANING = {
    'token': 'the first token of the account "local", 32 characters or more',
    'postgres-password': 'the password of PostgreSQL',
    'database-url': 'postgresql+psycopg://USER:PASSWORD@HOST:5432/DATABASE',
    's3-credentials': 'a credentials file of AWS: [default], aws_access_key_id = ..., aws_secret_access_key = ...',
    'tls.crt': 'the certificate of the gateway, PEM, with its chain',
    'tls.key': 'the private key of the certificate, PEM',
}


def asked_for(deployment: Deployment, postgres_host: str) -> dict[str, str]:
    """The keys of the secrets that somebody has to bring, and what each is."""
    meaning = dict(MEANING)
    if deployment.options.own_postgres:
        meaning['database-url'] = DATABASE_URL.format(password='PASSWORD', host=postgres_host) + ', with that password'
    keys = [key for key in deployment.secrets if not (key == 'database-url' and deployment.options.database_url_secret)]
    return {key: meaning[key] for key in keys}


def complete(kept: Mapping[str, str], made: Mapping[str, str]) -> dict[str, str]:
    """Secrets that are there, and new ones for what is not. A password that is there has its URL, and its database."""
    if kept.keys() & OF_POSTGRES:
        made = {key: value for key, value in made.items() if key not in OF_POSTGRES}
    return {**made, **kept}


def generate(deployment: Deployment, postgres_host: str) -> dict[str, str]:
    """New values for the secrets that are only between the parts; those of others, such as S3's, cannot be made up."""
    made = {'token': secrets.token_urlsafe(32)}
    if deployment.options.own_postgres:
        password = secrets.token_urlsafe(32)
        made['postgres-password'] = password
        made['database-url'] = DATABASE_URL.format(password=password, host=postgres_host)
    return {key: value for key, value in made.items() if key in deployment.secrets}
