"""Holds the policies for people in docs/policies to what the flows recorded and to the template.

usage: policy_gate.py FOLDER TEMPLATE    (as for iam_gate.py)
       policy_gate.py --template         prints the policies as a template, in which cfn-lint checks each action and ARN

On-call and repairer: each request of a command of their group is allowed, and each action and each resource of a statement is
used by a command of the group or by a page of the runbook; on-call changes nothing. Deployer: each resource of the template,
as SAM expands it, can be made, changed and deleted, and each action and each resource of a statement is needed for that.
Application: only its own tables, and what it writes only on condition of the columns.
Prints the number of requests of each group, and each finding; exit code 1 if there is one.

It compares names and actions only. Whether AWS asks for more than this gate knows is not tried: the local AWS does not judge
the requests of the tool, nor those of a deployment.
"""
import fnmatch
import json
import pathlib
import re
import sys
from collections import Counter

from iam_gate import allows, list_permissions, listed, matches
from wire_records import read_requests

ROOT = pathlib.Path(__file__).parents[2]
# A policy of one's own has at most so many characters, without white space (IAM user guide, "IAM and AWS STS quotas").
CHARACTERS_MAX = 6144
# What stands for the placeholders of the policies in this gate, and the longest that there can be.
VALUES = {
    "Region": "eu-west-1",
    "Account": "000000000000",
    "AppName": "billhook",
    "Env": "test",
    "Stack": "billhook-test",
    "OrdersTable": "Orders-test",
    "StatementsTable": "billhook-test-statements",
    "TenantsTable": "billhook-test-tenants",
    "VersionColumn": "version",
}
LONGEST = {name: "x" * 50 for name in VALUES} | {
    "Region": "ap-southeast-1",
    "Account": "1" * 12,
    "AppName": "a" * 24,
    "Env": "e" * 12,
    "Stack": "s" * 37,
}
POLICIES = ["on-call", "repairer", "deployer", "application"]
# The policies that a person of a group has.
POLICIES_OF = {"on-call": ["on-call"], "repairer": ["on-call", "repairer"]}
# The group that needs a command, as the flows name it: with `--yes` if it then does what it otherwise only previews or
# asks about.
# A task is the repairer's with `--dry-run` too, because IAM does not see what a function is invoked with.
GROUP_OF = {
    "accounts top": "on-call",
    "audit list": "on-call",
    "cleanup run": "repairer",
    "cleanup run --yes": "repairer",
    "dlq list": "on-call",
    "dlq purge": "on-call",
    "dlq purge --yes": "repairer",
    "dlq redrive": "on-call",
    "dlq redrive --yes": "repairer",
    "dlq show": "on-call",
    "doctor": "on-call",
    "events annotate": "on-call",
    "events annotate --yes": "repairer",
    "events close": "on-call",
    "events close --yes": "repairer",
    "events list": "on-call",
    "events park": "on-call",
    "events park --yes": "repairer",
    "events release": "on-call",
    "events release --yes": "repairer",
    "events show": "on-call",
    "logs": "on-call",
    "metrics export": "on-call",
    "orders access": "on-call",
    "orders backfill-payment-intent": "on-call",
    "orders backfill-payment-intent --yes": "repairer",
    "orders mark-paid": "on-call",
    "orders mark-paid --yes": "repairer",
    "orders mark-refunded": "on-call",
    "orders mark-refunded --yes": "repairer",
    "orders review": "on-call",
    "orders review --yes": "repairer",
    "orders show": "on-call",
    "payments relink": "on-call",
    "payments relink --yes": "repairer",
    "payments show": "on-call",
    "payments unclaimed": "on-call",
    "proof run": "repairer",
    "prove": "on-call",
    "prove --yes": "repairer",
    "rebuild --yes": "repairer",
    "reconcile run": "on-call",
    "reconcile run --yes": "repairer",
    "replay": "on-call",
    "replay --yes": "repairer",
    "secrets put": "on-call",
    "secrets put --yes": "repairer",
    "secrets revoke": "on-call",
    "secrets revoke --yes": "repairer",
    "secrets rollback": "on-call",
    "secrets rollback --yes": "repairer",
    "secrets rotate": "on-call",
    "secrets rotate --yes": "repairer",
    "secrets split": "repairer",  # it reads the secrets to say what it would move
    "secrets split --yes": "repairer",
    "secrets status": "on-call",
    "send lob --yes": "repairer",
    "send stripe": "on-call",
    "send stripe --yes": "repairer",
    "sig explain": "on-call",
    "statements attention": "on-call",
    "statements mark-paid": "on-call",
    "statements mark-paid --yes": "repairer",
    "statements review --yes": "repairer",
    "statements show": "on-call",
    "sweep run": "on-call",
    "sweep run --yes": "repairer",
    "tenants add": "on-call",
    "tenants add --yes": "repairer",
    "tenants change-account": "on-call",
    "tenants change-account --yes": "repairer",
    "tenants import": "on-call",
    "tenants import --yes": "repairer",
    "tenants list": "on-call",
    "tenants mute": "on-call",
    "tenants mute --yes": "repairer",
    "tenants show": "on-call",
    "tenants unmute": "on-call",
    "tenants unmute --yes": "repairer",
    "trace": "on-call",
}
# Commands of the flows that are nobody's.
NO_GROUP = {"billhook": "a stack that does not exist"}
# Actions that change nothing. A message that is made invisible comes back by itself.
READS = re.compile(r"\w+:(BatchGet|Describe|Filter|Get|GET$|List|Query|Receive|Scan|ChangeMessageVisibility$)")
# Requests that a group is refused on purpose, by group and action.
REFUSED = {
    ("on-call", "secretsmanager:GetSecretValue"): "whoever is on call sees no key and can sign no event; docs/permissions.md "
    "says which lines of doctor and which options that costs",
}
# What no recorded request uses, by policy, statement, and action or resource (empty for all of them), with the reason.
UNRECORDED = {
    ("on-call", "CheckFirewall", ""): "the emulator refuses the firewall, so every local stack has Waf=false",
    ("on-call", "ReadDeadLetters", "lob-events"): "the flows list Stripe's dead letters; the code for Lob's is the same",
    ("on-call", "ReadLogs", "aws-waf-logs-"): "docs/runbook/waf-blocked.md reads it; a local stack has none",
    ("repairer", "EmptyScheduleDlq", "schedule-dlq"): "docs/runbook/cleanup-failures.md empties it",
    ("repairer", "ReplacePagesOfFacts", ""): "a write deletes a page that an entity no longer needs; in the flows only workers do",
    ("repairer", "RotateEndpointsTransform", ""): "CloudFormation itself uses it; the emulator does not check it",
    ("repairer", "RotateEndpointsFunction", ""): "CloudFormation itself uses it; the emulator does not check it",
    ("repairer", "SendMessages", "lob-events"): "the flows replay Stripe's events; the code for Lob's is the same",
}

