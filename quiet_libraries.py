"""Imported before transformers, which imports torchao, which warns of GPU kernels that no CPU build has."""

import logging

for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
