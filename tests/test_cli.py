"""The command line: fast help, documented exit codes, results on stdout, and everything else on stderr."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_factory import write_mnist

import potstill
from potstill.cli import main
from potstill.cli.listing import describe, names
from potstill.evaluation import PROTOCOLS
from potstill.methods import METHODS, Metrics
from potstill.methods.dsdm import DSDM
from potstill.networks import NETWORKS
from potstill.recipe import PoolConfig, parse_assignments, resolve
from potstill.recipe.keys import find_keys, keys_of
from potstill.run.progress import Reporter
from potstill.run.store import RunStore
from potstill.sets.synthetic import SyntheticSet

VERBS = ["distill", "evaluate", "compare", "pretrain", "export", "report", "reproduce", "list"]
KINDS = ["methods", "datasets", "networks", "recipes", "studies", "protocols", "keys"]
EAGER = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--compile", "false"]
DIGITS = ["distill", "--dataset", "digits", "--ipc", "1", *EAGER]
DSDM_KEYS = ["--method.steps", "4", "--method.real_batch", "16", "--pool.members", "1", "--pool.pretrained", "false"]


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data, and none inherits a terminal's or a CI's settings."""
    monkeypatch.setenv("POTSTILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("POTSTILL_DATA_DIR", str(tmp_path / "data"))
    for name in ("CI", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the digits, not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*DIGITS, *DSDM_KEYS, "--out", str(folder), "-q"]) == 0
    return folder


def python(*words: str, **keys: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=300, **keys
    )


def exit_code(words: list[str]) -> int:
    """Of `main`, also where argparse ends the process."""
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("potstill:")]
    assert "Traceback" not in captured.err
    return line


# --- help


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_takes_less_than_half_a_second_of_processor_time(words: list[str]) -> None:
    assert processor_seconds(["-m", "potstill", *words]) < 0.5


def processor_seconds(words: list[str]) -> float:
    """User and system time of a child, the best of at most five: a busy machine only makes it longer."""
    best = float("inf")
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    for _ in range(5):
        child = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        best = min(best, used.ru_utime + used.ru_stime)
        if best < 0.25:
            break
    return best


def test_help_of_every_verb_and_usage_errors_do_without_torch() -> None:
    code = f"""if 1:
        import sys
        from potstill.cli import main
        for words in {[["--help"], ["--version"], *([v, "--help"] for v in VERBS), ["nonsense"], ["list", "nonsense"]]}:
            try:
                main(words)
            except SystemExit:
                pass
        heavy = {{"torch", "numpy", "matplotlib", "yaml", "rich", "msgspec"}} & set(sys.modules)
        print("heavy:", sorted(heavy))
    """
    assert python("-c", code).stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("verb", VERBS)
def test_help_tells_the_exit_codes_and_the_common_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--json", "--quiet", "0 done", "1 the run failed", "130 interrupted"):
        assert part in text


def test_every_verb_is_tested_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["--help"]) == 0
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == VERBS


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from potstill._version import __version__

    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"potstill {__version__}\n"


# --- exit codes


def test_exit_0_for_what_is_done_also_from_a_shell() -> None:
    done = python("-m", "potstill", "list", "methods")
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(METHODS)


def test_exit_1_for_a_run_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = DSDM.step
    monkeypatch.setattr(DSDM, "step", lambda *given: (plain(*given)[0], Metrics(float("inf"))))
    assert main([*DIGITS, *DSDM_KEYS, "--out", str(tmp_path / "run"), "-q"]) == 1
    assert "step 1: loss is inf" in one_error_line(capsys)


