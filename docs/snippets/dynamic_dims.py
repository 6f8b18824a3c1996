import torch

import bridge


class Mix(torch.nn.Module):
    def forward(self, images, scale):
        return images.flatten(2).softmax(-1).mean(1) * scale


model = Mix().eval()
images, scale = torch.rand(2, 3, 8, 8), torch.rand(2, 64)


def dims(program):
    print(program.session())


# --8<-- [start:named]
program = bridge.export(
    model,
    (images, scale),
    dynamic_shapes={"images": {0: "batch"}, "scale": {0: "batch"}},
)
dims(program)
# --8<-- [end:named]
# --8<-- [start:tuple]
dims(bridge.export(model, (images, scale), dynamic_shapes=({0: "batch"}, {0: "batch"})))
# --8<-- [end:tuple]
# --8<-- [start:examples]
larger = (torch.rand(5, 3, 10, 12), torch.rand(5, 120))
dims(bridge.export(model, examples=[(images, scale), larger]))
# --8<-- [end:examples]
# --8<-- [start:auto]
dims(bridge.export(model, (images, scale), dynamic_shapes="auto"))
# --8<-- [end:auto]
# --8<-- [start:bounds]
batch = torch.export.Dim("batch", min=1, max=64)
dims(
    bridge.export(
        model, (images, scale), dynamic_shapes={"images": {0: batch}, "scale": {0: batch}}
    )
)
# --8<-- [end:bounds]
# --8<-- [start:wrong]
try:
    bridge.export(model, (images, scale), dynamic_shapes={"images": {0: "batch"}})
except bridge.DynamicShapeError as error:
    print(error)
# --8<-- [end:wrong]
