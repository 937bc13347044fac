"""Loads and unloads by the protocol: explicit over HTTP and gRPC, refused where they are off, polled from the repository."""

import shutil
from contextlib import closing

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

from servers import fleet, run, save_model, serve

X = np.arange(4, dtype=np.float32).reshape(1, 4)
MODELS = {"a": (2000, 20), "b": (2000, 20)}


def save_both(folder):
    for name in MODELS:
        save_model(folder / "models", name)


def infer(module, client, model):
    tensor = module.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    return client.infer(model, [tensor]).as_numpy("y")


def states(client):
    index = client.get_model_repository_index()
    rows = index if isinstance(index, list) else [{"name": m.name, "state": m.state} for m in index.models]
    return {row["name"]: row["state"] for row in rows}


def test_models_are_loaded_and_unloaded_by_name_over_both_protocols(tmp_path):
    save_both(tmp_path)
    path = fleet(tmp_path, MODELS, repository=tmp_path / "models", model_control="explicit", load_models=["a"])
    with serve(path) as server:
        for module, address in ((over_http, f"127.0.0.1:{server.port}"), (over_grpc, server.grpc)):
            with closing(module.InferenceServerClient(address)) as client:
                assert client.is_server_ready()
                assert states(client) == {"a": "READY", "b": "UNAVAILABLE"}
                with pytest.raises(InferenceServerException, match="not loaded"):
                    infer(module, client, "b")
                client.load_model("b")
                assert states(client) == {"a": "READY", "b": "READY"}
                assert np.array_equal(infer(module, client, "b"), X)
                client.unload_model("b")
                assert not client.is_model_ready("b")
                with pytest.raises(InferenceServerException, match="not loaded"):
                    infer(module, client, "b")
                with pytest.raises(InferenceServerException, match="no version is available"):
                    client.load_model("nobody")
                with pytest.raises(InferenceServerException, match="'config' is not supported"):
                    client.load_model("b", config="{}")
                assert np.array_equal(infer(module, client, "a"), X)


def test_a_polled_repository_is_followed(tmp_path):
    save_both(tmp_path)
    path = fleet(tmp_path, MODELS, repository=tmp_path / "models", model_control="poll", poll_s=0.2)
    with serve(path) as server, closing(over_http.InferenceServerClient(f"127.0.0.1:{server.port}")) as client:
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            client.unload_model("b")
        shutil.move(tmp_path / "models" / "b", tmp_path / "b")
        server.wait_for("model_unloaded")
        assert states(client) == {"a": "READY", "b": "UNAVAILABLE"}
        shutil.move(tmp_path / "b", tmp_path / "models" / "b")
        server.wait_for("model_loaded")
        assert np.array_equal(infer(over_http, client, "b"), X)
        save_model(tmp_path / "new", "a", layers=1)
        shutil.copytree(tmp_path / "new" / "a" / "1", tmp_path / "models" / "a" / "2")
        server.wait_for("model_loaded", 2, timeout=60)  # where cores are never idle it goes on in haste after 30 s
        assert client.get_model_metadata("a")["versions"] == ["2"]
        assert not np.array_equal(infer(over_http, client, "a"), X)


def test_loads_by_name_are_for_loopback(tmp_path):
    save_both(tmp_path)
    (tmp_path / "token").write_text("s3cret\n")
    keys = {"model_control": "explicit", "token_file": "token", "host": "0.0.0.0"}  # noqa: S104
    code, _, errors = run("serve", fleet(tmp_path, MODELS, repository=tmp_path / "models", **keys))
    assert code == 2
    assert "with loads and unloads (model_control)" in errors
