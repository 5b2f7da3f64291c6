"""Prints everything in the account and region whose name has WORD in it, a line each: what it is and its name.

usage: inventory.py WORD

Tables are printed with their deletion protection. API Gateway, EventBridge and the others are asked for all that they
have, because no service finds what is left of a stack that is deleted.
"""
import sys

import boto3

# What it is, service, call, member with the list, and member with the name if the list is not of names.
KINDS = [
    ("table", "dynamodb", "list_tables", "TableNames", None),
    ("secret", "secretsmanager", "list_secrets", "SecretList", "Name"),
    ("function", "lambda", "list_functions", "Functions", "FunctionName"),
    ("mapping", "lambda", "list_event_source_mappings", "EventSourceMappings", "FunctionArn"),
    ("log group", "logs", "describe_log_groups", "logGroups", "logGroupName"),
    ("alarm", "cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    ("dashboard", "cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
    ("topic", "sns", "list_topics", "Topics", "TopicArn"),
    ("role", "iam", "list_roles", "Roles", "RoleName"),
    ("rule", "events", "list_rules", "Rules", "Name"),
    ("api", "apigateway", "get_rest_apis", "items", "name"),
    ("queue", "sqs", "list_queues", "QueueUrls", None),
]
# The client has no paginator for these; an account has few of them.
FIREWALL = [("firewall", "list_web_acls", "WebACLs"), ("address set", "list_ip_sets", "IPSets")]


def list_names(service, call, member, name):
    for page in boto3.client(service).get_paginator(call).paginate():
        for item in page.get(member, []):
            yield item[name] if name else item


def list_resources(word):
    found = []
    for kind, *where in KINDS:
        found += [f"{kind} {name}" for name in list_names(*where) if word in name]
    for kind, call, member in FIREWALL:
        listed = getattr(boto3.client("wafv2"), call)(Scope="REGIONAL", Limit=100)[member]
        found += [f"{kind} {item['Name']}" for item in listed if word in item["Name"]]
    return sorted(found)


def is_protected(table):
    return boto3.client("dynamodb").describe_table(TableName=table)["Table"].get("DeletionProtectionEnabled")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for line in list_resources(sys.argv[1]):
        kind, _, name = line.partition(" ")
        print(line + (" protected" if kind == "table" and is_protected(name) else ""))
