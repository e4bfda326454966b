"""Training a tokenizer: the losses against hand-written ones, what may learn from what, and the stage in the loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rcg.core.errors import UserError
from rcg.core.files import encoding_hash, model_hash
from rcg.data.images import ImageDataset
from rcg.data.sources import open_source
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.image_gen.tokenizers.settings import CodebookSettings, TokenizerLoss
from rcg.image_gen.tokenizers.train import DiscriminatorObjective, TokenizerObjective, TokenizerStage, perplexity
from rcg.image_gen.tokenizers.vq_losses import (
    ChosenMaps,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    perceptual_distance,
)
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.scripts.train_tokenizer import main
from rcg.training.config import TrainingConfig
from rcg.training.loop import train
from rcg.training.subset import Subset, hold_out


def tiny(seed: int = 0) -> VQTokenizer:
    torch.manual_seed(seed)
    return VQTokenizer(
        base_channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, num_codes=16, code_dim=4, norm_groups=4
    )


class Maps(nn.Module):
    """A frozen network with two feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        first = self.conv(images)
        return [first, F.relu(first).square()]


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def rebuilt(tokenizer: VQTokenizer) -> tuple[Tensor, Tensor]:
    """Reconstructions of `images()`, differentiable, and the tokens between."""
    quantized = tokenizer.quantize_latents(tokenizer.encode_latents(images()))
    return tokenizer.decode_latents(quantized.latents), quantized.ids


