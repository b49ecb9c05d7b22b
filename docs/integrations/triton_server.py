"""Top quarks from a Triton server, which may be away for a while: the reader with a server behind it.

    topreco export dilepton -o dilepton.onnx --triton models/  # writes model_reader.py too
    tritonserver --model-repository=models/

Put `model_reader.py` beside this file, and install `tritonclient[grpc]`. `dilepton.onnx` is needed for what
it says about the inputs; the server computes.

    model = ServedModel("dilepton.onnx", url="localhost:8001", btag_threshold=0.2783)
    tops = model(lepton_pt=..., met_phi=...)    # as the reader
"""

import functools
import os
import random
import time

import tritonclient.grpc
from model_reader import TopModel
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ATTEMPTS = 8
FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0
TIMEOUT = 120.0
"""Seconds before a request counts as lost."""

TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED")
"""What may go away by waiting; a wrong input does not."""


class ServedModel(TopModel):
    """A `TopModel` that a server evaluates; it pickles, and each process has its own connection."""

    def __init__(self, path, *, url, model="dilepton", version="1", ssl=False, **settings):
        self.server = url, model, version, ssl
        super().__init__(path, **settings)

    def _open(self):
        _, metadata = super()._open()
        return Session(*self.server), metadata


@functools.cache
def connection(url, ssl, process):
    """A client; connections do not survive a fork."""
    return tritonclient.grpc.InferenceServerClient(url=url, ssl=ssl)


class Session:
    """What the reader expects of onnxruntime's session."""

    def __init__(self, url, model, version, ssl):
        self.url, self.model, self.version, self.ssl = url, model, version, ssl

    def run(self, outputs, batch):
        """Outputs, by name, of a batch of inputs."""
        inputs = []
        for name, values in batch.items():
            given = tritonclient.grpc.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
            given.set_data_from_numpy(values)
            inputs.append(given)
        requested = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
        answer = self.answer(inputs, requested)
        return [answer.as_numpy(name) for name in outputs]

    def answer(self, inputs, requested):
        """The server's answer; if it is not there, the request is repeated after waiting longer each time.

        The time is random below a limit that doubles, so that a thousand jobs do not come back at once:
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        attempt = 0
        while True:
            client = connection(self.url, self.ssl, os.getpid())
            try:
                return client.infer(
                    self.model,
                    inputs,
                    model_version=self.version,
                    outputs=requested,
                    client_timeout=TIMEOUT,
                )
            except InferenceServerException as error:
                status = str(error.status())
                if attempt == ATTEMPTS - 1 or not any(name in status for name in TRANSIENT):
                    raise
            time.sleep(random.uniform(0, min(FIRST_DELAY * 2**attempt, LONGEST_DELAY)))  # noqa: S311
            attempt += 1
