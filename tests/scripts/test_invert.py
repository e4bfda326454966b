"""rcg-invert from the command line: invert, go on; and what it refuses, in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rcg.scripts.invert import main
from tests.components import SIZE as OWN_SIZE
from tests.components import get_dummy_pipeline
from tests.inversion.tiny import SIZE, pictures, stable_diffusion

QUICK = ["--steps", "2", "--turn-steps", "2", "--batch-size", "6", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    stable_diffusion(folder / "sd")
    pictures(folder / "data")
    get_dummy_pipeline().save_pretrained(folder / "rcg")
    get_dummy_pipeline(without=("encoder",)).save_pretrained(folder / "blind")
    return folder


def base(room: Path, out: Path, model: str = "sd") -> list[str]:
    size = ["--image-size", str(SIZE)] if model == "sd" else []
    return ["--data", str(room / "data"), "--model", str(room / model), "--out", str(out), *size, *QUICK]


@pytest.mark.parametrize(("model", "more"), [("sd", []), ("rcg", []), ("blind", ["--init", "zero"])])
def test_invert_and_go_on(
    model: str, more: list[str], room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*base(room, tmp_path / "out", model), *more])
    said = capsys.readouterr().out
    assert "6 of 6 images are inverted" in said
    assert "rcg-synthesize --from-inversion" in said
    conditions = np.load(tmp_path / "out/conditions.npy")
    main([*base(room, tmp_path / "out", model), *more])  # all is there
    np.testing.assert_array_equal(conditions, np.load(tmp_path / "out/conditions.npy"))
    main([*base(room, tmp_path / "out", model), *more, "--steps", "3"])
    assert not np.array_equal(conditions, np.load(tmp_path / "out/conditions.npy"))
    assert OWN_SIZE == SIZE


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("nowhere", [], "no local pipeline"),
        ("data", [], "no local pipeline"),
        ("blind", [], "no encoder"),
        ("sd", ["--init", "zero"], "--init has no effect with Stable Diffusion"),
        ("rcg", ["--image-size", "16"], "--image-size has no effect"),
        ("rcg", ["--num-tokens", "2"], "--num-tokens has no effect"),
        ("rcg", ["--gradient-checkpointing"], "--gradient-checkpointing"),
        ("sd", ["--image-size", "15"], "multiple of 2"),
        ("sd", ["--out", __file__], "is a file; give the name of a folder"),
    ],
)
def test_refusals(
    model: str, more: list[str], says: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*base(room, tmp_path / "out", model), *more])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in said
    assert "Traceback" not in said


def test_the_last_process_says_that_all_is_done(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        main([*base(room, tmp_path / "out"), "--batch-size", "3"])
        said.append(capsys.readouterr().out)
    assert said[0] == "3 of 6 images are inverted; other processes are still at work.\n"
    assert "6 of 6 images are inverted" in said[1]
    assert "rcg-synthesize" in said[1]


def test_without_a_size(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(room / "data"), "--model", str(room / "sd"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "add --image-size" in capsys.readouterr().err
