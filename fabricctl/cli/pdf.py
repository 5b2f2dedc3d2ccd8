"""A page as PDF, by a headless Chromium."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from fabricctl.errors import SystemRefusedError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 180  # a page of 40 plots takes 10 s on a busy machine
PLOTS_MS = 20_000  # of the page's own time, for its plots to be drawn


def printed(page: str) -> bytes:
    """The PDF. Chromium never runs as root: what the page holds comes from a user's trace.

    Raises :class:`SystemRefusedError`.
    """
    browser = next(filter(None, map(shutil.which, _NAMES)), None)
    if browser is None:
        raise SystemRefusedError(
            f"--pdf: none of {', '.join(_NAMES)} is installed: use --html and print that"
        )
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="fabricctl-pdf.") as name:
        folder = Path(name)
        source, out = folder / "report.html", folder / "report.pdf"
        source.write_text(page, encoding="utf-8")
        if user is not None:
            for path in (folder, source):
                os.chown(path, user.pw_uid, user.pw_gid)
        # Where user namespaces are forbidden Chromium's own sandbox does not start; the page's
        # policy lets it fetch nothing.
        words = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 f"--user-data-dir={folder / 'profile'}", f"--virtual-time-budget={PLOTS_MS}",
                 "--no-pdf-header-footer", f"--print-to-pdf={out}", source.as_uri()]  # fmt: skip
        return _run(words, folder, out, user)


def _run(words: list[str], folder: Path, out: Path, user: pwd.struct_passwd | None) -> bytes:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder)}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder,
            env=environment, user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid, extra_groups=None if user is None else [],
        )  # fmt: skip
        return out.read_bytes()
    except subprocess.TimeoutExpired:
        raise SystemRefusedError(f"--pdf: {words[0]} did not end within {TIMEOUT_S} s") from None
    except FileNotFoundError:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SystemRefusedError(f"--pdf: {words[0]} wrote no file: {last[:200]}") from None
