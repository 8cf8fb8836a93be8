"""Two workers of a process group on this machine's CPU."""

import multiprocessing

import torch
import torch.distributed as dist


def run(work, folder) -> list:
    """What `work(rank)` gives in each of two processes, forked from this one.

    Args:
        work: called with 0 and 1; what it returns is stored by `torch.save`.
        folder: an empty one.
    """
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_worker, args=(work, folder, rank), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _worker(work, folder, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()
