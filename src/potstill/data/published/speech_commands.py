"""Mini Speech Commands (Warden 2018, CC BY 4.0): eight spoken words as log spectrograms of 64 x 64.

From `mini_speech_commands/spectrograms.npz` (log(magnitude + 1e-3), not standardised), else from its clips:
`clips/{train,test}/WORD/*`, or WORD/* as published, of which every eighth clip of a word by name is a test clip.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ..own.folder import Files, class_files
from ..own.npz import read_npz
from ..own.sound import SUFFIXES, read_split
from ..records import DATASETS, KnownSet, MissingFiles, RawSplit

NAME = "mini_speech_commands"
CLASSES = ("yes", "no", "go", "stop", "left", "right", "up", "down")


def read_speech_commands(data_dir: Path) -> tuple[RawSplit, RawSplit]:
    root = data_dir / NAME
    stored = read_npz(root / "spectrograms.npz", None)
    if stored:
        if stored.test is None:
            raise DataError(f"{root / 'spectrograms.npz'}: has no x_test and y_test, expected both splits")
        return stored.train, stored.test
    clips = root / "clips"
    if (clips / "train").is_dir() and (clips / "test").is_dir():
        train_clips, test_clips = (class_files(clips / which, SUFFIXES) for which in ("train", "test"))
        return _read(clips / "train", train_clips), _read(clips / "test", test_clips)
    if all((root / word).is_dir() for word in CLASSES):
        files = {word: members for word, members in class_files(root, SUFFIXES).items() if word in CLASSES}
        train = {word: [clip for i, clip in enumerate(members) if i % 8] for word, members in files.items()}
        test = {word: members[::8] for word, members in files.items()}
        return _read(root, train), _read(root, test)
    raise MissingFiles(NAME, "files not found", [root], f"spectrograms.npz, clips/train/WORD or {CLASSES[0]}/, ...")


def _read(root: Path, files: Files) -> RawSplit:
    missing = [word for word in CLASSES if word not in files]
    if missing or len(files) > len(CLASSES):
        raise DataError(f"{root}: holds {', '.join(files)}, expected the words {', '.join(CLASSES)}")
    return read_split(NAME, root, files, CLASSES)


DATASETS.register(NAME)(
    KnownSet(
        NAME,
        read_speech_commands,
        classes=CLASSES,
        mirror=False,
        published=(7_000, 1_000),
        licence="CC BY 4.0",
        modality="sound",
    )
)
