"""What is fuzzed: for each kind of file, damaged ones and the functions of the library that the commands give them to."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_safetensors

from rcg import MageTransformer, RepresentationMLP, UserError
from rcg.core.components import load_model
from rcg.core.state_dicts import read_weights
from rcg.data.cache import Cache, CacheField, build_cache
from rcg.data.decode import DecodeError, decode
from rcg.data.groups import GroupedDataset
from rcg.data.images import ImageDataset
from rcg.data.sources import open_source
from rcg.eval.arrays import ArraySource
from rcg.eval.images import ImageSet, open_images
from rcg.eval.references import ImageStats, load_stats, save_stats
from rcg.eval.reports import read_report
from rcg.inversion.table import ConditionTable
from rcg.published.convert import convert, open_file
from rcg.published.inspection import inspect_path
from rcg.sampling.folder import SamplingFolder
from rcg.scripts._command import preset_arguments
from rcg.synthesis.prompts import read_captions
from rcg.training.checkpoints import CheckpointFolder
from tests.data.caches import Encoder
from tests.data.shards import write_tar
from tests.fuzzing import mutations as m
from tests.published import official_files
from tests.test_readme import COMMANDS

Files = dict[str, bytes]
"""Contents by path."""


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        cases: damaged files.
        use: gives a folder of them to the library; raises what that raises.
        share: of all cases.
    """

    cases: st.SearchStrategy[Files]
    use: Callable[[Path], None]
    share: float


class Refused(Exception):
    """A command ended as it does on a user's mistake; the message is what it said."""


def judge(target: Target, files: Files, folder: Path) -> str | None:
    """Run one case.

    Returns:
        None where it worked, "UserError" where it was refused in one sentence; otherwise what is wrong.
    """
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            target.use(folder)
    except (UserError, DecodeError, Refused) as e:
        said = str(e)
        if not said.strip() or (isinstance(e, UserError) and "\n" in said) or "Traceback" in said:
            return f"no sentence: {said[:200]!r}"
        outcome = "UserError"
    except BaseException as e:
        return f"{type(e).__name__} at {place_of(e)}: {(str(e).splitlines() or [''])[0][:160]}"
    else:
        outcome = None
    return "code was executed" if marker().exists() else outcome


def place_of(error: BaseException) -> str:
    """Where in the library an error came up: the last of its frames that is ours."""
    found, trace = "?", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if f"{os.sep}rcg{os.sep}" in name and "site-packages" not in name:
            found = f"rcg/{name.rpartition('/rcg/')[2]}:{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return found


@lru_cache(maxsize=1)
def marker() -> Path:
    """The file that executed code would leave."""
    return Path(tempfile.mkdtemp(prefix="rcg-fuzz-")) / "executed"


# ---------------------------------------------------------------- images


def _picture(mode: str, form: str, **options: Any) -> bytes:
    rng = np.random.default_rng(len(mode) + len(form))
    image = Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype(np.uint8))
    image = (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else image.convert(mode)
    )
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@lru_cache(maxsize=1)
def pictures() -> dict[str, bytes]:
    """A valid file of every format that is read."""
    others = [Image.new("P", (20, 16), i) for i in range(3)]
    return {
        "rgb.png": _picture("RGB", "PNG"),
        "rgba.png": _picture("RGBA", "PNG"),
        "p.png": _picture("P", "PNG", transparency=0),
        "l.png": _picture("L", "PNG"),
        "one.png": _picture("1", "PNG"),
        "deep.png": _picture("I;16", "PNG"),
        "a.jpg": _picture("RGB", "JPEG", exif=_exif()),
        "cmyk.jpg": _picture("CMYK", "JPEG"),
        "progressive.jpg": _picture("RGB", "JPEG", progressive=True),
        "a.gif": _picture("P", "GIF", save_all=True, append_images=others),
        "a.webp": _picture("RGBA", "WEBP"),
        "a.tif": _picture("RGB", "TIFF", compression="tiff_lzw"),
        "f.tif": _picture("F", "TIFF"),
        "i.tif": _picture("I", "TIFF"),
        "a.bmp": _picture("RGB", "BMP"),
        "a.ppm": _picture("RGB", "PPM"),
        "a.pgm": _picture("L", "PPM"),
        "a.tga": _picture("RGBA", "TGA", compression="tga_rle"),
        "a.jp2": _picture("RGB", "JPEG2000"),
    }


