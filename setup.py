"""What pyproject.toml cannot say: the commit of a build, and the public address of its sources."""

import re
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def git(*arguments: str) -> str | None:
    """Return what git prints, or None where it fails: not a checkout, no such remote."""
    command = ["git", "-C", str(HERE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def with_links(readme: str, source: str) -> str:
    """Return the README with absolute links and pictures, which pages of packages need."""
    at = f"{source}/blob/{commit}/"
    return re.sub(r"(\]\()(?!https?:|#)([^)]+)\)", rf"\g<1>{at}\g<2>)", readme)


class BuildWithCommit(build_py):
    """Write `glas_bench/COMMIT` into what is built, so that runs of an installed wheel name it."""

    def run(self) -> None:
        super().run()
        if commit and not self.editable_mode:
            (Path(self.build_lib) / "glas_bench" / "COMMIT").write_text(f"{commit}\n")


commit = git("rev-parse", "HEAD")
origin = re.fullmatch(
    r"(?:https://|git@)([\w.-]+)[/:]([\w.-]+/[\w.-]+?)(?:\.git)?",
    git("remote", "get-url", "origin") or "",
)
text = (HERE / "README.md").read_text(encoding="utf-8")
urls = {"Write-up and original code": "https://github.com/dojoteef/glas"}
if commit and origin:
    source = f"https://{origin[1]}/{origin[2]}"
    text = with_links(text, source)
    urls |= {
        "Source": source,
        "Documentation": f"{source}/tree/{commit}/docs",
        "Changelog": f"{source}/blob/{commit}/CHANGELOG.md",
        "Issues": f"{source}/issues",
    }

setup(
    cmdclass={"build_py": BuildWithCommit},
    long_description=text,
    long_description_content_type="text/markdown",
    project_urls=urls,
)
