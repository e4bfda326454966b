"""RCGPipeline: contracts, randomness, mistakes. (Its folders: test_pipeline_files.py.) All with the tiny components of tests/components.py."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from rcg import MaskGITScheduler, RCGPipeline, UserError
from rcg.core.rng import derive_seed, sample_generators
from rcg.encoders.ssl_encoder import SSLEncoder, standardize
from rcg.image_gen.conditions import Guidance
from rcg.image_gen.mage.sampling import generate_tokens
from rcg.rdm.sampling import sample_representations
from rcg.sampling.inputs import Streams, resolve_labels
from rcg.tune.space import open_space
from tests.components import CLASSES, CODES, DIM, GRID, SAMPLING, SIZE, get_dummy_components, get_dummy_pipeline


@pytest.fixture(scope="module")
def pipe() -> RCGPipeline:
    return get_dummy_pipeline()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=seeded(seed))


# ---------------------------------------------------------------------- a call


def test_outputs(pipe: RCGPipeline) -> None:
    out = pipe(batch_size=3, generator=seeded(), output_type="pt")
    assert out.images.shape == (3, 3, SIZE, SIZE)
    assert out.images.dtype == torch.float32
    assert 0 <= out.images.min() < out.images.max() <= 1
    assert out.representations.shape == (3, DIM)
    assert out.codes.shape == (3, GRID, GRID)
    assert 0 <= out.codes.min() <= out.codes.max() < CODES
    assert out.class_labels is None
    assert not torch.equal(out.images[0], out.images[1])
    array = pipe(batch_size=3, generator=seeded(), output_type="np").images
    np.testing.assert_array_equal(array, out.images.permute(0, 2, 3, 1).numpy())
    pil = pipe(batch_size=3, generator=seeded()).images
    np.testing.assert_array_equal(np.stack([np.asarray(i) for i in pil]), (array * 255).round().astype(np.uint8))
    images, representations, ids = pipe(batch_size=3, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(images, out.images)
    assert torch.equal(representations, out.representations)
    assert torch.equal(ids, out.codes)


def test_the_pipeline_is_its_parts(pipe: RCGPipeline) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 6, "temperature": 1.0}
    out = pipe(
        batch_size=2,
        generator=seeded(),
        output_type="pt",
        rdm_num_inference_steps=3,
        precision="fp32",
        guidance_scale=2.0,
        **settings,
    )
    streams = Streams.of(seeded(), 2)
    representations = sample_representations(
        pipe.rdm, pipe.rdm_scheduler, 2, num_inference_steps=3, generator=streams.rdm
    )
    ids = generate_tokens(
        pipe.image_generator,
        pipe.image_scheduler,
        batch_size=2,
        representations=representations,
        generator=streams.image,
        guidance=Guidance(2.0, "linear"),
        **settings,
    )
    torch.testing.assert_close(out.representations, representations)
    assert torch.equal(out.codes, ids)
    torch.testing.assert_close(out.images, pipe.tokenizer.decode(ids))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch(pipe: RCGPipeline, scale: float) -> None:
    """Batches of 1, 5 and 16: bit for bit on the CPU, all parts included."""
    whole = pipe(batch_size=16, generator=sample_generators(7, 0, 16), guidance_scale=scale, output_type="pt")
    for size in (1, 5):
        for start in (0, 10):
            part = pipe(generator=sample_generators(7, start, size), guidance_scale=scale, output_type="pt")
            rows = slice(start, start + size)
            assert torch.equal(part.codes, whole.codes[rows])
            assert torch.equal(part.representations, whole.representations[rows])
            assert torch.equal(part.images, whole.images[rows])


def test_one_generator_gives_each_image_its_stream(pipe: RCGPipeline) -> None:
    runs = {size: pipe(batch_size=size, generator=seeded(3), output_type="pt").images for size in (1, 5, 16)}
    assert torch.equal(runs[1], runs[16][:1])
    assert torch.equal(runs[5], runs[16][:5])
    generator = seeded(3)
    first, second = (pipe(batch_size=2, generator=generator, output_type="pt").images for _ in range(2))
    assert torch.equal(first, runs[16][:2])
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    by_global = pipe(batch_size=2, output_type="pt").images
    torch.manual_seed(5)
    assert torch.equal(by_global, pipe(batch_size=2, output_type="pt").images)


def test_given_representations_skip_the_rdm(pipe: RCGPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = pipe(batch_size=3, generator=seeded(), output_type="pt")
    monkeypatch.setattr(type(pipe), "_draw_representations", None)
    given = pipe(representations=drawn.representations, generator=seeded(), output_type="pt")
    assert torch.equal(given.images, drawn.images)  # streams are apart: same seed + same representation = same image
    vectors = 2 * torch.randn(3, DIM, generator=seeded())
    each, one = (
        pipe(batch_size=3, representations=v, generator=seeded(), output_type="pt") for v in (vectors, vectors[:1])
    )
    assert torch.equal(one.images[0], each.images[0])
    assert not torch.equal(one.images[1], each.images[1])


def test_guidance(pipe: RCGPipeline) -> None:
    representations = torch.randn(2, DIM, generator=seeded())
    calls = {s: pipe(representations=representations, guidance_scale=s, generator=seeded()) for s in (1.0, 1.0001, 9.0)}
    assert torch.equal(calls[1.0].codes, calls[1.0001].codes)
    assert not torch.equal(calls[1.0].codes, calls[9.0].codes)


def test_settings_of_the_model_are_used() -> None:
    components = get_dummy_components()
    sampling = {"num_inference_steps": 3, "guidance_scale": 4.0, "temperature": 0.5, "rdm_num_inference_steps": 2}
    pipe = RCGPipeline(**components, sampling=sampling)
    plain = RCGPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(
        pipe(batch_size=2, generator=seeded(), output_type="pt").images,
        plain(batch_size=2, generator=seeded(), output_type="pt", **sampling).images,
    )
    assert plain.settings()["num_inference_steps"] == GRID * GRID  # the scheduler's 20, but there are 16 tokens
    assert plain.settings()["temperature"] == 6.0
    seen: list[tuple[int, int]] = []
    pipe(callback_on_step_end=lambda p, i, n, kw: seen.append((i, n)))
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_another_image_scheduler_brings_its_settings(tmp_path: Any) -> None:
    components = get_dummy_components()
    RCGPipeline(**components, sampling={"temperature": 0.5}).save_pretrained(tmp_path)
    scheduler = MaskGITScheduler(components["image_scheduler"].config["mask_token_id"], 3, 11.0)
    settings = RCGPipeline.from_pretrained(tmp_path, image_scheduler=scheduler).settings()
    assert (settings["num_inference_steps"], settings["temperature"]) == (3, 0.5)


def test_offloading_whole_models_is_refused(pipe: RCGPipeline) -> None:
    with pytest.raises(ValueError, match="cannot be enabled"):  # its hooks would not see what the pipeline calls
        pipe.enable_model_cpu_offload()


def test_other_rdm_schedulers(pipe: RCGPipeline) -> None:
    components = {**get_dummy_components(), "rdm_scheduler": DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, prediction_type="sample", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")}  # fmt: skip
    other = RCGPipeline(**components, sampling={"rdm_num_inference_steps": 5})
    other.set_progress_bar_config(disable=True)
    a, b = (p(batch_size=2, generator=seeded()).representations for p in (pipe, other))
    assert a.shape == b.shape
    assert not torch.equal(a, b)


# ---------------------------------------------------------------------- classes, no condition


def test_guidance_settings_are_stored_and_used(tmp_path: Any) -> None:
    components, settings = get_dummy_components(), {"guidance_schedule": "constant", "guidance_interval": (0.3, 0.9)}
    pipe = RCGPipeline(**components, sampling={**SAMPLING, "guidance_scale": 3.0, **settings})
    pipe.save_pretrained(tmp_path / "model")
    loaded = RCGPipeline.from_pretrained(tmp_path / "model")
    assert loaded.config.sampling["guidance_interval"] == [0.3, 0.9]
    plain = RCGPipeline(**components, sampling=dict(SAMPLING))
    own, given, other = (
        p(batch_size=2, generator=seeded(), output_type="pt", **arguments).codes
        for p, arguments in (
            (loaded, {}),
            (plain, {"guidance_scale": 3.0, **settings}),
            (plain, {"guidance_scale": 3.0}),
        )
    )
    assert torch.equal(own, given)
    assert not torch.equal(own, other)
    with pytest.raises(UserError, match=r"guidance_interval\[1\] is 2.0"):
        plain(guidance_interval=(0.5, 2.0))
    with pytest.raises(UserError, match="lower end first"):
        plain(guidance_interval=(0.5, 0.2))


def test_how_guidance_acts_is_refused_where_there_is_none(tmp_path: Any) -> None:
    components, interval = get_dummy_components(), {"guidance_interval": (0.3, 0.9)}
    waiting = RCGPipeline(
        **components, sampling={**SAMPLING, "guidance_scale": 1.0, **interval}
    )  # for calls with a scale
    assert waiting.settings()["guidance_interval"] == [0.3, 0.9]
    image = torch.rand(3, SIZE, SIZE)
    for given in (interval, {"guidance_schedule": "cosine"}):
        for call in (waiting, partial(waiting.reconstruct, image[None]), partial(waiting.interpolate, image, image)):
            with pytest.raises(
                UserError, match=f"{next(iter(given))} has no effect, as guidance is off .* give another scale"
            ):
                call(**given)  # type: ignore[operator]
        assert waiting.settings(guidance_scale=3.0, **given)["guidance_scale"] == 3.0
        assert (
            waiting.settings(**waiting.settings(guidance_scale=1.0, **given))["guidance_scale"] == 1.0
        )  # scales that are tried


def test_autoguidance(tmp_path: Any) -> None:
    """A guiding model makes even an unconditional generator guidable; it is saved and loaded with the pipeline."""
    components, weaker = get_dummy_components("none"), get_dummy_components("none", seed=1)["image_generator"]
    pipe = RCGPipeline(**components, guiding_model=weaker, sampling={**SAMPLING, "guidance_scale": 2.0})
    pipe.save_pretrained(tmp_path / "model")
    loaded = RCGPipeline.from_pretrained(tmp_path / "model")
    assert loaded.identity() == pipe.identity() != RCGPipeline(**components, sampling=dict(SAMPLING)).identity()
    draws = [p(batch_size=2, generator=seeded(), output_type="pt").codes for p in (pipe, loaded)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], pipe(batch_size=2, generator=seeded(), output_type="pt", guidance_scale=1.0).codes)
    with pytest.raises(UserError, match="guiding model has condition class"):
        RCGPipeline(**components, guiding_model=get_dummy_components("class")["image_generator"])


def test_a_batch_is_as_large_as_any_sequence() -> None:
    pipe = get_dummy_pipeline(condition="class")
    pipe.set_progress_bar_config(disable=True)
    generators = tuple(seeded() for _ in range(3))
    assert pipe(class_labels=range(3), generator=generators, output_type="pt").class_labels.tolist() == [0, 1, 2]


def test_class_conditional_generator() -> None:
    pipe = get_dummy_pipeline(condition="class")
    assert pipe.num_classes == CLASSES
    out = pipe(class_labels=[0, 3, 4], generator=seeded(), guidance_scale=2.0, output_type="pt")
    assert out.class_labels.tolist() == [0, 3, 4]
    assert out.representations is None
    same = pipe(batch_size=3, class_labels=3, generator=seeded(), guidance_scale=2.0, output_type="pt")
    assert torch.equal(out.images[1], same.images[1])
    assert not torch.equal(out.images[0], same.images[0])
    drawn = pipe(batch_size=64, generator=seeded(), num_inference_steps=1)
    assert set(drawn.class_labels.tolist()) == set(range(CLASSES))
    assert torch.equal(drawn.class_labels[:5], pipe(batch_size=5, generator=seeded()).class_labels)
    for labels in ([0, CLASSES], [-1, 0]):
        with pytest.raises(UserError, match=f"class label {labels[labels[0] == 0]} is out of range: .* 0 to 4"):
            pipe(class_labels=labels)
    with pytest.raises(UserError, match="3 images; give one for each"):
        pipe(batch_size=3, class_labels=[1, 2])
    assert pipe(class_labels=np.array([0, 3, 4])).class_labels.tolist() == [0, 3, 4]
    for names in (["cat"], "cat", [[1, 2], [3]]):
        with pytest.raises(UserError, match="class labels must be whole numbers, one for each image"):
            pipe(class_labels=names)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="takes no representations"):
        pipe(representations=torch.zeros(1, DIM))


def test_class_conditional_rdm() -> None:
    pipe = get_dummy_pipeline(num_classes=CLASSES)
    a, b = (pipe(batch_size=2, class_labels=c, generator=seeded()).representations for c in (0, 1))
    assert not torch.equal(a, b)
    guided = pipe(batch_size=2, class_labels=0, generator=seeded(), rdm_guidance_scale=4.0).representations
    assert not torch.equal(a, guided)
    with pytest.raises(UserError, match="out of range"):
        pipe(class_labels=CLASSES)
    with pytest.raises(UserError, match="class_labels have no effect"):
        pipe(representations=a, class_labels=0)


def test_unconditional_generator() -> None:
    pipe = get_dummy_pipeline(condition="none")
    out = pipe(batch_size=2, generator=seeded(), output_type="pt")
    assert out.representations is None
    assert not torch.equal(out.images[0], out.images[1])
    with pytest.raises(UserError, match="has no condition; leave it at 1"):
        pipe(guidance_scale=2.0)
    with pytest.raises(UserError, match="takes no representations"):
        pipe.interpolate(torch.zeros(DIM), torch.ones(DIM))
    assert pipe.encode(pictures()).shape == (2, DIM)  # an encoder does no harm


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 17}, "only 16 tokens; use 16 or fewer"),
        ({"rdm_num_inference_steps": -1}, "rdm_num_inference_steps is -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"rdm_guidance_scale": 2.0}, "this RDM has no null class"),
        ({"class_labels": 0}, "class_labels have no effect"),
        ({"output_type": "jpg"}, "output_type is 'jpg'"),
        ({"representations": torch.zeros(2, DIM + 1)}, r"representations are \[2, 13\], but this model takes .*12"),
        ({"representations": torch.zeros(DIM)}, r"representations are \[12\]"),
        ({"representations": [[0.0] * DIM]}, "representations are list"),
        ({"representations": torch.full((1, DIM), torch.nan)}, "NaN"),
        ({"representations": torch.zeros(2, DIM), "batch_size": 3}, "2 representations were given for 3 images"),
        ({"generator": [torch.Generator()], "batch_size": 2}, "1 generators were given for 2 images"),
        ({"generator": []}, "nothing to generate"),
        ({"generator": 3}, r"a generator is int, but it must be a torch\.Generator"),
        ({"generator": [torch.Generator(), None]}, "a generator is NoneType"),
        ({"batch_size": "2"}, "batch_size is '2'"),
    ],
)
def test_arguments_that_cannot_be(pipe: RCGPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**arguments)


def test_steps_of_an_rdm_that_is_not_there_are_refused_where_they_are_given() -> None:
    for pipe in (get_dummy_pipeline(condition="class"), get_dummy_pipeline(without=("rdm",))):
        stored = pipe.settings()["rdm_num_inference_steps"]
        assert stored == 4  # a model may hold a number in vain
        assert pipe.settings(**pipe.settings()) == pipe.settings()
        with pytest.raises(UserError, match="rdm_num_inference_steps 5 cannot be used: there is no RDM; leave it out"):
            pipe(rdm_num_inference_steps=5)
        with pytest.raises(UserError, match=r"--tune rdm_num_inference_steps: .* there is no RDM"):
            open_space(["rdm_num_inference_steps=2:9"], pipe.settings)


def test_a_wrong_output_type_is_refused_before_anything_is_computed(
    pipe: RCGPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError

    for part in ("rdm", "encoder"):
        monkeypatch.setattr(getattr(pipe, part), "forward", computed)
    for call in (
        pipe,
        lambda **given: pipe.reconstruct(pictures(), **given),
        lambda **given: pipe.interpolate(*pictures(), **given),
    ):
        with pytest.raises(UserError, match="output_type is 'jpg'"):
            call(output_type="jpg")


def test_numbers_of_numpy_are_numbers(pipe: RCGPipeline) -> None:
    plain = pipe(batch_size=2, guidance_scale=2.0, num_inference_steps=3, generator=seeded(), output_type="pt").images
    given = {"batch_size": np.int64(2), "guidance_scale": np.float32(2), "num_inference_steps": np.int64(3)}
    assert torch.equal(pipe(**given, generator=seeded(), output_type="pt").images, plain)
    a, b = torch.randn(2, DIM, generator=seeded())
    assert len(pipe.interpolate(a, b, num=np.int64(3)).images) == 3
    for num in (1, 2.5, "3"):
        with pytest.raises(UserError, match="at least 2"):
            pipe.interpolate(a, b, num=num)  # type: ignore[arg-type]


def _swap(name: str, **changes: Any) -> dict[str, Any]:
    components = get_dummy_components()
    config = {**components[name].config, **changes}
    components[name] = type(components[name]).from_config({k: v for k, v in config.items() if not k.startswith("_")})
    return components


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (lambda: _swap("tokenizer", num_codes=64), "makes 32 codes, but the tokenizer has 64"),
        (lambda: _swap("tokenizer", image_size=32), "grid of 4x4 tokens, but the tokenizer was trained for 8x8"),
        (lambda: _swap("tokenizer", in_channels=1), "1 channels"),
        (lambda: _swap("rdm", representation_dim=10), "of 12 numbers, but the RDM makes 10"),
        (lambda: _swap("encoder", head_dim=8), "of 12 numbers, but the encoder makes 8"),
        (lambda: {**get_dummy_components(), "rdm_scheduler": None}, "an rdm but no rdm_scheduler"),
        (lambda: {**get_dummy_components(), "rdm": None}, "an rdm_scheduler but no rdm"),
        (lambda: {**get_dummy_components(), "image_scheduler": MaskGITScheduler(mask_token_id=5)}, "mask token is 33"),
        (lambda: _swap("rdm", num_classes=2, class_dropout=0.1, label_counts=[0, 0]), "their sum 0"),
        (lambda: _swap("rdm", num_classes=2, class_dropout=0.1, label_counts=[1]), "1 numbers.* 2 classes"),
        (lambda: {**get_dummy_components(), "sampling": {"steps": 3}}, "'steps' is not known"),
        (lambda: {**get_dummy_components("none"), "sampling": {"guidance_scale": 2.0}}, "has no condition"),
        (
            lambda: {
                **get_dummy_components("none"),
                **{k: get_dummy_components()[k] for k in ("rdm", "rdm_scheduler")},
            },
            "leave the RDM out",
        ),
    ],
)
def test_components_that_do_not_fit(components: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RCGPipeline(**components())


def test_missing_parts() -> None:
    pipe = get_dummy_pipeline(without=("rdm", "encoder"))
    with pytest.raises(UserError, match="has no RDM; give representations"):
        pipe()
    with pytest.raises(UserError, match="has no encoder"):
        pipe.encode(pictures())
    assert len(pipe(representations=torch.randn(2, DIM)).images) == 2


def test_broken_weights_give_no_images(pipe: RCGPipeline) -> None:
    broken = get_dummy_pipeline()
    broken.tokenizer.quantize.embedding.weight.data.fill_(torch.nan)
    for output_type in ("pil", "np", "pt"):
        with pytest.raises(UserError, match="NaN"):
            broken(output_type=output_type)


# ---------------------------------------------------------------------- from images


def test_encode(pipe: RCGPipeline) -> None:
    images = (pictures(3) * 255).round() / 255
    representations = pipe.encode(images)
    torch.testing.assert_close(representations, pipe.encoder(images), atol=1e-6, rtol=1e-5)
    assert torch.equal(pipe.encode(images[1:2]), representations[1:2])
    pil = [Image.fromarray(i) for i in (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()]
    assert torch.equal(pipe.encode(pil), representations)
    mixed = [pil[0].resize((20, 24)), pil[1].convert("L"), pil[2]]
    assert torch.equal(pipe.encode(mixed)[2], representations[2])
    for bad, message in (
        (images * 255, r"lie in \[0, 1\]"),
        (images - 0.5, r"lie in \[0, 1\]"),
        (images * torch.nan, r"lie in \[0, 1\]"),
        ((images * 255).to(torch.uint8), "floats"),
        (images[0], "floats"),
        (images[:0], "floats"),
        (images[:, :, :0], "floats"),
        (Image.new("RGB", (0, 0)), "floats"),
        ([], "no images"),
        (images.numpy(), "not ndarray"),
        (["cat.png"], "not str"),
        (None, "not NoneType"),
    ):
        with pytest.raises(UserError, match=message):
            pipe.encode(bad)


def test_reconstruct(pipe: RCGPipeline) -> None:
    images = pictures(3)
    out = pipe.reconstruct(images, generator=seeded(), guidance_scale=2.0, output_type="pt")
    assert torch.equal(out.representations, pipe.encode(images))
    again = pipe(representations=pipe.encode(images), generator=seeded(), guidance_scale=2.0, output_type="pt")
    assert torch.equal(out.images, again.images)


@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_interpolate(pipe: RCGPipeline, mode: Any) -> None:
    a, b = pictures(2)
    out = pipe.interpolate(a, b, num=5, mode=mode, generator=seeded(), output_type="pt")
    ends = pipe.encode(torch.stack([a, b]))
    assert out.images.shape == (5, 3, SIZE, SIZE)
    torch.testing.assert_close(out.representations[[0, -1]], ends)
    torch.testing.assert_close(out.representations, standardize(out.representations))
    distance = (out.representations - ends[0]).norm(dim=1)
    assert (distance.diff() > 0).all()
    by_vector = pipe.interpolate(ends[0], ends[1:2], num=5, mode=mode, generator=seeded(), output_type="pt")
    assert torch.equal(by_vector.images, out.images)
    # every frame has the same noise: equal representations give equal images
    still = pipe.interpolate(a, a, num=3, mode=mode, generator=seeded(), output_type="pt")
    assert torch.equal(still.images[0], still.images[2])
    # … and it is the noise of that seed's first image
    assert torch.equal(
        pipe(representations=out.representations[:1], generator=seeded(), output_type="pt").images[0], out.images[0]
    )


def test_interpolate_standardises_each_part() -> None:
    pipe = get_dummy_pipeline()
    assert pipe.encoder is not None
    halves = [DIM // 2, DIM - DIM // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSLEncoder, "part_sizes", property(lambda _: halves))
        a, b = (torch.cat([standardize(half) for half in ends.split(halves, 1)], 1) for ends in torch.randn(2, 1, DIM))
        between = pipe.interpolate(a, b, num=3, mode="linear", generator=seeded()).representations[1]
    for part in between.split(halves):
        assert float(part.std()) == pytest.approx(1, abs=0.1)  # as the encoder's: each on its own, then all together
        assert float(part.mean()) == pytest.approx(0, abs=1e-5)


def test_interpolate_without_standardisation() -> None:
    pipe = get_dummy_pipeline(without=("encoder",))
    a, b = torch.randn(2, DIM, generator=seeded())
    raw = pipe.interpolate(a, b, num=3, mode="linear", generator=seeded()).representations
    torch.testing.assert_close(raw[1], (a + b) / 2)
    whitened = pipe.interpolate(a, b, num=3, mode="linear", standardized=True, generator=seeded()).representations
    torch.testing.assert_close(whitened, standardize(raw))
    for arguments, message in (
        ((a, b, 1), "at least 2"),
        ((a, -a), "opposite"),
        ((a, torch.zeros(DIM)), "zero vector"),
        ((a, b[:5]), "representations are"),
        ((a, b, 3, "cubic"), "mode is 'cubic'"),
        ((a, -a, 3, "linear", True), "a blend of the two is constant"),
    ):
        with pytest.raises(UserError, match=message):
            pipe.interpolate(*arguments)
    with pytest.raises(UserError, match="takes one generator"):
        pipe.interpolate(a, b, generator=[seeded()])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- precision, devices


def test_bf16(pipe: RCGPipeline) -> None:
    half = get_dummy_pipeline().to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    out = half(batch_size=4, generator=seeded(), output_type="pt")
    assert out.images.dtype == torch.float32
    assert torch.isfinite(out.images).all()
    reference = pipe.encode(pictures())
    assert (half.encode(pictures()) - reference).norm() < 0.05 * reference.norm()


def test_exact_knows_no_tf32_in_any_part(pipe: RCGPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    import rcg.rdm.ddpm.generator as ddpm

    allowed = list[bool]()

    def drawn(*args: Any, **options: Any) -> torch.Tensor:
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return sample_representations(*args, **options)

    monkeypatch.setattr(ddpm, "sample_representations", drawn)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        for exact in (False, True):
            pipe(exact=exact, rdm_num_inference_steps=50)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert allowed == [True, False]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu(pipe: RCGPipeline) -> None:
    gpu = get_dummy_pipeline().to("cuda")
    out = gpu(batch_size=8, generator=seeded(), output_type="pt")
    assert out.images.device.type == "cuda"
    reference = pipe(batch_size=8, generator=seeded(), output_type="pt")
    torch.testing.assert_close(out.representations.cpu(), reference.representations, atol=1e-4, rtol=1e-4)
    assert (out.codes.cpu() == reference.codes).float().mean() > 0.9


def test_labels_are_drawn_as_often_as_they_are_counted() -> None:
    seeds = [derive_seed(0, i) for i in range(4000)]
    drawn = resolve_labels(None, 4000, 4, seeds, counts=[1, 0, 6, 3])
    assert drawn is not None
    shares = drawn.bincount(minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.0, 0.6, 0.3], abs=0.03)
    even = resolve_labels(None, 4000, 4, seeds)
    assert even is not None
    assert (even.bincount(minlength=4) / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)
