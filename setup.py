"""What setup.cfg cannot say: nothing yet but the hook for C extensions."""

from setuptools import setup

setup()
