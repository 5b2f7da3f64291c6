"""Each rule of wire_gate.py and iam_gate.py, seen failing."""
import base64
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import iam_gate
import wire_gate
from code_actions import actions_of_code
from wire_records import model_of, read_request, rest_operation

TABLES = "arn:aws:dynamodb:eu-west-1:000000000000:table/"


def sign(service, key="ASIA1"):
    return f"AWS4-HMAC-SHA256 Credential={key}/20260101/eu-west-1/{service}/aws4_request, SignedHeaders=host, Signature=0"


def record(target, value, service="dynamodb", key="ASIA1", source="functions"):
    body = base64.b64encode(json.dumps(value).encode()).decode()
    line = {"method": "POST", "path": "/", "authorization": sign(service, key), "content_type": None}
    return read_request(source, {**line, "target": f"X.{target}", "body": body})


class Requests(unittest.TestCase):
    def test_a_request_is_held_to_the_model_and_to_the_rules(self):
        request = record("GetItem", {"TableName": "t", "Kee": {}, "ProjectionExpression": "status"})
        faults = set(wire_gate.check_request(request))
        expected = {(".Kee", "unknown member"), (".Key", "required and missing"), ("", "the reserved word status")}
        self.assertEqual(faults, expected)

    def test_a_path_is_that_of_one_operation(self):
        self.assertEqual(rest_operation(model_of("apigateway"), "GET", "/restapis/a/stages/v1")[0], "GetStage")


class Recorders(unittest.TestCase):
    role = {"key": "ASIA1", "role": "app-test-WorkerRole-1", "statements": []}

    def check(self, recorded, lines_of):
        emulator = [self.role, {"key": "ASIA1", "call": "X.PutItem", "recorded": recorded}]
        return list(wire_gate.check_recorders(lines_of, emulator))

    def test_a_recorded_request_is_good(self):
        self.assertEqual(self.check("functions:2", {"functions": 2, "tool": 0}), [])

    def test_a_request_around_the_recorders_is_found(self):
        found = ["app-test-WorkerRole-1: X.PutItem reached the local AWS and no recorder (1 times)"]
        self.assertEqual(self.check(None, {}), found)
        self.assertEqual(self.check("functions:3", {"functions": 2}), found)

    def test_a_recorder_whose_local_aws_writes_nothing_is_found(self):
        found = ["tool: the local AWS saw none of its requests"]
        self.assertEqual(self.check("functions:1", {"functions": 1, "tool": 1}), found)


class Actions(unittest.TestCase):
    def check(self, of_code, recorded):
        with mock.patch.dict(wire_gate.NOT_IN_FLOWS, {("ssm", "GetParameter"): "never"}, clear=True):
            return list(wire_gate.check_actions({("ssm", "GetParameter"): {"adapters"}, **of_code}, recorded))

    def test_an_action_that_no_flow_makes_is_found(self):
        self.assertEqual(self.check({("sqs", "SendMessage"): {"adapters"}}, {("tool", "sqs", "SendMessage")}), [])
        found = self.check({("sqs", "SendMessage"): {"operator"}}, {("functions", "sqs", "SendMessage")})
        self.assertEqual(found, ["sqs SendMessage: crates/operator has it, and no flow makes it"])

    def test_an_exception_that_is_none_is_found(self):
        found = self.check({}, {("functions", "ssm", "GetParameter")})
        self.assertEqual(found, ["ssm GetParameter is recorded: take it out of NOT_IN_FLOWS"])
        with mock.patch.dict(wire_gate.NOT_IN_FLOWS, {("sqs", "PurgeQueue"): "never"}, clear=True):
            found = list(wire_gate.check_actions({}, set()))
        self.assertEqual(found, ["sqs PurgeQueue: the code has it no more, take it out of NOT_IN_FLOWS"])

    def actions_of(self, code):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "Cargo.toml").write_text('aws-sdk-dynamodb = "1"\n')
            (root / "crates/operator/src").mkdir(parents=True)
            (root / "crates/operator/src/lib.rs").write_text(code)
            return set(actions_of_code(root))

    def test_the_actions_of_code_are_found_in_every_form(self):
        self.assertEqual(self.actions_of("client\n    .put_item()"), {("dynamodb", "PutItem")})
        self.assertEqual(self.actions_of("#[cfg(test)]\nmod tests {\n client.put_item()"), set())
        kms = 'const KMS: AwsService = AwsService::new("kms", "K");'
        target = f'{kms} [("x-amz-target", "TrentService.DescribeKey")] aws.post_text(KMS, "/", h)'
        self.assertEqual(self.actions_of(target), {("kms", "DescribeKey")})
        sns = 'const SNS: AwsService = AwsService::new("sns", "S");'
        query = f'{sns} [("Action", "ListTopics")] aws.query_xml(SNS, "2010-03-31", f)'
        self.assertEqual(self.actions_of(query), {("sns", "ListTopics")})
        api = 'const API: AwsService = AwsService::new("apigateway", "A");'
        path = f'{api} format!("/restapis/{{id}}/stages/{{S}}"); aws.get_text(API, &path)'
        self.assertEqual(self.actions_of(path), {("apigateway", "GetStage")})

    def test_a_request_whose_action_is_not_found_is_an_error(self):
        with self.assertRaisesRegex(ValueError, "no action is found"):
            self.actions_of('const KMS: AwsService = AwsService::new("kms", "K"); aws.post_text(KMS, "/", h)')


