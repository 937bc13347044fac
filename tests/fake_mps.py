"""MPS without a GPU: a fake `nvidia-cuda-mps-control` as a program, and our port in this process.

`install` writes the program, whose daemon answers on a socket in the pipe directory, with a file of its behaviour beside
it, which a test may change while the daemon runs. A process that says `attach PID` there is a client of server 500 while it
keeps that connection, which the daemon closes when it is told to terminate that client. `FakeMpsControl` is the port for tests of those who use it.
"""

import json
import os
import sys

from gpulet.errors import MpsError
from gpulet.executors.mpscontrol import BINARY, Binary, Daemon

QUICK = {"start_s": 5.0, "answer_s": 2.0, "quit_s": 3.0}


def install(folder, **behaviour):
    """The program in `folder`; `servers`: {server PID: [client PIDs]}, and how it misbehaves."""
    program = folder / BINARY
    program.write_text(f"#!{sys.executable} -IS\n{_PROGRAM}", encoding="utf-8")
    program.chmod(0o755)
    behave(folder, **behaviour)
    return program


def behave(folder, **behaviour):
    """From now on."""
    (folder / "behaviour.json").write_text(
        json.dumps({"version": "13000", "servers": {}, **behaviour}), encoding="utf-8"
    )


def binary(folder, environment=(), **limits):
    return Binary(str(folder / BINARY), dict(environment), **{**QUICK, **limits})


def told(folder):
    """What the daemon was told, in order, and the environment it was started in."""
    log = folder / "told"
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


