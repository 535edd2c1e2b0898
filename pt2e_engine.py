"""The PT2E backend: a quantized model compiled by Inductor, once, for every batch, length and length config.

AOTInductor makes an engine of an exported graph: a file of machine code and packed weights that loads in a moment and
needs no compiler.
"""

from pathlib import Path

import torch
from torch.export import Dim

from compiled_engine import CompiledModel, OpenLengths
from errors import RunError
from results_qa import cxx_compiler

# Freezing packs the weights for the INT8 products; the number of threads is the caller's, not the compiling process's.
INDUCTOR = {"freezing": True, "cpp.dynamic_threads": True}


class Pt2eModel(CompiledModel):
    """Modifications: engines are AOTInductor's."""

    backend, suffix = "pt2e", ".pt2"

    @classmethod
    def require(cls) -> None:
        if cxx_compiler() is None:
            raise RunError(
                "--int8 compiles its engine with a C++ compiler, and there is none: install one (apt-get install g++, "
                "or conda install gxx) or set CXX. An engine that was compiled before needs none."
            )

    def compile(self, exported: OpenLengths, example: tuple[dict, list], path: Path) -> None:
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401  (registers the INT8 passes)

        inputs, lengths = example
        shapes = ({name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in inputs}, [{0: Dim.DYNAMIC} for _ in lengths])
        program = torch.export.export(exported, example, dynamic_shapes=shapes, strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=INDUCTOR)

    def load(self, path: Path, example: tuple[dict, list]):
        return torch._inductor.aoti_load_package(str(path))
