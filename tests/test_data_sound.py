"""Sound: spectrograms, the folder of clips, Mini Speech Commands and the way back to clips."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_factory import refused

from potstill.data import load_dataset
from potstill.errors import MissingExtra, UsageError
from potstill.sets.export import export
from potstill.sets.synthetic import SyntheticSet
from potstill.spectrogram import RATE, SILENCE, log_spectrograms, waves

soundfile = pytest.importorskip("soundfile")
REAL = Path(os.environ.get("POTSTILL_DATA_DIR", "")) / "mini_speech_commands"


def tone(hertz, seconds=1.0, rate=RATE, seed=0):
    time = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * time + seed)).astype(np.float32)


def clips(root, number=4, suffix=".wav", classes=("high", "low")):
    for cls, hertz in zip(classes, (3000, 400), strict=False):
        (root / cls).mkdir(parents=True)
        for seed in range(number):
            soundfile.write(root / cls / f"{seed}{suffix}", tone(hertz, seed=seed), RATE)
    return root


def test_silence_is_the_floor_and_a_tone_lies_in_its_row():
    silent, sounding = log_spectrograms(torch.from_numpy(np.stack([np.zeros(RATE, np.float32), tone(3000)])))
    torch.testing.assert_close(silent, torch.full((1, 64, 64), SILENCE))
    assert int(sounding[0, :, 32].argmax()) == 3000 * 64 // 8000


def test_waves_sound_like_the_spectrograms_they_are_made_from():
    original = log_spectrograms(torch.from_numpy(np.stack([tone(400), tone(3000)])))
    again = log_spectrograms(waves(original))
    assert (again - original)[:, :, :, 2:60].exp().log().abs().mean() < 0.5
    assert again[:, 0, :, 32].argmax(1).tolist() == original[:, 0, :, 32].argmax(1).tolist()
    assert torch.equal(waves(original), waves(original))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_folder_of_clips_is_read_by_class(tmp_path, suffix):
    data = load_dataset(clips(tmp_path / "tones", suffix=suffix))
    spec = data.spec
    assert spec.classes == ("high", "low") and spec.shape == (1, 64, 64) and spec.modality == "sound"
    assert spec.mirror is False and spec.padding_value == 0 and spec.augmentation == "none"
    assert data.train.images.min() == 0 and data.train.images.max() == 1
    clip = torch.from_numpy(soundfile.read(tmp_path / "tones" / "high" / f"0{suffix}", dtype="float32")[0])
    found = spec.to_source(torch.cat([data.train.images, data.test.images]))
    assert (found - log_spectrograms(clip[None])).abs().amax((1, 2, 3)).min() < 1e-4


def test_any_rate_length_and_number_of_channels_is_read_with_one_notice(tmp_path, caplog):
    root = clips(tmp_path / "tones")
    soundfile.write(root / "low" / "slow.wav", tone(400, rate=8000), 8000)
    soundfile.write(root / "low" / "stereo.wav", np.stack([tone(400)] * 2, axis=1), RATE)
    soundfile.write(root / "low" / "short.wav", tone(400, seconds=0.5), RATE)
    soundfile.write(root / "low" / "long.wav", tone(400, seconds=2), RATE)
    data = load_dataset(root)
    assert "of 12 clips" in caplog.text and "1 resampled to 16000 Hz, 1 mixed down to one channel" in caplog.text
    assert "1 shorter than a second padded with silence, 1 longer than a second cut" in caplog.text
    both = torch.cat([data.train.images, data.test.images])[torch.cat([data.train.labels, data.test.labels]) == 1]
    assert set(both[:, 0, :, 10].argmax(1).tolist()) == {400 * 64 // 8000}


def test_damaged_clip_is_named(tmp_path):
    root = clips(tmp_path / "tones")
    (root / "low" / "bad.wav").write_bytes(b"RIFF no sound")
    with refused(root / "low" / "bad.wav", "cannot be read", "complete clip"):
        load_dataset(root)


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with refused("potstill[audio]", by=MissingExtra):
        load_dataset(clips(tmp_path / "tones"))


def test_published_folder_holds_out_every_eighth_clip_of_a_word(tmp_path):
    words = ("yes", "no", "go", "stop", "left", "right", "up", "down")
    for number, word in enumerate(words):
        (tmp_path / "mini_speech_commands" / word).mkdir(parents=True)
        for clip in range(9):
            soundfile.write(tmp_path / "mini_speech_commands" / word / f"{clip}.wav", tone(400 * number + 300), RATE)
    data = load_dataset("speech", data_dir=tmp_path)
    assert data.spec.classes == words and (len(data.train), len(data.test)) == (7 * 8, 2 * 8)


def test_sound_is_exported_as_clips(tmp_path):
    data = load_dataset(clips(tmp_path / "tones"))
    images = torch.stack([data.train.images[data.train.labels == label][:2] for label in (0, 1)])
    place = export(SyntheticSet(images, data.spec), tmp_path / "out", "wav")
    sound, rate = soundfile.read(place / "low" / "0001.wav", dtype="float32")
    assert rate == RATE and len(sound) == RATE and len(list(place.rglob("*.wav"))) == 4
    assert int(log_spectrograms(torch.from_numpy(sound)[None])[0, 0, :, 32].argmax()) == 400 * 64 // 8000


def test_images_cannot_be_exported_as_clips(tmp_path):
    digits = load_dataset("digits")
    images = digits.train.images[:10].float()[:, None] / 255
    with refused("wav", "image", "expected sound", by=UsageError):
        export(SyntheticSet(images, digits.spec), tmp_path / "out", "wav")


@pytest.mark.skipif(not (REAL / "clips").is_dir(), reason="needs Mini Speech Commands")
def test_real_clips_give_the_stored_spectrograms():
    stored = np.load(REAL / "spectrograms.npz")
    label = stored["class_names"].tolist().index("stop")
    of_word = torch.from_numpy(stored["x_test"][stored["y_test"] == label])
    for path in sorted((REAL / "clips" / "test" / "stop").iterdir()):
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE
        clip = torch.zeros(1, RATE)
        clip[0, : len(samples)] = torch.from_numpy(samples)
        assert (of_word - log_spectrograms(clip)).abs().amax((1, 2, 3)).min() < 0.006, path
