"""Files that PyTorch itself wrote, and our writer's files read by PyTorch."""

from __future__ import annotations

import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from torch_writer import View, save, save_legacy

from converter.sources.torch_file import read_torch_file
from qllama.errors import ConversionError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.reference

FORMS = {
    "zip": {},
    "zip with pickle 4": {"pickle_protocol": 4},
    "before 1.6": {"_use_new_zipfile_serialization": False},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def write(request, tmp_path):
    def write(content):
        torch.save(content, tmp_path / "model.bin", **request.param)
        return tmp_path / "model.bin"

    return write


def read(path):
    return {name: t.read(0, t.shape[0]) for name, t in read_torch_file(path).items()}


def test_torch_state_dict_of_a_module_is_read(write):
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        torch.nn.Embedding(11, 6), torch.nn.Linear(6, 5), torch.nn.LayerNorm(5)
    )
    state = module.half().state_dict()
    got = read(write(state))
    assert list(got) == list(state)
    for name, expected in state.items():
        np.testing.assert_array_equal(got[name], expected.float().numpy())


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8"]
)
def test_torch_types_are_read(write, dtype):
    values = (torch.arange(15).reshape(5, 3) * 7 - 40).to(getattr(torch, dtype))
    path = write({"w": values, "flags": values > 0, "bytes": values.to(torch.uint8)})
    assert read_torch_file(path)["w"].source_type == dtype
    got = read(path)
    np.testing.assert_array_equal(got["w"], values.float().numpy())
    np.testing.assert_array_equal(got["flags"], (values > 0).float().numpy())
    np.testing.assert_array_equal(got["bytes"], values.to(torch.uint8).float().numpy())


def test_torch_views_parameters_and_shared_storages_are_read(write):
    torch.manual_seed(2)
    base = torch.randn(8, 12, dtype=torch.bfloat16)
    tied = torch.nn.Parameter(torch.randn(7, 4))
    marked = torch.nn.Parameter(torch.randn(3, 2))
    marked.note = "has an attribute"
    state = OrderedDict(
        whole=base,
        rows=base[2:5],
        columns=base[:, 4:9],
        transposed=base.T,
        part=base[1:4, 3:10].T,
        vector=base[3],
        one=base[:, :1],
        tied=tied,
        head=tied,
        frozen=torch.nn.Parameter(torch.ones(2, 2), requires_grad=False),
        marked=marked,
        empty=torch.empty(0, 4),
    )
    path = write(state)
    got = read(path)
    for name, expected in state.items():
        np.testing.assert_array_equal(got[name], expected.detach().float().numpy(), name)
    if zipfile.is_zipfile(path):
        assert sum("/data/" in name for name in zipfile.ZipFile(path).namelist()) == 5


def test_torch_what_is_no_state_dict_is_refused_by_name(write):
    module = torch.nn.Linear(2, 2)
    for content, named in (
        (module, "torch.nn.modules.linear.Linear"),
        ({"w": torch.sparse_coo_tensor([[0]], [1.0], (2,))}, "_rebuild_sparse_tensor"),
        ({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "_rebuild_qtensor"),
        ({"w": torch.ones(2).to(torch.complex64)}, "torch.ComplexFloatStorage"),
        ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "torch.float8_e4m3fn"),
        ({"w": torch.ones(2, device="meta")}, "_rebuild_meta_tensor_no_storage"),
        ({"w": np.ones(2)}, "numpy"),
        ({"w": torch._neg_view(torch.ones(2))}, "a negative or conjugate view"),
        ({"w": torch.ones(4, 4)[::2, ::2]}, "save it again as tensor.contiguous()"),
        ({"w": torch.ones(4, 1).expand(4, 4)}, "save it again as tensor.contiguous()"),
        ({"model": module.state_dict(), "step": 3}, "entry 'model'"),
        (module.state_dict()["weight"], "expected a state dict, found a TensorRecord"),
    ):
        with pytest.raises(ConversionError) as caught:
            read_torch_file(write(content))
        assert named in str(caught.value)


def test_torch_script_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    with pytest.raises(ConversionError, match="TorchScript"):
        read_torch_file(tmp_path / "model.pt")


def test_torch_file_before_1_6_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    torch.save({"w": torch.ones(5, 3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match=r"model\.bin"):
            read_torch_file(path)


@pytest.mark.parametrize("writer", [save, save_legacy])
def test_writer_of_the_tests_writes_what_torch_reads(tmp_path, writer):
    storage = np.arange(24, dtype=np.float16)
    state = {
        "whole": storage.reshape(6, 4),
        "view": View(storage, (3, 2), (4, 1), 5),
        "transposed": View(storage, (4, 6), (1, 4)),
    }
    path = writer(tmp_path / "model.bin", state)
    loaded = torch.load(path, weights_only=True)
    ours = read(path)
    assert list(loaded) == list(state) == list(ours)
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.float().numpy(), ours[name])
