"""How a model lies on the processes of a training: whole in each (DDP), or cut up among them (FSDP).

The loop asks one of two classes with the same methods, `Replicated` and `Sharded`; which one, accelerate's configuration says.
What tensors are then is in `shards`.

FSDP is PyTorch's `fully_shard` (FSDP2), called here with the settings of accelerate's plugin, on CPUs, too, where accelerate itself
knows no FSDP: `accelerate launch` with `use_fsdp` sets ACCELERATE_USE_FSDP and FSDP_…, and these count. They say

- `fsdp_auto_wrap_policy`: what is put together, used and let go as one. Nothing: each repeated block of a model, and the rest;
  TRANSFORMER_BASED_WRAP: modules of the named classes, and the rest; SIZE_BASED_WRAP: repeated blocks of at least
  `fsdp_min_num_params` numbers; NO_WRAP: all at once.
- `fsdp_reshard_after_forward`: whether blocks are let go between forward and backward pass.

Shards are fp32, and so is what goes between processes; `--precision` decides the arithmetic, by autocast, as without FSDP. What
only says how others save or load (`fsdp_state_dict_type`, `fsdp_cpu_ram_efficient_loading`) plays no part: checkpoints are whole
tensors, and each process makes the model itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin, is_torch_version
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.training.optimizers import block_lists
from rcg.training.schedules import EMA
from rcg.training.shards import whole
from rcg.training.stage import Batch

Pass = Callable[[Batch], Batch]
"""A forward pass of an objective: a batch → its loss and other scalars."""
KNOWN_WAYS = {
    DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_NPU, DistributedType.MULTI_XPU,
    DistributedType.FSDP,
}  # fmt: skip
"""Of accelerate; DeepSpeed and Megatron cut models up in ways of their own."""
PLAIN = (
    "let accelerate's configuration use plain multi-GPU (DDP), and a smaller --micro-batch-size where memory is short"
)


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """What accelerate's configuration says about FSDP; None where it is not to be used.

    Raises:
        UserError: FSDP of version 1, settings that cannot be used, or libraries that are too old.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "training shards by FSDP2 only; set fsdp_version: 2 in the fsdp_config of accelerate's configuration "
            "(FSDP_VERSION=2)."
        )
    if not is_torch_version(">=", "2.7.0") or "fsdp_version" not in FullyShardedDataParallelPlugin.__dataclass_fields__:
        raise UserError("FSDP needs PyTorch 2.7 and accelerate 1.6 or newer; upgrade them, or use DDP.")
    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, KeyError, ImportError) as e:
        raise UserError(f"accelerate's FSDP settings cannot be used ({e}); correct its configuration.") from None
    for flag, value, instead in (
        ("fsdp_offload_params", type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy", "use more processes"),
        ("fsdp_activation_checkpointing", plugin.activation_checkpointing, "use a smaller --micro-batch-size"),
    ):
        if value:
            raise UserError(f"training does not use {flag}; set it to false, and {instead} where memory is short.")
    if plugin.ignored_modules is not None:
        raise UserError("training chooses itself what FSDP leaves whole; leave fsdp_ignored_modules out.")
    return plugin


def spread_of(
    accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None, bf16: bool, compile: bool
) -> Replicated | Sharded:
    """How models are to lie on the accelerator's processes; a single one holds them whole in any case.

    Raises:
        UserError: a way that training does not know.
    """
    way = accelerator.distributed_type
    if way not in KNOWN_WAYS or getattr(accelerator, "parallelism_config", None) is not None:
        name = way.value if way not in KNOWN_WAYS else "a parallelism_config"
        raise UserError(f"training does not split a model by {name}; {PLAIN}.")
    if plugin is None or accelerator.num_processes == 1:
        return Replicated(accelerator, bf16, compile)
    if compile:
        raise UserError("--compile does not go with FSDP; leave one of them out.")
    return Sharded(accelerator, plugin, bf16)


class Replicated:
    """Each process holds the whole model, and gradients are averaged (DDP); or there is one process only.

    Attributes:
        in_step: whether all processes must make as many forward passes.
    """

    in_step = False

    def __init__(self, accelerator: Accelerator, bf16: bool, compile: bool) -> None:
        self.accelerator, self.bf16, self.compile = accelerator, bf16, compile

    def place(self, objectives: Mapping[str, nn.Module], kept_whole: list[nn.Module]) -> None:
        """Bring the objectives to where they are trained; their parameters are the final ones then."""
        for objective in objectives.values():
            objective.to(self.accelerator.device)
            if self.bf16:  # faster convolutions; in fp32 the CPU's channels-last GroupNorm loses digits (1e-4)
                objective.to(memory_format=torch.channels_last)

    def prepared(self, objective: nn.Module) -> Pass:
        """What the loop calls in its place; weights are loaded by then."""
        return self.accelerator.prepare_model(torch.compile(objective) if self.compile else objective)

    def begin_step(self) -> None:
        """Before the first forward pass of a step."""

    def passing(self, prepared: Pass, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around a forward and backward pass of an objective, which may be the last one of the step."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(prepared)

    def end_passes(self) -> None:
        """After the last backward pass of a step: gradients are then means over all processes."""

    @contextlib.contextmanager
    def assembled(self, objectives: Mapping[str, nn.Module], ema: EMA) -> Iterator[None]:
        """Within the block the main process has whole modules with averaged weights; all processes must enter it.

        The others do nothing inside. Afterwards all is as it was, bit for bit.
        """
        with ema.applied() if self.accelerator.is_main_process else contextlib.nullcontext():
            yield


class Sharded:
    """Each process holds some rows of each parameter, and of its gradient, its optimiser's state and its average (FSDP).

    Blocks are put together for their forward and backward passes. Scalars, and what a stage says (`Stage.kept_whole`), stay whole in
    each process; their gradients are averaged here. Weights begin as the first process's, and at each step buffers are its, as
    with DDP. Convolutions are not laid out channels-last, which FSDP does not take.

    Args:
        accelerator: of several processes.
        plugin: see the module.
        bf16: whether forward passes compute in it.
    """

    in_step = True

    def __init__(self, accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin, bf16: bool) -> None:
        self.accelerator, self.plugin, self.bf16 = accelerator, plugin, bf16
        self.world = accelerator.num_processes
        self._whole: list[nn.Parameter] = []
        self._buffers: list[Tensor] = []
        self._classes: dict[nn.Module, type[nn.Module]] = {}
        self._marks: list[tuple[nn.Module, str]] = []  # attributes that FSDP adds to modules

    def place(self, objectives: Mapping[str, nn.Module], kept_whole: list[nn.Module]) -> None:
        """See `Replicated.place`.

        Raises:
            UserError: a module that the configuration names is not there, or a weight is shared between blocks.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = self.accelerator.device
        mesh = init_device_mesh(device.type, (self.world,))
        kept = {p for module in kept_whole for p in module.parameters()}
        units = {name: self._units(objective) for name, objective in objectives.items()}
        self._check_names(objectives)
        cut = all_of = 0
        for name, objective in objectives.items():
            own = list(objective.parameters())
            left = {p for p in own if p in kept or p.ndim == 0}
            self._whole += [p for p in own if p in left and p.requires_grad]
            for parameter in own:
                parameter.data = parameter.data.contiguous()
            for tensor in [*left, *objective.buffers()]:
                tensor.data = tensor.data.to(device)
            persistent = set(objective.state_dict())
            self._buffers += [b for k, b in objective.named_buffers() if k in persistent]
            _check_shared(name, objective, units[name])
            for tensor in [*own, *objective.buffers()]:
                self._broadcast(tensor.data)
            all_of += sum(p.numel() for p in own)
            cut += sum(p.numel() for p in own if p not in left)
            if len(left) == len(own):
                continue
            before = {module: set(module.__dict__) for module in objective.modules()}
            for unit in [*units[name], objective]:
                if all(p in left for p in unit.parameters()):
                    continue
                self._classes[unit] = type(unit)
                again = {} if unit is objective else {"reshard_after_forward": self.plugin.reshard_after_forward}
                fully_shard(unit, mesh=mesh, ignored_params=left, **again)
            self._marks += [(m, key) for m, known in before.items() for key in m.__dict__ if key not in known]
        self.accelerator.print(
            f"FSDP: {cut / max(1, all_of):.1%} of {all_of:,} weights, with gradients, optimiser and averages, are shared out among "
            f"{self.world} processes, in {len(self._classes)} parts."
        )

    def _units(self, objective: nn.Module) -> list[nn.Module]:
        """What is put together as one beside the objective's rest; inner modules before those that they are part of."""
        policy = self.plugin.auto_wrap_policy
        policy = policy.func if isinstance(policy, functools.partial) else policy
        named = self.plugin.transformer_cls_names_to_wrap
        if policy is None and "FSDP_AUTO_WRAP_POLICY" in os.environ:
            return []
        if named:
            chosen = [m for m in objective.modules() if type(m).__name__ in named and m is not objective]
            return chosen[::-1]
        least = self.plugin.min_num_params or 0
        found: list[nn.Module] = []
        inside: set[nn.Module] = set()
        for blocks in block_lists(objective).values():
            for block in blocks:
                if block in inside or not _can_run(block):
                    continue
                inside |= set(block.modules())
                if sum(p.numel() for p in block.parameters()) >= least:
                    found.append(block)
        return found

    def _check_names(self, objectives: Mapping[str, nn.Module]) -> None:
        named = self.plugin.transformer_cls_names_to_wrap or []
        there = {type(m).__name__ for objective in objectives.values() for m in objective.modules()}
        if missing := [name for name in named if name not in there]:
            blocks = {type(b).__name__ for o in objectives.values() for list_ in block_lists(o).values() for b in list_}
            raise UserError(
                f"fsdp_transformer_layer_cls_to_wrap names {missing[0]}, which the model has not; its blocks are "
                f"{', '.join(sorted(blocks)) or 'none'}, and without a wrap policy these are taken."
            )

    def _broadcast(self, tensor: Tensor) -> None:
        """Make a tensor that of the first process, by way of the training's device."""
        here = tensor.to(self.accelerator.device).contiguous()
        dist.broadcast(here, src=0)
        tensor.copy_(here)

    def prepared(self, objective: nn.Module) -> Pass:
        """See `Replicated.prepared`."""
        return functools.partial(_call, objective, self.accelerator.device.type, self.bf16)

    @torch.no_grad()
    def begin_step(self) -> None:
        """See `Replicated.begin_step`: buffers become the first process's."""
        for dtype in sorted({b.dtype for b in self._buffers}, key=str):
            some = [b for b in self._buffers if b.dtype == dtype]
            flat = torch.cat([b.flatten() for b in some])
            dist.broadcast(flat, src=0)
            for buffer, values in zip(some, flat.split([b.numel() for b in some]), strict=True):
                buffer.copy_(values.view_as(buffer))

    def passing(self, prepared: Pass, last: bool) -> contextlib.AbstractContextManager[None]:
        """See `Replicated.passing`. Gradients are shared out at once: kept until the last pass they would need a whole model's
        memory."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def end_passes(self) -> None:
        """See `Replicated.end_passes`; FSDP has done its part."""
        gradients = [p.grad for p in self._whole if p.grad is not None]
        if not gradients:
            return
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, values in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(values.view_as(gradient))

    @contextlib.contextmanager
    def assembled(self, objectives: Mapping[str, nn.Module], ema: EMA) -> Iterator[None]:
        """See `Replicated.assembled`. The modules are the same objects, with whole parameters and without what FSDP has done to
        them: they may be called by one process alone, copied, and saved."""
        main = self.accelerator.is_main_process
        averages, made = ema.averages(), dict[nn.Parameter, nn.Parameter]()
        for objective in objectives.values():
            for parameter in objective.parameters():  # one after the other, in the same order everywhere
                full = whole(averages.get(parameter, parameter))
                if main and full is not parameter:
                    made[parameter] = nn.Parameter(full.to(parameter.dtype), parameter.requires_grad)
        if not main:
            yield
            return
        places = [
            (module, name, parameter)
            for objective in objectives.values()
            for module in objective.modules()
            for name, parameter in module._parameters.items()
            if parameter in made
        ]
        hooks = [(table, dict(table)) for m in self._classes for table in (m._forward_pre_hooks, m._forward_hooks)]
        marks = [(module, key, module.__dict__.pop(key)) for module, key in self._marks]
        sharded = {module: module.__class__ for module in self._classes}
        for module, name, parameter in places:
            module._parameters[name] = made[parameter]
        for table, _ in hooks:
            for number in [n for n, hook in table.items() if _of_fsdp(hook)]:
                del table[number]
        for module, plain in self._classes.items():
            module.__class__ = plain
        try:
            yield
        finally:
            for module, class_ in sharded.items():
                module.__class__ = class_
            for module, key, value in marks:
                module.__dict__[key] = value
            for table, before in hooks:
                table.clear()
                table.update(before)
            for module, name, parameter in places:
                module._parameters[name] = parameter


def _call(objective: nn.Module, device: str, bf16: bool, batch: Batch) -> Batch:
    """A forward pass of a cut-up objective; says what is the matter where it cannot be cut up."""
    try:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            output = objective(batch)
    except RuntimeError as e:
        if "mixed torch.Tensor and DTensor" not in str(e):
            raise
        raise UserError(
            f"{type(objective).__name__.removeprefix('FSDP')} uses weights of a part outside of that part's own forward pass, which "
            "FSDP in this cut does not put together; set fsdp_auto_wrap_policy: NO_WRAP, or use DDP."
        ) from None
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in output.items()}


def _can_run(module: nn.Module) -> bool:
    """Whether it has a forward pass (lists and dicts of modules have none), and weights for it."""
    return type(module).forward is not nn.Module.forward and any(True for _ in module.parameters())


def _check_shared(name: str, objective: nn.Module, units: list[nn.Module]) -> None:
    """Refuse a weight of which two parts are owners."""
    inside = [set(unit.modules()) for unit in units]
    owners: dict[nn.Parameter, set[int]] = {}
    for module in objective.modules():
        innermost = next((i for i, parts in enumerate(inside) if module in parts), -1)
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, set()).add(innermost)
    if any(len(parts) > 1 for parts in owners.values()):
        raise UserError(
            f"two parts of the {name} model share a weight, which FSDP cannot cut; set fsdp_auto_wrap_policy: NO_WRAP, or use DDP."
        )


def _of_fsdp(hook: Any) -> bool:
    return type(getattr(hook, "__self__", None)).__module__.startswith("torch.distributed.fsdp")
