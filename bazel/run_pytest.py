"""Runs pytest on the files named: the main program of every test target."""

import sys

import pytest

sys.exit(pytest.main(["-c", "pyproject.toml", "-p", "no:cacheprovider", *sys.argv[1:]]))
