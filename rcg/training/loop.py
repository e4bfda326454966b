"""The one training loop: every stage runs through `train`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import nn

from rcg import __version__
from rcg.core.draws import drawing_for
from rcg.core.durations import in_words
from rcg.core.errors import UserError
from rcg.core.files import atomic_file, claimed, export_files, sweep, write_json
from rcg.core.hardware import check_one_each, pick_bf16, pick_device
from rcg.core.parts import cannot_restart, job, restarted
from rcg.core.rng import derive_seed
from rcg.core.schema import check_config
from rcg.core.together import connected, meet
from rcg.training.checkpoints import CheckpointFolder, Meta, OpenAverages, State, named_state, restore_state
from rcg.training.config import JOB, TrainingConfig
from rcg.training.optimizers import ObjectiveOptimizer
from rcg.training.resumed import Division, check_identity, say_changed, say_division
from rcg.training.run_log import Averages, RunLog
from rcg.training.schedules import EMA, decay_factor, lr_factor, warmup_steps
from rcg.training.sharding import Pass, fsdp_plugin, spread_of
from rcg.training.shards import gather, norm
from rcg.training.signals import StopSignals
from rcg.training.stage import Batch, Stage
from rcg.training.stream import SEEDS, StepBatches, cut_rows, load_batches, to_device
from rcg.training.times import DataWatch, StepTimes, in_percent, shares
from rcg.training.trackers import Tracker, check_tracker, weights_of

MAX_BAD_STEPS = 10
"""Non-finite gradients in a row before the run stops."""
CHECK_EVERY = 10
"""Every so many steps the host reads from the device whether gradients are finite; in between nothing waits."""
PATIENCE = timedelta(hours=2)
"""So long processes wait for the one that evaluates; NCCL's own ten minutes can be too short."""
Watch = Callable[[int], bool]
"""Called with the number of steps that are done after each of them; true pauses the run there."""


def train(
    stage: Stage, config: TrainingConfig, *, extra_config: dict[str, Any] | None = None, watch: Watch | None = None
) -> dict[str, float]:
    """Train a stage as the config says, from the start or from its newest checkpoint.

    Leaves the finished component in `config.out` and the run's own files in `config.out/training`: `config.yaml`,
    `job.json`, `log.jsonl`, `samples/`, `checkpoints/`; no other process may train there meanwhile. A run killed at any moment and
    resumed computes the same as an unbroken one, bit for bit on CPU: order, views, noise and dropout follow from (seed, epoch,
    sample) alone. So it may go on with another number of processes, which then differ in the order of sums (and in what
    `Stage.parts_matter` names).

    Args:
        stage: what to train.
        config: how.
        extra_config: the command's own flags (JSON values), recorded beside the loop's.
        watch: looks on, in place of the progress bar. Where it pauses a run before its last step, a checkpoint is
            written and nothing is exported: `config.resume` goes on, with other `steps` if need be. All processes must
            answer alike.

    Returns:
        The figures of the last evaluation.

    Raises:
        UserError: bad settings, an occupied or missing `out`, a checkpoint of another run, a diverged loss.
    """
    check_config(config)
    run = _Run(stage, config, extra_config or {}, watch)
    try:
        with claimed(config.out) if run.accelerator.is_main_process else contextlib.nullcontext():
            return run.run()
    finally:
        if hasattr(run, "log"):
            run.log.bar.close()  # so that an error stands on a line of its own
        if hasattr(run, "tracker"):
            run.tracker.close()
        AcceleratorState._reset_state(reset_partial_state=False)  # so that a later run may choose another precision


