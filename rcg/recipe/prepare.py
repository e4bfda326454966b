"""Before anything is trained: look at the images, choose encoder and judge, measure, plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rcg.core.durations import as_flag, in_words
from rcg.data.sources import ImageSource
from rcg.encoders.ssl_encoder import SSLEncoder
from rcg.eval.features import FeatureExtractor
from rcg.recipe.journal import Journal
from rcg.recipe.judging import choose_extractor
from rcg.recipe.look import Look, in_sentences, look_at
from rcg.recipe.measure import Stopwatch
from rcg.recipe.plan import Plan, expectation, make_plan, propose_seconds, seconds_of, wanted_images
from rcg.recipe.progress import clock_time, plan_in_words
from rcg.recipe.rates import Rates, key
from rcg.recipe.settings import Settings
from rcg.recipe.stages import chosen_encoder, new_encoder, open_encoder
from rcg.recipe.wishes import Wishes

LOOK_SHARE, LOOK_SECONDS = 0.02, 15.0
"""Of the budget, and at most: for comparing images with each other."""
MEASURE_SHARE, MEASURE_SECONDS = 0.006, 6.0
"""Of the budget, and at most: for each of half a dozen measurements."""


@dataclass
class Preparer:
    """Looks, measures and plans.

    Args:
        wishes, settings: of the run.
        source: the images.
        say: tells people what is going on.
        clock: tells the time in seconds.
        begun: by the clock, since when the budget runs.
    """

    wishes: Wishes
    settings: Settings
    source: ImageSource
    say: Callable[[str], None]
    clock: Callable[[], float]
    begun: float

    def prepare(self) -> Journal | None:
        """The plan and what it rests on, said aloud; None if a budget was only proposed.

        Raises:
            UserError: too few images, too short a budget, an encoder or extractor that cannot be had.
        """
        wishes, settings = self.wishes, self.settings
        budget = wishes.seconds
        spec = chosen_encoder(wishes)
        encoder = new_encoder(settings, wishes.seed) if spec is None else open_encoder(spec)
        name, extractor = choose_extractor(wishes.extractor, wishes.extractor_weights, encoder, self.say)
        look = look_at(self.source, seconds=min(LOOK_SECONDS, LOOK_SHARE * (budget or 3600.0)), clock=self.clock)
        for sentence in in_sentences(look):
            self.say(sentence)
        self.say("Measuring a few steps of each stage on this machine …")
        seconds = min(MEASURE_SECONDS, MEASURE_SHARE * (budget or 3600.0))
        stopwatch = Stopwatch(settings, wishes.device, wishes.seed, seconds, self.clock)
        made = self._measure(look, stopwatch, encoder, extractor, trains=spec is None)
        if made is None:
            return None
        budget, rates, plan = made
        spent = self.clock() - self.begun
        whole = spent + seconds_of(plan)
        self.say(f"The plan, {in_words(whole)} in all, {in_words(spent)} of them over:")
        for line in plan_in_words(plan, settings):
            self.say(line)
        self.say(f"It should end at {clock_time(seconds_of(plan))}.")
        return {
            "format": 1,
            "wishes": wishes.recorded(),
            "budget": budget,
            "look": look,
            "rates": rates,
            "encoder": spec,
            "extractor": name,
            "first_plan": plan,
            "plan": plan,
            "seconds": whole,
            "spent": spent,
            "took": {"preparation": spent},
            "distances": {},
            "guidance_scale": None,
        }

    def _measure(
        self, look: Look, stopwatch: Stopwatch, encoder: SSLEncoder, extractor: FeatureExtractor, trains: bool
    ) -> tuple[float, Rates, Plan] | None:
        """The budget, the rates of everything that the plan uses, and the plan; None if a budget was only proposed."""
        wishes, settings, budget = self.wishes, self.settings, self.wishes.seconds
        side = wishes.image_size or settings.image_sizes[0]
        dim = encoder.representation_dim
        rdm_speed, rdm = stopwatch.rdm(dim, bool(encoder.config.standardize))
        size = settings.generators[min(1, len(settings.generators) - 1)]
        rates: Rates = {
            "encode": stopwatch.encoding(encoder, side),
            "encoder": stopwatch.new_encoder() if trains else None,
            "rdm": rdm_speed,
            "generators": {key(size, side): stopwatch.generator(size, side, dim, rdm)},
            "score": stopwatch.scoring(extractor, side),
        }
        if budget is None:
            budget = propose_seconds(look, rates, settings, wishes.image_size)
            seen = wanted_images(look, settings)
            self.say(
                f"Proposed: --budget {as_flag(budget)}, in which a {side} px generator sees about {seen:,} images; "
                f"{expectation(seen, look['count'])}."
            )
            if not wishes.yes:
                self.say("Start with that budget or another one, or add --yes to take it.")
                return None
        while True:
            spent = self.clock() - self.begun
            plan = make_plan(look, rates, settings, budget - spent, spent=spent, image_size=wishes.image_size)
            size, side = settings.size(plan["generator"]), plan["image_size"]
            if key(size, side) in rates["generators"]:
                return budget, rates, plan
            rates["generators"][key(size, side)] = stopwatch.generator(size, side, dim, rdm)
