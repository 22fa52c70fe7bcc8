"""Synthetic models of the Llama 3.2 shapes: speed needs shapes, not sense; see `--help`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter, LlamaFileType
from gguf.constants import TokenType

from harness.program import QLLAMA

_VOCAB_SIZE = 128256
_CONTEXT, _ORIGINAL_CONTEXT = 131072, 8192
_ROPE_BASE, _ROPE_FACTOR, _ROPE_LOW, _ROPE_HIGH = 500000.0, 32.0, 1.0, 4.0
_SEED = 0
_DEVIATION = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a Llama model, named as in Hugging Face's configs."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield GGUF names and shapes, in the file's order."""
        hidden, middle = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        yield "token_embd.weight", (_VOCAB_SIZE, hidden)
        yield "output_norm.weight", (hidden,)
        yield "rope_freqs.weight", (self.head_dim // 2,)
        for layer in range(self.num_hidden_layers):
            for name, shape in (
                ("attn_norm", (hidden,)),
                ("attn_q", (q, hidden)),
                ("attn_k", (kv, hidden)),
                ("attn_v", (kv, hidden)),
                ("attn_output", (hidden, q)),
                ("ffn_norm", (hidden,)),
                ("ffn_gate", (middle, hidden)),
                ("ffn_up", (middle, hidden)),
                ("ffn_down", (hidden, middle)),
            ):
                yield f"blk.{layer}.{name}.weight", shape


SHAPES = {"1b": Shape(2048, 16, 32, 8, 64, 8192), "3b": Shape(3072, 28, 24, 8, 128, 8192)}


@click.command(
    epilog="Example: python benchmarks/make_models.py models "
    "--llama-quantize llama.cpp/bin/llama-quantize"
)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--llama-quantize",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    required=True,
    metavar="FILE",
    help="llama.cpp's quantizer.",
)
@click.option("--keep-f16", is_flag=True, help="Keep the unquantized files, 9 GB.")
def main(directory: Path, llama_quantize: str, keep_f16: bool) -> None:
    """Write into DIRECTORY the synthetic models that side_by_side.py --plan compares, 12 GB.

    Random weights in the shapes of Llama 3.2 1B and 3B, quantized by llama-quantize to
    Q4_0 and Q8_0, every matrix alike (--pure), and to Q4_K_M with its own choice of
    types; then converted by qllama: q4_0 and q8_0 without loss, q4 from the f16 weights.
    Takes 10 minutes on 2 cores, and 9 GB more meanwhile. Files that are there are kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Resolved, for llama-quantize takes a name that begins with a digit for a type.
    maker = Maker(directory.resolve(), llama_quantize)
    for name in SHAPES:
        maker.quantize(name, "Q4_0", "--pure")
        maker.convert(f"{name}-Q4_0.gguf", name, "q4_0")
        maker.quantize(name, "Q8_0", "--pure")
        maker.convert(f"{name}-Q8_0.gguf", name, "q8_0")
    maker.quantize("1b", "Q4_K_M")
    maker.convert(maker.unquantized("1b"), "1b", "q4")
    if not keep_f16:
        maker.remove_unquantized()


class Maker:
    """Makes the files of a directory that are not there yet.

    Parameters
    ----------
    directory : Path
        Absolute.
    llama_quantize : str
    """

    def __init__(self, directory: Path, llama_quantize: str) -> None:
        self._directory = directory
        self._llama_quantize = llama_quantize

    def unquantized(self, name: str) -> str:
        """Name of the F16 file of a shape, which is made if need be."""
        with self._target(f"{name}-F16.gguf") as partial:
            if partial:
                write_gguf(SHAPES[name], name, partial)
        return f"{name}-F16.gguf"

    def quantize(self, name: str, weight_type: str, *options: str) -> None:
        """Have llama-quantize write the file of a shape in one of its types."""
        with self._target(f"{name}-{weight_type}.gguf") as partial:
            if partial:
                source = self._directory / self.unquantized(name)
                _run(self._llama_quantize, *options, source, partial, weight_type)

    def convert(self, source: str, name: str, weight_type: str) -> None:
        """Convert a file of a shape to one of qllama's types."""
        with self._target(f"{name}-{weight_type}.qlm") as partial:
            if partial:
                source_path = self._directory / source
                _run(*QLLAMA, "convert", source_path, partial, "--type", weight_type)

    def remove_unquantized(self) -> None:
        """Delete the F16 files."""
        for name in SHAPES:
            (self._directory / f"{name}-F16.gguf").unlink(missing_ok=True)

    @contextmanager
    def _target(self, name: str) -> Iterator[Path | None]:
        """Where to write a file that is given its name when it is complete; None if it is there."""
        path = self._directory / name
        if path.exists():
            yield None
            return
        click.echo(f"making {name}", err=True)
        partial = path.with_name(f"partial-{name}")
        yield partial
        partial.rename(path)


def write_gguf(shape: Shape, name: str, path: Path) -> None:
    """Write a model of random F16 weights with Llama 3's rotary scaling.

    Its vocabulary has a token for each byte; the others are dummies.

    Parameters
    ----------
    shape : Shape
    name : str
        What the file says that it is.
    path : Path
    """
    writer = GGUFWriter(path, "llama")
    writer.add_name(f"synthetic-llama-3.2-{name}")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(_ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCAB_SIZE)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    _add_vocabulary(writer)
    tensors = list(shape.tensors())
    for tensor, dims in tensors:
        dtype = np.dtype(np.float32 if len(dims) == 1 else np.float16)
        writer.add_tensor_info(tensor, dims, dtype, int(np.prod(dims)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(_SEED)
    for tensor, dims in tensors:
        if tensor == "rope_freqs.weight":
            values = _rope_divisors(shape.head_dim)
        elif len(dims) == 1:
            values = np.ones(dims, np.float32)
        else:
            values = rng.standard_normal(dims, np.float32) * np.float32(_DEVIATION)
            values = values.astype(np.float16)
        writer.write_tensor_data(values)
    writer.close()


def _add_vocabulary(writer: GGUFWriter) -> None:
    # GPT-2's printable stand-ins for the 256 bytes.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens += ["th", "<|begin|>", "<|end|>"]
    types = [TokenType.NORMAL] * 257 + [TokenType.CONTROL] * 2
    n_dummies = _VOCAB_SIZE - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + [f"<|dummy_{i}|>" for i in range(n_dummies)])
    writer.add_token_types([int(kind) for kind in [*types, *[TokenType.UNUSED] * n_dummies]])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)


def _rope_divisors(head_dim: int) -> npt.NDArray[np.float32]:
    """Llama 3's divisors of the rotary frequencies, as GGUF has them."""
    wavelengths = 2 * np.pi * _ROPE_BASE ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (_ORIGINAL_CONTEXT / wavelengths - _ROPE_LOW) / (_ROPE_HIGH - _ROPE_LOW)
    smooth = np.clip(smooth, 0, 1)
    divisors: npt.NDArray[np.float32] = (1 / ((1 - smooth) / _ROPE_FACTOR + smooth)).astype("f4")
    return divisors


def _run(*command: str | Path) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