# What it takes to make, change and delete a resource of a type: pairs of actions and ARN, with {id} for its id in the template
# and {name} for its own name. Sources: the permissions of the handlers in the types' own schemas (CloudFormation registry), less
# those for properties that the template does not set (own KMS keys, streams, VPC, imports); for types without such a schema the
# actions of the service that make, read and delete it.
ROLE = "arn:aws:iam::<Account>:role/<Stack>-{id}-1"
ANY_ROLE = "arn:aws:iam::<Account>:role/<Stack>-Role-1"
FUNCTION = "arn:aws:lambda:<Region>:<Account>:function:<AppName>-<Env>-worker"
CUSTOM_RESOURCE = ("lambda: InvokeFunction", "arn:aws:lambda:<Region>:<Account>:function:<AppName>-<Env>-webhook-secret")
STAGE = "arn:aws:apigateway:<Region>::/restapis/a1/stages/v1"
WAF = "arn:aws:wafv2:<Region>:<Account>:regional"
ALL = "*"
NEEDS = {
    "AWS::ApiGateway::Account": [
        ("apigateway: GET PATCH", "arn:aws:apigateway:<Region>::/account"),
        ("iam: GetRole PassRole", ANY_ROLE),
    ],
    "AWS::ApiGateway::BasePathMapping": [
        ("apigateway: DELETE GET PATCH POST", "arn:aws:apigateway:<Region>::/domainnames/a.example/basepathmappings")
    ],
    "AWS::ApiGateway::Deployment": [("apigateway: DELETE GET PATCH POST", "arn:aws:apigateway:<Region>::/restapis/a1/deployments")],
    "AWS::ApiGateway::DomainName": [("apigateway: DELETE GET PATCH POST", "arn:aws:apigateway:<Region>::/domainnames")],
    "AWS::ApiGateway::RestApi": [
        ("apigateway: DELETE GET PATCH POST PUT UpdateRestApiPolicy", "arn:aws:apigateway:<Region>::/restapis"),
        ("apigateway: DELETE GET PATCH PUT", "arn:aws:apigateway:<Region>::/restapis/a1"),
        ("apigateway: DELETE GET PUT", "arn:aws:apigateway:<Region>::/tags/arn"),
    ],
    "AWS::ApiGateway::Stage": [
        ("apigateway: DELETE GET PATCH POST PUT", STAGE),
        ("iam: CreateServiceLinkedRole", "arn:aws:iam::<Account>:role/aws-service-role/ops.apigateway.amazonaws.com/R"),
    ],
    "AWS::CloudWatch::Alarm": [
        (
            "cloudwatch: DeleteAlarms ListTagsForResource PutMetricAlarm TagResource UntagResource",
            "arn:aws:cloudwatch:<Region>:<Account>:alarm:{name}",
        ),
        ("cloudwatch: DescribeAlarms", ALL),
    ],
    "AWS::CloudWatch::Dashboard": [
        ("cloudwatch: DeleteDashboards GetDashboard PutDashboard", "arn:aws:cloudwatch::<Account>:dashboard/{name}")
    ],
    "AWS::DynamoDB::Table": [
        (
            "dynamodb: CreateTable DeleteTable DescribeContinuousBackups DescribeContributorInsights DescribeTable"
            " DescribeKinesisStreamingDestination DescribeTimeToLive ListTagsOfResource TagResource UntagResource"
            " UpdateContinuousBackups UpdateContributorInsights UpdateTable UpdateTimeToLive",
            "arn:aws:dynamodb:<Region>:<Account>:table/{name}",
        )
    ],
    "AWS::Events::Rule": [
        (
            "events: DeleteRule DescribeRule DisableRule EnableRule ListTargetsByRule PutRule PutTargets RemoveTargets",
            "arn:aws:events:<Region>:<Account>:rule/<Stack>-{id}-1",
        )
    ],
    "AWS::IAM::Role": [
        (
            "iam: AttachRolePolicy CreateRole DeleteRole DeleteRolePolicy DetachRolePolicy GetRole GetRolePolicy"
            " ListAttachedRolePolicies ListRolePolicies PutRolePolicy TagRole UntagRole UpdateAssumeRolePolicy UpdateRole"
            " UpdateRoleDescription",
            ROLE,
        )
    ],
    "AWS::Lambda::EventInvokeConfig": [
        (
            "lambda: DeleteFunctionEventInvokeConfig GetFunctionEventInvokeConfig PutFunctionEventInvokeConfig"
            " UpdateFunctionEventInvokeConfig",
            FUNCTION,
        )
    ],
    "AWS::Lambda::EventSourceMapping": [
        ("lambda: CreateEventSourceMapping DeleteEventSourceMapping GetEventSourceMapping UpdateEventSourceMapping", ALL)
    ],
    "AWS::Lambda::Function": [
        (
            "lambda: CreateFunction DeleteFunction GetFunction GetFunctionCodeSigningConfig GetFunctionRecursionConfig"
            " GetRuntimeManagementConfig TagResource UntagResource UpdateFunctionCode UpdateFunctionConfiguration",
            "arn:aws:lambda:<Region>:<Account>:function:{name}",
        ),
        ("iam: PassRole", ANY_ROLE),
        ("s3: GetObject GetObjectVersion", "arn:aws:s3:::aws-sam-cli-managed-default-1/code"),
    ],
    "AWS::Lambda::Permission": [("lambda: AddPermission GetPolicy RemovePermission", FUNCTION)],
    "AWS::Logs::LogGroup": [
        (
            "logs: CreateLogGroup DeleteLogGroup DeleteRetentionPolicy GetDataProtectionPolicy ListTagsForResource"
            " ListTagsLogGroup PutRetentionPolicy TagLogGroup TagResource UntagLogGroup UntagResource",
            "arn:aws:logs:<Region>:<Account>:log-group:{name}",
        ),
        ("logs: DescribeLogGroups", ALL),
    ],
    "AWS::SNS::Subscription": [
        ("sns: Subscribe", "arn:aws:sns:<Region>:<Account>:<AppName>-<Env>-alarms"),
        (
            "sns: GetSubscriptionAttributes SetSubscriptionAttributes Unsubscribe",
            "arn:aws:sns:<Region>:<Account>:<AppName>-<Env>-alarms:1",
        ),
    ],
    "AWS::SNS::Topic": [
        (
            "sns: CreateTopic DeleteTopic GetDataProtectionPolicy GetTopicAttributes ListSubscriptionsByTopic"
            " ListTagsForResource SetTopicAttributes TagResource UntagResource",
            "arn:aws:sns:<Region>:<Account>:{name}",
        )
    ],
    "AWS::SQS::Queue": [
        (
            "sqs: CreateQueue DeleteQueue GetQueueAttributes GetQueueUrl ListQueueTags SetQueueAttributes TagQueue UntagQueue",
            "arn:aws:sqs:<Region>:<Account>:{name}",
        )
    ],
    "AWS::SQS::QueuePolicy": [("sqs: SetQueueAttributes", "arn:aws:sqs:<Region>:<Account>:<AppName>-<Env>-schedule-dlq")],
    "AWS::SecretsManager::Secret": [
        (
            "secretsmanager: CreateSecret DeleteSecret DescribeSecret GetSecretValue TagResource UntagResource UpdateSecret",
            "arn:aws:secretsmanager:<Region>:<Account>:secret:{name}-a1b2c3",
        ),
        # For a secret that is made at random.
        ("secretsmanager: GetRandomPassword", ALL),
    ],
    "AWS::WAFv2::IPSet": [
        ("wafv2: CreateIPSet DeleteIPSet GetIPSet ListTagsForResource UpdateIPSet", f"{WAF}/ipset/{{name}}/1")
    ],
    "AWS::WAFv2::LoggingConfiguration": [
        (
            "wafv2: DeleteLoggingConfiguration GetLoggingConfiguration PutLoggingConfiguration",
            f"{WAF}/webacl/<AppName>-<Env>/1",
        ),
        ("iam: CreateServiceLinkedRole", "arn:aws:iam::<Account>:role/aws-service-role/wafv2.amazonaws.com/R"),
        # CloudWatch Logs user guide, "Logs sent to CloudWatch Logs".
        ("logs: CreateLogDelivery DeleteLogDelivery DescribeLogGroups DescribeResourcePolicies PutResourcePolicy", ALL),
    ],
    "AWS::WAFv2::WebACL": [
        ("wafv2: CreateWebACL DeleteWebACL GetWebACL ListTagsForResource UpdateWebACL", f"{WAF}/webacl/{{name}}/1"),
        ("wafv2: CreateWebACL UpdateWebACL", f"{WAF}/managedruleset/AWS/1"),
    ],
    "AWS::WAFv2::WebACLAssociation": [
        ("wafv2: AssociateWebACL DisassociateWebACL GetWebACLForResource", STAGE),
        ("wafv2: AssociateWebACL GetWebACL", f"{WAF}/webacl/<AppName>-<Env>/1"),
        ("apigateway: SetWebACL", STAGE),
    ],
    # CloudFormation invokes the function with the permissions of the caller, or of the stack's service role.
    "Custom::SealKeys": [CUSTOM_RESOURCE],
    "Custom::StripeWebhookEndpoint": [CUSTOM_RESOURCE],
}
# What `sam deploy` and stack.py call themselves.
STACK = "arn:aws:cloudformation:<Region>:<Account>:stack/<Stack>/1"
SAM_STACK = "arn:aws:cloudformation:<Region>:<Account>:stack/aws-sam-cli-managed-default/1"
TABLE = "arn:aws:dynamodb:<Region>:<Account>:table/<OrdersTable>"
CALLS = [
    (
        "cloudformation: CreateChangeSet DeleteStack DescribeChangeSet DescribeStackEvents DescribeStacks ExecuteChangeSet"
        " GetTemplate ListStackResources RollbackStack",
        STACK,
    ),
    # By hand after a deployment that failed.
    ("cloudformation: CancelUpdateStack ContinueUpdateRollback DeleteChangeSet", STACK),
    ("cloudformation: CreateChangeSet DescribeChangeSet DescribeStacks ExecuteChangeSet", SAM_STACK),
    ("cloudformation: GetTemplateSummary", ALL),
    ("cloudformation: CreateChangeSet", "arn:aws:cloudformation:<Region>:aws:transform/Serverless-2016-10-31"),
    (
        "s3: CreateBucket GetBucketLocation GetBucketPolicy ListBucket PutBucketPolicy PutBucketPublicAccessBlock"
        " PutBucketTagging PutBucketVersioning PutEncryptionConfiguration",
        "arn:aws:s3:::aws-sam-cli-managed-default-1",
    ),
    ("s3: GetObject PutObject", "arn:aws:s3:::aws-sam-cli-managed-default-1/billhook/1"),
    ("dynamodb: DeleteTable DescribeTable Scan UpdateTable", TABLE),
    ("apigateway: GET", "arn:aws:apigateway:<Region>::/account"),
]


