"""Data-parallel training whose dropout does not depend on how many processes share the work.

    python examples/torch_data_parallel.py

A mask is a value of the whole batch, by global index: each process takes its rows of it, ``mask[rows]``, and nobody
sends a bit. The same network is trained by one process and by two, over gloo: their masks are equal, and their weights
differ by the rounding of sums alone. With torch's own dropout each process draws what its own generator holds.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fastdrop as fd
import fastdrop.torch as fdt

BATCH, INPUTS, HIDDEN, P, STEPS, RATE = 64, 20, 128, 0.5, 20, 0.1


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, x, mask):
        return self.two(fdt.dropout(self.one(x).relu(), mask=mask))


def train(rank, processes, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    torch.set_num_threads(1)
    torch.manual_seed(0)  # everybody makes the same network and the same data, and works on its own rows
    net, rng = Network().double(), fd.Rng(seed=7)
    x = torch.randn(STEPS, BATCH, INPUTS, dtype=torch.float64)
    target = x.sin().sum(-1, keepdim=True)
    rows = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    kept = []
    for step in range(STEPS):
        mask = rng.mask((BATCH, HIDDEN), P)[rows]  # two integers: the same in all processes
        kept.append(torch.from_numpy(mask.keep()))
        loss = (net(x[step, rows], mask) - target[step, rows]).square().sum() / BATCH
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in net.parameters():
                dist.all_reduce(weight.grad)
                weight -= RATE / INPUTS * weight.grad
    torch.save((net.state_dict(), torch.stack(kept)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(processes):
    """The weights, and the decisions of all steps, put together."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (processes, folder), nprocs=processes)
        results = [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(processes)]
    weights = [weights for weights, _ in results]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights for name in weights[0])
    return weights[0], torch.cat([kept for _, kept in results], dim=1)


def main():
    (weights, kept), (weights_of_two, kept_of_two) = run(1), run(2)
    assert torch.equal(kept, kept_of_two)
    apart = max(float((weights[name] - weights_of_two[name]).abs().max()) for name in weights)
    assert apart < 1e-12
    print(f"{STEPS} steps: masks of one and of two processes are equal, weights differ by {apart:.1e} at most")


if __name__ == "__main__":
    main()
