"""PyTorch files, written by their published layout and read back."""

from __future__ import annotations

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_writer import Archive, View, archive, number, numbers, save, save_legacy, tensor, text

from converter.sources.torch_file import read_torch_file
from qllama.errors import ConversionError

RANDOM = np.random.default_rng(5)
MATRIX = RANDOM.normal(size=(6, 4)).astype(np.float32)


def read(path):
    return {
        name: t.read(0, t.shape[0]) if t.shape else None
        for name, t in read_torch_file(path).items()
    }


def error(path) -> str:
    with pytest.raises(ConversionError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message[len(str(path)) :]


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ml_dtypes.bfloat16, "<f8", "i1"])
def test_read_torch_file_gives_every_value_and_its_type(tmp_path, dtype):
    values = (MATRIX * 50).astype(dtype)
    path = save(tmp_path / "m.bin", {"a.weight": values, "b": values[0]})
    tensors = read_torch_file(path)
    assert list(tensors) == ["a.weight", "b"]
    assert tensors["a.weight"].shape == (6, 4)
    assert tensors["a.weight"].source_type == np.dtype(dtype).name
    assert tensors["a.weight"].n_bytes == values.nbytes
    np.testing.assert_array_equal(tensors["a.weight"].read(2, 5), values[2:5].astype(np.float32))
    np.testing.assert_array_equal(tensors["b"].read(0, 4), values[0].astype(np.float32))


def test_read_torch_file_views_of_one_storage_are_each_read_from_their_place(tmp_path):
    storage = np.arange(100, dtype=np.float32)
    grid = storage.reshape(10, 10)
    cases = {
        "whole": (View(storage, (10, 10), (10, 1)), grid),
        "rows": (View(storage, (3, 10), (10, 1), 20), grid[2:5]),
        "columns": (View(storage, (10, 4), (10, 1), 3), grid[:, 3:7]),
        "transposed": (View(storage, (10, 10), (1, 10)), grid.T),
        "transposed part": (View(storage, (4, 3), (1, 10), 53), grid[5:8, 3:7].T),
        "one row": (View(storage, (1, 10), (77, 1), 90), grid[9:]),
    }
    path = save(tmp_path / "m.bin", {name: view for name, (view, _) in cases.items()})
    with zipfile.ZipFile(path) as written:
        assert sum("data/" in name for name in written.namelist()) == 1
    tensors = read_torch_file(path)
    for name, (_, expected) in cases.items():
        assert tensors[name].shape == expected.shape, name
        assert tensors[name].n_bytes == expected.nbytes, name
        rows = len(expected)
        for start, stop in ((0, rows), (rows // 2, rows), (0, 1)):
            got = tensors[name].read(start, stop)
            assert got.flags.c_contiguous
            np.testing.assert_array_equal(got, expected[start:stop], err_msg=name)


def test_read_torch_file_strides_without_runs_are_refused(tmp_path):
    storage = np.arange(100, dtype=np.float32)
    found = error(save(tmp_path / "m.bin", {"w": View(storage, (5, 5), (20, 2))}))
    assert "tensor 'w': shape (5, 5) with strides (20, 2)" in found
    assert "contiguous()" in found
    found = error(save(tmp_path / "m.bin", {"w": View(storage, (5, 5), (0, 1))}))
    assert "strides (0, 1)" in found


@pytest.mark.parametrize(
    "view",
    [
        View(MATRIX, (7, 4), (4, 1)),
        View(MATRIX, (6, 4), (4, 1), 1),
        View(MATRIX, (6, 4), (5, 1)),
        View(MATRIX, (2**40, 2**40), (2**40, 1)),
    ],
)
def test_read_torch_file_view_beyond_its_storage_is_refused(tmp_path, view):
    assert "of a storage of 96" in error(save(tmp_path / "m.bin", {"w": view}))


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((-1, 4), (4, 1), 0), ((6, 4), (-4, 1), 20), ((6, 4), (4, 1), -1), ((2**70, 4), (4, 1), 0)],
)
def test_read_torch_file_negative_or_absurd_dimensions_are_refused(
    tmp_path, shape, strides, offset
):
    assert "a negative or absurd shape, stride or offset" in error(
        save(tmp_path / "m.bin", {"w": View(MATRIX, shape, strides, offset)})
    )


