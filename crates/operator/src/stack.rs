//! The deployed CloudFormation stack: the tool finds every table, queue, function and secret through the stack's
//! outputs, so that it needs no configuration of its own and cannot mix up two environments.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use billhook_adapters::config::{EnvLookup, read_order_ids, read_row_rules};
use billhook_core::endpoint::secret::{SecretHolder, SecretKind};
use billhook_core::entity::columns::EntitySchema;
use billhook_core::entity::rules::RowRules;
use billhook_core::ids::ProviderId;
use billhook_core::provider::interpret::InterpretRules;
use roxmltree::Document;

use crate::aws_request::{CLOUDFORMATION, SignedAwsClient};
use crate::aws_xml::{find_list_members, read_child_text, read_first_text};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeployedStack {
    pub(crate) name: String,
    /// The ARN.
    pub(crate) id: String,
    /// For example `UPDATE_COMPLETE`.
    pub(crate) status: String,
    /// When its last update began; `None` if it was never updated.
    updated_at: Option<String>,
    outputs: BTreeMap<String, String>,
    parameters: BTreeMap<String, String>,
}

impl DeployedStack {
    pub(crate) async fn describe(aws: &SignedAwsClient, name: &str) -> Result<Self> {
        let answer =
            call_cloudformation(aws, &[("Action", "DescribeStacks"), ("StackName", name)]).await;
        let answer = answer.with_context(|| {
            format!("cannot read the stack {name}: check --stack, --region and --profile")
        })?;
        Self::parse(name, &answer)
    }

    fn parse(name: &str, answer: &str) -> Result<Self> {
        let document =
            Document::parse(answer).context("cannot parse the response of CloudFormation")?;
        let pairs = |list, key, value| {
            find_list_members(&document, list)
                .filter_map(|member| {
                    let pair = (
                        read_child_text(member, key)?,
                        read_child_text(member, value)?,
                    );
                    Some((pair.0.to_owned(), pair.1.to_owned()))
                })
                .collect()
        };
        Ok(Self {
            name: name.to_owned(),
            id: read_first_text(&document, "StackId")
                .unwrap_or_default()
                .to_owned(),
            status: read_first_text(&document, "StackStatus")
                .unwrap_or_default()
                .to_owned(),
            updated_at: read_first_text(&document, "LastUpdatedTime")
                .filter(|at| !at.is_empty())
                .map(str::to_owned),
            outputs: pairs("Outputs", "OutputKey", "OutputValue"),
            parameters: pairs("Parameters", "ParameterKey", "ParameterValue"),
        })
    }