def test_loss_is_the_sum_of_its_weighted_terms() -> None:
    torch.manual_seed(0)
    maps = Maps()
    loss = TokenizerLoss(l1_weight=0.5, l2_weight=3.0, commitment_weight=0.2, perceptual_weight=0.7)
    objective = TokenizerObjective(tiny(), loss, maps, codebook=CodebookSettings(codebook_warmup=0))
    objective({"images": images()})  # places the codebook
    figures = objective({"images": images()})
    again, ids = rebuilt(objective.tokenizer)
    codes = objective.tokenizer.quantize.lookup(ids)
    latents = objective.tokenizer.encode_latents(images())
    error = again - images()
    distance = 0.0
    for a, b in zip(maps.feature_maps(again), maps.feature_maps(images()), strict=True):
        a = a / a.pow(2).sum(1, keepdim=True).sqrt().clamp(min=1e-6)
        b = b / b.pow(2).sum(1, keepdim=True).sqrt().clamp(min=1e-6)
        distance = distance + (a - b).pow(2).sum(1).mean() / 2
    expected = (
        0.5 * error.abs().mean() + 3 * error.pow(2).mean() + 0.2 * (latents - codes).pow(2).mean() + 0.7 * distance
    )
    torch.testing.assert_close(figures["loss"], expected)
    torch.testing.assert_close(figures["psnr"], -10 * torch.log10(error.detach().pow(2).mean()))
    figures["loss"].backward()
    assert all(p.grad is None for p in maps.parameters())
    assert objective.tokenizer.quantize.embedding.weight.grad is None
    trained = [*objective.tokenizer.encoder.parameters(), *objective.tokenizer.decoder.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert not any("conv.weight" in k and "upsample" not in k for k in objective.state_dict())  # maps are not kept


def test_quantisation_waits_for_the_warm_up() -> None:
    stage = TokenizerStage(tiny(), Grey(), codebook=CodebookSettings(codebook_warmup=2))
    codes = stage.tokenizer.quantize.embedding.weight
    before = codes.clone()
    for step in range(1, 3):
        figures = stage.objective({"images": images()})
        plain = stage.tokenizer.decode_latents(stage.tokenizer.encode_latents(images()))
        torch.testing.assert_close(figures["loss"], (plain - images()).abs().mean())
        stage.on_step_end(step, 9)
        assert torch.equal(codes, before)
    figures = stage.objective({"images": images()})
    assert float(figures["commitment"].detach()) < 0.1 * float(
        stage.tokenizer.encode_latents(images()).detach().var()
    )  # codes are there
    again, _ = rebuilt(stage.tokenizer)
    torch.testing.assert_close(figures["l1"], (again - images()).abs().mean().detach())


def test_step_and_start_are_known_without_reading_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, other = (TokenizerStage(tiny(), Grey(), codebook=CodebookSettings(codebook_warmup=2)) for _ in range(2))
    for step in range(1, 4):
        stage.objective({"images": images()})
        stage.on_step_end(step, 9)
    other.objective.load_state_dict(stage.objective.state_dict())

    def refuse(_: Tensor) -> bool:
        raise AssertionError("the device is waited for")

    monkeypatch.setattr(Tensor, "__int__", refuse)
    monkeypatch.setattr(Tensor, "__bool__", refuse)
    for one in (stage, other):
        assert "commitment" in one.objective({"images": images()})
        one.on_step_end(4, 9)


def test_chosen_maps_are_part_of_what_a_resumed_run_must_share() -> None:
    maps = Maps()
    stages = [TokenizerStage(tiny(), Grey(), perceptual=ChosenMaps(maps, [i])) for i in (0, 1)]
    assert stages[0].identity() != stages[1].identity()
    assert "perceptual_layers" not in TokenizerStage(tiny(), Grey(), perceptual=maps).identity()


def test_discriminator_is_nobody_elses() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    loss = TokenizerLoss(adversarial_weight=0.3, adversarial_adaptive=False, commitment_weight=0.0)
    objective = TokenizerObjective(
        tiny(), loss, discriminator=discriminator, codebook=CodebookSettings(codebook_warmup=0)
    )
    other = DiscriminatorObjective(discriminator, objective.exchange)
    objective({"images": images()})
    figures = objective({"images": images()})
    again, _ = rebuilt(objective.tokenizer)
    fooled = -discriminator(again).mean()
    torch.testing.assert_close(figures["loss"], (again - images()).abs().mean() + 0.3 * fooled)
    figures["loss"].backward()
    assert all(p.grad is None for p in discriminator.parameters())
    assert not any("discriminator" in k for k in objective.state_dict())
    theirs = other({"images": images()})
    real, fake = discriminator(images()), discriminator(again.detach())
    expected = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    torch.testing.assert_close(theirs["loss"], expected)
    before = objective.tokenizer.encoder.conv_in.weight.grad.clone()
    theirs["loss"].backward()
    assert torch.equal(objective.tokenizer.encoder.conv_in.weight.grad, before)
    assert all(p.grad is not None for p in discriminator.parameters())


def test_settings_are_checked_without_the_command_too() -> None:
    with pytest.raises(UserError, match="--codebook-decay is"):
        TokenizerStage(tiny(), Grey(), codebook=CodebookSettings(codebook_decay=1.5))
    with pytest.raises(UserError, match="a discriminator of 3 layers is too deep for 16 px"):
        TokenizerStage(
            tiny(), Grey(), loss=TokenizerLoss(adversarial_weight=1.0), discriminator=PatchDiscriminator(layers=3)
        )


def test_adversarial_term_waits_for_its_start() -> None:
    stage = TokenizerStage(
        tiny(), Grey(), loss=TokenizerLoss(adversarial_weight=1.0, adversarial_start=2), discriminator=PatchDiscriminator(width=8)
    )  # fmt: skip
    seen = []
    for step in range(1, 5):
        figures = stage.objectives["tokenizer"]({"images": images()})
        theirs = stage.objectives["discriminator"]({"images": images()})
        theirs["loss"].backward()
        seen.append(("adversarial" in figures, float(theirs["loss"].detach()) > 0))
        stage.on_step_end(step, 4)
    assert seen == [(False, False), (False, False), (True, True), (True, True)]
    assert all(p.grad is not None for p in stage.objectives["discriminator"].parameters())
    assert {g["weight_decay"] for g in stage.param_groups("discriminator", 0.1)} == {0.0}
    assert {g["weight_decay"] for g in stage.param_groups("tokenizer", 0.1)} == {0.0, 0.1}


def test_adaptive_weight_balances_the_last_layer() -> None:
    layer = torch.tensor([[1.0, 2.0]], requires_grad=True)
    reference, adversarial = 3 * layer.sum(), -0.5 * layer.sum()
    weight = adaptive_weight(reference, adversarial, layer)
    assert float(weight) == pytest.approx(3 * 2**0.5 / (0.5 * 2**0.5 + 1e-4))
    assert not weight.requires_grad


def test_small_functions() -> None:
    assert float(perplexity(torch.tensor([3.0, 3.0, 3.0, 0.0]))) == pytest.approx(3.0)
    assert float(perplexity(torch.tensor([7.0, 0.0]))) == pytest.approx(1.0)
    assert float(hinge_discriminator_loss(torch.tensor([0.0, 2.0]), torch.tensor([0.0, -2.0]))) == pytest.approx(0.5)
    a = torch.randn(2, 5, 3, 3)
    assert float(perceptual_distance([a], [3 * a])) == pytest.approx(0, abs=1e-6)
    assert float(perceptual_distance([a], [-a])) == pytest.approx(4)
    assert PatchDiscriminator(width=8, layers=2)(torch.rand(1, 3, 32, 32)).shape == (1, 1, 6, 6)
    with pytest.raises(UserError, match="too deep"):
        PatchDiscriminator(width=8, layers=4).check_size(32)


def test_hold_out_splits() -> None:
    kept, held = hold_out(1000, 64)
    assert sorted([*kept, *held]) == list(range(1000))
    assert len(held) == 64
    assert len(hold_out(100, 10)[1]) == 10
    assert np.array_equal(hold_out(1000, 64)[1], held)


class Grey:
    """Plain grey images of 16 px."""

    fingerprint = "grey"

    def __len__(self) -> int:
        return 24

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
        level = torch.from_numpy(indices * 10).to(torch.uint8)
        return {"images": level[:, None, None, None].expand(-1, 3, 16, 16).contiguous()}


def test_subset_reads_its_own_samples() -> None:
    part = Subset(Grey(), np.array([3, 7, 11]))
    batch = part.batch(np.array([2, 0]), np.zeros(2, np.uint64))
    assert batch["images"][:, 0, 0, 0].tolist() == [110, 30]
    assert len({part.fingerprint, Subset(Grey(), np.array([3, 7])).fingerprint, "grey"}) == 3


def test_figures_of_the_evaluation() -> None:
    stage = TokenizerStage(tiny(), Grey(), eval_images=10, eval_batch=4)
    figures = stage.evaluate(0)
    indices = np.linspace(0, 23, 10).round().astype(int)
    plain = Grey().batch(indices, np.zeros(10))["images"] / 255
    with torch.no_grad():
        ids = stage.tokenizer.encode(plain)
        error = (stage.tokenizer.decode(ids) - plain).double()
    assert figures["l1"] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    each = [-10 * np.log10(float(e.pow(2).mean())) for e in error]
    assert figures["psnr"] == pytest.approx(np.mean(each), rel=1e-5)
    assert figures["codes_used"] == pytest.approx(len(ids.unique()) / 16)
    assert stage.preview(0).size == (8 * 18 + 2, 6 * 18 + 2)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (8, 8), (10, 8), (24, 8)])
