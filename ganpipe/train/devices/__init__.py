"""How a step runs: precision, memory, CUDA graph, images on a GPU, several processes."""
