"""Inversion: what is learned, that it equals Adam, that resumed runs equal unbroken ones, what is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.rng import derive_seed
from rcg.data.cache import Cache
from rcg.data.sources import open_source
from rcg.image_gen.families import FAMILIES
from rcg.inversion.invert import blocks_of, invert
from rcg.inversion.representations import RepresentationGenerator
from rcg.inversion.settings import Inversion
from rcg.inversion.stable_diffusion import StableDiffusion
from rcg.inversion.table import ConditionTable
from tests.components import get_dummy_pipeline
from tests.inversion.tiny import SIZE, WIDTH, pictures, stable_diffusion

CPU = torch.device("cpu")
QUICK = Inversion(steps=8, turn_steps=4, batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "data")


def run(model: Path, data: Path, out: Path, how: Inversion = QUICK, **more: Any) -> ConditionTable:
    source = open_source(data, progress=False)
    generator = StableDiffusion(model, SIZE, num_tokens=2)
    return invert(generator, source, out, how, model="m", device=CPU, progress=False, **more)


class Broken(Exception):
    pass


def test_the_table_names_images_and_labels(model: Path, data: Path, tmp_path: Path) -> None:
    table = run(model, data, tmp_path / "out")
    assert table.shape == (2, WIDTH)
    assert table.conditions.shape == (6, 2, WIDTH)
    assert table.ids[0] == "cat/0.png"
    assert table.labels is not None
    assert table.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert table.steps.tolist() == [8] * 6
    assert not list((tmp_path / "out").glob("pending-*"))


def test_a_full_disk_is_said_before_anything_is_learned(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def third_fails(*_: int) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", third_fails)
    with pytest.raises(OSError, match="No space left"):
        run(model, data, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {".lock"}
    assert run(model, data, tmp_path / "out").steps.tolist() == [8] * 6


def test_nobody_draws_from_what_was_killed(model: Path, data: Path, tmp_path: Path) -> None:
    def kill(turns: int) -> None:
        if turns == 3:
            raise Broken

    with pytest.raises(Broken):
        run(model, data, tmp_path / "out", watch=kill)
    table = ConditionTable(tmp_path / "out")
    assert table.steps.tolist() == [8] * 4 + [4] * 2
    with pytest.raises(
        UserError, match=r"2 of 6 images .* for all 8 steps; run the same .* with --steps 4 to take them"
    ):
        table.require_trained()
    run(model, data, tmp_path / "out", Inversion(steps=4, turn_steps=4, batch_size=4)).require_trained()
    with pytest.raises(Broken):
        run(model, data, tmp_path / "out", Inversion(steps=12, turn_steps=4, batch_size=4), watch=lambda turns: kill(3))
    with pytest.raises(UserError, match=r"6 of 6 images .* for all 12 steps"):
        ConditionTable(tmp_path / "out").require_trained()
    run(model, data, tmp_path / "out", Inversion(steps=12, turn_steps=4, batch_size=4)).require_trained()


def test_it_is_adam_on_the_rows_of_a_block(model: Path, data: Path, tmp_path: Path) -> None:
    """A dense table under torch's Adam, with the whole loss of a block, ends at the same numbers."""
    table = run(model, data, tmp_path / "out")
    generator = StableDiffusion(model, SIZE, num_tokens=2)
    generator.prepare(CPU, False, False)
    cache = Cache(tmp_path / "out/codes")
    for block in blocks_of(6, 4):
        rows = np.arange(block.start, block.stop)
        seeds = [derive_seed(0, 1, int(r)) for r in rows]
        batch = cache.batch(rows, np.zeros(len(rows), np.uint64))
        dense = torch.nn.Parameter(torch.zeros(6, 2, WIDTH))
        with torch.no_grad():
            dense[block] = generator.start(batch, seeds)
        adam = torch.optim.Adam([dense], 3e-2)
        for step in range(8):
            adam.zero_grad()
            generator.loss(batch, dense[block], seeds, step).backward()
            adam.step()
        np.testing.assert_array_equal(dense.detach()[block].numpy(), table.conditions[block])
        np.testing.assert_array_equal(adam.state[dense]["exp_avg_sq"][block].numpy(), table.second[block])