def read_policy(name):
    return (ROOT / "docs/policies" / f"{name}.json").read_text()


def fill(text, values):
    """The text with values for its placeholders."""
    return re.sub(r"<(\w+)>", lambda found: values[found.group(1)], text)


def read_statements(name, text):
    """The statements of a policy as iam_gate judges them, by (policy, statement). A condition narrows a statement; what it asks
    is not compared."""
    statements = json.loads(fill(text, VALUES))["Statement"]
    kept = {
        (name, statement["Sid"]): {key: value for key, value in statement.items() if key not in ("Sid", "Condition")}
        for statement in statements
    }
    if len(kept) != len(statements):
        raise ValueError(f"{name}: two statements have one Sid")
    return kept


def generalise(resource):
    """A recorded ARN with the names that the policies have here: the flows deploy several stacks."""
    resource = re.sub(r"\b[a-z]+\d+([-/])test\b", r"billhook\1test", resource)
    # The stack of the flow that deploys a fresh one.
    resource = re.sub(r"\bfresh\d+([-/])(fresh\d+|stack)\b", r"billhook\1test", resource)
    resource = re.sub(r"\bOrders-fresh\d+\b", VALUES["OrdersTable"], resource)
    # The tables of the flow `adoption`.
    for own, name in (("Shop.Orders", "Orders"), ("shop_statements", "Statements"), ("tenants-of-old", "Tenants")):
        resource = re.sub(rf"\b[a-z]+\d+-{re.escape(own)}\b", VALUES[f"{name}Table"], resource)
    # The local AWS names the alias of DynamoDB's key where AWS names the key.
    return resource.replace("alias/aws/dynamodb", "key/1")