def test_a_preview_has_every_image_over_its_reconstruction(count: int, columns: int) -> None:
    stage = TokenizerStage(tiny(), Grey(), Subset(Grey(), np.arange(count)))
    picture = np.asarray(stage.preview(0))
    rows = count // columns
    assert picture.shape == (2 * rows * 18 + 2, columns * 18 + 2, 3)
    for row in range(rows):  # image i is of grey 10 i, see `Grey`
        shown = [int(picture[2 * row * 18 + 2, column * 18 + 2, 0]) for column in range(columns)]
        places = np.linspace(0, count - 1, rows * columns).round().astype(int)
        assert shown == (10 * places[row * columns : (row + 1) * columns]).tolist()


# ---------------------------------------------------------------- in the loop


def shapes_stage(**loss: Any) -> TokenizerStage:
    dataset = ImageDataset(open_source("shapes:n=48,size=16"), 16, "crop_flip")
    torch.manual_seed(0)
    settings = CodebookSettings(codebook_decay=0.9, revive_after=4, codebook_warmup=2)
    discriminator = PatchDiscriminator(width=8) if loss.get("adversarial_weight") else None
    return TokenizerStage(
        tiny(), dataset, loss=TokenizerLoss(**loss), codebook=settings, discriminator=discriminator, eval_images=32
    )


