"""TLS of the gateway: a certificate and its key, named by two environment variables."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

CERTIFICATE, KEY = 'FINETUNER_TLS_CERT', 'FINETUNER_TLS_KEY'


@dataclass(frozen=True)
class Certificate:
    """PEM files: the certificate with those of its issuers below it, and its key without a password."""

    path: Path
    key: Path


def read_certificate() -> Certificate | None:
    """The certificate that the environment names; None where it names none.

    :raises ValueError: it names half of it, or what is no certificate and its key.
    """
    path, key = os.environ.get(CERTIFICATE), os.environ.get(KEY)
    if not path and not key:
        return None
    if not path or not key:
        given, missing = (CERTIFICATE, KEY) if path else (KEY, CERTIFICATE)
        raise ValueError(f'{given} is set and {missing} is not: TLS needs both, a certificate and its key')
    found = Certificate(Path(path).expanduser().absolute(), Path(key).expanduser().absolute())
    for variable, file in ((CERTIFICATE, found.path), (KEY, found.key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise ValueError(f'{variable} names {file}, which cannot be read: {error.strerror}') from error
    try:
        # an empty password, so that nobody is asked for one
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found.path, found.key, password='')
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, 'reason', None) or str(error)
        raise ValueError(
            f'{CERTIFICATE} ({found.path}) and {KEY} ({found.key}) are no certificate and its key, as PEM without a '
            f'password: {reason}'
        ) from error
    return found
