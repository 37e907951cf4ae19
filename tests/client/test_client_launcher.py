"""Our own launcher: the pin on Flower's private names, the pin on the bundle, and that no error's text leaves."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.cli.flwr_clientapp import _parse_args_run_flwr_clientapp

import confide
from client import launcher, launcher_flower
from client.launcher_flower import BUNDLE_REFUSED, FLOWER_VERSION, RELAY_FAILED, Task

ROOT = Path(confide.__file__).parent
BUNDLE = b"a bundle"
SECRET = "something that only this person wrote"

# Each private name with the arguments that it is called with here: what a new version of Flower may have changed.
SIGNATURES: dict[str, str] = {
    "remove_content_from_message": "message",
    "context_from_proto": "context_proto",
    "context_to_proto": "context",
    "message_to_proto": "message",
    "start_parent_process_monitor": "parent_pid",
    "HeartbeatSender": "heartbeat_fn",
    "make_task_heartbeat_fn_http": "client",
    "get_all_nested_objects": "obj",
    "get_object_tree": "obj",
    "no_object_id_recompute": "",
    "make_confirm_message_received_fn_protobuf": "confirm_message_received_protobuf node run_id",
    "make_pull_object_fn_protobuf": "pull_object_protobuf node run_id",
    "make_push_object_fn_protobuf": "push_object_protobuf node run_id session_id",
    "pull_and_inflate_object_from_tree": (
        "object_tree pull_object_fn confirm_object_received_fn return_type max_concurrent_pulls max_time "
        "max_tries_per_object initial_backoff backoff_cap"
    ),
    "push_objects": "objects push_object_fn object_ids_to_push keep_objects max_concurrent_pushes",
    "RuntimeTokenHttpInterceptor": "token",
    "RuntimeVersionHttpInterceptor": "component_name",
    "make_simple_http_retry_invoker": "",
    "RuntimeHttpClient.from_server_address": ("server_address insecure root_certificates interceptors retry_invoker"),
    "RuntimeHttpClient.close": "self",
    "HeartbeatSender.start": "self",
    "HeartbeatSender.stop": "self",
}
CALLS = ["PullTaskInput", "PullMessages", "PullObject", "ConfirmMessageReceived"]
CALLS += ["PushMessages", "PushObject", "PushTaskOutput"]


def test_the_pin_is_the_version_whose_source_was_read() -> None:
    assert importlib.metadata.version("flwr") == FLOWER_VERSION
    assert f"flwr=={FLOWER_VERSION}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_private_name_is_what_it_was(name: str) -> None:
    found: Any = launcher_flower
    for part in name.split("."):
        found = getattr(found, part)
    assert list(inspect.signature(found).parameters) == SIGNATURES[name].split()


@pytest.mark.parametrize("name", CALLS)
def test_the_runtime_interface_has_the_calls(name: str) -> None:
    assert callable(getattr(RuntimeHttpClient, name))


def test_messages_of_the_runtime_interface_have_the_fields() -> None:
    from flwr.proto import runtime_pb2

    fields = {
        "PullTaskInputResponse": {"context", "fab"},
        "PullAppMessagesResponse": {"message_object_trees"},
        "PushAppMessagesRequest": {"messages_list", "message_object_trees"},
        "PushAppMessagesResponse": {"objects_to_push", "session_id"},
        "PushTaskOutputRequest": {"context", "sub_status", "details"},
    }
    for name, wanted in fields.items():
        assert wanted <= {field.name for field in getattr(runtime_pb2, name).DESCRIPTOR.fields}, name


def test_only_one_file_of_the_client_names_what_flower_keeps_private() -> None:
    public = ("flwr.app", "flwr.clientapp")
    for path in sorted((ROOT / "client").glob("*.py")):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].split(".")[0] == "flwr":
                assert words[1] in public or path.name == "launcher_flower.py", f"{path.name}: {line}"


def test_a_supernode_starts_a_program_of_this_name_found_on_its_path() -> None:
    assert TASK_TYPE_TO_COMMAND[TaskType.CLIENT_APP] == "flwr-clientapp"
    assert (ROOT / "deploy" / "launcher" / "flwr-clientapp").stat().st_mode & 0o111
    assert "subprocess.Popen(args)" in inspect.getsource(SubprocessExecutor.launch)


def test_our_options_are_those_that_flower_calls_with() -> None:
    theirs = {o for a in _parse_args_run_flwr_clientapp()._actions for o in a.option_strings}
    assert {"--runtime-api-address", "--token", "--token-file", "--insecure", "--parent-pid"} <= theirs
    words = (
        "--runtime-api-address 127.0.0.1:1 --token t --insecure --parent-pid 5 --allow-runtime-dependency-installation"
    )
    options = launcher._options(words.split())
    assert (options.token, options.insecure, options.parent_pid) == ("t", True, 5)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):  # a message that is new, not a reply, asks for them
        monkeypatch.setattr(TaskIdentity, name, 1)


def task(bundle: bytes = BUNDLE, message_type: str = "query.hello", frames: tuple[bytes, ...] = (b"x",)) -> Task:
    content = RecordDict({"confide": ConfigRecord({"frames": list(frames)})})
    message = Message(content, dst_node_id=7, message_type=message_type)
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={}, series_id=1)
    return Task(message, context, bundle)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "bundle.sha256").write_text(hashlib.sha256(BUNDLE).hexdigest())
    return tmp_path


def test_the_pinned_bundle_is_answered_by_the_installed_relay(home: Path) -> None:
    reply = launcher.reply_to(task(), home)
    assert not reply.has_error()
    assert list(reply.content.config_records["confide"]["frames"]) == [b""]  # type: ignore[arg-type]


@pytest.mark.parametrize("spoil", [lambda f: f.unlink(), lambda f: f.write_text("0" * 64), lambda f: f.write_text("")])
def test_another_bundle_or_no_pin_is_refused_with_a_fixed_code(home: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(home / "bundle.sha256")
    reply = launcher.reply_to(task(), home)
    assert (reply.error.code, reply.error.reason) == (BUNDLE_REFUSED, "bundle.other")
    changed = launcher.reply_to(task(BUNDLE + b"!"), home)
    assert (changed.error.code, changed.error.reason) == (BUNDLE_REFUSED, "bundle.other")


def test_a_message_that_no_relay_knows_gets_a_fixed_code_and_no_text(home: Path) -> None:
    reply = launcher.reply_to(task(message_type=f"train.{SECRET.replace(' ', '_')}"), home)
    assert (reply.error.code, reply.error.reason) == (RELAY_FAILED, "relay.failed")


def test_a_broken_relay_tells_nobody_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_message: Message, _context: Context) -> Message:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(launcher, "app", broken)
    reply = launcher.reply_to(task(), home)
    assert SECRET not in f"{reply.error.code} {reply.error.reason}"


def test_the_program_ends_quietly_where_no_supernode_answers(tmp_path: Path) -> None:
    """The whole program, by the name that a SuperNode starts, against a port that hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        command = [str(ROOT / "deploy" / "launcher" / "flwr-clientapp"), "--insecure", "--token", "t"]
        command += ["--runtime-api-address", f"127.0.0.1:{server.getsockname()[1]}", "--parent-pid", str(2**22 + 1)]
        environment = {**os.environ, "CONFIDE_HOME": str(tmp_path), "CONFIDE_PYTHON": sys.executable}
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 130), done.stderr
    assert "Traceback" not in done.stderr