def use(statements, action, resource, used):
    """Whether a statement allows it, and notes which, with its pattern of the action and of the resource."""
    is_allowed = False
    for key, statement in statements.items():
        if allows(statement, action, resource):
            is_allowed = True
            used.update((key, pattern) for pattern in listed(statement["Action"]) if matches(pattern.lower(), action.lower()))
            used.update((key, pattern) for pattern in listed(statement["Resource"]) if matches(pattern, resource))
    return is_allowed


def judge_commands(requests, policies):
    """The number of requests of each group, the findings, and what was used, as `use` notes it, by the policy's own group."""
    counted, findings, used, refused, seen = Counter(), Counter(), set(), set(), set()
    for request in requests:
        command = request.key.replace("_", " ")
        seen.add(command)
        group = GROUP_OF.get(command)
        if group is None:
            if command not in NO_GROUP:
                findings[f"billhook {command} has no group: name it in GROUP_OF"] += 1
            continue
        counted[group] += 1
        for action, resource in list_permissions(request):
            resource = generalise(resource)
            use(policies[group], action, resource, used)
            if any(use(policies[name], action, resource, set()) for name in POLICIES_OF[group]):
                continue
            if (group, action) in REFUSED:
                refused.add((group, action))
            else:
                findings[f"{group}: nothing allows {action} on {resource}, as billhook {command} needs it"] += 1
    missing = [f"billhook {command} was not recorded: take it out" for command in sorted({*GROUP_OF, *NO_GROUP} - seen)]
    missing += [f"{' '.join(key)} is not refused: take it out of REFUSED" for key in sorted(set(REFUSED) - refused)]
    return counted, [f"{text} ({count} times)" for text, count in sorted(findings.items())] + missing, used


