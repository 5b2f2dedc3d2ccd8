"""What makes the lab a site that has our parts installed: plugin, prolog, epilog, node service.

Parts that are not built yet are left out, and :attr:`Site.missing` says so: the lab then runs
plain Slurm.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import fabricctl
from fabricctl.lab import measured, units
from fabricctl.lab.boot import Service
from fabricctl.lab.spec import SHARED

NODE_SERVICE = "fabricctl-node"
_SERVICE_MODULE = "fabricctl.node.service"
_TOML = f"""\
# Written by `fabricctl lab up`; every key is explained in site-config/fabricctl.toml.
[rails]
interfaces = ["r*"]

[clock]
steering = ["ptp", "system"]

[trace]
dir = "{SHARED}/traces"
"""


def code_root() -> Path:
    """The directory that holds the package ``fabricctl``: the checkout, or site-packages."""
    return Path(fabricctl.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Site:
    """Our parts as found in this checkout."""

    plugin: Path | None
    prolog: Path | None
    epilog: Path | None
    has_service: bool

    @classmethod
    def find(cls) -> "Site":
        """In the checkout, or where ``make install`` and the packages put them."""
        root = code_root()

        def present(*names: str) -> Path | None:
            return next((path for name in names if (path := root / name).is_file()), None)

        plugin, prolog, epilog = "slurm/fabric.so", "fabric-prolog", "fabric-epilog"
        return cls(
            plugin=present("build/spank/fabric.so", f"/usr/lib/{plugin}", f"/usr/lib64/{plugin}"),
            prolog=present(f"prolog/{prolog}", f"/etc/slurm/prolog.d/{prolog}"),
            epilog=present(f"epilog/{epilog}", f"/etc/slurm/epilog.d/{epilog}"),
            has_service=find_spec(_SERVICE_MODULE) is not None,
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """Words for what is not there."""
        parts = {
            "plugin (make -C spank_plugin)": self.plugin,
            "prolog": self.prolog,
            "epilog": self.epilog,
            "node service": self.has_service,
        }
        return tuple(name for name, found in parts.items() if not found)

    def write(self, etc: Path) -> Mapping[str, str]:
        """Puts our files into the nodes' /etc; what slurm.conf needs beside."""
        slurm = etc / "slurm"
        (etc / "fabricctl.toml").write_text(_TOML)
        arguments = "run_dir=/run/fabricctl allow_clock=page,ptp,system"
        line = f"required {self.plugin} {arguments}\n" if self.plugin else ""
        (slurm / "plugstack.conf").write_text(line)
        settings: dict[str, str] = {}
        for key, script in (("Prolog", self.prolog), ("Epilog", self.epilog)):
            if script:
                _install(script, slurm / script.name)
                settings[key] = f"/etc/slurm/{script.name}"
        if self.prolog:
            # Run it when the job begins, not when its first step does: agents of all nodes
            # have to be there before the first rank is.
            settings["PrologFlags"] = "Alloc"
        return settings

    def services(self) -> tuple[Service, ...]:
        """What runs on every compute node."""
        if not self.has_service:
            return ()
        argv = (sys.executable, "-m", _SERVICE_MODULE)
        unit = units.find(code_root(), f"{NODE_SERVICE}.service")
        rights = units.sandbox(unit) if unit else None
        env = measured.environment()
        return (Service(NODE_SERVICE, argv, restart=True, env=env, sandbox=rights),)

    def mounts(self) -> tuple[units.Mount, ...]:
        """What is mounted on every compute node when it boots."""
        unit = units.find(code_root(), "run-fabricctl-track.mount")
        return (units.mount(unit),) if unit and self.has_service else ()

    def directories(self) -> tuple[units.Directory, ...]:
        """What every compute node has from its boot on: a job may begin before the service does."""
        conf = units.find(code_root(), "fabricctl.conf")
        return units.directories(conf) if conf and self.has_service else ()


def _install(script: Path, target: Path) -> None:
    """Replaced in one step: Slurm may be about to run it."""
    new = target.with_name(f".{target.name}.new")
    shutil.copyfile(script, new)
    new.chmod(0o755)
    new.replace(target)
