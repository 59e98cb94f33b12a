"""``anydepth-serve`` and ``anydepth-demo`` on the command line, up to the server that they start."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from anydepth.commands import demo, serve
from anydepth.commands.plain_options import (
    OptionError,
    number,
    parse_options,
    start,
    switch,
    text,
    texts,
    whole,
)

OPTIONS = {
    "port": whole(8000),
    "threads": whole(None),
    "wait": number(0.0),
    "names": texts(),
    "open": switch(False),
    "engine": text("onnxruntime"),
}


def test_words_are_folders_and_settings_of_their_types(tmp_path: Path):
    odd = tmp_path / "a=b"
    odd.mkdir()
    folders, values = parse_options(
        ["bundle", str(odd), "port=9000", "threads=null", "wait=2.5", "names=[a, b]", "open=True"], OPTIONS
    )
    assert folders == ("bundle", str(odd))
    assert values == {
        "port": 9000,
        "threads": None,
        "wait": 2.5,
        "names": ("a", "b"),
        "open": True,
        "engine": "onnxruntime",
    }


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("prot=9000", "got 'prot=9000', expected one of port, threads"),
        ("port=many", "got port='many', expected a whole number"),
        ("port=null", "got port='null', expected a whole number"),
        ("wait=x", "got wait='x', expected a number"),
        ("open=yes", "got open='yes', expected true or false"),
    ],
)
def test_a_word_that_is_no_setting_is_refused(word: str, message: str):
    with pytest.raises(OptionError, match=message):
        parse_options([word], OPTIONS)


def test_every_option_is_in_the_help():
    for key, option in serve.OPTIONS.items():
        written = json.dumps(option.default).strip('"').removesuffix(".0")
        assert f"  {key}={written} " in serve.HELP
    assert "  measure=true " in demo.HELP


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing: no such folder; give a folder that anydepth-export wrote"),
        (["a", "b"], "got the bundles a, b, expected one"),
        ([], "got the bundles (none), expected one"),
        (["a", "upload=nan"], "got upload=nan, expected a number above 0"),
        (["a", "pixels=inf"], "got pixels=inf, expected a number above 0"),
        (["a", "upload=-1"], "got upload=-1, expected a number above 0"),
    ],
)
def test_what_cannot_be_served_ends_in_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        start("anydepth-serve", words, serve.run)
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_demonstration_starts_without_torch_and_ends_with_all_its_processes(tmp_path: Path):
    # A module that is found first and cannot be imported, in all processes.
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not for this command')")
    path = os.pathsep.join([str(tmp_path), str(Path(serve.__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "anydepth.commands.demo", "port=8791", "threads=1"]
    started = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready     http://127.0.0.1:8791 (Ctrl-C ends it)\n"
    with urlopen("http://127.0.0.1:8791/examples") as answer:
        names = json.loads(answer.read())
    with urlopen(f"http://127.0.0.1:8791/examples/{names[0]}") as answer:
        picture = answer.read()
    with urlopen(Request("http://127.0.0.1:8791/predict?depth=<=1000ms&threshold=0.2", picture)) as answer:
        assert len(json.loads(answer.read())["detections"]) > 5
    started.send_signal(signal.SIGTERM)
    # The end of the pipe comes when the last process is gone.
    assert started.stdout.read().strip() == ""
    assert started.wait() == 0
