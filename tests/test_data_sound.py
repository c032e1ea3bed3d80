"""Sound: spectrograms, the folder of clips, Mini Speech Commands and the way back to clips."""

import base64
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_factory import refused

import potstill
from potstill.data import load_dataset
from potstill.errors import MissingExtra, UsageError
from potstill.report import collect, render_report
from potstill.run.paper import read_table
from potstill.sets.export import export
from potstill.sets.synthetic import SyntheticSet
from potstill.spectrogram import RATE, SILENCE, log_spectrograms, waves

soundfile = pytest.importorskip("soundfile")
WORDS = ("yes", "no", "go", "stop", "left", "right", "up", "down")
REAL = Path(os.environ.get("POTSTILL_DATA_DIR", "")) / "mini_speech_commands"


def tone(hertz, seconds=1.0, rate=RATE, seed=0):
    time = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * hertz * time + seed)).astype(np.float32)


def clips(root, number=4, suffix=".wav", classes=("high", "low")):
    for cls, hertz in zip(classes, (3000, 400, 1000, 2000, 700, 5000, 1500, 4000), strict=False):
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
    for number, word in enumerate(WORDS):
        (tmp_path / "mini_speech_commands" / word).mkdir(parents=True)
        for clip in range(9):
            soundfile.write(tmp_path / "mini_speech_commands" / word / f"{clip}.wav", tone(400 * number + 300), RATE)
    data = load_dataset("speech", data_dir=tmp_path)
    assert data.spec.classes == WORDS and (len(data.train), len(data.test)) == (7 * 8, 2 * 8)


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


def test_a_spectrogram_npz_is_read_as_published_and_comes_before_clips(tmp_path):
    folder = tmp_path / "mini_speech_commands"
    clips(folder / "clips" / "train", classes=WORDS)
    clips(folder / "clips" / "test", classes=WORDS, number=1)
    assert len(load_dataset("mini_speech_commands", data_dir=tmp_path).train) == 4 * 8
    numbers = np.random.default_rng(0)
    x_train, x_test = (numbers.uniform(-6.9, 4, (count, 1, 64, 64)).astype(np.float32) for count in (16, 8))
    y_train, y_test = np.arange(16) % 8, np.arange(8)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(folder / "spectrograms.npz", class_names=np.array(WORDS), **arrays)
    data = load_dataset("mini_speech_commands", data_dir=tmp_path)
    spec = data.spec
    assert spec.classes == WORDS and spec.modality == "sound" and not spec.mirror and len(data.train) == 16
    torch.testing.assert_close(spec.to_source(data.train.images), torch.from_numpy(x_train), rtol=0, atol=1e-5)


def test_a_word_without_clips_is_missed_by_name(tmp_path):
    clips(tmp_path / "mini_speech_commands" / "clips" / "train", classes=WORDS[:-1])
    clips(tmp_path / "mini_speech_commands" / "clips" / "test", classes=WORDS[:-1])
    with refused(tmp_path, "yes, no, go, stop, left, right, up, down"):
        load_dataset("speech", data_dir=tmp_path)


def test_a_class_without_clips_is_refused(tmp_path):
    (clips(tmp_path / "tones") / "none").mkdir()
    with refused(tmp_path / "tones" / "none"):
        load_dataset(tmp_path / "tones")


# --- distilled


def tones(tmp_path):
    return load_dataset(clips(tmp_path / "tones", number=12))


def test_tiles_of_the_paper_lie_along_time(tmp_path):
    """One row, two columns: the halves of a stored spectrogram, each stretched to a second."""
    spec = tones(tmp_path).spec
    stored = torch.zeros(2, 1, 1, 64, 64)
    stored[..., 32:] = 1
    first, second = SyntheticSet(stored, spec, (1, 2)).samples()[0]
    assert first.max() == 0 and second.min() == 1
    cells = {cell.label: cell.recipe for cell in read_table("table2").cells}
    assert cells["dsdm"].factor == (1, 2) and cells["dm"].factor == (1, 1)
    assert {recipe.evaluation.protocol for recipe in cells.values()} == {"speech"}


