# --8<-- [start:model]
import torch
from torch import nn

import bridge

END = 0


class Decoder(nn.Module):
    """Writes tokens one after another until every row of the batch has written END."""

    def __init__(self, vocabulary: int = 10, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.cell = nn.GRUCell(width, width)
        self.score = nn.Linear(width, vocabulary)

    def forward(self, state, start, longest: int):
        token, done, written = start, start == END, []
        while not bool(done.all()) and len(written) < longest:
            state = self.cell(self.embed(token), state)
            token = self.score(state).argmax(-1)
            token = token.masked_fill(done, END)
            done = done | (token == END)
            written.append(token)
        return torch.stack(written, 1)


# --8<-- [end:model]
# --8<-- [start:export]
torch.manual_seed(1)
model = Decoder().eval()
state, start = torch.randn(3, 32), torch.tensor([1, 2, 3])
program = bridge.export(
    model,
    (state, start, 20),
    "decoder.onnx",
    dynamic_shapes={"state": {0: "batch"}, "start": {0: "batch"}},
)
print(program.report)
# --8<-- [end:export]
# --8<-- [start:check]
requests = [(torch.randn(n, 32), torch.randint(1, 10, (n,)), 20) for n in (1, 2, 9)]
print(bridge.check(model, program, requests).raise_for_mismatch())
print([program(*r).shape[1] for r in requests], "tokens")
# --8<-- [end:check]
