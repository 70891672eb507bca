"""What the stages of one process share: device, data, network. Loaded once, on first use."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from atopipe.pipeline.config.schema import Config
from atopipe.pipeline.engine.process_group import replicated
from atopipe.pipeline.engine.start import input_of, load_start, new_model, normalised, weights_of
from atopipe.pipeline.report.terminal import Display
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.job import started_by_slurm, this_job
from atopipe.pipeline.system.signals import StopRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from atopipe.ato.execution import Execution, Forward
    from atopipe.ato.groups import Groups
    from atopipe.ato.search.budget import Budget
    from atopipe.ato.search.selection import WidthSteps
    from atopipe.ato.training.norm_estimates import Calibration
    from atopipe.pipeline.data.dataset import Batches, Data, SplitBatches
    from atopipe.pipeline.engine.preflight import Preflight
    from atopipe.pipeline.models.wrappers import Note


class Stream(IntEnum):
    """The random streams of a run: each is drawn from for one purpose only, so that none depends on another's use."""

    GROUPS = 0
    BATCHES = 1
    TRAINING = 2
    PROOF = 3
    PREFLIGHT = 4
    CALIBRATION = 5
    STATISTICS = 6


STATISTICS_BATCH = 64
UNKNOWN = -1  # no network was built yet


class Workspace:
    """What is loaded for the run `config`; the `display` is told of the device and the data when they are."""

    def __init__(self, config: Config, display: Display) -> None:
        self.config = config
        self.display = display
        self.job = this_job()
        self.stop = StopRequest()
        self.trained_on: Mapping[str, Any] | None = None  # what the data have to be, if the network is trained
        self._where_logits_are: int | str | None = UNKNOWN

    @cached_property
    def threads(self) -> int:
        """CPU threads of torch and ONNX Runtime: as configured, or this process's share of what the job may use."""
        from atopipe.pipeline.system.machine import available_processors

        return self.config.threads or available_processors()

    @contextmanager
    def limited_threads(self) -> Iterator[None]:
        """While active, torch computes with `threads`; then with as many as before."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @cached_property
    def device(self) -> "torch.device":
        """CUDA where there is one, else the CPU, unless the configuration says which; a GPU for each process."""
        import torch

        wanted, present = self.config.device, torch.cuda.is_available()
        if wanted == "cuda" and not present:
            raise MissingError("--device cuda: torch finds no CUDA GPU here: choose --device cpu, or repair the driver")
        device = self._own_gpu() if present and wanted != "cpu" else torch.device("cpu")
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"threads: {self.threads}"
        several = f", {self.job.size} processes" if self.job.size > 1 else ""
        self.display.say(f"device  {device.type} ({name}, {_written(self._precision(device))}{several})")
        return device

    def _own_gpu(self) -> "torch.device":
        import torch

        gpus = torch.cuda.device_count()
        if gpus == 1 and started_by_slurm():  # --gpus-per-task=1 shows each process its own
            return torch.device("cuda", 0)
        if self.job.local_size > gpus:
            remedy = "start one process per GPU, or choose --device cpu"
            raise MissingError(f"this job has {self.job.local_size} processes here and {gpus} GPUs: {remedy}")
        return torch.device("cuda", self.job.local_rank) if self.job.size > 1 else torch.device("cuda")

    def _precision(self, device: "torch.device") -> "torch.dtype":
        from atopipe.ato.execution import PRECISIONS

        return PRECISIONS[self.config.recipe.precision](device)

    def execution(self, model: "nn.Module") -> "Execution":
        """How `model`, still on the CPU, is run in training."""
        import torch

        from atopipe.ato.execution import Execution, best_memory_format

        precision, layout = self._precision(self.device), best_memory_format(model, self.example)
        several, compiled = self.job.size > 1, self.config.recipe.compile

        def wrap(network: "nn.Module") -> "Forward":
            runner = replicated(network) if several else network
            return torch.compile(runner) if compiled else runner

        return Execution(precision, layout, wrap)

    def conditions(self, execution: "Execution") -> dict[str, str | int | bool]:
        """What the training ran on and how, in plain words."""
        return {
            "device": self.device.type,
            "threads": self.threads,
            "precision": _written(execution.precision),
            "memory_format": _written(execution.memory_format),
            "compiled": self.config.recipe.compile,
            "processes": self.job.size,
        }

    @cached_property
    def data(self) -> "Data":
        from atopipe.pipeline.data.answer import answer, require_same
        from atopipe.pipeline.data.load import load_data

        settings = self.config.data
        data = load_data(
            settings.source,
            seed=self.config.seed,
            val_fraction=settings.val_fraction,
            least_crop=self.config.recipe.least_crop,
            on_progress=self.display.loading,
            **input_of(self.config),
        )
        self.display.say(f"data    {data.description}")
        data, note = normalised(self.config, data)
        if note:
            self.display.say(note)
        if self.trained_on is not None:
            require_same(settings.source, self.trained_on, answer(data))
        return data

    @cached_property
    def answer(self) -> dict[str, Any]:
        """What the source of the images answered, for its record and its checkpoints."""
        from atopipe.pipeline.data.answer import answer

        return answer(self.data)

    def train_batches(self) -> "SplitBatches":
        """Shuffled and augmented, this process's share of each; the same order in every stage and process of a run.

        Raises DataError where there are too few images for one.
        """
        from atopipe.pipeline.data.dataset import Share

        size, order = self.config.recipe.batch_size, self.generator(Stream.BATCHES)
        share = Share(self.job.rank, self.job.size)
        return self.data.train.batches(size, device=self.device, generator=order, share=share)

    def val_batches(self) -> "Batches":
        """This process's share of the validation set."""
        from atopipe.pipeline.data.dataset import Share

        share = Share(self.job.rank, self.job.size)
        return self.data.val.batches(self.config.recipe.batch_size, device=self.device, share=share)

    def calibration(self, execution: "Execution") -> "Calibration | None":
        """Training images, the same in every process, for the statistics of normalisation layers; None if unwanted."""
        import torch

        from atopipe.ato.training.norm_estimates import Calibration

        train, wanted = self.data.train, self.config.recipe.statistics_images
        if not wanted:
            return None
        size = min(STATISTICS_BATCH, wanted, len(train))
        count = min(wanted, len(train)) // size * size
        chosen = torch.randperm(len(train), generator=self.generator(Stream.STATISTICS))[:count]
        return Calibration(train.take(chosen).batches(size, device=self.device), execution)

    def head(self, model: "nn.Module") -> "str | None":
        """The layer that gives the logits, where it learns at a rate of its own."""
        from atopipe.ato.discovery.capture import head_layer

        return None if self.config.recipe.weights.head_rate == 1 else head_layer(model, self.example)

    def check_model(self) -> None:
        """Refuses what can be refused before the images, which may take minutes, are read.

        A model of a library that cannot be built, and weights that are not there.
        """
        weights_of(self.config, fetched=True)
        if ":" not in self.config.model.name:
            new_model(self.config, 2)

    def new_model(self, note: "Note" = lambda text: None) -> "nn.Module":
        """The dense network, freshly initialised from the seed; `note` is told what had to be done with it."""
        import torch

        from atopipe.pipeline.models.outputs import find_logits, give_logits

        torch.manual_seed(self.config.seed)
        model, classes = new_model(self.config, len(self.data.labels), note), len(self.data.labels)
        if self._where_logits_are is UNKNOWN:
            who = f"model '{self.config.model.name}'"
            self._where_logits_are = find_logits(model, self.images(2), classes, who)
        return give_logits(model, self._where_logits_are)

    def first_model(self) -> "nn.Module":
        """The network as training starts from it: with the weights that the configuration names, if any.

        UsageError where it has not one logit for each class.
        """
        from atopipe.pipeline.models.contract import require_copyable, require_logits

        model = self.new_model(lambda text: self.display.say(f"model   {text}"))
        who, classes = f"model '{self.config.model.name}'", len(self.data.labels)
        require_logits(model, who, self.example, classes)
        require_copyable(model, who)
        if self.config.model.weights is not None:
            self.display.say(f"weights {load_start(self.config, model, classes)}")
        return model

    def groups(self, model: "nn.Module") -> "Groups":
        """What of the network may be pruned and what the configuration selects; refusals name the network."""
        from atopipe.ato.discovery.capture import GraphError
        from atopipe.ato.discovery.find import find_groups
        from atopipe.ato.groups import NoGroupsError
        from atopipe.pipeline.models.contract import require_trainable
        from atopipe.pipeline.models.layer_filter import choose

        settings = self.config.model
        try:
            generator, seen = self.generator(Stream.GROUPS), self.display.searching
            found = find_groups(model, self.example, generator, on_progress=seen)
        except (GraphError, NoGroupsError) as error:
            raise UsageError(f"model '{settings.name}' cannot be pruned: {error}") from error
        require_trainable(model, f"model '{settings.name}'", self.example, len(self.data.labels))
        return choose(found, model, keep=settings.keep, only=settings.only)

    def preflight(
        self, model: "nn.Module", groups: "Groups", budgets: "Sequence[Budget]", steps: "WidthSteps | None" = None
    ) -> "Preflight":
        """Removal, export and parity with random weights and masks; UsageError where they do not work."""
        from atopipe.pipeline.engine.preflight import passed_preflight, run_preflight

        align, generator = steps or self.config.recipe.align, self.generator(Stream.PREFLIGHT)
        check = partial(run_preflight, model, groups, budgets, self.example, align=align, generator=generator)
        return passed_preflight(self.config.model.name, check)

    def generator(self, stream: Stream) -> "torch.Generator":
        """A CPU generator of that stream of the run's seed, unlike that of any other seed."""
        import numpy as np
        import torch

        state = np.random.SeedSequence([self.config.seed, int(stream)]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def images(self, count: int) -> "Tensor":
        """`count` (or all) preprocessed validation images, spread over the set: float32 [N, C, H, W], on the CPU."""
        import torch

        split = self.data.val
        chosen = split.take(torch.linspace(0, len(split) - 1, min(count, len(split))).round().long())
        images, _ = next(iter(chosen.batches(len(chosen), device="cpu")))
        return images

    @cached_property
    def example(self) -> "Tensor":
        """One image [1, C, H, W] that lends its shape to traces and counts."""
        return self.images(1)


def _written(kind: object) -> str:
    """A number format or a memory format of torch without its prefix."""
    return str(kind).removeprefix("torch.")
