"""The server of the page: where it listens, what it writes and contacts, and what is left after it."""

import json
import os
import socket
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from contextcrf.cli.main import main, read_command
from contextcrf.modeling.serialization import save
from pictures import encoded
from serving import served


def upload(address, data):
    """Send a file as a browser does when it is dropped; return where the server put it."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    request = Request(
        address + "gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}, method="POST"
    )
    with urlopen(request) as answer:
        (path,) = json.loads(answer.read())
    return Path(path)


def status_of(address, **headers):
    """The status code with which a request is refused."""
    with pytest.raises(HTTPError) as error:
        urlopen(Request(address, headers=headers))
    error.value.close()
    return error.value.code


def test_the_page_is_for_this_machine_alone_and_leaves_no_files(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "model")
    with served(tmp_path / "model", tmp_path / "home", "--max-mb", "0.1") as page:
        assert page.address.startswith("http://127.0.0.1:")
        port = int(page.address.rstrip("/").rsplit(":", 1)[1])
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
        with urlopen(page.address) as answer:
            assert "googleapis" not in answer.read().decode()

        (folder,) = page.folders
        assert upload(page.address, encoded(Image.new("RGB", (8, 8)))).is_relative_to(folder)
        with pytest.raises(HTTPError) as error:
            upload(page.address, bytes(500_000))
        assert error.value.code == 413
        error.value.close()

        assert status_of(page.address + "gradio_api/file=https://example.org/") == 404
        assert status_of(page.address + "gradio_api/process_recording") == 404
        assert status_of(page.address + "gradio_api/file=/etc/passwd") == 403
        # The name of another site may resolve to this address (DNS rebinding).
        assert status_of(page.address, Host="elsewhere.example") == 400

        page.stop()
        assert page.process.returncode == 0
        assert set(page.logged("contact")) <= {"127.0.0.1"}
        written = [line for line in page.logged("write") if line != os.devnull]
        assert any(line.startswith(str(folder)) for line in written)
        # The others are matplotlib's list of fonts, torch's empty cache and a test whether files can be written at all.
        others = [Path(line).relative_to(page.home) for line in written if not line.startswith(str(folder))]
        assert {path.parts[0] for path in others} <= {"matplotlib", "tmp"}
        assert not [path for path in others if "gradio" in path.parts]
        assert page.folders == []
        assert [path for path in (page.home / "tmp").rglob("*") if path.is_file()] == []


def test_a_taken_port_is_an_error_of_one_line(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(SystemExit) as stop:
            main(["demo", str(tmp_path / "model"), "--port", port, "--no-browser"])
    assert stop.value.code == 2
    assert f"Port {port} of 127.0.0.1 is in use. Choose another port with --port." in capsys.readouterr().err


def test_the_bundled_models_are_the_default():
    assert read_command(["demo"])[1]["model"] is None
    assert read_command(["demo", "runs/mine/model"])[1]["model"] == "runs/mine/model"


def test_without_gradio_the_error_has_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit):
        main(["demo"])
    assert 'pip install "contextcrf[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("option", ["max-mb", "max-pixels", "side", "seconds"])
def test_impossible_limits_are_errors_of_one_line(option, capsys):
    with pytest.raises(SystemExit):
        main(["demo", f"--{option}", "0"])
    assert "a positive number is expected" in capsys.readouterr().err
