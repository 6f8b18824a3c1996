import torch

import bridge

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(8, 64, 3, padding=1), torch.nn.ReLU(),
    torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU(),
    torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10),
).eval()  # fmt: skip
program = bridge.export(model, torch.randn(4, 8, 48, 48))
batches = [torch.randn(4, 8, 48, 48) for _ in range(8)]

quantized = bridge.quantize(program, "int8-static", calibration=batches)
report = quantized.quantization
print(report.quantized)
print(report.accuracy.snr > 25, report.latency.speedup > 1)
quantized.save("int8.onnx")
