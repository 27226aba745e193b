"""A callback that leaves a mark."""

from pathlib import Path

from pytorch_lightning import Callback


class Heartbeat(Callback):
    """Writes the number of training batches that it saw to `heartbeat.txt` in the run folder."""

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen += 1

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.is_global_zero:
            (Path(trainer.default_root_dir) / self.name).write_text(f"{self.seen}\n")
