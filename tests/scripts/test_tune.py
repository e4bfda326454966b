"""rcg-tune from the command line, on a tiny pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rcg import RCGPipeline
from rcg.core.errors import UserError
from rcg.core.files import claimed
from rcg.eval.evaluate import Evaluator
from rcg.eval.extractors import ModuleExtractor
from rcg.eval.frechet import frechet_distance
from rcg.eval.images import PipelineImages
from rcg.eval.references import save_stats
from rcg.scripts.tune import main
from rcg.tune.judge import GROUPS, ImageJudge, Score
from tests.components import get_dummy_components, get_dummy_pipeline

DATA = "shapes:n=40,size=16"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune")
    get_dummy_pipeline().save_pretrained(path / "model")
    get_dummy_pipeline(without=("encoder",)).save_pretrained(path / "blind")
    get_dummy_components(seed=1)["encoder"].save_pretrained(path / "encoder")
    return path


@pytest.fixture
def room(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def tune(room: Path, *flags: str, model: str = "model", reference: str = DATA, small: bool = True) -> dict[str, Any]:
    given = ["--num-images", "16", "--trials", "4", "--finalists", "1", "--repeats", "2"] if small else []
    where = ["--model", str(room / model), "--reference", reference, "--out", str(room / "out"), "--device", "cpu"]
    extractor = [] if "--extractor" in flags else ["--extractor", "encoder"]
    main([*where, *given, *extractor, *flags])
    found: dict[str, Any] = json.loads((room / "out" / "tune.json").read_text())
    return found


def test_a_search_from_the_command_line(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    found = tune(room, "--tune", "guidance_scale", "num_inference_steps=2:6")
    assert found["metric"] == "frechet-encoder"
    assert len(found["trials"]) == 4
    assert [f["seed"] for f in found["finals"]] == [1, 1, 2, 2]
    printed = capsys.readouterr().out
    assert "Tuning guidance_scale 1 to 4; num_inference_steps 2 to 6, by frechet-encoder of 16 images." in printed
    assert "will take about" in printed
    own, winner = found["trials"][0]["settings"], found["winner"]
    stored = RCGPipeline.from_pretrained(room / "model").settings()
    assert dict(stored) == winner
    assert found["written"] == (winner != own)
    again = tune(room, "--tune", "guidance_scale", "num_inference_steps=2:6", "--resume")
    assert again["trials"] == found["trials"]
    assert again["finals"] == found["finals"]


def test_the_winner_is_written_unless_it_may_not(room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    pytest.importorskip("optuna")

    def stub(self: ImageJudge, settings: dict[str, Any], seed: int) -> Score:
        value = (settings["guidance_scale"] - 3) ** 2 + seed
        return Score(value, [value] * GROUPS, 0.1)

    monkeypatch.setattr(ImageJudge, "__call__", stub)
    flags = ["--tune", "guidance_scale", "--trials", "12"]
    left = tune(room, *flags, "--no-write")
    assert RCGPipeline.from_pretrained(room / "model").settings()["guidance_scale"] == 1.0
    assert "left as it is" in capsys.readouterr().out
    written = tune(room, *flags, "--resume")
    tune(room, *flags, "--resume")  # the model's own settings are others now, the search is the same
    assert written["winner"] == left["winner"]
    assert abs(written["winner"]["guidance_scale"] - 3) < 0.5
    assert (
        RCGPipeline.from_pretrained(room / "model").settings()["guidance_scale"] == written["winner"]["guidance_scale"]
    )
    assert written["written"]
    assert "now samples with guidance_scale" in capsys.readouterr().out


def test_what_the_model_leaves_open_stays_open_after_the_winner_is_written(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    name, asked = "rdm_num_inference_steps", ["--tune", "rdm_num_inference_steps=2:6"]
    pipe = get_dummy_pipeline()
    pipe.register_to_config(sampling={"num_inference_steps": 2})
    pipe.save_pretrained(room / "open")
    in_force: list[Any] = []

    def stub(self: ImageJudge, settings: dict[str, Any], seed: int) -> Score:
        in_force.append((settings[name], self.pipe.settings(**settings)[name]))
        value = float(settings[name] is None) + seed
        return Score(value, [value] * GROUPS, 0.1)

    monkeypatch.setattr(ImageJudge, "__call__", stub)
    tune(room, *asked, model="open")
    assert RCGPipeline.from_pretrained(room / "open").settings()[name] is not None
    in_force.clear()
    tune(room, *asked, "--resume", "--repeats", "4", model="open")
    assert (None, None) in in_force
    assert all(wanted == used for wanted, used in in_force)


@pytest.mark.parametrize("figure", ["fid", "precision", "coverage", "mind"])
def test_a_score_is_that_of_an_evaluation(figure: str) -> None:
    pipe = get_dummy_pipeline()
    evaluator = Evaluator(ModuleExtractor("encoder", pipe.encoder), device="cpu")
    judge = ImageJudge(pipe, evaluator, DATA, figure, 24)
    settings = pipe.settings(guidance_scale=2.0)
    score = judge(settings, 5)
    images = PipelineImages(pipe, 24, seed=5, guidance_scale=2.0)
    metric = {"fid": "fid", "precision": "prc", "coverage": "dc", "mind": "mind"}[figure]
    expected = evaluator.evaluate(images, reference=judge.reference, metrics=[metric])["metrics"][judge.name]
    assert score.value == pytest.approx(expected, rel=1e-6)
    assert len(score.groups) == GROUPS
    if figure == "fid":
        drawn = evaluator.measure(images, evaluator_wanted(), "generated").features
        assert drawn is not None
        assert judge.reference.features is not None
        kept = [i for i in range(24) if i % GROUPS != 3]
        assert score.groups[3] == pytest.approx(frechet_distance(drawn[kept], judge.reference.features), rel=1e-6)


def evaluator_wanted() -> Any:
    from rcg.eval.measure import Wanted

    return Wanted(sample=24)


def test_mistakes(room: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcg.tune.search.require_optuna", lambda: None)

    def said(*flags: str, **places: Any) -> str:
        with pytest.raises(SystemExit) as e:
            tune(room, *flags, **places)
        assert e.value.code == 2
        assert not (room / "out").exists()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rcg-tune: error: ")]
        assert len(errors) == 1
        return errors[0]

    assert "nothing to tune by; choose among fid" in said("--metric", "isc")
    assert "no setting 'colour'" in said("--tune", "colour")
    assert "only 16 tokens" in said("--tune", "num_inference_steps=2:100")
    assert "--trials is 2" in said("--trials", "2")
    assert "--num-images is 15" in said("--num-images", "15")
    assert "too few for kid" in said("--metric", "kid")
    assert "--repeats is 1" in said("--repeats", "1")
    assert "--finalists is 0" in said("--finalists", "0")
    assert "no length of time" in said("--budget", "soon")
    assert "there is no folder" in said(reference="nowhere")
    assert "there is no statistics file" in said(reference="nowhere.npz")
    assert "there is no folder rcg/none" in said("--model", "rcg/none")
    assert "add --no-write" in said("--model", "someone/model")
    assert "not a saved pipeline" in said("--model", str(room))
    assert "single SSLEncoder" in said(model="encoder")
    assert "there is no encoder" in said(model="blind")
    assert "brings its weights along" in said("--extractor-weights", "x.pth")
    assert "Unknown extractor" in said("--extractor", "vgg")
    assert "there is no folder" in said("--extractor", f"encoder:{room / 'none'}")
    assert "CLIP embeddings" in said("--metric", "cmmd")
    assert "no search to resume" in said("--resume")
    with monkeypatch.context() as m:
        m.setenv("WORLD_SIZE", "2")
        assert "start it without torchrun" in said()
    evaluator = Evaluator(ModuleExtractor("encoder", get_dummy_components()["encoder"]), feature_sample=0, device="cpu")
    save_stats(room / "bare.npz", evaluator.make_stats(DATA))
    assert "only their mu and sigma" in said("--metric", "precision", reference=str(room / "bare.npz"))
    file = room / "file"
    file.write_text("")
    with pytest.raises(SystemExit):
        main(["--model", str(room / "model"), "--reference", DATA, "--out", str(file)])
    assert "is a file" in capsys.readouterr().err


def test_another_reference_of_the_same_name_is_not_resumed(room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    pytest.importorskip("optuna")
    monkeypatch.setattr(ImageJudge, "__call__", lambda *_: Score(1.0, [1.0] * GROUPS, 0.1))
    evaluator = Evaluator(ModuleExtractor("encoder", RCGPipeline.from_pretrained(room / "model").encoder), device="cpu")
    path = room / "real.npz"
    save_stats(path, evaluator.make_stats(DATA))
    tune(room, "--tune", "guidance_scale", reference=str(path))
    journal = room / "out" / "tune.json"
    held = json.loads(journal.read_text())
    save_stats(path, evaluator.make_stats("shapes:n=40,size=16,seed=1"))
    with pytest.raises(SystemExit):
        tune(room, "--tune", "guidance_scale", "--resume", reference=str(path))
    assert "another search (contents of the reference" in capsys.readouterr().err
    del held["identity"]["contents of the reference"]  # as an earlier version left it
    journal.write_text(json.dumps(held))
    assert tune(room, "--tune", "guidance_scale", "--resume", reference=str(path))["trials"] == held["trials"]
    with claimed(room / "out"), pytest.raises(SystemExit):
        tune(room, "--tune", "guidance_scale", "--resume", reference=str(path))
    assert "another process is writing" in capsys.readouterr().err


def test_images_of_another_size_are_refused_at_the_first_ones() -> None:
    pipe = get_dummy_pipeline()
    evaluator = Evaluator(ModuleExtractor("encoder", pipe.encoder), device="cpu")
    judge = ImageJudge(pipe, evaluator, "shapes:n=40,size=24", "fid", 16)
    with pytest.raises(UserError, match="16×16 px and the reference 24×24 px"):
        judge(pipe.settings(), 0)
