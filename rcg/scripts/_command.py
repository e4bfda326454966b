"""What every command shares: flags from a typed dataclass, YAML presets, and errors in one sentence."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import tyro

from rcg.core.errors import UserError, one_line
from rcg.core.schema import IMPOSSIBLE, Count, NonNegative, Range, Size, check_config, flag_of, parse_yaml
from rcg.core.schema import Share as ShareOfOne

if TYPE_CHECKING:
    from rcg.core.parts import Opener, Share
    from rcg.engines.ray_engine import RayResources

Config = TypeVar("Config")


@dataclasses.dataclass
class SamplingSettings:
    """How a pipeline samples; what is None is the model's own."""

    num_inference_steps: Size | None = None
    """Steps of the image generator."""
    guidance_scale: NonNegative | None = None
    """Guidance of the image generator; 1.0 is off (the reference's cfg is this minus 1)."""
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = None
    """How guidance grows while an image is made: at once, linearly, or with half a cosine."""
    guidance_interval: tuple[ShareOfOne, ShareOfOne] | None = None
    """The part of the way from noise (0) to image (1) on which guidance acts, such as 0.1 0.8."""
    temperature: NonNegative | None = None
    """Randomness of the order in which tokens are settled (MAGE only)."""
    rdm_num_inference_steps: Size | None = None
    """Denoising steps of the representation."""
    rdm_guidance_scale: NonNegative | None = None
    """Guidance of an RDM that knows classes or clusters; 1.0 is off."""

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def check_guided(self) -> None:
        """Raise `UserError` for flags that say how guidance acts beside a scale that turns it off."""
        for name in ("guidance_schedule", "guidance_interval"):
            if self.guidance_scale == 1.0 and getattr(self, name) is not None:
                raise UserError(
                    f"{flag_of(name)} has no effect with --guidance-scale 1.0, which is off; leave one of them out."
                )


class Settings:
    """Flags that belong together; for dataclasses."""

    def given(self) -> list[str]:
        """Names of the flags that are set."""
        return [f.name for f in dataclasses.fields(cast(Any, self)) if getattr(self, f.name) != f.default]


@dataclasses.dataclass
class EngineSettings(Settings):
    """Who does work that can be shared out."""

    engine: Literal["local", "ray"] = "local"
    """local: this process (or those of torchrun). ray: workers on the Ray cluster that RAY_ADDRESS names, or on this machine,
    with retries and autoscaling by Ray; the results are the same, on CPUs bytes and all where as many threads compute."""
    ray_cpus: Annotated[int, Range(1, 4096)] = 1
    """With --engine ray: CPUs that a worker takes; it computes with as many threads."""
    ray_gpus: Annotated[float, Range(0, 64)] | None = None
    """With --engine ray: GPUs that a worker takes (default: one where the cluster has some)."""
    ray_workers: Count | None = None
    """With --engine ray: workers at most (default: as many as there is room for)."""

    def validate(self) -> None:
        """Raise `UserError` for flags that do not go together."""
        given = [name for name in self.given() if name.startswith("ray_")]
        if self.engine == "local" and given:
            raise UserError(f"{flag_of(given[0])} is for --engine ray; add that or leave it out.")

    def ray_resources(self) -> RayResources:
        """What workers take."""
        from rcg.engines.ray_engine import RayResources

        return RayResources(self.ray_cpus, self.ray_gpus, self.ray_workers)


@dataclasses.dataclass
class Spreading(EngineSettings):
    """How work is shared out among processes and machines."""

    part: str | None = None
    """Do the K-th of N parts, as K/N: in a SLURM array, $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT. Parts need not know of each
    other, and may run in any order."""

    def validate(self) -> None:
        """See `EngineSettings`."""
        super().validate()
        if self.part is not None:
            if self.engine != "local":
                raise UserError(f"--engine {self.engine} cuts the work into parts itself; leave --part out.")
            self.share()

    def share(self) -> Share:
        """This process's part of the work."""
        from rcg.core.parts import Share

        share = Share.from_environment()
        if self.part is None:
            return share
        if share.world > 1:
            raise UserError("--part is for processes that are started singly; leave it out under torchrun.")
        return Share.parse(self.part)

    def share_of(self, out: Path) -> Share:
        """As `share`; who is at work in the folder is said before models are loaded."""
        from rcg.core.files import claimed

        share = self.share()
        if out.is_dir():
            with claimed(out, shared=share.world > 1):
                pass
        return share

    def on_ray(self, opener: Opener, out: Path | None = None) -> None:
        """Let the cluster do a job, with a progress bar; into `out`, where it matters who began that (`Share.began`)."""
        from tqdm import tqdm

        from rcg.core.parts import Share
        from rcg.engines.ray_engine import run_on_ray

        with tqdm(unit=" parts") as bar:

            def show(done: int, of: int) -> None:
                bar.total, bar.n = of, done
                bar.refresh()
                if done == 0 and out is not None:  # claimed just now
                    Share.from_environment().note(out)

            run_on_ray(opener, self.ray_resources(), show)