def test_what_a_factor_leaves_over_is_padded_with_silence(tmp_path):
    """64 frames are not three times a whole number: the third tile ends in two frames of the data's own floor."""
    spec = tones(tmp_path).spec
    last = SyntheticSet(torch.ones(2, 1, 1, 64, 64), spec, (1, 3)).samples()[0, 2]
    assert last[..., 0].min() == 1 and last[..., -1].max() < 0.05
    floor = spec.to_source(torch.zeros(1)).item()
    assert floor == pytest.approx(SILENCE, abs=0.5)


def test_distilled_sound_is_never_below_the_least_training_value(tmp_path):
    data = tones(tmp_path)
    recipe = {"pool.members": 1, "pool.pretrained": False, "pool.network": "convnet:width=8", "init.kind": "noise"}
    keys = {"ipc": 1, "factor": (1, 2), "steps": 2, "real_batch": 4, "learning_rate": 1e5, "cache": tmp_path}
    run = potstill.distill(data, method="dsdm", recipe=recipe, **keys)
    loudness = data.spec.to_source(run.synthetic.images)
    least = data.spec.to_source(data.train.images).min()
    assert loudness.min() == pytest.approx(least.item(), abs=1e-5), "steps so large meet the bound"


def test_a_page_plays_sets_before_and_after_without_a_script(tmp_path):
    data = tones(tmp_path)
    keys = {"ipc": 2, "factor": 1, "steps": 1, "real_batch": 4, "cache": tmp_path, "out": tmp_path / "run"}
    recipe = {"pool.members": 1, "pool.pretrained": False, "pool.network": "convnet:width=8"}
    potstill.distill(data, method="dsdm", recipe=recipe, **keys)
    page = render_report(collect(tmp_path / "run"))
    found = re.findall(r'<audio controls [^>]*aria-label="([^"]+)" src="data:audio/wav;base64,([^"]+)"></audio>', page)
    assert [label for label, _ in found] == [
        f"dsdm: {moment}: {word}" for moment in ("before", "after 1 steps") for word in ("high", "low")
    ]
    for (_, clip), hertz in zip(found, (3000, 400) * 2, strict=True):
        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(clip)), dtype="float32")
        assert rate == RATE and len(sound) == RATE
        row = log_spectrograms(torch.from_numpy(sound)[None])[0, 0, :, 32].argmax().item()
        assert abs(row - hertz * 64 // 8000) <= 1
    assert "<script" not in page and "media-src data:" in page and "Griffin" in page
    assert "Stored samples as they are" in page and "a row of samples for each" in page and "image" not in visible(page)


def visible(page):
    """The words of a page, without styles, recipe and file names."""
    words = re.sub(r"<(style|pre|details).*?</\1>|<[^>]*>", " ", page, flags=re.S)
    return " ".join(words.split())


def test_a_card_of_sound_speaks_of_samples(tmp_path):
    data = tones(tmp_path)
    images = torch.stack([data.train.images[data.train.labels == label][:2] for label in (0, 1)])
    card = (export(SyntheticSet(images, data.spec), tmp_path / "out", "huggingface") / "README.md").read_text()
    assert "tones in 2 samples per class" in card and "- audio-classification" in card
    assert "none of the augmentation" in card and "colour, crops" not in card


# --- the real clips


@pytest.mark.skipif(not (REAL / "clips").is_dir(), reason="needs Mini Speech Commands")
def test_real_clips_give_the_stored_spectrograms():
    """All 800 of them: each is near one of its word, in its split."""
    stored = np.load(REAL / "spectrograms.npz")
    count = 0
    for split in ("train", "test"):
        for label, word in enumerate(stored["class_names"].tolist()):
            of_word = torch.from_numpy(stored[f"x_{split}"][stored[f"y_{split}"] == label]).flatten(1)
            waves_of_word = []
            for path in sorted((REAL / "clips" / split / word).iterdir()):
                samples, rate = soundfile.read(path, dtype="float32")
                assert rate == RATE
                waves_of_word.append(np.pad(samples[:RATE], (0, max(0, RATE - len(samples)))))
            found = log_spectrograms(torch.from_numpy(np.stack(waves_of_word))).flatten(1)
            assert torch.cdist(found, of_word, p=float("inf")).min(dim=1).values.max() < 0.006, (split, word)
            count += len(found)
    assert count == 800
