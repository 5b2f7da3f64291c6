//! A stub of AWS: keeps rows in memory and applies the functions' writes, so that the next read finds them and each
//! write's units can be counted. Of all conditions it checks only that of a put. It speaks HTTP, or TLS with its own
//! certificate, and delays each call as requested.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::units::{self, Item, Schema, Units};

/// The calls since the last `taken`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) calls: BTreeMap<String, usize>,
    pub(crate) units: BTreeMap<String, Units>,
    /// Half read units: an eventually consistent read of 4 KB costs one half.
    pub(crate) read_halves: usize,
    pub(crate) message_bytes: usize,
}

struct State {
    schemas: BTreeMap<String, Schema>,
    rows: BTreeMap<String, BTreeMap<String, Item>>,
    secrets: BTreeMap<String, String>,
    asked: Asked,
    delay: Duration,
}

#[derive(Clone)]
pub(crate) struct Stub {
    state: Arc<Mutex<State>>,
    pub(crate) http: String,
    pub(crate) https: String,
}

impl Stub {
    /// Writes `bundle`: the machine's root certificates and the stub's.
    pub(crate) async fn start(schemas: BTreeMap<String, Schema>, bundle: &Path) -> Self {
        let (certificate, key) = crate::certificate::for_localhost();
        let roots = std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt");
        let pem = format!(
            "{}\n{}",
            roots.unwrap_or_default(),
            crate::certificate::pem(&certificate)
        );
        std::fs::write(bundle, pem).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], key)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let (plain, secure) = (bind().await.unwrap(), bind().await.unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let stub = Self {
            state: Arc::new(Mutex::new(State {
                schemas,
                rows: BTreeMap::new(),
                secrets: BTreeMap::new(),
                asked: Asked::default(),
                delay: Duration::ZERO,
            })),
            http: format!("http://127.0.0.1:{}", port(&plain)),
            https: format!("https://localhost:{}", port(&secure)),
        };
        let (on_plain, on_secure) = (stub.clone(), stub.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = plain.accept().await {
                stream.set_nodelay(true).unwrap();
                tokio::spawn(on_plain.clone().converse(stream));
            }
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = secure.accept().await {
                stream.set_nodelay(true).unwrap();
                let (stub, tls) = (on_secure.clone(), tls.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        stub.converse(stream).await;
                    }
                });
            }
        });
        stub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    pub(crate) fn set_secret(&self, id: &str, value: &Value) {
        self.state()
            .secrets
            .insert(id.to_owned(), value.to_string());
    }

    pub(crate) fn put(&self, table: &str, item: Value) {
        let mut state = self.state();
        let key = state.schemas[table].key.clone();
        let Value::Object(item) = item else {
            panic!("no row")
        };
        let id = text(&item, &key);
        let rows = state.rows.entry(table.to_owned()).or_default();
        rows.insert(id, item);
    }

    /// Changes a row, if it exists.
    pub(crate) fn set(&self, table: &str, id: &str, name: &str, value: Value) {
        let mut state = self.state();
        let row = state.rows.get_mut(table).and_then(|rows| rows.get_mut(id));
        if let Some(row) = row {
            row.insert(name.to_owned(), value);
        }
    }

    /// Deletes all rows.
    pub(crate) fn clear(&self) {
        self.state().rows.clear();
    }

    pub(crate) fn taken(&self) -> Asked {
        std::mem::take(&mut self.state().asked)
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let service = service_fn(|request| self.respond(request));
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await
            .ok();
    }

    #[expect(clippy::disallowed_methods, reason = "a server lives in real time")]
    async fn respond(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let target = request.headers().get("x-amz-target");
        let operation = target
            .and_then(|target| target.to_str().unwrap().rsplit('.').next())
            .map(str::to_owned);
        let body = request.into_body().collect().await?.to_bytes();
        let delay = self.state().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let answer = match operation {
            None => Ok(json!({})),
            Some(operation) => {
                let body: Value = serde_json::from_slice(&body).unwrap();
                self.state().call(&operation, &body)
            }
        };
        let (status, answer) = match answer {
            Ok(answer) => (200, answer),
            Err(refusal) => (400, refusal),
        };
        Ok(Response::builder()
            .status(status)
            .header("content-type", "application/x-amz-json-1.0")
            .body(Full::from(answer.to_string()))
            .unwrap())
    }
}

