"""The engine: trains a block, step by step, by automatic differentiation or by faster kernels."""
