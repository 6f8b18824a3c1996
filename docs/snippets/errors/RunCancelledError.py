import threading

import torch

import bridge


class Slow(torch.nn.Module):
    def forward(self, x):
        for _ in range(500):
            x = torch.tanh(x @ x)
        return x


session = bridge.load(bridge.export(Slow().eval(), torch.rand(256, 256), verify=False))
threading.Timer(0.02, session.cancel).start()  # another thread, Ctrl-C, a client that hangs up
session.run({"x": torch.rand(256, 256)})
