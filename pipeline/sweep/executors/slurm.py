"""The executor for Slurm: an array job as a text that a user may read and change, and a job that collects.

It submits and returns: Slurm runs the trials, requeues them at the time limit or when a node is lost, and the last job
reports. Run directories have to lie on storage that every node sees.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from atopipe.pipeline.sweep.executors.interface import Tell, Trial
from atopipe.pipeline.system.errors import MissingError, UsageError
from atopipe.pipeline.system.files import write_text
from atopipe.pipeline.system.text import first_line

TEMPLATE = Path(__file__).parent / "array.sbatch"
JOBS = "jobs.txt"  # the jobs that were submitted last


class Slurm:
    """Submits arrays of trials for the sweep in `root`, so many `jobs` of each at a time; `say` is told their ids."""

    def __init__(self, root: Path, jobs: int | None, say: Callable[[str], None]) -> None:
        self.root, self.folder, self.jobs, self.say = root, root / "slurm", jobs, say
        if shutil.which("sbatch") is None:
            raise MissingError("--executor slurm needs the command sbatch: run it where Slurm is, or choose local")

    def run(self, trials: Sequence[Trial], tell: Tell) -> None:
        """Submits every trial, those that wait for another one in a second array, and returns at once."""
        self._require_none_queued()
        if not trials:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        script = self.folder / TEMPLATE.name
        if not script.exists():
            write_text(script, TEMPLATE.read_text(encoding="utf-8"))
        ids: list[str] = []
        for number, wave in enumerate(waves(trials)):
            tasks = self.folder / f"runs{number + 1}.txt"
            write_text(tasks, "".join(f"{line_of(trial)}\n" for trial in wave))
            after = [f"--dependency=afterok:{ids[-1]}", "--kill-on-invalid-dep=yes"] if ids else []
            limit = f"%{self.jobs}" if self.jobs else ""
            ids.append(_sbatch([f"--array=1-{len(wave)}{limit}", *after, str(script), str(tasks)]))
        ids.append(_sbatch([f"--dependency=afterany:{ids[-1]}", *self._collecting()]))
        write_text(self.folder / JOBS, " ".join(ids))
        self.say(f"submitted as jobs {', '.join(ids)}: see 'atopipe sweep status {self.root}' and squeue")

    def _collecting(self) -> list[str]:
        report = [sys.executable, "-m", "atopipe.pipeline", "sweep", "report", str(self.root)]
        return ["--job-name=atopipe-report", f"--output={self.folder / 'report.log'}", "--wrap", shlex.join(report)]

    def _require_none_queued(self) -> None:
        """UsageError while jobs of an earlier call may still start: two of them would work in one directory."""
        file = self.folder / JOBS
        ids = file.read_text(encoding="utf-8").split() if file.exists() else []
        if ids and (queued := _output(["squeue", "--noheader", "--format=%A", f"--jobs={','.join(ids)}"], missing="")):
            still = sorted({*queued.split()})
            raise UsageError(f"jobs {', '.join(still)} of '{self.root}' are queued: wait, or 'scancel {' '.join(ids)}'")


def waves(trials: Sequence[Trial]) -> Iterator[list[Trial]]:
    """The trials that wait for nothing that is still to be done, then those that wait for these, and so on."""
    left = list(trials)
    while left:
        names = {trial.name for trial in left}
        ready = [trial for trial in left if trial.after not in names]
        yield ready
        left = [trial for trial in left if trial not in ready]


def line_of(trial: Trial) -> str:
    """The trial as a shell command."""
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    return f"{shlex.join(trial.command)} >> {shlex.quote(str(trial.log))} 2>&1"


def _sbatch(arguments: Sequence[str]) -> str:
    """The id of the job."""
    return _output(["sbatch", "--parsable", *arguments]).partition(";")[0].strip()


def _output(command: Sequence[str], missing: str | None = None) -> str:
    """What a command of Slurm prints; `missing` where it fails, or MissingError with its reason."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    if missing is not None:  # jobs that are over are no longer known
        return missing
    raise MissingError(
        f"{command[0]} refuses the job: {first_line(RuntimeError(done.stderr))}: change slurm/array.sbatch"
    )
