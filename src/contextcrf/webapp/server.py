"""The server of the page, which is bound to 127.0.0.1.

It sends no requests to other machines, and its files are in a temporary folder.
"""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any

from contextcrf.webapp.limits import Limits
from contextcrf.webapp.session import Session

HOST = "127.0.0.1"
# Fonts of the system. The browser would download the fonts of gradio.
FONTS = ("system-ui", "sans-serif")
MONOSPACE = ("ui-monospace", "monospace")


class ClosedEndpoints:
    """A middleware that closes endpoints of gradio that the page does not need.

    These endpoints fetch URLs or process screen recordings.

    Args:
        app: the application behind the middleware.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request to a closed endpoint with status 404, and pass all others to the application."""
        from starlette.responses import PlainTextResponse

        path = scope.get("path", "")
        if any(part in path for part in ("file=http", "process_recording", "/proxy=")):
            await PlainTextResponse("This endpoint is closed.", 404)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@contextmanager
def running(sessions: Mapping[str, Session], port: int = 0, browser: bool = False) -> Iterator[str]:
    """Serve the page within the block.

    Args:
        sessions: the models and the limits, by the names of the models.
        port: port of the page; 0 chooses a free port.
        browser: open the page in a browser.

    Yields:
        The address of the page.

    Raises:
        OSError: the port is in use.
    """
    port = _free_port(port)
    with tempfile.TemporaryDirectory(prefix="contextcrf-demo-") as folder, _variable("GRADIO_TEMP_DIR", folder):
        # gradio reads GRADIO_TEMP_DIR when it is imported.
        from contextcrf.webapp.page import build

        page = build(sessions)
        limits = next(iter(sessions.values())).limits
        try:
            yield _launch(page, limits, port, browser)
        finally:
            page.close(verbose=False)


def serve(sessions: Mapping[str, Session], port: int, browser: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        sessions: the models and the limits, by the names of the models.
        port: port of the page; 0 chooses a free port.
        browser: open the page in a browser.

    Raises:
        OSError: the port is in use.
    """
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with running(sessions, port, browser) as address:
        print(f"The page of {' and '.join(sessions)} is at {address} (press Ctrl-C to close it).", flush=True)
        try:
            stop.wait()
        except KeyboardInterrupt:
            print("The page is closed.")


def _launch(page: Any, limits: Limits, port: int, browser: bool) -> str:
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from contextcrf.webapp.page import CSS

    _, address, _ = page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=browser,
        inline=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        # The session refuses files above the limit with a clear message. gradio refuses much larger files.
        max_file_size=4 * limits.bytes,
        state_session_capacity=4,  # a session contains the features of an image
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Default(font=FONTS, font_mono=MONOSPACE),
        css=CSS,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
                Middleware(ClosedEndpoints),
            ]
        },
    )
    return str(address)


def _free_port(port: int) -> int:
    """Return the port if it is free, or any free port for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(f"Port {port} of {HOST} is in use. Choose another port with --port.") from error
        return int(probe.getsockname()[1])


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