def test_read_torch_file_more_strides_than_dimensions_is_refused(tmp_path):
    found = error(save(tmp_path / "m.bin", {"w": View(MATRIX, (6, 4), (4, 1, 1))}))
    assert "2 dimensions and 3 strides" in found


def test_read_torch_file_pickle_that_runs_a_program_is_refused_by_name(tmp_path):
    mark = tmp_path / "was here"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch '{mark}'",)

    for protocol in (2, 4):
        attack = pickle.dumps({"w": Attack()}, protocol)
        found = error(Archive(attack, {}).write(tmp_path / "m.bin"))
        assert f"asks for {os.system.__module__}.system, which is refused and was not run" in found
    assert not mark.exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"cbuiltins\neval\n", "asks for builtins.eval,"),
        (b"ctorch.hub\nload\n", "asks for torch.hub.load,"),
        (b"ctorch\nfloat8_e4m3fn\n", "asks for torch.float8_e4m3fn,"),
        (b"ctorch._utils\n_rebuild_qtensor\n", "asks for torch._utils._rebuild_qtensor,"),
        (b"(iposix\nsystem\n", "the opcode INST 'posix system',"),
        (b"(oo", "the opcode OBJ"),
        (b"ccollections\nOrderedDict\n)\x81", "the opcode NEWOBJ"),
        (b"\x82\x01", "the opcode EXT1"),
        (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage, which was not run"),
        (b"ccollections\nOrderedDict\n)R)R", "calls a dict, which was not run"),
        (b"ccollections\nOrderedDict\n(K\x01tR", "calls collections.OrderedDict with arguments"),
        (b"ccollections\nOrderedDict\n}b", "sets attributes of a Global"),
        (b"]}b", "sets attributes of a list"),
        (b"})K\x01s", "a key that is a tuple"),
        (b"}K\x01a", "appends to a dict"),
        (b"]K\x01K\x02s", "sets items of a list"),
        (b"}(K\x01u", "sets items of a dict"),
        (b")Q", "something that is not a storage"),
        (b"(" + text("module") + b"ctorch\nSize\nNNtQ", "a whole module and its Python code"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "arguments that are not those of a tensor"),
        (b"ctorch._utils\n_rebuild_parameter\n(NNNtR", "something that is not a tensor"),
        (b"h\x07", "damaged: '7'"),
        (b"0", "the opcode POP"),
        (b"s", "damaged: 'pop from empty list'"),
        (b"\xff", "damaged"),
        (b"X\xff\xff\xff\x7fabc", "damaged"),
        (b"K", "damaged"),
        (b"", "damaged"),
        (b"r\xff\xff\xff\xff", "damaged"),
        (b"N\x93", "damaged"),
        (b"NN\x93", "a name that is not text"),
    ],
)
def test_read_torch_file_pickle_with_anything_else_is_refused(tmp_path, code, expected):
    found = error(Archive(b"\x80\x02" + code + b".", {}).write(tmp_path / "m.bin"))
    assert expected in found
    assert "torch.save(model.state_dict(), ...)" in found


def test_read_torch_file_pickle_without_an_end_is_refused(tmp_path):
    whole = archive({"w": MATRIX}).pickle
    for length in range(len(whole)):
        assert "damaged" in error(Archive(whole[:length], {}).write(tmp_path / "m.bin"))


def test_read_torch_file_small_pickle_of_endless_print_is_refused_at_once(tmp_path):
    # Sixty tuples, each of the one before and again the one before: 2**60 when shown.
    bomb = b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    view = b"ctorch._utils\n_rebuild_tensor_v2\n("
    storage = tensor(View(MATRIX, (6, 4), (4, 1)), "0")[len(view) :].split(b"Q")[0] + b"Q"
    for code in (
        bomb,
        b"}" + bomb + b"Ns",
        b"}" + text("w") + bomb + b"s",
        bomb + b")R",
        bomb + b"Q",
        bomb + b"N\x93",
        view + storage + number(0) + bomb + numbers((4, 1)) + b"tR",
        view + storage + bomb + numbers((6, 4)) + numbers((4, 1)) + b"tR",
    ):
        assert len(error(Archive(b"\x80\x02" + code + b".", {}).write(tmp_path / "m.bin"))) < 300


