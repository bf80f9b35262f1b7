"""What test_cluster.py has done on a cluster; every job imports this, so it imports little."""

import os
import time

from loralab import RunRecord
from loralab.pairs import digest


def work(job):
    if job == "raise":
        raise ValueError("no good")
    if job == "die":
        os._exit(3)
    started = time.monotonic()
    time.sleep(0.1)
    return os.getpid(), started, time.monotonic()


def linger(told):
    told.write_text(str(os.getpid()))
    time.sleep(300)


def write_place(folder):
    """Says that it has begun; ends when it is told to."""
    (folder / f"begun-{os.getpid()}").touch()
    wait_until((folder / "go").exists)
    return os.getpid()


def wait_until(happened, seconds=90):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def save_or_fail(job):
    if job.rank == 2:
        raise MemoryError("too much")
    record = RunRecord(
        name=job.name, base=job.base.name, trainable=job.rank, parameters=100, train_pairs=len(job.data.pairs), tokens=10,
        epochs=job.epochs, batch_size=1, learning_rate=job.learning_rate, seed=job.seed, losses=[1.0], seconds=1.0,
        peak_memory=1, dtype="float32", alpha=2 * job.rank, dropout=0, targets=sorted(job.modules),
        eval_pairs=len(job.data.eval_pairs), train_digest=digest(job.data.pairs), eval_digest=digest(job.data.eval_pairs),
    )  # fmt: skip
    record.save(job.folder)
    (job.folder / "deeper").mkdir()
    (job.folder / "deeper" / "weights").write_bytes(b"\x00\xff" * job.rank)
    return record
