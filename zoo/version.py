"""The version of voidzoo, for records and packages."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("voidzoo")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"