def config(out: Path, steps: int, **changes: Any) -> TrainingConfig:
    values = {"batch_size": 16, "lr": 3e-3, "weight_decay": 0.0, "device": "cpu", "precision": "fp32", "log_every": 5}
    return TrainingConfig(out=out, steps=steps, **{**values, **changes})


def test_it_learns_and_uses_its_codes(tmp_path: Path) -> None:
    stage = shapes_stage()
    before = stage.evaluate(0)
    after = train(stage, config(tmp_path, 80))
    assert after["psnr"] > before["psnr"] + 4
    assert after["codes_used"] > 0.8
    assert model_hash(VQTokenizer.from_pretrained(tmp_path)) == model_hash(stage.tokenizer)


def test_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    extra = {"adversarial_weight": 0.1, "adversarial_start": 3}
    train(shapes_stage(**extra), config(tmp_path / "a", 9, save_every=5, micro_batch_size=8, lr_schedule="constant"))
    train(shapes_stage(**extra), config(tmp_path / "b", 5, save_every=5, micro_batch_size=8, lr_schedule="constant"))
    train(
        shapes_stage(**extra),
        config(tmp_path / "b", 9, save_every=5, micro_batch_size=8, lr_schedule="constant", resume=True),
    )
    one, two = (load_file(tmp_path / x / "training/checkpoints/step-00000009/state.safetensors") for x in "ab")
    assert one.keys() == two.keys()
    assert any("discriminator" in k for k in one)
    assert any("codebook.sums" in k for k in one)
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


def test_a_run_that_ends_within_the_warm_up_has_codes_and_goes_on_as_if_it_had_none(tmp_path: Path) -> None:
    def warming() -> TokenizerStage:
        stage = shapes_stage()
        stage.objective.codebook_warmup = 6
        return stage

    same = {"save_every": 4, "lr_schedule": "constant", "micro_batch_size": 8}
    short = train(warming(), config(tmp_path / "b", 4, **same))
    assert short["codes_used"] > 0.8  # codes that were never placed are all next to 0, and latents choose few of them
    train(warming(), config(tmp_path / "a", 9, **same))
    train(warming(), config(tmp_path / "b", 9, **same, resume=True))
    one, two = (load_file(tmp_path / x / "training/checkpoints/step-00000009/state.safetensors") for x in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)


def finite_stage() -> TokenizerStage:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, num_codes=45, code_dim=3, norm_groups=4,
        levels=(5, 3, 3), patch_size=2,
    )  # fmt: skip
    return TokenizerStage(tokenizer, ImageDataset(open_source("shapes:n=48,size=16"), 16, "crop_flip"), eval_images=32)


def test_finite_scalar_codes_are_learned_without_a_codebook(tmp_path: Path) -> None:
    stage = finite_stage()
    objective = stage.objective
    figures = objective({"images": images()})
    again, ids = rebuilt(objective.tokenizer)
    torch.testing.assert_close(figures["loss"], (again - images()).abs().mean())
    counts = torch.bincount(ids.flatten(), minlength=45)
    torch.testing.assert_close(figures["perplexity"], perplexity(counts.float()))
    figures["loss"].backward()
    assert all(p.grad is not None for p in objective.tokenizer.parameters())
    assert set(stage.ema_modules()) == {"encoder", "decoder"}
    assert "codebook" not in stage.identity()
    assert stage.parts_matter(2) is None  # there are no codes to be started or revived
    assert "codes are started" in str(shapes_stage().parts_matter(2))
    before = stage.evaluate(0)
    after = train(stage, config(tmp_path, 40, ema_decay=0.9))
    assert after["psnr"] > before["psnr"] + 2
    exported = VQTokenizer.from_pretrained(tmp_path)
    assert model_hash(exported) != model_hash(stage.tokenizer)  # it is the moving average, which was evaluated, too
    stage.tokenizer = exported
    assert stage.evaluate(0)["psnr"] == pytest.approx(after["psnr"], abs=1e-3)


