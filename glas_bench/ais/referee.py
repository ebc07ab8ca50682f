"""The referee: annealed importance sampling of trained models, which needs no q.

The real images are walked at N temperatures and, independently, at 2N; as many images that the
model made are walked both ways at N temperatures; `verdict` accepts or refuses the result. A walk
that is stopped after any move continues later with the same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from glas_bench import ais, contract, evaluate
from glas_bench.ais.annealing import Annealing, Course
from glas_bench.ais.decoder import images_at_once, latents, log_likelihood_for, simulates
from glas_bench.ais.verdict import Verdict, paired
from glas_bench.config import RunConfig, protocol_key
from glas_bench.core import rollout
from glas_bench.core.train import scoring
from glas_bench.data import Splits
from glas_bench.errors import UsageError
from glas_bench.model import Glas
from glas_bench.record import Partial, Scores, SeedFolder
from glas_bench.text import duration
from glas_bench.yardstick.weights import PerImage

IMAGES, CHAINS, TEMPERATURES, LEAPFROG, PILOT = 100, 16, 1000, 10, 100

Tell = Callable[[dict[str, Any]], None]
"""Called with events for a display; it may raise to stop."""


class Referee:
    """AIS of one trained model.

    Args:
        model: on the device of the data.
        config: its cell.
        splits: the data.
        seed: the training seed, from which all noise is derived.
        images: size of a seeded random draw from the test split; by default at most 100.
        temperatures: N.
        chains: independent walks an image.
        leapfrog: gradients a move.
        pilot: temperatures of the pilot run.
        chunk: images at a time; by default as many as fit.

    Raises:
        UsageError: a number out of range, or log p(x|z) is no log-probability.
    """

    def __init__(
        self,
        model: Glas,
        config: RunConfig,
        splits: Splits,
        seed: int,
        *,
        images: int | None = None,
        temperatures: int = TEMPERATURES,
        chains: int = CHAINS,
        leapfrog: int = LEAPFROG,
        pilot: int = PILOT,
        chunk: int | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.splits = splits
        given = type(model), model.settings, model.likelihood.name
        if problem := contract.likelihood_problem(*given):
            raise UsageError(f"--estimator ais: {problem}")
        self.likelihood = log_likelihood_for(
            model, lambda text: self.tell({"event": "note", "text": text})
        )
        total = len(splits.test.images)
        images = min(IMAGES, total) if images is None else images
        if not 1 <= images <= total:
            raise UsageError(f"--images {images}: give 1 to {total}, the images of the test split")
        least = {
            "temperatures": (temperatures, 2),
            "chains": (chains, 2),
            "leapfrog": (leapfrog, 1),
        }
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise UsageError(f"--{name} {value}: give {lowest} or more")
        self.simulates = simulates(model) and contract.draw_problem(*given) is None
        self.images = evaluate.scored_images(total, images)
        self.latents = model.steps * model.noise_size
        self.how = Annealing(
            chains=chains,
            temperatures=temperatures,
            leapfrog=leapfrog,
            pilot=pilot,
            seed=seed,
            chunk=chunk,
            device=splits.test.images.device,
            dtype=next(model.parameters()).dtype,
        )
        numbers = ("chains", "temperatures", "leapfrog", "pilot", "acceptance")
        self.protocol = {"estimators": ["ais"], "images": images}
        self.protocol |= {name: getattr(self.how, name) for name in numbers}
        self.key = protocol_key(self.protocol)

    def score(
        self, partial: Partial | None = None, tell: Tell = lambda event: None
    ) -> tuple[dict[str, Any], PerImage]:
        """Return scores (JSON-ready, null where there is no number) and per-image values.

        Args:
            partial: where half-done work is kept, if anywhere.
            tell: called after every move; if it raises, the work done is kept first.

        Raises:
            NotFinite: log p(x|z) is not a number for images that the model has made.
        """
        pixels = self.splits.test.images
        x_BP = pixels[self.images.to(pixels.device)].to(self.how.dtype)
        with self._scoring():
            if self.how.chunk is None:
                chunk = images_at_once(self.model, x_BP[:1], self.how)
                self.how = dataclasses.replace(self.how, chunk=chunk)
            self._begin(x_BP, partial or Partial(), tell)
            twice = dataclasses.replace(self.how, temperatures=2 * self.how.temperatures)
            once, again = ais.walks(
                self.likelihood,
                x_BP,
                self.latents,
                self.images.tolist(),
                (self.how, twice),
                run=functools.partial(self._course, "real"),
            )
            both = self._both_ways() if self.simulates else None
        verdict = Verdict(self.how, self.images, len(pixels), once, again, both)
        by_course = self.kept["seconds"].items()
        seconds = {
            part: round(sum(s for name, s in by_course if name.startswith(part)), 3)
            for part in ("real", "simulated")
        }
        scores = {"protocol": self.protocol, "split": "test", **verdict.scores()}
        scores |= {"seconds": round(sum(seconds.values()), 3), "seconds_of": seconds}
        return scores, verdict.per_image()

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        """Put the model into scoring mode, where no parameter takes a gradient."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with scoring(self.model, self.config, self.splits):
                yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    # ---- time

    def _begin(self, x_BP: Tensor, partial: Partial, tell: Tell) -> None:
        """Load what a stopped call has kept, and report how long the rest will take."""
        self.partial, self.tell = partial, tell
        self.name = f"ais-{self.how.chunk}"  # chunks of another size are other courses
        kept = partial.load(self.name)
        parts = ("outcomes", "state", "seconds", "moves")
        self.kept: dict[str, dict[str, Any]] = {part: kept.get(part, {}) for part in parts}
        look, at_once = self.likelihood(x_BP[: self.how.chunk]), len(x_BP[: self.how.chunk])
        a_move = ais.seconds_a_move(look, self.latents, at_once, self.how)
        self.seconds_an_image: float = a_move / at_once  # of one move
        N, pilot = self.how.temperatures, self.how.moves(0, pilot=True)
        an_image = pilot + (N - 1) + (2 * N - 1)
        if self.simulates:
            an_image += pilot + 2 * (N - 1)
        self.total = len(x_BP) * an_image
        self.done = sum(self.kept["moves"].values())
        text = (
            f"AIS of {len(x_BP)} images at {N} and {2 * N} temperatures, {self.how.chains} chains, "
            f"and of as many simulated ones both ways: about {duration(self._seconds_left)}"
        )
        text += f", {self.done / self.total:.0%} done before" if self.done else ""
        tell({"event": "note", "text": text})

    @property
    def _seconds_left(self) -> float:
        return float((self.total - self.done) * self.seconds_an_image)

    # ---- courses

    def _both_ways(self) -> ais.Bidirectional:
        def simulate(z_BD: Tensor, normals: Callable[[int], Tensor]) -> Tensor:
            canvas_BP = rollout.generate(self.model, latents(self.model, z_BD[None]))
            return self.model.draw_pixels(canvas_BP, normals(canvas_BP.shape[1]))

        run = functools.partial(self._course, "simulated")
        try:
            return ais.bidirectional(
                self.likelihood, simulate, self.latents, len(self.images), self.how, run=run
            )
        except ValueError as error:
            raise evaluate.NotFinite(f"{error}: the model cannot be refereed") from error

    def _course(
        self, part: str, name: str, images: int, make: Callable[[], Course]
    ) -> dict[str, Tensor]:
        """Return the outcome of a course: kept, resumed, or from its start."""
        name, state = f"{part}-{name}", self.kept["state"]
        outcomes: dict[str, dict[str, Tensor]] = self.kept["outcomes"]
        if name in outcomes:
            return outcomes[name]
        course = make()
        if name in state:
            course.load(state[name])
        before, began = self.kept["seconds"].get(name, 0.0), time.perf_counter()

        def note() -> None:
            self.kept["seconds"][name] = before + time.perf_counter() - began
            self.kept["moves"][name] = course.done * images

        def keep() -> None:
            note()
            self.kept["state"] = {name: course.state()}
            self.partial.keep(self.name, self.kept)

        while not course.finished:
            if self.partial.due:
                keep()
            course.advance()
            self.done += images
            event = {"event": "score", "done": self.done, "total": self.total}
            try:
                self.tell({**event, "stage": "annealing", "seconds_left": self._seconds_left})
            except Exception:
                keep()
                raise
        note()
        outcomes[name] = {key: value.cpu() for key, value in course.outcome().items()}
        return outcomes[name]