@pytest.mark.parametrize("kill_after", [1, 3])
def test_a_killed_run_goes_on_to_the_same_conditions(model: Path, data: Path, tmp_path: Path, kill_after: int) -> None:
    def kill(turns: int) -> None:
        if turns == kill_after:
            raise Broken

    whole = run(model, data, tmp_path / "whole")
    with pytest.raises(Broken):
        run(model, data, tmp_path / "out", watch=kill)
    resumed = run(model, data, tmp_path / "out")
    np.testing.assert_array_equal(whole.conditions, resumed.conditions)


def test_killed_within_a_commit(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows were half written: the next run writes them again from the file that was there first."""
    whole = run(model, data, tmp_path / "whole")
    commit = ConditionTable._apply

    def torn(self: ConditionTable, rows: slice, pending: Path) -> None:
        with np.load(pending) as held:
            self.conditions[rows] = held["conditions"]
        raise Broken

    monkeypatch.setattr(ConditionTable, "_apply", torn)
    with pytest.raises(Broken):
        run(model, data, tmp_path / "out")
    monkeypatch.setattr(ConditionTable, "_apply", commit)
    np.testing.assert_array_equal(whole.conditions, run(model, data, tmp_path / "out").conditions)


def test_turns_processes_and_more_steps_change_nothing(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(model, data, tmp_path / "whole")
    run(model, data, tmp_path / "out", Inversion(steps=3, turn_steps=3, batch_size=4))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        run(model, data, tmp_path / "out", Inversion(steps=8, turn_steps=2, batch_size=4))
    parts = ConditionTable(tmp_path / "out")
    np.testing.assert_array_equal(whole.conditions, parts.conditions)
    assert (tmp_path / "out/log-01.jsonl").is_file()


def test_a_process_without_a_block_computes_its_codes_all_the_same(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blocks, three processes, three files of codes: the others wait for that of the third."""
    monkeypatch.setattr("rcg.inversion.invert.SHARD", 2)
    monkeypatch.setattr("rcg.inversion.invert.PATIENCE_S", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 1):
        monkeypatch.setenv("RANK", str(rank))
        if rank == 2:
            assert not run(model, data, tmp_path / "out").steps.any()
            continue
        with pytest.raises(UserError, match="1 shards of other processes are missing"):
            run(model, data, tmp_path / "out")
    monkeypatch.setenv("RANK", "0")
    run(model, data, tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    assert run(model, data, tmp_path / "out").steps.tolist() == [8] * 6


def test_a_table_is_drawn_from_where_it_cannot_be_written(model: Path, data: Path, tmp_path: Path) -> None:
    table = run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=6))
    read = ConditionTable(tmp_path / "out")
    assert table.conditions.flags.writeable
    assert not read.conditions.flags.writeable
    np.testing.assert_array_equal(read.mean(), table.mean())


def test_other_images_in_the_batch_change_an_image_by_rounding_only(model: Path, data: Path, tmp_path: Path) -> None:
    whole = run(model, data, tmp_path / "whole", Inversion(steps=2, batch_size=6))
    single = run(model, data, tmp_path / "single", Inversion(steps=2, batch_size=1))
    np.testing.assert_allclose(whole.conditions, single.conditions, atol=2e-4)


def losses(table: ConditionTable, generator: Any, cache: Cache, roll: int) -> Tensor:
    """The loss of each image's codes under the condition of the image `roll` places on, over 32 times."""
    found = []
    for row in range(len(table)):
        batch = cache.batch(np.array([row]), np.zeros(1, np.uint64))
        batch = {k: v.repeat(32, *[1] * (v.ndim - 1)) for k, v in batch.items()}
        c = torch.from_numpy(np.array(table.conditions[(row + roll) % len(table)]))
        with torch.no_grad():
            found.append(generator.loss(batch, c.expand(32, *c.shape), [derive_seed(9, i) for i in range(32)], 0))
    return torch.stack(found) / 32


