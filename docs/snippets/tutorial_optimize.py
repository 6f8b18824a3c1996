# --8<-- [start:optimize]
import torch

import bridge

torch.manual_seed(0)
block = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
program = bridge.export(
    block, torch.randn(2, 10, 64), dynamic_shapes={"src": {0: "batch", 1: "length"}}
)
optimized = bridge.optimize(program, "block.onnx", target="cpu")
print(optimized.report)
# --8<-- [end:optimize]