def test_read_torch_file_key_that_is_a_deep_tuple_is_refused(tmp_path):
    # Its hash would recurse a million times, in C.
    code = b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."
    assert "a key that is a tuple" in error(Archive(code, {}).write(tmp_path / "m.bin"))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"epoch": 3}, "entry 'epoch': expected the name of a tensor and the tensor, found int"),
        ({"model": {"a": 1}}, "entry 'model'"),
        ({"w": MATRIX, "note": "x"}, "entry 'note'"),
    ],
)
def test_read_torch_file_with_more_than_tensors_is_refused(tmp_path, entries, expected):
    assert expected in error(save(tmp_path / "m.bin", entries))


def test_read_torch_file_that_is_no_dict_is_refused(tmp_path):
    found = error(Archive(b"\x80\x02]K\x01a.", {}).write(tmp_path / "m.bin"))
    assert "expected a state dict, found a list" in found


def test_read_torch_file_compressed_member_is_refused(tmp_path):
    for member in ("data/0", "data.pkl"):
        made = archive({"w": np.zeros((6, 4), np.float32)})
        made.compressed = (member,)
        found = error(made.write(tmp_path / "m.bin"))
        assert f"member 'archive/{member}' is compressed" in found


def test_read_torch_file_missing_short_and_long_members_are_refused(tmp_path):
    made = archive({"w": MATRIX})
    whole = made.storages["0"]
    made.storages = {}
    found = error(made.write(tmp_path / "m.bin"))
    assert "tensor 'w': expected 96 bytes in storage '0', found nothing" in found
    for raw in (whole[:-1], whole + b"\0"):
        made.storages = {"0": raw}
        found = error(made.write(tmp_path / "m.bin"))
        assert f"tensor 'w': expected 96 bytes in storage '0', found {len(raw)}" in found


def test_read_torch_file_cut_anywhere_is_refused(tmp_path):
    path = save(tmp_path / "m.bin", {"w": MATRIX})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        found = error(path)
        assert "incomplete" in found or "expected a file of torch.save" in found


def test_read_torch_file_with_any_byte_damaged_gives_one_clear_line_or_tensors(tmp_path):
    path = save(tmp_path / "m.bin", {"w": MATRIX, "b": MATRIX[0]})
    whole = path.read_bytes()
    messages = []
    for at in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                read(path)
            except ConversionError as e:
                messages.append(str(e))
    assert len(messages) > len(whole) // 2
    assert all(m.startswith(str(path)) and "\n" not in m for m in messages)


def test_read_torch_file_that_shrinks_is_an_error(tmp_path):
    storage = np.arange(100, dtype=np.float32)
    views = {"w": View(storage, (10, 10), (10, 1)), "t": View(storage, (10, 10), (1, 10))}
    tensors = read_torch_file(save(tmp_path / "m.bin", views))
    os.truncate(tmp_path / "m.bin", 500)
    for name in views:
        with pytest.raises(ConversionError, match="became shorter"):
            tensors[name].read(0, 10)


def test_read_torch_file_other_byte_order_is_refused(tmp_path):
    made = archive({"w": MATRIX})
    made.byteorder = b"big"
    assert "byteorder b'big': expected little" in error(made.write(tmp_path / "m.bin"))


def test_read_torch_file_torchscript_is_refused(tmp_path):
    made = archive({"w": MATRIX})
    made.more = {"constants.pkl": b"", "code/__torch__.py": b""}
    assert "a TorchScript program" in error(made.write(tmp_path / "m.bin"))


def test_read_torch_file_pickle_of_absurd_size_is_refused(tmp_path):
    made = archive({"w": MATRIX})
    made.pickle += b"\0" * (16 << 20)
    assert "expected no more than" in error(made.write(tmp_path / "m.bin"))