class Permissions(unittest.TestCase):
    template = {
        "WorkerRole": [
            {"Effect": "Allow", "Action": ["dynamodb:UpdateItem", "dynamodb:ConditionCheckItem"], "Resource": "Orders"},
            {"Effect": "Allow", "Action": "dynamodb:Query", "Resource": {"Fn::Sub": "${Orders.Arn}/index/I"}},
        ]
    }
    statements = [
        {"Effect": "Allow", "Action": ["dynamodb:UpdateItem", "dynamodb:ConditionCheckItem"], "Resource": TABLES + "orders"},
        {"Effect": "Allow", "Action": "dynamodb:Query", "Resource": TABLES + "orders/index/I"},
    ]

    def judge(self, *requests):
        emulator = [{"key": "ASIA1", "role": "app-test-WorkerRole-1", "statements": self.statements}]
        _, refused, used = iam_gate.judge(requests, iam_gate.read_roles(emulator, self.template))
        with mock.patch.dict(iam_gate.UNRECORDED, clear=True):
            return set(refused), iam_gate.find_unused(self.template, used)

    def test_a_request_that_no_statement_allows_is_found(self):
        refused, _ = self.judge(record("UpdateItem", {"TableName": "tenants"}), record("Query", {"TableName": "orders"}))
        expected = {("dynamodb:UpdateItem", TABLES + "tenants"), ("dynamodb:Query", TABLES + "orders")}
        self.assertEqual(refused, {("WorkerRole", *permission) for permission in expected})

    def test_a_transaction_needs_the_permission_of_each_part(self):
        parts = [{"Update": {"TableName": "orders"}}, {"Delete": {"TableName": "orders"}}]
        refused, unused = self.judge(record("TransactWriteItems", {"TransactItems": parts}))
        self.assertEqual(refused, {("WorkerRole", "dynamodb:DeleteItem", TABLES + "orders")})
        self.assertNotIn("WorkerRole: dynamodb:UpdateItem on Orders is used by no flow", unused)

    def test_a_permission_that_no_flow_uses_is_found(self):
        _, unused = self.judge(record("Query", {"TableName": "orders", "IndexName": "I"}))
        expected = [f"WorkerRole: dynamodb:{action} on Orders is used by no flow" for action in ("UpdateItem", "ConditionCheckItem")]
        self.assertEqual(unused, expected)

    def test_an_exception_that_is_none_is_found(self):
        exceptions = {("", "dynamodb:Query", ""): "never", ("", "sqs:SendMessage", ""): "never"}
        with mock.patch.dict(iam_gate.UNRECORDED, exceptions, clear=True):
            found = iam_gate.find_unused(self.template, {("WorkerRole", 1, "dynamodb:Query")})
        self.assertIn("WorkerRole: dynamodb:Query on Orders/index/I is used: take it out of UNRECORDED", found)
        self.assertIn("no statement is that of UNRECORDED any more: ('', 'sqs:SendMessage', '')", found)

    def test_a_function_without_a_role_is_found(self):
        refused, _ = self.judge(record("Query", {"TableName": "orders"}, key="ASIA2"))
        self.assertEqual(refused, {("?", "key ASIA2", "no role has it")})

    def test_a_statement_that_cannot_be_judged_is_an_error(self):
        with self.assertRaisesRegex(ValueError, "more than this gate judges"):
            iam_gate.allows({**self.statements[0], "Condition": {}}, "dynamodb:UpdateItem", TABLES + "orders")

    def test_other_statements_than_the_templates_are_an_error(self):
        emulator = [{"key": "ASIA1", "role": "app-test-WorkerRole-1", "statements": self.statements[:1]}]
        with self.assertRaisesRegex(ValueError, "other statements"):
            iam_gate.read_roles(emulator, self.template)

    def test_batches_and_messages_need_the_permission_of_one(self):
        of = lambda *arguments: list(iam_gate.list_permissions(record(*arguments)))
        tables = of("BatchGetItem", {"RequestItems": {"a": {}, "b": {}}})
        self.assertEqual(tables, [("dynamodb:BatchGetItem", TABLES + "a"), ("dynamodb:BatchGetItem", TABLES + "b")])
        message = of("SendMessageBatch", {"QueueUrl": "http://127.0.0.1:1/000000000000/q.fifo"}, "sqs")
        self.assertEqual(message, [("sqs:SendMessage", "arn:aws:sqs:eu-west-1:000000000000:q.fifo")])


if __name__ == "__main__":
    unittest.main()