    /// The names of the resources of one type, for example `AWS::CloudWatch::Alarm`.
    pub(crate) async fn list_resources(
        &self,
        aws: &SignedAwsClient,
        of_type: &str,
    ) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut form = vec![
                ("Action", "ListStackResources"),
                ("StackName", self.name.as_str()),
            ];
            form.extend(next.as_deref().map(|token| ("NextToken", token)));
            let answer = call_cloudformation(aws, &form).await?;
            let document =
                Document::parse(&answer).context("cannot parse the response of CloudFormation")?;
            let listed = find_list_members(&document, "StackResourceSummaries");
            let wanted = listed.filter(|it| read_child_text(*it, "ResourceType") == Some(of_type));
            names.extend(
                wanted.filter_map(|it| Some(read_child_text(it, "PhysicalResourceId")?.to_owned())),
            );
            next = read_first_text(&document, "NextToken").map(str::to_owned);
            if next.is_none() {
                return Ok(names);
            }
        }
    }

    /// Changes parameters; the template and the other parameters stay as deployed. Each of those has to be named with
    /// `UsePreviousValue`: CloudFormation sets a parameter that an update leaves out back to the template's default.
    pub(crate) async fn update_parameters(
        &self,
        aws: &SignedAwsClient,
        changes: &[(&str, &str)],
    ) -> Result<()> {
        let mut form = vec![
            ("Action".to_owned(), "UpdateStack".to_owned()),
            ("StackName".to_owned(), self.name.clone()),
            ("UsePreviousTemplate".to_owned(), "true".to_owned()),
            (
                "Capabilities.member.1".to_owned(),
                "CAPABILITY_IAM".to_owned(),
            ),
            (
                "Capabilities.member.2".to_owned(),
                "CAPABILITY_AUTO_EXPAND".to_owned(),
            ),
        ];
        for (key, number) in self.parameters.keys().zip(1..) {
            let member = format!("Parameters.member.{number}");
            form.push((format!("{member}.ParameterKey"), key.clone()));
            let change = changes.iter().find(|(name, _)| name == key);
            form.push(match change {
                Some((_, value)) => (format!("{member}.ParameterValue"), (*value).to_owned()),
                None => (format!("{member}.UsePreviousValue"), "true".to_owned()),
            });
        }
        let form: Vec<(&str, &str)> = form
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        call_cloudformation(aws, &form).await?;
        Ok(())
    }

    pub(crate) fn output(&self, key: &str) -> Result<&str> {
        let name = &self.name;
        let value = self.outputs.get(key).map(String::as_str);
        value.with_context(|| {
            format!("the stack {name} has no output {key}: it is not a billhook stack, or it was deployed by an older release; check --stack")
        })
    }

    /// Whether an update of this stack, as it was described before, has ended well: after `UpdateStack` was accepted,
    /// CloudFormation may still describe the stack as it was.
    ///
    /// # Errors
    /// If the update failed.
    pub(crate) fn has_been_updated_since(&self, before: &Self) -> Result<bool> {
        if self.updated_at == before.updated_at {
            return Ok(false);
        }
        match self.status.as_str() {
            "UPDATE_COMPLETE" => Ok(true),
            "UPDATE_IN_PROGRESS" | "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS" => Ok(false),
            status => bail!(
                "the update of {} failed with {status}: see `aws cloudformation describe-stack-events --stack-name {}` and docs/runbook/stack.md",
                self.name,
                self.name
            ),
        }
    }

    /// The names of the functions.
    pub(crate) fn functions(&self) -> Result<Vec<&str>> {
        let functions = self.outputs.iter();
        let functions = functions.filter(|(key, _)| key.ends_with("Function"));
        // Fails with the reason if the stack has none.
        self.output("WebhookIngressFunction")?;
        Ok(functions.map(|(_, name)| name.as_str()).collect())
    }

    /// The name of an entity kind's table.
    pub(crate) fn application_table(&self, schema: &EntitySchema) -> Result<&str> {
        self.output(&format!("{}Table", schema.table))
    }

    /// The name of a kind's table, if it is the application's own and the stack did not make it.
    pub(crate) fn existing_table(&self, schema: &EntitySchema) -> Option<&str> {
        let name = self.parameter(&format!("Existing{}TableName", schema.table));
        Some(name).filter(|name| !name.is_empty())
    }

    /// What the stack's functions are told about the application's rows.
    pub(crate) fn row_rules(&self) -> Result<RowRules> {
        let parameter = |variable: &str| {
            let name = match variable {
                "VERSION_COLUMN" => "VersionColumn",
                "ADOPTED_BEFORE" => "AdoptedBefore",
                "ACCEPT_CHECKOUT_ADJUSTMENTS" => "AcceptCheckoutAdjustments",
                _ => return None,
            };
            Some(self.parameter(name).to_owned())
        };
        let rules = read_row_rules(&EnvLookup(&parameter));
        rules.with_context(|| format!("cannot read the parameters of {}", self.name))
    }

    /// What the stack's workers are told about the events that they take.
    pub(crate) fn interpret_rules(&self) -> Result<InterpretRules> {
        let parameter = |variable: &str| {
            let name = match variable {
                "ORDER_ID_KEYS" => "OrderIdKeys",
                "ORDER_ID_PATTERN" => "OrderIdPattern",
                _ => return None,
            };
            Some(self.parameter(name).to_owned())
        };
        let order_ids = read_order_ids(&EnvLookup(&parameter));
        Ok(InterpretRules {
            live_mode: self.is_live(),
            order_ids: order_ids
                .with_context(|| format!("cannot read the parameters of {}", self.name))?,
        })
    }

    /// Where a change would be made: `billhook-prod (live) of account 111122223333 in eu-west-1`.
    pub(crate) fn describe_target(&self) -> String {
        let mut parts = self.id.split(':').skip(3);
        let (region, account) = (parts.next(), parts.next());
        format!(
            "{} ({}) of account {} in {}",
            self.name,
            if self.is_live() { "live" } else { "test" },
            account.unwrap_or("(unknown)"),
            region.unwrap_or("(unknown)")
        )
    }

    pub(crate) fn is_live(&self) -> bool {
        self.parameter("LiveMode") == "true"
    }

    /// The parameter by which the stack does not use the provider, such as `Lob=off`; none if it does.
    pub(crate) fn why_unused(&self, provider: ProviderId) -> Option<String> {
        let title = provider.title();
        let (parameter, unused) = match SecretKind::signing_of(provider).holder() {
            SecretHolder::EndpointSecrets => (format!("{title}Endpoints"), "none"),
            SecretHolder::InboundSecret | SecretHolder::AppSecret => (title.to_owned(), "off"),
        };
        (self.parameter(&parameter) == unused).then(|| format!("{parameter}={unused}"))
    }

    /// Empty if the stack has no such parameter: one that was deployed by an older release may lack the newest.
    pub(crate) fn parameter(&self, key: &str) -> &str {
        self.parameters.get(key).map_or("", String::as_str)
    }
}