def test_read_torch_file_other_archives_and_files_are_refused(tmp_path):
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("readme.txt", "no checkpoint")
    assert "with one data.pkl, found 0 in 1 members" in error(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "begins with b'version https:" in error(path)
    path.write_bytes(b"")
    assert "begins with b''" in error(path)
    assert "cannot be read: No such file" in error(tmp_path / "none.bin")
    assert "cannot be read: Is a directory" in error(tmp_path)


def test_read_torch_file_member_that_is_there_twice_is_refused(tmp_path):
    path = save(tmp_path / "m.bin", {"w": MATRIX})
    with zipfile.ZipFile(path, "a") as again, pytest.warns(UserWarning, match="Duplicate"):
        again.writestr("archive/data/0", b"")
    assert "member 'archive/data/0' is there twice" in error(path)


# Offsets in an entry of the table of contents: APPNOTE.TXT of the zip format, 4.3.12.
FLAGS, COMPRESSED_SIZE, SIZE, HEADER_OFFSET = 8, 20, 24, 42


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({FLAGS: 1}, "is encrypted"),
        ({COMPRESSED_SIZE: 90}, "is compressed"),
        ({HEADER_OFFSET: 3}, "its header is not where it says"),
        ({COMPRESSED_SIZE: 2**31, SIZE: 2**31}, "expected 2147483648 bytes, the file has"),
    ],
)
def test_read_torch_file_member_that_its_table_describes_wrongly_is_refused(
    tmp_path, changes, expected
):
    path = save(tmp_path / "m.bin", {"w": MATRIX})
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"archive/data/0", raw.index(b"PK\x01\x02")) - 46
    for at, value in changes.items():
        size = 2 if at == FLAGS else 4
        raw[entry + at : entry + at + size] = value.to_bytes(size, "little")
    path.write_bytes(raw)
    assert expected in error(path)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"ccollections\nOrderedDict\n]R", "calls collections.OrderedDict, which was not run"),
        (
            b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
            b"ctorch\nFloatStorage\n)}tR",
            "another class than torch.Tensor",
        ),
        (b"ctorch\nSize\n(NtR", "something that is not a shape"),
    ],
)
def test_read_torch_file_call_of_another_kind_is_refused(tmp_path, code, expected):
    assert expected in error(Archive(b"\x80\x02" + code + b".", {}).write(tmp_path / "m.bin"))


def test_read_torch_file_tensor_of_nine_dimensions_is_refused(tmp_path):
    view = View(MATRIX, (1,) * 9, (1,) * 9)
    assert "9 dimensions" in error(save(tmp_path / "m.bin", {"w": view}))


def test_read_torch_file_shape_of_more_dimensions_than_tensors_have_is_refused(tmp_path):
    # Each call would copy the list: 18 bytes of pickle for as much memory as it likes.
    code = b"ctorch\nSize\n](" + b"K\x01" * 9 + b"e\x85R"
    expected = "calls torch.Size with 9 dimensions"
    assert expected in error(Archive(b"\x80\x02" + code + b".", {}).write(tmp_path / "m.bin"))


def test_read_torch_file_of_before_the_zip_format_is_read(tmp_path):
    view = View(MATRIX, (2, 4), (4, 1), 8)
    path = save_legacy(tmp_path / "m.bin", {"half": MATRIX.astype(np.float16), "view": view})
    got = read(path)
    np.testing.assert_array_equal(got["half"], MATRIX.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(got["view"], MATRIX[2:4])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"keys": ["0", "0"]}, "storage '0' is listed twice"),
        ({"keys": ["7"]}, "storage '7' is listed twice, or belongs to no tensor"),
        ({"keys": []}, "96 bytes in storage '0', found nothing"),
        ({"keys": {"0": 1}}, "expected a list of storages, found dict"),
        ({"keys": [0]}, "expected a list of storages"),
        ({"miscounted": 1}, "storage '0': expected 96 bytes, found 25 numbers of float32"),
        ({"system": {"little_endian": False}}, "expected little-endian numbers"),
        ({"view": b"(" + text("0") + b"K\x00K\x01t"}, "something that is not a storage"),
    ],
)
def test_read_torch_file_of_before_the_zip_format_that_is_damaged_is_refused(
    tmp_path, changes, expected
):
    assert expected in error(save_legacy(tmp_path / "m.bin", {"w": MATRIX}, **changes))