def _image_cases() -> st.SearchStrategy[Files]:
    valid = pictures()
    raw = st.sampled_from(sorted(valid)).flatmap(
        lambda name: st.tuples(st.just(name), m.damaged_bytes(valid[name], tuple(valid.values())))
    )
    pngs = [name for name in sorted(valid) if name.endswith(".png")]
    built = st.sampled_from(pngs).flatmap(lambda name: st.tuples(st.just(name), m.damaged_png(valid[name])))
    return st.one_of(raw, raw, built).map(lambda found: {f"images/{found[0]}": found[1]})


def use_images(folder: Path) -> None:
    """Decode, as every reader of images does; then, of what is an image, the folder as training reads it."""
    (file,) = (folder / "images").iterdir()
    image = decode(file.read_bytes())
    if min(image.size) < 8 or image.width * image.height > 10**6:
        return
    dataset = ImageDataset(open_source(folder / "images", progress=False, threads=1), 8, "crop_flip")
    dataset.batch(np.arange(len(dataset)), np.arange(len(dataset), dtype=np.uint64))


# ---------------------------------------------------------------- weights


def _pth(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def _old_pth(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _rdm() -> RepresentationMLP:
    torch.manual_seed(0)
    return RepresentationMLP(4, width=8, depth=1, context_dim=4)


@lru_cache(maxsize=1)
def weights() -> dict[str, Any]:
    """Small checkpoints as others publish them, and one of a kind that nobody knows."""
    return {
        "dino": official_files.dino_file(),
        "deit": official_files.deit_file(),
        "rdm": {"state_dict": {f"model.diffusion_model.{k}": v for k, v in _rdm().state_dict().items()}},
        "vqgan": {"quantize.embedding.weight": torch.zeros(4, 2), "encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)},
        "mage": {"model": {"token_emb.word_embeddings.weight": torch.zeros(9, 8), "cls_token": torch.zeros(1, 1, 8)}},
        "unknown": {"w": torch.ones(3), "epoch": 3},
    }


@st.composite
def _other_weights(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with tensors of other shapes and types, or things that are no tensors, under its keys."""
    tensors = st.sampled_from((
        torch.zeros(()), torch.zeros(0), torch.ones(2, 3), torch.zeros(1, dtype=torch.complex64), torch.full((4,), float("nan")),
        torch.zeros(3, dtype=torch.int8), torch.zeros(2, 2).to_sparse(), torch.zeros(1).expand(10**12), torch.zeros(8, 0, 3),
        torch.zeros(2, dtype=torch.bool), torch.zeros(1, 1, 1, 1, 1), torch.zeros(3, dtype=torch.bfloat16),
    ))  # fmt: skip
    value = dict(valid)
    inner = next((k for k, v in value.items() if isinstance(v, dict) and draw(st.booleans())), None)
    place = value if inner is None else dict(value[inner])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(place, key=str) or ["a"]))
        new = draw(
            st.one_of(
                tensors, m.scalars, st.just([torch.zeros(1)]), st.dictionaries(st.integers(), tensors, max_size=2)
            )
        )
        if draw(st.integers(0, 3)) == 0:
            place.pop(key, None)
            key = draw(st.one_of(st.text(max_size=9), st.integers(), st.just(key[:-1] if isinstance(key, str) else 3)))
        place[key] = new
    return place if inner is None else {**value, inner: place}


def _component(model: Any) -> Files:
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        return {f"model/{p.name}": p.read_bytes() for p in sorted(Path(place).iterdir())}


def _run() -> Files:
    """A training checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        state = {"model.o.weight": torch.ones(2, 2), "ema.o": torch.ones(2)}
        identity: dict[str, Any] = {"stage": "x", "data": "y", "batch_size": 4, "seed": 0}
        CheckpointFolder(Path(place), 2).save(3, state, {
            "format": 1, "rcg_version": "0", "identity": identity, "total_steps": 9, "world": 1, "bf16": False, "ema_updates": 3,
            "log": {"counts": {"loss": 1}, "sums": {"loss": 0.5}},
        })  # fmt: skip
        return {f"run/{p.relative_to(place)}": p.read_bytes() for p in sorted(Path(place).rglob("*")) if p.is_file()}


@st.composite
def _changed(draw: st.DrawFn, files: Files) -> Files:
    """A folder one file of which is damaged, lost or empty."""
    name = draw(st.sampled_from(sorted(files)))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return {k: v for k, v in files.items() if k != name} or {"x": b""}
    if name.endswith(".json"):
        damaged = draw(m.damaged_json(json.loads(files[name])))
    elif name.endswith(".safetensors"):
        damaged = draw(m.damaged_safetensors(files[name]))
    elif name.endswith((".npz", ".pth")):
        damaged = draw(m.damaged_members(files[name]))
    else:
        damaged = draw(m.damaged_bytes(files[name]))
    return {**files, name: damaged}


def _checkpoint_cases() -> st.SearchStrategy[Files]:
    valid = weights()
    names = st.sampled_from(sorted(valid))
    saved = {name: _pth(value) for name, value in valid.items()}
    old = {name: _old_pth(value) for name, value in valid.items()}
    flat = save_safetensors(official_files.deit_file()["model"])
    sparse = (NotImplementedError, RuntimeError)

    def written(value: Any) -> Files:
        with contextlib.suppress(*sparse):
            return {"file.pth": _pth(value)}
        return {"file.pth": b""}

    file = st.one_of(
        names.flatmap(lambda n: m.damaged_members(saved[n])).map(lambda d: {"file.pth": d}),
        names.flatmap(lambda n: m.damaged_bytes(old[n])).map(lambda d: {"file.pth": d}),
        m.damaged_safetensors(flat).map(lambda d: {"file.safetensors": d}),
        names.flatmap(lambda n: _other_weights(valid[n])).map(written),
        m.hostile_pickle(str(marker()), _pth).map(lambda d: {"file.pth": d}),
        m.hostile_pickle(str(marker()), _old_pth).map(lambda d: {"file.pth": d}),
        m.hostile_tar(b"x").map(lambda d: {"file.pth": d}),
        m.damaged_value(json.loads(json.dumps({"state_dict": {"a": [1.0], "b": {"c": 3}}, "args": None}))).map(written),
    )
    return st.one_of(file, file, file, _changed(_component(_rdm())), _changed(_component(_mage())), _changed(_run()))


def _mage() -> MageTransformer:
    torch.manual_seed(0)
    return MageTransformer(
        grid_size=2,
        num_codes=8,
        width=8,
        depth=1,
        num_heads=2,
        decoder_depth=1,
        condition="none",
        representation_dim=None,
    )


def use_checkpoint(folder: Path) -> None:
    """What rcg-inspect, rcg-convert, a command that loads a model, and --resume do."""
    if (folder / "run").is_dir():
        CheckpointFolder(folder / "run", 2).load_newest()
        return
    if (folder / "model").is_dir():
        cls = MageTransformer if b"MageTransformer" in _peek(folder / "model" / "config.json") else RepresentationMLP
        _all_of(lambda: inspect_path(folder / "model").text(), lambda: load_model(cls, folder / "model"))
        return
    file = next(folder.glob("file.*"), folder / "file.pth")
    _all_of(lambda: inspect_path(file).text(), lambda: read_weights(file), lambda: convert(open_file(file)))


def _peek(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _all_of(*calls: Callable[[], Any]) -> None:
    """Make all calls, whatever the others are refused for; then raise the last refusal."""
    refused: Exception | None = None
    for call in calls:
        try:
            call()
        except (UserError, DecodeError) as e:
            refused = e
            said = str(e)
            if "\n" in said or not said.strip():
                raise
    if refused is not None:
        raise refused


# ---------------------------------------------------------------- caches


def _cache() -> Files:
    model = Encoder()
    with tempfile.TemporaryDirectory() as place:
        source = open_source("shapes:n=7,size=8")
        fields = {
            "representations": CacheField(model, model),
            "tokens": CacheField(model, lambda x: x.mean((1, 2, 3)).mul(9).long()[:, None], "uint16"),
        }
        build_cache(source, Path(place) / "cache", fields, 8, 2, shard_size=3, progress=False)
        return {str(p.relative_to(place)): p.read_bytes() for p in sorted(Path(place).rglob("*")) if p.is_file()}


def _table() -> Files:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "table"
        ConditionTable.create(
            folder,
            {
                "format": "rcg-inversion", "version": 1, "kind": "rcg", "model": "m", "model_hash": "h", "shape": [3], "count": 4,
                "image_size": 8, "source": {"name": "s", "fingerprint": "f"}, "class_names": ["a", "b"], "settings": {"lr": 0.1},
            },
            list("abcd"),
            np.array([0, 1, 0, 1]),
        )  # fmt: skip
        return {str(p.relative_to(place)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _cache_cases() -> st.SearchStrategy[Files]:
    cache = _changed(_cache())
    twice = cache.flatmap(_changed_again)
    return st.one_of(cache, cache, twice, _changed(_table()))


def _changed_again(files: Files) -> st.SearchStrategy[Files]:
    sound = {k: v for k, v in files.items() if k.endswith(".npy")}
    return (
        _changed(sound).map(lambda found: {**{k: v for k, v in files.items() if k not in sound}, **found})
        if sound
        else st.just(files)
    )


def use_cache(folder: Path) -> None:
    """What training does with a cache, rcg-cache with one that it finds, rcg-synthesize with a table."""
    if (folder / "table").is_dir():
        table = ConditionTable(folder / "table")
        table.mean(), table.fingerprint()
        for start in range(0, len(table), 2):
            table.recover(slice(start, start + 2))
        return

    def read() -> None:
        cache = Cache(folder / "cache")
        cache.batch(np.arange(len(cache))[:8], np.arange(len(cache), dtype=np.uint64)[:8])
        cache.all(next(iter(cache.fields)), limit=8)

    def go_on() -> None:
        model = Encoder()
        build_cache(
            open_source("shapes:n=7,size=8"),
            folder / "cache",
            {"representations": CacheField(model, model)},
            8,
            2,
            progress=False,
        )

    _all_of(read, lambda: inspect_path(folder / "cache").text(), go_on)


# ---------------------------------------------------------------- shards, archives, tables


def _tables() -> Files:
    """Parquet and Arrow files, where pyarrow is installed."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return {}
    picture = pictures()["rgb.png"]
    table = pa.table({"image": [{"bytes": picture, "path": f"{i}.png"} for i in range(5)], "label": [0, 1, 2, 1, 0]})
    plain, packed, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    parquet.write_table(table, plain, compression="none")
    parquet.write_table(table, packed, row_group_size=2)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return {"a.parquet": plain.getvalue(), "b.parquet": packed.getvalue(), "c.arrow": stream.getvalue()}


def _shard_cases() -> st.SearchStrategy[Files]:
    picture = pictures()["rgb.png"]
    with tempfile.TemporaryDirectory() as place:
        members = [
            ("0.json", b'{"caption": "a dog", "class": "dog"}'),
            ("0.0.png", picture),
            ("0.1.png", picture),
            ("1.png", picture),
        ]
        tar = write_tar(Path(place) / "a.tar", members).read_bytes()
        with zipfile.ZipFile(Path(place) / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in (
                ("d/a.0.png", picture),
                ("d/a.1.png", picture),
                ("d/a.txt", b"a dog"),
                ("e/b.0.png", picture),
            ):
                archive.writestr(name, data)
        packed = (Path(place) / "a.zip").read_bytes()
    found = [
        m.hostile_tar(picture).map(lambda d: {"a.tar": d}),
        m.damaged_bytes(tar).map(lambda d: {"a.tar": d}),
        st.tuples(m.hostile_tar(picture), m.damaged_bytes(tar)).map(lambda d: {"set/a.tar": d[0], "set/b.tar": d[1]}),
        m.hostile_zip(picture).map(lambda d: {"a.zip": d}),
        m.damaged_bytes(packed).map(lambda d: {"a.zip": d}),
        m.damaged_members(packed).map(lambda d: {"a.zip": d}),
    ]
    for name, data in _tables().items():
        found.append(m.damaged_bytes(data).map(lambda d, name=name: {name: d}))
    return st.one_of(found)


def use_shards(folder: Path) -> None:
    """Open the source and read it, as every command that takes --data does; its groups, as StableRep's training."""
    (place,) = folder.iterdir()
    before = set(folder.parent.rglob("*"))
    source = open_source(place, progress=False, threads=1)
    for i in range(len(source)):
        source.image(i)

    def positives() -> None:
        dataset = GroupedDataset(ImageDataset(source, 8), 1, 16)
        dataset.batch(np.arange(len(dataset)), np.arange(len(dataset), dtype=np.uint64))

    _all_of(source.groups, positives)
    if set(folder.parent.rglob("*")) != before:
        raise AssertionError("files were unpacked")


# ---------------------------------------------------------------- presets, captions, figures, statistics


def _stats() -> Files:
    rng = np.random.default_rng(0)
    images, packed = io.BytesIO(), io.BytesIO()
    array = rng.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    np.savez(images, array, np.array([0, 1, 1]))
    np.savez_compressed(packed, array, np.array([0, 1, 1]))
    with tempfile.TemporaryDirectory() as place:
        save_stats(Path(place) / "stats.npz", ImageStats.of(rng.standard_normal((6, 3))))
        return {
            "stats.npz": (Path(place) / "stats.npz").read_bytes(),
            "images.npz": images.getvalue(),
            "packed.npz": packed.getvalue(),
        }


PRESET = {"arch": "mage", "condition": "none", "lr": 5e-4, "steps": 600, "ema": True, "conv_channels": [32, 64]}
REPORT = {"format": 1, "metrics": {"fid": 3.5, "kid": {"value": 1.0}}, "notes": ["x"], "counts": {"generated": 3}}
MANIFEST = {"format": 1, "run": "abc", "model": "m", "settings": {"seed": 3, "num_images": 4}}


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


_LAUGHS = "a: &a0 [x,x]\n" + "".join(f"b{i}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(40))
"""Text that would be 9⁴⁰ long if anybody wrote it out."""
YAML_TRAPS = (
    _LAUGHS.encode(),
    b"!!python/object/apply:os.system ['true']", b"a: &a [*a]", b"? [a]\n: b", b"- 1\n- 2", b"\xff\xfe", b"a: 1\na: 2",
    b"a: 2001-01-01", b"\0: x", b"a: !!binary aGVsbG8=", b"{" * 2000, b"a: !!set {b, c}", b"config: rdm-b", b"1: 2", b"~: 3", b"help: true",
    b"a: &a [x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]",
)  # fmt: skip


def _text_cases() -> st.SearchStrategy[Files]:
    def of(name: str, cases: st.SearchStrategy[bytes]) -> st.SearchStrategy[Files]:
        return cases.map(lambda data: {name: data})

    lines = b'{"caption": "a dog"}\n"a cat"\n\n{"caption": "b"}\n'
    table = b'caption,class\na dog,dog\n"a, cat",cat\n'
    preset = st.one_of(
        m.damaged_value(PRESET).map(_yaml),
        m.damaged_bytes(_yaml(PRESET)),
        st.sampled_from(YAML_TRAPS),
        m.anything.map(_yaml),
    )
    stats = _stats()
    return st.one_of(
        of("preset.yaml", preset),
        of("preset.yaml", preset),
        of("metrics.json", m.damaged_json(REPORT)),
        of("sampling.json", m.damaged_json(MANIFEST)),
        of(
            "captions.jsonl",
            st.one_of(m.damaged_bytes(lines), m.anything.map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))),
        ),
        of("captions.csv", m.damaged_bytes(table)),
        of("captions.txt", m.damaged_bytes(table)),
        *(of(name, m.damaged_members(data)) for name, data in stats.items()),
    )


def use_text(folder: Path) -> None:
    """The reader of each."""
    (file,) = folder.iterdir()
    if file.name == "preset.yaml":
        preset_arguments(str(file))
        run_flags("rcg-train-generator", ["--config", str(file)])
    elif file.name == "metrics.json":
        read_report(file)
    elif file.name == "sampling.json":
        SamplingFolder(folder).read()
    elif file.name.startswith("captions"):
        read_captions(file)
    elif file.name == "stats.npz":
        load_stats(file)
    else:
        source = open_images(file)
        assert isinstance(source, ArraySource)
        if int(np.prod(source.sizes[0])) < 10**6 and len(source) < 10**4:
            for batch in ImageSet(source, "generated").batches(4):
                assert batch.dtype == torch.uint8


# ---------------------------------------------------------------- flags


def run_flags(command: str, arguments: list[str]) -> None:
    """Parse and check a command line as the command does; nothing runs."""
    module = import_module(COMMANDS[command].split(":")[0])
    said = io.StringIO()
    with (
        mock.patch.object(module, "run", return_value=None),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            module.main(arguments)
        except SystemExit as e:
            if e.code not in (0, None):
                if e.code != 2:
                    raise AssertionError(f"exit code {e.code}") from None
                raise Refused(said.getvalue()) from None


@cache
def _flags_of(command: str) -> tuple[str, ...]:
    from tests.test_bad_flags import configs_of, fields

    names = {flag for config in configs_of(command).values() for flag, _ in fields(config)}
    return (*sorted(names), "--config", "--help", "--no-resume", "--nonsense", "-x", "--")


@st.composite
def _flag_cases(draw: st.DrawFn) -> Files:
    command = draw(st.sampled_from(sorted(COMMANDS)))
    value = st.one_of(
        st.sampled_from(("3", "0.5", "x", "True", "none", "None", "shapes", "mage", "auto", "cpu", "1e3", "/dev/null", "/proc/self/mem", ".", "~", "a=b")),
        st.sampled_from([str(n) for n in m.HUGE]), st.sampled_from(m.WORDS), st.text(max_size=10), st.floats().map(str),
    )  # fmt: skip
    words: list[str] = []
    for _ in range(draw(st.integers(0, 5))):
        words.append(draw(st.sampled_from(_flags_of(command))))
        words += draw(st.lists(value, max_size=2))
    return {"words.json": json.dumps([command, *words]).encode()}


def use_flags(folder: Path) -> None:
    """The command's own parser and checks, with files and folders that are not there."""
    command, *words = json.loads((folder / "words.json").read_text())
    run_flags(command, [word.replace("\0", "0") for word in words])


@lru_cache(maxsize=1)
def targets() -> dict[str, Target]:
    """All kinds."""
    return {
        "images": Target(_image_cases(), use_images, 0.25),
        "checkpoints": Target(_checkpoint_cases(), use_checkpoint, 0.2),
        "caches": Target(_cache_cases(), use_cache, 0.1),
        "shards": Target(_shard_cases(), use_shards, 0.25),
        "texts": Target(_text_cases(), use_text, 0.12),
        "flags": Target(_flag_cases(), use_flags, 0.08),
    }
