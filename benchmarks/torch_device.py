"""Where PyTorch's rivals run: on the GPU if JAX does, at the precision that JAX has there by default."""

import jax
import torch

DEVICE = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
torch.set_default_device(DEVICE)
torch.set_float32_matmul_precision("high" if DEVICE == "cuda" else "highest")  # TF32 on a GPU
