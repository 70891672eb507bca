"""The executor for Slurm, with a stand-in for its commands that runs what it is given at once."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from atopipe.pipeline.sweep.executors.interface import Trial
from atopipe.pipeline.sweep.executors.slurm import Slurm, waves
from atopipe.pipeline.system.errors import MissingError, UsageError

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="signals")
SBATCH = """#!/bin/bash
# Notes its arguments; runs an array at once, task by task, and the wrapped command of another job not at all.
echo "$@" >> {folder}/calls
[ -e {folder}/refuses ] && {{ echo "sbatch: error: Invalid partition" >&2; exit 1; }}
id=$(wc -l < {folder}/calls)
for argument in "$@"; do
    case "$argument" in --array=*) range=${{argument#--array=1-}} ;; *.sbatch) script=$argument ;; esac
done
if [ -n "$script" ]; then
    for task in $(seq "${{range%%%*}}"); do
        SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task bash "$script" "${{@: -1}}" > /dev/null 2>&1
        echo "$id $task $?" >> {folder}/codes
    done
fi
echo "$id"
"""
SQUEUE = """#!/bin/bash
cat {folder}/queued 2>/dev/null
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the path, with the commands and what they note."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("squeue", SQUEUE),
        ("scontrol", '#!/bin/bash\necho "$@" >> {folder}/requeued\n'),
    ):
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def trial(name: str, code: str, after: str | None = None) -> Trial:
    return Trial(name, (sys.executable, "-c", code), Path(name), Path("logs") / f"{name}.log", after)


def submitted(*trials: Trial, jobs: int | None = None) -> list[str]:
    said: list[str] = []
    Slurm(Path("curve"), jobs, said.append).run(trials, lambda told: None)
    return said


def test_trials_become_arrays_that_wait_for_each_other_and_a_job_that_collects(cluster: Path) -> None:
    first, rest = trial("first", "print('it''s first')"), [trial(name, f"print('{name}')", "first") for name in "ab"]
    said = submitted(*rest, first, jobs=3)
    calls = (cluster / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["--array=1-1%3", "--array=1-2%3", "--dependency=afterany:2"]
    assert "--dependency=afterok:1 --kill-on-invalid-dep=yes" in calls[1]
    assert "sweep report curve" in calls[2]
    assert [Path(f"logs/{name}.log").read_text() for name in ("first", "a", "b")] == ["its first\n", "a\n", "b\n"]
    assert said == ["submitted as jobs 1, 2, 3: see 'atopipe sweep status curve' and squeue"]


def test_a_failed_gate_is_no_failed_job_and_other_codes_are(cluster: Path) -> None:
    submitted(*(trial(f"c{code}", f"raise SystemExit({code})") for code in (0, 3, 4, 5, 130)))
    assert [line.split()[2] for line in (cluster / "codes").read_text().splitlines()] == ["0", "0", "0", "5", "130"]
    assert (cluster / "requeued").read_text() == "requeue 1_5\n"


def test_settings_in_the_environment_do_not_reach_a_run(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOPIPE_EPOCHS", "99")
    submitted(trial("one", "import os; print('ATOPIPE_EPOCHS' in os.environ)"))
    assert Path("logs/one.log").read_text() == "False\n"


def test_the_text_that_a_user_has_changed_is_kept(cluster: Path) -> None:
    submitted(trial("one", "pass"))
    script = Path("curve/slurm/array.sbatch")
    script.write_text(script.read_text().replace("##SBATCH --partition=gpu", "#SBATCH --partition=mine"))
    submitted(trial("two", "pass"))
    assert "#SBATCH --partition=mine" in script.read_text()


def test_jobs_that_are_queued_are_not_submitted_again(cluster: Path) -> None:
    submitted(trial("one", "pass"))
    (cluster / "queued").write_text("1\n1\n2\n")
    with pytest.raises(UsageError, match="jobs 1, 2 of 'curve' are queued: wait, or 'scancel 1 2'"):
        submitted(trial("one", "pass"))


def test_what_slurm_refuses_is_told(cluster: Path) -> None:
    (cluster / "refuses").touch()
    with pytest.raises(MissingError, match=r"sbatch refuses the job: sbatch: error: Invalid partition: change"):
        submitted(trial("one", "pass"))


def test_without_slurm_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="needs the command sbatch"):
        Slurm(tmp_path, None, print)


def test_waves_keep_the_order() -> None:
    trials = [trial("c", "", "b"), trial("b", "", "a"), trial("a", ""), trial("d", "", "done before")]
    assert [[t.name for t in wave] for wave in waves(trials)] == [["a", "d"], ["b"], ["c"]]
