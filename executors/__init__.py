"""The Jina microservices: ingest, train, encode, and the gateway in front of them. The only room that knows Jina."""

import os

# Jina reports every start to its makers unless this is set.
os.environ.setdefault('JINA_OPTOUT_TELEMETRY', '1')
