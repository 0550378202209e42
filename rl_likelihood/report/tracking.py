"""An optional copy of a run in wandb. The files of the workdir are the record. If wandb is missing or fails, one line
says so and the run goes on without it."""

import uuid
from pathlib import Path
from typing import Any

from rl_likelihood.shapes import UserError

ID = "wandb_id"
BOARD = "tensorboard"  # folder of a workdir


class Tracker:
    """Copies of a run's numbers: one run in wandb, and with `board` TensorBoard's files in the workdir.

    wandb's id is saved in the workdir, so that a resumed run continues it.

    `mode` is off, offline (a folder wandb/ in the workdir, for `wandb sync`) or online. wandb shows `config` as the
    run's settings.
    """

    def __init__(self, workdir: Path, mode: str, project: str, config: dict[str, Any], board: Any = None):
        self._run, self._board = None, board
        if mode != "off":
            self._run = self._tried("did not start", lambda: _start(workdir, mode, project, config))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers by name, after `step` updates."""
        if self._run is not None:
            self._tried("failed", lambda: self._run.log(numbers, step=int(step)))
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, int(step))
            self._board.flush()

    def close(self, failed: bool = False) -> None:
        """Ends what there is."""
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._tried("did not end", lambda: self._run.finish(exit_code=int(failed)))
            self._run = None

    def _tried(self, what: str, act):
        try:
            return act()
        except Exception as error:  # a copy never stops the run that it copies
            said = " ".join(str(error).split()) or type(error).__name__
            print(f"warning: wandb {what} ({said}); the run goes on without it, its files have everything", flush=True)
            self._run = None


def board(workdir: Path, step: int) -> Any:
    """What writes TensorBoard's files. Numbers after `step`, from which the run goes on, are hidden there."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as e:
        raise UserError(
            "report.tensorboard is True, but tensorboardX is missing; pip install -e '.[tensorboard]', or set "
            "it to False"
        ) from e
    return SummaryWriter(str(workdir / BOARD), purge_step=step + 1 if step > 0 else None)


def _start(workdir: Path, mode: str, project: str, config: dict[str, Any]):
    import wandb  # it takes over a second to import, and most runs do without it

    path = workdir / ID
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12] + "\n")
    return wandb.init(
        project=project,
        name=workdir.name,
        id=path.read_text().strip(),
        resume="allow" if mode == "online" else None,
        dir=str(workdir),
        mode=mode,
        config=config,
    )