def test_the_loss_falls_and_an_image_is_nearest_to_its_own_condition(data: Path, tmp_path: Path) -> None:
    """A U-Net with random weights that predicts clean latents: what it draws, its condition alone decides."""
    model = stable_diffusion(tmp_path / "model", scheduler={"prediction_type": "sample"})
    table = run(model, data, tmp_path / "out", Inversion(steps=80, turn_steps=20, batch_size=6, lr=0.1))
    lines = [json.loads(line) for line in (tmp_path / "out/log-00.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60, 80]
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]
    generator = StableDiffusion(model, SIZE, num_tokens=2, steps=10)
    generator.prepare(CPU, False, False)
    cache = Cache(tmp_path / "out/codes")
    own = float(losses(table, generator, cache, 0).mean())
    others = [float(losses(table, generator, cache, roll).mean()) for roll in (1, 3)]
    assert own < min(others)
    real = cache.batch(np.arange(6), np.zeros(6, np.uint64))["latents"]
    drawn = latents_of(generator, torch.from_numpy(np.array(table.conditions)))
    distance = torch.cdist(drawn.flatten(1), real.flatten(1))
    apart = distance[~torch.eye(6, dtype=torch.bool)]
    assert float(distance.diagonal().mean()) < float(apart.mean())


def latents_of(generator: StableDiffusion, conditions: Tensor, scale: float = 1.0) -> Tensor:
    """What is drawn, before it is decoded."""
    generator.codec.decode = lambda latents, precision="fp32": latents  # type: ignore[method-assign]
    return generator.draw(conditions, [scale] * len(conditions), list(range(len(conditions))))


def test_images_of_a_batch_are_drawn_as_alone_and_guidance_acts(model: Path) -> None:
    generator = StableDiffusion(model, SIZE, num_tokens=2, steps=3)
    conditions = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="unconditional"):
        generator.draw(conditions, [2.0] * 3, [0, 1, 2])
    generator.unconditional = conditions.mean(dim=0)
    whole = generator.draw(conditions, [1.0, 2.0, 3.0], [0, 1, 2])
    for i in range(3):
        alone = generator.draw(conditions[i : i + 1], [[1.0, 2.0, 3.0][i]], [i])
        torch.testing.assert_close(whole[i : i + 1], alone, atol=1e-6, rtol=0)
    assert whole.shape == (3, 3, SIZE, SIZE)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    plain, guided = latents_of(generator, conditions), latents_of(generator, conditions, 3.0)
    assert not torch.allclose(plain, guided, atol=1e-4)


def test_codes_are_computed_once(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model, data, tmp_path / "out", Inversion(steps=2, turn_steps=2, batch_size=4))
    from rcg.image_gen.tokenizers.autoencoder import LatentCodec

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(LatentCodec, "encode", never)
    run(model, data, tmp_path / "out", QUICK)


def test_bf16_and_checkpointing(model: Path, data: Path, tmp_path: Path) -> None:
    plain = run(model, data, tmp_path / "plain")
    same = run(model, data, tmp_path / "same", checkpointing=True)
    np.testing.assert_allclose(plain.conditions, same.conditions, atol=1e-5)
    half = run(model, data, tmp_path / "half", bf16=True)
    assert np.isfinite(half.conditions).all()
    assert not np.array_equal(half.conditions, plain.conditions)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"lr": 1.0}, "lr"), ({"seed": 5}, "seed"), ({"batch_size": 3}, "batch_size"), ({"beta1": 0.5}, "betas")],
)
def test_another_inversion_in_the_folder_is_refused(
    change: dict[str, Any], says: str, model: Path, data: Path, tmp_path: Path
) -> None:
    run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=4))
    with pytest.raises(UserError, match=says):
        run(model, data, tmp_path / "out", Inversion(**{"steps": 2, "batch_size": 4, **change}))