async fn call_cloudformation(aws: &SignedAwsClient, pairs: &[(&str, &str)]) -> Result<String> {
    aws.query_xml(CLOUDFORMATION, "2010-05-15", pairs).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_has_ended_only_after_it_has_begun() {
        let stack = |updated_at: Option<&str>, status: &str| DeployedStack {
            name: "billhook-dev".to_owned(),
            id: String::new(),
            status: status.to_owned(),
            updated_at: updated_at.map(str::to_owned),
            outputs: BTreeMap::new(),
            parameters: BTreeMap::new(),
        };
        let before = stack(Some("10:00"), "UPDATE_COMPLETE");
        let is = |updated_at, status| stack(updated_at, status).has_been_updated_since(&before);
        assert!(!is(Some("10:00"), "UPDATE_COMPLETE").unwrap(), "as it was");
        assert!(!is(Some("10:05"), "UPDATE_IN_PROGRESS").unwrap());
        assert!(!is(Some("10:05"), "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS").unwrap());
        assert!(is(Some("10:05"), "UPDATE_COMPLETE").unwrap());
        let failed = is(Some("10:05"), "UPDATE_ROLLBACK_IN_PROGRESS").unwrap_err();
        assert!(failed.to_string().contains("UPDATE_ROLLBACK_IN_PROGRESS"));
        let created = stack(None, "CREATE_COMPLETE");
        let updated = stack(Some("10:00"), "UPDATE_COMPLETE");
        assert!(updated.has_been_updated_since(&created).unwrap());
        assert!(!created.has_been_updated_since(&created).unwrap());
    }

    #[test]
    fn a_provider_is_used_unless_its_parameter_says_otherwise() {
        let unused = |parameter: &str, value: &str| {
            let answer = format!(
                "<R><Stacks><member><Parameters><member><ParameterKey>{parameter}</ParameterKey><ParameterValue>{value}</ParameterValue></member></Parameters></member></Stacks></R>"
            );
            let stack = DeployedStack::parse("billhook-prod", &answer).unwrap();
            let unused = ProviderId::ALL.iter();
            let unused = unused.filter_map(|provider| stack.why_unused(*provider));
            unused.collect::<Vec<_>>()
        };
        for (parameter, value, expected) in [
            ("StripeEndpoints", "none", vec!["StripeEndpoints=none"]),
            ("StripeEndpoints", "platform", vec![]),
            ("Lob", "off", vec!["Lob=off"]),
            ("Lob", "on", vec![]),
            ("Env", "off", vec![]),
        ] {
            assert_eq!(unused(parameter, value), expected);
        }
    }

    #[test]
    fn outputs_and_parameters_are_parsed_and_a_missing_output_is_an_error() {
        let answer = r#"<DescribeStacksResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><DescribeStacksResult><Stacks><member>
            <Parameters><member><ParameterKey>LiveMode</ParameterKey><ParameterValue>true</ParameterValue></member></Parameters>
            <Outputs><member><OutputKey>OrdersTable</OutputKey><OutputValue>Orders-prod</OutputValue></member></Outputs>
            </member></Stacks></DescribeStacksResult></DescribeStacksResponse>"#;
        let stack = DeployedStack::parse("billhook-prod", answer).unwrap();
        assert_eq!(stack.output("OrdersTable").unwrap(), "Orders-prod");
        assert!(stack.is_live());
        assert_eq!(
            stack.output("JobsTable").unwrap_err().to_string(),
            "the stack billhook-prod has no output JobsTable: it is not a billhook stack, or it was deployed by an older release; check --stack"
        );
    }
}
