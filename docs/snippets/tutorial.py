# --8<-- [start:model]
import torch
from torch import nn

import bridge


class Tagger(nn.Module):
    """Scores every token of a sentence for each of 5 tags."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.encode = nn.LSTM(64, 64, bidirectional=True, batch_first=True)
        self.score = nn.Linear(128, 5)

    def forward(self, tokens):
        hidden, _ = self.encode(self.embed(tokens))
        return self.score(hidden).log_softmax(-1)


torch.manual_seed(0)
model = Tagger().eval()
tokens = torch.randint(0, 1000, (2, 12))
# --8<-- [end:model]
# --8<-- [start:export]
program = bridge.export(
    model,
    tokens,
    "tagger.onnx",
    dynamic_shapes={"tokens": {0: "batch", 1: "length"}},
)
print(program.report)
# --8<-- [end:export]
# --8<-- [start:call]
same = program(torch.randint(0, 1000, (7, 3)))  # other sizes than the example's
assert same.shape == (7, 3, 5)
# --8<-- [end:call]
# --8<-- [start:check]
session = bridge.load("tagger.onnx")
others = [(tokens,), (tokens[:1],), (torch.randint(0, 1000, (3, 40)),)]
report = bridge.check(model, session, others)
print(report)
report.raise_for_mismatch()  # in a test: raises ParityError where something differs
# --8<-- [end:check]
# --8<-- [start:deploy]
import numpy as np

session = bridge.load("tagger.onnx", providers="cpu", threads=2)
print(session)
outputs = session.run({"tokens": np.array([[5, 7, 11]])})
print({name: x.shape for name, x in outputs.items()})
# --8<-- [end:deploy]
