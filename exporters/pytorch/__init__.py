"""The PyTorch frontend: a TorchFunctionMode over real tensors of several worlds."""
