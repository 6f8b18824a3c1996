"""What the CPU pipeline leaves of full architectures, as lists of operators."""

import onnx_ir as ir
import pytest
import torch

import bridge
from optim_passes.pipeline import run
from optim_passes.pipelines import CPU, PORTABLE
from tests import torchvision_shim
from tests.optim_passes.running import ops
from tests.zoo.models import ZOO, small, text, tokens, whisper

torchvision_shim.install()  # transformers imports torchvision, too
BATCH = {0: "batch"}
SEQUENCE = {0: "batch", 1: "length"}


def filled(model):
    """Random biases and scales: those of 0 and 1 would fold away."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def vision(name, size=64):
    import torchvision

    options = {"image_size": size} if name.startswith("vit") else {}
    dynamic = {0: "batch"} if name.startswith(("vit", "swin")) else {0: "batch", 2: "h", 3: "w"}
    model = torchvision.models.get_model(name, weights=None, **options)
    return model, (torch.randn(2, 3, size, size),), (dynamic,)


def bert():
    from transformers import BertConfig, BertModel

    model = BertModel(small(BertConfig, num_hidden_layers=12), add_pooling_layer=False)
    return model, text(2, 12)[1], dict.fromkeys(("input_ids", "attention_mask"), SEQUENCE)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=99, n_embd=64, n_layer=12, n_head=4, n_positions=64)
    config.use_cache = False
    return GPT2LMHeadModel(config), {"input_ids": tokens(2, 12)}, {"input_ids": SEQUENCE}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = small(LlamaConfig, num_hidden_layers=4, num_key_value_heads=2, use_cache=False)
    return LlamaForCausalLM(config), {"input_ids": tokens(2, 12)}, {"input_ids": SEQUENCE}


def speech():
    _, inputs = ZOO["whisper"].inputs(batch=2, target=7)
    return whisper(), inputs, {"input_features": BATCH, "decoder_input_ids": SEQUENCE}


def unet():
    from diffusers import UNet2DConditionModel

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = UNet2DConditionModel(
                sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=24, norm_num_groups=8, attention_head_dim=8,
            )  # fmt: skip

        def forward(self, sample, timestep, states):
            return self.net(sample, timestep, states).sample

    inputs = (torch.randn(2, 4, 16, 16), torch.tensor([3]), torch.randn(2, 7, 24))
    return Denoiser(), inputs, (BATCH, None, BATCH)


MODELS = {
    "resnet50": lambda: vision("resnet50"),
    "mobilenet_v3_large": lambda: vision("mobilenet_v3_large"),
    "convnext_tiny": lambda: vision("convnext_tiny"),
    "vit_b_16": lambda: vision("vit_b_16"),
    "swin_t": lambda: vision("swin_t", 224),
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "whisper": speech,
    "unet": unet,
}


def counts_of(name, pipeline):
    model, inputs, dynamic = MODELS[name]()
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    program = bridge.export(
        filled(model), args, kwargs=kwargs, dynamic_shapes=dynamic, verify=False
    )
    made, _ = run(ir.from_proto(ir.to_proto(program.model)), pipeline)
    return ops(made)


FUSED = {
    # What has to be there, and how often, and nothing else but what only moves or masks data.
    "resnet50": {
        "FusedConv": 49, "Conv": 4, "MaxPool": 1, "GlobalAveragePool": 1, "Gemm": 1,
    },
    "mobilenet_v3_large": {
        "FusedConv": 27, "Conv": 35, "HardSwish": 21, "GlobalAveragePool": 9, "Mul": 8,
        "Gemm": 2, "Add": 10,
    },
    "convnext_tiny": {
        "Conv": 22, "LayerNormalization": 23, "FusedMatMul": 37, "Gelu": 18, "Add": 37, "Sub": 18,
        "GlobalAveragePool": 1,
    },
    "vit_b_16": {
        "Attention": 12, "LayerNormalization": 25, "Gelu": 12, "FusedMatMul": 72, "Gemm": 1,
        "Conv": 1, "Add": 83, "Sub": 14,
    },
    "swin_t": {
        "Attention": 12, "LayerNormalization": 29, "Gelu": 12, "FusedMatMul": 68, "Gemm": 1,
        "MatMul": 1, "Conv": 1, "Add": 81, "Sub": 14, "GlobalAveragePool": 1,
    },
    "bert": {
        "Attention": 12, "LayerNormalization": 25, "Gelu": 12, "FusedMatMul": 72, "Add": 38,
        "Sub": 60,
    },
    "gpt2": {
        "Attention": 12, "LayerNormalization": 25, "Gelu": 12, "FusedMatMul": 72, "MatMul": 1,
        "Add": 83, "Sub": 14,
    },
    "llama": {
        "Attention": 4, "RMSNormalization": 9, "RotaryEmbedding": 8, "MatMul": 29, "Add": 8,
        "Sigmoid": 4, "Mul": 9, "Cos": 1, "Sin": 1,
    },
    "whisper": {
        "Attention": 6, "LayerNormalization": 12, "Gelu": 6, "Conv": 2, "FusedMatMul": 26,
        "MatMul": 7, "Add": 30, "Sub": 8,
    },
    "unet": {
        "Attention": 8, "InstanceNormalization": 21, "BatchNormalization": 21, "Conv": 33,
        "LayerNormalization": 12, "Gelu": 4, "FusedMatMul": 20, "Gemm": 10, "MatMul": 24,
        "Sigmoid": 19, "Mul": 24, "Add": 48, "Sub": 4, "Resize": 1, "Cos": 1, "Sin": 1,
    },
}  # fmt: skip

MOVES = {
    "And", "Cast", "Concat", "Div", "Expand", "Gather", "GatherElements", "GatherND",
    "GreaterOrEqual", "LessOrEqual", "Range", "Reshape", "Shape", "Slice", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip

# No more than these: attention takes heads as products leave them.
TRANSPOSES = {"vit_b_16": 1, "whisper": 1, "unet": 8, "convnext_tiny": 44, "swin_t": 25}


@pytest.mark.parametrize("name", list(MODELS))
def test_cpu_pipeline_leaves_fused_operators_only(name):
    counts = {k.removeprefix("microsoft."): n for k, n in counts_of(name, CPU).items()}
    assert counts.pop("Transpose", 0) <= TRANSPOSES.get(name, 0)
    assert {k: n for k, n in counts.items() if k not in MOVES} == FUSED[name]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet50", {"Conv": 53, "Relu": 49}),
        ("bert", {"Attention": 12, "LayerNormalization": 25, "Gelu": 12}),
        ("gpt2", {"Attention": 12, "LayerNormalization": 25, "Gelu": 12}),
        ("llama", {"Attention": 4, "RMSNormalization": 9, "RotaryEmbedding": 8}),
    ],
)
def test_portable_pipeline_stays_in_the_standard_domain(name, wanted):
    counts = counts_of(name, PORTABLE)
    assert {k: counts[k] for k in wanted} == wanted
    assert not any("." in k for k in counts)
    assert not counts.keys() & {"BatchNormalization", "Softmax", "Erf", "Tanh", "ReduceMean"}