def test_a_batch_that_was_too_large_may_be_smaller_the_next_time(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as m:
        m.setattr(StableDiffusion, "loss", full)
        with pytest.raises(MemoryError):
            run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=6))
    with pytest.raises(UserError, match="seed"):
        run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=6, seed=1))
    with monkeypatch.context() as m:
        m.setattr(ConditionTable, "_apply", full)
        with pytest.raises(MemoryError):
            run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=6))
    assert list((tmp_path / "out").glob("pending-*"))
    table = run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=4))
    assert table.manifest["settings"]["batch_size"] == 4
    assert not list((tmp_path / "out").glob("pending-*"))


def test_other_images_and_other_files_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    table = run(model, data, tmp_path / "out", Inversion(steps=1, batch_size=4))
    with pytest.raises(UserError, match="count"):
        run(model, pictures(tmp_path / "more", per_class=4), tmp_path / "out", Inversion(steps=1, batch_size=4))
    with pytest.raises(UserError, match="same images with other labels"):
        ConditionTable.create(tmp_path / "out", table.manifest, table.ids, np.array([1, 0, 0, 0, 1, 1]))
    before = table.fingerprint()
    np.save(tmp_path / "out/labels.npy", np.array([1, 0, 0, 0, 1, 1]))
    assert ConditionTable(tmp_path / "out").fingerprint() != before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.*notes\.txt"):
        run(model, data, tmp_path / "full")


