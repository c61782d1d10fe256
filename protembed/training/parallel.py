"""Several processes as one run: joining, adding up, and dividing a model among them from outside.

The encoder knows nothing of this file.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from protembed.errors import UsageError, WorkerLostError
from protembed.models.encoder import Block
from protembed.training.launch import Launch
from protembed.training.pretrain.config import ParallelSection

Precision = Literal["float32", "bfloat16"]

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: rank 0 may be preparing a corpus meanwhile."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, as one of them sees them."""

    launch: Launch
    device: torch.device

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def size(self) -> int:
        return self.launch.size

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks for all."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Add up numbers over all processes, in double precision; on the host, so that no GPU is waited for."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        with self.watch():
            dist.all_reduce(numbers)
        return [float(number) for number in numbers.tolist()]

    def agrees(self, number: float) -> bool:
        """Tell whether all processes have the same number; all get the same answer."""
        total, squares = self.sum(number, number**2)
        return self.size * squares == total**2

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            with self.watch():
                dist.barrier()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raise WorkerLostError when the block fails because another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_lost_connection(error):
                raise
            raise WorkerLostError(
                f"process {self.rank} of {self.size} lost another process of the run",
                hint="It was killed, or its machine failed. Start again: the run goes on from its newest checkpoint.",
            ) from error

    def speaks(self, error: Exception) -> bool:
        """Tell whether this process reports an error: the first to make it, or to miss another process."""
        if self.size == 1:
            return True
        lost = isinstance(error, WorkerLostError)
        try:
            return dist.distributed_c10d._get_default_store().add("lost" if lost else str(error), 1) == 1
        except RuntimeError:
            # The store is gone, and with it rank 0, which kept it: with the same error, or without a word.
            return lost and self.rank == 1


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo has no exception of its own; NCCL's end in DistError.
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "onnection" in str(error)


@contextmanager
def join(launch: Launch, device: str) -> Iterator[World]:
    """Become one process of a run: pick its device, meet the others, and part at the end.

    Raises UsageError when the device is not there, WorkerLostError when the others do not come.
    """
    world = World(launch=launch, device=_pick_device(launch, device))
    if launch.size == 1:
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # what saves checkpoints says so each time
        yield world
        return
    place = f"{launch.address}:{launch.port}"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo",
            init_method=f"tcp://{place}",
            rank=launch.rank,
            world_size=launch.size,
            timeout=PATIENCE,
            device_id=world.device if world.device.type == "cuda" else None,
        )
    except RuntimeError as error:
        raise WorkerLostError(
            f"process {launch.rank} of {launch.size} did not meet the others at {place} ({str(error).splitlines()[0]})",
            hint="Did all start, and is the port free?",
        ) from error
    yield world
    dist.destroy_process_group()


def _pick_device(launch: Launch, wanted: str) -> torch.device:
    """Return the device of a process and make it the current one."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
    except RuntimeError as error:
        raise UsageError(
            f"device {wanted}: there is no such kind", hint="--set train.device=auto, cpu or cuda"
        ) from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UsageError(f"device {wanted}: training runs on cpu or cuda", hint="--set train.device=cpu")
    if not torch.cuda.is_available():
        raise UsageError(f"device {wanted}: no GPU is usable here", hint="--set train.device=cpu")
    if device.index is None:
        device = torch.device("cuda", launch.local_rank)
    elif launch.local_size > 1:
        raise UsageError(
            f"device {wanted} is one GPU for {launch.local_size} processes", hint="--set train.device=cuda"
        )
    if device.index >= torch.cuda.device_count():
        raise UsageError(
            f"device {device}: the machine shows {torch.cuda.device_count()} GPUs to this process",
            hint="One process a GPU, and each must see all of its machine (srun without --gpus-per-task).",
        )
    torch.cuda.set_device(device)
    return device


def parallelise(
    module: nn.Module,
    section: ParallelSection,
    world: World,
    weights: Mapping[str, Tensor],
    *,
    precision: Precision = "float32",
) -> nn.Module:
    """Give a module without memory (meta device) its weights on this process's device, divided as told.

    `weights` are those of the main process; the others' are not looked at. Returns what is to be called; the module
    itself stays what state is read from and optimised.
    """
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    if section.compile and world.device.type != "cuda":
        raise UsageError("[parallel] compile needs a GPU", hint="--set parallel.compile=false")
    for block in blocks:
        fit_block(block, section)
    if section.strategy == "fsdp":
        _shard(module, blocks, world, precision)
    module.to_empty(device=world.device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=world.size > 1)
    with world.watch():
        set_model_state_dict(module, dict(weights), options=options)
        if section.strategy == "fsdp" or world.size == 1:
            return module
        ids = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def fit_block(block: Block, section: ParallelSection, *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile a block, recompute its activations in the backward pass, or both.

    Checkpointing is put around the compiled code: inside of it, it cannot be captured as one graph. Only `forward` is
    compiled, so that hooks (FSDP's) stay outside.
    """
    forward: Callable[..., Tensor] = block.forward
    if section.compile:
        forward = torch.compile(forward, fullgraph=True, backend=backend)
    if section.activation_checkpointing:
        forward = functools.partial(checkpoint, forward, use_reentrant=False)
    if forward is not block.forward:
        block.forward = forward  # type: ignore[method-assign]


def mixed_precision(device: str, precision: Precision) -> MixedPrecisionPolicy:
    """Return what FSDP gathers weights in: bfloat16 where a GPU computes in it, otherwise float32 as they are kept.

    Gradients are added up in float32 always. On a CPU autocast converts what is gathered.
    """
    narrow = device == "cuda" and precision == "bfloat16"
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16 if narrow else None, reduce_dtype=torch.float32)


def _shard(module: nn.Module, blocks: Sequence[nn.Module], world: World, precision: Precision) -> None:
    """Divide every block, then the rest (fully sharded data parallel, arXiv 2304.11277)."""
    if world.size == 1:
        raise UsageError("[parallel] strategy fsdp needs several processes", hint="torchrun --nproc-per-node 8 ...")
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = mixed_precision(world.device.type, precision)
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)


def without_sync(module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Leave the exchange of gradients to a later backward, when one follows in the same step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not wanted)
        return nullcontext()
    return module.no_sync() if wanted and isinstance(module, DistributedDataParallel) else nullcontext()


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Gather all weights on the CPU of the main process; the others get an empty dictionary."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(module, options=options)
    return weights


def clip(module: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down to a total norm; return the norm they had, over all processes, on their device."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
    full: Tensor = norm.full_tensor() if isinstance(norm, dist.tensor.DTensor) else norm
    return full
