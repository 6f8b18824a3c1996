import torch

import bridge

model = torch.nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
program = bridge.export(model, torch.ones(1, 5, 16))
bridge.optimize(program, target="onnxruntime==1.22,cpu")
