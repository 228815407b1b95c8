"""Going on where torchrun starts the processes of a run again, after one of them has ended (--max_restarts).

torchrun starts the same command, which would begin the run anew. So it is resumed from last.pt, if an earlier start by
the same torchrun wrote that.
"""

import os
import uuid

from minigpt.checkpoint import LAST, newest_intact
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic

LAUNCH = "launch.txt"  # file in a run's folder: what `find_launch` returns


def find_launch(out):
    """An id that all starts of a run's processes by one torchrun share, and no others, from the run's folder `out`.

    torchrun's own id may be that of an earlier run in the folder: a user may give it by --rdzv_id, and its default may
    be "none". So the first start adds a random part. Returns None without --max_restarts, and in processes that do
    not write. Raises UserError where the folder cannot be written to.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or os.environ.get("RANK") != "0":
        return None
    own = os.environ["TORCHELASTIC_RUN_ID"]
    try:
        if is_restart() and (out / LAUNCH).exists():
            launch = (out / LAUNCH).read_text(encoding="utf-8")
            if launch.startswith(f"{own} "):
                return launch
        launch = f"{own} {uuid.uuid4().hex}"
        write_atomic(out / LAUNCH, lambda file: file.write(launch.encode()))
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); give another --out_dir") from None
    return launch


def is_restart():
    """Whether torchrun has started the processes again, after one of them has ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def go_on_after_restart(run):
    """Make a `TrainingRun` resume, by its settings, where torchrun has started its processes again.

    Before the first save it begins as the settings say. Every process must call this.
    """
    if not is_restart():
        return
    if run.processes.from_main(run.launch is not None and has_saved(run.launch, run.out)):
        run.settings.init_from = "resume"
        run.say(f"torchrun has started the processes again: the run in {run.out} goes on from its {LAST}")
    else:
        run.say(f"torchrun has started the processes again, and nothing of this run is saved in {run.out}: it begins")


def has_saved(launch, out):
    """Whether the newest intact checkpoint that a run in a folder can be resumed from was written by this launch."""
    try:
        return newest_intact(out, mmap=True).get("launch") == launch
    except UserError:
        return False
