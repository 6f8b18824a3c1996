import pytest
import torch

import bridge


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)
    ).eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "net.onnx"
    bridge.export(make(), torch.rand(3, 4), path, dynamic_shapes={"input": {0: "batch"}})
    return path


@pytest.mark.parametrize("batch", [1, 2, 33])
def test_the_deployed_model_computes_what_eager_computes(exported, batch):
    bridge.check(make(), exported, torch.rand(batch, 4), vary=True).raise_for_mismatch()


def test_every_provider_and_optimization_level_agrees(exported):
    bridge.check_matrix(make(), exported, torch.rand(3, 4)).raise_for_mismatch()
