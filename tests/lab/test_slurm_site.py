"""``fabricctl site check``, and the files of site-config/ installed as they say themselves.

On the Slurm of each Debian suite, live, in a chroot: what a site does, step by step. In the lab:
what the check says when something is broken.
"""

import json
import re

import pytest

from fabricctl.lab.cluster import Lab
from tests.support import chroot
from tests.support.plugstack import PLUGIN, plugstack

pytestmark = pytest.mark.lab

INSTALL = r"""
set -eu
cd /project
export PYTHONPATH=/project PYTHONDONTWRITEBYTECODE=1
fabricctl() { python3 -m fabricctl.cli.main "$@"; }
site() { echo "== $1 $2"; unshare --uts sh -c "hostname $2; python3 -m fabricctl.cli.main \
  site check --json" || true; }
site bare n1
make -s -C spank_plugin BUILD=/tmp/build install
mkdir -p /etc/slurm/{prolog,epilog,plugstack.conf,slurm.conf}.d /etc/{sysusers,tmpfiles}.d
install -m 755 prolog/fabric-prolog /etc/slurm/prolog.d/
install -m 755 epilog/fabric-epilog /etc/slurm/epilog.d/
cp site-config/plugstack.conf.d/fabric.conf /etc/slurm/plugstack.conf.d/
cp site-config/slurm.conf.d/fabric.conf /etc/slurm/slurm.conf.d/
cp site-config/fabricctl.toml /etc/fabricctl.toml
echo 'include /etc/slurm/plugstack.conf.d/*.conf' >/etc/slurm/plugstack.conf
echo 'include /etc/slurm/slurm.conf.d/fabric.conf' >>/etc/slurm/slurm.conf
cp site-config/sysusers.d/fabricctl.conf /etc/sysusers.d/
cp site-config/tmpfiles.d/fabricctl.conf /etc/tmpfiles.d/
systemd-sysusers /etc/sysusers.d/fabricctl.conf
systemd-tmpfiles --create /etc/tmpfiles.d/fabricctl.conf
mkdir -p -m 755 /var/lib/fabricctl
mkdir -m 1777 /var/lib/fabricctl/traces
# The unit names the installed command; here it is a module of the checkout.
printf '#!/bin/sh\nexec python3 -m fabricctl.cli.main "$@"\n' >/usr/bin/fabricctl
chmod 755 /usr/bin/fabricctl
systemd-analyze verify --man=no site-config/systemd/fabricctl-node.service
scontrol reconfigure
$(sed -n 's/^ExecStart=//p' site-config/systemd/fabricctl-node.service) &
service=$!
for _ in $(seq 100); do [ -e /run/fabricctl/node.lock ] && break; sleep 0.1; done
sleep 0.5
site installed n1
site installed ctl
echo "== jobs"
runuser -u ann -- srun -w n1 hostname
runuser -u ann -- srun --help | grep -c -- --fabric-resilience
kill $service
wait $service || true
site stopped n1
echo "== plugin logs"
grep -h fabric /var/log/slurm/slurmd-n1.log /var/log/slurm/slurmctld.log || true
"""


def statuses(text: str) -> dict[str, tuple[str, str]]:
    """Name -> status and words, of a ``site check --json``."""
    answer = json.loads(text)
    assert answer["version"] == 1
    return {each["name"]: (each["status"], each["found"]) for each in answer["checks"]}


@pytest.mark.parametrize("suite", chroot.SUITES.values(), ids=lambda s: f"{s.name}-{s.slurm}")
def test_a_site_that_does_what_the_files_say_is_found_whole(suite: chroot.Suite) -> None:
    done = chroot.run(
        suite, ["/project/tests/support/slurm-cluster", "bash", "-c", INSTALL], timeout_s=120
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    parts = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    bare = statuses(parts["bare n1"])
    for name in ("plugin", "prolog", "epilog", "service", "agent user", "spool", "traces"):
        assert bare[name][0] == "fail", name
    assert (bare["slurm"][0], bare["munge"][0], bare["adapter"][0]) == ("ok", "ok", "ok")

    node = statuses(parts["installed n1"])
    # The chroot lies in memory, so that traces are warned of; all else must be well.
    assert {name: status for name, (status, _) in node.items() if status != "ok"} == {
        "traces": "warn"
    }
    assert node["slurm"][1].startswith(f"{suite.slurm}.")
    assert "n1 is a compute node" in node["slurm"][1]
    assert node["plugin"][1] == (
        f"/usr/lib/slurm/fabric.so, built for {suite.slurm}, "
        "optional in /etc/slurm/plugstack.conf.d/fabric.conf"
    )
    assert node["prolog"][1] == "/etc/slurm/prolog.d/fabric-prolog"
    backend = "pyslurm: its probe agrees" if suite.pyslurm else "commands: pyslurm is not installed"
    assert node["adapter"][1].startswith(backend)
    login = statuses(parts["installed ctl"])
    assert set(login) == {"config", "slurm", "adapter", "munge", "plugin", "mpi", "traces"}

    assert parts["jobs"].splitlines()[0] == "n1"
    assert int(parts["jobs"].splitlines()[1]) >= 1
    stopped = statuses(parts["stopped n1"])
    assert stopped["service"] == (
        "fail", "nobody holds /run/fabricctl/node.lock: the node service is dead",
    )  # fmt: skip
    assert "unknown key" not in parts["plugin logs"]


def check(lab: Lab, node: str) -> tuple[int, dict[str, tuple[str, str]]]:
    done = lab.exec(node, ["fabricctl", "site", "check", "--json"], check=False)
    return done.returncode, statuses(done.stdout)


def test_a_whole_lab_passes(lab: Lab) -> None:
    status, found = check(lab, "n1")
    assert status == 0
    assert not [name for name, (what, _) in found.items() if what == "fail"]
    assert found["plugin"][0] == "ok"


BROKEN = {
    "not loaded": ("# nothing", "plugstack.conf does not load it"),
    "no file": ("required /nonexistent/fabric.so", "/nonexistent/fabric.so: cannot be read"),
    "another run_dir": (
        f"required {PLUGIN} run_dir=/run/other",
        "run_dir=/run/other, not /run/fab",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_plugin_that_does_nothing_is_found(lab: Lab, case: str) -> None:
    line, words = BROKEN[case]
    with plugstack(lab, line=line):
        # Its commands would not start with a required plugin that is missing; scontrol does.
        status, found = check(lab, "n1")
    assert status == 1
    assert found["plugin"][0] == "fail"
    assert words in found["plugin"][1]


def test_a_host_without_slurm_is_told_what_to_do(lab: Lab) -> None:
    argv = ["env", "SLURM_CONF=/nonexistent", "fabricctl", "site", "check"]
    done = lab.exec("n1", argv, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert re.match(
        r"fail  slurm +scontrol: SLURM_CONF=/nonexistent: no such file: correct or unset it$",
        lines[1],
    )
    assert any(line.startswith("ok    service") for line in lines)
