"""OpenMP's idle threads: the settings that the library loaded by torch reports."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

WORDS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def run(program: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an environment without the settings of the tests themselves."""
    environment = {name: value for name, value in os.environ.items() if name not in WORDS} | settings
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="torch loads another OpenMP library than GNU's")
@pytest.mark.parametrize(("settings", "spins"), [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_idle_threads_spin_for_a_short_time(settings: dict[str, str], spins: str) -> None:
    """Threads that spin for long starve beside other processes; those that never spin are slow."""
    report = run("import ganpipe, torch", OMP_DISPLAY_ENV="VERBOSE", **settings).stderr
    # Each loaded copy of the library reports its own.
    counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", report)
    assert counts and set(counts) == {spins}


@pytest.mark.parametrize("name", WORDS)
def test_a_users_setting_wins(name: str) -> None:
    """On a machine of their own, users may want threads that spin."""
    program = f"import ganpipe, os; print([os.environ.get(name) for name in {WORDS}])"
    expected = ["1" if word == name else None for word in WORDS]
    assert run(program, **{name: "1"}).stdout.strip() == str(expected)
