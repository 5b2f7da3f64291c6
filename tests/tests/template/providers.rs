//! Each provider of `ProviderId::ALL` has its resources, its outputs and its place on the dashboard, and its variables
//! reach the functions. A provider that is added to the list fails here until the template knows it.

use billhook_core::ids::ProviderId;

use super::alarms::read;
use super::*;

#[test]
fn every_provider_has_its_resources_and_outputs() {
    let template = template();
    for provider in ProviderId::ALL {
        check_provider(&template, *provider);
    }
}

fn check_provider(template: &Value, provider: ProviderId) {
    let title = provider.title();
    for (name, kind) in [
        ("EventsTable", "AWS::DynamoDB::Table"),
        ("EventsQueue", "AWS::SQS::Queue"),
        ("EventsDlq", "AWS::SQS::Queue"),
        ("WorkerFunction", "AWS::Serverless::Function"),
        ("WorkerLogGroup", "AWS::Logs::LogGroup"),
        ("WorkerRole", "AWS::IAM::Role"),
    ] {
        let name = format!("{title}{name}");
        let resource = &template["Resources"][&name];
        assert_eq!(resource["Type"], kind, "the template has no {name}");
    }
    let outputs = [
        format!("WebhookUrl{title}"),
        format!("{title}EventsTable"),
        format!("{title}EventsQueueUrl"),
        format!("{title}EventsDlqUrl"),
        format!("{title}WorkerFunction"),
    ];
    for output in outputs {
        assert!(
            template["Outputs"].get(&output).is_some(),
            "the template has no output {output}"
        );
    }
    let path = format!("/webhooks/{provider}");
    let ingress = &resources(template, "AWS::Serverless::Function")["WebhookIngressFunction"];
    let routes = ingress["Events"].as_object().unwrap().values();
    let mut paths = routes.map(|route| &route["Properties"]["Path"]);
    assert!(
        paths.any(|known| *known == path.as_str()),
        "no route {path}"
    );
    let dashboards = resources(template, "AWS::CloudWatch::Dashboard");
    let body = dashboards["Dashboard"]["DashboardBody"]["!Sub"].as_str();
    let shown = format!(r#""WebhookSuccess", "Environment", "${{Env}}", "Provider", "{provider}""#);
    assert!(
        body.unwrap().contains(&shown),
        "the dashboard does not show the deliveries of {provider}"
    );
}

#[test]
fn every_provider_is_named_where_operators_read() {
    for page in ["README.md", "docs/ARCHITECTURE.md", "docs/data-model.md"] {
        let text = read(page);
        for provider in ProviderId::ALL {
            assert!(
                text.contains(provider.title()),
                "{page} does not name {provider}"
            );
        }
    }
}
