"""The referee: annealed importance sampling of trained models, which needs no q.

The real images are walked at N temperatures and, independently, at 2N; as many images that the
model made are walked both ways at N temperatures; `verdict` says what it amounts to. Every walk can
be left after any move and taken up again at the same numbers, which is what a process asked to stop
does. Shape suffixes as in `decoder`.

The walks and their keeping stand in one file: what is kept follows the order of the walks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glas_bench import ais, evaluate, signals
from glas_bench.ais.annealing import AISResult, Annealing, Course, Pilot, Walk, joined
from glas_bench.ais.decoder import canvas, images_at_once, log_likelihood_for, simulates
from glas_bench.ais.verdict import Verdict, paired, text
from glas_bench.config import protocol_key
from glas_bench.core.train import scoring
from glas_bench.errors import UsageError
from glas_bench.record import write_atomically
from glas_bench.runs.trained import Trained
from glas_bench.runs.worker import TELL_EVERY, Stopped, Tell, checkpoint_seconds
from glas_bench.text import duration
from glas_bench.yardstick.unfinished import PerImage

__all__ = ["Referee", "check", "score", "text"]

IMAGES, CHAINS, TEMPERATURES, LEAPFROG, PILOT = 100, 16, 1000, 10, 100


# --------------------------------------------------------------------------- what is kept


class Kept:
    """Courses done and the one under way, in a file that goes when the scores are stored.

    Args:
        path: where it lies.
        key: protocol and chunk size; a file of another is passed over.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        self.every = checkpoint_seconds()
        self.saved_at = time.monotonic()
        self.values: dict[str, np.ndarray] = {}
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                values = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return
        if str(values.pop("key", "")) == key:
            self.values = values

    def under(self, name: str) -> dict[str, Tensor]:
        """Return the tensors kept under a name."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): torch.from_numpy(value)
            for key, value in self.values.items()
            if key.startswith(prefix)
        }

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under a name, in place of what was there."""
        self.drop(name)
        self.values |= {f"{name}/{key}": value.cpu().numpy() for key, value in tensors.items()}

    def drop(self, name: str) -> None:
        """Forget what was kept under a name."""
        self.values = {k: v for k, v in self.values.items() if not k.startswith(f"{name}/")}

    @property
    def is_due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self.saved_at >= self.every

    def write(self) -> None:
        """Write all that is kept."""
        values = {**self.values, "key": np.array(self.key)}
        write_atomically(self.path, lambda file: np.savez(file, **values))  # type: ignore[arg-type]
        self.saved_at = time.monotonic()


# --------------------------------------------------------------------------- the walks


