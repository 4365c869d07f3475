"""OpenMP's idle threads: what the library that torch loads was told, by its own account."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

WORDS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def run(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an environment without these tests' own settings."""
    environment = {name: value for name, value in os.environ.items() if name not in WORDS} | settings
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="torch loads another OpenMP library than GNU's")
@pytest.mark.parametrize(("settings", "spins"), [({}, "0"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_the_library_heard_it(settings: dict[str, str], spins: str) -> None:
    """With two busy processes beside it, a training whose threads spin falls to a tenth of its speed."""
    shown = run("import ganpipe, torch", OMP_DISPLAY_ENV="VERBOSE", **settings).stderr
    # Each copy of the library that is loaded says so.
    said = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", shown)
    assert said and set(said) == {spins}


@pytest.mark.parametrize("name", WORDS)
def test_a_users_setting_wins(name: str) -> None:
    """Who has a machine alone may want threads that spin."""
    program = f"import ganpipe, os; print([os.environ.get(name) for name in {WORDS}])"
    expected = ["1" if word == name else None for word in WORDS]
    assert run(program, **{name: "1"}).stdout.strip() == str(expected)
