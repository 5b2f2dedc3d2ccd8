"""What setup.cfg cannot say: packages below two folders, and the C parts of the agent.

These are optional: without a compiler the package installs all the same, samples cost more, and the
clock says that it was built without them.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

CLOCK = Path("fabricctl/clock/csrc")

setup(
    packages=find_packages(include=["fabricctl", "fabricctl.*"]) + find_packages("analysis"),
    ext_modules=[
        Extension(
            "fabricctl.telemetry._batch",
            sources=["fabricctl/telemetry/csrc/batch.c"],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
            optional=True,
        ),
        Extension(
            "fabricctl.clock._engine",
            sources=sorted(map(str, CLOCK.glob("*.c"))),
            depends=sorted(map(str, CLOCK.glob("*.h"))),
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
            libraries=["m"],
            optional=True,
        ),
        Extension(
            "fabricctl.clock._fit",
            sources=sorted(map(str, Path("fabricctl/clock/cfit").glob("*.c"))),
            depends=sorted(map(str, Path("fabricctl/clock/cfit").glob("*.h"))),
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
            libraries=["m"],
            optional=True,
        ),
        Extension(
            "fabricctl.clock._page",
            sources=["fabricctl/clock/cpage/module.c"],
            depends=sorted(map(str, Path("fabricctl/clock/cpage").glob("*.h"))),
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
            libraries=["m"],
            optional=True,
        ),
    ],
)
