"""Large contrastive batches in bounded memory: a gradient for the embeddings first, for the encoder afterwards.

Accumulating the gradients of small batches does not enlarge the set that an anchor is compared with; this does, and its
gradients are those of the plain step (specification of related methods, section 4.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from mca_perception.errors import ContrastiveError

Chunk = TypeVar("Chunk")


def cached_backward(
    encode: Callable[[Chunk], Sequence[Tensor]],
    chunks: Sequence[Chunk],
    loss: Callable[..., Tensor],
    *,
    no_sync: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Loss of a whole batch and its gradients, with the graph of one chunk in memory at a time.

    Every chunk is encoded without a graph; the loss on all embeddings gives their gradients (and those of parameters in
    the loss); every chunk is encoded again with the same random numbers, and its embeddings' gradients flow on. It
    costs one more forward pass. Gradients are added to ``.grad``, as ``backward`` does. Layers with running statistics
    see every chunk twice, and batch normalisation works within chunks.

    In a distributed run wrap the encoder, call ``no_sync=model.no_sync`` so that processes exchange gradients once, and
    use as many chunks in every process. With a gradient scaler let ``loss`` return the scaled loss.

    Args:
        encode: from a chunk to embeddings ``[m, ...]``, one or several tensors, m being the chunk's number of items.
        chunks: parts of the batch, in order.
        loss: from the embeddings of all chunks, one argument per tensor of ``encode``, to a scalar.
        no_sync: context around all but the last chunk's backward pass.

    Returns:
        The detached loss.

    Raises:
        ContrastiveError: there are no chunks, or the loss does not depend on the embeddings.
    """
    if not chunks:
        raise ContrastiveError("the batch has no chunks; pass at least one")
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            parts.append(tuple(encode(chunk)))
    embeddings = [torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)]
    value = loss(*embeddings)
    if not value.requires_grad:
        raise ContrastiveError(
            "the loss has no gradient for the embeddings; compute it from all of them, with gradient"
        )
    torch.autograd.backward(value)
    sizes = [len(part[0]) for part in parts]
    del parts
    gradients = [
        torch.split(torch.zeros_like(rows) if rows.grad is None else rows.grad, sizes) for rows in embeddings
    ]
    with _random_state_kept():
        for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            _restore(state)
            with no_sync() if number < len(chunks) - 1 else nullcontext():
                pairs = zip(encode(chunk), (column[number] for column in gradients), strict=True)
                trained = [(rows, gradient) for rows, gradient in pairs if rows.requires_grad]
                torch.autograd.backward([rows for rows, _ in trained], [gradient for _, gradient in trained])
    return value.detach()


RandomState = tuple[Tensor, Tensor | None]


def _random_state() -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _restore(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = _random_state()
    try:
        yield
    finally:
        _restore(state)
