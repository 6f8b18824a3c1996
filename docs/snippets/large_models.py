import os

import torch

import bridge

# --8<-- [start:code]
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)]).eval()
program = bridge.export(
    model,
    torch.rand(1, 512),
    "large.onnx",
    dynamic_shapes={"input": {0: "batch"}},
    external_data=True,  # by itself for models above 2 GB
    verify=False,  # no second copy of the weights in ONNX Runtime during the export
)
print(sorted(f for f in os.listdir() if f.startswith("large")))
bridge.check(model, bridge.load("large.onnx"), torch.rand(2, 512)).raise_for_mismatch()
# --8<-- [end:code]
