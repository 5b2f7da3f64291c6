//! The deployed stack: everything is found through its outputs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::signed::{CLOUDFORMATION, Caller};

/// What `DescribeStacks` says of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stack {
    pub(crate) name: String,
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
        let document = roxmltree::Document::parse(answer).context("CloudFormation's answer")?;
        let pairs = |list: &str, key: &str, value: &str| {
            let members = document
                .descendants()
                .filter(|node| node.tag_name().name() == list)
                .flat_map(|list| list.children());
            members
                .filter_map(|member| {
                    let text = |name: &str| {
                        let child = member.children().find(|c| c.tag_name().name() == name)?;
                        Some(child.text().unwrap_or_default().to_owned())
                    };
                    Some((text(key)?, text(value)?))
                })
                .collect()
        };
        let status = document
            .descendants()
            .find(|node| node.tag_name().name() == "StackStatus");
        Ok(Self {
            name: name.to_owned(),
            status: status
                .and_then(|node| node.text())
                .unwrap_or_default()
                .to_owned(),
            outputs: pairs("Outputs", "OutputKey", "OutputValue"),
            parameters: pairs("Parameters", "ParameterKey", "ParameterValue"),
        })
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
        self.parameters
            .get("LiveMode")
            .is_some_and(|mode| mode == "true")
    }
}

async fn call(caller: &Caller, pairs: &[(&str, &str)]) -> Result<String> {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("Version", "2010-05-15")
        .extend_pairs(pairs)
        .finish();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    caller.post(CLOUDFORMATION, "/", &form, body).await
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