class _Run:
    def __init__(self, stage: Stage, config: TrainingConfig, extra_config: dict[str, Any], watch: Watch | None) -> None:
        self.stage, self.config, self.watch = stage, config, watch
        self.folder = config.out / "training"
        self.total = config.total_steps(len(stage.dataset))
        self.warmup = warmup_steps(self.total, config)
        device = pick_device(config.device)
        check_one_each(device)
        self.bf16 = pick_bf16(config.precision, device)
        check_tracker(config.tracker)
        plugin = fsdp_plugin()
        # the partial state knows the device of an earlier run, and what connects several processes
        AcceleratorState._reset_state(reset_partial_state=not connected())
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="bf16" if self.bf16 else "no",
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(self.folder),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=False),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
            fsdp_plugin=plugin,
        )
        if (taken := self.accelerator.device.type) != device.type:
            raise UserError(
                f"--device {device.type}: accelerate has chosen {taken}, for an earlier run of this process or by its environment; "
                f"start another process, or give --device {taken}."
            )
        self.world = self.accelerator.num_processes
        if self.world > 1 and (warning := cannot_restart()):
            self.accelerator.print(f"warning: {warning}")
        self.spread = spread_of(self.accelerator, plugin, self.bf16, config.compile)
        if config.batch_size < self.world or (stage.compares and config.batch_size % self.world):
            raise UserError(
                f"--batch-size {config.batch_size} does not split over {self.world} processes; start as many as divide it."
            )
        self.identity = {
            "stage": stage.name,
            "data": stage.dataset.fingerprint,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "optimizer": config.optimizer,
            **stage.identity(),
        }
        self.settings = {**(extra_config), **_plain(dataclasses.asdict(config)), "rcg_version": __version__}
        self.checkpoints = CheckpointFolder(self.folder / "checkpoints", config.keep_checkpoints)
        self.signals = StopSignals(self.accelerator, self.total)
        local = -(-config.batch_size // self.world)
        self.groups = self.world * -(-local // (config.micro_batch_size or local))
        self.bad = self.worst = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)

    # ------------------------------------------------------------------ set-up

    def _set_up(self) -> int:
        config, stage = self.config, self.stage
        device = self.accelerator.device
        meet(device)
        found = self._find_checkpoint() if config.resume else None
        stage.to(device)
        if found is None:
            stage.fit(device)
        self.optimizers: dict[str, ObjectiveOptimizer] = {}
        self.spread.place(stage.objectives, stage.kept_whole())
        for name, objective in stage.objectives.items():
            objective.train()
            groups = [g for g in stage.param_groups(name, config.weight_decay) if g["params"]]
            betas = (config.beta1, config.beta2)
            self.optimizers[name] = ObjectiveOptimizer(objective, groups, config.optimizer, betas)
        averaged = stage.ema_modules()
        if not averaged and config.ema_decay != TrainingConfig.ema_decay and self.watch is None:
            self.accelerator.print("This training keeps no moving average of its weights: --ema-decay plays no part.")
        self.ema = EMA(averaged, config.ema_decay)
        start, open_averages = (0, None) if found is None else self._resume(*found)
        self.passes: dict[str, Pass] = {name: self.spread.prepared(o) for name, o in stage.objectives.items()}
        self.borders = [config.batch_size * i // self.groups for i in range(self.groups)] if stage.grouped else []
        self.pieces = self._cut_batch()
        share = (self.pieces[-1].stop - self.pieces[0].start) * self.world / config.batch_size
        mean = partial(self.accelerator.reduce, reduction="mean")
        self.averages = Averages(mean, self.accelerator.gather, share, self.accelerator.process_index)
        if open_averages:
            self.averages.load(open_averages, self.world, device)
        if self.accelerator.is_main_process:
            if config.overwrite:  # not before: what fails at once leaves the folder as it was
                (config.out / "config.json").unlink(missing_ok=True)  # lest the old model be taken for the new run's
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / JOB, job())
            sweep(config.out)
            with atomic_file(self.folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        self.tracker = Tracker(self.accelerator, config.tracker, self.folder, self.settings, start)
        if self.accelerator.is_main_process:
            track, quiet = self.tracker.figures, self.watch is not None
            self.log = RunLog(self.folder / "log.jsonl", self.total, start, stage.name, track, quiet)
        self.times = StepTimes(device)
        return start

    def _cut_batch(self) -> list[range]:
        """The rows of each forward pass of this process in a step, as rows of the whole batch."""
        whole, world = self.config.batch_size, self.world
        shares = [(whole * rank // world, whole * (rank + 1) // world) for rank in range(world)]
        micro, borders = self.config.micro_batch_size, self.borders
        cuts = [cut_rows(a, b, micro or b - a, borders) for a, b in shares]
        if self.spread.in_step:
            most = max(len(pieces) for pieces in cuts)
            if any(b - a < most for a, b in shares):
                raise UserError(
                    f"with FSDP all processes make as many forward passes, but --batch-size {whole} and --micro-batch-size "
                    f"{micro} leave one of {world} processes without samples for some; make the batch a multiple of the "
                    "processes, or the micro-batch larger."
                )
            cuts = [cut_rows(a, b, micro or b - a, borders, least=most) for a, b in shares]
        fewest, least = min(len(rows) for pieces in cuts for rows in pieces), self.stage.least()
        if fewest < least:
            where = f" over {world} processes" * (world > 1) + f" in micro-batches of {micro}" * (micro is not None)
            raise UserError(
                f"--batch-size {whole}{where} leaves {fewest} sample in a forward pass, but this training needs {least} in each "
                "(BatchNorm compares them); make the batch or the micro-batch larger."
            )
        self.left_out = () if fewest > 1 else self.stage.of_several
        return cuts[self.accelerator.process_index]

    def _find_checkpoint(self) -> tuple[int, State, Meta] | None:
        """The newest one, the same for all processes."""
        found = self.checkpoints.load_newest()
        step = torch.tensor([-1 if found is None else found[0]], device=self.accelerator.device)
        seen = sorted(set(self.accelerator.gather(step).tolist()))
        if len(seen) > 1:
            raise UserError(
                f"the processes see different checkpoints in {self.folder} (of steps {', '.join(str(max(s, 0)) for s in seen)}); "
                "give an --out that all machines share."
            )
        if found is None:
            self.accelerator.print("The run was stopped before its first checkpoint: starting it again.")
        return found

    def _resume(self, step: int, state: State, meta: Meta) -> tuple[int, OpenAverages | None]:
        if restarted():
            self.accelerator.print(f"Started again: going on from step {step}.")
        check_identity(meta, _plain(self.identity), self.config.out, _plain(self.settings))
        if meta["total_steps"] != self.total and self.watch is None:
            self.accelerator.print(f"The run was planned for {meta['total_steps']} steps and now goes to {self.total}.")
            warmup = self.config.warmup
            before = meta.get("warmup", [warmup, warmup_steps(meta["total_steps"], self.config)])
            if before[0] == warmup:  # a share of the run that it was; else the learning rate would fall, and rise again
                self.warmup = before[1]
        if (changed := say_changed(self.config.out, _plain(self.settings))) is not None and self.watch is None:
            self.accelerator.print(changed)
        division = Division(self.world, self.groups // self.world)
        draws_apart = self.accelerator.device.type != "cpu" or self.config.compile
        sentence = say_division(self.stage, self.config.batch_size, Division.of(meta), division, draws_apart)
        if sentence is not None:
            self.accelerator.print(sentence)
        if self.stage.grouped:
            self.groups = meta.get("groups", meta["world"])
        if meta["bf16"] != self.bf16:
            self.accelerator.print("Other precision than before: the run goes on, but not bit for bit.")
        prefix = "ema."
        averages = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        restore_state(state, self.stage.objectives, self.optimizers)
        if averages.keys() != self.ema.state().keys():
            raise UserError(
                "the checkpoint's averaged weights do not fit the model; resume with the flags the run was started with."
            )
        self.ema.load(averages, meta["ema_updates"])
        return step, meta["log"]

    # ------------------------------------------------------------------ the loop

    def run(self) -> dict[str, float]:
        start = self._set_up()
        config, stage, accelerator = self.config, self.stage, self.accelerator
        if start < self.total <= self.warmup and self.watch is None:
            reached = lr_factor(self.total - 1, self.total, config, self.warmup)
            accelerator.print(
                f"The learning rate rises over {self.warmup:g} steps, but the run has {self.total}: it ends at {reached:.0%} of the "
                "peak; lower --warmup, or train longer."
            )
        if start >= self.total and self.watch is None:
            accelerator.print(f"{config.out} is already trained to step {start}; nothing to do.")
        batches = StepBatches(stage.dataset, config.batch_size, config.seed, accelerator.process_index, self.world)
        loader = load_batches(batches, start, self.total, config.num_workers, pin=accelerator.device.type == "cuda")
        eval_every = config.eval_every or max(1, -(-self.total // 10))
        preview_every = config.preview_every or eval_every
        figures: dict[str, float] = {}
        if start and (self.watch is None or start >= self.total):
            figures = self._make_up(start, eval_every, preview_every)
        begun = clock = time.perf_counter()
        clock_step = start
        data_watch = DataWatch(config.num_workers, int(os.environ.get("LOCAL_WORLD_SIZE", self.world)))
        self.times.start()
        with self.signals.caught(start), contextlib.closing(loader):
            for step, batch in zip(range(start, self.total), loader, strict=True):
                stage.check({k: v for k, v in batch.items() if k != SEEDS})
                self.times.mark("data")
                values, good = self._step(step, batch)
                done = step + 1
                stopped, end = self.signals.end_after(done), done == self.total
                self.times.mark("wait")
                paused = self.watch is not None and self.watch(done) and not end
                logs = done % config.log_every == 0 or end
                saves = done % config.save_every == 0 or end or stopped or paused
                evaluates = (done % eval_every == 0 or end) and not stopped
                previews = (done % preview_every == 0 or end) and not stopped
                if done % CHECK_EVERY == 0 or logs or saves:
                    self._check_gradients(done)
                self.averages.add(values, good)
                seconds, averages = (self.times.read(), self.averages.take()) if logs else ({}, {})
                if accelerator.is_main_process:
                    self.log.advance(done, time.perf_counter())
                    if logs:
                        now = time.perf_counter()
                        rate = (done - clock_step) * config.batch_size / max(1e-9, now - clock)
                        clock, clock_step = now, done
                        lr = config.peak_lr * lr_factor(step, self.total, config, self.warmup)
                        epoch = done * config.batch_size / len(stage.dataset)
                        self.log.write_step(
                            done,
                            averages,
                            lr=lr,
                            epoch=epoch,
                            samples_per_second=rate,
                            **shares(seconds),
                            **self._memory(),
                        )
                        if (sentence := data_watch.after(seconds)) is not None and self.watch is None:
                            self.log.bar.write(sentence)
                if saves:  # first: a kill in what follows, which may take minutes, loses nothing
                    self._save(done)
                if evaluates:
                    figures = self._evaluate(done)
                if previews:
                    self._preview(done)
                self.times.mark("other")
                if evaluates or previews or saves:
                    meet(accelerator.device)
                    self.times.mark("wait")
                if stopped:
                    if self.watch is None:  # else whoever watches knows whether anything can go on, and how
                        accelerator.print(f"\nStopped at step {done}; a checkpoint is written, go on with --resume.")
                    raise KeyboardInterrupt
                if paused:
                    self._pass_on()
                    return figures
        with self._averaged():
            if accelerator.is_main_process:
                export_files(config.out, stage.export)
        self._eval_mode(True)
        if accelerator.is_main_process and start < self.total:
            self._sum_up(start, time.perf_counter() - begun)
        meet(accelerator.device)
        self._pass_on()
        return figures

    def _pass_on(self) -> None:
        """Where something follows this training, a signal that came too late for it, in its last evaluation, stops that."""
        if self.signals.came and self.watch is not None:
            raise KeyboardInterrupt

    def _make_up(self, step: int, eval_every: int, preview_every: int) -> dict[str, float]:
        """Evaluate and draw what was due at the step of the checkpoint, and left out for the sake of a quick stop.

        Returns:
            The figures of the evaluation after that step, made now or before.
        """
        end, main = step >= self.total, self.accelerator.is_main_process
        figures = self.log.evaluation(step) if main else {}
        if self._main_says((step % eval_every == 0 or end) and main and not figures):
            figures = self._evaluate(step)
        if self._main_says((step % preview_every == 0 or end) and main and not self._picture(step).exists()):
            self._preview(step)
        meet(self.accelerator.device)
        return figures

    def _main_says(self, true: bool) -> bool:
        """Whether it is true for the main process; asked by all together."""
        flag = torch.tensor([int(true and self.accelerator.is_main_process)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _picture(self, step: int) -> Path:
        return self.folder / "samples" / f"step-{step:08d}.png"

    def _memory(self) -> dict[str, float]:
        """The most memory of the GPU that tensors have taken, so far; nothing on a CPU."""
        device = self.accelerator.device
        return {"gpu_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}

    def _sum_up(self, start: int, seconds: float) -> None:
        """Say and write down where the time went, from the step on that this process began at."""
        self.times.read()
        rate = (self.total - start) * self.config.batch_size / max(1e-9, seconds)
        whole = {k.replace("time/", "run/"): v for k, v in shares(self.times.total).items()}
        self.log.write(self.total, {"run/seconds": round(seconds, 3), "run/samples_per_second": rate, **whole})
        if self.watch is None:
            memory = "".join(f"; at most {v:.1f} GiB of GPU memory" for v in self._memory().values())
            self.log.bar.write(
                f"{self.total - start:,} steps in {in_words(seconds)}, {rate:,.0f} samples a second; of the time: "
                f"{in_percent(self.times.total)}{memory}."
            )

    def _check_gradients(self, step: int) -> None:
        """Stop a run whose gradients are not finite any more. Reads from the device, so that it has caught up, too."""
        if (bad := int(self.worst)) >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradient has not been finite for {bad} steps (step {step}); lower --lr, add --warmup or use "
                "--precision fp32, then --resume from the last checkpoint."
            )

    def _step(self, step: int, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One optimiser step; returns its figures and whether the gradients were finite, else the weights stay."""
        config, accelerator = self.config, self.accelerator
        seeds = batch[SEEDS].numpy().view(np.uint64)
        whole, start, stop = config.batch_size, self.pieces[0].start, self.pieces[-1].stop
        sums: dict[str, torch.Tensor] = {}
        self.spread.begin_step()
        for rows in self.pieces:
            torch.manual_seed(derive_seed(config.seed, 1, step, rows.start, 0))
            group = derive_seed(config.seed, 8, step, bisect_right(self.borders, rows.start))
            own = slice(rows.start - start, rows.stop - start)
            piece = to_device({k: v[own] for k, v in batch.items() if k != SEEDS}, accelerator.device)
            with drawing_for(seeds[own], rows.start, whole, group):
                with torch.no_grad():
                    piece = self.stage.prepare(piece)
                self.times.mark("prepare")
                weight = len(rows) * self.world / whole  # of the mean over processes
                for name, forward in self.passes.items():
                    with self.spread.passing(forward, last=rows is self.pieces[-1]):
                        output = forward(piece)
                        self.times.mark("forward")
                        # accelerate's own would divide by ACCELERATE_GRADIENT_ACCUMULATION_STEPS
                        (output["loss"] * weight).backward()
                        self.times.mark("backward")
                    share = len(rows) / (stop - start)
                    for key, value in output.items():
                        if key in self.left_out:
                            continue
                        label = key if len(self.passes) == 1 else f"{name}/{key}"
                        before = sums.get(label, torch.zeros((), device=accelerator.device))
                        sums[label] = before + value.detach() * share
        self.spread.end_passes()
        lr = config.peak_lr * lr_factor(step, self.total, config, self.warmup)
        norms: dict[str, torch.Tensor] = {}
        for name, optimizer in self.optimizers.items():
            parameters = [p for p in optimizer.parameters if p.grad is not None]
            norms[name] = norm([p.grad for p in parameters if p.grad is not None])
            sums["grad_norm" if len(self.optimizers) == 1 else f"{name}/grad_norm"] = norms[name]
            if config.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(parameters, config.clip_grad, norms[name])
        good = torch.stack(list(norms.values())).isfinite().all()
        for optimizer in self.optimizers.values():
            optimizer.step(lr, good, decay_factor(step, self.total, config))
        self.bad = torch.where(good, 0, self.bad + 1)
        self.worst = torch.maximum(self.worst, self.bad)
        self.stage.on_step_end(step + 1, self.total)
        self.ema.update()
        self.times.mark("optimizer")
        return sums, good

    # ------------------------------------------------------------------ around the loop

    def _eval_mode(self, on: bool) -> None:
        for objective in self.stage.objectives.values():
            objective.train(not on)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the block the main process has whole models with averaged weights, to look at; all processes enter it."""
        with self.spread.assembled(self.stage.objectives, self.ema), torch.no_grad():
            self._eval_mode(True)
            try:
                yield
            finally:
                self._eval_mode(False)

    def _evaluate(self, step: int) -> dict[str, float]:
        """Figures of the main process (none of others), which writes and shows them; called in all."""
        main, seed = self.accelerator.is_main_process, derive_seed(self.config.seed, 3)
        figures: dict[str, float] = {}
        with self._averaged():
            if main:
                torch.manual_seed(seed)
                figures = self.stage.evaluate(seed)
            if figures:
                self.log.write(step, {f"eval/{k}": v for k, v in figures.items()})
                self.log.bar.write(f"step {step}: " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            if self.tracker.active:
                torch.manual_seed(seed)
                self.tracker.histograms(self.stage.distributions(seed), step)
        if self.config.tracker != "none":
            self.tracker.histograms(gather(weights_of(self.stage.objectives).items(), keep=main), step)
        return figures

    def _preview(self, step: int) -> None:
        picture = None
        with self._averaged():
            if self.accelerator.is_main_process:
                seed = derive_seed(self.config.seed, 4)
                torch.manual_seed(seed)
                picture = self.stage.preview(seed)
        if picture is not None:
            with atomic_file(self._picture(step)) as temporary:
                picture.save(temporary, format="PNG")
            self.tracker.picture("samples", picture, step)

    def _save(self, step: int) -> None:
        """Write a checkpoint: the main process does, the others help to put tensors together."""
        main = self.accelerator.is_main_process
        state = gather(named_state(self.stage.objectives, self.optimizers), keep=main)
        state |= gather(((f"ema.{k}", v) for k, v in self.ema.state().items()), keep=main)
        averages = self.averages.state()
        if not main:
            return
        meta: Meta = {
            "format": 1,
            "rcg_version": __version__,
            "identity": _plain(self.identity),
            "total_steps": self.total,
            "world": self.world,
            "bf16": self.bf16,
            "ema_updates": self.ema.updates,
            "groups": self.groups,
            "warmup": [self.config.warmup, self.warmup],
            "log": averages,
        }
        self.log.sync()
        self.checkpoints.save(step, state, meta)


def _plain(value: Any) -> Any:
    """A copy as JSON gives it back: paths become strings, tuples lists."""
    return json.loads(json.dumps(value, default=str))