def test_exit_1_for_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunStore(tmp_path / "run").locked():
        assert main([*DIGITS, "--method", "random", "--out", str(tmp_path / "run"), "-q"]) == 1
    assert "another process is working on this run" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([*DIGITS, "--method", "dsmd", "--out", "x"], "unknown method 'dsmd': known are "),
        ([*DIGITS, "--dataset", "cifar12", "--out", "x"], "unknown data set 'cifar12': known are cifar10, cifar100"),
        ([*DIGITS, "--method.step", "3", "--out", "x"], "unknown recipe key 'method.step' of method 'dsdm'"),
        ([*DIGITS, "--method.steps", "few", "--out", "x"], "method.steps='few': need a whole number"),
        ([*DIGITS, "--method.steps", "--out", "x"], "--method.steps: no value given"),
        ([*DIGITS, "stray", "--out", "x"], "unexpected argument 'stray'"),
        ([*DIGITS, "--ipc", "0", "--out", "x"], "ipc=0: need at least 1"),
        ([*DIGITS, "--factor", "0", "--out", "x"], "factor=0,0: each must be at least 1"),
        ([*DIGITS, "--fidelity", "exact", "--out", "x"], "use one of paper, code, potstill"),
        ([*DIGITS, "--device", "tpu9", "--method", "random", "--out", "x"], "device='tpu9': use auto, cpu, cuda"),
        ([*DIGITS, "--config", "nope", "--out", "x"], "no recipe 'nope': give a file, or one of "),
        (DIGITS, "no folder for the run: add --out DIR"),
        ([*DIGITS, "--resume"], "no folder for the run: give one, as --resume DIR"),
        ([*DIGITS, "--resume", "nowhere", "--out", "x"], "--out x beside --resume nowhere: a run goes on in its own"),
        (["distill", "--resume", "nowhere"], "nowhere: no run here"),
        (["compare", "--methods", "random,dm9", "--dataset", "digits", "--out", "x"], "unknown method 'dm9'"),
        (["compare", "--budget-minutes", "-1", "--out", "x"], "budget.minutes=-1: need a number of minutes above 0"),
        (["list", "methods", "nope"], "unknown method 'nope': known are "),
        (["list", "networks", "nope"], "unknown network 'nope': known are alexnet, convnet"),
        (["list", "datasets", "nope"], "unknown data set 'nope'"),
        (["list", "recipes", "nope"], "no recipe 'nope'"),
        (["list", "protocols", "nope"], "unknown protocol 'nope'"),
        (["list", "keys", "nope"], "no key or section 'nope' with method 'dsdm': known are method, ipc"),
        (["list", "keys", "method", "nope"], "unknown method 'nope': known are"),
        (["list", "methods", "dsdm", "more"], "unexpected argument 'more': see potstill list --help"),
    ],
)
def test_exit_2_with_one_line_for_wrong_usage(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(words) == 2
    assert named in one_error_line(capsys)
    assert not list(tmp_path.glob("*/synthetic"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["brew"],
        ["distill", "--ipc", "ten"],
        ["distill", "--factor", "1,2,3"],
        ["distill", "--precision", "fp8"],
        ["distill", "--keep-snapshots", "a,b"],
        ["evaluate"],
        ["evaluate", "x", "--nets", "many"],
        ["compare", "--methods", "random"],
        ["compare", "--methods", ",", "--out", "x"],
        ["compare", "--seeds", "0", "--out", "x"],
        ["compare", "--factors", "0", "--out", "x"],
        ["compare", "--factors", "2x", "--out", "x"],
        ["compare", "--full-data", "0", "--out", "x"],
        ["compare", "--budget-minutes", "long", "--out", "x"],
        ["export", "x"],
        ["report", "x", "--format", "pdf"],
        ["list"],
        ["list", "colours"],
        ["distill", "--ipc", "1e9"],
        ["distill", "--seed", "nan"],
        ["distill", "--method"],
        ["\x1b[31m"],
        [],
    ],
    ids=" ".join,
)
def test_exit_2_and_one_line_where_the_parser_itself_refuses(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(words) == 2
    assert re.fullmatch(r"potstill: [^\n\x1b]+; see potstill( \w+)? --help\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([*DIGITS, "--dataset", "missing.npz", "--out", "x"], "missing.npz: no such file or folder"),
        ([*DIGITS, "--dataset", "cifar10", "--method", "random", "--out", "x"], "cifar10: "),
        ([*DIGITS, "--method", "random", "--ipc", "500", "--out", "x"], "500 needed"),
        (["evaluate", "nowhere", "--json"], "nowhere: no such file or folder"),
        (["export", "nowhere", "--to", "folder"], "nowhere: no such file or folder"),
        (["report", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_exit_3_for_data_that_are_missing(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code([*words, "-q"]) == 3
    assert named in one_error_line(capsys)


def test_exit_3_for_a_damaged_set(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "distilled.safetensors"
    broken.write_bytes(RunStore(finished).distilled.read_bytes()[:-100])
    assert main(["evaluate", str(broken), "-q"]) == 3
    assert "distilled.safetensors" in one_error_line(capsys)


def test_exit_4_names_the_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    words = [*DIGITS, "--dataset", "cifar10", "--download", "--out", str(tmp_path / "run"), "-q"]
    assert main(words) == 4
    assert "pip install 'potstill[hub]'" in one_error_line(capsys)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_130_for_an_interrupted_run_which_the_printed_command_finishes(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = DSDM.step

    def ask(*given: Any) -> Any:
        os.kill(os.getpid(), number)
        return plain(*given)

    with monkeypatch.context() as patch:
        patch.setattr(DSDM, "step", ask)
        assert main([*DIGITS, *DSDM_KEYS, "--out", str(tmp_path / "run"), "-q"]) == 130
    line = one_error_line(capsys)
    command = line.partition("go on with: potstill ")[2].split()
    assert command == ["distill", "--resume", str(tmp_path / "run")]
    assert main([*command, "-q"]) == 0
    assert RunStore(tmp_path / "run").distilled.exists()


def test_exit_130_for_ctrl_c_outside_any_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("potstill.run.inputs.load_dataset", interrupted)
    assert main([*DIGITS, "--out", str(tmp_path / "run")]) == 130
    assert one_error_line(capsys) == "potstill: interrupted"


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    """As in `potstill list methods | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    command = [sys.executable, "-m", "potstill", "list", "methods"]
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is always full")
def test_closed_streams_are_no_failure_and_no_file_takes_their_place(finished: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "potstill", "export", str(finished), "--to", "safetensors", "--out", "set"]
    closed = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
    assert subprocess.run(closed, cwd=tmp_path, env=environment, timeout=300).returncode == 0
    assert SyntheticSet.load(tmp_path / "set.safetensors").spec.name == "digits"


def test_a_deleted_current_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["list", "methods"]) == 2
    assert "current folder cannot be used (No such file or directory)" in one_error_line(capsys)


def test_a_full_disk_under_stdout_is_one_line_and_exit_1() -> None:
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONPATH": str(Path(potstill.__file__).parents[1])}
        command = [sys.executable, "-m", "potstill", "list", "recipes"]
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (
        1,
        "potstill: No space left on device; check the disk and its permissions\n",
    )


def fail(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("work", "asked"),
    [
        (lambda: torch.empty(10**15), "4000000000000000 bytes"),
        (lambda: np.ones(10**15, np.uint8), "909. TiB"),
        (lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.\nGPU 0")), "2.50 GiB"),
        (lambda: fail(MemoryError()), None),
        (lambda: fail(OSError(12, "Cannot allocate memory")), None),
    ],
)
def test_a_lack_of_memory_is_one_line_that_says_what_to_make_smaller(
    work: Callable[[], Any], asked: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potstill.cli.list.run", lambda options: work())
    assert main(["list", "methods"]) == 1
    when = f" when {asked} more were asked for" if asked else ""
    assert re.match(f"potstill: out of memory{when}: ask for less .*--ipc", one_error_line(capsys))


def test_other_failures_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.cli.list.run", lambda options: fail(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["list", "methods"])


def test_a_terminal_that_is_not_utf_8_gets_its_table(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["report", str(finished), "--format", "markdown"]) == 0
    sys.stdout.flush()
    assert "| dsdm | ? |" in " ".join(raw.getvalue().decode("ascii").split())


def test_escape_codes_and_line_breaks_of_names_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "no\x1b[31m\nwhere"]) == 3
    assert capsys.readouterr().err.startswith("potstill: no\\x1b[31m\\nwhere: no such file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_130_for_a_signal_outside_any_stage(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr("potstill.report.collect", asked)
    assert main(["report", "x", "--format", "csv"]) == 130
    assert one_error_line(capsys).startswith("potstill: interrupted; what is finished")
    assert signal.getsignal(number) is before


# --- one JSON document


def document(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)  # fails on anything before or after it
    assert found["schema_version"] == 1
    return found


def test_distill_prints_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document([*DIGITS, *DSDM_KEYS, "--out", str(tmp_path / "run")], capsys)
    assert found["run"] == str(tmp_path / "run")
    assert found["images"] == [10, 1, 1, 8, 8] and found["numbers_stored"] == 640
    assert found["distill_seconds"] > 0 and len(found["recipe_hash"]) == 12


def test_evaluate_prints_one_json_document(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(finished), "--nets", "1", "--epochs", "2", "--protocol", "dc", "--out", str(tmp_path)]
    found = document([*words, "--stored-bits", "8"], capsys)
    assert (found["n_sets"], found["n_nets"], found["selection"]) == (1, 1, "last epoch")
    (score,) = found["scores"]
    assert (score["protocol"], score["epochs"], score["accuracy"]) == ("dc", 2, found["mean"])
    assert found["std"] is None
    assert (found["numbers_stored"], found["bytes_stored"], found["stored_bits"]) == (640, 2560, 32)
    rounded = found["quantised"]
    assert rounded["difference"] == pytest.approx(rounded["mean"] - found["mean"])
    assert (rounded["numbers_stored"], rounded["bytes_stored"], rounded["stored_bits"]) == (642, 640 + 2 * 4, 8)
    assert found["recipe_hash"] == SyntheticSet.load(RunStore(finished).distilled).provenance["recipe_hash"]


def test_a_set_in_few_bits_is_scored_from_its_own_small_file(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--nets", "1", "--epochs", "2"]
    assert main(["evaluate", str(finished), *short, "--stored-bits", "4", "--out", str(tmp_path)]) == 0
    exact, rounded = capsys.readouterr().out.splitlines()
    assert exact.endswith("epochs); 640 numbers, 2,560 bytes")
    assert rounded.startswith("4 bits: ") and "; 642 numbers, 328 bytes; difference" in rounded
    kept = RunStore(tmp_path / "stored_bits_4")
    (score,) = [json.loads(path.read_text()) for path in kept.scores.glob("*.json")]
    assert (score["stored_bits"], score["bytes_stored"]) == (4, 328)
    assert SyntheticSet.load(kept.root).provenance["stored_bits"] == "4"
    again = document(["evaluate", str(kept.root), "--out", str(tmp_path / "again"), *short], capsys)
    assert (again["mean"], again["bytes_stored"]) == (score["accuracy"], 328)


def test_eight_bit_is_another_name_of_stored_bits_and_other_widths_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(finished), "--nets", "1", "--epochs", "1", "--out", str(tmp_path)]
    assert document([*words, "--eight-bit"], capsys)["quantised"]["stored_bits"] == 8
    assert exit_code([*words, "--stored-bits", "9"]) == 2
    assert "--stored-bits: invalid choice: 9" in capsys.readouterr().err


def test_pretrain_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "--dataset", "digits", "--pool.members", "1", "--pool.epochs", "1", *EAGER]
    found = document(words, capsys)
    (accuracy,) = found["train_accuracy"]
    assert len(found["members"]) == 1 and 0 <= float(accuracy) <= 1
    assert document(words, capsys)["members"] == found["members"]


def test_export_prints_one_json_document(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["export", str(finished), "--to", "folder", "--out", str(tmp_path / "export")], capsys)
    assert found["format"] == "folder" and Path(found["written"]).exists()


@pytest.mark.parametrize("format", ["html", "markdown", "csv"])
def test_report_prints_one_json_document(
    format: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(finished, tmp_path)
    found = document(["report", str(folder), "--format", format], capsys)
    if format == "html":
        assert Path(found["report"]).is_file()
    else:
        assert [row["method"] for row in found["rows"]] == ["dsdm"]


def copy_of(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place / "copy"))


@pytest.mark.parametrize("kind", KINDS)
def test_list_prints_one_json_document_for_a_kind_and_for_every_entry(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = document(["list", kind], capsys)[kind]
    assert listed
    for name in listed:
        assert document(["list", kind, name], capsys)["name"] == name


@pytest.mark.parametrize(
    "words",
    [
        [*DIGITS, "--method", "nope", "--out", "x", "--json"],
        ["list", "methods", "nope", "--json"],
        ["evaluate", "nowhere", "--json"],
    ],
)
def test_a_failure_leaves_stdout_empty_with_json_too(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (2, 3)
    assert one_error_line(capsys)


# --- stdout and stderr


def test_results_go_to_stdout_and_progress_to_stderr_without_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*DIGITS, *DSDM_KEYS, "--out", str(run)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{RunStore(run).distilled}\nnext: potstill evaluate {run}\n"
    assert "dsdm: runtime: cpu, fp32, eager, 1 thread" in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("distill")]
    assert line.startswith("distill 4/4, 0 s left  loss ")
    assert not set(said.err) & set("\x1b\r━╸")


def test_quiet_leaves_stderr_empty(tmp_path: Path) -> None:
    words = [*DIGITS, *DSDM_KEYS, "--out", str(tmp_path / "run")]
    quiet = python("-m", "potstill", *words, "-q")
    assert quiet.returncode == 0 and quiet.stderr == ""
    assert quiet.stdout.startswith(str(tmp_path / "run"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_there_are_bars_on_a_terminal_but_not_in_ci_nor_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert Reporter().bars
    assert not Reporter(quiet=True).bars
    monkeypatch.setenv("CI", "true")
    assert not Reporter().bars


def test_a_bar_shows_the_stage_its_steps_and_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Reporter().stage("distill", total=7, done=3) as stage:
        stage.advance("loss 1.25")
    shown = screen.getvalue()
    assert all(part in shown for part in ("distill", "4/7", "loss 1.25"))


def test_the_table_formats_of_report_are_printed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", str(finished), "--format", "markdown"]) == 0
    assert "| dsdm" in capsys.readouterr().out
    assert main(["report", str(finished), "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["method"] == "dsdm"


# --- options and the recipe


def config_of(words: list[str], tmp_path: Path) -> dict[str, Any]:
    assert main([*words, "--out", str(tmp_path / "run"), "-q"]) == 0
    return yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())


def test_short_options_are_recipe_keys(tmp_path: Path) -> None:
    words = [*DIGITS, "--method", "random", "--ipc", "2", "--factor", "1,2", "--seed", "4", "--keep-snapshots", "0,3"]
    config = config_of(words, tmp_path)
    assert (config["ipc"], config["factor"], config["seed"]) == (2, [1, 2], 4)
    assert (config["method"], config["data"]["name"], config["saving"]["keep"]) == (
        {"name": "random"},
        "digits",
        [0, 3],
    )
    runtime = {"device": "cpu", "precision": "fp32", "threads": 1, "compile": False, "chunk": "auto"}
    assert config["runtime"] == runtime


def test_keys_go_over_short_options_and_those_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ipc: 3\nseed: 8\nmethod: {name: random}\nfactor: [1, 1]\n")
    words = [
        "distill",
        "--config",
        str(tmp_path / "mine.yaml"),
        "--seed",
        "9",
        "--factor",
        "2",
        "--ipc",
        "2",
        "--ipc",
        "1",
    ]
    config = config_of([*words, "--factor", "2,1", "--init.pick=first"], tmp_path)
    assert (config["ipc"], config["seed"], config["factor"], config["init"]["pick"]) == (1, 9, [2, 1], "first")


def test_of_several_recipe_files_later_ones_win_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("ipc: 1\nseed: 8\nmethod: {name: random}\nfactor: [1, 1]\ndata: {name: digits}\n")
    (tmp_path / "b.yaml").write_text("seed: 9\ninit: {pick: first}\n")
    words = ["distill", "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = config_of(words, tmp_path)
    assert (config["ipc"], config["seed"], config["init"]["pick"], config["method"]["name"]) == (
        1,
        9,
        "first",
        "random",
    )


def test_size_and_mirror_are_options_with_pythons_words_too(tmp_path: Path) -> None:
    config = config_of([*DIGITS, "--method", "random", "--size", "12", "--mirror", "False"], tmp_path)
    assert (config["data"]["size"], config["data"]["mirror"]) == (12, False)


def test_the_pool_alone_has_no_options_for_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["pretrain", "--help"]) == 0
    assert not {"--ipc", "--factor"} & set(capsys.readouterr().out.replace(",", " ").split())


def test_one_number_is_a_square_factor(tmp_path: Path) -> None:
    assert config_of([*DIGITS, "--method", "random", "--factor", "2"], tmp_path)["factor"] == [2, 2]


def test_an_existing_run_asks_for_resume_or_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DIGITS, "--method", "random", "--out", str(tmp_path / "run"), "-q"]
    assert main(words) == 0
    first = RunStore(tmp_path / "run").distilled.read_bytes()
    capsys.readouterr()
    assert main(words) == 2
    assert "--resume to go on with it, or --overwrite" in one_error_line(capsys)
    assert main([*words, "--resume"]) == 0
    assert main([*words, "--seed", "1", "--overwrite"]) == 0
    assert RunStore(tmp_path / "run").distilled.read_bytes() != first


def test_resume_needs_no_more_than_the_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = RunStore(finished).config.read_text()
    found = document(["distill", "--resume", str(finished), "-q"], capsys)
    assert found["run"] == str(finished)
    assert RunStore(finished).config.read_text() == before


def test_resume_with_another_recipe_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["distill", "--resume", str(finished), "--seed", "7", "-q"]) == 2
    assert "holds a run with seed 0, not 7" in one_error_line(capsys)


# --- evaluate


def test_a_set_file_is_evaluated_like_its_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--nets", "1", "--epochs", "1", "-q", *EAGER]
    of_run = document(["evaluate", str(finished), "--out", str(tmp_path / "a"), *options], capsys)
    file = str(RunStore(finished).distilled)
    of_file = document(["evaluate", file, "--out", str(tmp_path / "b"), *options], capsys)
    assert of_run["mean"] == of_file["mean"]
    assert [s["seed"] for s in of_run["scores"]] == [s["seed"] for s in of_file["scores"]]


def test_a_set_of_data_of_ones_own_finds_them_by_its_run_and_asks_for_them_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=np.arange(12) % 3, x_test=images, y_test=np.arange(12) % 3)
    monkeypatch.chdir(tmp_path)
    words = ["--method", "random", "--ipc", "1", "--factor", "1", "--size", "10", *EAGER, "--out", "run", "-q"]
    assert main(["distill", "--dataset", "mine.npz", *words]) == 0
    monkeypatch.chdir(tmp_path / "run")
    for name in ("distilled.safetensors", "."):
        place = tmp_path / "run" / "synthetic" / name
        scored = document(["evaluate", str(place), "--nets", "1", "--epochs", "1", "--out", "s", "-q", *EAGER], capsys)
        assert len(scored["scores"]) == 1
    shutil.copy(tmp_path / "run" / "synthetic" / "distilled.safetensors", tmp_path / "set.safetensors")
    alone = ["evaluate", str(tmp_path / "set.safetensors"), "--nets", "1", "--epochs", "1", "-q", *EAGER]
    assert main(alone) == 2
    assert "stands for 'mine', data of your own: say where they are with --dataset PATH" in one_error_line(capsys)
    assert main([*alone, "--dataset", str(tmp_path / "mine.npz")]) == 3
    assert "the size that its pictures had (--size)" in one_error_line(capsys)
    assert len(document([*alone, "--dataset", str(tmp_path / "mine.npz"), "--size", "10"], capsys)["scores"]) == 1


def test_a_step_to_keep_beyond_the_last_is_refused_before_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "no/such", "--keep-snapshots", "3,9", "--out", str(tmp_path / "x"), "-q"]
    assert main(["distill", "--method", "dm", "--method.steps", "8", *words]) == 2
    assert "saving.keep=9: need steps up to 8" in one_error_line(capsys)
    assert main(["compare", "--methods", "random,dm", "--methods.dm.steps", "8", *words]) == 2
    assert "saving.keep=9: need steps up to 8" in one_error_line(capsys)


def test_scores_lie_in_the_run_folder_and_the_seed_is_of_the_networks(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(finished, tmp_path)
    options = ["--nets", "1", "--epochs", "1", "-q", *EAGER]
    seeds = [document(["evaluate", str(folder), "--seed", s, *options], capsys)["scores"][0]["seed"] for s in "012"]
    assert len(set(seeds)) == 3
    assert len(list((folder / "scores").glob("*.json"))) == 3


def test_a_set_of_other_data_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "other.npz"
    images, labels = np.zeros((30, 16, 16), np.uint8), np.arange(30) % 3
    images[:, 0] = 255
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    capsys.readouterr()
    code = main(["evaluate", str(RunStore(finished).distilled), "--dataset", str(data), "-q", "--out", str(tmp_path)])
    assert code in (2, 3)
    assert "10 classes" in one_error_line(capsys)


def test_a_pt_file_needs_its_data_set_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"images": torch.rand(10, 1, 8, 8), "labels": torch.arange(10)}, tmp_path / "set.pt")
    for words in (["evaluate"], ["export", "--to", "folder"]):
        assert main([*words, str(tmp_path / "set.pt"), "-q"]) == 2
        assert "add --dataset NAME" in one_error_line(capsys)


def test_a_pt_set_of_other_code_is_scored_and_exported_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DC's CIFAR sets are normalised by constants in wide use: told so, the exported pixels are the original ones."""
    write_mnist(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("POTSTILL_DATA_DIR", str(tmp_path))
    mean, std = torch.tensor([0.1307]), torch.tensor([0.3081])
    pixels = torch.rand(10, 1, 28, 28)
    torch.save([(pixels - mean) / std, torch.arange(10)], tmp_path / "set.pt")
    told = [str(tmp_path / "set.pt"), "--dataset", "mnist", "--normalised", "true", "--normalisation", "common", "-q"]
    assert main(["export", *told, "--to", "safetensors", "--out", str(tmp_path / "exact"), "--factor", "2"]) == 0
    again = SyntheticSet.load(tmp_path / "exact.safetensors")
    torch.testing.assert_close(again.images.flatten(0, 1), pixels)
    assert (again.spec.mean, again.spec.std, again.factor) == ((0.1307,), (0.3081,), (2, 2))
    scored = document(["evaluate", *told, "--nets", "1", "--epochs", "1"], capsys)
    assert len(scored["scores"]) == 1


def test_a_set_that_knows_better_is_not_told(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate"], ["export", "--to", "folder"]):
        for told in (["--normalised", "true"], ["--normalisation", "common"], ["--factor", "4"]):
            for place in (finished, RunStore(finished).distilled):
                capsys.readouterr()
                assert main([*words, str(place), *told, "-q"]) == 2
                assert "leave" in one_error_line(capsys)


# --- list


@pytest.mark.parametrize("kind", KINDS)
def test_list_shows_every_entry_with_a_line_of_its_own(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names(kind))
    if kind in ("methods", "datasets", "networks"):
        texts = [line.split(maxsplit=1)[1] for line in lines]
        assert all(texts)
    if kind in ("methods", "networks"):
        assert len(set(texts)) == len(texts)  # no two share a docstring by inheritance


def test_list_knows_the_registries() -> None:
    assert list(names("methods")) == list(METHODS)
    assert list(names("networks")) == list(NETWORKS)
    assert list(names("protocols")) == list(PROTOCOLS)


def test_an_entry_shows_its_keys_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "dsdm"]) == 0
    shown = capsys.readouterr().out
    assert "method.covariance_weight" in shown and "50.0" in shown
    assert "lambda_1" in shown  # the keys are explained
    assert describe("methods", "dsdm")["keys"]["method.steps"] == 3000


def test_the_keys_of_a_section_are_listed_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "keys", "pool", "--json"]) == 0
    keys = {key["name"]: key for key in json.loads(capsys.readouterr().out)["keys"]}
    assert list(keys) == [f"pool.{entry.name}" for entry in fields(PoolConfig)]
    assert keys["pool.epochs"]["kind"] == "a whole number or null" and keys["pool.members"]["default"] == "3"
    assert main(["list", "keys", "method", "dm"]) == 0
    assert (
        "method.steps = 20000  (a whole number)\n    iterations, a new random network each." in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "name", ["method.learning_rate", "method.descent_learning_rate", "method.descent.learning_rate"]
)
def test_a_key_in_a_methods_section_is_found_by_any_name_and_told_by_its_full_one(name: str) -> None:
    (key,) = find_keys(name, "dm")
    assert (key.name, key.default) == ("method.descent.learning_rate", "1.0")
    assert "NORMALISED pixels" in key.meaning and key.meaning.endswith("of the first step.")
    assert len(find_keys("method.descent", "dm")) == 4


@pytest.mark.parametrize("method", list(METHODS))
def test_every_key_has_a_meaning_of_its_own_and_a_default_that_resolves(method: str) -> None:
    keys = keys_of(method)
    assert all(key.meaning for key in keys if key.name != "data.fingerprint")
    section = [key.meaning for key in keys if key.name.startswith("method.")]
    assert len(set(section)) == len(section)
    words = [f"--{key.name}={key.default}" for key in keys if key.name != "data.fingerprint"]
    assert resolve(parse_assignments([*words, f"--method.name={method}"])) == resolve({"method": method})


def test_a_data_sets_entry_tells_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets", "digits"]) == 0
    shown = capsys.readouterr().out
    assert "10 classes, 1437 training and 360 test images, CC BY 4.0" in shown
    assert "classes: 0, 1, 2" in shown
