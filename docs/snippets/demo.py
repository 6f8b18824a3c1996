"""Export a transformer that answers early when it is sure, run it on ONNX Runtime, prove parity."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

import bridge


class EarlyExit(torch.nn.Module):
    """A text classifier with a head after every block; the first confident one answers."""

    def __init__(self, blocks=6, width=128, classes=4, threshold=0.7):
        super().__init__()
        self.embed = torch.nn.Embedding(1000, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
            for _ in range(blocks)
        )
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, classes) for _ in range(blocks))
        self.threshold = threshold
        for head in self.heads:  # untrained heads are never sure; larger weights make them so
            torch.nn.init.normal_(head.weight, std=0.3)

    def forward(self, tokens):
        h = self.embed(tokens)
        depth = 0
        for block, head in zip(self.blocks, self.heads, strict=True):
            h = block(h)
            depth += 1
            scores = head(h.mean(1)).softmax(-1)
            if scores.amax(-1).min() > self.threshold:  # every row of the batch is sure
                break
        return scores, depth


def milliseconds(call, runs=20):
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # both sides get one thread
    model = EarlyExit().eval()
    example = torch.randint(0, 1000, (2, 16))
    path = Path(tempfile.mkdtemp()) / "early_exit.onnx"

    dims = {"tokens": {0: "batch", 1: "length"}}
    program = bridge.export(model, example, path, dynamic_shapes=dims)
    print(f"## export\n{program.report}\n")

    session = bridge.load(path, threads=1)
    requests = [torch.randint(0, 1000, (1, n)) for n in (1, 2, 4, 8, 16, 32, 64, 128)]
    report = bridge.check(model, session, [(r,) for r in requests])
    print(f"## parity\n{report.raise_for_mismatch()}\n")

    print("## one request at a time, one thread each")
    ratios = []
    with torch.inference_mode():
        for request in requests:
            _, depth = session(request)
            eager = milliseconds(lambda x=request: model(x))
            ours = milliseconds(lambda x=request: session(x))
            ratios.append(eager / ours)
            print(
                f"{request.shape[1]:4} tokens, answered by block {int(depth)}: "
                f"eager {eager:6.2f} ms, ONNX Runtime {ours:6.2f} ms"
            )
    print(f"ONNX Runtime is {statistics.geometric_mean(ratios):.1f} times faster (geometric mean)")


if __name__ == "__main__":
    main()
