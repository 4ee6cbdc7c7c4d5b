"""What a training run writes about itself: means of its figures in log.csv, TensorBoard and on the console.

Not here: when to write (runs.py), and checkpoints.
"""

import csv
import os
import time
from pathlib import Path

import torch

from utils import UserError


class Log:
    """What a run writes: means of the steps' figures, to log.csv, TensorBoard and the console.

    Under torchrun there is one in each process, which add up their figures; only that of rank 0 writes.
    """

    def __init__(self, processes, steps):
        self.processes, self.steps = processes, steps
        self.writes = processes.rank == 0
        self.sums, self.count = {}, 0
        self.row, self.figures = {}, {}  # of the step that is being written, and the last of each
        self.first_bad = torch.zeros((), dtype=torch.int64, device=processes.device)

    def open(self, folder, columns, start):
        """Open log.csv (step and `columns`) and TensorBoard's file, to go on after step `start`."""
        self.clock, self.clock_step, self.waited = time.perf_counter(), start, 0.0
        if not self.writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # half a second, which evaluating needs not wait for

        self.columns = ["step", *columns]
        self.csv_file = self._open_csv(folder / "log.csv", start)
        self.board = SummaryWriter(str(folder), purge_step=start + 1)

    def _open_csv(self, path, start):
        """The open log.csv, with the rows of earlier steps only: what a killed run wrote after its last save goes."""
        rows = []
        if path.exists():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if None not in row.values() and int(row["step"]) <= start]
            # Columns of a version before, which had other losses, stay.
            self.columns += [column for column in reader.fieldnames or () if column not in self.columns]
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, path)
        return open(path, "a", newline="")

    def print(self, *words):
        if self.writes:
            print(*words, flush=True)

    def add(self, step, figures):
        """Add up the step's figures, tensors of one number, which stay on the device."""
        figures = {key: value.detach().float() for key, value in figures.items()}
        total = sum(figures.values())
        self.first_bad = torch.where((self.first_bad == 0) & ~torch.isfinite(total), step, self.first_bad)
        for key, value in figures.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.count += 1

    def means(self, step, learning_rate):
        """Record, print and return the means of what was added since the last call."""
        means = self._mean_of_processes({key: value / self.count for key, value in self.sums.items()})
        means = {key: value.item() for key, value in means.items()}
        self.sums, self.count = {}, 0
        self.record(step, learning_rate=learning_rate, **means)
        self._print_means(step, means)
        return means

    def _print_means(self, step, means):
        seconds = time.perf_counter() - self.clock
        rate = (step - self.clock_step) / seconds
        if self.writes:
            self.board.add_scalar("speed/steps_per_second", rate, step)
            self.board.add_scalar("speed/share_waiting_for_data", self.waited / seconds, step)
        figures = "  ".join(f"{key} {value:.4g}" for key, value in means.items() if not key.startswith("share_"))
        left = (self.steps - step) / rate
        self.print(f"step {step}/{self.steps}  {figures}  {rate:.2f} steps/s  ETA {duration(left)}")
        self.clock, self.clock_step, self.waited = time.perf_counter(), step, 0.0

    def _mean_of_processes(self, figures):
        """The mean over the processes of figures that each has of its own share of the batch."""
        if self.processes.count == 1:
            return figures
        figures = {key: value / self.processes.count for key, value in figures.items()}
        for value in figures.values():
            torch.distributed.all_reduce(value)
        return figures

    def record(self, step, **figures):
        """Take figures of a step for log.csv and TensorBoard."""
        if not self.writes:
            return
        self.row |= {"step": step} | figures
        self.figures |= figures
        for key, value in figures.items():
            self.board.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def write_row(self):
        """Write what was recorded since the last row. Raises UserError if it cannot be written."""
        if not self.row:
            return
        try:
            more = [key for key in self.row if key not in self.columns]  # a term of one's own, say
            if more:
                self.columns += more
                self.csv_file.close()
                self.csv_file = self._open_csv(Path(self.csv_file.name), self.row["step"])
            csv.DictWriter(self.csv_file, self.columns).writerow(self.row)
            self.csv_file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.csv_file.name}: {error.strerror}; go on with --resume") from None
        self.row = {}

    def close(self, arguments=None):
        """Close TensorBoard's file; of a run that has come to its end, with its arguments and last figures."""
        if not self.writes:
            return
        if arguments is not None:
            options = {key: v if isinstance(v, (int, float)) else str(v) for key, v in arguments.items()}
            self.board.add_hparams(options, {f"final/{key}": value for key, value in self.figures.items()}, run_name=".")
        self.board.close()

    def state(self):
        """The sums since the last row, for a checkpoint; to be asked in all processes."""
        return {"sums": {key: value.item() for key, value in self._mean_of_processes(self.sums).items()}, "count": self.count}

    def restore(self, state):
        self.sums = {key: torch.tensor(value, device=self.first_bad.device) for key, value in state["sums"].items()}
        self.count = state["count"]


def duration(seconds):
    """Seconds as 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
