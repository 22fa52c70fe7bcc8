"""Make checkpoints with MindFormers itself, and the logits that it computes with them.

    python make_mindformers.py NAME CHECKOUT

where MindSpore 2.10 with numpy 1.26 is installed, and CHECKOUT has the sources of the release
that NAME stands for (RELEASES below; https://gitee.com/mindspore/mindformers). Writes
NAME.ckpt, NAME.yaml and NAME.npz (ids, logits) beside this file.

Only the modules of its Llama are run. What they import for other purposes is replaced by empty
modules, and two operations that MindSpore lacks on CPUs by others that compute the same.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

import mindspore as ms
import numpy as np
import yaml

COMMON = {
    "seq_length": 16,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 48,
    "rms_norm_eps": 1e-5,
    "compute_dtype": "float32",
    "layernorm_compute_type": "float32",
    "softmax_compute_type": "float32",
    "rotary_dtype": "float32",
    "param_init_type": "float32",
    "use_past": False,
    "use_flash_attention": False,
    "fused_rms_norm": False,
}
GROUPED_HEADS = {"n_kv_heads": 2, "intermediate_size": 48}
LLAMA_3 = {
    "theta": 500000.0,
    "extend_method": "LLAMA3",
    "scaling_factor": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}
NTK = {"extend_method": "NTK", "scaling_factor": 4.0}

# Name -> branch of MindFormers, type of the weights, what is changed of COMMON.
RELEASES = {
    "mindformers-0.6": ("r0.6", "float16", {"multiple_of": 16, "num_layers": 1}),
    "mindformers-1.3-fused": ("r1.3.0", "float16", GROUPED_HEADS | {"qkv_concat": True}),
    "mindformers-1.5-fused": (
        "r1.5.0",
        "bfloat16",
        GROUPED_HEADS | LLAMA_3 | {"qkv_concat": True, "qkv_has_bias": True},
    ),
    "mindformers-1.5": (
        "r1.5.0",
        "bfloat16",
        GROUPED_HEADS
        | {"tie_word_embeddings": True, "extend_method": "NTK", "scaling_factor": 4.0},
    ),
}

UNUSED = tuple(
    f"mindformers.{name}"
    for name in (
        "auto_class",
        "core.callback",
        "core.lr",
        "core.metric",
        "core.optim",
        "dataset",
        "experimental.parallel_core",
        "generation",
        "inference",
        "model_runner",
        "models.auto",
        "pet",
        "pipeline",
        "run_check",
        "tools.cloud",
        "tools.hub",
        "tools.resume_ckpt",
        "trainer",
        "wrapper",
    )
)


class Empty(types.ModuleType):
    """A module in which every name is a class or function that does nothing."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []
        self.__all__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        nothing = type(name, (), {"__init__": lambda self, *args, **kwargs: None})
        return nothing if name[0].isupper() else MagicMock(name=name)


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.startswith(UNUSED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


class BatchMatMul:
    """The operation of this name with broadcasting, which CPUs lack."""

    def __init__(self, transpose_a=False, transpose_b=False):
        assert not transpose_a
        self._transposed = transpose_b

    def __call__(self, x, y):
        return ms.ops.matmul(x, y.swapaxes(-1, -2) if self._transposed else y)

    def shard(self, *strategies, **named):
        return self


def llama(checkout: Path):
    """Import LlamaConfig and LlamaForCausalLM of a checkout, and little else."""
    sys.path.insert(0, str(checkout))
    sys.meta_path.insert(0, EmptyModules())
    # Packages whose __init__ would import all models.
    for name in (
        "mindformers",
        "mindformers.models",
        "mindformers.core",
        "mindformers.models.llama",
    ):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        package.__version__ = "from a checkout"
        sys.modules[name] = package
    ms.ops.operations.BatchMatMul = BatchMatMul
    # Cells had it before MindSpore 2.10.
    ms.nn.Cell.cast = lambda self, x, dtype: ms.ops.cast(x, dtype)
    from mindformers.models.llama import llama as module
    from mindformers.models.llama.llama_config import LlamaConfig

    if hasattr(module, "PreTrainedModel"):
        module.PreTrainedModel.can_generate = classmethod(lambda cls: False)
    return LlamaConfig, module.LlamaForCausalLM


def main(name: str, checkout: str) -> None:
    _, dtype, changes = RELEASES[name]
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    config_class, model_class = llama(Path(checkout))
    values = COMMON | changes
    config = config_class(batch_size=1, **values)
    config.is_encoder_decoder = False
    model = model_class(config)
    model.set_train(False)
    stored_type = getattr(ms, dtype)
    rng = np.random.default_rng(0)
    stored = []
    for parameter in model.get_parameters():
        drawn = rng.standard_normal(parameter.shape).astype(np.float32)
        drawn = 1 + 0.2 * drawn if drawn.ndim == 1 else 1.5 * drawn / np.sqrt(drawn.shape[-1])
        value = ms.Tensor(drawn).astype(stored_type)
        parameter.set_data(value.astype(ms.float32))
        stored.append({"name": parameter.name, "data": value})
    ids = rng.integers(3, values["vocab_size"], values["seq_length"]).astype(np.int32)
    logits = model(ms.Tensor(ids[None]))
    logits = logits[0] if isinstance(logits, tuple) else logits
    here = Path(__file__).parent
    # Slices of 2 KiB instead of 512 MiB.
    ms.train.serialization.SLICE_SIZE = 2
    ms.save_checkpoint(stored, str(here / f"{name}.ckpt"), crc_check=True)
    np.savez_compressed(
        here / f"{name}.npz", ids=ids, logits=logits.asnumpy().reshape(len(ids), -1)
    )
    document = {"model": {"model_config": {"type": "LlamaConfig", **values}}}
    document["model"]["arch"] = {"type": "LlamaForCausalLM"}
    (here / f"{name}.yaml").write_text(yaml.safe_dump(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