def find_unaudited(requests):
    """The commands that change something and write nothing to the audit log."""
    actions = {}
    for request in requests:
        command = request.key.replace("_", " ")
        actions.setdefault(command, set()).update(action for action, _ in list_permissions(request))
    for command, own in sorted(actions.items()):
        # A task is also invoked by its dry run, which is no change.
        changes = command.endswith(" --yes") or any(not READS.match(it) and it != "lambda:InvokeFunction" for it in own)
        if changes and "logs:PutLogEvents" not in own:
            yield f"billhook {command} changes something, and the audit log has no line of it"


# What they say is done by whoever deploys.
DEPLOYERS_PAGES = ["docs/runbook/stack.md"]


def list_runbook_actions(pages):
    """By action the page that has the command of the AWS CLI: `aws sqs purge-queue` is `sqs:PurgeQueue`."""
    found = {}
    for name, text in pages.items():
        for service, command in re.findall(r"\baws ([a-z0-9]+) ([a-z][a-z-]+)", text):
            found[f"{service}:{''.join(word.capitalize() for word in command.split('-'))}"] = name
    return found


def judge_runbook(actions, policies):
    """Actions of the runbook that none of the policies has; and what they use. Which resource is not compared."""
    findings, used = [], set()
    for action, page in sorted(actions.items()):
        keys = {
            (key, pattern)
            for group in policies.values()
            for key, statement in group.items()
            for pattern in listed(statement["Action"])
            if fnmatch.fnmatchcase(action, pattern)
        }
        used |= keys
        if not keys:
            findings.append(f"{page}: none of {', '.join(sorted(policies))} may {action}")
    return findings, used


