"""Weights, gradients and moments divided among processes: torch's FSDP2, `fully_shard`.

Each layer is a unit of its own, and what is outside of layers (embeddings, the last norm, the head)
is one more. In training a layer's weights come together for its forward and its backward pass, and
its gradient is summed on the way back to the parts. In sampling and in evaluation they come
together once for all tokens: layer by layer at every token, all processes would have to sample the
same number of tokens.

Every function here takes plain modules too, and does to them what is right: nothing.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277; the API is
https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rewardsvc.errors import ConfigError

if dist.is_available():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module) -> None:
    """Divides a module's parameters among all processes, in place; before optimizers are built.

    There must be a process group of several.

    Raises:
        ConfigError: If a unit's parameters are of several dtypes, or torch is too old.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ConfigError(
            f"fsdp: torch {torch.__version__} cannot add gradients without averaging them; upgrade "
            "torch, or set fsdp: false"
        )
    names = {
        name for one in module.modules() for name in getattr(one, "_no_split_modules", None) or ()
    }
    # Inner ones first: a unit has what no unit inside it has.
    units = [one for one in module.modules() if type(one).__name__ in names][::-1]
    for unit in (*units, module):
        dtypes = {one.dtype for one in unit.parameters()}
        if len(dtypes) > 1:
            raise ConfigError(
                f"fsdp: a layer has weights of several dtypes, {sorted(map(str, dtypes))}, such as "
                "float32 adapters on bfloat16 weights; set dtype: float32, or fsdp: false"
            )
    mesh = init_device_mesh(next(module.parameters()).device.type, (dist.get_world_size(),))
    for unit in (*units, module):
        sharded = fully_shard(unit, mesh=mesh)
        # Gradients are added, not averaged; gloo knows no other way of adding than the plain one.
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)
    # What to fetch ahead in the backward pass is said, since torch would go by the forward passes
    # before it, those without gradients included, of which each process has its own number.
    for unit, next_unit in zip([module, *units], [module, *units[1:], *units[-1:]], strict=True):
        unit.set_modules_to_backward_prefetch([next_unit])  # type: ignore[operator]
    # Who is the root would be decided by the first forward pass, which may be that of a part.
    fully_shard.state(module)._lazy_init()  # type: ignore[attr-defined]
    # Whether a whole weight learns is taken down once, when it first comes together: now, and not
    # while adapters are switched off.
    with gathered(module):
        pass


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has been called on it."""
    return dist.is_available() and isinstance(module, FSDPModule)


def has_shards(module: nn.Module) -> bool:
    """Whether some of its parameters are not whole now."""
    return any(is_shard(one) for one in module.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Whether this is the part that one process has of a tensor."""
    return dist.is_available() and isinstance(tensor, DTensor)


def begin_pass(module: nn.Module) -> None:
    """Call before a forward pass that may not go through the module's own `forward`.

    What is outside of layers comes together here, and goes apart in the backward pass.
    """
    if is_sharded(module):
        module.unshard()  # type: ignore[operator]


@contextmanager
def gathered(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, modules have all their weights; for passes without gradients, of any number.

    All processes must enter and leave together.
    """
    with ExitStack() as stack:
        for module in modules:
            if module is not None and is_sharded(module):
                stack.enter_context(_gathered(module))
        yield


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    units = [one for one in module.modules() if isinstance(one, FSDPModule)]
    if not all(map(has_shards, units)):  # somebody further out has gathered it
        yield
        return
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not module, recurse=False)
            unit.reshard()


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts; all processes must ask. A plain one is itself."""
    # Copied, since it comes as a part of a larger buffer, which safetensors refuse to save.
    return tensor.full_tensor().clone() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` with whole tensors. Tied weights are one tensor under several names."""
    if not is_sharded(module):
        return dict(module.state_dict())
    found: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in found:
            found[id(tensor)] = whole(tensor.detach())
        state[name] = found[id(tensor)]
    return state


@torch.no_grad()
def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fills a sharded module with what `whole_state` gave; of tied weights one name is enough.

    Raises:
        RuntimeError: If names or shapes are not those of this module.
    """
    mine = module.state_dict(keep_vars=True)
    if odd := sorted(set(state) - set(mine)):
        raise RuntimeError(f"{len(odd)} unknown names, such as {odd[0]!r}")
    filled: set[int] = set()
    for name, tensor in state.items():
        if tensor.shape != mine[name].shape:
            raise RuntimeError(f"{name!r} is {tuple(tensor.shape)}, not {tuple(mine[name].shape)}")
        mine[name].copy_(part_like(tensor, mine[name]))
        filled.add(id(mine[name]))
    if missing := sorted(name for name, one in mine.items() if id(one) not in filled):
        raise RuntimeError(f"{len(missing)} names are missing, such as {missing[0]!r}")


def own_part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, as a plain one."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def as_own_part(local: Tensor, like: Tensor) -> Tensor:
    """The tensor of which this process has `local`, divided as `like` is; reverts `own_part`."""
    if not is_shard(like):
        return local
    assert isinstance(like, DTensor)
    return DTensor.from_local(
        local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as `like` is; itself if that is plain."""
    if not is_shard(like) or is_shard(tensor) or tensor.shape != like.shape:
        return tensor
    assert isinstance(like, DTensor)
    return distribute_tensor(
        tensor.to(device=like.device), like.device_mesh, like.placements, src_data_rank=None
    )