impl State {
    fn call(&mut self, operation: &str, body: &Value) -> Result<Value, Value> {
        *self.asked.calls.entry(operation.to_owned()).or_default() += 1;
        match operation {
            "PutItem" => self.put_item(body),
            "UpdateItem" => {
                self.update(body, false);
                Ok(json!({}))
            }
            "TransactWriteItems" => {
                for action in body["TransactItems"].as_array().unwrap() {
                    self.update(&action["Update"], true);
                }
                Ok(json!({}))
            }
            "GetItem" => {
                let table = body["TableName"].as_str().unwrap();
                let row = self.row(table, &body["Key"]).cloned();
                self.asked.read_halves += read_halves(row.as_ref(), &body["ConsistentRead"]);
                Ok(row.map_or(json!({}), |row| json!({ "Item": row })))
            }
            "BatchGetItem" => {
                let wanted = body["RequestItems"].as_object().unwrap();
                let found = wanted.iter().map(|(table, wanted)| {
                    let keys = wanted["Keys"].as_array().unwrap().iter();
                    let rows = keys.filter_map(|key| self.row(table, key).cloned());
                    (table.clone(), rows.map(Value::Object).collect())
                });
                let found: serde_json::Map<String, Value> = found.collect();
                for (table, wanted) in wanted {
                    for key in wanted["Keys"].as_array().unwrap() {
                        let halves = read_halves(self.row(table, key), &wanted["ConsistentRead"]);
                        self.asked.read_halves += halves;
                    }
                }
                Ok(json!({ "Responses": found, "UnprocessedKeys": {} }))
            }
            "Query" | "Scan" => {
                self.asked.read_halves += read_halves(None, &body["ConsistentRead"]);
                match operation {
                    "Query" => Ok(self.query(body)),
                    _ => Ok(json!({ "Items": [], "Count": 0, "ScannedCount": 0 })),
                }
            }
            "SendMessage" => {
                self.asked.message_bytes += body["MessageBody"].as_str().unwrap().len();
                Ok(json!({ "MessageId": "m", "MD5OfMessageBody": "", "SequenceNumber": "1" }))
            }
            "GetSecretValue" => {
                let id = body["SecretId"].as_str().unwrap();
                let value = self
                    .secrets
                    .get(id)
                    .filter(|_| body["VersionStage"] != "AWSPREVIOUS");
                value
                    .map(|value| json!({ "ARN": id, "SecretString": value, "CreatedDate": 1_700_000_000 }))
                    .ok_or_else(|| json!({ "__type": "ResourceNotFoundException", "message": id }))
            }
            "PutSecretValue" => {
                let text = |name: &str| body[name].as_str().unwrap().to_owned();
                self.secrets.insert(text("SecretId"), text("SecretString"));
                Ok(json!({ "ARN": text("SecretId"), "VersionId": "v" }))
            }
            other => panic!("the stub does not know {other}: {body}"),
        }
    }

    fn row(&self, table: &str, key: &Value) -> Option<&Item> {
        let key = text(key.as_object().unwrap(), &self.schemas[table].key);
        self.rows.get(table)?.get(&key)
    }

    fn query(&self, body: &Value) -> Value {
        let table = body["TableName"].as_str().unwrap();
        let condition = body["KeyConditionExpression"].as_str().unwrap();
        let first = condition.split(" AND ").next().unwrap();
        let (name, value) = first.split_once(" = ").unwrap();
        let names = &body["ExpressionAttributeNames"];
        let name = names[name].as_str().unwrap_or(name);
        let value = &body["ExpressionAttributeValues"][value];
        let rows = self.rows.get(table).into_iter().flat_map(BTreeMap::values);
        let found: Vec<&Item> = rows.filter(|row| row.get(name) == Some(value)).collect();
        json!({ "Items": found, "Count": found.len(), "ScannedCount": found.len() })
    }

    fn put_item(&mut self, body: &Value) -> Result<Value, Value> {
        let table = body["TableName"].as_str().unwrap();
        let after = body["Item"].as_object().unwrap();
        let before = self.row(table, &body["Item"]).cloned();
        if let (Some(before), Some(_)) = (&before, body.get("ConditionExpression")) {
            let schema = &self.schemas[table];
            // A refused write changes no index.
            let charged = Units {
                indexes: 0,
                ..schema.write(Some(before), after, false)
            };
            *self.asked.units.entry(table.to_owned()).or_default() += charged;
            return Err(
                json!({ "__type": "ConditionalCheckFailedException", "message": "it is there", "Item": before }),
            );
        }
        self.write(table, before.as_ref(), after.clone(), false);
        Ok(json!({}))
    }

    fn update(&mut self, update: &Value, transaction: bool) {
        let table = update["TableName"].as_str().unwrap();
        let before = self.row(table, &update["Key"]).cloned();
        let key = || update["Key"].as_object().unwrap().clone();
        let mut after = before.clone().unwrap_or_else(key);
        let name = |placeholder: &str| {
            let names = &update["ExpressionAttributeNames"];
            names[placeholder]
                .as_str()
                .unwrap_or(placeholder)
                .to_owned()
        };
        let value = |placeholder: &str| update["ExpressionAttributeValues"][placeholder].clone();
        let mut verb = "";
        let expression = update["UpdateExpression"].as_str().unwrap();
        let mut words = expression
            .split_whitespace()
            .map(|word| word.trim_end_matches(','));
        while let Some(word) = words.next() {
            match (word, verb) {
                ("SET" | "REMOVE" | "ADD", _) => verb = word,
                (target, "SET") => {
                    assert_eq!(words.next(), Some("="), "{expression}");
                    after.insert(name(target), value(words.next().unwrap()));
                }
                (target, "REMOVE") => {
                    after.remove(&name(target));
                }
                (target, _) => {
                    let more = value(words.next().unwrap());
                    let target = name(target);
                    let sum = match (after.get(&target), more["N"].as_str()) {
                        (Some(old), Some(more)) => {
                            let integer = |text: &str| text.parse::<i64>().unwrap();
                            json!({ "N": (integer(old["N"].as_str().unwrap()) + integer(more)).to_string() })
                        }
                        _ => more,
                    };
                    after.insert(target, sum);
                }
            }
        }
        self.write(table, before.as_ref(), after, transaction);
    }

    fn write(&mut self, table: &str, before: Option<&Item>, after: Item, transaction: bool) {
        let schema = &self.schemas[table];
        let key = text(&after, &schema.key);
        let charged = schema.write(before, &after, transaction);
        *self.asked.units.entry(table.to_owned()).or_default() += charged;
        let rows = self.rows.entry(table.to_owned()).or_default();
        rows.insert(key, after);
    }
}

/// A missing row is charged like the smallest one.
fn read_halves(row: Option<&Item>, consistent: &Value) -> usize {
    let units = row.map_or(0, units::size).div_ceil(4096).max(1);
    units * if *consistent == true { 2 } else { 1 }
}

fn text(item: &Item, name: &str) -> String {
    item[name]["S"].as_str().unwrap().to_owned()
}