def test_resumed_run_of_finite_scalar_codes_equals_the_unbroken_one(tmp_path: Path) -> None:
    same = {"save_every": 3, "lr_schedule": "constant", "ema_decay": 0.9}
    train(finite_stage(), config(tmp_path / "a", 6, **same))
    train(finite_stage(), config(tmp_path / "b", 3, **same))
    train(finite_stage(), config(tmp_path / "b", 6, **same, resume=True))
    one, two = (load_file(tmp_path / x / "training/checkpoints/step-00000006/state.safetensors") for x in "ab")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_command_with_levels(tmp_path: Path) -> None:
    arguments = ["--data", "shapes:n=60,size=16", "--image-size", "16", "--steps", "2", "--batch-size", "12"]
    arguments += ["--device", "cpu", "--base-channels", "8", "--factor", "4", "--patch-size", "2"]
    main([*arguments, "--levels", "8", "5", "5", "--out", str(tmp_path / "t")])
    tokenizer = VQTokenizer.from_pretrained(tmp_path / "t")
    assert (tokenizer.config.num_codes, tokenizer.config.code_dim, tokenizer.factor) == (200, 3, 4)
    assert list(tokenizer.config.levels) == [8, 5, 5]
    lines = [json.loads(line) for line in (tmp_path / "t/training/log.jsonl").read_text().splitlines()]
    assert max(line.get("eval/psnr", 0) for line in lines) > 14  # it began with principal components, not from nothing
    main([*arguments, "--levels", "8", "5", "5", "--decoder-of", str(tmp_path / "t"), "--out", str(tmp_path / "d")])
    tuned = VQTokenizer.from_pretrained(tmp_path / "d")
    assert encoding_hash(tuned) == encoding_hash(tokenizer)
    assert model_hash(tuned) != model_hash(tokenizer)


def test_command(tmp_path: Path) -> None:
    arguments = ["--data", "shapes:n=60,size=16", "--out", str(tmp_path / "t"), "--image-size", "16", "--steps", "4"]
    size = ["--base-channels", "8", "--num-codes", "24", "--code-dim", "4", "--batch-size", "12", "--factor", "8"]
    main([*arguments, *size, "--device", "cpu", "--adversarial-weight", "0.1", "--adversarial-start", "2",
          "--discriminator-channels", "8", "--discriminator-layers", "2"])  # fmt: skip
    tokenizer = VQTokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer.factor == 8
    assert tokenizer.config.image_size == 16
    assert tokenizer.encode(torch.rand(1, 3, 16, 16)).shape == (1, 2, 2)
    lines = [json.loads(line) for line in (tmp_path / "t/training/log.jsonl").read_text().splitlines()]
    assert {"eval/psnr", "eval/codes_used"} <= set().union(*lines)
    assert list((tmp_path / "t/training/samples").glob("*.png"))


def test_command_with_a_perceptual_encoder(tmp_path: Path, capsys: Any) -> None:
    arch = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    SSLEncoder(arch="vit_tiny_patch16_224", arch_kwargs=arch, image_size=16).save_pretrained(tmp_path / "encoder")
    arguments = ["--data", "shapes:n=30,size=16", "--image-size", "16", "--base-channels", "8", "--num-codes", "24"]
    arguments += [
        "--batch-size",
        "4",
        "--steps",
        "2",
        "--log-every",
        "1",
        "--device",
        "cpu",
        "--perceptual-weight",
        "1",
    ]
    arguments += ["--perceptual-encoder", str(tmp_path / "encoder"), "--perceptual-layers"]
    main([*arguments, "0", "-1", "--out", str(tmp_path / "t")])
    lines = [json.loads(line) for line in (tmp_path / "t/training/log.jsonl").read_text().splitlines()]
    assert [line["perceptual"] > 0 for line in lines if "perceptual" in line] == [True, True]
    weights = load_file(tmp_path / "t/diffusion_pytorch_model.safetensors")
    assert not any("backbone" in k for k in weights)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "7", "--out", str(tmp_path / "u")])
    assert stopped.value.code == 2
    assert "has no layers [7]" in capsys.readouterr().err
    assert not (tmp_path / "u").exists()


