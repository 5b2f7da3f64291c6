//! The deployed stack: everything is found through its outputs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use roxmltree::Document;

use crate::signed::{CLOUDFORMATION, Caller};
use crate::xml;

/// What `DescribeStacks` says of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) name: String,
    /// Its ARN.
    pub(crate) id: String,
    /// As `UPDATE_COMPLETE`.
    pub(crate) status: String,
    outputs: BTreeMap<String, String>,
    parameters: BTreeMap<String, String>,
}

impl Stack {
    pub(crate) async fn read(caller: &Caller, name: &str) -> Result<Self> {
        let answer = call(caller, &[("Action", "DescribeStacks"), ("StackName", name)]).await;
        let answer = answer.with_context(|| {
            format!("cannot read the stack {name}: check --stack, --region and --profile")
        })?;
        Self::parse(name, &answer)
    }

    fn parse(name: &str, answer: &str) -> Result<Self> {
        let document = Document::parse(answer).context("CloudFormation's answer")?;
        let pairs = |list, key, value| {
            xml::members(&document, list)
                .filter_map(|member| {
                    let pair = (xml::text(member, key)?, xml::text(member, value)?);
                    Some((pair.0.to_owned(), pair.1.to_owned()))
                })
                .collect()
        };
        Ok(Self {
            name: name.to_owned(),
            id: xml::first(&document, "StackId")
                .unwrap_or_default()
                .to_owned(),
            status: xml::first(&document, "StackStatus")
                .unwrap_or_default()
                .to_owned(),
            outputs: pairs("Outputs", "OutputKey", "OutputValue"),
            parameters: pairs("Parameters", "ParameterKey", "ParameterValue"),
        })
    }

    /// The names of the stack's resources of one type, as `AWS::CloudWatch::Alarm`.
    pub(crate) async fn resources(&self, caller: &Caller, of_type: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut form = vec![
                ("Action", "ListStackResources"),
                ("StackName", self.name.as_str()),
            ];
            form.extend(next.as_deref().map(|token| ("NextToken", token)));
            let answer = call(caller, &form).await?;
            let document = Document::parse(&answer).context("CloudFormation's answer")?;
            let listed = xml::members(&document, "StackResourceSummaries");
            let wanted = listed.filter(|it| xml::text(*it, "ResourceType") == Some(of_type));
            names.extend(
                wanted.filter_map(|it| Some(xml::text(it, "PhysicalResourceId")?.to_owned())),
            );
            next = xml::first(&document, "NextToken").map(str::to_owned);
            if next.is_none() {
                return Ok(names);
            }
        }
    }

    /// Updates the stack: its template and its other parameters stay as they are.
    pub(crate) async fn update(&self, caller: &Caller, changes: &[(&str, &str)]) -> Result<()> {
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
        call(caller, &form).await?;
        Ok(())
    }

    pub(crate) fn output(&self, key: &str) -> Result<&str> {
        let name = &self.name;
        let value = self.outputs.get(key).map(String::as_str);
        value.with_context(|| {
            format!("the stack {name} has no output {key}: it is none of billhook's, or older than this tool")
        })
    }

    pub(crate) fn is_live(&self) -> bool {
        self.parameter("LiveMode") == "true"
    }

    /// Empty where the stack has no such parameter.
    pub(crate) fn parameter(&self, key: &str) -> &str {
        self.parameters.get(key).map_or("", String::as_str)
    }
}

async fn call(caller: &Caller, pairs: &[(&str, &str)]) -> Result<String> {
    caller.query(CLOUDFORMATION, "2010-05-15", pairs).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_and_parameters_are_read_and_a_missing_one_is_named() {
        let answer = r#"<DescribeStacksResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><DescribeStacksResult><Stacks><member>
            <Parameters><member><ParameterKey>LiveMode</ParameterKey><ParameterValue>true</ParameterValue></member></Parameters>
            <Outputs><member><OutputKey>OrdersTable</OutputKey><OutputValue>Orders-prod</OutputValue></member></Outputs>
            </member></Stacks></DescribeStacksResult></DescribeStacksResponse>"#;
        let stack = Stack::parse("billhook-prod", answer).unwrap();
        assert_eq!(stack.output("OrdersTable").unwrap(), "Orders-prod");
        assert!(stack.is_live());
        assert_eq!(
            stack.output("JobsTable").unwrap_err().to_string(),
            "the stack billhook-prod has no output JobsTable: it is none of billhook's, or older than this tool"
        );
    }
}
