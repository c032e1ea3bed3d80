"""Files of tensors: any flipped bit is noticed, older files without a checksum are read, and bytes are canonical."""

from __future__ import annotations

import errno
import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from potstill.errors import DataError
from potstill.tensors import checksum, map_tensors, pack, read_tensors

TENSORS = {"images": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(7), "none": torch.empty(0, 2)}
FACTS = {"spec": '{"name": "a"}', "seconds": "1.5"}
ABOUT = ("thing", "make it again")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "thing.safetensors"
    path.write_bytes(pack(TENSORS, FACTS))
    return path


@pytest.mark.parametrize("read", [read_tensors, map_tensors])
def test_what_was_written_is_read_back(read, file: Path) -> None:
    tensors, facts = read(file, *ABOUT)
    assert facts == FACTS and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("read", [read_tensors, map_tensors])
def test_every_single_flipped_bit_is_noticed_or_changes_nothing(read, file: Path) -> None:
    """Nothing but the checksum's own name may change unseen: the file is then taken for one without."""
    whole, unseen = file.read_bytes(), []
    for position in range(0, len(whole) * 8, 13):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        file.write_bytes(damaged)
        try:
            tensors, facts = read(file, *ABOUT)
        except DataError as error:
            assert re.fullmatch(r"/.*thing\.safetensors: damaged thing \(.+\); make it again", str(error))
        else:
            unseen.append(position // 8)
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
            assert facts.items() >= FACTS.items()
    name = whole.index(b"checksum")
    assert all(name <= place < name + len("checksum") for place in unseen)


@pytest.mark.parametrize("read", [read_tensors, map_tensors])
@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_file_cut_short_is_one_line(read, keep: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"^/.*thing\.safetensors: damaged thing \([^\n]+\); make it again$"):
        read(file, *ABOUT)


@pytest.mark.parametrize("read", [read_tensors, map_tensors])
@pytest.mark.parametrize(
    "header", ["[]", "7", '{"__metadata__": []}', '{"__metadata__": {"a": 1}}', '{"x": 1}', "[" * 100_000, "{} "]
)
def test_foreign_headers_are_one_line(read, header: str, file: Path) -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"data")
    with pytest.raises(DataError, match="damaged thing"):
        read(file, *ABOUT)


@pytest.mark.parametrize("read", [read_tensors, map_tensors])
def test_a_folder_or_nothing_in_its_place_is_one_line(read, tmp_path: Path) -> None:
    for path, found in ((tmp_path, "cannot be read (Is a directory)"), (tmp_path / "gone", "thing (no such file)")):
        with pytest.raises(DataError, match=re.escape(found)):
            read(path, *ABOUT)


@pytest.mark.parametrize("facts", [FACTS, None])
def test_files_without_a_checksum_are_read(facts: dict[str, str] | None, file: Path) -> None:
    file.write_bytes(save(TENSORS, facts))
    assert read_tensors(file, *ABOUT)[1] == (facts or {})


def test_other_programs_read_the_file(file: Path) -> None:
    assert torch.equal(load(file.read_bytes())["images"], TENSORS["images"])


def test_the_checksum_is_the_hash_of_the_same_file_without_it(file: Path) -> None:
    """So that hashes of sets that older versions noted stay true."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    noted = header["__metadata__"].pop("checksum")
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    older = len(text).to_bytes(8, "little") + text + content[start:]
    assert noted == checksum(content) == checksum(older) == blake2b(older, digest_size=12).hexdigest()


def test_the_same_content_gives_the_same_bytes() -> None:
    backwards = dict(reversed(FACTS.items()))
    assert len({pack(TENSORS, facts) for facts in [FACTS, backwards] * 8}) == 1


@pytest.mark.parametrize("read", [read_tensors, map_tensors])
def test_a_file_that_cannot_be_read_is_not_called_damaged(
    read: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of another user's file; for root every file is readable."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError) as caught:
        read(file, *ABOUT)
    assert str(caught.value) == f"{file}: cannot be read (Permission denied); check the file and its permissions"