def find_unused(statements, used, exceptions):
    """What no request uses in the statements, and the exceptions that are none."""
    findings, excepted = [], set()
    for key, statement in statements.items():
        for pattern in listed(statement["Action"]) + listed(statement["Resource"]):
            reasons = {it for it in exceptions if it[:2] == key and it[2] in pattern}
            if (key, pattern) in used:
                continue
            excepted |= reasons
            if not reasons:
                findings.append(f"{key[0]}, {key[1]}: nothing uses {pattern}")
    policies = {key[0] for key in statements}
    stale = sorted(it for it in exceptions if it[0] in policies and it not in excepted)
    return findings + [f"nothing is that of UNRECORDED any more: {it}" for it in stale]


def name_of(resource):
    """The resource's own name with its functions resolved, or None."""
    for member, value in resource.get("Properties", {}).items():
        if member in ("Name", "TableName", "TopicName", "QueueName", "AlarmName", "DashboardName", "LogGroupName", "FunctionName"):
            value = value["Fn::If"][1] if "Fn::If" in value else value
            if "Fn::Sub" in value:
                return re.sub(r"\$\{(\w+)\}", lambda found: VALUES[found.group(1)], value["Fn::Sub"])
    return None


def judge_deployer(template, statements):
    needed, findings, used = list(CALLS), [], set()
    for name, resource in template["Resources"].items():
        if resource["Type"] not in NEEDS:
            findings.append(f"{resource['Type']} of {name}: name in NEEDS what it takes to make, change and delete it")
            continue
        for actions, arn in NEEDS[resource["Type"]]:
            needed.append((actions, arn.format(id=name, name=name_of(resource))))
    for actions, arn in needed:
        service, *names = actions.split()
        for action in (service + name for name in names):
            if not use(statements, action, fill(arn, VALUES), used):
                findings.append(f"deployer: nothing allows {action} on {fill(arn, VALUES)}")
    types = {resource["Type"] for resource in template["Resources"].values()}
    findings += [f"NEEDS: the template has no {kind}" for kind in sorted(set(NEEDS) - types)]
    return findings + find_unused(statements, used, {})


