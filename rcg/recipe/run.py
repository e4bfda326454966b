"""`train_pipeline`: from a folder of images to a scored pipeline within a time budget. What `rcg-train` does, for Python.

OUT/plan.json                     what was planned, and how far it is carried out (see `rcg.recipe.journal`)
OUT/encoder, cache, rdm, generator   the stages, each a folder as its own command leaves it
OUT/held-out, held-out.npz        images that nothing was trained on, and their statistics
OUT/guidance/SCALE                images by which the scale of guidance was chosen
OUT/model, images, metrics.json   the pipeline, what it draws, and its score
OUT/index.html                    all of it on a page
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from rcg.core.components import load_model
from rcg.core.durations import in_words
from rcg.core.errors import UserError
from rcg.core.files import atomic_folder, claimed, write_json
from rcg.core.hardware import pick_device
from rcg.core.parts import Share
from rcg.core.pictures import spread
from rcg.core.schema import check_config
from rcg.data.build import CacheField, Views, build_cache
from rcg.data.cache import Cache
from rcg.data.images import ImageDataset
from rcg.data.layout import images_at_hand
from rcg.data.part import Part
from rcg.data.sources import ImageSource, open_source
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval.reports import format_table, read_report
from rcg.pipeline import RCGPipeline
from rcg.rdm.train import open_data
from rcg.recipe.drawing import best_scale, draw_folder, take_over
from rcg.recipe.journal import Journal, read_journal, write_journal
from rcg.recipe.judging import Judge, open_features, write_pictures
from rcg.recipe.page import write_page
from rcg.recipe.plan import amount_of
from rcg.recipe.prepare import Preparer
from rcg.recipe.progress import Progress
from rcg.recipe.rates import HELD_OUT_SHARE, MOST_HELD_OUT, key
from rcg.recipe.schedule import Schedule
from rcg.recipe.settings import Settings, check_image_size, default_settings
from rcg.recipe.stages import (
    encoder_stage,
    generator_in_box,
    generator_stage,
    open_encoder,
    rdm_stage,
    training_config,
    weaker_generator,
)
from rcg.recipe.wishes import Wishes
from rcg.sampling.stored import write_sampling
from rcg.training.loop import train
from rcg.training.stage import Stage
from rcg.training.subset import hold_out

NOTE_SECONDS = 5.0
"""Between notes of the time that was spent, which a killed run goes on from."""
SHARD_SECONDS = 30.0
"""Of work in a shard of the cache, about: what a kill may cost."""
SHARD_IMAGES = (64, 4096)
RDM_HELD_OUT, RDM_LEAST = 0.05, 40
"""The share of the representations that the RDM is judged by, and how many these should be at least, if it can be."""


def train_pipeline(
    wishes: Wishes,
    settings: Settings | None = None,
    *,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Journal | None:
    """Look, measure, plan, train, draw and score; or go on with that.

    Args:
        wishes: what is asked for.
        settings: sizes and shares; the library's own by default.
        say: tells people what is going on.
        clock: tells the time in seconds.

    Returns:
        what was done; None if a budget was only proposed.

    Raises:
        UserError: wishes that cannot be fulfilled, and whatever the stages raise.
    """
    check_config(wishes)
    if Share.from_environment().world > 1:
        raise UserError("the recipe runs in one process; start it without torchrun, or run its stages one by one.")
    with claimed(wishes.out):
        return _train_pipeline(wishes, settings or default_settings(), say, clock)


def _train_pipeline(
    wishes: Wishes, settings: Settings, say: Callable[[str], None], clock: Callable[[], float]
) -> Journal | None:
    if not wishes.new_generator:
        settings = dataclasses.replace(settings, start=generator_in_box(settings))
    check_image_size(settings, wishes.image_size)
    pick_device(wishes.device)  # what cannot be is said before the images are opened, which may take long
    if wishes.resume:
        journal = read_journal(wishes)
        source = open_source(wishes.data)
        if source.fingerprint != journal["look"]["fingerprint"]:
            raise UserError(f"--resume: the images in {wishes.data} have changed since; start again in another --out.")
    else:
        begun = clock()  # opening the images for the first time counts, too
        source = open_source(wishes.data)
        planned = Preparer(wishes, settings, source, say, clock, begun).prepare()
        if planned is None:
            return None
        journal = planned
        write_journal(wishes.out, journal)
    return Runner(wishes, settings, source, journal, say, clock).run()


class Runner:
    """Carries a plan out, from wherever it stands.

    Args:
        wishes, settings: of the run.
        source: the images.
        journal: the plan, which is kept up to date in `OUT/plan.json`.
        say, clock: see `train_pipeline`.
    """

    def __init__(
        self,
        wishes: Wishes,
        settings: Settings,
        source: ImageSource,
        journal: Journal,
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.wishes, self.settings, self.journal, self.say, self.clock = wishes, settings, journal, say, clock
        self.out, self.seed, self.device = wishes.out, wishes.seed, pick_device(wishes.device)
        kept, held = hold_out(len(source), MOST_HELD_OUT, HELD_OUT_SHARE)
        self.training = Part(source, kept, "without those held out")
        self.held_out = Part(source, held[spread(len(held), journal["plan"]["reference"])], "held out")
        self.schedule = Schedule(
            journal["plan"],
            journal["look"],
            journal["rates"],
            settings,
            journal["seconds"],
            journal["spent"],
            journal["took"],
            clock,
        )
        self.progress = Progress(self.schedule)
        self._noted = clock()
        self.work: dict[str, Callable[[], None]] = {
            "encoder": self._encoder,
            "cache": self._cache,
            "rdm": self._rdm,
            "generator": self._generator,
            "guidance": self._guidance,
            "images": self._images,
            "score": self._score,
            "page": self._page,
        }

    def run(self) -> Journal:
        """Do what is left to do."""
        if not self.schedule.todo:
            self.progress.close()
            self.say(f"{self.out} is finished; nothing to do.")
            return self.journal
        try:
            while todo := self.schedule.todo:
                self._show(todo[0])
                self.work[todo[0]]()
                self.schedule.finish(todo[0])
                self._note()
        except KeyboardInterrupt:
            self.say("\nStopped; the same command with --resume goes on from here.")
            raise
        finally:
            self.progress.close()
            self._note()
        self._tell()
        return self.journal

    def _note(self) -> None:
        """Write down how far all is."""
        schedule = self.schedule
        self.journal |= {"plan": schedule.plan, "spent": schedule.spent, "took": schedule.took}
        write_journal(self.out, self.journal)
        self._noted = self.clock()

    def _show(self, name: str, done: int = 0) -> None:
        """Show how far a stage is, and write it down now and then."""
        self.progress.show(name, done)
        if self.clock() - self._noted > NOTE_SECONDS:
            self._note()

    def _amount(self, name: str) -> int:
        return amount_of(self.schedule.plan, name)

    # ------------------------------------------------------------------ training

    def _train(
        self,
        name: str,
        make: Callable[[], Stage],
        flags: dict[str, Any],
        seconds_a_step: float,
        data: str,
        *,
        lr: float | None = None,
    ) -> None:
        """Train a stage, from wherever it stands; its length is set anew on the way.

        Args:
            name: of the stage.
            make: builds it; after each review a new one goes on.
            flags, seconds_a_step, lr: see `training_config`.
            data: recorded as what it was trained on.
        """
        while True:
            steps = self._amount(name)
            config = training_config(
                flags, self.out / name, steps, self.settings.looks[name], seconds_a_step=seconds_a_step,
                device=self.wishes.device, seed=self.seed, lr=lr,
            )  # fmt: skip
            times: list[tuple[int, float]] = []
            due: list[int | None] = []

            def watch(step: int, times: list[tuple[int, float]] = times, due: list[int | None] = due) -> bool:
                times.append((step, self.clock()))
                if not due:
                    due.append(self.schedule.next_review(name, step - 1))
                self._show(name, step)
                return step == due[0]

            train(make(), config, extra_config={"data": data}, watch=watch)
            if not times or times[-1][0] >= steps:
                return
            (first, begun), (last, ended) = times[0], times[-1]
            seen = (ended - begun) / (last - first) if last > first else seconds_a_step
            self.schedule.review(name, last, seen)
            self._note()

    def _encoder(self) -> None:
        side, settings = self.settings.encoder_shape.image_size, self.settings
        rate = self.journal["rates"]["encoder"]
        assert rate is not None
        data = ImageDataset(self.training, side)
        self._train(
            "encoder",
            lambda: encoder_stage(data, settings, self.seed),
            settings.encoder,
            rate["step"],
            self.training.name,
        )

    def _cache(self) -> None:
        """The views and their representations; beside them the held-out pictures, and a given encoder."""
        plan, rates = self.schedule.plan, self.journal["rates"]
        if (given := self.journal["encoder"]) is not None and not (self.out / "encoder").exists():
            with atomic_folder(self.out / "encoder") as folder:
                open_encoder(given).save_pretrained(folder)
        write_pictures(self.held_out, self.out / "held-out", plan["image_size"])
        encoder, views = load_model(SSLEncoder, self.out / "encoder"), Views()
        done = self.settings.views * images_at_hand(self.out / "cache")

        def encode(images: Tensor) -> Tensor:
            nonlocal done
            done += len(images)
            self._show("cache", done // self.settings.views)
            return encoder(images)

        each = self.journal["look"]["decode"] + self.settings.views * rates["encode"]
        least, most = SHARD_IMAGES
        build_cache(
            self.training,
            self.out / "cache",
            {
                "images": CacheField(views, views, "uint8"),
                "representations": CacheField(encoder, encode),
            },
            plan["image_size"],
            self.settings.views,
            seed=self.seed,
            shard_size=max(least, min(most, round(SHARD_SECONDS / max(each, 1e-9)))),
            device=self.device,
            progress=False,
            command=shlex.join(["rcg-train", "--data", self.wishes.data, "--out", str(self.out), "--resume"]),
        )

    def _rdm(self) -> None:
        cache = self.out / "cache"
        count = self.schedule.plan["training_images"]
        data = open_data(cache, held_out_share=max(RDM_HELD_OUT, min(0.2, RDM_LEAST / count)))
        speed = self.journal["rates"]["rdm"]["step"]
        self._train("rdm", lambda: rdm_stage(data, self.settings, self.seed), self.settings.rdm, speed, str(cache))

    def _generator(self) -> None:
        plan, settings = self.schedule.plan, self.settings
        size, side = settings.size(plan["generator"]), plan["image_size"]
        cache = Cache(self.out / "cache", ["images", "representations"])
        dim = cache.fields["representations"][0]
        self._train(
            "generator",
            lambda: generator_stage(cache, settings, size, side, dim, self.seed),
            settings.generator,
            self.journal["rates"]["generators"][key(size, side)]["step"],
            str(cache.folder),
            lr=size.lr,
        )

    # ------------------------------------------------------------------ drawing and judging

    def _judge(self) -> Judge:
        name = self.journal["extractor"]
        encoder = load_model(SSLEncoder, self.out / "encoder") if name == "encoder" else None
        extractor = open_features(name, self.wishes.extractor_weights, encoder)
        return Judge(extractor, self.out / "held-out", self.device)

    def _guidance(self) -> None:
        """Draw with each scale of guidance, and store the one that is judged best in the pipeline."""
        plan = self.schedule.plan
        weaker = weaker_generator(self.settings, plan["generator"], plan["image_size"], self.journal["encoder"])
        pipe = RCGPipeline.from_stages(self.out / "generator", None, self.out / "rdm", self.out / "encoder", weaker)
        quiet(pipe).to(self.device)
        judge, count = self._judge(), self._amount("guidance")
        for i, scale in enumerate(self.settings.scales):
            folder, name = self.out / "guidance" / f"{scale:g}", f"{scale:g}"

            def show(done: int, before: int = i) -> None:
                self._show("guidance", (before * count + done) // len(self.settings.scales))

            draw_folder(pipe, folder, count, self.seed, scale, show)
            if name not in self.journal["distances"]:
                self.journal["distances"][name] = judge.distance(folder)
                self._note()
        best = best_scale(self.journal["distances"])
        self.journal["guidance_scale"] = best
        with atomic_folder(self.out / "model") as folder:
            pipe.save_pretrained(folder)
            write_sampling(folder, {"guidance_scale": best})

    def _images(self) -> None:
        best = self.journal["guidance_scale"]
        assert best is not None
        take_over(self.out / "guidance" / f"{best:g}", self.out / "images")
        pipe = quiet(RCGPipeline.from_pretrained(self.out / "model")).to(self.device)
        total = self.schedule.plan["images"]
        begun = total - self._amount("images")
        draw_folder(
            pipe, self.out / "images", total, self.seed, best, lambda done: self._show("images", max(0, done - begun))
        )

    def _score(self) -> None:
        result = self._judge().score(self.out / "images")
        write_json(self.out / "metrics.json", result | {"config": self.wishes.recorded()})

    def _page(self) -> None:
        write_page(self.out, self.settings, self.journal | {"spent": self.schedule.spent, "took": self.schedule.took})

    def _tell(self) -> None:
        """Say where everything is, and whether the announced end held."""
        announced, real = self.journal["seconds"], self.schedule.spent
        self.say(format_table({"images": read_report(self.out / "metrics.json")}))
        self.say(
            f"Guidance {self.journal['guidance_scale']:g} was the best of those tried, and is the model's own now."
        )
        self.say(f"Announced: {in_words(announced)}; taken: {in_words(real)} ({real / announced - 1:+.0%}).")
        self.say(
            f"The pipeline is in {self.out / 'model'}, images in {self.out / 'images'}, figures in "
            f"{self.out / 'metrics.json'}; open {self.out / 'index.html'} to see all of it."
        )


def quiet(pipe: RCGPipeline) -> RCGPipeline:
    """The pipeline without a progress bar of its own."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
