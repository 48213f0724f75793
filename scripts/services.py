"""Starts and stops the services of the tests, for the scripts in Python beside it."""

import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "services"


def start(*names):
    """Starts services, those of `tests/services/up NAMES`. Returns the variables that it prints."""
    printed = subprocess.run([HERE / "up", *names], stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(re.findall(r"^export (\w+)=(.*)$", printed, re.MULTILINE))


def stop(variables):
    """Stops the services that `start` has started. Without them, it does nothing."""
    if "HEADWATER_SERVICES_DIR" in variables:
        subprocess.run([HERE / "down", variables["HEADWATER_SERVICES_DIR"]], check=True)
