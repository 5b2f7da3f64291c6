//! Reads a secret from the Systems Manager Parameter Store (`ssm:/path`) with the client of Secrets Manager.
//!
//! Both services use AWS's JSON 1.1 protocol, so the call differs only in host, target, signing name and body. The
//! Parameter Store's own client, with its 140 error types, made every function a megabyte larger for a call that few
//! installations make. Retries, time-outs and error handling are the SDK's. `store` decides when this is used.

use aws_sdk_secretsmanager::config::interceptors::{
    BeforeTransmitInterceptorContextMut, FinalizerInterceptorContextMut,
};
use aws_sdk_secretsmanager::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::Output;
use aws_smithy_types::body::SdkBody;
use aws_types::SigningName;
use aws_types::endpoint_config::EndpointUrl;
use serde::Deserialize;
use serde_json::json;

/// Turns a `GetSecretValue` request into `GetParameter`, and the answer back.
#[derive(Debug)]
pub(super) struct GetParameter {
    pub(super) path: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GetParameterAnswer {
    parameter: ParameterValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ParameterValue {
    value: String,
}

impl Intercept for GetParameter {
    fn name(&self) -> &'static str {
        "GetParameter"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = json!({ "Name": self.path, "WithDecryption": true }).to_string();
        let request = context.request_mut();
        if config.load::<EndpointUrl>().is_none() {
            let uri = request.uri().replacen("://secretsmanager", "://ssm", 1);
            request.set_uri(uri)?;
        }
        let headers = request.headers_mut();
        headers.insert("x-amz-target", "AmazonSSM.GetParameter");
        headers.insert("content-length", body.len().to_string());
        *request.body_mut() = SdkBody::from(body);
        config
            .interceptor_state()
            .store_put(SigningName::from_static("ssm"));
        Ok(())
    }

    fn modify_before_attempt_completion(
        &self,
        context: &mut FinalizerInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response().and_then(|answer| answer.body().bytes());
        let answer = body.map(serde_json::from_slice);
        if let Some(Ok(output)) = context.output_or_error_mut() {
            let Some(Ok(GetParameterAnswer { parameter })) = answer else {
                // The JSON parser's own error is not used, because its text may contain the value.
                return Err("the answer has no Parameter with a Value".into());
            };
            let secret = GetSecretValueOutput::builder().secret_string(parameter.value);
            *output = Output::erase(secret.build());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use aws_sdk_secretsmanager::config::http::{HttpRequest, HttpResponse};
    use aws_sdk_secretsmanager::config::{BehaviorVersion, Region};
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
    };
    use aws_types::SdkConfig;
    use secrecy::ExposeSecret as _;

    use crate::aws::AwsClients;
    use crate::secrets::{FetchSecret as _, SecretVersion, SecretsManager};

    /// Answers every call and sends the URI that was called.
    #[derive(Debug)]
    struct Anywhere(Sender<String>);

    impl HttpConnector for Anywhere {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            self.0.send(request.uri().to_owned()).unwrap();
            let answer = r#"{"Parameter":{"Value":"found"}}"#;
            let status = 200.try_into().unwrap();
            HttpConnectorFuture::ready(Ok(HttpResponse::new(status, answer.into())))
        }
    }

    #[tokio::test]
    async fn the_parameter_store_of_the_region_or_the_variable_is_asked() {
        let own = "http://secretsmanager.test:4566/";
        for (region, endpoint, url) in [
            (
                "eu-central-1",
                None,
                "https://ssm.eu-central-1.amazonaws.com/",
            ),
            (
                "cn-north-1",
                None,
                "https://ssm.cn-north-1.amazonaws.com.cn/",
            ),
            ("eu-central-1", Some(own), own),
        ] {
            let (sender, asked) = channel();
            let anywhere = SharedHttpConnector::new(Anywhere(sender));
            let credentials = Credentials::new("test", "test", None, None, "test");
            let mut config = SdkConfig::builder();
            config.set_endpoint_url(endpoint.map(str::to_owned));
            let config = config
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new(region))
                .credentials_provider(SharedCredentialsProvider::new(credentials))
                .http_client(http_client_fn(move |_, _| anywhere.clone()))
                .build();
            let manager = SecretsManager::new(&AwsClients::from_sdk_config(&config));
            let stored = manager.fetch("ssm:/x", SecretVersion::Current).await;
            assert_eq!(stored.unwrap().unwrap().text.expose_secret(), "found");
            assert_eq!(asked.try_iter().collect::<Vec<_>>(), [url]);
        }
    }
}
