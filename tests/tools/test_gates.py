"""Each rule of wire_gate.py, seen failing."""
import base64
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import wire_gate
from code_actions import actions_of_code
from wire_records import model_of, read_request, rest_operation


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


if __name__ == "__main__":
    unittest.main()
