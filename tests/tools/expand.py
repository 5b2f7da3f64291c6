"""Prints a template with its SAM resources expanded, as JSON: what CloudFormation makes of it, and so what linters judge.

usage: expand.py TEMPLATE [PARAMETER=VALUE ...]
"""

import json
import logging
import sys

from samcli.lib.translate.sam_template_validator import SamTemplateValidator
from samcli.yamlhelper import yaml_parse


class NoManagedPolicies:
    def load(self):
        return {}


logging.disable()
with open(sys.argv[1], encoding="utf-8") as file:
    source = yaml_parse(file.read())
for pair in sys.argv[2:]:
    name, value = pair.split("=", 1)
    source["Parameters"][name]["Default"] = value
validator = SamTemplateValidator(source, NoManagedPolicies(), region="eu-west-1")
expanded = yaml_parse(validator.get_translated_template_if_valid())
json.dump(expanded, sys.stdout, indent=1)
