"""The passes for the CUDA provider, as op lists; that provider is not needed to look at them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bridge
from optim_passes.fusion.multi_head import PackedAttentionPass
from tests.optim_passes.running import ops
from tests.zoo.models import ZOO


def optimised(model, args, passes=bridge.passes.cuda, **options):
    program = bridge.export(model, args, verify=False, **options)
    return bridge.optimize(program, target="cuda", passes=passes, inputs=args)


def bert():
    from transformers import BertConfig, BertModel

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = BertModel(
                BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=64, vocab_size=99),
                add_pooling_layer=False,
            )  # fmt: skip

        def forward(self, ids):
            return self.bert(ids).last_hidden_state

    encoder = Encoder().eval()
    with torch.no_grad():  # biases start at zero, and would be removed
        for parameter in encoder.parameters():
            parameter.add_(0.02)
    return encoder


def test_bert_is_one_product_and_one_attention_a_layer():
    program = optimised(bert(), (torch.randint(0, 99, (2, 16)),))
    assert ops(program.model) == {
        "MatMul": 2 * 4,  # packed queries, keys and values; output; two of the MLP
        "Reshape": 2, "microsoft.MultiHeadAttention": 2, "microsoft.BiasGelu": 2,
        "microsoft.SkipLayerNormalization": 4,
        # The embeddings: a row for each position, and the biases of the packed products.
        "Gather": 1, "LayerNormalization": 1, "Add": 2 + 2,
    }  # fmt: skip
    attention = next(n for n in program.model.graph if n.op_type == "MultiHeadAttention")
    assert len(attention.inputs) == 1  # flash kernels take no mask
    assert program.model.graph.opset_imports[""] == 20
    assert [(e.kind, e.achieved, e.expected) for e in program.report.expected] == [
        ("attention", 2, 2), ("layer norm", 5, 5), ("GELU", 2, 2),
    ]  # fmt: skip


def test_all_but_packed_attention_agrees_on_the_cpu():
    passes = [p for p in bridge.passes.cuda if not isinstance(p, PackedAttentionPass)]
    program = optimised(bert(), (torch.randint(0, 99, (2, 16)),), passes)
    assert program.report.verified[0].passed
    assert ops(program.model)["microsoft.MultiHeadAttention"] == 2


def test_convolutions_take_their_batch_norms():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    program = optimised(model, (torch.randn(2, 3, 8, 8),))
    assert ops(program.model) == {"Conv": 1, "Relu": 1}
    assert program.report.verified[0].passed


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ZOO))
def test_the_zoo_in_16_bits(name):
    """Every model is narrowed, and where the CPU can run it, agrees within half precision."""
    entry = ZOO[name]
    args, kwargs = entry.inputs(**entry.example)
    program = bridge.export(entry.make().eval(), args, kwargs=kwargs, verify=False)
    half = bridge.optimize(program, precision="fp16")
    assert half.report.verified
    assert not any("16 bits are not enough" in w for w in half.report.warnings)
