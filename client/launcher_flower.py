"""Flower's Runtime API as a task process sees it: every name that Flower does not promise to keep stands here.

    take: PullTaskInput, PullMessages, PullObject, ConfirmMessageReceived     answer: PushMessages, PushObject
    finish: PushTaskOutput                                                    all the while: SendTaskHeartbeat

Read in Flower 1.41.0, and for that version only: `tests/client/test_client_launcher.py` fails when the pin moves. The
bundle's bytes are handed over as they came; nothing here unpacks, installs or imports them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from flwr.app import Context, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, context_to_proto, message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient

FLOWER_VERSION: Final = "1.41.0"
BUNDLE_REFUSED: Final = ErrorCode.INVALID_FAB
RELAY_FAILED: Final = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
PULLS_AT_ONCE: Final = 2


@dataclass(frozen=True)
class Task:
    """What a SuperNode hands to a task process: the message, the node's context, the bundle's bytes as they came."""

    message: Message
    context: Context
    bundle: bytes


class Runtime:
    """One task's line to its SuperNode. Errors are Flower's and httpx's own; their text must not leave the device."""

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def opened(cls, address: str, token: str, certificates: bytes | None, insecure: bool) -> Iterator[Runtime]:
        """Yield the line, with heartbeats going out so that the SuperNode knows that this process lives.

        After an error the heart is not waited for: it may be trying to reach a SuperNode that is gone. It ends with the
        process.
        """
        client = RuntimeHttpClient.from_server_address(
            address,
            insecure,
            certificates,
            [RuntimeVersionHttpInterceptor("flwr-clientapp"), RuntimeTokenHttpInterceptor(token)],
            retry_invoker=make_simple_http_retry_invoker(),
        )
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        yield cls(client)
        if heartbeat.is_running:
            heartbeat.stop()
        client.close()

    def take(self) -> Task:
        """Return the task that the token stands for. Raises whatever Flower raises, LookupError for an empty one."""
        found = self._client.PullTaskInput(PullTaskInputRequest())
        context = context_from_proto(found.context)
        pulled = self._client.PullMessages(PullAppMessagesRequest())
        if not pulled.message_object_trees:
            raise LookupError("a task without a message")
        tree, node, run = pulled.message_object_trees[0], Node(node_id=context.node_id), context.run_id
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self._client.PullObject, node, run),
            make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, run),
            return_type=Message,
            max_concurrent_pulls=PULLS_AT_ONCE,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id  # a message does not travel with its own name
        return Task(message, context, found.fab.content)

    def answer(self, reply: Message, context: Context) -> None:
        """Hand the reply to the SuperNode, content apart from the message, as Flower wants it."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        head = message_to_proto(remove_content_from_message(reply))
        with no_object_id_recompute():
            request = PushAppMessagesRequest(messages_list=[head], message_object_trees=[get_object_tree(reply)])
            pushed = self._client.PushMessages(request)
            node = Node(node_id=context.node_id)
            push = make_push_object_fn_protobuf(self._client.PushObject, node, context.run_id, pushed.session_id)
            push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(pushed.objects_to_push))

    def finish(self, context: Context, completed: bool) -> None:
        """Tell the SuperNode that the task is over; never why."""
        status = SubStatus.COMPLETED if completed else SubStatus.FAILED
        self._client.PushTaskOutput(
            PushTaskOutputRequest(context=context_to_proto(context), sub_status=status, details="")
        )


def end_with(parent: int) -> None:
    """Interrupt this process when the process `parent`, which started it, is gone."""
    start_parent_process_monitor(parent)
