"""Several processes that train one model together, and the one process that trains alone.

How the work is divided. Everything that is small is the same in every process: the order of the
data, random generators, completions with their rewards, advantages, metrics, the KL weight, what
the monitor says. Everything that is large is dealt out: prompts to complete, completions to score,
forward and backward passes. After completions and rewards have been made they are gathered, so that
each process sees the step's whole batch; what a token weighs in the loss, the spread of a group and
the number of tokens are those of the whole batch, and gradients are *added*, never averaged. The
obvious version, a mean over processes of each process's mean, weighs a token by the luck of who got
it.

A trainer asks its `World` and does not ask how many processes there are: `World` itself is the
answer of one that is alone, and costs nothing.

Processes are started by `accelerate launch` or `torchrun`, and joined by accelerate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from rewardsvc.policy_client.train.sharding import is_shard

T = TypeVar("T")

BUCKET_ELEMENTS = 8 * 1024 * 1024
"""Numbers that travel in one sum of gradients: 32 MiB, where waiting for each other has become
small beside sending."""

SEED_STRIDE = 1_000_003
"""A prime: seeds of processes and of runs do not meet."""


class PeerFailedError(RuntimeError):
    """Another process of the run has failed, or does not answer; says which and why if known."""


class World:
    """A process that trains alone.

    Attributes:
        rank: This process, from 0. The first one writes logs and checkpoints.
        size: How many there are.
    """

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, num: int) -> range:
        """This process's part of `num` things in a row; all parts in order are the whole."""
        return range(self.rank * num // self.size, (self.rank + 1) * num // self.size)

    def deal(self, parts: Sequence[T], cost: Callable[[T], float]) -> list[list[T]]:
        """What each process gets of `parts`: the dearest first, to who has the least so far.

        The same in every process.
        """
        if self.size == 1:
            return [list(parts)]
        hands: list[list[T]] = [[] for _ in range(self.size)]
        spent = [0.0] * self.size
        for part in sorted(parts, key=cost, reverse=True):
            poorest = spent.index(min(spent))
            hands[poorest].append(part)
            spent[poorest] += cost(part)
        return hands

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, by rank; JSON values."""
        return [value]

    def gather_tensors(
        self, tensors: Mapping[str, Tensor], device: torch.device
    ) -> list[dict[str, Tensor]]:
        """Every process's tensors, by rank, of any names and shapes, on this process's `device`."""
        return [dict(tensors)]

    def from_main(self, value: T) -> T:
        """The first process's `value`; JSON values."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return flag

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, of a tensor with one shape everywhere."""
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their sums over all processes.

        A parameter without a gradient here has one afterwards if it has one anywhere.
        """

    def same_weights(self, module: nn.Module) -> None:
        """Gives a module everywhere the weights that it has in the first process."""

    def vary_seed(self, seed: int) -> None:
        """Seeds torch's global generator differently in each process, for dropout."""

    def settled(self, work: Callable[[], T], *errors: type[Exception]) -> T:
        """The result of `work`, once it has succeeded in every process.

        Whatever calls a service or a function of the user can fail in one process alone, and the
        others must not go on without it.

        Args:
            work: Must not talk to other processes.
            *errors: Kinds that are raised as what they are in all processes; others become a
                `PeerFailedError` in processes that have not failed themselves.
        """
        return work()

    def barrier(self) -> None:
        """Waits for all processes."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tells the other processes why this one fails, if it fails inside."""
        yield


class ProcessWorld(World):
    """One of several processes, over torch's default process group.

    Attributes:
        num_runs: Runs that this process has begun: what one says of its failure is of that run.
    """

    num_runs = 0

    def __init__(self) -> None:
        """Takes the process group that there is."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        cuda = "nccl" in dist.get_backend()
        self._device = torch.device("cuda", torch.cuda.current_device()) if cuda else None

    def gather(self, value: Any) -> list[Any]:
        """See `World`."""
        return [json.loads(text) for text in self._gather_bytes(json.dumps(value).encode())]

    def gather_tensors(
        self, tensors: Mapping[str, Tensor], device: torch.device
    ) -> list[dict[str, Tensor]]:
        """See `World`."""
        data = tensors_to_bytes({name: one.cpu().contiguous() for name, one in tensors.items()})
        return [
            {name: one.to(device) for name, one in tensors_from_bytes(part).items()}
            for part in self._gather_bytes(data)
        ]

    def from_main(self, value: T) -> T:
        """See `World`."""
        main: T = self.gather(value if self.is_main else None)[0]
        return main

    def any(self, flag: bool) -> bool:
        """See `World`."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def sum(self, tensor: Tensor) -> Tensor:
        """See `World`."""
        total = tensor.clone() if self._device is None else tensor.to(self._device, copy=True)
        with self._answers():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `World`. Sums are taken in float32 at least, whatever the gradients' dtype.

        Sharded gradients are left alone: their sums were taken in the backward pass.
        """
        learned = [one for one in parameters if one.requires_grad and not is_shard(one)]
        if not learned:
            return
        has = self.sum(torch.tensor([float(one.grad is not None) for one in learned]))
        found = [one for one, anywhere in zip(learned, has.tolist(), strict=True) if anywhere]
        for bucket in _buckets(found):
            grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in bucket]
            dtype = torch.promote_types(grads[0].dtype, torch.float32)
            total = self.sum(torch.cat([grad.detach().flatten().to(dtype) for grad in grads]))
            parts = torch.split(total, [grad.numel() for grad in grads])
            for one, grad, part in zip(bucket, grads, parts, strict=True):
                one.grad = grad.copy_(part.view_as(grad))

    @torch.no_grad()
    def same_weights(self, module: nn.Module) -> None:
        """See `World`."""
        for tensor in (*module.parameters(), *module.buffers()):
            sent = tensor.detach()
            sent = sent.clone() if self._device is None else sent.to(self._device)
            with self._answers():
                dist.broadcast(sent, src=0)
            tensor.copy_(sent)

    def vary_seed(self, seed: int) -> None:
        """See `World`."""
        torch.manual_seed(seed + self.rank * SEED_STRIDE)

    def settled(self, work: Callable[[], T], *errors: type[Exception]) -> T:
        """See `World`."""
        failed: Exception | None = None
        try:
            result = work()
        except PeerFailedError:
            raise
        except Exception as error:
            failed = error
        told = None if failed is None else [type(failed).__name__, str(failed)]
        outcomes = self.gather(told)
        if failed is not None:
            raise failed
        for rank, outcome in enumerate(outcomes):
            if outcome is not None:
                name, text = outcome
                known = {kind.__name__: kind for kind in errors}
                kind = known.get(name, PeerFailedError)
                raise kind(
                    f"process {rank}: {text}"
                    if name in known
                    else f"process {rank} failed: {name}: {text}"
                )
        return result

    def barrier(self) -> None:
        """See `World`."""
        self.sum(torch.zeros(1))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See `World`."""
        ProcessWorld.num_runs += 1
        try:
            yield
        except PeerFailedError:
            raise
        except Exception as error:
            # Torch's own collectives, such as those of divided weights, do not say why.
            plain = type(error) is RuntimeError or isinstance(error, dist.DistError)
            reason = self._told() if plain else None
            if reason is not None:
                raise PeerFailedError(reason) from error
            self._tell(f"process {self.rank} failed: {type(error).__name__}: {error}")
            raise

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        """Every process's bytes. Sent padded to the longest: collectives want equal shapes."""
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(data)
        sizes = self.sum(lengths).tolist()
        sent = torch.zeros(max(sizes), dtype=torch.uint8)
        sent[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        sent = sent if self._device is None else sent.to(self._device)
        received = [torch.empty_like(sent) for _ in sizes]
        with self._answers():
            dist.all_gather(received, sent)
        return [
            one[:size].cpu().numpy().tobytes() for one, size in zip(received, sizes, strict=True)
        ]

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Turns the failure of a collective into the reason that its culprit has left."""
        try:
            yield
        except RuntimeError as error:
            reason = self._told() or (
                "another process has ended or does not answer within collective_timeout_s; see its "
                "own output"
            )
            raise PeerFailedError(reason) from error

    @property
    def _failure(self) -> str:
        return f"rewardsvc/failure/{self.num_runs}"

    def _tell(self, reason: str) -> None:
        try:
            store = dist.distributed_c10d._get_default_store()
            if not store.check([self._failure]):
                store.set(self._failure, reason)
        except RuntimeError:  # whoever holds the store has ended: there is nobody to tell
            return

    def _told(self) -> str | None:
        try:
            store = dist.distributed_c10d._get_default_store()
            told = store.check([self._failure])
            return store.get(self._failure).decode() if told else None
        except RuntimeError:
            return None


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype and device that together are of about `BUCKET_ELEMENTS`."""
    bucket: list[nn.Parameter] = []
    for one in parameters:
        if bucket and (
            (one.dtype, one.device) != (bucket[0].dtype, bucket[0].device)
            or sum(other.numel() for other in bucket) + one.numel() > BUCKET_ELEMENTS
        ):
            yield bucket
            bucket = []
        bucket.append(one)
    if bucket:
        yield bucket
