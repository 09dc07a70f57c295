"""Turn a training run into a bundle of ONNX graphs, and publish it only if its numbers match PyTorch's."""
