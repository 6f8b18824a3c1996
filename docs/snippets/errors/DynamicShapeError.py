import torch

import bridge

# Linear(4, 2) takes rows of 4: that dim cannot vary.
bridge.export(
    torch.nn.Linear(4, 2).eval(), torch.ones(3, 4), dynamic_shapes={"input": {1: "features"}}
)
