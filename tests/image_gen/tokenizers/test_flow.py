"""The flow decoder: its loss and sampler against hand-written ones, what its images depend on, and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.files import encoding_hash, model_hash
from rcg.core.rng import Noise, row_seeds
from rcg.data.images import ImageDataset
from rcg.data.sources import open_source
from rcg.image_gen.pixel_dit.transformer import PixelDiT
from rcg.image_gen.pixels.sampling import sample_images
from rcg.image_gen.pixels.scheduler import KarrasFlowScheduler
from rcg.image_gen.tokenizers.codec import TokenCodec, codec_of
from rcg.image_gen.tokenizers.flow.decoder import FlowSizes
from rcg.image_gen.tokenizers.flow.objective import FlowDecoderObjective
from rcg.image_gen.tokenizers.flow.train import FlowDecoderStage
from rcg.image_gen.tokenizers.train import TokenizerLoss, TokenizerObjective
from rcg.image_gen.tokenizers.vq_tokenizer import VQTokenizer
from rcg.scripts import train_generator
from rcg.scripts.train_tokenizer import main
from rcg.training.config import TrainingConfig
from rcg.training.loop import train

SIZES: FlowSizes = {
    "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "conv_channels": [8], "mlp_ratio": 2.0, "steps": 3,
}  # fmt: skip


def plain() -> VQTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(base_channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1, num_codes=36, code_dim=3,
                       levels=(4, 3, 3), norm_groups=2, image_size=16)  # fmt: skip


def awake() -> VQTokenizer:
    """With a flow decoder none of whose weights is zero."""
    tokenizer = plain().with_flow_decoder(SIZES)
    torch.manual_seed(1)
    assert tokenizer.flow is not None
    for parameter in tokenizer.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return tokenizer.eval()


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def blurred(tokenizer: VQTokenizer, ids: Tensor) -> Tensor:
    """What the first decoder makes of tokens, in [−1, 1]."""
    return 2 * tokenizer.decode_latents(tokenizer.quantize.lookup(ids)).clamp(0, 1) - 1


def test_the_loss_is_that_of_flow_matching_given_the_blurred_image() -> None:
    tokenizer = awake()
    assert tokenizer.flow is not None
    objective = FlowDecoderObjective(tokenizer, noise_floor=0.2)
    times, noise = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.99]), torch.randn(5, 3, 16, 16)
    losses = objective.losses(images(), times, noise)
    signed, t = 2 * images() - 1, times[:, None, None, None]
    clean = tokenizer.flow(t * signed + (1 - t) * noise, times, blurred(tokenizer, tokenizer.encode(images())))
    expected = (clean - signed).square().mean((1, 2, 3)) / (1 - times).clamp(min=0.2).square()
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    for part in ("encoder", "quantize", "decoder", "flow"):
        trained = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in getattr(tokenizer, part).parameters()]
        assert all(trained) if part == "flow" else not any(trained)
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"tokenizer"}  # none is there twice


@pytest.mark.parametrize("flow", [False, True])
def test_a_decoder_is_trained_on_the_tokens_that_a_cache_holds_also_in_bf16(flow: bool) -> None:
    tokenizer, seen = awake() if flow else plain(), list[Tensor]()
    objective = (
        FlowDecoderObjective(tokenizer) if flow else TokenizerObjective(tokenizer, TokenizerLoss(), decoder_only=True)
    )
    lookup = tokenizer.quantize.lookup

    def watched(ids: Tensor) -> Tensor:
        seen.append(ids)
        return lookup(ids)

    tokenizer.quantize.lookup = watched  # type: ignore[method-assign]
    many = images(128)
    with torch.autocast("cpu", torch.bfloat16):
        objective({"images": many})
    assert seen[0].numel() == 128 * 16
    assert torch.equal(seen[0], TokenCodec(tokenizer).encode(many))


def test_each_place_sees_its_own_pixels() -> None:
    decoder = awake().flow
    assert decoder is not None
    image = torch.randn(1, 3, 16, 16)
    square = image[0, :, 2:4, 6:8]  # of 2 pixels, as one level of convolutions halves the patches
    torch.testing.assert_close(decoder.embed(image)[0, 1 * 8 + 3], decoder.blurred_embed(square.flatten()))
    net, noisy = decoder.net, torch.randn(1, 3, 16, 16)
    assert torch.equal(net(noisy, 0.5, joined=torch.zeros(1, 64, 8)), net(noisy, 0.5))
    assert not torch.equal(decoder(noisy, 0.5, image), net(noisy, 0.5))


def test_images_follow_from_tokens_alone() -> None:
    tokenizer = awake()
    ids = torch.randint(36, (5, 4, 4), generator=torch.Generator().manual_seed(0))
    together = tokenizer.decode(ids)
    assert together.shape == (5, 3, 16, 16)
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(5):
        torch.testing.assert_close(tokenizer.decode(ids[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)
    same = torch.stack([ids[0], ids[0]])
    torch.testing.assert_close(*tokenizer.decode(same), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(ids, "bf16"), together, rtol=0, atol=0.1)
    assert codec_of(tokenizer).image_size == 16


def test_drawing_is_the_generator_s_own_with_these_images() -> None:
    tokenizer = awake()
    decoder, ids = tokenizer.flow, tokenizer.encode(images())
    assert decoder is not None
    guides = blurred(tokenizer, ids)

    class Given(torch.nn.Module):
        config, device, block_rows = decoder.net.config, torch.device("cpu"), 1

        def forward(self, x: Tensor, t: float, *_: Any) -> Tensor:
            return decoder(x, t, guides[[i]])

    noise = Noise.of(row_seeds(ids)).normal(0, 3 * 16 * 16).view(5, 3, 16, 16)
    for i in range(5):
        expected = sample_images(Given(), KarrasFlowScheduler(), noise[[i]], num_inference_steps=3)  # type: ignore[arg-type]
        torch.testing.assert_close(tokenizer.decode(ids)[[i]], ((expected + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_seeds_of_rows() -> None:
    rows = torch.tensor([[[1, 2], [3, 4]], [[1, 2], [3, 4]], [[2, 1], [3, 4]], [[1, 2], [3, 5]], [[0, 0], [0, 0]]])
    seeds = row_seeds(rows)
    assert seeds[0] == seeds[1]
    assert len(set(seeds.tolist())) == 4
    assert int(row_seeds(torch.arange(4000).view(-1, 1)).min()) >= 0
    assert len(set(row_seeds(torch.arange(4000).view(-1, 2)).tolist())) == 2000
    assert torch.equal(row_seeds(rows[1:2]), seeds[1:2])


def test_tokens_stay_what_they_are(tmp_path: Path) -> None:
    before, after = plain().eval(), awake()
    assert torch.equal(before.encode(images()), after.encode(images()))
    assert encoding_hash(before) == encoding_hash(after)
    assert model_hash(before) != model_hash(after)
    after.save_pretrained(tmp_path)
    again = VQTokenizer.from_pretrained(tmp_path)
    assert model_hash(again) == model_hash(after)
    torch.testing.assert_close(again.decode(again.encode(images())), after.decode(after.encode(images())))


def test_refusals() -> None:
    tokenizer = awake()
    with pytest.raises(UserError, match=r"draws images of 16 px, but the 4 x 8 tokens are of 32 x 16"):
        tokenizer.decode(torch.zeros(1, 4, 8, dtype=torch.int64))
    with pytest.raises(UserError, match="image_size is 18, which patches of 4 pixels do not divide"):
        plain().with_flow_decoder({**SIZES, "image_size": 18})
    with pytest.raises(UserError, match=r"flow_decoder\.steps is 0"):
        plain().with_flow_decoder({**SIZES, "steps": 0})


def test_it_learns_what_tokens_say(tmp_path: Path) -> None:
    class Plain:
        """Images of one colour each, all colours."""

        fingerprint = "colours"

        def __len__(self) -> int:
            return 64

        def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Tensor]:
            colours = torch.stack([torch.from_numpy(indices * k % 64) for k in (1, 5, 11)], dim=1) * 4
            return {"images": colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 16, 16).contiguous()}

    tokenizer = plain().with_flow_decoder({**SIZES, "width": 32, "conv_channels": [], "steps": 8})
    tokenizer.encode_latents = lambda x: 6 * F.avg_pool2d(x - 0.5, 4)  # type: ignore[method-assign]
    tokenizer.decode_latents = lambda z, _="fp32": F.interpolate(z / 6 + 0.5, scale_factor=4)  # type: ignore[assignment, method-assign, misc]
    stage = FlowDecoderStage(FlowDecoderObjective(tokenizer), Plain(), eval_images=32)
    before = stage.evaluate(0)
    figures = train(stage, TrainingConfig(out=tmp_path, steps=400, batch_size=32, lr=1e-2, ema_decay=0.9, device="cpu"))
    assert figures["velocity_error"] < 0.5 * before["velocity_error"]
    assert figures["psnr"] > 14  # the mean of all colours has 10.6
    assert figures["psnr"] > before["psnr"]


def run(*flags: str) -> None:
    main(
        [
            "--data",
            "shapes:n=40,size=16",
            "--image-size",
            "16",
            "--batch-size",
            "8",
            "--log-every",
            "1",
            "--device",
            "cpu",
            *flags,
        ]
    )


FLOW = ["--flow-decoder", "--flow-width", "16", "--flow-depth", "1", "--flow-heads", "2", "--flow-steps", "2"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain().save_pretrained(tmp_path / "t")
    of = ["--decoder-of", str(tmp_path / "t"), "--lr-schedule", "constant", "--save-every", "2"]
    run(*of, *FLOW, "--steps", "4", "--out", str(tmp_path / "a"))
    run(*of, *FLOW, "--steps", "2", "--out", str(tmp_path / "b"))
    run(*of, *FLOW, "--steps", "4", "--out", str(tmp_path / "b"), "--resume")
    a, b, t = (VQTokenizer.from_pretrained(tmp_path / x) for x in "abt")
    assert model_hash(a) == model_hash(b)
    assert encoding_hash(a) == encoding_hash(t)
    assert a.config["flow_decoder"] == {"image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "conv_channels": [],
                                        "mlp_ratio": 4.0, "steps": 2}  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "a/training/log.jsonl").read_text().splitlines()]
    assert any("eval/velocity_error" in line for line in lines)
    assert any((tmp_path / "a/training/samples").iterdir())
    further = ["--decoder-of", str(tmp_path / "a"), "--flow-decoder", "--flow-steps", "5", "--steps", "1"]
    run(*further, "--out", str(tmp_path / "c"))
    assert VQTokenizer.from_pretrained(tmp_path / "c").config["flow_decoder"]["steps"] == 5
    capsys.readouterr()
    for flags, words in (
        (["--flow-decoder"], "give its folder with --decoder-of"),
        ([*of, "--flow-width", "16"], "--flow-width is for --flow-decoder"),
        ([*of, *FLOW, "--adversarial-weight", "1"], "--adversarial-weight has no effect with --flow-decoder"),
        (
            ["--decoder-of", str(tmp_path / "a")],
            "has a flow decoder, which was made for its first one; add --flow-decoder",
        ),
        (["--decoder-of", str(tmp_path / "a"), *FLOW], "leave --flow-width out"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*flags, "--out", str(tmp_path / "no"))
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_command_begins_with_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain().save_pretrained(tmp_path / "t")
    torch.manual_seed(2)
    generator = PixelDiT(
        image_size=16, patch_size=4, width=16, depth=1, num_heads=2, conv_channels=[8], representation_dim=7
    )
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    generator.save_pretrained(tmp_path / "g")
    start = ["--decoder-of", str(tmp_path / "t"), "--flow-decoder", "--flow-start", str(tmp_path / "g"), "--steps", "1"]
    run(*start, "--lr", "1e-9", "--out", str(tmp_path / "a"))
    decoder = VQTokenizer.from_pretrained(tmp_path / "a").flow
    assert decoder is not None
    noisy, guide = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(decoder(noisy, 0.4, guide), generator(noisy, 0.4), rtol=1e-4, atol=1e-5)
    PixelDiT(image_size=32, patch_size=2, width=16, depth=1, num_heads=2, condition="none").save_pretrained(
        tmp_path / "h"
    )
    for flags, words in (
        ([*start, "--flow-depth", "3"], "--flow-depth is that of --flow-start"),
        (
            [*start[:-3], str(tmp_path / "h"), "--steps", "1"],
            "makes images of 32 px, not of --image-size 16",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*flags, "--out", str(tmp_path / "no"))
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err


def test_the_stage_looks_at_the_same_images_each_time() -> None:
    source = open_source("shapes:n=20,size=16")
    stage = FlowDecoderStage(FlowDecoderObjective(awake()), ImageDataset(source, 16), eval_images=8)
    assert stage.preview(0).size[0] > 16
    assert stage.evaluate(3) == stage.evaluate(3)
    assert stage.identity()["tokenizer"] == model_hash(plain())


def test_images_are_of_the_tokenizers_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain().save_pretrained(tmp_path / "t")
    base = ["--data", "shapes:n=40,size=32", "--steps", "1", "--batch-size", "8", "--device", "cpu", *FLOW]
    of = [*base, "--decoder-of", str(tmp_path / "t")]
    with pytest.raises(SystemExit):
        main([*of, "--image-size", "32", "--out", str(tmp_path / "no")])
    assert f"--image-size 32 is not that of {tmp_path / 't'} (16)" in capsys.readouterr().err.replace("\n", " ")
    main([*of, "--out", str(tmp_path / "a")])
    assert VQTokenizer.from_pretrained(tmp_path / "a").config["flow_decoder"]["image_size"] == 16
    further = ["--decoder-of", str(tmp_path / "a"), "--flow-decoder", *base[:8]]
    main([*further, "--out", str(tmp_path / "b")])  # and of its flow decoder's
    assert VQTokenizer.from_pretrained(tmp_path / "b").config["flow_decoder"]["image_size"] == 16
    generator = [
        "--data",
        "shapes:n=40,size=32",
        "--tokenizer",
        str(tmp_path / "b"),
        "--condition",
        "none",
        "--steps",
        "1",
    ]
    with pytest.raises(SystemExit):
        train_generator.main([*generator, "--image-size", "32", "--device", "cpu", "--out", str(tmp_path / "g")])
    assert "the tokenizer was trained for 4x4" in capsys.readouterr().err.replace("\n", " ")
