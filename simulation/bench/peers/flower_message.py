"""One Flower message from the start of a ClientApp's process to its reply: `python flower_message.py JOB.json`.

Flower's SuperNode starts a process a message. `client` in the job says what it is: "model" loads torch, transformers
and a model with LoRA, as a client does that trains; "relay" is the ClientApp of confide, which asks an agent over a
socket; "empty" does nothing. All three make and answer the same message.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity


def client_of(job: dict[str, Any]) -> ClientApp:
    """Return the ClientApp that the job names."""
    if job["client"] == "relay":
        from client.app import app as relay

        return relay
    app = ClientApp()
    app.query("hello")(functools.partial(_ready, _model(job) if job["client"] == "model" else None))
    return app


def _model(job: dict[str, Any]) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    net: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    return get_peft_model(net, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def _ready(_model: Any, message: Message, _context: Context) -> Message:
    return Message(RecordDict({"confide": ConfigRecord({"frames": [b"ready"]})}), reply_to=message)


def main(path: str) -> None:
    """Answer one message and print how many bytes the first frame of the answer has."""
    job = json.loads(Path(path).read_text())
    app = client_of(job)
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = 1, 1, 1
    content = RecordDict({"confide": ConfigRecord({"frames": [bytes.fromhex(job["frame"])]})})
    message = Message(content, dst_node_id=9, message_type="query.hello", ttl=60.0, group_id="")
    message.metadata.__dict__["_message_id"] = "one"
    config = {"confide-socket": job["socket"]}
    context = Context(run_id=1, node_id=9, node_config=config, state=RecordDict(), run_config={})
    frames: Any = app(message, context).content.config_records["confide"]["frames"]
    sys.stdout.write(json.dumps({"bytes": len(frames[0])}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
