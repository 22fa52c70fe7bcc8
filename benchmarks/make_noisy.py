"""A GGUF model whose weights lie on no grid, made of one whose weights do; see `--help`."""

from __future__ import annotations

from pathlib import Path

import click
import gguf
import numpy as np
import numpy.typing as npt

_BLOCK = 32
_CODES = 15


@click.command(epilog="Example: python benchmarks/make_noisy.py smollm2-f16.gguf noisy-f16.gguf")
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--steps",
    type=click.FloatRange(min=0),
    default=0.3,
    show_default=True,
    metavar="X",
    help="Standard deviation of the noise, in steps of the grid.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
def main(source: Path, out: Path, steps: float, seed: int) -> None:
    """Add Gaussian noise to the layers' matrices of SOURCE, an f16 GGUF file, and write OUT.

    A model that was published in 4 bits is a grid of 16 levels in every block of 32 weights,
    which 4-bit types of such blocks meet exactly: they look better on it than on weights as
    training leaves them. With noise of 0.3 steps that grid fits no better than any other of
    its step, whose errors are 1 / sqrt(12) = 0.29 steps. The noisy model is an original of
    its own, to be compared with nothing but itself.
    """
    rng = np.random.default_rng(seed)
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, *of = field.types
        writer.add_key_value(field.name, field.contents(), kind, of[0] if of else None)
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        if tensor.name.startswith("blk.") and values.ndim == 2:
            if values.dtype != np.float16:
                raise click.ClickException(
                    f"{source}: {tensor.name}: expected F16, found {tensor.tensor_type.name}"
                )
            values = noisy(values, steps, rng)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    click.echo(out)


def noisy(
    w: npt.NDArray[np.float16], steps: float, rng: np.random.Generator
) -> npt.NDArray[np.float16]:
    """Add noise to each block of 32 in proportion to a step of 16 levels over its range.

    Parameters
    ----------
    w : float16, (rows, k)
        k a multiple of 32.
    steps : float
        Standard deviation, in steps.
    rng : Generator
    """
    blocks = w.astype(np.float32).reshape(-1, _BLOCK)
    step = np.ptp(blocks, axis=1, keepdims=True) / _CODES
    blocks += steps * step * rng.standard_normal(blocks.shape, np.float32)
    return blocks.reshape(w.shape).astype(np.float16)


if __name__ == "__main__":
    main()