def find_changes(statements):
    for key, statement in statements.items():
        yield from (f"{key[0]}, {key[1]}: {it} may change something" for it in listed(statement["Action"]) if not READS.match(it))


def judge_application(template, statements):
    """It names its own tables and their indexes, and nothing of another table; a statement that does not only read has a
    condition, of which crates/core/tests/docs.rs compares the columns."""
    tables = {
        fill("arn:aws:dynamodb:<Region>:<Account>:table/", VALUES) + name_of(resource): name
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::DynamoDB::Table"
    }
    conditions = {it["Sid"] for it in json.loads(read_policy("application"))["Statement"] if "Condition" in it}
    for key, statement in statements.items():
        writes = [it for it in listed(statement["Action"]) if not READS.match(it) and it != "dynamodb:ConditionCheckItem"]
        if writes and key[1] not in conditions:
            yield f"{key[0]}, {key[1]}: {writes} of any column"
        for pattern in listed(statement["Resource"]):
            met = {name for arn, name in tables.items() if matches(pattern, arn) or matches(pattern, f"{arn}/index/I")}
            if len(met) != 1 or not met <= {"OrdersTable", "StatementsTable", "TenantsTable"}:
                yield f"{key[0]}, {key[1]}: {pattern} is of {sorted(met)}"


def check_size(name, text):
    size = len(re.sub(r"\s", "", fill(text, LONGEST)).replace("arn:aws:", "arn:aws-us-gov:"))
    if size > CHARACTERS_MAX:
        yield f"{name}: {size} characters with the longest names, and IAM takes {CHARACTERS_MAX}"


def print_template():
    # cfn-lint does not know that CreateChangeSet also takes a transform (CloudFormation user guide, "Control access").
    resources = {
        name.title().replace("-", ""): {
            "Type": "AWS::IAM::ManagedPolicy",
            "Properties": {
                "PolicyDocument": {
                    "Version": "2012-10-17",
                    "Statement": [
                        statement
                        for statement in json.loads(fill(read_policy(name), VALUES))["Statement"]
                        if ":transform/" not in statement["Resource"]
                    ],
                }
            },
        }
        for name in POLICIES
    }
    json.dump({"Resources": resources}, sys.stdout, indent=1)


def main(folder, template):
    with open(template, encoding="utf-8") as file:
        template = json.load(file)
    texts = {name: read_policy(name) for name in POLICIES}
    policies = {name: read_statements(name, text) for name, text in texts.items()}
    counted, findings, used = judge_commands(read_requests(folder, "tool"), policies)
    for group, count in sorted(counted.items()):
        print(f"{count:7} {group}")
    pages = {f"docs/runbook/{page.name}": page.read_text() for page in sorted((ROOT / "docs/runbook").glob("*.md"))}
    of_deployer = {name: pages.pop(name) for name in DEPLOYERS_PAGES}
    by_hand, used_by_hand = judge_runbook(list_runbook_actions(pages), {name: policies[name] for name in POLICIES_OF})
    by_deployer, _ = judge_runbook(list_runbook_actions(of_deployer), {"deployer": policies["deployer"]})
    findings += by_hand + by_deployer
    for name in POLICIES_OF:
        findings += find_unused(policies[name], used | used_by_hand, UNRECORDED)
    findings += find_changes(policies["on-call"])
    findings += judge_deployer(template, policies["deployer"])
    findings += judge_application(template, policies["application"])
    for name, text in texts.items():
        findings += check_size(name, text)
    for finding in findings:
        print(finding, file=sys.stderr)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--template":
        print_template()
    else:
        main(*sys.argv[1:])