class Referee:
    """AIS of one trained seed.

    Args:
        trained: the seed.
        images: how many, a seeded random draw from the test split; at most 100 unless said.
        temperatures: N.
        chains: an image.
        leapfrog: gradients a move.
        pilot: temperatures of the pilot run.
        chunk: images at a time; as many as fit unless said.

    Raises:
        UsageError: a number that cannot be.
    """

    def __init__(
        self,
        trained: Trained,
        images: int | None = None,
        temperatures: int = TEMPERATURES,
        chains: int = CHAINS,
        leapfrog: int = LEAPFROG,
        pilot: int = PILOT,
        chunk: int | None = None,
    ) -> None:
        self.trained = trained
        self.model = trained.model
        self.likelihood = log_likelihood_for(trained.model)
        self.test = trained.splits.test
        total = len(self.test.images)
        images = min(IMAGES, total) if images is None else images
        check(total, images=images, temperatures=temperatures, chains=chains, leapfrog=leapfrog)
        self.images = evaluate.scored_images(total, images)
        self.latents = self.model.steps * self.model.noise_size
        self.how = Annealing(
            chains=chains,
            temperatures=temperatures,
            leapfrog=leapfrog,
            pilot=pilot,
            seed=trained.seed,
            chunk=chunk,
            device=self.test.images.device,
            dtype=next(self.model.parameters()).dtype,
        )
        self.protocol = {
            "estimators": ["ais"],
            "images": images,
            "chains": chains,
            "temperatures": temperatures,
            "leapfrog": leapfrog,
            "pilot": pilot,
            "acceptance": self.how.acceptance,
        }
        self.key = protocol_key(self.protocol)

    def score(self, path: Path, tell: Tell = lambda event: None) -> tuple[dict[str, Any], PerImage]:
        """Return scores (JSON-ready, null where there is no number) and per-image values.

        Args:
            path: where half-done work is kept.
            tell: called with events for a display.

        Raises:
            Stopped: the process was asked to stop; what is done is kept.
            NotFinite: log p(x|z) is not a number for images that the model has made.
        """
        x_BP = self.test.images[self.images.to(self.test.images.device)].to(self.how.dtype)
        with self._at_work():
            if self.how.chunk is None:
                chunk = images_at_once(self.model, x_BP[:1], self.how)
                self.how = dataclasses.replace(self.how, chunk=chunk)
            self.kept = Kept(path, f"{self.key} {self.how.chunk}")
            self._begin(x_BP, tell)
            twice = dataclasses.replace(self.how, temperatures=2 * self.how.temperatures)
            once, again = self._walks("real", x_BP, self.images.tolist(), (self.how, twice))
            both = None
            if simulates(self.model):
                both = ais.sandwich(*self._both_ways())
        images, total = self.images, len(self.test.images)
        verdict = Verdict(self.how, images, total, once, again, both)
        seconds = {name: round(s, 3) for name, s in self.seconds.items()}
        scores = {"protocol": self.protocol, "split": "test", **verdict.scores()}
        scores |= {"seconds": round(sum(seconds.values()), 3), "seconds_of": seconds}
        return scores, verdict.per_image()

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Score with the cell's threads, the parameters held still."""
        threads = torch.get_num_threads()
        held = [p for p in self.model.parameters() if p.requires_grad]
        torch.set_num_threads(self.trained.record.config.threads)
        torch.set_flush_denormal(True)
        try:
            for parameter in held:
                parameter.requires_grad_(False)
            with scoring(self.model, self.trained.record.config, self.trained.splits):
                yield
        finally:
            for parameter in held:
                parameter.requires_grad_(True)
            torch.set_num_threads(threads)

    # ---- time

    def _begin(self, x_BP: Tensor, tell: Tell) -> None:
        """Say what is ahead and how long it will take."""
        self.tell = tell
        self.told = -math.inf
        self.seconds = {"real": 0.0, "simulated": 0.0}
        for part in self.seconds:
            for name, value in self.kept.under("seconds").items():
                if name.startswith(part):
                    self.seconds[part] += float(value)
        at_once = min(self.how.chunk or len(x_BP), len(x_BP))
        look = self.likelihood(x_BP[:at_once])
        a_move = ais.seconds_a_move(look, self.latents, at_once, self.how)
        self.seconds_an_image = a_move / at_once  # of one move
        N, pilot = self.how.temperatures, self.how.moves(0, pilot=True)
        an_image = pilot + (N - 1) + (2 * N - 1)
        if simulates(self.model):
            an_image += pilot + 2 * (N - 1)
        self.total = len(x_BP) * an_image
        self.done = sum(int(value) for value in self.kept.under("moves").values())
        tell(
            {
                "event": "note",
                "text": f"AIS of {len(x_BP)} images at {N} and {2 * N} temperatures, "
                f"{self.how.chains} chains, and of as many simulated ones both ways: about "
                f"{duration(self._seconds_left)}"
                + (f", {self.done / self.total:.0%} done before" if self.done else ""),
            }
        )

    @property
    def _seconds_left(self) -> float:
        return (self.total - self.done) * self.seconds_an_image

    def _tell(self) -> None:
        if time.monotonic() - self.told < TELL_EVERY and self.done < self.total:
            return
        self.told = time.monotonic()
        self.tell(
            {
                "event": "score",
                "done": self.done,
                "total": self.total,
                "stage": "annealing",
                "seconds_left": self._seconds_left,
            }
        )

    # ---- courses

    def _both_ways(self) -> tuple[AISResult, AISResult]:
        def simulate(z_BD: Tensor, normals: Callable[[int], Tensor]) -> Tensor:
            canvas_BP = canvas(self.model, z_BD[None])
            return self.model.draw_pixels(canvas_BP, normals(canvas_BP.shape[1]))

        index = range(len(self.images))
        z_BD, x_BP = ais.simulated(simulate, self.latents, index, self.how)
        try:
            forward, reverse = self._walks("simulated", x_BP, index, (self.how, self.how), z_BD)
        except ValueError as error:
            raise evaluate.NotFinite(f"{error}: the model cannot be refereed") from error
        return forward, reverse

    def _walks(
        self,
        part: str,
        x_BP: Tensor,
        index: Sequence[int],
        hows: Sequence[Annealing],
        start_BD: Tensor | None = None,
    ) -> list[AISResult]:
        """Walk all images once each way; the last walk goes back from `start_BD` if there is one.

        Raises:
            Stopped: the process was asked to stop.
        """
        parts: list[list[AISResult]] = [[] for _ in hows]
        for chunk, s in enumerate(self.how.slices(len(x_BP))):
            look = self.likelihood(x_BP[s])
            pilot = functools.partial(Pilot, look, self.latents, self.how, index[s])
            steps_KB = self._course(f"{part}-{chunk}-pilot", s, pilot)["step_size_KB"]
            for i, how in enumerate(hows):
                start = start_BD[s] if start_BD is not None and i == len(hows) - 1 else None
                walk = functools.partial(Walk, look, self.latents, how, index[s], steps_KB, start)
                parts[i].append(AISResult(**self._course(f"{part}-{chunk}-{i}", s, walk)))
        return [joined(results) for results in parts]

    def _course(self, name: str, s: slice, make: Callable[[], Course]) -> dict[str, Tensor]:
        """Return what came of a course: read back, taken up where it was left, or from its start.

        Raises:
            Stopped: the process was asked to stop; its state is kept.
        """
        kept = self.kept
        if found := kept.under(name):
            return found
        images = s.stop - s.start
        course = make()
        before = float(kept.under("seconds").get(name, 0.0))
        if state := kept.under("now-" + name):
            course.load(state)
        part = name.partition("-")[0]
        started = time.perf_counter()

        def note() -> None:
            spent = before + time.perf_counter() - started
            kept.values[f"seconds/{name}"] = np.array(spent)
            kept.values[f"moves/{name}"] = np.array(course.done * images)

        while not course.finished:
            if signals.requested() or kept.is_due:
                kept.put("now-" + name, course.state())
                note()
                kept.write()
                if signals.requested():
                    raise Stopped
            course.advance()
            self.done += images
            self._tell()
        kept.drop("now-" + name)
        kept.put(name, course.outcome())
        note()
        self.seconds[part] += time.perf_counter() - started
        return kept.under(name)


