"""Slurm's accounting in the lab: slurmdbd over a MariaDB of its own, both on the controller.

The database speaks on a socket inside the node only, lies on the node's disk, and knows its users
by who they are (unix_socket), without a password.
"""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from fabricctl.lab.boot import Service
from fabricctl.lab.spec import CONTROLLER, JOB_USERS

TOOLS: Mapping[str, str] = {  # program: the apt package it comes in
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "slurmdbd": "slurmdbd",
    "sacctmgr": "slurm-client",
}
ACCOUNT = "lab"
_DATA = "/var/lib/mysql"
_SOCKET = "/run/mysqld/mysqld.sock"  # where libmariadb looks for "localhost"
_FIRST = "/etc/slurm/accounting.sql"
_INSTALL_S = 120.0  # 3 s on an idle machine; it writes 130 MB

_SQL = """\
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;
GRANT ALL ON slurm_acct_db.* TO slurm@localhost;
"""
_SLURMDBD_CONF = f"""\
AuthType=auth/munge
DbdHost={CONTROLLER}
SlurmUser=slurm
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""
_DATABASE_SH = f"""\
if [ ! -e {_DATA}/installed ]; then
  rm -rf {_DATA}/*
  mariadb-install-db --no-defaults --datadir={_DATA} --skip-test-db \
    --auth-root-authentication-method=socket
  touch {_DATA}/installed
fi
# slurmdbd wants a large buffer pool, a long lock wait and a large log (its documentation).
exec mariadbd --no-defaults --datadir={_DATA} --socket={_SOCKET} --skip-networking \
  --pid-file=/run/mysqld/mariadbd.pid --init-file={_FIRST} --innodb-buffer-pool-size=192M \
  --innodb-lock-wait-timeout=900 --innodb-log-file-size=32M
"""


def write(slurm: Path) -> None:
    """The files that the services below read, into the nodes' /etc/slurm."""
    (slurm / "accounting.sql").write_text(_SQL)
    conf = slurm / "slurmdbd.conf"
    new = slurm / ".slurmdbd.conf.new"
    new.write_text(_SLURMDBD_CONF)
    new.chmod(0o600)  # slurmdbd refuses any other mode
    user = pwd.getpwnam("slurm")
    os.chown(new, user.pw_uid, user.pw_gid)
    new.replace(conf)


def services(cluster: str) -> tuple[Service, ...]:
    """Database, slurmdbd, and a slurmctld that enters cluster and users before it starts."""
    add = [
        f"sacctmgr -i add cluster {cluster}",
        f"sacctmgr -i add account {ACCOUNT}",
        *(f"sacctmgr -i add user {user} account={ACCOUNT}" for user in ("root", *JOB_USERS)),
    ]
    # "already exists" is a failure to sacctmgr: what matters is that slurmctld starts.
    # slurmdbd writes its pid file before it listens, and slurmctld ends when it has no answer.
    wait = "until sacctmgr -n show cluster; do sleep 0.1; done"
    script = "; ".join([wait, *(f"{line} || true" for line in add), "exec slurmctld -D"])
    return (
        Service(
            "mariadbd",
            ("/bin/sh", "-ec", _DATABASE_SH),
            user="slurm",
            wait_for=_SOCKET,
            wait_s=_INSTALL_S,
        ),
        Service(
            "slurmdbd",
            ("/usr/sbin/slurmdbd", "-D"),
            user="slurm",
            wait_for="/run/slurm/slurmdbd.pid",
            wait_s=_INSTALL_S,
        ),
        Service("slurmctld", ("/bin/sh", "-c", script), user="slurm"),
    )
