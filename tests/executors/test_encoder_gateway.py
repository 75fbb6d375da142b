"""What is no gateway with an encoder is told before anything is loaded."""

from types import SimpleNamespace

import pytest

from executors.encoder_gateway import EncoderGateway, EncodingRequestHandler


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        ({'encoder': 'a.zip'}, "encoder under uses_with is 'a.zip', and not what FinetunerExecutor takes, by name"),
        ({'artifact': 'a.zip'}, 'artifact stands under uses_with of the gateway: put it under encoder there'),
    ],
)
def test_options(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        EncoderGateway(**given)


def test_a_flow_with_executors():
    args = SimpleNamespace(deployments_addresses='{"trainer": ["127.0.0.1:1"]}')
    with pytest.raises(ValueError, match='take trainer out of the Flow, or FinetunerGateway in its place'):
        EncodingRequestHandler(args, None, encoder={})