def check(total: int, *, images: int, temperatures: int, chains: int, leapfrog: int) -> None:
    """Refuse numbers that cannot be, before anything is computed.

    Raises:
        UsageError: with what is allowed.
    """
    if not 1 <= images <= total:
        raise UsageError(f"--images {images}: give 1 to {total}, the images of the test split")
    least = {"temperatures": (temperatures, 2), "chains": (chains, 2), "leapfrog": (leapfrog, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise UsageError(f"--{name} {value}: give {lowest} or more")


# --------------------------------------------------------------------------- the command


def score(
    trained: Trained,
    images: int | None = None,
    temperatures: int = TEMPERATURES,
    chains: int = CHAINS,
    leapfrog: int = LEAPFROG,
    pilot: int = PILOT,
    *,
    tell: Tell = lambda event: None,
) -> dict[str, Any]:
    """Return a finished seed's AIS scores, JSON-ready; what is stored already is read back.

    `paired`, which sets them beside the run's own scores, is made anew each time: those may have
    come later. The run's lock is held by the caller.

    Raises:
        UsageError: a number that cannot be.
        Stopped: the process was asked to stop; the same call goes on from there.
        NotFinite: log p(x|z) is not a number for images that the model has made.
    """
    referee = Referee(trained, images, temperatures, chains, leapfrog, pilot)
    folder = trained.record.seeds[trained.seed].folder
    path = folder.path / "eval" / f"{referee.key}.partial.npz"
    if (scores := folder.scores(referee.key)) is not None:
        values = folder.per_image(referee.key)
    else:
        with signals.graceful():
            scores, values = referee.score(path, tell)
    own_key = protocol_key(evaluate.protocol(trained.record.config))
    total = len(trained.splits.test.images)
    scored = evaluate.scored_images(total, trained.record.config.images).numpy()
    corrections = paired(folder, own_key, scored, values["image"], values["ais"])
    if scores.get("paired") != corrections:
        folder.save_scores(referee.key, {**scores, "paired": corrections}, values)
        path.unlink(missing_ok=True)
    stored = folder.scores(referee.key) or {}
    return {"seed": trained.seed, "protocol_key": referee.key, "estimator": "ais", **stored}
