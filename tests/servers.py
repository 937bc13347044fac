"""Real servers on loopback for live tests: small models, fleet files, processes that end with their test."""

import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

REPOSITORY = Path(__file__).parents[1]
DIGITS = REPOSITORY / "examples" / "digits"


def save_model(folder, name, *, width=4, layers=0, seed=1, version=1):
    """`width` may be a name: a free dimension. y = x through `layers` square products: identity-sized without any, heavier with each."""
    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        assert isinstance(width, int)
        weight = numpy_helper.from_array((random.random((width, width)) / width).astype(np.float32), f"w{layer}")
        weights.append(weight)
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"h{layer}"]))
        last = f"h{layer}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(folder) / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


def save_copy(folder, name, kind, *, inputs=("x",), width=2):
    """Gives each input of a type (`TensorProto.STRING`, say) back as it is: x to y, or x1 to x1_out."""
    outputs = ["y"] if len(inputs) == 1 else [f"{i}_out" for i in inputs]
    graph = helper.make_graph(
        [helper.make_node("Identity", [i], [o]) for i, o in zip(inputs, outputs, strict=True)],
        name,
        [helper.make_tensor_value_info(i, kind, ["N", width]) for i in inputs],
        [helper.make_tensor_value_info(o, kind, ["N", width]) for o in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(folder) / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)


def save_masked(folder, name):
    """Of numbers and a mask, [rows, tokens] each: the mean of what is not masked, [rows, 1], and each one's part of it."""
    nodes = [
        helper.make_node("Cast", ["mask"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "counts"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"]),
        helper.make_node("ReduceSum", ["counts", "axis"], ["count"]),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Div", ["kept", "mean"], ["parts"]),
    ]
    value, size = helper.make_tensor_value_info, ["rows", "tokens"]
    graph = helper.make_graph(
        nodes,
        name,
        [value("x", TensorProto.FLOAT, size), value("mask", TensorProto.INT64, size)],
        [value("mean", TensorProto.FLOAT, ["rows", 1]), value("parts", TensorProto.FLOAT, size)],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(folder) / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    return path


def save_detector(folder, name):
    """All elements that are not 0, as detectors list what they found: [N, 4] to [2, found], declared [-1, -1]."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Transpose", ["found"], ["turned"], perm=[1, 0]),
        helper.make_node("Cast", ["turned"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["K", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, Path(folder) / name / "1" / "model.onnx")


def table(models, cores=2, base=0.5, per_row=0.1):
    """A profile in milliseconds, so that tests need not measure; `models` may map to their own (base, per_row)."""
    lines = ["model,size,batch,mean_ms"]
    for name in models:
        first, more = models[name] if isinstance(models, dict) else (base, per_row)
        lines += [f"{name},{size},{rows},{first + more * rows}" for size in range(1, cores + 1) for rows in (1, 32)]
    return "\n".join(lines) + "\n"


def fleet(folder, models, *, device="", system="gpulet", repository="", **server):
    """Write fleet.toml and its profile; `models` maps a name to (slo_ms, rate)."""
    folder = Path(folder)
    text = f'[fleet]\nsystem = "{system}"\n[[devices]]\nkind = "cpu"\nprofile = "p.csv"\n{device}\n'
    for name, (slo_ms, rate) in models.items():
        text += f'[[models]]\nname = "{name}"\nslo_ms = {slo_ms}\nrate = {rate}\n'
    options = {
        "http_port": 0,
        "grpc_port": 0,
        "metrics_port": 0,
        "log_format": "json",
        "repository": str(repository),
        **server,
    }
    text += "[server]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())
    (folder / "fleet.toml").write_text(text)
    if not (folder / "p.csv").exists():
        (folder / "p.csv").write_text(table(list(models)))
    return folder / "fleet.toml"


class Server:
    """A `gpulet serve` process and the events it has told."""

    def __init__(self, process):
        self.process = process
        self.events = []
        self._told = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._is_stopping = False

    def stop(self):
        """SIGTERM, once: the second would not be waited out."""
        if not self._is_stopping:
            self._is_stopping = True
            self.process.send_signal(signal.SIGTERM)

    def close(self):
        """Whatever became of it, nothing of it stays."""
        self.process.kill()
        self.process.wait()
        self._listener.join()
        self.process.stderr.close()

    def _listen(self):
        for line in self.process.stderr:
            with self._told:
                self.events.append(json.loads(line) if line.startswith("{") else {"event": line.rstrip()})
                self._told.notify_all()
        with self._told:
            self.events.append({"event": "ended"})
            self._told.notify_all()

    def wait_for(self, name, count=1, timeout=30):
        """The `count`-th event of that name."""

        def found():
            return len(self.all(name)) >= count or self.all("ended")

        with self._told:
            assert self._told.wait_for(found, timeout), self.events
        assert len(self.all(name)) >= count, self.events
        return self.all(name)[count - 1]

    def all(self, name):
        return [e for e in self.events if e["event"] == name]

    @property
    def port(self):
        return int(self.all("ready")[0]["url"].rpartition(":")[2])

    @property
    def grpc(self):
        """Address of the gRPC port."""
        return self.all("ready")[0]["grpc"]

    @property
    def metrics_port(self):
        return int(self.all("ready")[0]["metrics"].rpartition(":")[2].partition("/")[0])

    @property
    def workers(self):
        """The latest worker process of each gpulet: its pid, cores and models."""
        return {e["gpulet"]: e for e in self.all("gpulet_up")}


def command(*arguments):
    return [sys.executable, "-m", "gpulet.cli", *map(str, arguments)]


@contextmanager
def serve(*arguments):
    """`gpulet serve ...` until the block ends; it must then end by itself, in order."""
    server = Server(subprocess.Popen(command("serve", *arguments), stderr=subprocess.PIPE, text=True))
    try:
        server.wait_for("ready")
        yield server
        server.stop()
        assert server.process.wait(30) == 0
    finally:
        server.close()


def run(*arguments):
    """A command to its end: (exit code, standard output, standard error)."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr
