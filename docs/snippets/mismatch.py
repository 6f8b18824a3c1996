import onnx_ir as ir
import torch

import bridge

# --8<-- [start:code]
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()
).eval()
x = torch.rand(2, 3, 8, 8)
program = bridge.export(model, x)

norm = next(n for n in program.model.graph if n.op_type == "BatchNormalization")
norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)  # somebody edits the model

report = bridge.check(model, program, x)
print(report)
print("guilty:", report.divergence.node, "of module", report.divergence.module)
# --8<-- [end:code]