class FakeMpsControl:
    """The port: `attached` are the clients by server; `told` is what changed something; `refuses` makes that fail."""

    def __init__(self, attached=(), chunks=16):
        self.attached = dict(attached)
        self.told = []
        self.refuses = set()
        self._chunks = chunks

    def servers(self):
        return tuple(self.attached)

    def clients(self):
        return tuple(pid for pids in self.attached.values() for pid in pids)

    def serves(self, pid):
        return pid in self.clients()

    def set_default_share(self, percent):
        self._tell(f"set_default_active_thread_percentage {percent:g}")

    def set_default_memory(self, memory):
        self._tell(f"set_default_device_pinned_mem_limit 0 {memory // 2**20}M")

    def end_client(self, pid):
        for server, pids in self.attached.items():
            if pid in pids:
                self._tell(f"terminate_client {server} {pid}")

    def add_partition(self, gpu, chunks):
        command = f"sm_partition add {gpu} {chunks}"
        self._tell(command)
        if chunks > self._chunks:
            raise MpsError(command, "Failed to fulfill the request")
        self._chunks -= chunks
        return f"{gpu}/part{self._chunks}"

    def remove_partition(self, partition):
        gpu, _, name = partition.partition("/")
        self._tell(f"sm_partition rm {gpu} {name}")

    def environment(self, client, base):
        return {**base, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{client.share_pct:g}"}

    def _tell(self, command):
        self.told.append(command)
        if command.split()[0] in self.refuses:
            raise MpsError(command, "refused")


class FakeDaemon(FakeMpsControl):
    """One that is ours: `gpulet.executors.daemons.OwnedMps`."""

    def __init__(self, world, binary, folder, gpu, *, is_static=False):
        super().__init__({500: []}, world.chunks)
        self.world, self.gpu, self.folder, self.is_static = world, gpu, folder, is_static
        self.pid = 0
        self._real = Daemon(binary, folder, gpu)

    @property
    def is_running(self):
        return self.pid in self.world.running

    def start(self):
        self.folder.mkdir()
        self.world.daemons.append(self)
        if self.gpu in self.world.unable:
            (self.folder / "log").mkdir()
            (self.folder / "log" / "control.log").write_text("the device is\nused by another", encoding="utf-8")
            command = "get_server_list"
            raise MpsError(command, "the daemon is gone (exit code 1)")
        self.pid = 7000 + len(self.world.daemons)
        self.world.running[self.pid] = self

    def stop(self):
        self.world.running.pop(self.pid, None)

    def clients(self):
        if self.gpu in self.world.deaf:
            command = "get_server_list"
            raise MpsError(command, "no answer in 10 s")
        return super().clients()

    def environment(self, client, base):
        return self._real.environment(client, base)


class FakeDaemons:
    """Makes them, for `Daemons`: all there were; those that run, by PID; devices where none starts, or answers."""

    def __init__(self, chunks=16):
        self.daemons, self.running, self.unable, self.deaf, self.chunks = [], {}, set(), set(), chunks

    def __call__(self, binary, folder, gpu, *, is_static=False):
        return FakeDaemon(self, binary, folder, gpu, is_static=is_static)

    def of(self, gpu):
        """The one that runs there."""
        (found,) = [d for d in self.running.values() if d.gpu == gpu]
        return found

    def attach(self, gpu, *pids):
        """They are clients from now on."""
        self.of(gpu).attached[500].extend(pids)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


_PROGRAM = """
import json, os, pathlib, signal, socket, sys, time

HERE = pathlib.Path(sys.argv[0]).parent
PIPE = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "")


def behaviour():
    return json.loads((HERE / "behaviour.json").read_text())


attached = {}


def servers():
    for pid, peer in list(attached.items()):
        try:
            if not peer.recv(1):
                attached.pop(pid).close()
        except BlockingIOError:
            pass
    there = dict(behaviour()["servers"])
    return {**there, "500": [*there.get("500", ()), *attached]} if attached else there


def answer(line):
    how = {**behaviour(), "servers": servers()}
    word, *rest = line.split() or [""]
    if word == "terminate_client" and int(rest[1]) in attached:
        attached.pop(int(rest[1])).close()
        with (HERE / "told").open("a") as told:
            told.write("ended the living client " + rest[1] + "\\n")
    if word in how.get("refuses", ()):
        return "Failed to do that, error CUDA_ERROR_MPS_SERVER_NOT_READY"
    if word == "get_server_list":
        return "\\n".join(how["servers"])
    if word == "get_client_list":
        return "\\n".join(map(str, how["servers"].get(rest[0], ["Server not found"])))
    if word == "sm_partition":
        if rest[0] == "rm":
            return ""
        return "Partition %s/Dx4AAAAA created" % rest[1] if int(rest[2]) < 16 else "Failed to fulfill the request"
    if word.startswith(("set_default_", "terminate_client", "quit")):
        return ""
    return "Unknown command " + word


def daemon():
    how = behaviour()
    with (HERE / "told").open("a") as told:
        told.write(json.dumps({"arguments": sys.argv[1:], **{k: v for k, v in os.environ.items() if "CUDA" in k}}) + "\\n")
    if how.get("dies"):
        sys.exit(how["dies"])
    if how.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX)
    if not how.get("deaf"):
        server.bind(PIPE + "/control_privileged")
        server.listen()
    while True:
        if how.get("deaf"):
            time.sleep(1)
            continue
        peer, _ = server.accept()
        line = peer.recv(4096).decode().strip()
        with (HERE / "told").open("a") as told:
            told.write(line + "\\n")
        if behaviour().get("hangs"):
            continue
        if line.startswith("attach "):
            peer.sendall(b"attached")
            peer.setblocking(False)
            attached[int(line.split()[1])] = peer
            continue
        peer.sendall(answer(line).encode() + b"\\n")
        peer.close()
        if line.startswith("quit") and not behaviour().get("stays"):
            sys.exit(0)


def client():
    line = sys.stdin.readline()
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(PIPE + "/control_privileged")
    except OSError:
        print("Cannot find MPS control daemon process")
        sys.exit(1)
    peer.sendall(line.encode() or b"\\n")
    if behaviour().get("hangs"):
        time.sleep(60)
    print(peer.recv(4096).decode(), end="")


if "-v" in sys.argv:
    if behaviour().get("hangs"):
        time.sleep(60)
    print("Binary version: " + behaviour()["version"])
elif "-h" in sys.argv:
    print("usage: nvidia-cuda-mps-control [-d | -f]" + behaviour().get("usage", ""))
elif "-f" in sys.argv:
    daemon()
else:
    client()
"""
