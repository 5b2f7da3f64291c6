"""Starts the local AWS (ministack), and writes a line for each signed request that reaches it, except the test harness's own.

A line says who calls (`key`, the access key id), what (`call`), and where the recording proxy wrote the request (`recorded`;
null if the request came around the proxy). Before a role's first request, and whenever its policies have changed, a line
lists the statements that the stack gave it. wire_gate.py and iam_gate.py read the file.

It takes the environment of ministack, and REQUEST_LOG, the path of the file.
"""
import json
import os
import re

from ministack import app as emulator
from ministack.core import iam_actions
from ministack.services import iam, sts

# The header of crates/testkit/src/proxy.rs.
MARK = b"x-billhook-recorded"
HARNESS = os.environ["AWS_ACCESS_KEY_ID"]
LOG = open(os.environ["REQUEST_LOG"], "w", buffering=1)  # by lines, because the process is killed at its end
written = {}


def write_role(key):
    """The role whose session the key is, and its statements."""
    session = sts._sessions.get(key)
    if session is None:
        return
    account, role = re.fullmatch(r"arn:aws:sts::(\d+):assumed-role/([^/]+)/.*", session["Arn"]).groups()
    found = iam._roles.get_scoped(account, None, role)
    policies = {name: policy for name, policy in found["InlinePolicies"].items()} if found else {}
    if written.get(key) == policies:
        return
    written[key] = policies
    documents = [json.loads(policy) if isinstance(policy, str) else policy for policy in policies.values()]
    statements = [statement for document in documents for statement in document["Statement"]]
    LOG.write(json.dumps({"key": key, "role": role, "statements": statements}) + "\n")


def is_attacker(key):
    """Whether a test calls with a role of its own (tests/src/attacker.rs)."""
    session = sts._sessions.get(key)
    return session is not None and ":assumed-role/attacker-" in session["Arn"]


def write_request(scope):
    headers = dict(scope["headers"])
    signed = re.search(rb"Credential=([^/]+)/", headers.get(b"authorization", b""))
    recorded = headers.get(MARK, b"").decode() or None
    if not signed or (signed[1].decode() == HARNESS and not recorded):
        return
    key = signed[1].decode()
    if is_attacker(key):
        return
    write_role(key)
    call = headers.get(b"x-amz-target", b"").decode() or f"{scope['method']} {scope['path']}"
    LOG.write(json.dumps({"key": key, "call": call, "recorded": recorded}) + "\n")


read_context = iam_actions.dynamodb_service_context


def add_attributes_of_write(body):
    """The condition key dynamodb:Attributes also of an UpdateItem, for which the local AWS leaves it out: the key, and the names
    in the update and in its condition (DynamoDB developer guide, "Using IAM policy conditions for fine-grained access control").
    """
    context = read_context(body)
    request = json.loads(body or b"{}")
    if "UpdateExpression" in request or "AttributeUpdates" in request:
        expressions = " ".join(request.get(name) or "" for name in ("UpdateExpression", "ConditionExpression"))
        # The flows name every attribute by a placeholder or as a word of its own.
        names = request.get("ExpressionAttributeNames", {})
        words = {names.get(word, word) for word in re.findall(r"(?<![:\w])#?\w+", expressions)}
        context["dynamodb:Attributes"] = sorted({*words, *request.get("Key", {}), *request.get("AttributeUpdates", {})})
    return context


iam_actions.dynamodb_service_context = add_attributes_of_write
serve = emulator.app


async def serve_and_log(scope, receive, send):
    if scope["type"] == "http":
        write_request(scope)
    await serve(scope, receive, send)


if __name__ == "__main__":
    emulator.app = serve_and_log
    emulator.main()
