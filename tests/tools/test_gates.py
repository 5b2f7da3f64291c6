"""Each rule of wire_gate.py, iam_gate.py and policy_gate.py, seen failing."""
import base64
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import iam_gate
import policy_gate
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


class Policies(unittest.TestCase):
    def statements(self, name, action, resource):
        statement = {"Sid": "S", "Effect": "Allow", "Action": action, "Resource": resource}
        return policy_gate.read_statements(name, json.dumps({"Statement": [statement]}))

    def judge(self, *lines, refused=None):
        """What is found for requests of commands, each with its operation, table or queue, by a policy for each group."""
        policies = {
            "on-call": self.statements("on-call", "dynamodb:GetItem", TABLES + "<AppName>-<Env>-jobs"),
            "repairer": self.statements("repairer", "dynamodb:PutItem", [TABLES + "<OrdersTable>", TABLES + "<TenantsTable>"]),
        }
        requests = [record(operation, {"TableName": table}, key=key, source="tool") for key, operation, table in lines]
        groups = {"trace": "on-call", "tenants add": "repairer"}
        with mock.patch.multiple(policy_gate, GROUP_OF=groups, NO_GROUP={}, REFUSED=refused or {}):
            _, found, used = policy_gate.judge_commands(requests, policies)
        return found, policy_gate.find_unused({**policies["on-call"], **policies["repairer"]}, used, {})

    good = [("trace", "GetItem", "flows1-test-jobs"), ("tenants_add", "PutItem", "a1-tenants-of-old")]

    def test_a_repairer_may_what_on_call_may(self):
        found, unused = self.judge(*self.good, ("tenants_add", "GetItem", "flows1-test-jobs"), ("tenants_add", "PutItem", "Orders-test"))
        self.assertEqual((found, unused), ([], []))

    def test_a_request_that_no_policy_of_the_group_allows_is_found(self):
        found, unused = self.judge(*self.good, ("trace", "PutItem", "Orders-test"))
        need = f"dynamodb:PutItem on {TABLES}Orders-test, as billhook trace needs it (1 times)"
        self.assertEqual(found, [f"on-call: nothing allows {need}"])
        self.assertEqual(unused, [f"repairer, S: nothing uses {TABLES}Orders-test"])

    def test_a_command_without_a_group_and_a_group_without_a_command_are_found(self):
        found, _ = self.judge(*self.good[1:], ("orders_burn", "GetItem", "flows1-test-jobs"))
        expected = ["billhook orders burn has no group: name it in GROUP_OF (1 times)", "billhook trace was not recorded: take it out"]
        self.assertEqual(found, expected)

    def test_a_change_that_is_not_in_the_audit_log_is_found(self):
        def find(*lines):
            of = {"PutLogEvents": ("logs", {"logGroupName": "/billhook/flows1-test/audit"})}
            requests = []
            for key, operation in lines:
                service, value = of.get(operation, ("dynamodb", {"TableName": "t"}))
                requests.append(record(operation, value, service, key, "tool"))
            return list(policy_gate.find_unaudited(requests))

        self.assertEqual(find(("trace", "GetItem"), ("rebuild_--yes", "PutItem"), ("rebuild_--yes", "PutLogEvents")), [])
        for command in ("trace", "replay_--yes"):
            lost = f"billhook {command.replace('_', ' ')} changes something, and the audit log has no line of it"
            self.assertEqual(find((command, "UpdateItem"), ("rebuild_--yes", "PutLogEvents")), [lost])
        self.assertEqual(len(find(("replay_--yes", "GetItem"))), 1)

    def test_a_refusal_that_is_none_is_found(self):
        found, _ = self.judge(*self.good, refused={("on-call", "dynamodb:GetItem"): "never"})
        self.assertEqual(found, ["on-call dynamodb:GetItem is not refused: take it out of REFUSED"])

    def test_an_exception_that_is_none_is_found(self):
        statements = self.statements("on-call", "sqs:PurgeQueue", "*")
        used = {(("on-call", "S"), "sqs:PurgeQueue")}
        self.assertEqual(policy_gate.find_unused(statements, used, {("on-call", "S", "*"): "never"}), [])
        found = policy_gate.find_unused(statements, used, {("on-call", "S", ""): "never", ("on-call", "T", ""): "never"})
        self.assertEqual(found, ["nothing is that of UNRECORDED any more: ('on-call', 'T', '')"])

    def test_a_change_by_whoever_is_on_call_is_found(self):
        statements = self.statements("on-call", ["sqs:ReceiveMessage", "sqs:SendMessage"], "*")
        found = ["on-call, S: sqs:SendMessage may change something"]
        self.assertEqual(list(policy_gate.find_changes(statements)), found)

    def test_a_command_of_the_runbook_that_nobody_may_is_found(self):
        actions = policy_gate.list_runbook_actions({"a.md": "aws sqs purge-queue --queue-url Q", "b.md": "aws sns publish"})
        policies = {"on-call": self.statements("on-call", "sqs:PurgeQueue", "*")}
        found, used = policy_gate.judge_runbook(actions, policies)
        self.assertEqual(found, ["b.md: none of on-call may sns:Publish"])
        self.assertEqual(used, {(("on-call", "S"), "sqs:PurgeQueue")})

    def test_a_resource_that_the_deployer_cannot_make_is_found(self):
        queue = {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": {"Fn::Sub": "${AppName}-${Env}-q"}}}
        template = {"Resources": {"Q": queue, "Bus": {"Type": "AWS::Events::EventBus"}}}
        needs = {"AWS::SQS::Queue": [("sqs: CreateQueue", "arn:aws:sqs:<Region>:<Account>:{name}")], "AWS::SNS::Topic": []}
        statements = self.statements("deployer", ["sqs:DeleteQueue", "sqs:CreateQueue"], "arn:aws:sqs:<Region>:<Account>:other-*")
        with mock.patch.multiple(policy_gate, NEEDS=needs, CALLS=[]):
            found = policy_gate.judge_deployer(template, statements)
        self.assertEqual(found[0], "AWS::Events::EventBus of Bus: name in NEEDS what it takes to make, change and delete it")
        self.assertEqual(found[1], "deployer: nothing allows sqs:CreateQueue on arn:aws:sqs:eu-west-1:000000000000:billhook-test-q")
        self.assertEqual(found[2], "NEEDS: the template has no AWS::SNS::Topic")
        self.assertEqual(found[3], "deployer, S: nothing uses sqs:DeleteQueue")

    def test_a_table_that_is_not_the_applications_is_found(self):
        table = lambda name: {"Type": "AWS::DynamoDB::Table", "Properties": {"TableName": {"Fn::Sub": name}}}
        template = {"Resources": {"OrdersTable": table("Orders-${Env}"), "JobsTable": table("${AppName}-${Env}-jobs")}}
        check = lambda *names: list(
            policy_gate.judge_application(template, self.statements("application", "dynamodb:Query", [TABLES + it for it in names]))
        )
        self.assertEqual(check("<OrdersTable>", "<OrdersTable>/index/*"), [])
        self.assertEqual(len(check("<AppName>-<Env>-jobs", "*", "none")), 3)

    def test_a_policy_that_iam_does_not_take_is_found(self):
        text = json.dumps({"Statement": [{"Resource": ["<Stack>"] * 200}]}, indent=2)
        self.assertEqual(list(policy_gate.check_size("deployer", text)), ["deployer: 8030 characters with the longest names, and IAM takes 6144"])


if __name__ == "__main__":
    unittest.main()
