"""Graphs on a Triton Inference Server, which several robots may share."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.manifest import GraphSpec
from mca_perception.deploy.sessions.base import Arrays, GraphSession, SessionOptions
from mca_perception.deploy.triton_repository import DATA_TYPES, model_name
from mca_perception.errors import BundleError

__all__ = ["TritonSession", "open_graph", "why_not"]


class TritonSession(GraphSession):
    """A model of a Triton server, over gRPC."""

    backend: ClassVar[str] = "triton"

    def __init__(self, url: str, model: str, spec: GraphSpec) -> None:
        """Connect.

        Args:
            url: host and port of the gRPC endpoint.
            model: name of the model there.
            spec: inputs and outputs that it must have.

        Raises:
            BundleError: the server does not answer, does not serve the model, or serves it with other tensors.
        """
        from tritonclient import grpc

        self._grpc = grpc
        self._url, self._model = url, model
        self._client = grpc.InferenceServerClient(url=url)
        try:
            ready = self._client.is_model_ready(model)
            served = self._client.get_model_metadata(model) if ready else None
        except grpc.InferenceServerException as error:
            raise BundleError(
                f"Triton server {url} does not answer ({error}); start it, or name another one"
            ) from error
        if served is None:
            raise BundleError(
                f"Triton server {url} does not serve {model}; write its repository with `mca export --target triton` "
                "and load it"
            )
        expected = {(t.name, DATA_TYPES[t.dtype][1]) for t in (*spec.inputs, *spec.outputs)}
        found = {(t.name, t.datatype) for t in (*served.inputs, *served.outputs)}
        if expected != found:
            raise BundleError(
                f"Triton server {url} serves another {model}: its tensors are {sorted(found)}, the bundle's "
                f"{sorted(expected)}; export its repository again"
            )
        self.inputs, self.outputs = tuple(spec.inputs), tuple(spec.outputs)
        self.device = f"Triton server {url}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the model; see :meth:`.GraphSession.run`.

        Raises:
            BundleError: the server refused or is gone.
        """
        try:
            answer = self._client.infer(self._model, self._tensors(inputs))
        except self._grpc.InferenceServerException as error:
            raise BundleError(f"Triton server {self._url} did not run {self._model}: {error}") from error
        return self._arrays(answer)

    def submit(self, inputs: Mapping[str, NDArray[Any]]) -> Future[Arrays]:
        """Send the request and return at once; several may be on their way."""
        future: Future[Arrays] = Future()

        def done(result: Any, error: Any) -> None:
            if error is not None:
                future.set_exception(BundleError(f"Triton server {self._url}: {error}"))
            else:
                future.set_result(self._arrays(result))

        self._client.async_infer(self._model, self._tensors(inputs), callback=done)
        return future

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._client.close()

    def _tensors(self, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        dtypes = {t.name: DATA_TYPES[t.dtype][1] for t in self.inputs}
        tensors = []
        for name, array in self._contiguous(inputs).items():
            tensor = self._grpc.InferInput(name, list(array.shape), dtypes[name])
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        return tensors

    def _arrays(self, answer: Any) -> Arrays:
        return {name: np.asarray(answer.as_numpy(name)) for name in self.output_names}


def why_not() -> str | None:
    """Why there is no client for Triton here; None when there is."""
    if find_spec("tritonclient") is None:
        return "the Triton client is not installed: pip install -c constraints.txt -e '.[triton]'"
    if find_spec("grpc") is None:
        return "gRPC is not installed: pip install -c constraints.txt -e '.[triton]'"
    return None


def open_graph(bundle: Bundle, graph: str, options: SessionOptions) -> TritonSession:
    """Open a graph of a bundle on the server of the options."""
    return TritonSession(options.url, model_name(bundle, graph), bundle.manifest.graphs[graph])
