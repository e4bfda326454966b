"""The Inception of FID against torch-fidelity's own, and what happens without its weights."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from rcg.core.errors import UserError
from rcg.eval.extractors import open_extractor
from rcg.eval.inception import TAIL, InceptionExtractor, InceptionV3, inception_weights, resize_like_tensorflow

REAL = Path(__file__).parents[3] / "shared/weights/inception_2015-12-05_to_mixed_6e.pth"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Seeded weights of the whole network, with BatchNorm statistics that matter."""
    torch.manual_seed(0)
    network = InceptionV3(tail=True)
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    for name, value in weights.items():
        if name.endswith("conv.weight"):
            value.mul_(1.7)  # keeps the signal alive through 90 layers
        elif name.endswith("running_var"):
            value.uniform_(0.7, 1.4)
        elif name.endswith(("running_mean", "bn.bias")):
            value.normal_(std=0.2)
        elif name.endswith("bn.weight"):
            value.uniform_(0.7, 1.3)
    return weights


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_equals_torch_fidelity(state: dict[str, torch.Tensor], images: torch.Tensor, tmp_path: Path) -> None:
    file = tmp_path / "inception.pth"
    torch.save(state, file)
    theirs = FeatureExtractorInceptionV3("x", ["768", "2048", "logits_unbiased"], feature_extractor_weights_path=file)
    whole = open_extractor("inception", file)
    part = open_extractor("inception-768", file)
    with torch.inference_mode():
        f768, f2048, logits = theirs(images)
        ours, our_logits, spatial = whole(images)
        ours768, nothing, same_spatial = part(images)
    assert (whole.dim, whole.has_logits, part.dim, part.has_logits) == (2048, True, 768, False)
    assert nothing is None
    assert f768.std() > 1e-3
    assert f2048.std() > 1e-3  # the random network has not died
    assert relative(ours768, f768) < 1e-5
    assert relative(ours, f2048) < 1e-5
    assert our_logits is not None
    assert relative(our_logits, logits) < 1e-5
    assert spatial is not None
    assert same_spatial is not None
    assert torch.equal(spatial, same_spatial)  # sFID is the same with either
    assert whole.spatial_dim == part.spatial_dim == spatial.shape[1] == 2023
    assert not any(name.startswith(TAIL) for name in part.network.state_dict())  # no random layers kept around


def test_spatial_features_are_those_of_adms_evaluator(state: dict[str, torch.Tensor], images: torch.Tensor) -> None:
    """The first 7 channels of the 1×1 branch of Mixed_6d ("mixed_6/conv"), channels last, in a network that is not folded."""
    network = InceptionV3(tail=False).eval()
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith(TAIL)})
    seen: list[torch.Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: seen.append(output))
    folded = InceptionExtractor(state, full=False)
    with torch.inference_mode():
        network((resize_like_tensorflow(images.float(), 299) - 128) / 128)
        spatial = folded(images).spatial
    assert spatial is not None
    assert spatial.std() > 1e-3
    expected = seen[-1].permute(0, 2, 3, 1)[..., :7].reshape(2, -1)
    assert relative(spatial, expected) < 1e-5


@pytest.mark.parametrize("size", [(32, 32), (31, 50), (299, 299), (400, 320), (1, 7)])
def test_resize_is_torch_fidelitys_to_the_bit(size: tuple[int, int]) -> None:
    x = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(2)).float()
    assert torch.equal(
        resize_like_tensorflow(x, 299), interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    )


@pytest.mark.skipif(not REAL.is_file(), reason="the real weights are not beside this checkout")
def test_real_weights_give_torch_fidelitys_768_features(images: torch.Tensor) -> None:
    class Lenient(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
            return super().load_state_dict(state_dict, strict=False)

    theirs = Lenient("x", ["768"], feature_extractor_weights_path=REAL)
    ours = open_extractor("inception-768", REAL)
    with torch.inference_mode():
        (expected,) = theirs(images)
        features = ours(images).features
    assert relative(features, expected) < 1e-6
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-6)


def test_partial_weights_are_no_fid(state: dict[str, torch.Tensor]) -> None:
    part = {k: v for k, v in state.items() if not k.startswith(TAIL)}
    assert InceptionExtractor(part, full=False).dim == 768
    with pytest.raises(UserError, match=r"only up to Mixed_6e.*inception-768"):
        InceptionExtractor(part, full=True)
    same = InceptionExtractor(part, full=False).weights_hash
    assert same == InceptionExtractor(state, full=False).weights_hash  # what lies behind Mixed_6e is not used


def test_every_key_is_accounted_for(state: dict[str, torch.Tensor]) -> None:
    name = "Mixed_6e.branch_pool.conv.weight"
    with pytest.raises(UserError, match=r"lacks Mixed_6e\.branch_pool\.conv\.weight"):
        InceptionExtractor({k: v for k, v in state.items() if k != name}, full=False)
    with pytest.raises(UserError, match=r"lacks Mixed_7c"):
        InceptionExtractor({k: v for k, v in state.items() if not k.startswith("Mixed_7c")}, full=True)
    with pytest.raises(UserError, match=r"unknown keys stray"):
        InceptionExtractor({**state, "stray": torch.zeros(1)}, full=False)
    with pytest.raises(UserError, match=r"other shapes at Mixed_6e"):
        InceptionExtractor({**state, name: state[name][:1]}, full=False)


def test_wrong_weights_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs --extractor-weights"):
        open_extractor("inception-768")
    with pytest.raises(UserError, match=r"there is no weights file"):
        open_extractor("inception-768", tmp_path / "no.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"cannot be read as weights"):
        open_extractor("inception-768", tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"does not hold named weights"):
        open_extractor("inception-768", tmp_path / "list.pth")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickle.pth")  # code in a pickle is not run
    with pytest.raises(UserError, match=r"cannot be read as weights"):
        open_extractor("inception-768", tmp_path / "pickle.pth")


# ---------------------------------------------------------------------------------------------------- download


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local server of one folder, as (address, folder)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as s:
        thread = threading.Thread(target=s.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{s.server_port}", folder
        s.shutdown()
        thread.join()


def test_download_once_then_from_the_cache(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE", "RCG_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    address, folder = server
    content = np.random.default_rng(0).bytes(1000)
    name = f"weights-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    path = inception_weights(f"{address}/{name}")
    assert path.read_bytes() == content
    (folder / name).unlink()
    assert inception_weights(f"{address}/{name}") == path


def test_damaged_download_leaves_nothing(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for variable in ("http_proxy", "HTTP_PROXY", "HF_HUB_OFFLINE", "RCG_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    address, folder = server
    (folder / "weights-00000000.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match="cannot be downloaded"):
        inception_weights(f"{address}/weights-00000000.pth")
    assert not [p for p in (tmp_path / "torch").rglob("*") if p.is_file()]


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_one_sentence_and_the_way_out(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("RCG_OFFLINE", "1" if offline else "0")
    with pytest.raises(UserError, match=r"--extractor-weights.*inception-768.*encoder:DIR.*timm:NAME") as e:
        inception_weights("http://127.0.0.1:9/weights-12345678.pth")
    assert "\n" not in str(e.value)
