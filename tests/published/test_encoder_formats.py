"""DINO, iBOT, DeiT and StableRep files, and the encoders within RCG's own, against plain programs; damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rcg.core.errors import UserError
from rcg.core.state_dicts import Conversion, read_checkpoint
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.published.encoders import FORMATS, convert_contents, detect_format, encoder_from_state
from tests.published import official_files as official
from tests.published.official_files import Weights

TOLERANCE = 1e-5


@dataclass
class Case:
    make: Callable[[], dict[str, Any]]
    kind: str
    container: str | None  # None: the weights are the top level
    prefix: str
    project: Callable[[Weights, Tensor], Tensor]
    dropped: set[str]  # beginnings of every dropped key
    size: int = 32
    head: str = "projection"


def identity(w: Weights, x: Tensor) -> Tensor:
    return x


def to_text(w: Weights, x: Tensor) -> Tensor:
    return x @ w["image_projection"]


def to_text_mlp(w: Weights, x: Tensor) -> Tensor:
    return official.stablerep_project(w, x, "image_projection")


DINO_DROPS = {"head.last_layer.", "student.*"}
IBOT_DROPS = {"head.last_layer.", "head.last_layer2.", "backbone.masked_embed", "student.*"}
TOWER = {"transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "logit_scale"}
plain, plus = official.stablerep_project, official.stablerep_plus_file
CASES = {
    "dino": Case(official.dino_file, "dino", "teacher", "backbone.", official.dino_project, DINO_DROPS),
    "dino patch 8": Case(
        lambda: official.dino_file(patch=8), "dino", "teacher", "backbone.", official.dino_project, DINO_DROPS
    ),
    "dino without head": Case(
        official.dino_file, "dino", "teacher", "backbone.", identity, DINO_DROPS | {"head."}, head="none"
    ),
    "dino backbone": Case(lambda: official.vit(patch=8), "dino", None, "", identity, set()),
    "ibot": Case(official.ibot_file, "ibot", "teacher", "backbone.", official.dino_project, IBOT_DROPS),
    "ibot backbone": Case(lambda: {"state_dict": official.vit()}, "ibot", "state_dict", "", identity, set()),
    "deit": Case(official.deit_file, "deit", "model", "", identity, {"head.weight", "head.bias"}),
    "stablerep": Case(official.stablerep_file, "stablerep", "model", "visual.", plain, set(), size=64),
    "stablerep+": Case(plus, "stablerep+", "model", "visual.", plain, TOWER | {"image_projection"}),
    "stablerep+ text": Case(
        plus, "stablerep+", "model", "visual.", to_text, TOWER | {"image_mlp."}, head="text"
    ),
    "stablerep+ text mlp": Case(
        lambda: plus("mlp"), "stablerep+", "model", "visual.", to_text_mlp, TOWER | {"image_mlp."}, head="text"
    ),
    "stablerep+ without head": Case(
        plus, "stablerep+", "model", "visual.", identity, TOWER | {"image_mlp.", "image_projection"}, head="none"
    ),
}  # fmt: skip


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a.detach().double() - b.double()).norm() / b.double().norm())


def images() -> Tensor:
    torch.manual_seed(11)
    return torch.rand(3, 3, 70, 50)


def check_values(encoder: SSLEncoder, weights: Weights, prefix: str, size: int, project: Any) -> None:
    features = official.class_token(weights, prefix, images(), size)
    projections = project(weights, features)
    with torch.no_grad():
        assert distance(encoder.features(images()), features) <= TOLERANCE
        assert distance(encoder.project(encoder.features(images())), projections) <= TOLERANCE
        assert distance(encoder(images()), official.standardised(projections)) <= TOLERANCE
    assert projections.std(0).mean() > 0.05  # the images differ


def read(contents: dict[str, Any], folder: Path, **options: Any) -> Conversion[SSLEncoder]:
    path = folder / f"file{len(list(folder.iterdir()))}.pth"  # another each time: encoders map their files
    torch.save(contents, path)
    return convert_contents(read_checkpoint(path), str(path), **({"num_heads": official.HEADS} | options))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_official_file_computes_what_a_plain_program_does(case: Case, tmp_path: Path) -> None:
    contents = case.make()
    assert detect_format(contents) == case.kind
    conversion = read(contents, tmp_path, head=case.head)
    weights = contents[case.container] if case.container else contents
    encoder = conversion.model
    assert conversion.kind == case.kind
    assert not encoder.training
    check_values(encoder, weights, case.prefix, case.size, case.project)
    assert sorted([*conversion.loaded, *conversion.dropped]) == sorted({*weights} | ({"student.*"} & case.dropped))
    assert set(conversion.loaded.values()) == set(encoder.state_dict())
    dropped = {max((d for d in case.dropped if k.startswith(d)), key=len, default=k) for k in conversion.dropped}
    assert dropped == case.dropped
    assert all(len(reason.split()) > 3 for reason in conversion.dropped.values())
    told = ["no projection head" in note for note in conversion.notes]
    assert told == ([True] if case.head == "projection" and case.project is identity else [])
    encoder.save_pretrained(tmp_path / "saved")
    again = SSLEncoder.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(images()), encoder(images()))
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in again.state_dict().items())


def test_the_students_weights_would_give_other_values(tmp_path: Path) -> None:
    contents = official.dino_file()
    encoder = read(contents, tmp_path).model
    student = {k.removeprefix("module."): v for k, v in contents["student"].items()}
    assert distance(encoder.features(images()), official.class_token(student, "backbone.", images(), 32)) > 1e-2


@pytest.mark.parametrize("kind", ["mocov3", "dino", "deit"])
def test_frozen_encoder_within_other_files(kind: str) -> None:
    head, project = {
        "mocov3": (official.moco_head(), official.moco_project),
        "dino": ({k: v for k, v in official.dino_head().items() if "mlp" in k}, official.dino_project),
        "deit": ({"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}, identity),
    }[kind]
    state = official.vit() | head
    conversion = encoder_from_state(state, "rdm.pth", num_heads=4)
    assert conversion.kind == kind
    check_values(conversion.model, state, "", 32, project)
    assert set(conversion.loaded) | set(conversion.dropped) == set(state)
    assert set(conversion.dropped) == (set(head) if kind == "deit" else set())
    without = encoder_from_state(state, "rdm.pth", num_heads=4, head="none")
    assert set(without.dropped) == set(head)
    check_values(without.model, state, "", 32, identity)


def test_frozen_encoder_that_cannot_be_told() -> None:
    with pytest.raises(UserError, match=r"^rdm\.pth: the frozen encoder has no head"):
        encoder_from_state(official.vit(), "rdm.pth", num_heads=4)
    with pytest.raises(UserError, match=r"a mocov3 file has no text head, only stablerep\+ has"):
        encoder_from_state(official.vit() | official.moco_head(), "rdm.pth", num_heads=4, head="text")


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16)])
def test_heads_of_the_published_sizes_are_known(width: int, heads: int, tmp_path: Path) -> None:
    conversion = read(official.vit(width=width), tmp_path, num_heads=None)
    assert conversion.model.backbone.blocks[0].attn.num_heads == heads
    assert all(layout.known_heads[width] == heads for kind, layout in FORMATS.items() if kind != "mocov3")


@pytest.mark.parametrize("name", ["dino", "dino backbone", "deit", "stablerep"])
def test_wrapped_and_half_precision_files(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    contents = case.make()
    weights = contents[case.container] if case.container else contents
    expected = read(contents, tmp_path)
    wrapped = {f"module.{k}": v for k, v in weights.items()}
    whole = contents | {case.container: wrapped} if case.container else wrapped
    assert detect_format(whole) == case.kind
    conversion = read(whole, tmp_path)
    assert set(conversion.loaded) == {f"module.{k}" for k in expected.loaded}
    assert any("`module.`" in note for note in conversion.notes)
    assert torch.equal(conversion.model(images()), expected.model(images()))
    for dtype, spelt in ((torch.float16, "float16"), (torch.bfloat16, "bfloat16")):
        half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
        conversion = read(contents | {case.container: half} if case.container else half, tmp_path)
        assert conversion.model.dtype == torch.float32
        assert [note for note in conversion.notes if f"are {spelt}" in note]
        check_values(conversion.model, {k: v.float() for k, v in half.items()}, case.prefix, case.size, case.project)


def changed(name: str, old: str, new: str | None) -> dict[str, Any]:
    """A case's file with one key renamed or taken away."""
    contents = CASES[name].make()
    weights = contents[container] if (container := CASES[name].container) else contents
    value = weights.pop(old)
    if new is not None:
        weights[new] = value
    return contents


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("dino", "backbone.blocks.1.norm1.bias", "backbone.blocks.1.nrm1.bias", r"blocks\.1\.norm1\.bias \(nearest: .*nrm1\.bias"),
        ("dino backbone", "cls_token", None, r"no encoder checkpoint of a known format"),
        ("dino backbone", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc.weight", r"lacks a proper blocks\.0\.mlp\.fc1\.weight \(nearest: "),
        ("dino", "head.mlp.2.bias", None, r"lacks 1 of .* head\.2\.bias"),
        ("dino", "head.mlp.0.weight", None, r"lacks a proper head\.0\.weight"),
        ("dino", "head.mlp.4.weight", "head.mpl.4.weight", r"lacks a proper head\.4\.weight"),
        ("ibot", "head.mlp.4.bias", "head.mlp5.4.bias", r"lacks 1 of .*head\.4\.bias \(nearest: .*head\.mlp5\.4\.bias"),
        ("deit", "norm.bias", "nrm.bias", r"norm\.bias \(nearest: backbone\.nrm\.bias\)"),
        ("deit", "head.bias", "dist_token", "distilled DeiT"),
        ("stablerep", "visual.norm.bias", None, r"lacks 1 of .*backbone\.norm\.bias"),
        ("stablerep", "image_mlp.bn1.weight", "image_mlp.bnn1.weight", r"image_mlp\.bnn1\.weight, which is neither .* \(nearest: image_mlp\.bn1\.\)"),
        ("stablerep", "image_mlp.bn1.running_var", None, r"lacks 1 of .*head\.1\.running_var"),
        ("stablerep+", "logit_scale", "logit_scales", r"the key logit_scales, which is neither"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_named(name: str, old: str, new: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(changed(name, old, new), tmp_path)
    assert str(error.value).startswith(str(tmp_path / "file0.pth"))
    assert "\n" not in str(error.value)


def test_a_head_the_file_has_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a stablerep file has no text head, only stablerep\+ has"):
        read(official.stablerep_file(), tmp_path, head="text")
    with pytest.raises(UserError, match="lacks image_projection; ask for another head"):
        read(changed("stablerep+", "image_projection", None), tmp_path, head="text")
    with pytest.raises(UserError, match="head is 'tail', but it must be one of 'projection', 'text', 'none'"):
        read(official.dino_file(), tmp_path, head="tail")
    with pytest.raises(UserError, match="width 32 is not known; add --encoder-num-heads"):
        read(official.dino_file(), tmp_path, num_heads=None)


def test_files_that_are_no_encoders() -> None:
    vit, one = official.vit(), torch.zeros(1)
    for contents in (
        {"model": {"model.diffusion_model.input_proj.weight": one, **{f"pretrained_encoder.{k}": one for k in vit}}},
        {"model": {**vit, "token_emb.word_embeddings.weight": one, "pretrained_encoder.head.0.weight": one}},
        {"state_dict": {"quantize.embedding.weight": one, "encoder.conv_in.weight": one}},
        {"quantize.embedding.weight": one},
        {**vit, "mask_token": one},  # DINOv2
        {"model": {**vit, "mask_token": one, "decoder_embed.weight": one}},  # MAE
        {**vit, "head.weight": one},  # timm's
        {"model": [1, 2], "teacher": None},
        {},
    ):
        assert detect_format(contents) is None
        assert detect_format({k: v for k, v in contents.items() if k != "model"}) is None


def test_another_format_than_the_files(tmp_path: Path) -> None:
    for kind in ("mocov3", "stablerep", "dino", "deit"):
        other = official.stablerep_file() if kind in ("dino", "deit", "mocov3") else official.dino_file()
        with pytest.raises(UserError, match=r"file\d\.pth"):
            read(other, tmp_path, format=kind)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_type": "mae", "head_layers": 3}, "head_type is 'mae', but it must be one of 'mocov3', 'dino'"),
        ({"head_type": "mae"}, "head_type is 'mae'"),
        ({"head_type": "linear", "head_layers": 2}, "has one layer, but head_layers is 2"),
        ({"head_type": "dino", "head_layers": 2, "head_hidden_dim": 0}, "head_hidden_dim is 0"),
    ],
)
def test_unusable_heads_say_so(settings: dict[str, Any], message: str) -> None:
    arch = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    with pytest.raises(UserError, match=message):
        SSLEncoder("vit_tiny_patch16_224", arch, 16, **settings)