def test_decoder_alone(tmp_path: Path, capsys: Any) -> None:
    tiny().save_pretrained(tmp_path / "t")
    flags = ["--data", "shapes:n=60,size=16", "--image-size", "16", "--decoder-of", str(tmp_path / "t"), "--steps", "4"]
    flags += ["--batch-size", "12", "--save-every", "2", "--log-every", "1", "--device", "cpu", "--ema-decay", "0.5"]
    flags += ["--adversarial-weight", "0.1", "--discriminator-channels", "8"]
    main([*flags, "--out", str(tmp_path / "d"), "--num-codes", "16", "--factor", "4"])
    before, after = VQTokenizer.from_pretrained(tmp_path / "t"), VQTokenizer.from_pretrained(tmp_path / "d")
    old, new = before.state_dict(), after.state_dict()
    assert {k for k in old if not torch.equal(old[k], new[k])} == {k for k in old if k.startswith("decoder.")}
    assert torch.equal(before.encode(images()), after.encode(images()))
    assert encoding_hash(before) == encoding_hash(after)
    assert model_hash(before) != model_hash(after)
    lines = [json.loads(line) for line in (tmp_path / "d/training/log.jsonl").read_text().splitlines()]
    assert min(line["tokenizer/adversarial_weight"] for line in lines if "tokenizer/l1" in line) > 0
    state = load_file(tmp_path / "d/training/checkpoints/step-00000004/state.safetensors")
    raw = {k: v for k, v in state.items() if k.endswith("decoder.conv_out.weight")}
    assert len({tuple(v.flatten().tolist()) for v in raw.values()}) == 2  # the weights and their moving average
    assert any(torch.equal(v, new["decoder.conv_out.weight"]) for k, v in raw.items() if k.startswith("ema."))

    main([*flags, "--out", str(tmp_path / "e"), "--steps", "2", "--lr-schedule", "constant"])
    main([*flags, "--out", str(tmp_path / "e"), "--resume", "--lr-schedule", "constant"])
    main([*flags, "--out", str(tmp_path / "f"), "--lr-schedule", "constant"])
    one, two = (VQTokenizer.from_pretrained(tmp_path / x).state_dict() for x in "ef")
    assert all(torch.equal(one[k], two[k]) for k in one)

    tiny(1).save_pretrained(tmp_path / "u")
    for more, words in (
        (["--num-codes", "24"], "--num-codes 24 is not that of"),
        (["--factor", "8"], "--factor 8 is not that of"),
        (["--image-size", "18"], "not a multiple of 4"),
        (["--decoder-of", str(tmp_path / "none")], "none"),
        (["--out", str(tmp_path / "d"), "--resume", "--decoder-of", str(tmp_path / "u")], "tokens"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*flags, "--out", str(tmp_path / "g"), *more])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--factor", "5"], "none of 1, 2, 4, 8, 16"),
        (["--factor", "8", "--channel-multipliers", "1", "2"], "factor of 2"),
        (["--factor", "6", "--patch-size", "4"], "none of 1, 2, 4, 8, 16 times --patch-size 4"),
        (
            ["--factor", "4", "--patch-size", "4", "--channel-multipliers", "1", "2"],
            "at --patch-size 4 make a factor of 8",
        ),
        (["--levels", "8", "2"], "--levels[1] is 2, but it must be at least 3"),
        (["--levels", "256", "256", "257"], "must be at most 256"),
        (["--levels", "256", "256", "256", "3"], "more than 2^24"),
        (["--levels", "8", "5", "--num-codes", "41"], "--num-codes is 41, but --levels make it 40"),
        (["--levels", "8", "5", "--code-dim", "3"], "--code-dim is 3, but --levels make it 2"),
        (["--image-size", "30"], "not a multiple"),
        (["--perceptual-weight", "1"], "--perceptual-encoder"),
        (["--perceptual-layers", "0"], "--perceptual-layers has no effect without --perceptual-encoder"),
        (["--no-flip", "--crop-scale", "0.5"], "--crop-scale has no effect with --no-flip"),
        (["--l1-weight", "0"], "nothing would be reconstructed"),
        (["--codebook-decay", "1"], "must lie in [0, 1)"),
        (["--batch-size", "0"], "must be at least 1"),
        (["--adversarial-weight", "1", "--discriminator-layers", "5"], "too deep"),
    ],
)
def test_mistakes_end_with_one_sentence(flags: list[str], words: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--data", "shapes:n=20,size=16", "--out", str(tmp_path / "t"), "--steps", "1", *flags])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