def score_into(
    folder: SeedFolder,
    referee: Referee,
    tell: Tell = lambda event: None,
    every: float = 30,
) -> Scores:
    """Score into a seed's folder, or read back the scores that are there; return them.

    `paired`, which compares them with the run's own scores, is computed on every call: those may be
    newer. The caller holds the run's lock.

    Args:
        folder: the seed's.
        referee: the model and the protocol.
        tell: see `Referee.score`.
        every: seconds between writes of half-done work.

    Raises:
        NotFinite: log p(x|z) is not a number for images that the model has made.
        RunError: the folder cannot be written.
    """
    partial = Partial(folder.path / "eval", referee.key, every)
    scores: Mapping[str, Any] | None = folder.scores(referee.key)
    if scores is not None:
        values = folder.per_image(referee.key)
    else:
        scores, values = referee.score(partial, tell)
    own_key = protocol_key(evaluate.protocol(referee.config))
    total = len(referee.splits.test.images)
    scored = evaluate.scored_images(total, referee.config.images).numpy()
    corrections = paired(folder, own_key, scored, values["image"], values["ais"])
    if scores.get("paired") != corrections:
        folder.save_scores(referee.key, {**scores, "paired": corrections}, values)
        partial.remove()
    return folder.scores(referee.key) or {}