def test_a_loss_that_is_not_finite_is_not_kept(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        run(model, data, tmp_path / "out", Inversion(steps=3, turn_steps=3, batch_size=6, lr=1e30))
    assert ConditionTable(tmp_path / "out").steps.sum() == 0


@pytest.mark.parametrize(
    ("unet", "scheduler", "says"),
    [
        ({"in_channels": 9}, {}, "inpainting"),
        ({"num_class_embeds": 4}, {}, "a class"),
        ({}, {"prediction_type": "flow"}, "flow"),
    ],
)
def test_pipelines_that_take_more_than_a_text_are_refused(
    unet: dict[str, Any], scheduler: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        StableDiffusion(stable_diffusion(tmp_path / "m", unet, scheduler), SIZE)


def test_damaged_pipelines_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model_index\.json"):
        StableDiffusion(tmp_path, SIZE)
    with pytest.raises(UserError, match="multiple of 2"):
        StableDiffusion(model, 15)
    broken = stable_diffusion(tmp_path / "m")
    (broken / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        StableDiffusion(broken, SIZE)


def test_velocity_prediction_has_its_own_target(model: Path, data: Path, tmp_path: Path) -> None:
    v = stable_diffusion(tmp_path / "v", scheduler={"prediction_type": "v_prediction"})
    batch = {"latents": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    found = []
    for folder in (model, v):
        generator = StableDiffusion(folder, SIZE, num_tokens=2)
        found.append(float(generator.loss(batch, torch.zeros(2, 2, WIDTH), [1, 2], 0)))
    assert found[0] != found[1]


def test_the_empty_prompt_is_what_the_text_encoder_makes_of_no_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = stable_diffusion(tmp_path / "m")
    generator = StableDiffusion(folder, SIZE, num_tokens=2, steps=2)
    with pytest.raises(UserError, match="no text_encoder"):
        generator.empty_prompt()
    config = transformers.CLIPTextConfig(
        vocab_size=4, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=7, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    encoder = transformers.CLIPTextModel(config).eval()
    encoder.save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    words = {"a</w>": 0, "a": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}
    (folder / "tokenizer/vocab.json").write_text(json.dumps(words))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    found = generator.empty_prompt()
    expected = encoder(torch.tensor([[2] + [3] * 6]))[0][0]
    torch.testing.assert_close(found, expected)
    generator.unconditional = found
    assert generator.draw(torch.zeros(1, 2, WIDTH), [2.0], [0]).shape == (1, 3, SIZE, SIZE)


# ---------------------------------------------------------------------- our own generators


def test_a_representation_begins_as_the_encoders_and_the_loss_falls(data: Path, tmp_path: Path) -> None:
    pipe = get_dummy_pipeline()
    source = open_source(data, progress=False)
    how = Inversion(steps=60, turn_steps=20, batch_size=6, lr=0.05)
    table = invert(RepresentationGenerator(pipe), source, tmp_path / "out", how, model="m", device=CPU, progress=False)
    lines = [json.loads(line)["loss"] for line in (tmp_path / "out/log-00.jsonl").read_text().splitlines()]
    assert lines[-1] < lines[0]
    still = invert(
        RepresentationGenerator(pipe), source, tmp_path / "still", Inversion(steps=1, batch_size=6, lr=1e-9), model="m",
        device=CPU, progress=False,
    )  # fmt: skip
    images = [source.image(i) for i in range(6)]
    np.testing.assert_allclose(still.conditions, pipe.encode(images).numpy(), atol=1e-4)
    assert table.shape == (pipe.representation_dim,)
    assert np.abs(table.conditions - still.conditions).max() > 0.01
    again = invert(
        RepresentationGenerator(pipe), source, tmp_path / "parts", Inversion(20, 5, 6, 0.05), model="m", device=CPU, progress=False
    )  # fmt: skip
    again = invert(
        RepresentationGenerator(pipe), source, tmp_path / "parts", how, model="m", device=CPU, progress=False
    )
    np.testing.assert_array_equal(table.conditions, again.conditions)


def test_from_zero_the_loss_falls_without_an_encoder(data: Path, tmp_path: Path) -> None:
    source = open_source(data, progress=False)
    how = Inversion(steps=60, turn_steps=20, batch_size=6, lr=0.05)
    blind = RepresentationGenerator(get_dummy_pipeline(without=("encoder",)), init="zero")
    assert not blind.start({}, [0, 1]).any()
    table = invert(blind, source, tmp_path / "out", how, model="m", device=CPU, progress=False)
    lines = [json.loads(line)["loss"] for line in (tmp_path / "out/log-00.jsonl").read_text().splitlines()]
    assert lines[-1] < lines[0]
    assert table.manifest["settings"]["beginning"] == "zero"
    begun = RepresentationGenerator(get_dummy_pipeline())
    begun.identity = blind.identity  # type: ignore[method-assign]
    with pytest.raises(UserError, match="with beginning 'zero'"):
        invert(begun, source, tmp_path / "out", how, model="m", device=CPU, progress=False)


def test_every_family_has_an_objective_that_can_be_inverted() -> None:
    from tests.image_gen.adm.models import tiny as adm
    from tests.image_gen.ldm.models import tiny as ldm
    from tests.image_gen.pixel_dit.models import tiny as pixel_dit

    made: dict[str, Any] = {"adm": adm(), "ldm": ldm(), "pixel-dit": pixel_dit()}
    for arch, model in made.items():
        from rcg.image_gen.diffusion.generator import default_scheduler
        from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler

        family = FAMILIES[arch]  # type: ignore[index]
        scheduler = KarrasFlowScheduler() if arch == "pixel-dit" else default_scheduler()
        objective = family.objective(family.generator(model, scheduler, None, None))
        config = model.config
        side = config.get("image_size") or config.sample_size
        codes = torch.randint(256, (3, config.in_channels, side, side), dtype=torch.uint8)
        codes = codes.float() / 255 if arch == "ldm" else codes
        r = torch.randn(3, config.representation_dim, requires_grad=True)
        objective.forward({family.field: codes, "representations": r}, condition_noise=torch.ones(3))["loss"].backward()
        assert r.grad is not None
        assert (r.grad.abs().sum(dim=1) > 0).all()
    assert set(FAMILIES) == {"mage", "dit", "pixel-dit", "adm", "edm", "ldm"}


def test_pipelines_without_an_encoder_are_refused() -> None:
    with pytest.raises(UserError, match="no encoder"):
        RepresentationGenerator(get_dummy_pipeline(without=("encoder",)))
    with pytest.raises(UserError, match="takes no representations"):
        RepresentationGenerator(get_dummy_pipeline(condition="class"))