def flags(config: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """The flags of a config by name, those of the dataclasses that it embeds among them, as JSON and YAML hold them."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value) and name not in without:
            found |= flags(value)
        elif name not in without:
            found[name] = str(value) if isinstance(value, Path) else value
    return found


CONFIGS = ("config.json", "scheduler_config.json")
"""By which the folder of a component is known."""


OF_A_MODEL = (
    "model_index.json", "config.json", "scheduler_config.json", "conversion.json", "README.md", "metrics.json", "grid.png"
)  # fmt: skip
"""Files beside the weights in folders of models."""


def check_out_folder(out: Path, overwrite: bool, markers: Sequence[str]) -> None:
    """Refuse an output folder that holds something, unless it may be replaced.

    Args:
        out: the folder; need not exist.
        overwrite: whether a folder with one of `markers` may be replaced.
        markers: files by which a result of this command is known.

    Raises:
        UserError: a folder with other things in it (also beside what may be replaced), or one that may not be replaced.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not any((out / marker).is_file() for marker in markers):
        raise UserError(f"--out {out} is not empty and holds no model; choose another folder.")
    if not overwrite:
        raise UserError(f"--out {out} already holds a model; add --overwrite or choose another folder.")
    if others := sorted(p.name for p in out.iterdir() if not _belongs_to_model(p)):
        raise UserError(
            f"--out {out} holds other things beside the model ({others[0]}), which --overwrite would throw away; move them, or "
            "choose another folder."
        )


def _belongs_to_model(path: Path) -> bool:
    """Whether this library writes such a thing into a model's folder, or a killed process of it has left it there."""
    from rcg.core.files import final_name

    if final_name(path.name.removesuffix(".old")) is not None or path.name == ".export":
        return True
    if path.is_dir():
        return any((path / name).is_file() for name in CONFIGS)
    return (
        path.name in OF_A_MODEL
        or re.fullmatch(r"diffusion_pytorch_model\S*\.(safetensors|json)", path.name) is not None
    )


def _preset_bytes(name: str) -> bytes:
    path = Path(name)
    if path.is_file():
        try:
            return path.read_bytes()
        except OSError as e:
            raise UserError(f"--config {name} cannot be read ({e.strerror or e}); give another file.") from None
    shipped = resources.files("rcg.configs")
    file = shipped / (name if name.endswith(".yaml") else f"{name}.yaml")
    if file.is_file():
        return file.read_bytes()
    names = sorted(f.name.removesuffix(".yaml") for f in shipped.iterdir() if f.name.endswith(".yaml"))
    raise UserError(f"--config {name}: there is no such file and no such preset (presets: {', '.join(names)}).")


def preset_arguments(name: str) -> list[str]:
    """Turn a YAML preset (a file, or the name of one in `rcg/configs`) into the flags it stands for."""
    entries = parse_yaml(_preset_bytes(name), f"--config {name}", "mend the file") or {}
    if not isinstance(entries, dict):
        raise UserError(f"--config {name} must be a list of `flag: value` lines.")
    arguments: list[str] = []
    for key, value in entries.items():
        flag = str(key).replace("_", "-")
        if isinstance(value, list) and any(isinstance(each, list | dict | set) for each in value):
            raise UserError(f"--config {name}: {flag} holds lists within a list, but a preset is flat.")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            arguments += [f"--{flag}", *map(str, value)]
        elif isinstance(value, dict | set):
            raise UserError(f"--config {name}: {key} holds a mapping, but a preset is flat: one line for each flag.")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


def _expand_presets(arguments: Sequence[str]) -> list[str]:
    presets: list[str] = []
    rest: list[str] = []
    it = iter(arguments)
    for argument in it:
        if argument == "--config" or argument.startswith("--config="):
            name = argument.partition("=")[2] if "=" in argument else next(it, "")
            if not name:
                raise UserError("--config needs the name of a preset or of a YAML file.")
            presets += preset_arguments(name)
        else:
            rest.append(argument)
    return presets + rest  # what stands on the command line comes last and wins


def last_value(arguments: Sequence[str], flag: str) -> str | None:
    """What `flag` is set to by arguments, of which the last one wins; None if it is not."""
    values = [b if a == flag else a.partition("=")[2] for a, b in pairwise([*arguments, ""]) if a.split("=")[0] == flag]
    return values[-1] if values else None


def run_command(
    prog: str,
    config: type[Config] | Callable[[Sequence[str]], type[Config]],
    main: Callable[[Config], Any],
    description: str,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse `argv` into `config` (or the class that it is for these arguments) and call `main` with it.

    `--config PRESET.yaml` may stand anywhere, more than once; its lines act as if typed before all other flags.
    A `UserError`, a full disk, a path that cannot be or a keyboard interrupt prints one line; the exit code is 2 (130 for an
    interrupt).
    """
    set_up_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need be no UTF-8
    warnings.showwarning = _print_warning
    if hasattr(tyro, "_strings"):  # whose own function keeps the breaks before lines that are indented
        tyro._strings.remove_single_line_breaks = _paragraphs
    try:
        arguments = _expand_presets(sys.argv[1:] if argv is None else argv)
        chosen = config if isinstance(config, type) else config(arguments)
        parsed = tyro.cli(
            tyro.conf.OmitArgPrefixes[chosen],  # type: ignore[valid-type, misc]
            prog=prog,
            description=description
            + "\n\n--config PRESET sets any of the flags below: a preset's name, such as rdm-b, or a YAML file.",
            args=arguments,
        )
        check_config(parsed)
        main(parsed)
        _leave_group()
    except UserError as e:
        _leave_group("gloo")
        _fail(prog, str(e))
    except OSError as e:
        if isinstance(e, BrokenPipeError):  # the reader of our output has gone (… | head)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(prog, "the disk is full; free some space and run the command again (with --resume where it has one).")
        if e.errno in (errno.EACCES, errno.EROFS):
            _fail(prog, f"no permission to use {e.filename}; choose another folder.")
        if e.errno in IMPOSSIBLE and e.filename is not None:
            _fail(prog, f"{e.filename} cannot be used ({e.strerror}); give another path.")
        raise
    except (MemoryError, RuntimeError) as e:
        if not _is_out_of_memory(e):
            raise
        _fail(prog, "the memory does not suffice; lower --batch-size (or --micro-batch-size), or take a smaller model.")
    except KeyboardInterrupt:
        print(f"{prog}: interrupted.", file=sys.stderr)
        sys.exit(130)


def _leave_group(backend: str | None = None) -> None:
    """End what connects the processes of a training, if anything does.

    Args:
        backend: only if it is this one. Gloo's threads may abort a process that exits while they run; NCCL might wait for
            processes that have failed.
    """
    together = sys.modules.get("rcg.core.together")  # without it there is no group, and torch need not be loaded
    if together is not None and together.connected() and backend in (None, together.dist.get_backend()):
        together.dist.destroy_process_group()


def set_up_process() -> None:
    """Let this process compute as all commands do; to be called before torch is imported."""
    # Threads that spin a little before they sleep: without spinning, sampling takes 1.4 times as long on an idle machine;
    # with the default's long spinning, training takes 6 times as long beside another busy process, with this 1.7 times.
    # It must be set before torch loads OpenMP.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, up to 2 GiB, instead of giving it back to the system and asking for it again.

    Each step of a training and each layer of a tokenizer frees as much as the next one needs, and fetching pages anew
    takes up to half of its time on a CPU.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


def _paragraphs(helptext: str) -> str:
    """A docstring's lines joined to paragraphs, to be broken anew where the help is shown."""
    return "\n\n".join(" ".join(part.split()) for part in helptext.split("\n\n"))


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether Python, numpy or torch (on any device) could not get memory."""
    torch_says = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or torch_says


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Our own warnings as plain text; other libraries' with their place, as usual."""
    if category is UserWarning and f"{os.sep}rcg{os.sep}" in filename:
        print(f"warning: {one_line(str(message))}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), file=file or sys.stderr, end="")


def _fail(prog: str, message: str) -> None:
    print(f"{prog}: error: {message}", file=sys.stderr)
    sys.exit(2)
